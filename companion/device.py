# Tangled from operations, blas, activations, autograd, data, gpu: edit there, `make tangle`. sha256:fd60867c74fe  # noqa: E501
"""A device runs primitives on buffers.  This one is the CPU."""

from __future__ import annotations

import contextvars
import ctypes
import functools
import math
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import numpy as np

from companion.blas import FLAVOURS, WIDE, matmul, tell
from companion.buffer import CPU_MEMORY, Buffer, adopt, from_dlpack
from companion.dtype import DType, bfloat16, float16, float32, int64
from companion.native import POOL, CompileError, kernel
from companion.ops import (
    ADD,
    CAST,
    CONST,
    DTYPE,
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
    NEG,
    PAD,
    PERMUTE,
    RANDOM,
    RECIP,
    RESHAPE,
    SCATTER,
    SHAPE,
    SHRINK,
    SIN,
    SQRT,
    SUM,
    WHERE,
    WRITE,
    Op,
    known,
)
from companion.view import Shape, View


# chapters/tensors/operations.md:431
def ufunc(function: np.ufunc) -> Callable[..., None]:
    """A NumPy elementwise loop of one or two operands as a kernel."""
    def one(out: Buffer, x: Buffer, _: None) -> None:
        function(x.array, out=out.array)

    def two(out: Buffer, x: Buffer, y: Buffer, _: None) -> None:
        function(x.array, y.array, out=out.array)
    return one if function.nin == 1 else two


# chapters/tensors/operations.md:444
KERNELS: dict[Op, Callable[..., None]] = {
    NEG: ufunc(np.negative),
    RECIP: ufunc(np.reciprocal),
    EXP: ufunc(np.exp),
    LOG: ufunc(np.log),
    SIN: ufunc(np.sin),
    SQRT: ufunc(np.sqrt),
    ADD: ufunc(np.add),
    MUL: ufunc(np.multiply),
    MAXIMUM: ufunc(np.maximum),
    LESS: ufunc(np.less),
    EQUAL: ufunc(np.equal),
    IDIV: ufunc(np.floor_divide),
    MOD: ufunc(np.remainder),
}


# chapters/tensors/operations.md:466
def copy(out: Buffer, x: Buffer, _: Any = None) -> None:
    np.copyto(out.array, x.array, casting="unsafe")


KERNELS[CAST] = copy

# chapters/tensors/operations.md:522
BITS = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}


# chapters/tensors/operations.md:525
def select(out: Buffer, condition: Buffer, a: Buffer, b: Buffer,
           _: None) -> None:
    """b, or a where the condition holds: bit by bit, without a branch."""
    bits = BITS[out.dtype.itemsize]
    new, this, other = [x.array.view(bits) for x in (out, a, b)]
    np.bitwise_xor(this, other, out=new)
    np.multiply(new, condition.array, out=new)
    np.bitwise_xor(new, other, out=new)


KERNELS[WHERE] = select

# chapters/tensors/operations.md:564
HALVES = (float16, bfloat16)


# chapters/tensors/operations.md:567
def running(dtype: DType) -> np.dtype:
    """What a sum of elements of `dtype` is kept in on the way."""
    return float32.numpy if dtype in HALVES else dtype.numpy


# chapters/tensors/operations.md:572
def fold(function: np.ufunc) -> Callable[..., None]:
    """A reduction; halves accumulate in float32."""
    def kernel(out: Buffer, x: Buffer, axes: tuple[int, ...]) -> None:
        wide = running(x.dtype)
        into = out.array if wide is out.dtype.numpy else None
        result = function.reduce(x.array, axis=axes, dtype=wide, out=into,
                                 keepdims=True)
        if into is None:
            np.copyto(out.array, result, casting="unsafe")
    return kernel


KERNELS[SUM], KERNELS[MAX] = fold(np.add), fold(np.maximum)

# chapters/tensors/operations.md:600
MOVE: dict[Op, Callable[[View, Any], View | None]] = {
    RESHAPE: View.reshape,
    PERMUTE: View.permute,
    EXPAND: View.expand,
    SHRINK: View.shrink,
    FLIP: View.flip,
}


# chapters/tensors/operations.md:609
@functools.lru_cache(maxsize=4096)
def moved(op: Op, view: View, arg: Any) -> View | None:
    """The view after a movement; None where only a copy can follow."""
    SHAPE[op](view, arg)
    return MOVE[op](view, arg)


# chapters/tensors/operations.md:623
def pad(out: Buffer, x: Buffer, margins: Any) -> None:
    out.array.fill(0)
    inner = tuple([(before, n - after, step) for n, (before, after, step)
                   in zip(out.shape, margins)])
    copy(out.moved(out.view.shrink(inner)), x)


KERNELS[PAD] = pad


# chapters/tensors/operations.md:640
def check_index(op: Op, index: Buffer, n: int) -> None:
    values = index.array
    if values.size == 0:
        return
    low, high = [values.item(i) for i in (values.argmin(), values.argmax())]
    if low < -n or high >= n:
        allowed = f"{-n} to {n - 1}" if n else "none"
        raise IndexError(
            f"{op}: the index {low if low < -n else high} is out of "
            f"range; an axis of length {n} allows {allowed} (axes indexed "
            f"together count as one)")


