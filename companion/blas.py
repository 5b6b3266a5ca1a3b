# Tangled from blas: edit there, `make tangle`. sha256:1b47691b4d7e
from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import struct
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from companion.buffer import Buffer, adopt
from companion.dtype import (
    DType, bfloat16, bool_, float16, float32, float64, int8, int32, int64,
    uint8)
from companion.native import POOL, kernel_or_tell
from companion.timing import MISSING, compare, limits, stamp
from companion.view import View


class Blocking(NamedTuple):
    """How products are cut; a policy for one kind of processor."""

    width: int  # columns of a panel, as compiled
    depth: int  # of K at a time
    chunk: int  # rows of A that stay in the second cache
    near: int  # elements so close together that they are read in place
    pack: int  # rows of A from which on B is packed
    copy: int  # columns of B from which on a large A is packed
    room: int  # elements of B that are packed at a time


NEVER = sys.maxsize
# Measured, for float32. In the second row a panel of B fills the first
# cache, a chunk of A half of the second; a slab of B lies in the third.
POLICIES = {  # bytes in a vector: depth, chunk, near, pack, copy, room
    64: (1024, NEVER, 1 << 16, 513, NEVER, 1 << 21),
    32: (512, 144, 1 << 13, 96, 1024, 1 << 18),
    16: (512, 144, 1 << 13, 96, 1024, 1 << 18),
}

