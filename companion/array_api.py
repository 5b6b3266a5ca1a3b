# Tangled from vocabulary: edit there, `make tangle`. sha256:21efc7ed58f9
"""The array API standard (2024.12): its names, for our functions."""

from __future__ import annotations

import math
import operator
import string
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from companion.device import CPU, DEVICES, Device
from companion.dtype import (
    DType, bfloat16, bool_, float16, float32, float64, int8, int32, int64,
    promote, scalar_dtype, uint8)
from companion.tensor import Tensor, axis_of, unpack_ints
from companion.tensor.along import order_keys
from companion.tensor.arithmetic import has_minus
from companion.tensor.contraction import einsum
from companion.tensor.creation import arange, full, linspace, meshgrid
from companion.tensor.indexing import cat, stack
from companion.tensor.operands import broadcast_shape, same_dtype, where

STANDARD = {
    "constants": "e inf nan newaxis pi",
    "dtypes": "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float32 float64 complex64 complex128",
    "dtype functions": "astype can_cast finfo iinfo isdtype result_type",
    "creation": "arange asarray empty empty_like eye from_dlpack full "
    "full_like linspace meshgrid ones ones_like tril triu zeros zeros_like",
    "elementwise": "abs acos acosh add asin asinh atan atan2 atanh "
    "bitwise_and bitwise_invert bitwise_left_shift bitwise_or "
    "bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide "
    "equal exp expm1 floor floor_divide greater greater_equal hypot imag "
    "isfinite isinf isnan less less_equal log log10 log1p log2 logaddexp "
    "logical_and logical_not logical_or logical_xor maximum minimum multiply "
    "negative nextafter not_equal positive pow real reciprocal remainder "
    "round sign signbit sin sinh sqrt square subtract tan tanh trunc",
    "indexing": "take take_along_axis",
    "linear algebra": "matmul matrix_transpose tensordot vecdot",
    "manipulation": "broadcast_arrays broadcast_to concat expand_dims flip "
    "moveaxis permute_dims repeat reshape roll squeeze stack tile unstack",
    "searching": "argmax argmin count_nonzero nonzero searchsorted where",
    "sets": "unique_all unique_counts unique_inverse unique_values",
    "sorting": "argsort sort",
}

STANDARD |= {
    "statistics": "cumulative_prod cumulative_sum max mean min prod std sum "
    "var",
    "utilities": "all any diff",
    "inspection": "__array_namespace_info__",
    "linalg (extension)": "cholesky cross det diagonal eigh eigvalsh inv "
    "matmul matrix_norm matrix_power matrix_rank matrix_transpose outer pinv "
    "qr slogdet solve svd svdvals tensordot trace vecdot vector_norm",
    "fft (extension)": "fft ifft fftn ifftn rfft irfft rfftn irfftn hfft "
    "ihfft fftfreq rfftfreq fftshift ifftshift",
}
# What is here, by its name in the standard.
NAMES: dict[str, Any] = {
    "e": math.e, "inf": math.inf, "nan": math.nan, "newaxis": None,
    "pi": math.pi, "bool": bool_, "int8": int8, "int32": int32,
    "int64": int64, "uint8": uint8, "float32": float32, "float64": float64,
    "bfloat16": bfloat16, "float16": float16,
    "__array_api_version__": "2024.12"}


