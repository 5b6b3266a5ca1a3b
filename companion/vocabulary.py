# Tangled from vocabulary: edit there, `make tangle`. sha256:aaefd3bb4891
"""What users of PyTorch and NumPy type, beside the methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from companion.tensor import Tensor


def function(name: str) -> Callable[..., Any]:
    """A method as a function: m.exp(x) for x.exp()."""
    method = getattr(Tensor, name)

    @functools.wraps(method)
    def called(x: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a Tensor, got {x!r:.40}; wrap "
                            f"it in Tensor(…)")
        return method(x, *args, **options)
    return called


def __getattr__(name: str) -> Any:
    """Each method of a tensor is a function, too."""
    if name.startswith("_") or not hasattr(Tensor, name):
        raise AttributeError(f"a tensor has no method {name}")
    return function(name)


tensor = import_module("companion.tensor")


def at(module: str, names: str = "", **others: str) -> dict[str, str]:
    """A row "module:name" for each of the names, and for the others."""
    same = {name: name for name in names.split()}
    return {name: f"{module}:{own}" for name, own in (same | others).items()}


def found(where: str, rows: Mapping[str, str], name: str) -> Any:
    """What a row points at; of a word without one, what to type."""
    if name not in rows:
        hint = INSTEAD.get(name, "see the table in its chapter for what is")
        raise AttributeError(f"{where} has no {name}: {hint}")
    module, _, own = rows[name].partition(":")
    return getattr(import_module(module), own)


INSTEAD = {
    "LSTM": "type nn.GRU, or nn.RNN",
    "MultiheadAttention": "type MultiHeadAttention(width, heads), whose "
    "first axis is the batch",
    "TransformerEncoderLayer": "type companion.transformer.Block",
    "DataParallel": "one process uses all processors already",
    "compile": "type jit",
    "save": "type Trainer.save, or safetensors on state_dict()",
    "load": "type load_state_dict on what safetensors reads",
    "device": "type the name, \"cpu\" or \"cuda\"",
    "autocast": "type .to(bfloat16) on the module",
}
