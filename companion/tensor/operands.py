# Tangled from tensors: edit there, `make tangle`. sha256:0e7dc8dd5f16
"""How operands meet: in one shape, one dtype, on one device."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from companion.device import CPU, Device
from companion.dtype import (
    DType, bool_, float32, float64, promote, scalar_dtype)
from companion.ops import CONST, EXPAND, WHERE, Op
from companion.tensor import Scalar, Tensor, leaf
from companion.view import Shape


@functools.lru_cache(maxsize=4096)
def broadcast_shape(*shapes: Shape) -> Shape:
    """The common shape, aligned at the last axis (NumPy's rule)."""
    ndim = max(map(len, shapes))
    aligned = [(1,) * (ndim - len(s)) + s for s in shapes]
    result = []
    for lengths in zip(*aligned):
        wide = set(lengths) - {1}
        if len(wide) > 1:
            raise ValueError(
                f"shapes {' and '.join(map(str, shapes))} do not "
                f"broadcast: lengths must agree or be 1, counted from "
                f"the last axis")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


@functools.lru_cache(maxsize=4096)
def promoted(*kinds: DType | type) -> DType:
    """The dtype where these dtypes and types of Python's numbers meet."""
    dtype = promote(*[k for k in kinds if isinstance(k, DType)])
    # Last, since a number adapts to the dtype on which the tensors agree.
    # kind() is 0, 0.0 or False: of a number only its type counts.
    for kind in kinds:
        if not isinstance(kind, DType):
            dtype = promote(dtype, scalar_dtype(kind(), dtype))
    return dtype


def dtype_or_type(value: Tensor | Scalar) -> Any:
    """The dtype of a tensor, the type of a number."""
    return value.dtype if isinstance(value, Tensor) else type(value)


def common_dtype(*operands: Tensor | Scalar) -> DType:
    """The dtype in which tensors and numbers meet."""
    return promoted(*map(dtype_or_type, operands))


def first_device(*operands: Any) -> Device:
    """The device of the first tensor among the operands, or the CPU."""
    for x in operands:
        if isinstance(x, Tensor):
            return x.device
    return CPU


def as_tensor(value: Tensor | Scalar, dtype: DType, device: Device | str,
              shape: Shape | None = None) -> Tensor:
    """A tensor or a number in `dtype`, broadcast to any `shape` given."""
    if not isinstance(value, Tensor):
        return leaf(CONST, (value, dtype, shape or ()), device)
    same = value if value.buffer.dtype is dtype else value.cast(dtype)
    if shape is None or shape == same.buffer.view.shape:
        return same
    return Tensor.apply(EXPAND, same, arg=shape)


def same_dtype(*operands: Tensor | Scalar) -> list[Tensor]:
    """Operands as tensors of one dtype."""
    dtype, device = common_dtype(*operands), first_device(*operands)
    return [as_tensor(t, dtype, device) for t in operands]


def dtype_and_shape(value: Tensor | Scalar) -> tuple[Any, Shape]:
    """All that decides where a value meets others."""
    if isinstance(value, Tensor):
        return value.buffer.dtype, value.buffer.view.shape
    return type(value), ()


@functools.lru_cache(maxsize=4096)
def common_dtype_and_shape(*outlines: tuple[Any, Shape],
                           ) -> tuple[DType, Shape]:
    """The dtype and the shape in which such values meet."""
    kinds, shapes = zip(*outlines)
    return promoted(*kinds), broadcast_shape(*shapes)


def align(x: Tensor | Scalar, y: Tensor | Scalar) -> tuple[Tensor, Tensor]:
    """Both with one dtype and one shape, ready for a primitive."""
    if (isinstance(x, Tensor) and isinstance(y, Tensor)
            and x.buffer.dtype is y.buffer.dtype):
        m, n = x.buffer.view.shape, y.buffer.view.shape
        if m == n:
            return x, y
        shape = broadcast_shape(m, n)
        return x.broadcast(shape), y.broadcast(shape)
    dtype, shape = common_dtype_and_shape(
        dtype_and_shape(x), dtype_and_shape(y))
    device = first_device(x, y)
    return (as_tensor(x, dtype, device, shape),
            as_tensor(y, dtype, device, shape))


def as_operand(value: Any, *beside: Any) -> Any:
    """A tensor or a Python number; None for anything else.

    An array of NumPy's lies on no device: it is brought to where the
    first tensor `beside` it lies.
    """
    if isinstance(value, (Tensor, bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return as_operand(value.item())
    if isinstance(value, np.ndarray):
        return Tensor(value, device=first_device(*beside))
    return None


def binary(op: Op, x: Any, y: Any) -> Tensor:
    """`op` on two operands of any shapes and dtypes that meet."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        x, y = as_operand(x, y), as_operand(y, x)
        if x is None or y is None:
            return NotImplemented
    return Tensor.apply(op, *align(x, y))


def as_float(x: Tensor) -> Tensor:
    """Integers and bools become float32, floats stay what they are."""
    return x if x.dtype.is_float else x.cast(float32)


def widened(x: Tensor) -> Tensor:
    """`x` as floats to compute with: all but float64 as float32."""
    return x if x.dtype is float64 else x.cast(float32)


def narrowed(result: Tensor, x: Tensor) -> Tensor:
    """`result` in the float dtype in which `x` is answered."""
    return result.cast(x.dtype if x.dtype.is_float else float32)


def required_operand(value: Any, *beside: Any) -> Any:
    """A tensor or a Python number; an error for anything else."""
    found = as_operand(value, *beside)
    if found is None:
        raise TypeError(f"expected a tensor or a number, got "
                        f"{value!r:.60}; make it a Tensor first")
    return found


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """Elements of `a` where `condition` holds, else of `b`."""
    a, b = required_operand(a, condition, b), required_operand(b, condition, a)
    condition = as_operand(condition, a, b)
    if getattr(condition, "dtype", None) is not bool_:
        raise TypeError(
            f"where: expected a tensor of bools as the condition, got "
            f"{condition!r:.60}; compare first")
    # Bool is below every dtype: the condition settles the shape alone.
    outlines = map(dtype_and_shape, (condition, a, b))
    dtype, shape = common_dtype_and_shape(*outlines)
    a, b = [as_tensor(x, dtype, condition.device, shape) for x in (a, b)]
    return Tensor.apply(WHERE, condition.broadcast(shape), a, b)
