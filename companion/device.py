# Tangled from operations, blas, activations, autograd: edit there, `make tangle`. sha256:aa1f7d85ca4b  # noqa: E501
"""A device runs primitives on buffers.  This one is the CPU."""

from __future__ import annotations

import contextvars
import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from companion.blas import FLAVOURS, WIDE, matmul, tell, widened
from companion.buffer import Buffer, adopt
from companion.dtype import DType, bfloat16, float16, float32
from companion.native import CompileError, kernel
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
)
from companion.view import View


# chapters/tensors/operations.md:428
def ufunc(function: np.ufunc) -> Callable[..., None]:
    """A NumPy elementwise loop of one or two operands as a kernel."""
    def one(out: Buffer, x: Buffer, _: None) -> None:
        function(x.array, out=out.array)

    def two(out: Buffer, x: Buffer, y: Buffer, _: None) -> None:
        function(x.array, y.array, out=out.array)
    return one if function.nin == 1 else two


# chapters/tensors/operations.md:441
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


# chapters/tensors/operations.md:463
def copy(out: Buffer, x: Buffer, _: Any = None) -> None:
    np.copyto(out.array, x.array, casting="unsafe")


# chapters/tensors/operations.md:467
def select(out: Buffer, condition: Buffer, a: Buffer, b: Buffer,
           _: None) -> None:
    np.copyto(out.array, b.array)
    np.copyto(out.array, a.array, where=condition.array)


KERNELS[CAST], KERNELS[WHERE] = copy, select

# chapters/tensors/operations.md:503
HALVES = (float16, bfloat16)


# chapters/tensors/operations.md:506
def running(dtype: DType) -> np.dtype:
    """What a sum of elements of `dtype` is kept in on the way."""
    return float32.numpy if dtype in HALVES else dtype.numpy


# chapters/tensors/operations.md:511
def fold(function: np.ufunc) -> Callable[..., None]:
    """A reduction; halves accumulate in float32."""
    def kernel(out: Buffer, x: Buffer, axes: tuple[int, ...]) -> None:
        result = function.reduce(
            x.array, axis=axes, keepdims=True, dtype=running(x.dtype))
        np.copyto(out.array, result, casting="unsafe")
    return kernel


KERNELS[SUM], KERNELS[MAX] = fold(np.add), fold(np.maximum)

# chapters/tensors/operations.md:536
MOVE: dict[Op, Callable[[View, Any], View | None]] = {
    RESHAPE: View.reshape,
    PERMUTE: View.permute,
    EXPAND: View.expand,
    SHRINK: View.shrink,
    FLIP: View.flip,
}


# chapters/tensors/operations.md:545
@functools.lru_cache(maxsize=4096)
def moved(op: Op, view: View, arg: Any) -> View | None:
    """The view after a movement; None where only a copy can follow."""
    SHAPE[op](view, arg)
    return MOVE[op](view, arg)


# chapters/tensors/operations.md:559
def pad(out: Buffer, x: Buffer, margins: Any) -> None:
    out.array.fill(0)
    inner = tuple([(before, n - after, step) for n, (before, after, step)
                   in zip(out.shape, margins)])
    copy(out.moved(out.view.shrink(inner)), x)


KERNELS[PAD] = pad


# chapters/tensors/operations.md:576
def check_index(op: Op, index: Buffer, n: int) -> None:
    if index.view.size == 0:
        return
    low, high = int(index.array.min()), int(index.array.max())
    if low < -n or high >= n:
        raise IndexError(
            f"{op}: the index {low if low < -n else high} is out of "
            f"range; an axis of length {n} allows {-n} to {n - 1} (axes "
            f"indexed together count as one)")


# chapters/tensors/operations.md:587
def gather(out: Buffer, x: Buffer, index: Buffer, _: None) -> None:
    check_index(GATHER, index, x.shape[0])
    np.copyto(out.array, x.array[index.array])


KERNELS[GATHER] = gather


# chapters/tensors/operations.md:608
def scatter(out: Buffer, x: Buffer, index: Buffer, n: int) -> None:
    check_index(SCATTER, index, n)
    sums = np.zeros(out.shape, running(x.dtype))
    np.add.at(sums, index.array, x.array)
    np.copyto(out.array, sums, casting="unsafe")


KERNELS[SCATTER] = scatter


