# Tangled from tensors, indexing, blas, activations, layers, autograd, quantization, scaling, vocabulary: edit there, `make tangle`. sha256:16c3aea5c85c  # noqa: E501
"""The tensor: a handle on a buffer, and every operation on it."""

from __future__ import annotations

import difflib
import dis
import functools
import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any, NoReturn, TypeVar

import numpy as np

from companion.autograd import (
    RECORDING, Record, check_rule, no_grad, recording, remember, sweep,
    sweep_to_leaves, version)
from companion.buffer import CPU_MEMORY, Buffer, adopt, format_array
from companion.device import CPU, READERS, Device, moved, named
from companion.dtype import (
    DType, as_dtype, bfloat16, bool_, float16, float32, float64, int32, int64)
from companion.ops import (
    ADD, CAST, EQUAL, ERF, EXP, EXPAND, FLIP, GATHER, IDIV, LESS, LOG, MATMUL,
    MAX, MOD, MUL, PAD, PERMUTE, POW, RESHAPE, SCATTER, SHRINK, SIN, SQRT, SUB,
    SUM, WRITE, Op, check_kind, known, reduced)
from companion.view import Shape

Scalar = bool | int | float


def also(name: str) -> Callable[..., Any]:
    """Another name for the method `name`."""
    def method(self: Tensor, *args: Any, **options: Any) -> Any:
        return getattr(self, name)(*args, **options)
    return method


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


def of_rows(method: Callable[..., Sorted]) -> Callable[..., Sorted]:
    """Of a 0-d tensor what it is of the row with this one element."""
    @functools.wraps(method)
    def row(x: Tensor, *args: Any, **options: Any) -> Sorted:
        if x.ndim:
            return method(x, *args, **options)
        found = method(x.reshape(1), *args, **options)
        return Sorted(*[t.reshape(()) for t in found])
    return row


def overwriting(name: str) -> Callable[..., Tensor]:
    """The method `name`, its result written where x lies."""
    def method(self: Tensor, *args: Any, **options: Any) -> Tensor:
        # Of a copy: the gradient may read what is about to go.
        recorded = RECORDING.get() and any(
            isinstance(t, Tensor) and t.requires_grad
            for t in (self, *args, *options.values()))
        x = self.clone() if recorded else self
        return written(self, getattr(x, name)(*args, **options))
    return method