# chapters/gradients/data.md:437
def take_rows(out: Buffer, x: Buffer, index: Buffer, _: None) -> None:
    """The kernel of GATHER: large batches of dense rows by the pool."""
    dense, large = x.array.flags.c_contiguous, out.array.nbytes > 1 << 17
    if (large and dense and index.dtype is int64
            and copied(out, x, index.dense())):
        return
    check_index(GATHER, index, x.shape[0])
    if dense:
        x.array.take(index.array, 0, out.array, "wrap")
    else:
        np.copyto(out.array, x.array[index.array])


# chapters/gradients/data.md:423
def copied(out: Buffer, x: Buffer, at: Buffer) -> bool:
    """Whether the compiled `rows` has copied x[at] to `out`."""
    rows, n = row_copier(), at.view.size
    return rows is not None and n == rows(
        x.address, at.address, out.address, out.array.nbytes // n, n,
        x.shape[0], POOL.threads, POOL.address)


# chapters/gradients/data.md:410
@functools.cache
def row_copier() -> Callable[..., int] | None:
    """The compiled `rows`; None without a C compiler."""
    try:
        function = kernel("kernels/rows.c").rows
    except (CompileError, OSError) as error:
        tell(f"rows are copied by NumPy, on one processor: {error}")
        return None
    address, number = ctypes.c_void_p, ctypes.c_long  # unchecked
    function.argtypes = [address] * 3 + [number] * 4 + [address]
    return function


# chapters/tensors/operations.md:661
KERNELS[GATHER] = take_rows


# chapters/tensors/operations.md:677
def scatter(out: Buffer, x: Buffer, index: Buffer, n: int) -> None:
    check_index(SCATTER, index, n)
    sums = np.zeros(out.shape, running(x.dtype))
    np.add.at(sums, index.array, x.array)
    np.copyto(out.array, sums, casting="unsafe")


KERNELS[SCATTER] = scatter


# chapters/tensors/operations.md:700
def const(out: Buffer, arg: tuple[Any, DType, Shape]) -> None:
    value, dtype, _ = arg
    try:
        out.array.fill(value)
    except OverflowError:
        raise OverflowError(
            f"CONST: {value} does not fit {dtype}; cast the tensor "
            f"beside it to a wider dtype first") from None


# chapters/tensors/operations.md:710
def iota(out: Buffer, n: int) -> None:
    np.copyto(out.array, np.arange(n))


# chapters/tensors/operations.md:714
def write(out: Buffer, _: Buffer, value: Buffer, arg: None) -> None:
    copy(out, value)


KERNELS[CONST], KERNELS[IOTA], KERNELS[WRITE] = const, iota, write


# chapters/tensors/operations.md:726
class Like(NamedTuple):
    """What the tables need to know of an operand."""

    shape: Shape
    dtype: DType


# chapters/tensors/operations.md:733
@functools.lru_cache(maxsize=4096)
def outcome(op: Op, arg: Any,
            *src: tuple[Shape, DType]) -> tuple[Shape, DType]:
    """The shape and dtype of what `op` makes of such operands."""
    operands = [Like(*kind) for kind in src]
    return SHAPE[op](*operands, arg), DTYPE[op](*operands, arg)


# chapters/tensors/operations.md:746
QUIET = contextvars.copy_context()
QUIET.run(np.seterr, all="ignore")


# chapters/tensors/operations.md:750
class Device:
    """The CPU: memory from NumPy, one kernel for each primitive."""

    name = "cpu"
    empty = staticmethod(Buffer.empty)
    kernels = KERNELS

    def run(self, op: Op, *src: Buffer, arg: Any = None) -> Buffer:
        """Carry out `op`; the result is a new buffer or a new view."""
        if op in MOVE:
            return self.move(op, src[0], arg)
        if op is CONST:
            return repeated(self, arg, arg[0] or str(arg[0]))
        kernel = self.kernels.get(op) or self.missing(op)
        kind = outcome(op, arg, *[(s.view.shape, s.dtype) for s in src])
        out = self.target(src[0]) if op is WRITE else self.empty(*kind)
        QUIET.copy().run(kernel, out, *src, arg)
        return out

    # chapters/gradients/autograd.md:1017
    def target(self, buffer: Buffer) -> Buffer:
        """The memory that a WRITE overwrites, one version older."""
        check_writable(buffer)
        buffer.storage.version += 1
        return buffer

    # chapters/tensors/operations.md:796
    def move(self, op: Op, x: Buffer, arg: Any) -> Buffer:
        view = moved(op, x.view, arg)
        if view is not None:
            return x.moved(view)
        return self.run(CAST, x, arg=x.dtype).moved(View.dense(arg))

    def missing(self, op: Op) -> NoReturn:
        raise NotImplementedError(
            f"{op} has no kernel on the device {self}; it has "
            f"{', '.join(sorted(map(str, self.kernels)))}")

    def __repr__(self) -> str:
        return self.name

    # chapters/tensors/operations.md:836
    def adopt(self, array: np.ndarray) -> Buffer:
        """Host memory as a buffer of this device."""
        return adopt(array)

    def host(self, buffer: Buffer) -> Buffer:
        """The buffer in host memory; on the CPU it is there already."""
        return buffer

    # chapters/tensors/operations.md:868
    def __reduce__(self) -> tuple[Any, ...]:
        """By name: a copied or pickled tensor stays on its device."""
        return named, (self.name,)


