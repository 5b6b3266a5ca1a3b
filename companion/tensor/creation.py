# Tangled from indexing, vocabulary: edit there, `make tangle`. sha256:ad12e67e8d21  # noqa: E501
"""Tensors made from a shape: full, arange, eye, one_hot."""

from __future__ import annotations

import math
from typing import Any

from companion.device import CPU, Device
from companion.dtype import DType, float32, float64, int64, scalar_dtype
from companion.ops import IOTA
from companion.tensor import Scalar, Tensor, as_int, leaf, unpack_ints
from companion.tensor.operands import as_tensor, where
from companion.view import Shape


def full(shape: Any, value: Scalar, dtype: DType | None = None,
         device: Device | str = CPU) -> Tensor:
    """Memory of its own, every element `value`."""
    dtype = dtype or scalar_dtype(value)
    # A constant is one element, shared by all, that refuses to be written.
    return as_tensor(value, dtype, device, unpack_ints([shape])).clone()


def zeros(*shape: Any, dtype: DType = float32,
          device: Device | str = CPU) -> Tensor:
    return full(unpack_ints(shape), 0, dtype, device)


def ones(*shape: Any, dtype: DType = float32,
         device: Device | str = CPU) -> Tensor:
    return full(unpack_ints(shape), 1, dtype, device)


def full_like(x: Tensor, value: Scalar) -> Tensor:
    return full(x.shape, value, x.dtype, x.device)


def zeros_like(x: Tensor) -> Tensor:
    return full_like(x, 0)


def ones_like(x: Tensor) -> Tensor:
    return full_like(x, 1)


def arange(start: Scalar, stop: Scalar | None = None, step: Scalar = 1,
           dtype: DType | None = None,
           device: Device | str = CPU) -> Tensor:
    """start, start + step, … below stop (above it for step < 0)."""
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ValueError("arange: expected a step other than 0")
    n = max(math.ceil((stop - start) / step), 0)
    exact = all(isinstance(v, int) for v in (start, stop, step))
    # In float32 many small steps would drift apart.
    index = leaf(IOTA, n, device).cast(int64 if exact else float64)
    dtype = dtype or (int64 if exact else float32)
    scaled = index if step == 1 else index * step
    return (scaled + start if start else scaled).cast(dtype)


def check_length(name: str, n: Any) -> int:
    """A whole number of elements; an error below 0."""
    if as_int(n) < 0:
        raise ValueError(f"{name}: expected a length >= 0, got {n}")
    return as_int(n)


def linspace(start: float, stop: float, steps: int,
             dtype: DType = float32,
             device: Device | str = CPU) -> Tensor:
    """`steps` evenly spaced values, both ends exact."""
    step = (stop - start) / max(check_length("linspace", steps) - 1, 1)
    index = arange(steps, dtype=float64, device=device)
    # Counting up rarely lands on the right end, so half counts down from it.
    up = index * step + start
    down = (index - (steps - 1)) * step + stop
    return where(index < max(steps / 2, 1), up, down).cast(dtype)


def eye(n: int, m: int | None = None, dtype: DType = float32,
        device: Device | str = CPU) -> Tensor:
    """Ones on the diagonal of an n × m matrix."""
    rows, columns = [arange(check_length("eye", side), device=device)
                     for side in (n, n if m is None else m)]
    return (rows.unsqueeze(1) == columns).cast(dtype)


def one_hot(index: Tensor, num_classes: int) -> Tensor:
    """1 at each index, 0 elsewhere, along a new last axis (int64)."""
    classes = arange(check_length("one_hot", num_classes), device=index.device)
    return (index.unsqueeze(-1) == classes).cast(int64)


def diagonal_offsets(x: Tensor) -> Tensor:
    """column - row for every place of the last two axes."""
    if x.ndim < 2:
        raise ValueError(f"tril, triu: expected at least two axes, got "
                         f"shape {x.shape}")
    rows, columns = [arange(n, device=x.device) for n in x.shape[-2:]]
    return columns - rows.unsqueeze(1)


def empty(*shape: Any, dtype: DType = float32,
          device: Device | str = CPU) -> Tensor:
    """Memory to write to; here it is cleared."""
    return zeros(*shape, dtype=dtype, device=device)


def along_axis(x: Tensor, axis: int, shape: Shape) -> Tensor:
    """A vector along one axis of a grid."""
    return x.reshape([-1 if i == axis else 1 for i in range(len(shape))]
                     ).broadcast(shape)


def meshgrid(*vectors: Any, indexing: str = "ij") -> list[Tensor]:
    """The coordinates of a grid's points, one tensor for each axis.

    Of vectors, or of one list of them. "xy" has the first two axes
    exchanged, as pictures have.
    """
    if len(vectors) == 1 and isinstance(vectors[0], list | tuple):
        vectors = tuple(vectors[0])
    if indexing not in ("ij", "xy"):
        raise ValueError(f"meshgrid: expected indexing 'ij' or 'xy', got "
                         f"{indexing!r}")
    shape = tuple([v.size for v in vectors])
    grids = [along_axis(v, i, shape) for i, v in enumerate(vectors)]
    if indexing == "xy" and len(grids) > 1:
        grids = [g.transpose(0, 1) for g in grids]
    return grids
