"""A stand-in for CuPy: the calls that Card makes, answered by NumPy.

It lets the code that talks to a GPU run where there is none.  Names and
signatures are checked against the real CuPy in test_gpu.py.
"""

import ctypes
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np

from companion.cuda import Emulator

QUEUE = []  # what was asked of streams, in order
RECORDING = []  # the launches of each stream that is being recorded
POOLS = []  # where memory comes from


class Pointer:
    """cupy.cuda.MemoryPointer: an address, and what owns it."""

    def __init__(self, owner, ptr):
        self.owner, self.ptr = owner, ptr

    def __add__(self, nbytes):
        return Pointer(self.owner, self.ptr + nbytes)


class Array:
    """cupy.ndarray, as far as Card looks at it."""

    def __init__(self, shape, dtype, memptr=None, strides=None):
        fresh = np.empty(shape, dtype)
        for malloc in POOLS[-1:]:
            memptr = memptr or malloc(fresh.nbytes)
        self.shape, self.dtype, self.size = fresh.shape, dtype, fresh.size
        self.strides = fresh.strides if strides is None else tuple(strides)
        self.itemsize = np.dtype(dtype).itemsize
        self.nbytes = self.size * self.itemsize
        self.data = memptr or Pointer(fresh, fresh.ctypes.data)


def from_dlpack(array):
    pointer = Pointer(array, array.ctypes.data)
    return Array(array.shape, array.dtype, pointer, array.strides)


class Event:
    done = True


class Stream:
    ptr = 0

    def __init__(self, non_blocking=False):
        self.name = "bus" if non_blocking else "present"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_capture(self):
        RECORDING.append([])

    def end_capture(self):
        launches = RECORDING.pop()
        return SimpleNamespace(
            launches=launches, launch=lambda: [run() for run in launches])

    def synchronize(self):
        assert not RECORDING, "nothing is waited for in a recording"
        QUEUE.append((self.name, "synchronize"))

    def record(self):
        QUEUE.append((self.name, "record"))
        return Event()

    def wait_event(self, event):
        QUEUE.append((self.name, "wait"))


PRESENT = Stream()


class MemoryPool:
    """Memory that is given back stays in the pool."""

    def __init__(self):
        self.kept = []

    def malloc(self, nbytes):
        self.kept.append(np.empty(nbytes, np.uint8))
        return Pointer(self.kept[-1], self.kept[-1].ctypes.data)


@contextmanager
def using_allocator(malloc):
    POOLS.append(malloc)
    yield
    POOLS.pop()


def copy(target, source, nbytes, kind, stream):
    assert not RECORDING, "the host's memory may be gone at a replay"
    ctypes.memmove(target, source, nbytes)


class RawModule:
    """Compiled by the emulator; launched with CuPy's argument types."""

    def __init__(self, code, options):
        flags = [o for o in options if o.startswith("-D")]
        self.program = Emulator().compile(code, *flags)

    def compile(self):
        pass

    def get_function(self, name):
        def launch(grid, block, arguments):
            values = [a[0] if isinstance(a, np.ndarray) else a
                      for a in arguments]
            run = partial(self.program[name], grid, block, *values)
            RECORDING[-1].append(run) if RECORDING else run()
        return launch


def gemm(handle, turn_a, turn_b, m, n, k, one, a, kind, lda, step_a, b,
         kind_b, ldb, step_b, zero, c, kind_c, ldc, step_c, count, total,
         algorithm):
    from companion.cuda import CUBLAS, Operand
    if RECORDING:
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is unsupported")
    dtype = next(d for d, (elements, _) in CUBLAS.items()
                 if elements == kind == kind_b == kind_c)
    wide = ctypes.c_double if total == 70 else ctypes.c_float
    assert wide.from_address(one).value == 1
    assert wide.from_address(zero).value == 0
    Emulator().gemm(dtype, m, n, k, Operand(turn_a, a, lda, step_a),
                    Operand(turn_b, b, ldb, step_b),
                    Operand(False, c, ldc, step_c), count)


def module():
    """A fresh stand-in for `import cupy`."""
    pool = SimpleNamespace(used_bytes=lambda: 10, free_bytes=lambda: 20)
    return SimpleNamespace(
        empty=Array, ndarray=Array, RawModule=RawModule,
        from_dlpack=from_dlpack,
        is_available=lambda: True, get_default_memory_pool=lambda: pool,
        cuda=SimpleNamespace(
            Device=lambda: SimpleNamespace(
                attributes={"MultiProcessorCount": 2}),
            MemoryPool=MemoryPool, using_allocator=using_allocator,
            Stream=Stream, get_current_stream=lambda: PRESENT,
            alloc_pinned_memory=bytearray,
            get_cublas_handle=lambda: 0,
            cublas=SimpleNamespace(gemmStridedBatchedEx=gemm),
            compiler=SimpleNamespace(CompileException=ValueError),
            runtime=SimpleNamespace(memcpyAsync=copy, memcpyDefault=4,
                                    memGetInfo=lambda: (30, 40))))
