# Tangled from operations, blas, activations, autograd, data, gpu, convolution, embeddings, attention, graphs, capture, launches, vocabulary: edit there, `make tangle`. sha256:90d60f4705c5  # noqa: E501
"""A device runs primitives on buffers.  This one is the CPU."""

from __future__ import annotations

import contextvars
import ctypes
import functools
import math
import operator
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import accumulate, chain, groupby, product
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import numpy as np

from companion.blas import (
    FLAVOURS, MR, WIDE, WORTH_SHARING, cast_copy, ceil, matmul)
from companion.buffer import CPU_MEMORY, Buffer, adopt, from_dlpack
from companion.dtype import DType, float32, float64, int64
from companion.native import POOL, kernel_or_tell
from companion.ops import (
    ADD, AND, ATTENTION, ATTENTION_GRADIENT, CAST, CONST, CONV, DIV, DTYPE,
    EQUAL, ERF, EXP, EXPAND, FLIP, GATHER, IDIV, IOTA, LESS, LOG, MATMUL, MAX,
    MAXIMUM, MOD, MUL, PAD, PERMUTE, POW, RANDOM, RESHAPE, SCATTER, SHAPE,
    SHRINK, SIN, SQRT, SUB, SUM, WHERE, WRITE, Op, Window, known)
from companion.sharing import forkable
from companion.view import Shape, View, coalesce


def ufunc(function: np.ufunc) -> Callable[..., None]:
    """A NumPy elementwise loop of one or two operands as a kernel."""
    def one(out: Buffer, x: Buffer, _: None) -> None:
        function(x.array, out=out.array)

    def two(out: Buffer, x: Buffer, y: Buffer, _: None) -> None:
        function(x.array, y.array, out=out.array)
    return one if function.nin == 1 else two


def copy(out: Buffer, x: Buffer, _: Any = None) -> None:
    np.copyto(out.array, x.array, casting="unsafe")


def power_each(out: Buffer, x: Buffer, y: Buffer, _: None) -> None:
    """x ** y; an integer's negative power is cut to a whole number."""
    base, exponent = x.array, y.array
    if not out.dtype.is_float:
        int_power(out.array, base, exponent)
        return
    np.power(base, exponent, out=out.array)
    # Where exponents of 1/2 repeat, NumPy takes the square root, which
    # is NaN of -inf and -0 of -0; the power of either is positive.
    halves = exponent == 0.5
    if halves.any():
        np.add(out.array, 0, out=out.array, where=halves)  # -0 + 0 is 0
        np.copyto(out.array, np.inf, where=halves & (base == -np.inf))


def int_power(out: np.ndarray, base: np.ndarray,
              exponent: np.ndarray) -> None:
    # NumPy refuses negative exponents. Their last bit is shown instead,
    # which is right for bases of 1 and -1; the others become 0 below.
    np.power(base, np.where(exponent < 0, exponent & 1, exponent),
             out=out)
    lost = (exponent < 0) & (base != 1) & (base != -1)
    np.copyto(out, 0, where=lost)


BITS = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}


def select(out: Buffer, condition: Buffer, a: Buffer, b: Buffer,
           _: None) -> None:
    """b, or a where the condition holds: bit by bit, without a branch."""
    # Not copyto(where=...): it branches, and masks are hard to predict.
    bits = BITS[out.dtype.itemsize]
    new, this, other = [x.array.view(bits) for x in (out, a, b)]
    np.bitwise_xor(this, other, out=new)
    np.multiply(new, condition.array, out=new)
    np.bitwise_xor(new, other, out=new)


def accumulator_dtype(dtype: DType) -> np.dtype:
    """What a sum of elements of `dtype` is kept in on the way."""
    # In float16 a sum of ones is stuck at 2048, where 2049 rounds back;
    # in float32 each of a million additions would round.
    return float64.numpy if dtype.is_float else dtype.numpy


def fold(function: np.ufunc,
         kept: Callable[[DType], np.dtype]) -> Callable[..., None]:
    """A reduction whose running values are of the dtype `kept` names."""
    def kernel(out: Buffer, x: Buffer, axes: tuple[int, ...]) -> None:
        wide = kept(x.dtype)
        into = out.array if wide is out.dtype.numpy else None
        result = function.reduce(x.array, axis=axes, dtype=wide, out=into,
                                 keepdims=True)
        # Rounded to a narrow dtype once, at the end.
        if into is None:
            np.copyto(out.array, result, casting="unsafe")
    return kernel


MOVE: dict[Op, Callable[[View, Any], View | None]] = {
    RESHAPE: View.reshape,
    PERMUTE: View.permute,
    EXPAND: View.expand,
    SHRINK: View.shrink,
    FLIP: View.flip,
}


@functools.lru_cache(maxsize=4096)
def moved(op: Op, view: View, arg: Any) -> View | None:
    """The view after a movement; None where only a copy can follow."""
    SHAPE[op](view, arg)
    return MOVE[op](view, arg)


def pad(out: Buffer, x: Buffer, margins: Any) -> None:
    out.array.fill(0)
    inner = tuple([(before, n - after, step) for n, (before, after, step)
                   in zip(out.shape, margins)])
    copy(out.moved(out.view.shrink(inner)), x)


def least_index(axis: int, n: int) -> int:
    """Along the first axis an index may count back from the end."""
    return 0 if axis else -n


