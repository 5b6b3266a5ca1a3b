# Tangled from codegen: edit there, `make tangle`. sha256:d6f7f8808a64
from __future__ import annotations

import math
from typing import Any

import numpy as np

from companion.compiler.lazy import Lazy
from companion.compiler.program import arena, compile_graph
from companion.device import CPU
from companion.dtype import float32
from companion.tensor import Tensor


def results(*tensors: Tensor) -> list[np.ndarray]:
    """Of a program compiled for the occasion."""
    found: list[Any] = [t.buffer for t in tensors]
    return [x.array for x in compile_graph([x.node for x in found])()]


def test_a_program_computes_what_the_graph_means():
    x = Tensor(np.arange(24.0).reshape(4, 6) - 7, float32, Lazy(CPU))
    values = [x.softmax(1), x @ x.T, x.max(0), x[::2, 1:], x.std(1),
              x[Tensor([1, 1, -1], device=x.device)], (x * 0.3).erf(),
              x.flip((0, 1)).T.reshape(3, 8), x.cumsum(1), x > 0]
    for found, t in zip(results(*values), values):
        assert found.dtype == t.dtype.numpy
        assert np.allclose(found, t.numpy(), rtol=1e-5, atol=1e-6)


def test_nan_and_infinity_stay_what_they_are():
    x = Tensor([[0.0, math.inf, 1.0], [math.nan, 3.0, -math.inf],
                [-math.inf, -math.inf, 2.0]], float32, Lazy(CPU))
    values = [x.max(1), x.max(0), x.sum(1), x.exp(), x.maximum(x.T),
              1 / x, x < 1, x.softmax(1), x.erf(), x == x]
    for found, t in zip(results(*values), values):
        assert np.allclose(found, t.numpy(), equal_nan=True)
    # A masked weight is 0, and no small number.
    assert results(x[2:].softmax(1))[0].tolist() == [[0, 0, 1]]


def test_memory_is_used_again():
    offsets, size = arena({"a": (64, 0, 1), "b": (64, 1, 2), "c": (64, 2, 3),
                           "d": (128, 3, 3)})
    assert size == 192
    for one, other in (("a", "b"), ("b", "c"), ("c", "d")):
        assert offsets[one] != offsets[other]