def standard(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the standard; a last _ keeps Python's own name free."""
    NAMES[function.__name__.rstrip("_")] = function
    return function


class Namespace(ModuleType):
    """The module as others see it: the names of the standard first.

    Inside of it `where` is our function; asked for from outside, it is
    the standard's.
    """

    def __getattribute__(self, name: str) -> Any:
        return NAMES[name] if name in NAMES else super().__getattribute__(
            name)

    def __dir__(self) -> list[str]:
        return sorted(NAMES)


sys.modules[standard.__module__].__class__ = Namespace


def of_one(name: str) -> Callable[..., Tensor]:
    method = getattr(Tensor, name)

    def function(x: Tensor, /) -> Tensor:
        return method(x)
    return function


def of_two(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of two tensors, or of a tensor and a number on either side."""
    def function(x1: Any, x2: Any, /) -> Tensor:
        if not isinstance(x1, Tensor):
            x1 = full((), x1, scalar_dtype(x1, x2.dtype), x2.device)
        return operation(x1, x2)
    return function


NAMES |= {name: of_one(name) for name in (
    "abs acos acosh asin asinh atan atanh ceil cos cosh exp expm1 floor "
    "isinf isnan log log10 log2 logical_not negative "
    "reciprocal round sign sin sinh sqrt square tan tanh trunc").split()}
NAMES |= {"bitwise_invert": of_one("__invert__"),
          "positive": of_one("__pos__")}

NAMES |= {name: of_two(getattr(Tensor, name)) for name in (
    "atan2 bitwise_and bitwise_or bitwise_xor copysign hypot logaddexp "
    "logical_and logical_or logical_xor maximum minimum").split()}
NAMES |= {name: of_two(operation) for name, operation in {
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul,
    "divide": operator.truediv, "floor_divide": operator.floordiv,
    "remainder": operator.mod, "pow": operator.pow, "equal": operator.eq,
    "not_equal": operator.ne, "less": operator.lt, "less_equal": operator.le,
    "greater": operator.gt, "greater_equal": operator.ge,
    "bitwise_left_shift": operator.lshift, "matmul": operator.matmul,
    "bitwise_right_shift": operator.rshift}.items()}


@standard
def isfinite(x: Tensor, /) -> Tensor:
    return x.isfinite() if x.dtype.is_float else x == x


@standard
def log1p(x: Tensor, /) -> Tensor:
    """Of -0 it is -0, which log(1 + x) has lost."""
    return where(x == 0, x, x.log1p())


@standard
def signbit(x: Tensor, /) -> Tensor:
    return has_minus(x)


@standard
def clip(x: Tensor, /, min: Any = None, max: Any = None) -> Tensor:
    return x.clone() if min is None and max is None else x.clamp(min, max)


@standard
def astype(x: Tensor, dtype: DType, /, *, copy: bool = True,
           device: Any = None) -> Tensor:
    y = x.cast(dtype).to(device=device)
    return y.clone() if copy and y is x else y


@standard
def result_type(*arrays_and_dtypes: Any) -> DType:
    kinds = [getattr(a, "dtype", a) for a in arrays_and_dtypes]
    known = [k for k in kinds if isinstance(k, DType)]
    found = promote(*known)
    for number in kinds:
        if not isinstance(number, DType):
            found = promote(found, scalar_dtype(number, found))
    return found


@standard
def can_cast(from_: Any, to: DType, /) -> bool:
    """Whether promotion leads from one to the other."""
    return promote(getattr(from_, "dtype", from_), to) is to


@standard
def isdtype(dtype: DType, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return True in [isdtype(dtype, each) for each in kind]
    return dtype is kind if isinstance(kind, DType) else (
        dtype.kind in KINDS[kind])


KINDS = {"bool": "b", "signed integer": "i", "unsigned integer": "u",
         "integral": "iu", "real floating": "f", "complex floating": "",
         "numeric": "iuf"}


class Limits(NamedTuple):
    """What numbers a dtype holds; of integers, bits, min and max."""

    bits: int
    max: float
    min: float
    dtype: DType
    eps: float = 0.0
    smallest_normal: float = 0.0


@standard
def finfo(type: Any, /) -> Limits:
    dtype = getattr(type, "dtype", type)
    known = ml_dtypes.finfo(dtype.numpy)
    return Limits(known.bits, float(known.max), float(known.min), dtype,
                  float(known.eps), float(known.smallest_normal))


@standard
def iinfo(type: Any, /) -> Limits:
    dtype = getattr(type, "dtype", type)
    known = np.iinfo(dtype.numpy)
    return Limits(known.bits, int(known.max), int(known.min), dtype)


@standard
def asarray(obj: Any, /, *, dtype: DType | None = None, device: Any = None,
            copy: bool | None = None) -> Tensor:
    x = obj if isinstance(obj, Tensor) else Tensor(obj, dtype)
    y = x.to(device=device, dtype=dtype)
    if copy is False and y is not obj:
        raise ValueError("asarray: this takes a copy; say copy=None")
    return y.clone() if copy and y is obj else y


@standard
def from_dlpack(x: Any, /, *, device: Any = None,
                copy: bool | None = None) -> Tensor:
    return asarray(Tensor.from_dlpack(x), device=device, copy=copy)


@standard
def arange_(start: Any, /, stop: Any = None, step: Any = 1, *,
            dtype: DType | None = None, device: Any = None) -> Tensor:
    return arange(start, stop, step, dtype, device or CPU)


@standard
def linspace_(start: float, stop: float, /, num: int, *,
              dtype: DType | None = None, device: Any = None,
              endpoint: bool = True) -> Tensor:
    steps = num if endpoint else num + 1
    return linspace(start, stop, steps, dtype or float32,
                    device or CPU)[:num]


@standard
def full_(shape: Any, fill_value: Any, *, dtype: DType | None = None,
          device: Any = None) -> Tensor:
    return full(shape, fill_value, dtype, device or CPU)


@standard
def full_like_(x: Tensor, /, fill_value: Any, *, dtype: DType | None = None,
               device: Any = None) -> Tensor:
    return full(x.shape, fill_value, dtype or x.dtype, device or x.device)


def filled(value: float) -> tuple[Callable[..., Tensor], ...]:
    """full and full_like of one value."""
    def of_shape(shape: Any, *, dtype: DType | None = None,
                 device: Any = None) -> Tensor:
        return full(shape, value, dtype or float32, device or CPU)

    def like(x: Tensor, /, *, dtype: DType | None = None,
             device: Any = None) -> Tensor:
        return full(x.shape, value, dtype or x.dtype, device or x.device)
    return of_shape, like


for name, value in {"zeros": 0, "ones": 1, "empty": 0}.items():
    NAMES[name], NAMES[f"{name}_like"] = filled(value)


@standard
def eye_(n_rows: int, n_cols: int | None = None, /, *, k: int = 0,
         dtype: DType | None = None, device: Any = None) -> Tensor:
    columns = n_rows if n_cols is None else n_cols
    row, column = [arange(n, device=device or CPU) for n in (n_rows, columns)]
    return (row.unsqueeze(1) + k == column).cast(dtype or float32)


@standard
def meshgrid_(*arrays: Tensor, indexing: str = "xy") -> list[Tensor]:
    return meshgrid(*arrays, indexing=indexing)


@standard
def tril(x: Tensor, /, *, k: int = 0) -> Tensor:
    return x.tril(k)


@standard
def triu(x: Tensor, /, *, k: int = 0) -> Tensor:
    return x.triu(k)


@standard
def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    return x.index_select(0 if axis is None else axis, indices)


@standard
def take_along_axis(x: Tensor, indices: Tensor, /, *,
                    axis: int = -1) -> Tensor:
    return x.take_along_axis(indices, axis)


@standard
def vecdot(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    x1, x2 = same_dtype(x1, x2)
    # Not x.sum, which makes int64 of integers.
    return (x1 * x2).sum(axis).cast(x1.dtype)


@standard
def matrix_transpose(x: Tensor, /) -> Tensor:
    return x.mT


@standard
def tensordot(x1: Tensor, x2: Tensor, /, *, axes: Any = 2) -> Tensor:
    """Sums over pairs of axes: the last of x1 and the first of x2."""
    left, right = axes if isinstance(axes, Sequence) else (
        range(x1.ndim - axes, x1.ndim), range(axes))
    left = [axis_of(x1, a) for a in left]
    right = [axis_of(x2, a) for a in right]
    p = iter(string.ascii_letters)
    first = [next(p) for _ in range(x1.ndim)]
    second = [first[left[right.index(j)]] if j in right else next(p)
              for j in range(x2.ndim)]
    rest = [c for i, c in enumerate(first) if i not in left] + [
        c for j, c in enumerate(second) if j not in right]
    return einsum(f"{''.join(first)},{''.join(second)}->{''.join(rest)}",
                  x1, x2)


@standard
def broadcast_to(x: Tensor, /, shape: Any) -> Tensor:
    return x.broadcast(unpack_ints([shape]))


@standard
def broadcast_arrays(*arrays: Tensor) -> list[Tensor]:
    shape = broadcast_shape(*[x.shape for x in arrays])
    return [x.broadcast(shape) for x in arrays]


@standard
def concat(arrays: Any, /, *, axis: int | None = 0) -> Tensor:
    parts = same_dtype(*arrays)
    if axis is None:
        return cat([x.reshape(-1) for x in parts], 0)
    return cat(parts, axis)


@standard
def stack_(arrays: Any, /, *, axis: int = 0) -> Tensor:
    return stack(same_dtype(*arrays), axis)


@standard
def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    return tuple(x.unbind(axis))


@standard
def permute_dims(x: Tensor, /, axes: Any) -> Tensor:
    return x.permute(axes)


@standard
def expand_dims(x: Tensor, /, axis: Any) -> Tensor:
    places = unpack_ints([axis])
    ndim = x.ndim + len(places)
    for at in sorted(operator.index(a) % ndim if -ndim <= a < ndim else a
                     for a in places):
        x = x.unsqueeze(at)
    return x


@standard
def squeeze(x: Tensor, /, axis: Any) -> Tensor:
    wrong = [a for a in unpack_ints([axis]) if x.shape[axis_of(x, a)] != 1]
    if wrong:
        raise ValueError(f"squeeze: axes {wrong} of shape {x.shape} are not "
                         f"of length 1; expected axes that are")
    return x.squeeze(axis)


@standard
def flip(x: Tensor, /, *, axis: Any = None) -> Tensor:
    return x.flip(axis)


@standard
def moveaxis(x: Tensor, source: Any, destination: Any, /) -> Tensor:
    return x.movedim(source, destination)


@standard
def repeat(x: Tensor, repeats: Any, /, *, axis: int | None = None) -> Tensor:
    return x.repeat_interleave(repeats, axis)


@standard
def reshape(x: Tensor, /, shape: Any, *, copy: bool | None = None) -> Tensor:
    y = x.reshape(*unpack_ints([shape]))
    return y.clone() if copy else y


@standard
def roll(x: Tensor, /, shift: Any, *, axis: Any = None) -> Tensor:
    return x.roll(shift, axis)


@standard
def tile(x: Tensor, repetitions: Any, /) -> Tensor:
    times = unpack_ints([repetitions])
    return x.repeat((1,) * (x.ndim - len(times)) + times)


@standard
def where_(condition: Tensor, x1: Any, x2: Any, /) -> Tensor:
    return where(condition, x1, x2)


@standard
def nonzero(x: Tensor, /) -> tuple[Tensor, ...]:
    return tuple([Tensor(at, int64, x.device)
                  for at in np.nonzero(x.numpy())])


@standard
def argmax(x: Tensor, /, *, axis: int | None = None,
           keepdims: bool = False) -> Tensor:
    return x.argmax(axis, keepdims)


@standard
def argmin(x: Tensor, /, *, axis: int | None = None,
           keepdims: bool = False) -> Tensor:
    return x.argmin(axis, keepdims)


@standard
def count_nonzero(x: Tensor, /, *, axis: Any = None,
                  keepdims: bool = False) -> Tensor:
    return (x != 0).sum(axis, keepdims)


@standard
def searchsorted(x1: Tensor, x2: Tensor, /, *,
                 side: Literal["left", "right"] = "left",
                 sorter: Tensor | None = None) -> Tensor:
    """Where in the sorted x1 the elements of x2 would stand."""
    row = x1 if sorter is None else x1.index_select(0, sorter)
    return Tensor(np.searchsorted(row.numpy(), x2.numpy(), side),
                  int64, x1.device)


class Unique(NamedTuple):
    """What occurs in x; each NaN is another one."""

    values: Tensor
    indices: Tensor
    inverse_indices: Tensor
    counts: Tensor


@standard
def unique_all(x: Tensor, /) -> Unique:
    found = np.unique(order_keys(x), True, True, True, equal_nan=False)
    values, first, inverse, counts = [Tensor(part, device=x.device)
                                      for part in found]
    return Unique(values.cast(x.dtype), first, inverse.reshape(x.shape),
                  counts)


def some_of(name: str, *fields: str) -> Callable[..., Any]:
    """unique_all, of which some fields are wanted."""
    kind = NamedTuple(name, [(f, Tensor) for f in fields])  # type: ignore

    def function(x: Tensor, /) -> Any:
        found = unique_all(x)
        return kind(*[getattr(found, f) for f in fields])
    return function


NAMES["unique_counts"] = some_of("UniqueCounts", "values", "counts")
NAMES["unique_inverse"] = some_of(
    "UniqueInverse", "values", "inverse_indices")


@standard
def unique_values(x: Tensor, /) -> Tensor:
    return unique_all(x).values


@standard
def argsort(x: Tensor, /, *, axis: int = -1, descending: bool = False,
            stable: bool = True) -> Tensor:
    return x.argsort(axis, descending)


@standard
def sort(x: Tensor, /, *, axis: int = -1, descending: bool = False,
         stable: bool = True) -> Tensor:
    return x.sort(axis, descending).values


def folded(name: str) -> Callable[..., Tensor]:
    method = getattr(Tensor, name)

    def function(x: Tensor, /, *, axis: Any = None,
                 keepdims: bool = False) -> Tensor:
        return method(x, axis, keepdims)
    return function


NAMES |= {name: folded(name) for name in ("all", "any", "mean")}
NAMES |= {"max": folded("amax"), "min": folded("amin")}


def spread(name: str) -> Callable[..., Tensor]:
    """var or std, of which the standard takes all n values."""
    method = getattr(Tensor, name)

    def function(x: Tensor, /, *, axis: Any = None, correction: float = 0.0,
                 keepdims: bool = False) -> Tensor:
        return method(x, axis, correction, keepdims)
    return function


NAMES |= {name: spread(name) for name in ("std", "var")}


@standard
def sum_(x: Tensor, /, *, axis: Any = None, dtype: DType | None = None,
         keepdims: bool = False) -> Tensor:
    return x.sum(axis, keepdims, dtype)


@standard
def prod(x: Tensor, /, *, axis: Any = None, dtype: DType | None = None,
         keepdims: bool = False) -> Tensor:
    return (x.cast(dtype) if dtype else x).prod(axis, keepdims).cast(
        dtype or promote(x.dtype, x.dtype if x.dtype.is_float else int64))


def cumulative(name: str, first: int) -> Callable[..., Tensor]:
    """A running fold, which may begin with the fold of nothing."""
    method = getattr(Tensor, name)

    def function(x: Tensor, /, *, axis: int | None = None,
                 dtype: DType | None = None,
                 include_initial: bool = False) -> Tensor:
        if axis is None and x.ndim != 1:
            raise ValueError(f"{name}: expected an axis of shape {x.shape}")
        at = axis_of(x, axis or 0)
        y = method(x.cast(dtype) if dtype else x, at)
        y = y.cast(dtype) if dtype else y
        margins = [(int(i == at and include_initial), 0)
                   for i in range(y.ndim)]
        return y.pad(margins, first) if include_initial else y
    return function


NAMES |= {"cumulative_sum": cumulative("cumsum", 0),
          "cumulative_prod": cumulative("cumprod", 1)}


@standard
def diff(x: Tensor, /, *, axis: int = -1, n: int = 1,
         prepend: Tensor | None = None,
         append: Tensor | None = None) -> Tensor:
    parts = [t for t in (prepend, x, append) if t is not None]
    return concat(parts, axis=axis).diff(n, axis)


class Info:
    """What there is: devices, and dtypes."""

    def capabilities(self) -> dict[str, Any]:
        return {"boolean indexing": True, "data-dependent shapes": True,
                "max dimensions": None}

    def default_device(self) -> Device:
        return CPU

    def devices(self) -> list[Device]:
        return [*DEVICES.values()]

    def default_dtypes(self, *, device: Any = None) -> dict[str, DType]:
        return {"real floating": float32, "integral": int64,
                "indexing": int64}

    def dtypes(self, *, device: Any = None,
               kind: Any = None) -> dict[str, DType]:
        return {name: NAMES[name] for name in STANDARD["dtypes"].split()
                if name in NAMES and (
                    kind is None or isdtype(NAMES[name], kind))}


NAMES["__array_namespace_info__"] = Info