def check_index(op: Op, index: Buffer, axis: int, n: int) -> None:
    values, least = index.array, least_index(axis, n)
    if values.size == 0:
        return
    low, high = [values.item(i) for i in (values.argmin(), values.argmax())]
    if low < least or high >= n:
        allowed = f"{least} to {n - 1}" if n else "none"
        raise IndexError(
            f"{op}: the index {low if low < least else high} is out of "
            f"range; an axis of length {n} allows {allowed} (axes indexed "
            f"together count as one)")


def in_rows(index: Buffer, axis: int, n: int) -> np.ndarray:
    """The index into the rows of `axis` and of those it shares."""
    if not axis:
        return index.array
    shared = index.shape[:axis]
    starts = (n * np.arange(math.prod(shared))).reshape(shared)
    return index.array + np.expand_dims(
        starts, tuple(range(axis, len(index.shape))))


def take_rows(out: Buffer, x: Buffer, index: Buffer, axis: int) -> None:
    """The kernel of GATHER, by NumPy."""
    n = x.shape[axis]
    check_index(GATHER, index, axis, n)
    rows = x.array.reshape(
        (math.prod(x.shape[:axis + 1]), *x.shape[axis + 1:]))
    if rows.flags.c_contiguous:
        rows.take(in_rows(index, axis, n), 0, out.array, "wrap")
    else:
        np.copyto(out.array, rows[in_rows(index, axis, n)])


def scatter(out: Buffer, x: Buffer, index: Buffer,
            arg: tuple[int, int]) -> None:
    axis, n = arg
    check_index(SCATTER, index, axis, n)
    rows = math.prod(out.shape[:axis + 1])
    sums = np.zeros((rows, *out.shape[axis + 1:]),
                    accumulator_dtype(x.dtype))
    # Not sums[index] += x, which adds once where a place is named twice.
    # In the dtype of the sums: between two dtypes add.at is slow.
    np.add.at(sums, in_rows(index, axis, n),
              x.array.astype(sums.dtype, copy=False))
    np.copyto(out.array, sums.reshape(out.shape), casting="unsafe")


ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: tuple[int, int], x0: np.ndarray,
             x1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds (Salmon et al., 2011), on uint32."""
    k = [np.uint32(key[0]), np.uint32(key[1])]
    # The constant of the paper: the three words are never all zero.
    k.append(k[0] ^ k[1] ^ np.uint32(0x1BD11BDA))
    x0, x1 = x0 + k[0], x1 + k[1]
    for block in range(5):
        for r in ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << np.uint32(r) | x1 >> np.uint32(32 - r))
        x0 = x0 + k[(block + 1) % 3]
        x1 = x1 + k[(block + 2) % 3] + np.uint32(block + 1)
    return x0, x1


LOW = 0xFFFFFFFF  # the lower half of 64 bits


def random(out: Buffer, key: Buffer, _: Any) -> None:
    """24 random bits an element, scaled to [0, 1)."""
    seed, start = [int(v) for v in key.array]
    n = out.view.size
    counter = np.arange(start, start + (n + 1) // 2, dtype=np.uint64)
    words = threefry((seed & LOW, seed >> 32 & LOW),
                     (counter & np.uint64(LOW)).astype(np.uint32),
                     (counter >> np.uint64(32)).astype(np.uint32))
    # 24, the significand of a float32: more could be rounded up to 1.
    bits = np.stack(words, axis=1).reshape(-1)[:n] >> np.uint32(8)
    flat = out.moved(View.dense((n,)))
    np.multiply(bits, np.float32(2.0 ** -24), out=flat.array)


def const(out: Buffer, arg: tuple[Any, DType, Shape]) -> None:
    value, dtype, _ = arg
    try:
        out.array.fill(value)
    except OverflowError:
        raise OverflowError(
            f"CONST: {value} does not fit {dtype}; cast the tensor "
            f"beside it to a wider dtype first") from None


def iota(out: Buffer, n: int) -> None:
    np.copyto(out.array, np.arange(n))


# `out` is the first operand's own memory: see Device.target.
def write(out: Buffer, _: Buffer, value: Buffer, arg: None) -> None:
    copy(out, value)


class Like(NamedTuple):
    """What the tables need to know of an operand."""

    shape: Shape
    dtype: DType


@functools.lru_cache(maxsize=4096)
def outcome(op: Op, arg: Any,
            *src: tuple[Shape, DType]) -> tuple[Shape, DType]:
    """The shape and dtype of what `op` makes of such operands."""
    operands = [Like(*kind) for kind in src]
    return SHAPE[op](*operands, arg), DTYPE[op](*operands, arg)


# Infinity and NaN are answers. To enter a context in which NumPy is silent
# costs next to nothing; np.errstate would be paid for by every call.
QUIET = contextvars.copy_context()
QUIET.run(np.seterr, all="ignore")

KERNELS: dict[Op, Callable[..., None]] = {
    EXP: ufunc(np.exp),
    LOG: ufunc(np.log),
    SIN: ufunc(np.sin),
    SQRT: ufunc(np.sqrt),
    ADD: ufunc(np.add),
    SUB: ufunc(np.subtract),
    MUL: ufunc(np.multiply),
    DIV: ufunc(np.divide),
    MAXIMUM: ufunc(np.maximum),
    LESS: ufunc(np.less),
    EQUAL: ufunc(np.equal),
    IDIV: ufunc(np.floor_divide),
    MOD: ufunc(np.remainder),
    AND: ufunc(np.bitwise_and),
    CAST: copy,
    POW: power_each,
    WHERE: select,
    SUM: fold(np.add, accumulator_dtype),
    MAX: fold(np.maximum, lambda dtype: dtype.numpy),
    PAD: pad,
    GATHER: take_rows,
    SCATTER: scatter,
    RANDOM: random,
    CONST: const,
    IOTA: iota,
    WRITE: write,
    MATMUL: matmul,
}


class Device:
    """The CPU: memory from NumPy, one kernel for each primitive.

    Another device is a subclass with a `name`, an `empty` that makes
    memory and `kernels` that fill it, an `adopt` and a `host` that copy
    from and to the host, and, if it replays programs, a `feed`. All
    else is shared. Of a buffer it needs the `view` (shape, strides and
    offset in elements; dense or not), the `dtype`, and the `storage`,
    whose `version` counts writes and whose `writable` allows them. Where
    memory may be planned again, subclasses keep no `array`, no `address`.
    """

    name = "cpu"
    empty = staticmethod(Buffer.empty)
    kernels = KERNELS

    def run(self, op: Op, *src: Buffer, arg: Any = None) -> Buffer:
        """Carry out `op`; the result is a new buffer or a new view."""
        if op in MOVE:
            return self.move(op, src[0], arg)
        if op is CONST:
            # -0.0 == 0.0, and a cache would give one for the other.
            return constant_buffer(self, arg, arg[0] or str(arg[0]))
        kernel = self.kernels.get(op) or self.missing(op)
        kind = outcome(op, arg, *[(s.view.shape, s.dtype) for s in src])
        out = self.target(src[0]) if op is WRITE else self.empty(*kind)
        # A copy: one context cannot be entered by two threads at once.
        QUIET.copy().run(kernel, out, *src, arg)
        return out

    def target(self, buffer: Buffer) -> Buffer:
        """The memory that a WRITE overwrites, one version older."""
        check_writable(buffer)
        # Before the write: one that fails half-way has changed it, too.
        buffer.storage.version += 1
        return buffer

    def move(self, op: Op, x: Buffer, arg: Any) -> Buffer:
        view = moved(op, x.view, arg)
        if view is not None:
            return x.moved(view)
        # Only a RESHAPE comes here. CAST to the dtype it has is a dense copy.
        return self.run(CAST, x, arg=x.dtype).moved(View.dense(arg))

    def missing(self, op: Op) -> NoReturn:
        raise NotImplementedError(
            f"{op} has no kernel on the device {self}; it has "
            f"{', '.join(sorted(map(str, self.kernels)))}")

    def __repr__(self) -> str:
        return self.name

    def adopt(self, array: np.ndarray) -> Buffer:
        """Host memory as a buffer of this device."""
        return adopt(array)

    def host(self, buffer: Buffer) -> Buffer:
        """The buffer in host memory: here itself, so that later writes
        show; on every other device a copy, which they do not change."""
        return buffer

    def __reduce__(self) -> tuple[Any, ...]:
        """By name: a copied or pickled tensor stays on its device."""
        return named, (self.name,)

    def feed(self, numbers: Callable[[], dict[str, np.ndarray]],
             ) -> dict[str, Buffer]:
        """What `numbers` returns now, on this device.

        A device that captures a program calls `numbers` again before
        each replay, and writes what it returns over these buffers. So
        `numbers` holds the object that it counts for by a `weakref.proxy`:
        one that was made inside the program is gone at the replay.
        """
        return {name: self.adopt(n) for name, n in numbers().items()}

    def twin(self, buffer: Buffer) -> Buffer:
        """The same elements, dense, in memory of their own."""
        return self.run(CAST, buffer, arg=buffer.dtype)

    def put(self, buffer: Buffer, values: Any) -> None:
        """Write over a dense buffer of this device: an array of the
        host, or a dense buffer of the host or of this device."""
        np.copyto(buffer.array, values)

    @property
    def type(self) -> str:
        """PyTorch's x.device.type."""
        return self.name


