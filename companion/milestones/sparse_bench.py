# Tangled from compression: edit there, `make tangle`. sha256:11dcc4d1588e
"""A sparse product beside PyTorch's, at falling densities."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.compress import CSR
from companion.native import set_threads
from companion.tensor import Tensor
from companion.timing import MISSING, compare, stamp


def drawn_operands(density: float, n: int) -> tuple[Tensor, Tensor]:
    """A matrix (1024, 1024) of that density, and x (1024, n)."""
    draw = np.random.default_rng(0)
    w, x = [draw.standard_normal((1024, k)).astype(np.float32)
            for k in (1024, n)]
    return Tensor(w * (draw.random(w.shape) < density)), Tensor(x)


def our_product(density: float, n: int, threads: int) -> Callable[[], Any]:
    set_threads(threads)
    w, x = drawn_operands(density, n)
    sparse = CSR(w)
    return lambda: (sparse @ x).numpy()


def torch_product(density: float, n: int, threads: int) -> Callable[[], Any]:
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    w, x = [torch.tensor(t.numpy()) for t in drawn_operands(density, n)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR is called a beta there
        sparse = w.to_sparse_csr()
    return lambda: (sparse @ x).numpy()


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Microseconds of a sparse product, ours and PyTorch's."""
    there = importlib.util.find_spec("torch")
    cases = [(0.1, 256)] if quick else [
        (d, n) for d in (0.2, 0.1, 0.02) for n in (1, 256)]
    for density, n in cases:
        args = density, n, threads
        found = compare(
            partial(our_product, *args), partial(torch_product, *args),
            agree=partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3),
            rounds=5 if quick else 15).line(
                lambda s: 1e6 * s) if there else MISSING
        yield {"bench": "sparse", "threads": threads, "unit": "µs",
               "case": f"density {density:.0%}, {n} columns",
               **stamp("torch"), **found}