MR, MC = 6, 144  # as in kernels/sgemm.c
# Multiply-adds. Measured: a second thread gains nothing at 64 cubed, and a
# quarter of the time at 72 cubed. Between them asking costs what it saves.
WORTH_SHARING = 300_000


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def cut(m: int, tasks: int, threads: int, most: int = NEVER,
        least: int = 8) -> tuple[int, int]:
    """Rows in a chunk of A, and chunks: one or more for each thread."""
    strips = max(ceil(m, MR), 1)
    # At least one for each thread: at neighbouring panels of the same
    # rows, two would fight over the cache lines where the panels meet.
    # 4 tasks a thread: of one that is held up, the others wait for a quarter
    # of its share. 8 strips: they share a panel that one of them fetched;
    # 4 where A is packed, since each thread packs the rows that it uses.
    wanted = max(ceil(4 * threads, max(tasks, 1)), threads)
    chunks = max(min(wanted, strips // least), 1) if threads > 1 else 1
    if m > chunks * most:
        chunks = ceil(ceil(m, most), threads) * threads
    rows = ceil(strips, chunks) * MR
    return rows, ceil(m, rows)


def stack_axes(a: View, b: View,
               c: View) -> list[tuple[int, int, int, int]]:
    """(length, stride in a, in b, in c) of the axes before the matrix."""
    axes = zip(c.shape[:-2], a.strides, b.strides, c.strides)
    found = [axis for axis in axes if axis[0] != 1]
    if len(found) > 8:
        raise ValueError(f"matmul: {len(found)} axes before the matrices "
                         f"of shape {c.shape}; expected at most 8: flatten")
    return found


# Field by field the `struct product` of kernels/sgemm.c.
LAYOUT = struct.Struct("20q2dP32q")


def check_fit(a: View, b: View, c: View) -> None:
    """C code writes where it is told to, so C has to be there."""
    fits = (a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
            and c.shape == (*a.shape[:-1], b.shape[-1]))
    if not fits:
        raise ValueError(f"gemm: {a.shape} @ {b.shape} does not make "
                         f"{c.shape}; expected (..., M, K), (..., K, N) "
                         f"and (..., M, N)")
    if 0 not in c.shape and any(
            n > 1 and s == 0 for n, s in zip(c.shape, c.strides)):
        raise ValueError(f"gemm: the result repeats elements (strides "
                         f"{c.strides}); give it memory of its own")


@functools.lru_cache(maxsize=4096)
def plan(a: View, b: View, c: View, alpha: float, beta: float,
         how: Blocking, threads: int) -> bytes:
    """A `struct product`: how sgemm walks these views."""
    check_fit(a, b, c)
    (m, k), n = a.shape[-2:], b.shape[-1]
    k = k if alpha else 0  # 0 times anything, unread
    (ra, ca), (rb, cb), (rc, cc) = [v.strides[-2:] for v in (a, b, c)]
    axes, stack = stack_axes(a, b, c), math.prod(c.shape[:-2])
    threads = threads if stack * m * n * k > WORTH_SHARING else 1
    lone = m == 1 and cb == cc == 1 and (ca == 1 or n % how.width == 0)
    copy = stack == 1 and prefer_packing(a, n, how)
    pack = (cb != 1 and n > 1 or (m >= how.pack and abs(rb) * k > how.near)
            or (copy and m > MR))  # else A is packed for each panel of B
    most = min(how.chunk, MC) if copy else how.chunk if pack else NEVER
    rows, chunks = cut(m, stack * (1 if pack else ceil(n, how.width)),
                       threads, most, 4 if copy else 8)
    width = how.width * (16 if lone else 1)
    depth = even(k, how.depth if n > 1 or pack else NEVER)
    if pack:
        wanted = ceil(threads * (1 if copy else 4), max(stack * chunks, 1))
        columns = ceil(n, wanted if threads > 1 else 1)
        width *= max(ceil(min(columns, how.room // depth), width), 1)
    slabs = ceil(n, width)
    most = ceil(how.room, width * depth) if pack else NEVER
    return LAYOUT.pack(
        m, n, k, ra, ca, rb, cb, rc, cc, rows, chunks, width, slabs, stack,
        min(most, stack * slabs), depth, copy, pack, threads,
        len(axes), alpha, beta, POOL.address, *chain(*axes),
        *[0] * (32 - 4 * len(axes)))


def even(k: int, most: int) -> int:
    """The length of equal parts of k, `most` at most."""
    return max(ceil(k, max(ceil(k, most), 1)), 1)


def prefer_packing(a: View, n: int, how: Blocking) -> bool:
    """Whether A had better be packed, for a B of n columns."""
    (m, k), (_, step) = a.shape[-2:], a.strides[-2:]
    if step != 1:
        return n > 2 * how.width and min(k, how.depth) * abs(step) > how.near
    return n >= how.copy and m * k > 1 << 17


FLAVOURS = {float32: (), float64: ("-DREAL=double",),
            int32: ("-DREAL=int", "-fwrapv"),
            int64: ("-DREAL=long", "-fwrapv")}


@functools.cache
def product(dtype: DType) -> tuple[Callable[..., int], Blocking] | None:
    """The compiled product and its policy; None without C."""
    library = kernel_or_tell("matrix products are NumPy's for now",
                             "kernels/sgemm.c", *FLAVOURS[dtype])
    if library is None:
        return None
    function = library.sgemm
    function.argtypes = [ctypes.c_void_p] * 4  # addresses, unchecked
    return function, blocking(library, dtype.itemsize)


def blocking(library: ctypes.CDLL, itemsize: int) -> Blocking:
    """The policy for a compiled sgemm.c and elements of some size."""
    how = Blocking(library.columns(), *POLICIES[library.bytes()])
    # The table counts elements of four bytes, and caches count bytes.
    return how._replace(chunk=max(how.chunk * 4 // itemsize, MR),
                        room=how.room * 4 // itemsize)


def gemm(c: Buffer, a: Buffer, b: Buffer, alpha: float = 1.0,
         beta: float = 0.0) -> None:
    """c = alpha a @ b + beta c: matrices, or equal stacks of them.

    c must not share memory with a or b.
    """
    if not a.dtype is b.dtype is c.dtype or c.dtype not in FLAVOURS:
        raise TypeError(f"gemm: {a.dtype} @ {b.dtype} into {c.dtype}; "
                        f"expected one dtype, of "
                        f"{', '.join(map(str, FLAVOURS))}")
    if not c.dtype.is_float:
        check_factors(c.dtype, alpha, beta)
    compiled = product(c.dtype)
    if compiled is None:
        numpy_product(c, a, b, alpha, beta)
        return
    # C^T = B^T A^T costs nothing: to turn a view copies no element.
    if against_the_grain(a.view, b.view):
        c, a, b = turned(c), turned(b), turned(a)
    function, how = compiled
    job = plan(a.view, b.view, c.view, alpha, beta, how, POOL.threads)
    if not function(job, a.address, b.address, c.address):
        raise MemoryError(f"gemm: no memory to pack {a.shape} @ {b.shape}; "
                          f"expected room for copies of parts of both")


def check_factors(dtype: DType, *factors: float) -> None:
    """Refuse factors that are no integers of `dtype`."""
    most = np.iinfo(dtype.numpy).max
    for factor in factors:
        if factor % 1 or abs(factor) > most:
            raise ValueError(f"gemm: {factor} is no {dtype}; expected "
                             f"whole numbers up to {most} for alpha and "
                             f"beta, or a product of floats")


def against_the_grain(a: View, b: View) -> bool:
    """Whether a lone row or column had better be the other."""
    return ((a.shape[-2] == 1 and b.strides[-1] != 1)
            or (b.shape[-1] == 1 and a.strides[-1] != 1))


def turned(x: Buffer) -> Buffer:
    """The matrices transposed."""
    *stack, i, j = range(len(x.shape))
    return x.moved(x.view.permute((*stack, j, i)))


def numpy_product(c: Buffer, a: Buffer, b: Buffer, alpha: float,
                  beta: float) -> None:
    """What gemm does where there is no C compiler."""
    k = a.shape[-1] if alpha else 0
    result = np.matmul(a.array[..., :k], b.array[..., :k, :])
    if alpha != 1 or beta != 0:
        # Of the dtype: a Python float would turn integers into floats.
        factor = c.dtype.numpy.type
        # Without beta C must not be read: it may hold NaN, or nothing yet.
        kept = factor(beta) * c.array if beta else 0
        result = factor(alpha) * result + kept
    np.copyto(c.array, result)


WIDE = {float16: float32, bfloat16: float32,
        bool_: int32, int8: int32, uint8: int32}


def matmul(c: Buffer, a: Buffer, b: Buffer, _: None = None) -> None:
    """The kernel of MATMUL: c = a @ b, for stacks of equal length."""
    dtype = WIDE.get(c.dtype)
    if dtype is None:
        gemm(c, a, b)
        return
    # Rounded once, at the end: halves would lose digits at every addition,
    # and bytes overflow at the first.
    total = Buffer.empty(c.shape, dtype)
    gemm(total, cast_copy(a, dtype), cast_copy(b, dtype))
    np.copyto(c.array, total.array, casting="unsafe")


def cast_copy(x: Buffer, dtype: DType) -> Buffer:
    """A copy of x in another dtype."""
    wide = Buffer.empty(x.shape, dtype)
    np.copyto(wide.array, x.array, casting="unsafe")
    return wide


CUBES = [(n, n, n) for n in (128, 256, 512, 1024, 2048, 4096)]
GPT = [(768, n, k) for n, k in (
    (128, 128), (384, 128), (512, 128), (128, 512), (384, 384), (65, 128),
    (65, 384))]


def peers() -> dict[str, Callable[..., Any] | None]:
    """f(a, b, out) for each library: its product, ready to run."""
    found: dict[str, Callable[..., Any] | None] = {
        "numpy": lambda a, b, out: functools.partial(
            np.matmul, a, b, out=out), "torch": None}
    if importlib.util.find_spec("torch"):
        torch = import_module("torch")

        def prepare(*arrays: np.ndarray) -> Callable:
            a, b, out = map(torch.from_numpy, arrays)
            return functools.partial(torch.matmul, a, b, out=out)
        found["torch"] = prepare
    return found


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """GFLOP/s of gemm and of its peers, on every case."""
    peak = limits(threads).peak
    for case in CUBES[:3] + GPT[:2] if quick else CUBES + GPT:
        for name, peer in peers().items():
            yield {"bench": "gemm", "case": "x".join(map(str, case)),
                   "threads": threads, "unit": "GFLOP/s",
                   **race(case, peer, threads, peak), **stamp(name)}


def ours(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Callable:
    """Our product, ready to run."""
    return functools.partial(gemm, adopt(out), adopt(a), adopt(b))


def prepared(case: tuple[int, int, int],
             library: Callable[..., Callable]) -> Callable[[], np.ndarray]:
    """A library's product of two random matrices, as a function."""
    m, n, k = case
    random = np.random.default_rng(0)
    a = random.standard_normal((m, k), dtype=np.float32)
    b = random.standard_normal((k, n), dtype=np.float32)
    c = np.empty((m, n), np.float32)
    run = library(a, b, c)

    def product() -> np.ndarray:
        run()
        return c
    return product


def race(case: tuple[int, int, int], peer: Callable[..., Any] | None,
         threads: int, peak: float) -> dict[str, float | None]:
    """Rates of ours and of one peer's product, and how they compare."""
    if peer is None:
        return MISSING
    m, n, k = case
    found = compare(functools.partial(prepared, case, ours),
                    functools.partial(prepared, case, peer),
                    rounds=5 if m * n * k > 1 << 33 else 15, tries=5,
                    agree=functools.partial(
                        np.testing.assert_allclose, atol=1e-5 * k))
    work = 2e-9 * m * n * k
    return found.line(lambda s: work / s, work / found.ours / peak)