def check_writable(buffer: Buffer) -> None:
    if not buffer.storage.writable:
        raise ValueError("WRITE: the owner of this memory allows reading "
                         "only; clone the tensor first")


@functools.lru_cache(maxsize=4096)
def constant_buffer(device: Device, arg: tuple[Any, DType, Shape],
                    name: object) -> Buffer:
    """A constant; `name` tells −0.0 from 0.0, which are equal."""
    _, dtype, shape = arg
    one = device.empty((), known(dtype))
    QUIET.copy().run(device.kernels[CONST], one, arg)
    # All constants of this value share it: a write would change them.
    one.storage.writable = False
    return device.move(EXPAND, one, shape)


CPU = Device()
DEVICES = {"cpu": CPU}
READERS: dict[int, tuple[Device, Callable[[Any], Buffer]]] = {
    CPU_MEMORY: (CPU, from_dlpack)}  # by DLPack's kind of memory


def as_device(value: Any) -> Any:
    """`value`, if it runs primitives; a number, say, is refused."""
    if not hasattr(value, "run"):
        raise TypeError(f"device: expected a device or its name, such as "
                        f"'cpu'; got {value!r:.60}")
    return value


def named(device: Device | str) -> Device:
    """The device of that name, made when it is first asked for."""
    if not isinstance(device, str):
        return as_device(device)
    if device not in DEVICES and device not in DRIVERS:
        raise ValueError(f"device: expected one of "
                         f"{', '.join(DEVICES | DRIVERS)}; got {device!r}")
    with MAKING:
        if device not in DEVICES:
            made = import_module(DRIVERS[device]).connect(device)
            DEVICES[device] = made
    return DEVICES[device]


