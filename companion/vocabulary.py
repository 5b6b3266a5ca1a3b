# Tangled from vocabulary: edit there, `make tangle`. sha256:42b532dd97af
"""What users of PyTorch and NumPy type, beside the methods."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from companion.tensor import Tensor
from companion.training import (
    packed, read_safetensors, unpacked, write_atomically)


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


# Modules that PyTorch's users ask the package for, beside its functions.
cuda, device, optim, tensor = [import_module(f"companion.{name}") for name in (
    "cuda", "device", "optim", "tensor")]


def is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def save(obj: Any, f: Any) -> None:
    """Write a nest of tensors and plain values; f: a path, or a file."""
    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps(packed(obj, "tree", arrays))
    data = safetensors.numpy.save(arrays, {"tree": tree})
    if hasattr(f, "write"):
        f.write(data)
    else:
        write_atomically(Path(f), data)


def load(f: Any, map_location: Any = "cpu", weights_only: bool = True) -> Any:
    """What `save` has written, on the CPU; it is always data only."""
    if hasattr(f, "read"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(f.read())
            file.flush()
            return load(file.name)
    arrays, about = read_safetensors(Path(f))
    if "tree" not in about:
        raise ValueError(f"load: {f} was not written by save; of other "
                         f"safetensors, type read_safetensors(path)")
    return unpacked(json.loads(about["tree"]), arrays)


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
    "OneCycleLR": "type LambdaLR(optimizer, one_cycle(steps))",
    "CyclicLR": "type LambdaLR, with your own rule",
    "Fold": "its gradient is nn.Unfold: ask grad(nn.Unfold(…)(x), [x], y)",
    "GroupNorm": "type nn.LayerNorm on x.unflatten(1, (groups, -1))",
    "MultiheadAttention": "type MultiHeadAttention(width, heads), whose "
    "first axis is the batch",
    "TransformerEncoderLayer": "type companion.transformer.Block",
    "DataParallel": "one process uses all processors already",
    "compile": "type jit",
    "autocast": "type .to(bfloat16) on the module",
}
