# Tangled from blas, autograd: edit there, `make tangle`. sha256:87b152487ed5
"""What the framework costs beside the one that people use."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from companion.tensor.random import randn
from companion.timing import MISSING, compare, stamp


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Microseconds of small calls in ours and in PyTorch, gradients off."""
    for case in list(EAGER)[:3] if quick else EAGER:
        yield {"bench": "eager", "case": case, "threads": threads,
               "unit": "µs", **calls(EAGER[case]), **stamp("torch")}


def twenty(run: Callable[..., Any], operands: Any) -> Callable[[], None]:
    """Twenty calls on the same operands, as one program."""
    def program() -> None:
        for _ in range(20):
            run(*operands)
    return program


def calls(run: Callable[..., Any],
          rounds: int = 15) -> dict[str, float | None]:
    """The time of a call in both libraries, and how they compare."""
    if not importlib.util.find_spec("torch"):
        return MISSING
    torch = import_module("torch")
    ours = randn(32, 32), randn(32, 32), randn(32)
    peers = [torch.from_numpy(x.numpy().copy()) for x in ours]
    found = compare(functools.partial(twenty, run, ours),
                    functools.partial(twenty, run, peers), rounds, tries=5)
    return found.line(lambda s: s / 20e-6)


def there_and_back(x: Any, y: Any, row: Any) -> None:
    """A product, a sum, a relu and their gradients."""
    x = x.detach().requires_grad_()
    (x @ y + row).relu().sum().backward()


EAGER: dict[str, Callable[..., Any]] = {
    "x + y": lambda x, y, row: x + y,
    "x + row": lambda x, y, row: x + row,
    "x - y": lambda x, y, row: x - y,
    "x / y": lambda x, y, row: x / y,
    "x * 2.0": lambda x, y, row: x * 2.0,
    "x > 0": lambda x, y, row: x > 0,
    "x.exp()": lambda x, y, row: x.exp(),
    "x.sum()": lambda x, y, row: x.sum(),
    "x @ y": lambda x, y, row: x @ y,
    "x.T": lambda x, y, row: x.T,
    "x.reshape(16, 64)": lambda x, y, row: x.reshape(16, 64),
    "x[3]": lambda x, y, row: x[3],
    "x[1:9, ::2]": lambda x, y, row: x[1:9, ::2],
    "x[[3, 1, 3]]": lambda x, y, row: x[[3, 1, 3]],
    "x + y, recorded": lambda x, y, row: (
        x.detach().requires_grad_() + y),
    "chain and back": there_and_back,
}