def smooth(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Computed in float32 or float64, answered in the dtype of x."""
    @functools.wraps(method)
    def wide(self: Tensor, *args: Any, **options: Any) -> Tensor:
        return narrowed(method(widened(self), *args, **options), self)
    return wide


def spelled(operation: Callable[..., Any]) -> Callable[..., Tensor]:
    """x.add(y, alpha=a): `operation` on x and a · y."""
    def method(self: Tensor, other: Any, alpha: Scalar = 1) -> Tensor:
        return operation(self, other if alpha == 1 else other * alpha)
    return method


def torch_names(method: Callable[..., T]) -> Callable[..., T]:
    """Also accept PyTorch's and NumPy's names of options."""
    @functools.wraps(method)
    def named(*args: Any, **options: Any) -> T:
        if not options:  # as most calls are
            return method(*args)
        if "unbiased" in options:
            options["correction"] = int(options.pop("unbiased"))
        ours = {OPTIONS.get(name, name): v for name, v in options.items()}
        return method(*args, **ours)
    return named


def unknown(x: Any, name: str) -> NoReturn:
    raise UnknownWord(name=name, obj=x)


RANK = {"b": 0, "u": 1, "i": 1, "f": 2}  # bools, integers, floats

# Refused where x += y would be: no float is cut to fit an integer.
written = in_place(lambda _, result: result)

OPTIONS = {"dim": "axis", "dims": "axis", "keepdims": "keepdim",
           "shifts": "shift", "ddof": "correction", "dimension": "axis"}

T = TypeVar("T")


class UnknownWord(AttributeError):
    """Of a word that no tensor knows: what to type instead.

    Much code only asks whether a word is there (`hasattr`), and never reads
    the answer: the nearest words are looked for when somebody does.
    """

    def __str__(self) -> str:
        name = str(self.name)
        near = difflib.get_close_matches(name, dir(Tensor), 3)
        hint = WORDS.get(name) or (
            f"did you mean {', '.join(near)}?" if near
            else "see the vocabulary")
        return f"a Tensor has no {name}: {hint}"


class Tensor:
    """An n-dimensional array of one dtype on one device.

    `data` is a number, nested lists of numbers, or anything NumPy reads.
    Python floats become float32 and integers int64, as in PyTorch. The
    values are copied; `from_numpy` shares them.
    """

    __array_priority__ = 1000  # np_array + tensor asks the tensor

    def __init__(self, data: Any, dtype: DType | None = None,
                 device: Device | str = CPU, requires_grad: bool = False):
        self.device = named(device)
        self.buffer = self.device.adopt(read(data, dtype))
        if requires_grad:
            self.requires_grad_()

    @staticmethod
    def apply(op: Op, *src: Tensor, arg: Any = None,
              device: Device | str | None = None) -> Tensor:
        """Every operation on tensors; where they are, or on `device`."""
        place = named(device) if device else src[0].device
        buffers, watched = [], False
        for x in src:
            buffers.append(x.buffer if x.device is place
                           else brought(op, x, place, device))
            watched = watched or x.requires_grad
        watched = watched and RECORDING.get()
        # Before it runs: a write that has no rule must not have happened.
        if watched:
            check_rule(op, src)
        y = wrap(place.run(op, *buffers, arg=arg), place)
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
    def size(self) -> Size:
        """The number of elements; called, the shape, as in PyTorch."""
        found = Size(math.prod(self.buffer.view.shape))
        found.shape = self.buffer.view.shape
        return found

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
        host = self.device.host(self.buffer)
        body = format_array(host, indent=len("Tensor("))
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
        if shape == self.buffer.view.shape:
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

    def to(self, *targets: Any, dtype: DType | None = None,
           device: Device | str | None = None,
           non_blocking: bool = False) -> Tensor:
        """Another dtype; or a copy on another device (or its name).

        `non_blocking` is a wish: a device waits when it has to.
        """
        x = self
        for target in (*targets, device, dtype):
            if isinstance(target, DType):
                x = x.cast(target)
            elif target is not None and named(target) is not x.device:
                x = Tensor.apply(RESHAPE, x, arg=x.shape,
                                 device=named(target))
        return x

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
    def sum(self, axis: Axes = None, keepdim: bool = False,
            dtype: DType | None = None) -> Tensor:
        """In `dtype`; integers and bools, unless told, as int64."""
        x = self if self.dtype.is_float else self.cast(int64)
        return reduce(SUM, self.cast(dtype) if dtype else x, axis, keepdim)

    @torch_names
    def max(self, axis: Any = None, keepdim: bool = False) -> Tensor:
        """The values only; argmax has the places, topk has both.

        Of two tensors, the larger of each two elements.
        """
        if isinstance(axis, Tensor):
            return self.maximum(axis)
        return of_an_axis("max", reduce(MAX, self, axis, keepdim), axis)

    @torch_names
    def min(self, axis: Any = None, keepdim: bool = False) -> Tensor:
        if isinstance(axis, Tensor):
            return self.minimum(axis)
        least = order_reversed(order_reversed(self).max(axis, keepdim))
        return of_an_axis("min", least, axis)

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
            return Tensor.apply(GATHER, self, index, arg=0)
        entries = complete_index(self, index)
        if any(isinstance(e, Tensor) for e in entries):
            return advanced_index(*masks_to_indices(self, entries))
        return basic_index(self, entries)

    def __iter__(self) -> Iterator[Tensor]:
        if self.answered:
            check_not_unpacked(self.answered, sys._getframe(1))
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
    def roll(self, shift: Any, axis: Any = None) -> Tensor:
        """Moved by `shift`; what leaves at one end enters at the other.

        Several shifts go with as many axes; without one the elements
        are moved as a row.
        """
        if axis is None:
            return self.reshape(-1).roll(shift, 0).reshape(self.shape)
        x, shifts, axes = self, unpack_ints([shift]), unpack_ints([axis])
        if len(shifts) != len(axes):
            raise ValueError(f"roll: expected a shift for each axis, got "
                             f"{shift} and {axis}")
        for steps, each in zip(shifts, axes):
            n = x.shape[axis_of(x, each)]
            cut = -steps % n if n else 0
            front, back = x.split([cut, n - cut], each)
            x = cat([back, front], each)
        return x

    @torch_names
    def cumsum(self, axis: int, dtype: DType | None = None) -> Tensor:
        """Running sums in `dtype`; integers and bools as int64.

        Halves are added in float32.
        """
        wanted = dtype or (self.dtype if self.dtype.is_float else int64)
        x = self.cast(wanted)
        x = widened(x) if wanted.is_float else x
        at = axis_of(x, axis, x.ndim or 1)
        if x.device is CPU and wanted.is_float and x.size:
            before, n = math.prod(x.shape[:at]), reduced_size(x, axis)
            sums = running_sums(x.reshape(before, n, -1))
            if np.isfinite(detached(sums[:, -1]).numpy()).all():
                return sums.reshape(x.shape).cast(wanted)
        return scan(Tensor.__add__, x, at, 0).cast(wanted)

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
        # Not a tensor, and knows how to be multiplied: Python asks it.
        if hasattr(type(other), "times"):
            return NotImplemented
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
        size = x.abs()
        e = (size * -2).exp()
        far = (1 - e) / (1 + e)
        far = where(x < 0, -far, far)
        # Clamped, or the branch not chosen would overflow far from 0, and
        # its gradient be 0 * infinity.
        near = x.clamp(-0.625, 0.625)
        square = near * near
        bend = (polynomial(square, TANH_NUMERATOR)
                / polynomial(square, TANH_DENOMINATOR))
        return where(size < 0.625, near * (1 + square * bend), far)

    @torch_names
    def softmax(self, axis: int, dtype: DType | None = None) -> Tensor:
        """exp(x) / sum(exp(x)) along `axis`, safe at any size."""
        given = self.cast(dtype) if dtype else self
        x = widened(given)  # a sum of many halves would round
        # A row of nothing but -inf has no weights: the NaN is left to show.
        e = (x - constant_max(x, axis)).exp()
        return narrowed(e / e.sum(axis, keepdim=True), given)

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
    def log_softmax(self, axis: int, dtype: DType | None = None) -> Tensor:
        """log(softmax(x)), without rounding softmax first."""
        given = self.cast(dtype) if dtype else self
        x = widened(given)
        x = x - constant_max(x, axis)
        return narrowed(x - x.exp().sum(axis, keepdim=True).log(), given)

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
                 retain_graph: bool = False, create_graph: bool = False,
                 finished: Callable[[Tensor], Any] | None = None) -> None:
        """Add to the .grad of every leaf this was computed from.

        `finished(leaf)` is called when the .grad of a leaf is complete.
        It may read that, and write to nothing: the walk goes on.
        """
        seed, taken = initial_gradient(self, gradient), set[int]()
        walk = sweep_to_leaves if finished else sweep
        with recording(create_graph):
            for x, g in walk(self, seed, retain_graph or create_graph):
                if x.is_leaf:
                    g = g if x.grad is None else x.grad + g
                    x.grad = writable_gradient(g, taken)
                    if finished:
                        finished(x)

    def detach(self) -> Tensor:
        """The same memory, with no past and no wish for a gradient."""
        return detached(self)

    @smooth
    def log1p(self) -> Tensor:
        """log(1 + x), and what 1 + x lost on the way (Kahan)."""
        u = self + 1
        lost = (detached(self) - (detached(u) - 1)) / detached(u)
        return u.log() + where((u > 0) & (u < math.inf), lost, 0)

    @smooth
    def expm1(self) -> Tensor:
        """exp(x) - 1; near 0, 2t / (1 - t) with t = tanh(x / 2)."""
        t = (self.clamp(-0.5, 0.5) * 0.5).tanh()
        return where(self.abs() < 0.5, t * 2 / (1 - t), self.exp() - 1)

    @smooth
    def sinh(self) -> Tensor:
        """(exp(x) - exp(-x)) / 2; halves of x, which overflow later."""
        near = self.clamp(-1, 1).expm1()
        up, down = (self * 0.5).exp(), (self * -0.5).exp()
        far = up * (up * 0.5) - down * (down * 0.5)
        return where(self.abs() < 1, (near + near / (near + 1)) * 0.5, far)

    @smooth
    def cosh(self) -> Tensor:
        """(exp(x) + exp(-x)) / 2."""
        up, down = (self * 0.5).exp(), (self * -0.5).exp()
        return up * (up * 0.5) + down * (down * 0.5)

    @smooth
    def tan(self) -> Tensor:
        """sin(x) / cos(x) in float64: near a pole, cos has few digits."""
        wide = self.cast(float64)
        return (wide.sin() / wide.cos()).cast(self.dtype)

    @smooth
    def exp2(self) -> Tensor:
        """2 ** x."""
        return 2 ** self

    @smooth
    def log2(self) -> Tensor:
        return self.log() / math.log(2)

    @smooth
    def log10(self) -> Tensor:
        return self.log() / math.log(10)

    @smooth
    def asinh(self) -> Tensor:
        return odd(arsinh, self)

    @smooth
    def acosh(self) -> Tensor:
        """log(x + sqrt(x² - 1)), in terms of x - 1; NaN below 1."""
        below = where(self < 0, self * 0, self)
        t = where(self > BEYOND, 1, below) - 1
        near = (t + (t * 2 + t * t).sqrt()).log1p()
        far = self.clamp(min=1).log() + math.log(2)
        return where(self > BEYOND, far, near)

    @smooth
    def atanh(self) -> Tensor:
        return odd(artanh, self)

    @smooth
    def atan(self) -> Tensor:
        """By Cephes' rational (Moshier, 1989)."""
        return odd(arctan, self)

    @smooth
    def asin(self) -> Tensor:
        root = ((1 - self) * (1 + self)).sqrt()
        return (self / (root + 1)).atan() * 2

    @smooth
    def acos(self) -> Tensor:
        return ((1 - self).sqrt() / (1 + self).sqrt()).atan() * 2

    def trunc(self) -> Tensor:
        """Rounded towards 0."""
        return where(self < 0, self.ceil(), self.floor())

    def frac(self) -> Tensor:
        return self - self.trunc()

    def round(self, decimals: int = 0) -> Tensor:
        """To the nearest whole number; from the middle, to the even."""
        if not self.dtype.is_float:
            return self
        if decimals:
            power = 10.0 ** decimals
            return narrowed((widened(self) * power).round() / power, self)
        floor = detached(self).floor()
        above = detached(self) - floor
        up = (above > 0.5) | (above == 0.5) & (floor % 2 == 1)
        whole = where(above == above, floor + up.cast(self.dtype), floor)
        # x · 0 keeps the sign of a zero, and is a slope of 0 everywhere.
        return where(whole == 0, self * 0, whole)

    def isinf(self) -> Tensor:
        return self.abs() == math.inf

    def isfinite(self) -> Tensor:
        return self.abs() < math.inf

    def isclose(self, other: Any, rtol: float = 1e-5, atol: float = 1e-8,
                equal_nan: bool = False) -> Tensor:
        """|x - y| <= atol + rtol·|y|, or both the same infinity."""
        x, y = align(self, required_operand(other, self))
        # Not of int8: the difference of -128 and 0 would be -128.
        a, b = [t if t.dtype.is_float else t.cast(float64) for t in (x, y)]
        near = (a - b).abs() <= b.abs() * rtol + atol
        close = (x == y) | near & b.isfinite()
        both = self.isnan() & y.isnan()
        return close | both if equal_nan else close

    def nan_to_num(self, nan: float = 0.0, posinf: float | None = None,
                   neginf: float | None = None) -> Tensor:
        """NaN and infinities replaced; by the largest numbers of x."""
        if not self.dtype.is_float:
            return self
        most = largest_number(self.dtype)
        x = self.masked_fill(self.isnan(), nan)
        high, low = [bound if given is None else given for bound, given in (
            (most, posinf), (-most, neginf))]
        # What self is, not x: a NaN may have become an infinity.
        x = x.masked_fill(self == math.inf, high)
        return x.masked_fill(self == -math.inf, low)

    def copysign(self, other: Any) -> Tensor:
        """|x| with the sign of `other`, also of -0; integers as float32."""
        x, other = map(as_float, same_dtype(
            self, required_operand(other, self)))
        size = x.abs()
        return where(has_minus(other), -size, size)

    def atan2(self, x: Any) -> Tensor:
        """The angle of the point (x, self), in (-π, π]."""
        y, x = same_dtype(self, required_operand(x, self))
        return narrowed(angle(widened(y), widened(x)), y)

    def hypot(self, other: Any) -> Tensor:
        """sqrt(x² + y²), without squares that overflow."""
        a, b = self.abs(), abs(required_operand(other, self))
        large = a.maximum(b)
        scale = detached(where((large > 0) & large.isfinite(), large, 1))
        size = ((a / scale).square() + (b / scale).square()).sqrt() * scale
        # An infinite side is enough, whatever the other is.
        return where((a == math.inf) | (b == math.inf), math.inf, size)

    def logaddexp(self, other: Tensor) -> Tensor:
        """log(exp(x) + exp(y)), safe at any size."""
        peak = detached(self.maximum(other))
        peak = where(peak.isinf(), 0, peak)
        return ((self - peak).exp() + (other - peak).exp()).log() + peak

    def lerp(self, end: Tensor, weight: Any) -> Tensor:
        """From x to `end`; both ends are exact."""
        weight = required_operand(weight, self)
        way = end - self
        if not isinstance(weight, Tensor):
            return (self + way * weight if abs(weight) < 0.5
                    else end - way * (1 - weight))
        return where(weight.abs() < 0.5, self + way * weight,
                     end - way * (1 - weight))

    @torch_names
    def gather(self, axis: int, index: Tensor) -> Tensor:
        """Along `axis`, the elements at `index`; of its shape."""
        at = axis_of(self, axis)
        rows = fitted("gather", self, index, at).transpose(at, -1)
        return pick(rows, index.transpose(at, -1)).transpose(at, -1)

    @torch_names
    def take_along_axis(self, index: Tensor, axis: int) -> Tensor:
        """gather, with the axes beside `axis` broadcast."""
        at = axis_of(self, axis)
        both = [t.shape[:at] + (1,) + t.shape[at + 1:] for t in (
            self, index)]
        shape = broadcast_shape(*both)
        x, i = [t.broadcast(shape[:at] + t.shape[at:at + 1]
                            + shape[at + 1:]) for t in (self, index)]
        return x.gather(at, i)

    @torch_names
    def index_select(self, axis: int, index: Tensor) -> Tensor:
        """The slices of `axis` that the vector `index` names."""
        check_vector("index_select", index)
        at = axis_of(self, axis)
        return self.transpose(0, at)[index].transpose(0, at)

    @torch_names
    def scatter_add(self, axis: int, index: Tensor, src: Tensor) -> Tensor:
        """x, with `src` added along `axis` where `index` says."""
        at = axis_of(self, axis)
        n = self.shape[at]
        fitted("scatter_add", self, index, at)
        values = source("scatter_add", self, index, src)
        sums = put(values.transpose(at, -1), index.transpose(at, -1), n)
        return self + grown(sums.transpose(at, -1), self.shape)

    @torch_names
    def scatter(self, axis: int, index: Tensor, src: Any) -> Tensor:
        """x, with `src` in its place where `index` says; the last wins."""
        at = axis_of(self, axis)
        fitted("scatter", self, index, at)
        last, taken = [
            t.transpose(at, -1) for t in last_writer(
                index.transpose(at, -1), self.shape[at])]
        taken = grown(taken, self.shape)
        if not isinstance(src, Tensor):
            return where(taken, cast_scalar(self, src), self)
        if not index.size:
            return self.clone()
        found = source("scatter", self, index, src).gather(at, last)
        return where(taken, grown(found, self.shape), self)

    @torch_names
    def index_add(self, axis: int, index: Tensor, src: Tensor,
                  alpha: Scalar = 1) -> Tensor:
        """x, with the slices of alpha · src added where a vector says."""
        check_vector("index_add", index)
        at, src = axis_of(self, axis), src if alpha == 1 else src * alpha
        sums = Tensor.apply(SCATTER, src.transpose(0, at), index,
                            arg=(0, self.shape[at]))
        return self + sums.transpose(0, at)

    @torch_names
    def argsort(self, axis: int = -1, descending: bool = False,
                stable: bool = True) -> Tensor:
        """The places along `axis` in sorted order; equals keep theirs."""
        if not self.ndim:
            return Tensor(0, device=self.device)
        at = axis_of(self, axis)
        return Tensor(order(self, at, descending), device=self.device)

    @torch_names
    @of_rows
    def sort(self, axis: int = -1, descending: bool = False,
             stable: bool = True) -> Sorted:
        """Values and places; NaN counts as the largest."""
        places = self.argsort(axis, descending)
        return Sorted(self.gather(axis, places), places)

    @torch_names
    @of_rows
    def topk(self, k: int, axis: int = -1, largest: bool = True,
             sorted: bool = True) -> Sorted:
        """The k largest along `axis`, or the smallest, in order."""
        at = axis_of(self, axis)
        if not 0 <= as_int(k) <= self.shape[at]:
            raise ValueError(f"topk: expected k from 0 to the "
                             f"{self.shape[at]} of axis {axis}, got {k}")
        found = chosen(order_keys(self.transpose(at, -1)), k, largest)
        places = Tensor(found, device=self.device).transpose(at, -1)
        values = self.gather(at, places)
        if not sorted:
            return Sorted(values, places)
        inner = values.argsort(at, descending=largest)
        return Sorted(values.gather(at, inner), places.gather(at, inner))

    @torch_names
    @of_rows
    def kthvalue(self, k: int, axis: int = -1,
                 keepdim: bool = False) -> Sorted:
        """The k-th smallest, counted from 1, and its place."""
        n = self.shape[axis_of(self, axis)]
        if not 1 <= as_int(k) <= n:
            raise ValueError(f"kthvalue: expected k from 1 to the {n} of "
                             f"axis {axis}, got {k}")
        found = [t.narrow(axis, k - 1, 1) for t in self.sort(axis)]
        return Sorted(*[t if keepdim else t.squeeze(axis) for t in found])

    @torch_names
    def median(self, axis: int | None = None, keepdim: bool = False) -> Any:
        """The middle in order, of two the lower; NaN if one is there.

        Along an axis: the values, and their places.
        """
        if axis is None:
            return self.reshape(-1).median(0).values
        n = self.shape[axis_of(self, axis)]
        if not n:
            raise ValueError("median: nothing has no middle; check .size")
        # NaN stands behind all numbers: counting those finds the first.
        known = (self == self).sum(axis, keepdim=True)
        place = where(known < n, known, (n - 1) // 2)
        found = [t.gather(axis, place) for t in self.sort(axis)]
        return Sorted(*[t if keepdim else t.squeeze(axis) for t in found])

    def unique(self) -> Tensor:
        """The values that occur, each once, in order."""
        return Tensor(np.unique(self.numpy()), device=self.device)

    def nonzero(self, as_tuple: bool = False,
                ) -> Tensor | tuple[Tensor, ...]:
        """Where elements are not 0: a row of indices for each; or, as a
        tuple, the indices along each axis."""
        found = Tensor(np.argwhere(self.numpy() != 0), int64, self.device)
        return tuple(found.T) if as_tuple else found

    def masked_select(self, mask: Tensor) -> Tensor:
        """The elements where `mask` holds, in a row."""
        shape = broadcast_shape(self.shape, mask.shape)
        return self.broadcast(shape)[mask.broadcast(shape)]

    @torch_names
    def cumprod(self, axis: int) -> Tensor:
        """Running products; integers and bools as int64."""
        x = self if self.dtype.is_float else self.cast(int64)
        return scan(Tensor.__mul__, x, axis, 1)

    @torch_names
    def logcumsumexp(self, axis: int) -> Tensor:
        """Running log(sum(exp(x))), safe at any size."""
        return narrowed(scan(Tensor.logaddexp, widened(self), axis,
                             -math.inf), self)

    @torch_names
    @of_rows
    def cummax(self, axis: int) -> Sorted:
        """Running maxima, and where they stand."""
        places = last_largest(self, axis_of(self, axis))
        return Sorted(self.gather(axis, places), places)

    @torch_names
    @of_rows
    def cummin(self, axis: int) -> Sorted:
        """Running minima, and where they stand."""
        places = last_largest(order_reversed(self), axis_of(self, axis))
        return Sorted(self.gather(axis, places), places)

    def diagonal(self, offset: int = 0, dim1: int = 0,
                 dim2: int = 1) -> Tensor:
        """The diagonal of two axes, as the last axis; a view of steps."""
        i, j = axis_of(self, dim1), axis_of(self, dim2)
        rest = [k for k in range(self.ndim) if k not in (i, j)]
        x = self.permute([*rest, i, j])
        r, c = max(-offset, 0), max(offset, 0)
        n = max(min(x.shape[-2] - r, x.shape[-1] - c), 0)
        square = x[..., r:r + n, c:c + n]
        # One along the diagonal is n + 1 along the memory.
        return square.reshape(*square.shape[:-2], n * n)[..., ::n + 1]

    def trace(self) -> Tensor:
        return self.diagonal().sum(-1)

    def diag(self, diagonal: int = 0) -> Tensor:
        """A matrix's diagonal; of a vector, the matrix that has it."""
        if self.ndim != 1:
            return self.diagonal(diagonal)
        n, before = len(self), max(-diagonal, 0)
        wide = (arange(n, device=self.device).unsqueeze(1)
                == arange(n, device=self.device))
        square = where(wide, self, False)
        return square.pad([(before, max(diagonal, 0)),
                           (max(diagonal, 0), before)])

    def dim(self) -> int:
        return self.ndim

    @torch_names
    def unbind(self, axis: int = 0) -> list[Tensor]:
        """The slices of an axis, without it."""
        n = self.shape[axis_of(self, axis)]
        if n < 2:
            return [self.squeeze(axis)] * n
        # By halves: the gradient of a slice is as large as what it was cut
        # from, and n slices of the whole would move n² of them.
        halves = self.split([n // 2, n - n // 2], axis)
        return [part for half in halves for part in half.unbind(axis)]

    def t(self) -> Tensor:
        """The transposed matrix; a vector is what it was."""
        if self.ndim > 2:
            raise ValueError(f"t: expected at most two axes, got shape "
                             f"{self.shape}; use .mT or .permute")
        return self.T

    def movedim(self, source: Any, destination: Any) -> Tensor:
        """Axes moved to other places; the rest keep their order."""
        old = [axis_of(self, a) for a in unpack_ints([source])]
        new = [axis_of(self, a) for a in unpack_ints([destination])]
        if len({*old}) != len({*new}) or len({*old}) != len(old):
            raise ValueError(f"movedim: expected as many places as axes, "
                             f"got {source} and {destination}")
        rest = iter([a for a in range(self.ndim) if a not in old])
        come = dict(zip(new, old))
        return self.permute([come[i] if i in come else next(rest)
                             for i in range(self.ndim)])

    def ravel(self) -> Tensor:
        return self.reshape(-1)

    @torch_names
    def unflatten(self, axis: int, sizes: Sequence[int]) -> Tensor:
        """One axis as several; one -1 is worked out."""
        at = axis_of(self, axis)
        known = -math.prod(sizes)
        parts = [self.shape[at] // known if n == -1 and known > 0 else n
                 for n in sizes]
        if math.prod(parts) != self.shape[at]:
            raise ValueError(f"unflatten: {tuple(sizes)} do not fill the "
                             f"{self.shape[at]} of axis {axis}")
        return self.reshape(*self.shape[:at], *parts, *self.shape[at + 1:])

    @torch_names
    def select(self, axis: int, index: int) -> Tensor:
        """One slice of an axis, without that axis."""
        at = axis_of(self, axis)
        return self[(slice(None),) * at + (as_int(index),)]

    @torch_names
    def unfold(self, axis: int, size: int, step: int) -> Tensor:
        """Windows of `size` along `axis`, `step` apart; a last axis."""
        at = axis_of(self, axis)
        if not 0 < size <= self.shape[at] or step < 1:
            raise ValueError(f"unfold: expected a size of 1 to the "
                             f"{self.shape[at]} of axis {axis} and a step "
                             f">= 1, got {size} and {step}")
        starts = arange(0, self.shape[at] - size + 1, step,
                        device=self.device)
        places = starts.unsqueeze(1) + arange(size, device=self.device)
        return self.movedim(at, 0)[places].movedim((0, 1), (at, -1))

    @torch_names
    def repeat_interleave(self, repeats: Any,
                          axis: int | None = None) -> Tensor:
        """Each element so many times in a row; counts, or one for all."""
        if axis is None:
            return self.reshape(-1).repeat_interleave(repeats, 0)
        at = axis_of(self, axis)
        if isinstance(repeats, Tensor):
            counts = np.broadcast_to(repeats.numpy(), self.shape[at])
            places = np.repeat(np.arange(self.shape[at]), counts)
            return self.index_select(at, Tensor(places, device=self.device))
        apart = self.unsqueeze(at + 1)
        wide = apart.broadcast(apart.shape[:at + 1] + (as_int(repeats),)
                               + apart.shape[at + 2:])
        return wide.flatten(at, at + 1)

    @torch_names
    def diff(self, n: int = 1, axis: int = -1) -> Tensor:
        """Differences of neighbours, n times over."""
        if as_int(n) < 1:
            if n < 0:
                raise ValueError(f"diff: expected n >= 0, got {n}")
            return self
        length = self.shape[axis_of(self, axis)]
        last = max(length - 1, 0)
        return (self.narrow(axis, length - last, last)
                - self.narrow(axis, 0, last)).diff(n - 1, axis)

    @torch_names
    def norm(self, p: float | str = 2, axis: Axes = None,
             keepdim: bool = False) -> Tensor:
        """(sum |x| ** p) ** (1 / p); of a zero vector the slope is 0."""
        size = widened(self).abs()
        if p in ("fro", 2):
            total = size.square().sum(axis, keepdim)
            root = where(total == 0, 1, total).sqrt()
            return narrowed(where(total == 0, 0, root), self)
        if not isinstance(p, (int, float)):
            raise ValueError(f"norm: expected a number or 'fro', got {p!r}")
        if abs(p) == math.inf:
            most = size.max if p > 0 else size.min
            return narrowed(most(axis, keepdim), self)
        if p == 0:
            return narrowed((size != 0).sum(axis, keepdim), self)
        return narrowed((size ** p).sum(axis, keepdim) ** (1 / p), self)

    @torch_names
    def std_mean(self, axis: Axes = None, correction: int = 1,
                 keepdim: bool = False) -> tuple[Tensor, Tensor]:
        return (self.std(axis, correction, keepdim),
                self.mean(axis, keepdim))

    @torch_names
    def var_mean(self, axis: Axes = None, correction: int = 1,
                 keepdim: bool = False) -> tuple[Tensor, Tensor]:
        return (self.var(axis, correction, keepdim),
                self.mean(axis, keepdim))

    @torch_names
    def amax(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        return reduce(MAX, self, axis, keepdim)

    @torch_names
    def amin(self, axis: Axes = None, keepdim: bool = False) -> Tensor:
        return order_reversed(order_reversed(self).amax(axis, keepdim))

    @torch_names
    def count_nonzero(self, axis: Axes = None) -> Tensor:
        return (self != 0).sum(axis)

    def multinomial(self, num_samples: int, replacement: bool = False,
                    ) -> Tensor:
        """Places drawn with these weights along the last axis."""
        return multinomial(self, num_samples, replacement)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, were they dense."""
        return self.size * self.dtype.itemsize

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def data(self) -> Tensor:
        return self.detach()

    def is_contiguous(self) -> bool:
        return self.buffer.view.is_dense

    def stride(self, dim: int | None = None) -> Any:
        """Steps in elements, one for each axis, or that of one."""
        steps = self.buffer.view.strides
        return steps if dim is None else steps[axis_of(self, dim)]

    def bitcast(self, dtype: DType) -> Tensor:
        """The same bits, read as another dtype of the same width."""
        if dtype.itemsize != self.dtype.itemsize:
            raise ValueError(f"bitcast: {self.dtype} and {dtype} differ in "
                             f"width; choose one of {self.dtype.itemsize} "
                             f"bytes")
        bits = np.ascontiguousarray(self.detach().numpy())
        return Tensor(bits.view(dtype.numpy), device=self.device)

    def type_as(self, other: Tensor) -> Tensor:
        return self.to(other.device).cast(other.dtype)

    add, sub, mul = map(spelled, (
        operator.add, operator.sub, operator.mul))
    pow, remainder, floor_divide = map(spelled, (
        operator.pow, operator.mod, operator.floordiv))
    eq, ne, lt, le, gt, ge = map(spelled, (
        operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
        operator.ge))
    bitwise_and, bitwise_or, bitwise_xor = map(spelled, (
        operator.and_, operator.or_, operator.xor))
    mm = bmm = spelled(operator.matmul)

    def neg(self) -> Tensor:
        return -self

    def bitwise_not(self) -> Tensor:
        return ~self

    def logical_not(self) -> Tensor:
        return self == 0

    def logical_and(self, other: Any) -> Tensor:
        return (self != 0) & (required_operand(other, self) != 0)

    def logical_or(self, other: Any) -> Tensor:
        return (self != 0) | (required_operand(other, self) != 0)

    def logical_xor(self, other: Any) -> Tensor:
        return (self != 0) ^ (required_operand(other, self) != 0)

    def fmod(self, other: Any) -> Tensor:
        """The rest of x / y rounded towards 0: with the sign of x."""
        x, y = same_dtype(self, required_operand(other, self))
        if not x.dtype.is_float:  # whose smallest number has no abs
            return x - divided(x, y, "trunc") * y
        rest = x.abs() % y.abs()
        return where(has_minus(x), -rest, rest)

    def div(self, other: Any, rounding_mode: str | None = None) -> Tensor:
        """x / y; with "floor" or "trunc" rounded to whole numbers."""
        return divided(self, required_operand(other, self), rounding_mode)

    def allclose(self, other: Any, rtol: float = 1e-5,
                 atol: float = 1e-8, equal_nan: bool = False) -> bool:
        return bool(self.isclose(other, rtol, atol, equal_nan).all())

    def equal(self, other: Tensor) -> bool:
        """Whether shapes and all elements are the same."""
        return self.shape == other.shape and bool((self == other).all())

    add_, sub_, mul_, div_ = map(overwriting, ("add", "sub", "mul", "div"))
    pow_, clamp_, lerp_, neg_ = map(overwriting, (
        "pow", "clamp", "lerp", "neg"))
    exp_, log_, sqrt_, square_ = map(overwriting, (
        "exp", "log", "sqrt", "square"))
    abs_, round_, floor_, ceil_ = map(overwriting, (
        "abs", "round", "floor", "ceil"))
    relu_, sigmoid_, tanh_ = map(overwriting, ("relu", "sigmoid", "tanh"))
    masked_fill_, scatter_, scatter_add_, index_add_ = map(overwriting, (
        "masked_fill", "scatter", "scatter_add", "index_add"))

    arcsinh, arccosh, arctanh = map(also, ("asinh", "acosh", "atanh"))
    arcsin, arccos, arctan = map(also, ("asin", "acos", "atan"))
    fix, arctan2, take_along_dim = map(also, (
        "trunc", "atan2", "take_along_axis"))
    moveaxis, swapaxes, swapdims = map(also, (
        "movedim", "transpose", "transpose"))
    subtract, multiply, divide, true_divide = map(also, (
        "sub", "mul", "div", "div"))
    negative, absolute, clip = map(also, ("neg", "abs", "clamp"))

    def fill_(self, value: Scalar) -> Tensor:
        return self.copy_(value)

    def zero_(self) -> Tensor:
        return self.copy_(0)

    def detach_(self) -> Tensor:
        """Forget how x came to be."""
        self.requires_grad, self.record = False, None
        return self

    answered: str | None = None  # by max or min: see __iter__

    # Not a def: to a type checker, that would make every word right.
    __getattr__ = unknown

    # At the end: below them `bool` and `int` would mean these methods.
    def float(self) -> Tensor:
        return self.cast(float32)

    def double(self) -> Tensor:
        return self.cast(float64)

    def half(self) -> Tensor:
        return self.cast(float16)

    def bfloat16(self) -> Tensor:
        return self.cast(bfloat16)

    def long(self) -> Tensor:
        return self.cast(int64)

    def int(self) -> Tensor:
        return self.cast(int32)

    def bool(self) -> Tensor:
        return self.cast(bool_)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def cuda(self) -> Tensor:
        return self.to("cuda")

    def __array_namespace__(self, *, api_version: str | None = None,
                            ) -> ModuleType:
        """The functions of the array API standard, for tensors."""
        return import_module("companion.array_api")

    def to_device(self, device: Device | str, /, *,
                  stream: Any = None) -> Tensor:
        """The standard's name of x.to(device)."""
        return self.to(device)


def wrap(buffer: Buffer, device: Device = CPU) -> Tensor:
    """A tensor for a buffer that already lies on `device`."""
    tensor = Tensor.__new__(Tensor)
    tensor.buffer, tensor.device = buffer, device
    return tensor


def leaf(op: Op, arg: Any, device: Device | str = CPU) -> Tensor:
    """A tensor made from an argument alone: CONST and IOTA."""
    place = named(device)
    return wrap(place.run(op, arg=arg), place)


def brought(op: Op, x: Tensor, place: Device,
            device: Device | str | None) -> Buffer:
    """An operand from elsewhere, where a `device` was asked for."""
    if device is None:
        raise ValueError(f"{op}: operands on {place} and {x.device} "
                         f"cannot meet; move one with .to(device)")
    return copy_to_device(x, place)


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
    if isinstance(axis, bool):
        raise TypeError(f"expected the number of an axis, got {axis}; give "
                        f"settings their names, as in unbiased={axis}")
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


def cast_scalar(x: Tensor, value: Scalar) -> Scalar:
    """`value` as a number among the elements of x: bools stay bools."""
    return bool(value) if x.dtype is bool_ else value


UNPACKS = dis.opmap["UNPACK_SEQUENCE"]


def check_not_unpacked(word: str, frame: FrameType) -> None:
    """Refuse a line like `values, places = x.max(1)`."""
    if frame.f_code.co_code[frame.f_lasti] == UNPACKS:
        raise ValueError(
            f"{word}: it answers one tensor, the values; type x.{word}(1), "
            f"x.arg{word}(1), or x.topk(1, 1), which has both")


def of_an_axis(word: str, y: Tensor, axis: Any) -> Tensor:
    """What `word` answers along an axis: not to be taken apart."""
    if axis is not None:
        y.answered = word
    return y


class Size(int):
    """NumPy's x.size, a number; PyTorch's x.size() and x.size(i)."""

    shape: Shape

    def __call__(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]


WORDS = {
    "values": "max and min answer the values; their places are x.argmax(1)",
    "indices": "max and min answer the values; their places are x.argmax(1)",
    "is_cuda": "ask x.device",
    "retain_grad": "ask grad(y, [x])",
    "register_hook": "ask grad(y, [x]), and change what it answers",
    "resize_": "make a new tensor with reshape",
    "as_strided": "index with slices and steps, or unfold",
    "share_memory_": "pass NumPy arrays between processes",
    "scatter_reduce": "type scatter_add, or scatter",
    "put_": "type x.scatter or x[mask] = value",
    "index_put_": "type x.scatter or x[mask] = value",
    "astype": "type x.to(dtype)",
    "copy": "type x.clone()",
    "tile": "type x.repeat(…)",
    "view_as": "type x.view(y.shape)",
    "reshape_as": "type x.reshape(y.shape)",
    "expand_as": "type x.expand(y.shape)",
    "addmm": "type x + a @ b",
    "baddbmm": "type x + a @ b",
    "new_zeros": "type zeros(…, dtype=x.dtype, device=x.device)",
    "new_tensor": "type Tensor(data, x.dtype, x.device)",
    "cholesky": "matrices are factored by NumPy: x.numpy()",
    "inverse": "matrices are factored by NumPy: x.numpy()",
}


class Package(ModuleType):
    """The folder `tensor`, which answers to torch.tensor(data), too."""

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        return Tensor(*args, **options)


sys.modules[Tensor.__module__].__class__ = Package


# The rooms import what stands above: they are read last.
from companion.tensor.along import (
    Sorted, check_vector, chosen, fitted, grown, last_largest, last_writer,
    order, order_keys, pick, put, running_sums, scan, source)
from companion.tensor.arithmetic import (
    BEYOND, PRODUCTS, TANH_DENOMINATOR, TANH_NUMERATOR, angle, arctan, arsinh,
    artanh, bitwise_and, bitwise_op, bitwise_or, bitwise_xor, divided,
    has_minus, integer_power, largest_number, maximum_of, minimum_of, odd,
    order_reversed, polynomial, quotient, shifted_left, shifted_right)
from companion.tensor.creation import arange, diagonal_offsets, ones_like
from companion.tensor.gradients import (
    check_leaving, check_overwrite, initial_gradient, writable_gradient)
from companion.tensor.indexing import (
    advanced_index, as_index_entry, as_source, basic_index, cat,
    check_no_repeats, coincide, complete_index, masks_to_indices, where_mask)
from companion.tensor.operands import (
    align, as_float, as_operand, as_tensor, binary, broadcast_shape,
    common_dtype, narrowed, required_operand, same_dtype, where, widened)
from companion.tensor.random import multinomial
from companion.tensor.reductions import (
    constant_max, detached, merge_axes_last, reduce, reduced_size, variance)