# chapters/tensors/operations.md:631
def const(out: Buffer, arg: tuple[Any, DType]) -> None:
    value, dtype = arg
    try:
        out.array.fill(value)
    except OverflowError:
        raise OverflowError(
            f"CONST: {value} does not fit {dtype}; cast the tensor "
            f"beside it to a wider dtype first") from None


# chapters/tensors/operations.md:641
def iota(out: Buffer, n: int) -> None:
    np.copyto(out.array, np.arange(n))


# chapters/gradients/autograd.md:957
def write(out: Buffer, _: Buffer, value: Buffer, arg: None) -> None:
    """Overwrite, and leave a trace of it."""
    if not out.array.flags.writeable:
        raise ValueError("WRITE: the owner of this memory allows reading "
                         "only; clone the tensor first")
    copy(out, value)
    out.storage.version += 1


# chapters/tensors/operations.md:652
KERNELS[CONST], KERNELS[IOTA], KERNELS[WRITE] = const, iota, write

# chapters/tensors/operations.md:662
QUIET = contextvars.copy_context()
QUIET.run(np.seterr, all="ignore")


# chapters/tensors/operations.md:666
class Device:
    """The CPU: memory from NumPy, one kernel for each primitive."""

    name = "cpu"

    def __repr__(self) -> str:
        return self.name

    def run(self, op: Op, *src: Buffer, arg: Any = None) -> Buffer:
        """Carry out `op`; the result is a new buffer or a new view."""
        if op in MOVE:
            return self.move(op, src[0], arg)
        shape, dtype = SHAPE[op](*src, arg), DTYPE[op](*src, arg)
        kernel = KERNELS.get(op) or self.missing(op)
        out = src[0] if op is WRITE else Buffer.empty(shape, dtype)
        QUIET.copy().run(kernel, out, *src, arg)
        return out

    # chapters/tensors/operations.md:696
    def move(self, op: Op, x: Buffer, arg: Any) -> Buffer:
        view = moved(op, x.view, arg)
        if view is not None:
            return x.moved(view)
        return self.run(CAST, x, arg=x.dtype).moved(View.dense(arg))

    def missing(self, op: Op) -> NoReturn:
        raise NotImplementedError(
            f"{op} has no kernel on the device {self}; it has "
            f"{', '.join(sorted(map(str, KERNELS)))}")

    # chapters/tensors/operations.md:715
    def adopt(self, array: np.ndarray) -> Buffer:
        """Host memory as a buffer of this device."""
        return adopt(array)

    def host(self, buffer: Buffer) -> Buffer:
        """The buffer in host memory; on the CPU it is there already."""
        return buffer

    # chapters/tensors/operations.md:738
    def __reduce__(self) -> tuple[Any, ...]:
        """By name: a copied or pickled tensor stays on its device."""
        return named, (self.name,)


# chapters/tensors/operations.md:724
CPU = Device()
DEVICES = {"cpu": CPU}


# chapters/tensors/operations.md:728
def named(device: str) -> Device:
    """The device of that name."""
    if device in DEVICES:
        return DEVICES[device]
    raise ValueError(f"device: expected one of {', '.join(DEVICES)}; got "
                     f"{device!r}")


# chapters/tensors/operations.md:1932
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


# chapters/tensors/operations.md:1935
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


# chapters/tensors/operations.md:1972
LOW = 0xFFFFFFFF  # the lower half of 64 bits


# chapters/tensors/operations.md:1975
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

# chapters/tensors/blas.md:1603
KERNELS[MATMUL] = matmul


# chapters/tensors/activations.md:435
@functools.cache
def erf_for(dtype: DType) -> Callable[..., None] | None:
    """The compiled function for a dtype; None without a C compiler."""
    try:
        return kernel("kernels/erf.c", *FLAVOURS[dtype]).erf_each
    except CompileError as error:
        tell(f"erf is computed one by one in Python: {error}")
        return None


# chapters/tensors/activations.md:445
def erf(out: Buffer, x: Buffer, _: None) -> None:
    """The kernel of ERF."""
    dtype = WIDE.get(x.dtype, x.dtype)
    dense = widened(x, dtype)
    result = dense if out.dtype is not dtype else out
    function = erf_for(dtype)
    if function is None:
        slow = np.vectorize(math.erf, otypes=[dtype.numpy])
        np.copyto(result.array, slow(dense.array))
    else:
        function(x.view.size, dense, result)
    if result is not out:
        copy(out, result)


KERNELS[ERF] = erf