# chapters/tensors/operations.md:775
def check_writable(buffer: Buffer) -> None:
    if not buffer.storage.writable:
        raise ValueError("WRITE: the owner of this memory allows reading "
                         "only; clone the tensor first")


# chapters/tensors/operations.md:811
@functools.lru_cache(maxsize=4096)
def repeated(device: Device, arg: tuple[Any, DType, Shape],
             name: object) -> Buffer:
    """A constant; `name` tells −0.0 from 0.0, which are equal."""
    _, dtype, shape = arg
    one = device.empty((), known(dtype))
    QUIET.copy().run(device.kernels[CONST], one, arg)
    one.storage.writable = False
    return device.move(EXPAND, one, shape)


# chapters/tensors/operations.md:845
CPU = Device()
DEVICES = {"cpu": CPU}
READERS: dict[int, tuple[Device, Callable[[Any], Buffer]]] = {
    CPU_MEMORY: (CPU, from_dlpack)}  # by DLPack's kind of memory


# chapters/gradients/gpu.md:1580
def named(device: Device | str) -> Device:
    """The device of that name, made when it is first asked for."""
    if not isinstance(device, str):
        return device
    if device not in DEVICES and device not in DRIVERS:
        raise ValueError(f"device: expected one of "
                         f"{', '.join(DEVICES | DRIVERS)}; got {device!r}")
    with MAKING:
        if device not in DEVICES:
            made = import_module(DRIVERS[device]).connect(device)
            DEVICES[device] = made
    return DEVICES[device]


# chapters/tensors/operations.md:2140
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


# chapters/tensors/operations.md:2143
def threefry(key: tuple[int, int], x0: np.ndarray,
             x1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds (Salmon et al., 2011), on uint32."""
    k = [np.uint32(key[0]), np.uint32(key[1])]
    k.append(k[0] ^ k[1] ^ np.uint32(0x1BD11BDA))
    x0, x1 = x0 + k[0], x1 + k[1]
    for block in range(5):
        for r in ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << np.uint32(r) | x1 >> np.uint32(32 - r))
        x0 = x0 + k[(block + 1) % 3]
        x1 = x1 + k[(block + 2) % 3] + np.uint32(block + 1)
    return x0, x1


# chapters/tensors/operations.md:2180
LOW = 0xFFFFFFFF  # the lower half of 64 bits


# chapters/tensors/operations.md:2183
def random(out: Buffer, key: Buffer, _: Any) -> None:
    """24 random bits an element, scaled to [0, 1)."""
    seed, start = [int(v) for v in key.array]
    n = out.view.size
    counter = np.arange(start, start + (n + 1) // 2, dtype=np.uint64)
    words = threefry((seed & LOW, seed >> 32 & LOW),
                     (counter & np.uint64(LOW)).astype(np.uint32),
                     (counter >> np.uint64(32)).astype(np.uint32))
    bits = np.stack(words, axis=1).reshape(-1)[:n] >> np.uint32(8)
    flat = out.moved(View.dense((n,)))
    np.multiply(bits, np.float32(2.0 ** -24), out=flat.array)


KERNELS[RANDOM] = random

# chapters/tensors/blas.md:1788
KERNELS[MATMUL] = matmul


# chapters/tensors/activations.md:506
@functools.cache
def erf_for(dtype: DType) -> Callable[..., None] | None:
    """The compiled function for a dtype; None without a C compiler."""
    try:
        return kernel("kernels/erf.c", *FLAVOURS[dtype]).erf_each
    except CompileError as error:
        tell(f"erf is computed one by one in Python: {error}")
        return None


# chapters/tensors/activations.md:519
def erf(out: Buffer, x: Buffer, _: None) -> None:
    """The kernel of ERF."""
    dtype = WIDE.get(x.dtype, x.dtype)
    dense, result = x.dense(), out
    if x.dtype is not dtype:
        dense = result = Buffer.empty(x.shape, dtype)
        copy(dense, x)
    function = erf_for(dtype)
    if function is None:
        slow = np.vectorize(math.erf, otypes=[dtype.numpy])
        np.copyto(result.array, slow(dense.array))
    else:
        function(x.view.size, dense, result)
    if result is not out:
        copy(out, result)


KERNELS[ERF] = erf

# chapters/gradients/gpu.md:1571
DRIVERS = {"cuda": "companion.gpu", "emulated": "companion.gpu"}
MAKING = threading.Lock()
