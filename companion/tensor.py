# Tangled from tensors, indexing, blas, activations, layers, autograd, data: edit there, `make tangle`. sha256:c21bea5ed742  # noqa: E501
"""The tensor: a handle on a buffer, and every operation on it."""

from __future__ import annotations

import functools
import math
import operator
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np

from companion.autograd import (
    RECORDING,
    Record,
    check_rule,
    check_unmodified,
    no_grad,
    recording,
    remember,
    sweep,
    version,
)
from companion.buffer import CPU_MEMORY, Buffer, adopt, text
from companion.device import CPU, READERS, Device, moved, named
from companion.dtype import (
    DType,
    as_dtype,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int64,
    promote,
    scalar_dtype,
)
from companion.ops import (
    ADD,
    AND,
    CAST,
    CONST,
    DIV,
    EQUAL,
    ERF,
    EXP,
    EXPAND,
    FLIP,
    GATHER,
    IDIV,
    IOTA,
    LESS,
    LOG,
    MATMUL,
    MAX,
    MAXIMUM,
    MOD,
    MUL,
    PAD,
    PERMUTE,
    POW,
    RANDOM,
    RESHAPE,
    SHRINK,
    SIN,
    SQRT,
    SUB,
    SUM,
    WHERE,
    WRITE,
    Op,
    check_kind,
    known,
    reduced,
)
from companion.view import Shape

Scalar = bool | int | float


def in_place(operation: Callable[[Any, Any], Any]) -> Callable[..., Tensor]:
    """`x op= y`: the result of `operation`, written where x lies."""
    def method(self: Tensor, other: Any) -> Tensor:
        result = operation(self, other)
        if (result.shape != self.shape
                or RANK[result.dtype.kind] > RANK[self.dtype.kind]):
            raise ValueError(
                f"in place: the result is {result.dtype} {result.shape} and "
                f"does not fit into {self.dtype} {self.shape}; write "
                f"x = x + y to make a new tensor")
        return self.copy_(result)
    return method


def torch_names(method: Callable[..., T]) -> Callable[..., T]:
    """Also accept PyTorch's dim= for axis= and NumPy's keepdims=."""
    @functools.wraps(method)
    def named(*args: Any, **options: Any) -> T:
        if "dim" in options:
            options["axis"] = options.pop("dim")
        if "keepdims" in options:
            options["keepdim"] = options.pop("keepdims")
        return method(*args, **options)
    return named


RANK = {"b": 0, "u": 1, "i": 1, "f": 2}  # bools, integers, floats

T = TypeVar("T")