WALK = struct.Struct("11qP")


@functools.lru_cache(maxsize=4096)
def elementwise_params(threads: int, *views: View) -> bytes | None:
    """A `struct walk` of views of one shape; None where C has no loop."""
    size, none = views[0].size, (0,) * len(views)
    axes = coalesce(zip(views[0].shape, *[v.strides for v in views]))
    axes = axes if size else [(0, *none)]
    (m, *row), (n, *step) = [(1, *none)] * (2 - len(axes)) + axes[-2:]
    # Along a row C takes steps of 1, and 0 in one of two operands.
    if len(axes) > 2 or n > 1 and (max(step) > 1 or 1 not in step[1:3]
                                   or min(step) < 0 or 0 in step[3:]):
        return None
    rest = [0] * (4 - len(views))  # without a second operand, a mask
    # Measured: of two threads 16,384 sums are done no sooner than of one,
    # 32,768 are. In a smaller array, asking costs what the threads save.
    return WALK.pack(m, n, *row, *rest, *step, *rest,
                     threads if size > 1 << 15 else 1, POOL.address)


def compiled(file: str, dtype: DType, *flags: str) -> ctypes.CDLL | None:
    """A C file compiled for a dtype; None without a C compiler."""
    # Without the last two the compiler may not compute both sides of a
    # choice. Not -ffast-math, which promises that nothing is NaN.
    fast = "-O3", "-fno-math-errno", "-fno-trapping-math"
    return kernel_or_tell("loops are NumPy's, on one processor",
                          file, *fast, *flags, *FLAVOURS[dtype])


@functools.cache
def loop(name: str, dtype: DType) -> Callable[..., None] | None:
    """An elementwise loop in C; None where `dtype` has none."""
    library = compiled("kernels/loops.c", dtype) if dtype in FLOATS else None
    return unchecked(library, name, 4) if library else None


FLOATS = (float32, float64)  # what C computes in


def unchecked(library: ctypes.CDLL, name: str,
              addresses: int) -> Callable[..., None]:
    """A function of C that takes a structure's bytes and addresses."""
    function = getattr(library, name)
    function.argtypes = [ctypes.c_char_p] + [ctypes.c_void_p] * addresses
    function.restype = None
    return function


Kernel = Callable[..., None]


def two(name: str, otherwise: Kernel) -> Kernel:
    """A kernel of two operands: a loop of C, or `otherwise`."""
    def kernel(out: Buffer, x: Buffer, y: Buffer, _: None) -> None:
        # Under four thousand elements NumPy is as fast.
        each = loop(name, out.dtype) if out.array.size > 4000 else None
        job = each and elementwise_params(
            POOL.threads, out.view, x.view, y.view)
        if each and job:
            each(job, out.address, x.address, y.address, None)
        else:
            otherwise(out, x, y, _)
    return kernel


def one(name: str, otherwise: Kernel) -> Kernel:
    """A kernel of one operand: a loop of C, or `otherwise`."""
    def kernel(out: Buffer, x: Buffer, _: None) -> None:
        dtype = WIDE.get(x.dtype, x.dtype)
        each = loop(name, dtype)
        job = each and elementwise_params(POOL.threads, out.view, x.view)
        if each is None:
            otherwise(out, x, _)
        elif dtype is not x.dtype:
            wide, result = [Buffer.empty(x.shape, dtype) for _ in range(2)]
            copy(wide, x)
            kernel(result, wide, None)
            copy(out, result)
        elif job is None:
            kernel(out, x.copy(), None)
        else:
            each(job, out.address, x.address, x.address, None)
    return kernel


def choice(otherwise: Kernel) -> Kernel:
    """The kernel of WHERE: a loop of C, or `otherwise`."""
    # Only bits are moved: of what number they are does not matter.
    alike = {dtype.itemsize: dtype for dtype in FLOATS}

    def kernel(out: Buffer, mask: Buffer, x: Buffer, y: Buffer,
               _: None) -> None:
        dtype = alike.get(out.dtype.itemsize)
        each = dtype and out.array.size > 4000 and loop("choose", dtype)
        job = each and elementwise_params(
            POOL.threads, out.view, x.view, y.view, mask.view)
        if each and job:
            each(job, out.address, x.address, y.address, mask.address)
        else:
            otherwise(out, mask, x, y, _)
    return kernel


KERNELS |= {
    ADD: two("add", KERNELS[ADD]),
    SUB: two("subtract", KERNELS[SUB]),
    MUL: two("multiply", KERNELS[MUL]),
    DIV: two("divide", KERNELS[DIV]),
    MAXIMUM: two("maximum", KERNELS[MAXIMUM]),
    EXP: one("exponentiate", KERNELS[EXP]),
    WHERE: choice(KERNELS[WHERE]),
}

FOLD = struct.Struct("7qP")