class Tensor:
    """An n-dimensional array of one dtype on one device.

    `data` is a number, nested lists of numbers, or anything NumPy reads.
    Python floats become float32 and integers int64, as in PyTorch.
    The values are copied; `from_numpy` shares them.
    """

    __array_priority__ = 1000  # np_array + tensor asks the tensor

    def __init__(self, data: Any, dtype: DType | None = None,
                 device: Device | str = CPU):
        self.device = named(device)
        self.buffer = self.device.adopt(read(data, dtype))

    @staticmethod
    def apply(op: Op, *src: Tensor, arg: Any = None,
              device: Device | str | None = None) -> Tensor:
        """Every operation on tensors is this one.

        It runs where the operands are, or on `device`: they are brought.
        """
        device, buffers = operand_buffers(op, src, device)
        watched = RECORDING.get() and any(map(needs_gradient, src))
        # Before it runs: a write that has no rule must not have happened.
        if watched:
            check_rule(op, src)
        y = wrap(device.run(op, *buffers, arg=arg), device)
        if watched:
            remember(y, op, src, arg)
        return y

    @property
    def shape(self) -> Shape:
        return self.buffer.view.shape

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    @property
    def ndim(self) -> int:
        return len(self.buffer.view.shape)

    @property
    def size(self) -> int:
        """The number of elements (PyTorch: numel)."""
        return math.prod(self.buffer.view.shape)

    def numel(self) -> int:
        return self.size

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array; on the CPU, the same memory."""
        return self.device.host(self.buffer).array

    def __array__(self, dtype: Any = None,
                  copy: bool | None = None) -> np.ndarray:
        check_leaving(self)
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        check_leaving(self)
        return self.buffer.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.buffer.__dlpack_device__()

    @staticmethod
    def from_dlpack(source: Any) -> Tensor:
        """A tensor on another library's memory; nothing is copied."""
        kind, _ = source.__dlpack_device__()
        device, read = READERS.get(kind, READERS[CPU_MEMORY])
        return wrap(read(source), device)

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def item(self) -> Scalar:
        if self.size != 1:
            raise ValueError(
                f"item: shape {self.shape} is not one number; index it "
                f"first, or use .tolist()")
        return self.numpy().item()

    def __repr__(self) -> str:
        usual = (float32, int64, bool_)
        tail = "" if self.dtype in usual else f", dtype={self.dtype}"
        body = text(self.device.host(self.buffer), indent=len("Tensor("))
        return f"Tensor({body}{tail})"

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.is_float:
            raise TypeError(f"index: expected integers, got {self.dtype}")
        return int(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len: a 0-d tensor has no length; use .item()")
        return self.shape[0]

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in `shape`; one -1 is worked out.

        Shares memory where strides allow, copies where they do not.
        """
        wanted = complete_shape(self, unpack_ints(shape))
        if wanted == self.shape:
            return self
        return Tensor.apply(RESHAPE, self, arg=wanted)

    def view(self, *shape: Any) -> Tensor:
        """reshape that never copies: an error where it would have to."""
        wanted = complete_shape(self, unpack_ints(shape))
        if moved(RESHAPE, self.buffer.view, wanted) is None:
            raise ValueError(
                f"view: shape {self.shape} with strides "
                f"{self.buffer.view.strides} cannot be seen as {wanted} "
                f"without a copy; use .reshape")
        return self.reshape(wanted)

    def permute(self, *order: Any) -> Tensor:
        axes = tuple([axis_of(self, a) for a in unpack_ints(order)])
        if axes == tuple(range(self.ndim)):
            return self
        return Tensor.apply(PERMUTE, self, arg=axes)

    @torch_names
    def flip(self, axis: Axes = None) -> Tensor:
        return Tensor.apply(FLIP, self, arg=axes_of(self, axis))

    def transpose(self, dim0: int = -2, dim1: int = -1) -> Tensor:
        """Swap two axes (the last two unless told)."""
        order = list(range(self.ndim))
        a, b = axis_of(self, dim0), axis_of(self, dim1)
        order[a], order[b] = b, a
        return Tensor.apply(PERMUTE, self, arg=tuple(order))

    @property
    def T(self) -> Tensor:
        backwards = tuple(range(self.ndim)[::-1])
        return Tensor.apply(PERMUTE, self, arg=backwards)

    @property
    def mT(self) -> Tensor:
        if self.ndim < 2:
            raise ValueError(f"mT: expected two axes or more, got shape "
                             f"{self.shape}; unsqueeze it first")
        *stack, i, j = range(self.ndim)
        return Tensor.apply(PERMUTE, self, arg=(*stack, j, i))

    @torch_names
    def squeeze(self, axis: Axes = None) -> Tensor:
        """Drop axes of length 1: all of them, or those named."""
        axes = axes_of(self, axis)
        return self.reshape([n for i, n in enumerate(self.shape)
                             if n != 1 or i not in axes])

    @torch_names
    def unsqueeze(self, axis: int) -> Tensor:
        at = axis_of(self, axis, self.ndim + 1)
        return self.reshape(self.shape[:at] + (1,) + self.shape[at:])

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Merge the axes from `start_dim` to `end_dim`, both included."""
        if not self.shape:
            return self.reshape(1)
        a, b = axis_of(self, start_dim), axis_of(self, end_dim) + 1
        if a >= b:
            raise ValueError(f"flatten: axis {start_dim} comes after "
                             f"{end_dim} in {self.shape}; swap them")
        merged = math.prod(self.shape[a:b])
        return self.reshape(self.shape[:a] + (merged,) + self.shape[b:])

    def broadcast(self, shape: Shape) -> Tensor:
        """The elements repeated to fill `shape`: an EXPAND, or nothing."""
        if shape == self.shape:
            return self
        return Tensor.apply(EXPAND, self, arg=shape)

    def expand(self, *shape: Any) -> Tensor:
        """PyTorch's name for it; -1 keeps an axis."""
        wanted = unpack_ints(shape)
        have = (1,) * (len(wanted) - self.ndim) + self.shape
        return self.broadcast(tuple([
            n if m == -1 else m for m, n in zip(wanted, have)]))

    def cast(self, dtype: DType) -> Tensor:
        if dtype is self.dtype:
            return self
        return Tensor.apply(CAST, self, arg=dtype)

    def to(self, target: DType | Device | str) -> Tensor:
        """Another dtype; or a copy on another device (or its name)."""
        if isinstance(target, DType):
            return self.cast(target)
        target = named(target)
        if target is self.device:
            return self
        return Tensor.apply(RESHAPE, self, arg=self.shape, device=target)

    def clone(self) -> Tensor:
        """A dense copy in memory of its own."""
        return Tensor.apply(CAST, self, arg=self.dtype)

    def contiguous(self) -> Tensor:
        """Itself where its memory is dense, else a dense copy."""
        return self if self.buffer.view.is_dense else self.clone()

    def __add__(self, other: Any) -> Tensor:
        return binary(ADD, self, other)

    def __mul__(self, other: Any) -> Tensor:
        return binary(MUL, self, other)

    def __sub__(self, other: Any) -> Tensor:
        return binary(SUB, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return binary(SUB, other, self)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Tensor:
        # -0 - 0 is -0, and -0 - -0 is 0; taken from +0, the first would be 0.
        zero = -0.0 if self.dtype.is_float else 0
        start = as_tensor(zero, self.dtype, self.device, self.shape)
        return Tensor.apply(SUB, start, self)

    def __pos__(self) -> Tensor:
        """The tensor itself; of a bool there is no positive."""
        check_kind("+", self.dtype, "iuf")
        return self

    def __truediv__(self, other: Any) -> Tensor:
        return quotient(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return quotient(other, self)

    def reciprocal(self) -> Tensor:
        return quotient(1, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return binary(IDIV, self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return binary(IDIV, other, self)

    def __mod__(self, other: Any) -> Tensor:
        return binary(MOD, self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return binary(MOD, other, self)

    def exp(self) -> Tensor:
        return Tensor.apply(EXP, as_float(self))

    def log(self) -> Tensor:
        return Tensor.apply(LOG, as_float(self))

    def sin(self) -> Tensor:
        return Tensor.apply(SIN, as_float(self))

    def cos(self) -> Tensor:
        # Not sin(x + pi/2): at a million, float32 numbers are 1/16 apart, and
        # the sum rounds. Halving is exact.
        half = (as_float(self) * 0.5).sin()
        return 1 - 2 * half.square()

    def sqrt(self) -> Tensor:
        return Tensor.apply(SQRT, as_float(self))

    def rsqrt(self) -> Tensor:
        return self.sqrt().reciprocal()

    def square(self) -> Tensor:
        return self * self

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return binary(EQUAL, self, other)

    # A class that defines __eq__ loses its hash: it is given back.
    __hash__ = object.__hash__

    def __lt__(self, other: Any) -> Tensor:
        return binary(LESS, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return binary(LESS, other, self)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        equal = binary(EQUAL, self, other)
        return equal if equal is NotImplemented else ~equal

    def __le__(self, other: Any) -> Tensor:
        # Not ~(self > other), which holds for NaN.
        return bitwise_or(self < other, self == other)

    def __ge__(self, other: Any) -> Tensor:
        return bitwise_or(self > other, self == other)

    def __invert__(self) -> Tensor:
        """not for bools, the bitwise complement for integers."""
        check_kind("~", self.dtype, "biu")
        if self.dtype is bool_:
            return binary(EQUAL, self, False)
        return -(self + 1)

    def __and__(self, other: Any) -> Tensor:
        return bitwise_op(bitwise_and, self, other)

    def __or__(self, other: Any) -> Tensor:
        return bitwise_op(bitwise_or, self, other)

    def __xor__(self, other: Any) -> Tensor:
        return bitwise_op(bitwise_xor, self, other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def where(self, condition: Any, other: Any) -> Tensor:
        return where(condition, self, other)

    def masked_fill(self, mask: Any, value: Scalar) -> Tensor:
        return where(mask, cast_scalar(self, value), self)

    def maximum(self, other: Any) -> Tensor:
        return maximum_of(self, required_operand(other, self))

    def minimum(self, other: Any) -> Tensor:
        return minimum_of(self, required_operand(other, self))

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        """Values below `min` become min, values above `max` max."""
        if min is None and max is None:
            raise ValueError("clamp: expected min, max or both, got none")
        low = self if min is None else maximum_of(
            self, required_operand(min, self), tie=0)
        return low if max is None else minimum_of(
            low, required_operand(max, self), tie=0)

    def abs(self) -> Tensor:
        if self.dtype.kind in "bu":
            return self
        return self.maximum(-self) + 0  # + 0: the zero of −0 is +0

    __abs__ = abs

    def sign(self) -> Tensor:
        if self.dtype.kind in "bu":
            return (self != 0).cast(self.dtype)
        zero = where(self == self, 0, self)  # but NaN is NaN
        return where(self > 0, 1, where(self < 0, -1, zero))

    def floor(self) -> Tensor:
        if not self.dtype.is_float:
            return self
        whole = self // 1
        # inf // 1 is NaN, as Python has it; infinities are whole already.
        return where(whole == whole, whole, self)

    def ceil(self) -> Tensor:
        return self if not self.dtype.is_float else -(-self).floor()

    def isnan(self) -> Tensor:
        return self != self

    def __pow__(self, exponent: Any) -> Tensor:
        """Products for exponents of 1 to 8, else POW; integers stay so."""
        exponent = as_operand(exponent, self)
        if isinstance(exponent, (int, float)):
            x = self.cast(common_dtype(self, exponent))
            if exponent in PRODUCTS:
                return integer_power(x, int(exponent))
            if exponent < 0 and not x.dtype.is_float:
                raise ValueError(f"**: {x.dtype} does not hold powers of "
                                 f"{exponent}; cast to a float dtype first")
        return binary(POW, self, exponent)

    def __rpow__(self, base: Any) -> Tensor:
        return binary(POW, base, self)

    def __lshift__(self, other: Any) -> Tensor:
        return bitwise_op(shifted_left, self, other, "iu")

    def __rlshift__(self, other: Any) -> Tensor:
        return bitwise_op(shifted_left, other, self, "iu")

    def __rshift__(self, other: Any) -> Tensor:
        return bitwise_op(shifted_right, self, other, "iu")

    def __rrshift__(self, other: Any) -> Tensor:
        return bitwise_op(shifted_right, other, self, "iu")

    def tril(self, diagonal: int = 0) -> Tensor:
        """The part on and below a diagonal of the last two axes."""
        # False is 0 beside numbers, and 0 would make an int64 of bools.
        return where(diagonal_offsets(self) <= diagonal, self, False)

    def triu(self, diagonal: int = 0) -> Tensor:
        return where(diagonal_offsets(self) >= diagonal, self, False)

    @torch_names
    def sum(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        """Integers and bools are summed as int64."""
        x = self if self.dtype.is_float else self.cast(int64)
        return reduce(SUM, x, axis, keepdim)

    @torch_names
    def max(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        """The values only (PyTorch: amax); argmax has the places."""
        return reduce(MAX, self, axis, keepdim)

    @torch_names
    def min(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        return order_reversed(order_reversed(self).max(axis, keepdim))

    @torch_names
    def any(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        return (self != 0).sum(axis, keepdim) > 0

    @torch_names
    def all(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        return (self == 0).sum(axis, keepdim) == 0

    @torch_names
    def mean(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        total = widened(self).sum(axis, keepdim)
        return narrowed(total / reduced_size(self, axis), self)

    @torch_names
    def var(self, axis: Axes = None, correction: int = 1,
            keepdim: bool = False) -> Tensor:
        """Mean squared deviation over n - correction (0 as in NumPy)."""
        return narrowed(variance(self, axis, correction, keepdim), self)

    @torch_names
    def std(self, axis: Axes = None, correction: int = 1,
            keepdim: bool = False) -> Tensor:
        square = variance(self, axis, correction, keepdim)
        root = where(square == 0, 1, square).sqrt()  # its slope is finite
        return narrowed(where(square == 0, 0, root), self)

    @torch_names
    def argmax(self, axis: int | None = None,
               keepdim: bool = False) -> Tensor:
        """The first place of the largest value, or of the first NaN."""
        if axis is None or not axes_of(self, as_int(axis)):
            flat = self.flatten().argmax(0)
            return flat.reshape((1,) * self.ndim) if keepdim else flat
        at = axis_of(self, axis)
        n = self.shape[at]
        # A NaN counts as the largest, but is not equal to the maximum, NaN.
        largest = (self == self.max(at, keepdim=True)) | (self != self)
        place = arange(n, device=self.device)
        place = place.reshape([n] + [1] * (self.ndim - at - 1))
        return where(largest, place, n).min(at, keepdim)

    @torch_names
    def argmin(self, axis: int | None = None,
               keepdim: bool = False) -> Tensor:
        return order_reversed(self).argmax(axis, keepdim)

    def __getitem__(self, index: Any) -> Tensor:
        """x[2], x[1:5:2, ::-1], x[..., None], x[rows], x[mask]."""
        if isinstance(index, (list, np.ndarray, bool)):
            index = as_index_entry(index, self.device)
        if self.shape and isinstance(index, Tensor) \
                and index.dtype.kind in "iu":
            return Tensor.apply(GATHER, self, index)
        entries = complete_index(self, index)
        if any(isinstance(e, Tensor) for e in entries):
            return advanced_index(*masks_to_indices(self, entries))
        return basic_index(self, entries)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def assign(self, value: Any) -> Tensor:
        """Overwrite the elements in place: the WRITE primitive."""
        check_no_repeats(self)
        Tensor.apply(WRITE, self, as_source(value, self))
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write through a basic index, or where a mask holds."""
        if isinstance(index, (list, np.ndarray, bool)):
            index = as_index_entry(index, self.device)
        if isinstance(index, Tensor) and index.dtype is bool_:
            self.assign(where_mask(self, index, value))
            return
        entries = complete_index(self, index)
        if any(isinstance(e, Tensor) for e in entries):
            raise TypeError(
                "x[tensor] = value: an index may repeat, so the order of "
                "writing would matter; use where, or x[mask] = value")
        part = basic_index(self, entries)
        # x is asked here, the part in assign: one element of an expanded x is
        # one, and a write to it changes them all.
        if not coincide(part, value):  # as in x[i] += y
            check_no_repeats(self)
        part.assign(value)

    def copy_(self, value: Any) -> Tensor:
        """The elements of `value` in this memory, broadcast and cast.

        What is recorded of `value` is the past of this tensor, from now on.
        """
        source = as_source(value, self)
        given = source.requires_grad
        if not RECORDING.get() or not (self.requires_grad or given):
            return self.assign(source)
        check_overwrite(self)
        # Unrecorded: WRITE has no rule, the CAST below stands for it.
        with no_grad():
            self.assign(source)
        self.requires_grad = given
        self.record = Record(CAST, (source,), self.dtype,
                             born=version(self)) if given else None
        return self

    __iadd__ = in_place(operator.add)
    __isub__ = in_place(operator.sub)
    __imul__ = in_place(operator.mul)
    __itruediv__ = in_place(operator.truediv)
    __ifloordiv__ = in_place(operator.floordiv)
    __imod__ = in_place(operator.mod)
    __ipow__ = in_place(operator.pow)
    __imatmul__ = in_place(operator.matmul)
    __iand__ = in_place(operator.and_)
    __ior__ = in_place(operator.or_)
    __ixor__ = in_place(operator.xor)
    __ilshift__ = in_place(operator.lshift)
    __irshift__ = in_place(operator.rshift)

    @torch_names
    def narrow(self, axis: int, start: int, length: int) -> Tensor:
        """`length` elements of one axis from `start` on."""
        at = axis_of(self, axis)
        ranges = [(0, n, 1) for n in self.shape]
        ranges[at] = (start, start + length, 1)
        return Tensor.apply(SHRINK, self, arg=tuple(ranges))

    def pad(self, margins: Sequence[tuple[int, int]],
            value: Scalar = 0) -> Tensor:
        """(before, after) for every axis, filled with `value`."""
        if len(margins) != self.ndim or min(
                (m for pair in margins for m in pair), default=0) < 0:
            raise ValueError(
                f"pad: expected {self.ndim} pairs (before, after) of "
                f"lengths >= 0 for shape {self.shape}, got {margins}")
        steps = tuple([(before, after, 1) for before, after in margins])
        padded = Tensor.apply(PAD, self, arg=steps)
        if value == 0:
            return padded
        # PAD knows only zeros: a mask, padded alike, tells where they are.
        inside = Tensor.apply(PAD, ones_like(self) != 0, arg=steps)
        return where(inside, padded, cast_scalar(self, value))

    @torch_names
    def split(self, size: int | Sequence[int],
              axis: int = 0) -> list[Tensor]:
        """Pieces of `size` along `axis` (the last may be shorter)."""
        n = self.shape[axis_of(self, axis)]
        sizes = list(unpack_ints([size]))
        if not isinstance(size, Sequence) and sizes[0] > 0:
            step = sizes[0]
            sizes = [min(step, n - i) for i in range(0, n, step)] or [0]
        if sum(sizes) != n or min(sizes) < 0:
            raise ValueError(
                f"split: expected one size >= 1, or sizes that add up to "
                f"the {n} of axis {axis}; got {size}")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self.narrow(axis, start, length)
                for start, length in zip(starts, sizes)]

    @torch_names
    def chunk(self, chunks: int, axis: int = 0) -> list[Tensor]:
        """At most `chunks` pieces of equal length (the last shorter)."""
        if as_int(chunks) < 1:
            raise ValueError(f"chunk: expected chunks >= 1, got {chunks}")
        n = self.shape[axis_of(self, axis)]
        return self.split(max(-(-n // chunks), 1), axis)

    def repeat(self, *times: Any) -> Tensor:
        """The whole, `times` over along each axis (NumPy: tile)."""
        counts = unpack_ints(times)
        if len(counts) < self.ndim:
            raise ValueError(f"repeat: expected a number for each axis of "
                             f"shape {self.shape}, got {counts}")
        shape = (1,) * (len(counts) - self.ndim) + self.shape
        apart = self.reshape([m for n in shape for m in (1, n)])
        wide = apart.broadcast(tuple([
            m for pair in zip(counts, shape) for m in pair]))
        return wide.reshape([c * n for c, n in zip(counts, shape)])

    @torch_names
    def roll(self, shift: int, axis: int) -> Tensor:
        """Moved by `shift`; what leaves at one end enters at the other."""
        n = self.shape[axis_of(self, axis)]
        cut = -shift % n if n else 0
        front, back = self.split([cut, n - cut], axis)
        return cat([back, front], axis)

    @torch_names
    def cumsum(self, axis: int) -> Tensor:
        """Running sums by doubling: log2(n) shifted additions."""
        x = self if self.dtype.is_float else self.cast(int64)
        at, n, step = axis_of(x, axis, x.ndim or 1), reduced_size(x, axis), 1
        while step < n:
            x, step = x + shifted(x, at, step), step * 2
        return x

    @torch_names
    def prod(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        """Products of pairs, then of pairs of pairs, log2(n) times."""
        x = self if self.dtype.is_float else self.cast(int64)
        x = merge_axes_last(x, axis)
        n, axes = x.shape[-1], axes_of(self, axis)
        half = 1 << max(n - 1, 0).bit_length()
        x = x.pad([(0, 0)] * (x.ndim - 1) + [(0, half - n)], value=1)
        while half > 1:
            half //= 2
            x = x.narrow(-1, 0, half) * x.narrow(-1, half, half)
        kept = reduced(self, axes) if keepdim else x.shape[:-1]
        return x.reshape(kept)

    def matmul(self, other: Any) -> Tensor:
        """self @ other, by NumPy's and PyTorch's rules.

        Matrices, vectors, and stacks of matrices that broadcast.
        """
        a, b = self, other
        if not (isinstance(b, Tensor) and a.dtype is b.dtype
                and a.device is b.device):
            a, b = same_dtype(a, required_operand(b, a))
        if not a.ndim or not b.ndim:
            raise ValueError(f"matmul: shapes {a.shape} and {b.shape}; "
                             f"expected vectors or matrices: use *")
        if a.ndim == b.ndim == 2:
            return Tensor.apply(MATMUL, a, b)
        if a.ndim > 2 and b.ndim == 2 and a.size:
            tall = a.reshape(-1, a.shape[-1])
            return (tall @ b).reshape(*a.shape[:-1], b.shape[-1])
        left = a if a.ndim > 1 else a.unsqueeze(0)
        right = b if b.ndim > 1 else b.unsqueeze(1)
        stack = broadcast_shape(left.shape[:-2], right.shape[:-2])
        c = Tensor.apply(MATMUL, left.broadcast(stack + left.shape[-2:]),
                         right.broadcast(stack + right.shape[-2:]))
        last = b.shape[-1:] if b.ndim > 1 else ()
        return c.reshape(stack + a.shape[-2:-1] + last)

    def __matmul__(self, other: Any) -> Tensor:
        return self.matmul(other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return required_operand(other, self).matmul(self)

    def dot(self, other: Tensor) -> Tensor:
        """The inner product of two vectors."""
        other = required_operand(other, self)
        if self.ndim != 1 or other.ndim != 1:
            raise ValueError(f"dot: shapes {self.shape} and {other.shape}; "
                             f"expected two vectors: use @")
        return self @ other

    def outer(self, other: Tensor) -> Tensor:
        """All products of an element of self and one of other."""
        other = required_operand(other, self)
        if self.ndim != 1 or other.ndim != 1:
            raise ValueError(f"outer: shapes {self.shape} and {other.shape}; "
                             f"expected two vectors: flatten them")
        return self.unsqueeze(1) @ other.unsqueeze(0)

    def relu(self) -> Tensor:
        """max(x, 0) (Fukushima, 1969; Nair and Hinton, 2010)."""
        # A tie belongs to the bound: the slope at 0 is 0.
        return maximum_of(self, 0, tie=1)

    def sigmoid(self) -> Tensor:
        """1 / (1 + exp(-x)), through exp(-|x|), which cannot overflow."""
        x = as_float(self)
        negative = x < 0
        # Not -x.abs(): its corner would make the slope at 0 zero, not 1/4.
        e = where(negative, x, -x).exp()
        return where(negative, e, 1) / (1 + e)

    def tanh(self) -> Tensor:
        """Through exp(-2|x|); near 0, Cephes' rational (Moshier, 1989)."""
        x = as_float(self)
        e = (x.abs() * -2).exp()
        far = (1 - e) / (1 + e) * x.sign()
        # Clamped, or the branch not chosen would overflow far from 0, and
        # its gradient be 0 * infinity.
        near = x.clamp(-0.625, 0.625)
        square = near * near
        bend = (polynomial(square, TANH_NUMERATOR)
                / polynomial(square, TANH_DENOMINATOR))
        return where(x.abs() < 0.625, near * (1 + square * bend), far)

    @torch_names
    def softmax(self, axis: int) -> Tensor:
        """exp(x) / sum(exp(x)) along `axis`, safe at any size."""
        x = widened(self)  # a sum of many halves would round
        # A row of nothing but -inf has no weights: the NaN is left to show.
        e = (x - constant_max(x, axis)).exp()
        return narrowed(e / e.sum(axis, keepdim=True), self)

    @torch_names
    def logsumexp(self, axis: Axes, keepdim: bool = False) -> Tensor:
        """log(sum(exp(x))); of a row that is all -inf, -inf."""
        x = widened(self)
        peak = constant_max(x, axis)
        # Of a row of -inf, take off 0: -inf - -inf would be NaN.
        peak = where(peak.abs() < math.inf, peak, 0)
        total = (x - peak).exp().sum(axis, keepdim=True).log() + peak
        total = total if keepdim else total.squeeze(axes_of(x, axis))
        return narrowed(total, self)

    @torch_names
    def log_softmax(self, axis: int) -> Tensor:
        """log(softmax(x)), without rounding softmax first."""
        x = widened(self)
        x = x - constant_max(x, axis)
        return narrowed(x - x.exp().sum(axis, keepdim=True).log(), self)

    def erf(self) -> Tensor:
        """2 / sqrt(pi) times the integral of exp(-t²) from 0 to x."""
        return Tensor.apply(ERF, as_float(self))

    requires_grad = False

    grad: Tensor | None = None
    record: Record | None = None

    def requires_grad_(self, on: bool = True) -> Tensor:
        """Ask for a gradient of this tensor (a leaf of a float dtype)."""
        if on and not self.dtype.is_float:
            raise TypeError(f"requires_grad_: {self.dtype} has no "
                            f"gradient; expected a float dtype")
        if not self.is_leaf and not on:
            raise RuntimeError("requires_grad_: this was computed from what "
                               "needs a gradient; use .detach()")
        self.requires_grad = on
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether it was given, not computed from what needs a gradient."""
        return self.record is None

    def backward(self, gradient: Tensor | None = None,
                 retain_graph: bool = False,
                 create_graph: bool = False) -> None:
        """Add to the .grad of every leaf this was computed from."""
        seed, taken = initial_gradient(self, gradient), set[int]()
        with recording(create_graph):
            for x, g in sweep(self, seed, retain_graph or create_graph):
                if x.is_leaf:
                    g = g if x.grad is None else x.grad + g
                    x.grad = writable_gradient(g, taken)

    def detach(self) -> Tensor:
        """The same memory, with no past and no wish for a gradient."""
        return detached(self)


def wrap(buffer: Buffer, device: Device = CPU) -> Tensor:
    """A tensor for a buffer that already lies on `device`."""
    tensor = Tensor.__new__(Tensor)
    tensor.buffer, tensor.device = buffer, device
    return tensor


def leaf(op: Op, arg: Any, device: Device | str = CPU) -> Tensor:
    """A tensor made from an argument alone: CONST and IOTA."""
    place = named(device)
    return wrap(place.run(op, arg=arg), place)


def operand_buffers(op: Op, operands: Sequence[Tensor],
                    device: Device | str | None
                    ) -> tuple[Device, list[Buffer]]:
    """Where `op` is carried out, and its operands' buffers there."""
    place = named(device) if device else operands[0].device
    buffers = []
    for x in operands:
        if x.device is place:
            buffers.append(x.buffer)
        elif device:
            buffers.append(copy_to_device(x, place))
        else:
            raise ValueError(f"{op}: operands on {place} and {x.device} "
                             f"cannot meet; move one with .to(device)")
    return place, buffers


def copy_to_device(x: Tensor, device: Device) -> Buffer:
    """The elements of `x` in memory of `device`, through the host's."""
    host = x.device.host(x.buffer)
    # The CPU's host buffer is the operand itself; a new tensor must not
    # share its memory.
    return device.adopt((host.copy() if host is x.buffer else host).array)


def read(data: Any, dtype: DType | None) -> np.ndarray:
    """`data` as a fresh array of `dtype`, or of the default one."""
    try:
        array = np.array(data)
    except ValueError:
        # Rows of unequal length. None becomes an object, refused below.
        array = np.array(None)
    if array.dtype.kind in "OUS":
        raise ValueError(
            f"Tensor: expected numbers of at most 64 bits in rows of "
            f"equal length; got {str(data)[:60]}")
    foreign = hasattr(data, "dtype")
    if dtype is None:
        usual = array.dtype == np.float64 and not foreign
        dtype = float32 if usual else as_dtype(array)
    if array.dtype == known(dtype).numpy:
        return array
    with np.errstate(all="ignore"):
        result = array.astype(dtype.numpy)
    # An array's wrap-around is meant; 256 in a list for uint8 hardly is.
    return result if foreign else check_integers(array, result, dtype)


def check_integers(array: np.ndarray, result: np.ndarray,
                   dtype: DType) -> np.ndarray:
    """`result`, Python's numbers in `dtype`; an error where one wraps."""
    if dtype.kind in "iu" and (result != np.trunc(array)).any():
        raise OverflowError(
            f"Tensor: {array.min()} to {array.max()} do not fit {dtype}; "
            f"choose a wider dtype")
    return result


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the array's own memory: writing to one shows in both."""
    return wrap(adopt(array))


Axes = int | Sequence[int] | None


def as_int(value: Any) -> int:
    """An int, or anything that stands for one; one line for the rest."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"expected whole numbers, got {value!r:.60}; give "
                        f"ints for shapes, axes and counts") from None


def axis_of(x: Tensor, axis: int, ndim: int | None = None) -> int:
    """`axis` counted from the front, checked."""
    ndim = x.ndim if ndim is None else ndim
    if not -ndim <= as_int(axis) < ndim:
        raise IndexError(
            f"axis {axis} does not exist: shape {x.shape} leaves room "
            f"for {ndim} axes, counted from 0 or back from -1")
    return as_int(axis) % ndim


def axes_of(x: Tensor, axis: Axes) -> tuple[int, ...]:
    """Axes in increasing order; None means all, and so does 0 in 0-d."""
    if axis is None:
        return tuple(range(x.ndim))
    named = axis if isinstance(axis, Sequence) else [axis]
    axes = sorted([axis_of(x, a, x.ndim or 1) for a in named])
    if len(set(axes)) != len(axes):
        raise ValueError(f"axes {tuple(named)} name one axis twice")
    return tuple(axes) if x.ndim else ()


def unpack_ints(items: Sequence[Any]) -> tuple[int, ...]:
    """f(2, 3) and f((2, 3)) mean the same."""
    if len(items) == 1 and isinstance(items[0], (Sequence, range)):
        items = items[0]
    return tuple([as_int(i) for i in items])


def complete_shape(x: Tensor, shape: Shape) -> Shape:
    """`shape` with its one -1 worked out."""
    if -1 not in shape:
        return shape
    # The one -1 turns the sign of the product: if nothing above 0 comes
    # out, another length is 0 or negative, and -1 has no one answer.
    known = -math.prod(shape)
    if shape.count(-1) > 1 or known <= 0 or x.size % known:
        raise ValueError(
            f"reshape: {x.size} elements of shape {x.shape} do not fill "
            f"{shape}; expected one -1 and divisors of {x.size}")
    return tuple([x.size // known if n == -1 else n for n in shape])


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


def align(*operands: Tensor | Scalar) -> list[Tensor]:
    """Operands with one dtype and one shape, ready for a primitive."""
    dtype, shape = common_dtype_and_shape(*map(dtype_and_shape, operands))
    device = first_device(*operands)
    return [as_tensor(x, dtype, device, shape) for x in operands]


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


def ready(x: Any, y: Any) -> bool:
    """Whether two operands are ready for a primitive as they are."""
    return (isinstance(x, Tensor) and isinstance(y, Tensor)
            and x.buffer.dtype is y.buffer.dtype
            and x.buffer.view.shape == y.buffer.view.shape
            and x.device is y.device)


def binary(op: Op, x: Any, y: Any) -> Tensor:
    """`op` on two operands of any shapes and dtypes that meet."""
    if ready(x, y):
        return Tensor.apply(op, x, y)
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


def quotient(x: Any, y: Any) -> Tensor:
    """x / y, in the float dtype where both meet."""
    if ready(x, y) and x.dtype.is_float:
        return Tensor.apply(DIV, x, y)
    x, y = as_operand(x, y), as_operand(y, x)
    if x is None or y is None:
        return NotImplemented
    dtype, shape = common_dtype_and_shape(*map(dtype_and_shape, (x, y)))
    dtype = dtype if dtype.is_float else float32
    # Beside a number halves become float32: x / 1e7 has an answer in
    # float16, though 1e7 does not fit.
    numbers = not (isinstance(x, Tensor) and isinstance(y, Tensor))
    wide = promote(dtype, float32) if numbers else dtype
    device = first_device(x, y)
    x, y = [as_tensor(t, wide, device, shape) for t in (x, y)]
    return Tensor.apply(DIV, x, y).cast(dtype)


def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    """a and b: on bools, or bit by bit."""
    return Tensor.apply(AND, a, b)


def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    """a or b, on bools, or bit by bit."""
    if a.dtype is bool_:
        return Tensor.apply(MAXIMUM, a, b)
    # The sum counts a bit of both twice; if it wraps, the difference
    # wraps back.
    return a + b - bitwise_and(a, b)


def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """a or b and not both."""
    return a != b if a.dtype is bool_ else a + b - bitwise_and(a, b) * 2


def bitwise_op(rule: Callable[..., Tensor], x: Any, y: Any,
               kinds: str = "biu") -> Tensor:
    """`rule` on two operands of any shapes, as bools or integers."""
    x, y = as_operand(x, y), as_operand(y, x)
    if x is None or y is None:
        return NotImplemented
    x, y = (x, y) if ready(x, y) else align(x, y)
    check_kind("& | ^ << >>", x.dtype, kinds)
    return rule(x, y)


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


def cast_scalar(x: Tensor, value: Scalar) -> Scalar:
    """`value` as a number among the elements of x: bools stay bools."""
    return bool(value) if x.dtype is bool_ else value


def maximum_of(a: Any, b: Any, tie: int | None = None) -> Tensor:
    """max(a, b); where they are equal, the slope is operand `tie`'s."""
    return Tensor.apply(MAXIMUM, *align(a, b), arg=tie)


def minimum_of(a: Any, b: Any, tie: int | None = None) -> Tensor:
    """min(a, b), by way of the reversed order."""
    a, b = [order_reversed(x) for x in align(a, b)]
    return order_reversed(Tensor.apply(MAXIMUM, a, b, arg=tie))


def order_reversed(x: Tensor) -> Tensor:
    """An order-reversing map that is its own inverse."""
    # ~ for integers: the negative of int8's -128 would be -128 again.
    return -x if x.dtype.is_float else ~x


PRODUCTS = range(1, 9)  # exponents that take at most four products


def integer_power(x: Tensor, n: int) -> Tensor:
    """x ** n in about log2(n) products, n >= 1."""
    if n == 1:
        return x
    half = integer_power(x, n // 2)
    return half * half * x if n % 2 else half * half


def shifted_left(x: Tensor, times: Tensor) -> Tensor:
    """x << times."""
    return x * 2 ** times


def shifted_right(x: Tensor, times: Tensor) -> Tensor:
    """x >> times: rounded down, 0 or -1 beyond the last bit."""
    # From here on 2 ** times does not fit the dtype and wraps around.
    bits = 8 * x.dtype.itemsize - (x.dtype.kind == "i")
    left = bitwise_and(times >= 0, times < bits)
    return where(left, x // 2 ** times, -(x < 0).cast(x.dtype))


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


def feed(numbers: Callable[[], dict[str, np.ndarray]],
         device: Device | str = CPU) -> dict[str, Tensor]:
    """Numbers of this moment as tensors: see `Device.feed`."""
    place = named(device)
    return {name: wrap(buffer, place)
            for name, buffer in place.feed(numbers).items()}


class Generator:
    """Counter-based random numbers: a seed, and a place in its stream.

    The number at a place depends on the seed and the place alone, so it
    is the same on every device and in any order of evaluation.
    """

    def __init__(self, seed: int = 0):
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        if not 0 <= seed < 2 ** 63:
            raise ValueError(f"seed: expected 0 to 2**63 - 1, got {seed}")
        self.go_to(seed, 0)

    def go_to(self, seed: int, place: int) -> None:
        """Continue with the number at `place` of the stream of `seed`."""
        with DRAWING:
            self.seed, self.place = seed, place

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The common one by its name: it is not multiplied by copies."""
        if self is GENERATOR:
            return "GENERATOR"
        return super().__reduce_ex__(protocol)

    def advance(self, numbers: int) -> list[int]:
        """The key of so many numbers, which are nobody else's now."""
        with DRAWING:
            key = [self.seed, self.place]
            # RANDOM makes two numbers of each place.
            self.place += (numbers + 1) // 2
        return key

    def uniform(self, shape: Shape,
                device: Device | str = CPU) -> Tensor:
        """float32 in [0, 1), multiples of 2**-24."""
        numbers = math.prod([max(n, 0) for n in shape])  # -2 is refused
        # Fed, so that a device that replays a program draws new numbers.
        fed = feed(lambda: {"key": np.array(self.advance(numbers))}, device)
        return Tensor.apply(RANDOM, fed["key"], arg=shape)


DRAWING = threading.Lock()
# Or a child, forked while another thread draws, would wait for ever.
os.register_at_fork(before=DRAWING.acquire,
                    after_in_parent=DRAWING.release,
                    after_in_child=DRAWING.release)
GENERATOR = Generator()
manual_seed = GENERATOR.manual_seed

GRAIN = {float16: 11, bfloat16: 8}  # bits of the significand


def rand(*shape: Any, dtype: DType = float32, device: Device | str = CPU,
         generator: Generator = GENERATOR) -> Tensor:
    """Uniform in [0, 1): as many random bits as `dtype` can hold."""
    if not dtype.is_float:
        raise TypeError(f"rand: expected a float dtype, got {dtype}; "
                        f"randint draws integers")
    size = unpack_ints(shape)
    high = generator.uniform(size, device)
    if dtype in GRAIN:
        steps = 2 ** GRAIN[dtype]
        # Bits cut off: rounding up would reach 1.
        return ((high * steps).floor() / steps).cast(dtype)
    if dtype is not float64:
        return high
    low = generator.uniform(size, device).cast(float64)
    return high.cast(float64) + low * 2.0 ** -24


def randn(*shape: Any, dtype: DType = float32, device: Device | str = CPU,
          generator: Generator = GENERATOR) -> Tensor:
    """Standard normal, by Box and Muller (1958)."""
    check_kind(RANDOM, dtype, "f")
    wide = float64 if dtype is float64 else float32
    u, v = [rand(*shape, dtype=wide, device=device, generator=generator)
            for _ in range(2)]
    # u may be 0, of which there is no logarithm; 1 - u may not.
    radius = ((1 - u).log() * -2).sqrt()
    return (radius * (v * (2 * math.pi)).sin()).cast(dtype)


def randint(low: int, high: int, shape: Any, dtype: DType = int64,
            device: Device | str = CPU,
            generator: Generator = GENERATOR) -> Tensor:
    """Integers from low up to, and without, high."""
    # The float64 drawn below has 48 random bits.
    if not 0 < high - low <= 2 ** 48:
        raise ValueError(f"randint: expected low < high at most 2**48 "
                         f"apart, got {low} and {high}")
    u = rand(*unpack_ints([shape]), dtype=float64, device=device,
             generator=generator)
    return ((u * (high - low)).floor().cast(int64) + low).cast(dtype)


def reduce(op: Op, x: Tensor, axis: Axes, keepdim: bool) -> Tensor:
    axes = axes_of(x, axis)
    result = Tensor.apply(op, x, arg=axes)
    if keepdim:
        return result
    kept = tuple([n for i, n in enumerate(x.shape) if i not in axes])
    return Tensor.apply(RESHAPE, result, arg=kept)


def reduced_size(x: Tensor, axis: Axes) -> int:
    """How many elements one result of a reduction stands for."""
    return math.prod(x.shape[i] for i in axes_of(x, axis))


def variance(x: Tensor, axis: Axes, correction: int,
             keepdim: bool) -> Tensor:
    """The variance, before halves are narrowed to halves again."""
    wide = widened(x)
    # Not E[x²] - E[x]²: far from 0 both agree in all digits of float32.
    distance = wide - wide.mean(axis, keepdim=True)
    total = distance.square().sum(axis, keepdim)
    freedom = reduced_size(x, axis) - correction
    return total / (freedom if freedom > 0 else math.nan)


Range = tuple[int, int, int]


def range_and_flip(entry: Any, n: int) -> tuple[Range, bool]:
    """An int or slice as (start, stop, step > 0), and whether to flip."""
    if not isinstance(entry, slice):
        i = operator.index(entry)
        if not -n <= i < n:
            raise IndexError(f"index {i} is out of range for an axis of "
                             f"length {n}")
        return (i % n, i % n + 1, 1), False
    walk = range(*entry.indices(n))
    # As in x[5:2]: SHRINK refuses a stop before the start.
    if not walk:
        return (0, 0, 1), False
    if walk.step > 0:
        return (walk.start, walk.stop, walk.step), False
    # The same places from the lowest up; a FLIP turns them round.
    return (walk[-1], walk.start + 1, -walk.step), True


def basic_index(x: Tensor, entries: list[Any]) -> Tensor:
    """Ints, slices and None: SHRINK, FLIP, RESHAPE; no copy."""
    ranges: list[Range] = []
    flips, shape = [], []
    for entry in entries:
        if entry is None:
            shape.append(1)
            continue
        kept, flip = range_and_flip(entry, x.shape[len(ranges)])
        if flip:
            flips.append(len(ranges))
        if isinstance(entry, slice):
            shape.append(len(range(*kept)))
        ranges.append(kept)
    x = Tensor.apply(SHRINK, x, arg=tuple(ranges))
    if flips:
        x = Tensor.apply(FLIP, x, arg=tuple(flips))
    if tuple(shape) != x.shape:
        x = Tensor.apply(RESHAPE, x, arg=tuple(shape))
    return x


def ravel_multi_index(index: list[Tensor], lengths: Shape) -> Tensor:
    """Several indices as one into the flattened axes."""
    if len(index) == 1:
        return index[0]
    total, inside = index[0] * 0, index[0] == index[0]
    for i, n in zip(index, lengths):
        i = where(i < 0, i + n, i)
        inside = inside & (i >= 0) & (i < n)
        total = total * n + i
    # Past the end of one axis lies the next row; this is past all of them,
    # where GATHER sees it.
    return where(inside, total, math.prod(lengths))


def advanced_index(x: Tensor, entries: list[Any]) -> Tensor:
    """Indexing by tensors: NumPy's rules on top of GATHER."""
    # NumPy's rule: beside a tensor a whole number is an index as well.
    entries = [e if e is None or isinstance(e, (slice, Tensor))
               else Tensor(e, int64, x.device) for e in entries]
    at = [i for i, e in enumerate(entries) if isinstance(e, Tensor)]
    x = basic_index(x, [slice(None) if isinstance(e, Tensor) else e
                  for e in entries])
    rest = [i for i in range(x.ndim) if i not in at]
    x = x.permute(at + rest)
    lengths, others = x.shape[:len(at)], x.shape[len(at):]
    index = ravel_multi_index([entries[i].cast(int64) for i in at], lengths)
    flat = x.reshape((math.prod(lengths), *others))
    result = Tensor.apply(GATHER, flat, index)
    # NumPy's rule: if the indices do not stand side by side, the new axes
    # come first.
    if at != list(range(at[0], at[-1] + 1)):
        return result
    front = list(range(index.ndim))
    tail = [index.ndim + i for i in range(len(rest))]
    return result.permute(tail[:at[0]] + front + tail[at[0]:])


def nonzero(mask: Tensor) -> list[Tensor]:
    """The places where `mask` holds, one index tensor an axis."""
    return [Tensor(p, int64, mask.device)
            for p in np.nonzero(mask.numpy())]


def axes_indexed(entry: Any) -> int:
    """How many axes one entry of an index speaks of."""
    if isinstance(entry, Tensor) and entry.dtype is bool_:
        return entry.ndim
    return int(entry is not None and entry is not Ellipsis)


def masks_to_indices(x: Tensor,
                     entries: list[Any]) -> tuple[Tensor, list[Any]]:
    """Masks replaced by the indices at which they hold.

    A mask without axes stands for a new axis of x, of length 1.
    """
    result: list[Any] = []
    shape: list[int] = []
    axis = 0
    for entry in entries:
        here = x.shape[axis:axis + axes_indexed(entry)]
        axis += axes_indexed(entry)
        if not isinstance(entry, Tensor) or entry.dtype is not bool_:
            result.append(entry)
            shape += here
            continue
        if entry.shape != here:
            raise IndexError(f"index: a mask of shape {entry.shape} "
                             f"stands before axes of shape {here}")
        result += nonzero(entry if here else entry.reshape(1))
        shape += here or (1,)
    return x.reshape(shape), result


def as_index_entry(entry: Any, device: Device) -> Any:
    """One entry of an index; lists, arrays and bools become tensors."""
    # Not isinstance: to Python a bool is an int, here it is a mask.
    if type(entry) in (int, slice):
        return entry
    if isinstance(entry, (list, tuple, np.ndarray, bool, np.bool_)):
        # NumPy reads [] as floats, which are no index.
        empty = isinstance(entry, (list, tuple)) and not entry
        entry = Tensor(entry, int64 if empty else None, device)
    if not is_index_entry(entry):
        raise TypeError(
            f"index: expected integers, slices, None, ..., tensors of "
            f"integers or masks, got {entry!r:.60}")
    return entry


def is_index_entry(entry: Any) -> bool:
    """Whether `entry` may stand in the brackets."""
    if isinstance(entry, Tensor):
        return entry.dtype.kind in "biu"
    return (entry is None or entry is Ellipsis or isinstance(entry, slice)
            or hasattr(entry, "__index__"))


def complete_index(x: Tensor, index: Any) -> list[Any]:
    """An entry for each axis that is spoken of; the ellipsis filled in."""
    entries = [as_index_entry(e, x.device) for e in
               (index if isinstance(index, tuple) else (index,))]
    spoken = sum(map(axes_indexed, entries))
    dots = [i for i, e in enumerate(entries) if e is Ellipsis]
    if spoken > x.ndim or len(dots) > 1:
        raise IndexError(
            f"index: {spoken} entries and {len(dots)} ellipses, but "
            f"shape {x.shape} allows at most {x.ndim} and one")
    at = dots[0] if dots else len(entries)
    fill = [slice(None)] * (x.ndim - spoken)
    return entries[:at] + fill + entries[at + 1:]


def check_no_repeats(x: Tensor) -> None:
    """Refuse to write where one element stands at several places."""
    if x.buffer.view.repeats:
        raise ValueError(
            f"assign: several elements of this {x.shape} view "
            f"share memory; .clone() it first")


def as_source(value: Any, x: Tensor) -> Tensor:
    """`value` as a tensor that can be written over `x`."""
    found = as_operand(value, x)
    if found is None:
        found = Tensor(value, x.dtype, x.device)
    return as_tensor(found, x.dtype, x.device, x.shape)


def where_mask(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """x with `value` wherever `mask` holds over its leading axes."""
    value, rest = required_operand(value, x), x.ndim - mask.ndim
    ndim = value.ndim if isinstance(value, Tensor) else 0
    if mask.shape != x.shape[:mask.ndim] or ndim > rest:
        raise IndexError(
            f"x[mask] = value: x has shape {x.shape}, the mask "
            f"{mask.shape}; expected a mask of x's leading axes, and one "
            f"value for all its places (use where for one each)")
    return where(mask.reshape(mask.shape + (1,) * rest), value, x)


def coincide(x: Tensor, value: Any) -> bool:
    """Whether `value` is x itself, seen through the same view."""
    return (isinstance(value, Tensor) and value.dtype is x.dtype
            and value.buffer.storage is x.buffer.storage
            and value.buffer.view == x.buffer.view)


def cat_two(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Two disjoint paddings, added."""
    front, back = [(0, 0)] * a.ndim, [(0, 0)] * a.ndim
    front[axis] = (0, b.shape[axis])
    back[axis] = (a.shape[axis], 0)
    return a.pad(front) + b.pad(back)


@torch_names
def cat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after another along `axis`, joined two by two."""
    parts = list(tensors)
    if not parts or not all(isinstance(p, Tensor) for p in parts):
        raise ValueError(f"cat: expected at least one tensor, and tensors "
                         f"only; got {str(parts):.60}")
    at = axis_of(parts[0], axis)
    if len({(p.ndim, p.shape[:at], p.shape[at + 1:]) for p in parts}) > 1:
        raise ValueError(
            f"cat: shapes {', '.join(str(p.shape) for p in parts)} must "
            f"agree except along axis {at}")
    parts = same_dtype(*parts)
    while len(parts) > 1:
        # One after another would copy the first of n parts n times.
        pairs = [cat_two(a, b, at) for a, b in zip(parts[::2], parts[1::2])]
        parts = pairs + parts[len(pairs) * 2:]
    return parts[0]


@torch_names
def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis."""
    return cat([t.unsqueeze(axis) for t in tensors], axis)


def shifted(x: Tensor, axis: int, steps: int) -> Tensor:
    """Moved towards the end of `axis`; zeros come in at the front."""
    margins = [(0, 0)] * x.ndim
    margins[axis] = (steps, 0)
    return x.pad(margins).narrow(axis, 0, x.shape[axis])


def merge_axes_last(x: Tensor, axis: Axes) -> Tensor:
    """The named axes merged into one that comes last."""
    axes = axes_of(x, axis)
    rest = [i for i in range(x.ndim) if i not in axes]
    moved_back = x.permute(rest + list(axes))
    lengths = [x.shape[i] for i in rest]
    return moved_back.reshape([*lengths, reduced_size(x, axis)])


def allclose(a: Tensor, b: Tensor, rtol: float = 1e-5,
             atol: float = 1e-8) -> bool:
    """Whether |a - b| <= atol + rtol·|b| everywhere, infinities equal."""
    near = (a - b).abs() <= b.abs() * rtol + atol
    # By rtol times infinity everything would be near it.
    return bool(((a == b) | near & ~(b.abs() == math.inf)).all())


TANH_NUMERATOR = (
    -9.64399179425052238628e-1, -9.92877231001918586564e1,
    -1.61468768441708447952e3)
TANH_DENOMINATOR = (
    1.0, 1.12811678491632931402e2, 2.23548839060100448583e3,
    4.84406305325125486048e3)


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Any:
    """Horner's rule, highest power first."""
    value: Any = coefficients[0]
    for coefficient in coefficients[1:]:
        value = x * value + coefficient
    return value


def detached(x: Tensor) -> Tensor:
    """The same memory under a tensor without marks."""
    return wrap(x.buffer, x.device)


def constant_max(x: Tensor, axis: Axes) -> Tensor:
    """The largest along `axis`, as a constant; 0 where there is none."""
    # What is subtracted does not matter, so no gradient need go this way.
    y = detached(x)
    if not reduced_size(y, axis):
        return y.sum(axis, keepdim=True)
    return y.max(axis, keepdim=True)


needs_gradient = attrgetter("requires_grad")


def grad(y: Tensor, inputs: Sequence[Tensor] | Tensor,
         gradient: Tensor | None = None, retain_graph: bool = False,
         create_graph: bool = False) -> list[Tensor | None]:
    """The gradients of `y` with respect to `inputs`; None if unrelated.

    `gradient`, of y's shape, weighs the elements of y; a y of one
    element needs none. With `create_graph` the gradients are recorded
    and can be differentiated again.
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    if not all(x.requires_grad for x in inputs):
        raise ValueError("grad: an input asks for no gradient; call its "
                         ".requires_grad_() before computing y")
    seed, wanted = initial_gradient(y, gradient), {id(x) for x in inputs}
    with recording(create_graph):
        found = {id(x): g for x, g in sweep(
            y, seed, retain_graph or create_graph) if id(x) in wanted}
    return [found.get(id(x)) for x in inputs]


def initial_gradient(y: Tensor, gradient: Tensor | None) -> Tensor:
    """The gradient to start from: the given one, or 1 for a number."""
    if not y.requires_grad:
        raise RuntimeError(
            "backward: nothing here asks for a gradient; call "
            ".requires_grad_() on an input before computing")
    check_unmodified(y)
    if gradient is None and y.size != 1:
        raise ValueError(
            f"backward: a gradient is defined for one number, this is "
            f"of shape {y.shape}; .sum() it, or pass gradient=")
    if gradient is None:
        return as_tensor(1, y.dtype, y.device, y.shape)
    if getattr(gradient, "shape", None) != y.shape:
        raise ValueError(f"backward: expected as gradient a tensor of "
                         f"shape {y.shape}, got {gradient!r:.60}")
    # A copy: where y is a leaf, this becomes its .grad, to be written to.
    return gradient.cast(y.dtype).clone()


def writable_gradient(g: Tensor, taken: set[int]) -> Tensor:
    """`g` dense, in memory to write to that none among `taken` uses."""
    view, storage = g.buffer.view, g.buffer.storage
    # ADD hands one gradient to two operands, and SUM a view of one number.
    if id(storage) in taken or not (storage.writable and view.is_dense):
        g = g.clone()
    taken.add(id(g.buffer.storage))
    return g


def check_overwrite(x: Tensor) -> None:
    """Refuse a write whose consequence no record could tell."""
    remedy = "write x = x + y for a new tensor, or work under no_grad()"
    if x.is_leaf and x.requires_grad:
        raise RuntimeError(f"in place: this leaf asks for a gradient, and "
                           f"would be no leaf any more; {remedy}")
    if x.size * x.dtype.itemsize != x.buffer.storage.nbytes:
        raise RuntimeError(f"in place: shape {x.shape} is a part of larger "
                           f"memory, whose record would not know; {remedy}")


def check_leaving(x: Tensor) -> None:
    """Refuse to drop a gradient in silence."""
    if x.requires_grad and RECORDING.get():
        raise TypeError(
            "NumPy and DLPack know no gradients, and this tensor asks for "
            "one: call the tensor's own method (x.exp() for np.exp(x)), or "
            "say .detach() to leave the gradient behind")


def hessian_product(f: Callable[[Tensor], Tensor], x: Tensor,
                    v: Tensor) -> Tensor:
    """H v for the Hessian H of `f` at `x`, without forming H.

    Pearlmutter (1994): differentiate the slope along v. Cost: a small
    multiple of f; memory: the graph of f and of its gradient.
    """
    at = x.detach().requires_grad_()
    (g,) = grad(f(at), [at], create_graph=True)
    along = zeros_like(x) if g is None else (g * v).sum()
    # The gradient of a linear f is a constant: there is no graph behind it.
    if not along.requires_grad:
        return zeros_like(x)
    (product,) = grad(along, [at])
    return zeros_like(x) if product is None else product


def gradcheck(f: Callable[..., Tensor], *inputs: Tensor,
              step: float = 1e-5, tolerance: float = 1e-6) -> None:
    """Compare the gradients of `f` with central differences (float64).

    Every input that requires a gradient is checked in every element,
    with a random weight on every element of the result. Raises
    AssertionError with the largest difference where they disagree.
    """
    wanted = [x for x in inputs if x.requires_grad]
    if any(x.dtype is not float64 for x in wanted):
        raise TypeError("gradcheck: differences need float64; cast first")
    y = f(*inputs)
    weight = rand(*y.shape, dtype=float64, device=y.device) + 0.5
    total = (y * weight).sum()
    found = grad(total, wanted) if y.requires_grad else [None] * len(wanted)
    for x, g in zip(wanted, found):
        actual = np.zeros(x.shape) if g is None else g.numpy()
        expected = numerical_gradient(
            lambda: float((f(*inputs) * weight).sum()), x, step)
        worst = np.abs(actual - expected).max(initial=0)
        if not worst <= tolerance * (1 + np.abs(expected).max(initial=0)):
            raise AssertionError(f"gradcheck: the gradient of an input of "
                                 f"shape {x.shape} is off by {worst:.3g}")


def numerical_gradient(f: Callable[[], float], x: Tensor,
                       step: float) -> np.ndarray:
    """Central differences of `f` in each element of x, moved in place."""
    memory, slopes = x.detach(), np.zeros(x.shape)
    values = x.numpy().copy()
    try:
        for i in np.ndindex(*x.shape):
            moved = np.zeros(x.shape)
            moved[i] = step
            memory.assign(values + moved)
            above = f()
            # From the saved values: x + step - step is not x in floats.
            memory.assign(values - moved)
            slopes[i] = (above - f()) / (2 * step)
    finally:
        memory.assign(values)
    return slopes


def randperm(n: int, generator: Generator = GENERATOR) -> Tensor:
    """The numbers 0 to n - 1 in random order: sorted by random keys."""
    keys = rand(n, dtype=float64, generator=generator)
    return from_numpy(np.argsort(keys.numpy(), kind="stable"))