@functools.lru_cache(maxsize=4096)
def reduction_params(x: View, out: View, threads: int) -> bytes | None:
    """A `struct fold`; None where x is no [outer, n, inner] for C."""
    # `out` stretched over x: along the folded axes its step is 0.
    axes = coalesce(zip(x.shape, x.strides, out.expand(x.shape).strides))
    folded = [i for i, (_, _, step) in enumerate(axes) if step == 0]
    if len(folded) != 1 or x.size == 0:
        return None
    (outer, far, _), *more = axes[:folded[0]] or [(1, 0, 0)]
    (inner, near, _), *rest = axes[folded[0] + 1:] or [(1, 1, 0)]
    if more or rest or near != 1:
        return None
    n, step, _ = axes[folded[0]]
    # By the shape, not by the threads: the bits stay the same. 4096 is C's
    # room for pieces; 8192 elements take longer than to fetch and join one.
    wanted = min(x.size >> 13, 4096 // out.size, 64)
    pieces = wanted if outer * ceil(inner, 32) < 16 and wanted > 1 else 1
    return FOLD.pack(outer, n, inner, far, step, min(pieces, n),
                     threads if x.size > 4 << 13 else 1, POOL.address)


@functools.cache
def folder(dtype: DType, *flags: str) -> Callable[..., None] | None:
    """The fold in C; None where `dtype` has none."""
    library = (compiled("kernels/folds.c", dtype, *flags)
               if dtype in FLOATS else None)
    return unchecked(library, "fold_all", 2) if library else None


def reduction_kernel(otherwise: Kernel, *flags: str) -> Kernel:
    """A reduction by C where it has floats and a shape for it."""
    def kernel(out: Buffer, x: Buffer, axes: tuple[int, ...]) -> None:
        whole = folder(x.dtype, *flags)
        job = whole and reduction_params(x.view, out.view, POOL.threads)
        if whole and job:
            whole(job, x.address, out.address)
        else:
            otherwise(out, x, axes)
    return kernel


KERNELS |= {SUM: reduction_kernel(KERNELS[SUM]),
            MAX: reduction_kernel(KERNELS[MAX], "-DMOST")}


def erf(out: Buffer, x: Buffer, _: None) -> None:
    """The error function, one element after another in Python."""
    slow = np.vectorize(math.erf, otypes=[np.float64])
    np.copyto(out.array, slow(x.array.astype(np.float64)), casting="unsafe")


KERNELS[ERF] = one("error_function", erf)


@functools.cache
def row_copier() -> Callable[..., int] | None:
    """The compiled `rows`; None without a C compiler."""
    library = kernel_or_tell("rows are copied by NumPy, on one processor",
                             "kernels/rows.c")
    if library is None:
        return None
    function = library.rows
    address, number = ctypes.c_void_p, ctypes.c_long  # unchecked
    function.argtypes = [address] * 3 + [number] * 4 + [address]
    return function


def try_copy_rows(out: Buffer, x: Buffer, at: Buffer) -> bool:
    """Whether the compiled `rows` has copied x[at] to `out`."""
    rows, n = row_copier(), at.view.size
    return rows is not None and n == rows(
        x.address, at.address, out.address, out.array.nbytes // n, n,
        x.shape[0], POOL.threads, POOL.address)


def rows_by_pool(otherwise: Kernel) -> Kernel:
    """The kernel of GATHER: large batches of dense rows by the pool."""
    def kernel(out: Buffer, x: Buffer, index: Buffer, axis: int) -> None:
        large = not axis and out.array.nbytes > 1 << 17
        if not (large and x.view.is_dense and index.dtype is int64
                and try_copy_rows(out, x, index.dense())):
            otherwise(out, x, index, axis)
    return kernel


KERNELS |= {GATHER: rows_by_pool(KERNELS[GATHER])}

DRIVERS = {"cuda": "companion.gpu", "emulated": "companion.gpu"}
MAKING = forkable(threading.Lock())


class Meeting(NamedTuple):
    """Places along an axis, and the taps that meet pixels from there."""

    places: range
    taps: range
    first: int  # the pixel under the first tap at the first place
    step: int  # pixels from place to place
    apart: int  # pixels from tap to tap

    def within(self, n: int) -> Iterator[Meeting]:
        """Cut where its taps leave a picture of n pixels."""
        def met(i: int) -> tuple[int, int]:
            at = self.first + i * self.step
            return (max(ceil(-at, self.apart), 0),
                    max(min(ceil(n - at, self.apart), len(self.taps)), 0))

        for (low, high), alike in groupby(range(len(self.places)), met):
            all_of = [*alike]
            first, last = all_of[0], all_of[-1]
            yield Meeting(
                self.places[first:last + 1], self.taps[low:high],
                self.first + first * self.step + low * self.apart,
                self.step, self.apart)


def meetings(window: Window, n: int, places: int, taps: int,
             ) -> list[Meeting]:
    """All places of an axis, in sets that meet pixels with the same taps.

    Where nothing is spread and no margin met there is one set. Other taps
    see zeros, whose products nobody needs.
    """
    stride, dilation, spread, before, _ = window
    turn = spread // math.gcd(stride, spread)
    skip = spread // math.gcd(dilation, spread)
    met = {(before - i * dilation) % spread: i
           for i in range(min(skip, taps))}
    found = list[Meeting]()
    for r in range(min(turn, places)):
        first = met.get(r * stride % spread, taps)
        found += Meeting(
            range(r, places, turn), range(first, taps, skip),
            (r * stride + first * dilation - before) // spread,
            turn * stride // spread, skip * dilation // spread).within(n)
    return [each for each in found if each.taps]


MOST_PLACES = 1020  # MC in kernels/conv.c
Sets = list[tuple[Meeting, ...]]


def sets_of(windows: Sequence[Window], x: Shape, w: Shape, y: Shape) -> Sets:
    """Places that meet the same taps, along the height and the width."""
    return [*product(*map(meetings, windows, x[3:], y[3:], w[3:]))]


def counted(n: int, sets: Sets) -> list[int]:
    """How many places each set has in n pictures."""
    return [n * math.prod([len(a.places) for a in each]) for each in sets]


def shares(places: list[int], taps: int, groups: int, channels: int,
           ) -> tuple[list[int], int]:
    """Places in a chunk, for each set, and pieces of the taps."""
    # By the shape, not by the threads: the bits stay the same. Sixteen
    # tasks are enough for all, and sums of a million numbers in pieces.
    total = sum(places) * groups
    least = max(ceil(total, 16), 120)
    wanted = [max(ceil(n, min(least, MOST_PLACES)), 1) for n in places]
    rows = [max(ceil(ceil(n, m), MR), 1) * MR for n, m in zip(places, wanted)]
    most = (1 << 20) // max(total * channels, 1)
    return rows, max(min(16, taps >> 10, most), 1)


def framed(windows: Sequence[Window], x: Shape, w: Shape, y: Shape,
           ) -> tuple[tuple[tuple[int, int, int], ...], tuple[Window, ...]]:
    """What to PAD, and the windows on that, which need no more margin."""
    margins, found = [(0, 0, 1)] * 3, []
    for (s, d, t, before, _), n, k, m in zip(windows, x[3:], w[3:], y[3:]):
        s, d = s if m > 1 else 1, d if k > 1 else 1  # the lone go nowhere
        lead = ceil(max(before, 0), t)
        start, last = lead * t - before, (m - 1) * s + d * (k - 1)
        behind = max((start + last) // t + 1 - lead - n, 0)
        end = (lead + n + behind - 1) * t
        margins.append((lead, behind, 1))
        found.append(Window(s, d, t, -start, start + last - end))
    return tuple(margins), tuple(found)


Axes = list[tuple[int, int, int]]
SET = struct.Struct("25q")


def nearest_last(axes: Axes) -> list[int]:
    """The order in which neighbours share a line of the cache."""
    # A lone one has no next, however far away that would be.
    return sorted(range(len(axes)), key=lambda i: -abs(axes[i][1])
                  if axes[i][0] > 1 else 0)


def ordered(axes: Axes, order: Sequence[int]) -> Iterator[int]:
    return chain(*[axes[i] if axes[i][0] > 1 else (axes[i][0], 0, 0)
                   for i in order])


def set_part(x: View, y: View, taps: Axes, order: Sequence[int],
             each: tuple[Meeting, ...], cuts: Sequence[int]) -> bytes:
    """A `struct set`; `taps` are told with their steps among the packed."""
    (xn, _, xc, *xs), (yn, _, _, *ys) = x.strides, y.strides
    places = [(x.shape[0], xn, yn), *[
        (len(a.places), a.step * i, a.places.step * j)
        for a, i, j in zip(each, xs, ys)]]
    met = [(taps[0][0], xc, taps[0][2]), *[
        (len(a.taps), a.apart * i, a.taps.step * step)
        for a, i, (*_, step) in zip(each, xs, taps[1:])]]
    starts = [sum(map(operator.mul, ats, steps)) for ats, steps in (
        ([a.first for a in each], xs),
        ([a.taps.start for a in each], [step for *_, step in taps[1:]]),
        ([a.places.start for a in each], ys))]
    return SET.pack(*starts, *ordered(places, nearest_last(places)),
                    *ordered(met, order), *cuts)


CONVOLUTION = struct.Struct("21qP")


def packed_taps(x: View, w: View, windows: Sequence[Window],
                ) -> tuple[Axes, list[int]]:
    """Lengths, steps in w and steps among the packed; and their order."""
    steps = [x.strides[2], *[a.dilation * step for a, step in zip(
        windows, x.strides[3:])]]
    order = nearest_last([*zip(w.shape[2:], steps, steps)])
    packed = dict(zip(order, View.dense(
        tuple([w.shape[2 + i] for i in order])).strides))
    return [(n, step, packed[i]) for i, (n, step) in enumerate(
        zip(w.shape[2:], w.strides[2:]))], order


def parts(x: View, w: View, y: View, windows: Sequence[Window], sets: Sets,
          threads: int) -> bytes:
    """A `struct conv`, and its sets."""
    places, (groups, o) = counted(x.shape[0], sets), w.shape[:2]
    (taps, order), k = packed_taps(x, w, windows), math.prod(w.shape[2:])
    rows, pieces = shares(places, k, groups, o)
    chunks = [ceil(n, m) for n, m in zip(places, rows)]
    last = [*accumulate(chunks)]
    met = [w.shape[2] * math.prod([len(a.taps) for a in each])
           for each in sets]
    cuts = zip(rows, [max(ceil(n, pieces), 1) for n in met],
               map(operator.sub, last, chunks), last)
    blank = 0 if sum(places) * groups * o == y.size else y.size
    head = CONVOLUTION.pack(
        blank, groups, x.strides[1], w.strides[0], y.strides[1],
        *ordered(taps, order), o, w.strides[1], y.strides[2],
        max(rows, default=0), pieces, sum(chunks),
        threads if y.size * k > WORTH_SHARING else 1, POOL.address)
    return head + b"".join([
        set_part(x, y, taps, order, *both) for both in zip(sets, cuts)])


FRAME = struct.Struct("14qP")


def frame_part(x: View, margins: Sequence[tuple[int, int, int]],
               threads: int) -> bytes:
    """A `struct frame`, for pictures that get `margins`."""
    (top, bottom, _), (left, behind, _) = margins[3:]
    (h, w), wide = x.shape[3:], left + x.shape[4] + behind
    return FRAME.pack(
        *x.shape[:3], *x.strides[:3], h, w, *x.strides[3:],
        (top + h + bottom) * wide, wide, top * wide + left,
        threads if x.size > 1 << 14 else 1, POOL.address)


FEW_PLACES = 16


@functools.lru_cache(maxsize=4096)
def convolution_job(x: View, w: View, windows: tuple[Window, ...],
                    threads: int) -> bytes:
    """What `convolve` in C is told."""
    y = View.dense(SHAPE[CONV](x, w, windows))
    frame = bytes(FRAME.size)
    sets = sets_of(windows, x.shape, w.shape, y.shape)
    if min(counted(x.shape[0], sets), default=FEW_PLACES) < FEW_PLACES:
        margins, inside = framed(windows, x.shape, w.shape, y.shape)
        wide = View.dense(SHAPE[PAD](x, margins))
        # A margin of zeros without end is better met by small sets.
        if x.shape != wide.shape and wide.size < min(
                4 * x.size, sys.maxsize >> 6):
            frame, x = frame_part(x, margins, threads), wide
            windows, sets = inside, sets_of(
                inside, x.shape, w.shape, y.shape)
    return frame + parts(x, w, y, windows, sets, threads)


@functools.cache
def convolver(dtype: DType, narrow: bool) -> Callable[..., int] | None:
    """`convolve` in C; `narrow`: for answers of few channels."""
    flags = ("-DNARROW",) if narrow else ()
    library = kernel_or_tell("convolutions are products of columns",
                             "kernels/conv.c", *flags, *FLAVOURS[dtype])
    if library is None:
        return None
    function: Any = unchecked(library, "convolve", 3)
    function.restype = ctypes.c_int  # whether there was memory enough
    return function


def convolver_of(w: Shape, dtype: DType) -> Callable[..., int] | None:
    # Of a vector of 64 bytes eight floats would leave half unused.
    return convolver(dtype, w[1] * dtype.itemsize <= 32)


def convolve_by_columns(device: Device, out: Buffer, x: Buffer, w: Buffer,
                        windows: Sequence[Window]) -> None:
    """CONV where it is no kernel: windows copied, a product a group."""
    margins = [(max(a.before, 0), max(a.after, 0), a.spread) for a in windows]
    x = device.run(PAD, x, arg=((0, 0, 1),) * 3 + tuple(margins))
    (n, groups, _, *places), (_, o, c, *kernel) = out.shape, w.shape
    xn, xg, xc, *steps = x.view.strides
    columns = x.moved(View(
        (groups, c, *kernel, n, *places),
        (xg, xc, *[a.dilation * i for a, i in zip(windows, steps)],
         xn, *[a.stride * i for a, i in zip(windows, steps)]),
        x.view.offset + sum([
            max(-a.before, 0) * i for a, i in zip(windows, steps)])))
    taps, size = c * math.prod(kernel), n * math.prod(places)
    rows = device.run(CAST, columns, arg=x.dtype).moved(
        View.dense((groups, taps, size)))
    y = device.run(MATMUL, device.run(RESHAPE, w, arg=(groups, o, taps)),
                   rows).moved(View.dense((groups, o, n, *places)))
    device.kernels[CAST](out, y.moved(y.view.permute((2, 0, 1, 3, 4))),
                         out.dtype)


def convolve(out: Buffer, x: Buffer, w: Buffer,
             windows: tuple[Window, ...]) -> None:
    """The kernel of CONV: in C, or by columns."""
    dtype = WIDE.get(out.dtype, out.dtype)
    function = convolver_of(w.shape, dtype)
    if function is None:
        convolve_by_columns(CPU, out, x, w, windows)
        return
    narrow, total = dtype is not out.dtype, out
    if narrow:  # rounded once, at the end
        x, w = cast_copy(x, dtype), cast_copy(w, dtype)
        total = Buffer.empty(out.shape, dtype)
    job = convolution_job(x.view, w.view, windows, POOL.threads)
    if not function(job, x.address, w.address, total.address):
        raise MemoryError(f"CONV: no memory for a frame around {x.shape}, or "
                          f"for the parts of {out.shape}")
    if narrow:
        copy(out, total)


KERNELS |= {CONV: convolve}

SUMS = struct.Struct("5qP")


@functools.cache
def scatterer(dtype: DType) -> Callable[..., None] | None:
    """The compiled `sum_rows`; None where `dtype` has none."""
    library = (compiled("kernels/sums.c", dtype) if dtype in FLOATS
               else None)
    return unchecked(library, "sum_rows", 4) if library else None


def scatters(otherwise: Kernel) -> Kernel:
    """The kernel of SCATTER: each row adds up what is for it."""
    def kernel(out: Buffer, x: Buffer, index: Buffer,
               arg: tuple[int, int]) -> None:
        each, (axis, n) = scatterer(out.dtype), arg
        if each is None or out.view.size == 0:
            otherwise(out, x, index, arg)
            return
        check_index(SCATTER, index, axis, n)
        at = adopt(np.ascontiguousarray(in_rows(index, axis, n), np.int64))
        rows, source = math.prod(out.shape[:axis + 1]), x.dense()
        links = Buffer.empty((rows + at.view.size,), int64)
        few = x.view.size + out.view.size < 1 << 15
        threads = 1 if few else POOL.threads
        job = SUMS.pack(at.view.size, rows, out.view.size // rows,
                        8 * threads, threads, POOL.address)
        each(job, source.address, at.address, links.address, out.address)
    return kernel


KERNELS |= {SCATTER: scatters(KERNELS[SCATTER])}


def weights_of(q: np.ndarray, k: np.ndarray, mask: np.ndarray,
               arg: tuple[float, bool, float],
               ) -> tuple[np.ndarray, np.ndarray]:
    """The weights of attention, and the logarithms of their sums."""
    scale, causal, _ = arg
    seen = mask & np.tri(*mask.shape[-2:], dtype=np.bool_) if causal else mask
    scores = np.where(seen, q @ k.swapaxes(-1, -2) * scale, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(top == -np.inf, 0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total), top + np.log(total)


def thinned_array(x: np.ndarray, kept: np.ndarray, keep: float) -> np.ndarray:
    return np.where(kept, x / keep, 0)


def numpy_attention(out: Buffer, q: Buffer, k: Buffer, v: Buffer,
                    mask: Buffer, kept: Buffer,
                    arg: tuple[float, bool, float]) -> None:
    """ATTENTION with all weights in memory: without a C compiler."""
    weights, logarithm = weights_of(q.array, k.array, mask.array, arg)
    out.array[..., :-1] = thinned_array(weights, kept.array, arg[2]) @ v.array
    out.array[..., -1:] = logarithm


def numpy_attention_back(
        out: Buffer, g: Buffer, y: Buffer, q: Buffer, k: Buffer, v: Buffer,
        mask: Buffer, kept: Buffer, arg: tuple[float, bool, float]) -> None:
    """ATTENTION_GRADIENT, likewise."""
    weights, _ = weights_of(q.array, k.array, mask.array, arg)
    left = partial(thinned_array, kept=kept.array, keep=arg[2])
    dy, means, rest = g.array[..., :-1], y.array[..., :-1], g.array[..., -1:]
    delta = (dy * means).sum(-1, keepdims=True) - rest
    dp = left(dy @ v.array.swapaxes(-1, -2))
    ds = weights * (dp - delta) * arg[0]
    out.array[...] = np.concatenate([
        ds @ k.array, ds.swapaxes(-1, -2) @ q.array,
        left(weights).swapaxes(-1, -2) @ dy], axis=-2)


HEADS = struct.Struct("12q48qqdd")
CREW = struct.Struct("qP")  # threads, and the pool they come from
WIDEST = 256  # MOST in kernels/attention.c


@functools.lru_cache(maxsize=4096)
def attention_layout(q: View, k: View, v: View, mask: View, kept: View,
                     scale: float, causal: bool, keep: float) -> bytes:
    """The sizes and steps with which a `struct attention` begins."""
    *stack, n, d = q.shape
    axes = coalesce(zip(stack, *[
        x.strides[:-2] for x in (q, k, v, mask, kept)]))
    if len(axes) > 8:
        raise ValueError(f"ATTENTION: {len(axes)} axes before the last two "
                         f"of {q.shape}; expected at most 8: flatten")
    return HEADS.pack(
        math.prod(stack), n, k.shape[-2], d,
        *[x.strides[-2] for x in (q, k, v)],
        *mask.strides[-2:], *kept.strides[-2:], len(axes), *chain(*axes),
        *[0] * (48 - 6 * len(axes)), causal, scale, keep)


def side_by_side(x: Buffer) -> Buffer:
    """Itself where the elements of a row lie side by side, else a copy."""
    return x if x.view.strides[-1] == 1 else x.copy()


@functools.cache
def attender(name: str, dtype: DType, addresses: int) -> Any:
    """A function of kernels/attention.c; None without a C compiler."""
    library = compiled("kernels/attention.c", dtype)
    if library is None:
        return None
    function: Any = unchecked(library, name, addresses)
    function.restype = ctypes.c_int  # whether there was memory enough
    return function


def attends(name: str, otherwise: Kernel) -> Kernel:
    """A kernel in C of (…, q, k, v, mask, kept), or `otherwise`."""
    def kernel(out: Buffer, *src: Any) -> None:
        *before, q, k, v, mask, kept, arg = src
        function = attender(name, out.dtype, len(src))
        if function is None or q.shape[-1] > WIDEST:
            otherwise(out, *src)
            return
        q, k, v = map(side_by_side, (q, k, v))
        heads = q, k, v, mask, kept
        job = attention_layout(*[x.view for x in heads], *arg)
        small = q.view.size * k.shape[-2] < 1 << 18
        job += CREW.pack(1 if small else POOL.threads, POOL.address)
        # By name, so that copies live until C has read them.
        dense = [x.dense() for x in before]
        if not function(job, *[x.address for x in (*dense, *heads, out)]):
            raise MemoryError(f"ATTENTION: no memory for the gradients of a "
                              f"head of {k.shape[-2]:,} keys")
    return kernel


KERNELS |= {ATTENTION: attends("attend", numpy_attention),
            ATTENTION_GRADIENT: attends("attend_back",
                                       numpy_attention_back)}

DRIVERS |= {"lazy": "companion.compiler.lazy"}

DRIVERS |= dict.fromkeys(["lazy cuda", "lazy emulated"],
                         "companion.compiler.launch")


class Devices(ModuleType):
    """This module, which answers to torch.device("cpu"), too."""

    def __call__(self, name: Device | str) -> Device:
        # There is one card: "cuda:0" is "cuda".
        return named(name.removesuffix(":0") if isinstance(name, str)
                     else name)


sys.modules[Device.__module__].__class__ = Devices
