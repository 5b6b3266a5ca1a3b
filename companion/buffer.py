# Tangled from arrays, native, autograd: edit there, `make tangle`. sha256:b6c463535341  # noqa: E501
"""Storage, and the typed windows on it: arrays that know no arithmetic."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from companion.dtype import DTYPES, DType, as_dtype, bfloat16
from companion.sharing import once
from companion.view import Shape, View


class Storage:
    """A flat run of bytes, and what owns it.  Many buffers may share one."""

    def __init__(self, memory: np.ndarray):
        self.memory = memory

    @once
    def address(self) -> int:
        """Of the first byte in the machine; looked up once."""
        return address_of(self.memory)

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    @once
    def bytes(self) -> np.ndarray:
        """The memory one byte after another."""
        return self.memory.reshape(-1).view(np.uint8)

    def window(self, view: View, dtype: DType) -> np.ndarray:
        """The view as a NumPy array on this memory."""
        # Given the memory, NumPy refuses a view that reaches beyond it.
        return np.ndarray(view.shape, dtype.numpy, self.bytes,
                          *in_bytes(view, dtype.itemsize))

    writable = True

    def __reduce__(self) -> tuple[Any, ...]:
        # The memory alone: a copy may be written to, with `bytes` of its own.
        return type(self), (self.memory,)

    version = 0


class Buffer:
    """Flat storage seen through a View: elements of one dtype."""

    __slots__ = ("storage", "view", "dtype", "window")

    def __init__(self, storage: Storage, view: View, dtype: DType):
        self.storage = storage
        self.view = view
        self.dtype = dtype
        self.window: np.ndarray | None = None

    @staticmethod
    def empty(shape: Shape, dtype: DType) -> Buffer:
        """Fresh, uninitialised memory for a dense array."""
        memory = np.empty(shape, dtype.numpy)
        buffer = Buffer(Storage(memory), View.dense(shape), dtype)
        buffer.window = memory
        return buffer

    def moved(self, view: View) -> Buffer:
        """Another window on the same storage."""
        return type(self)(self.storage, view, self.dtype)

    @property
    def shape(self) -> Shape:
        return self.view.shape

    @property
    def array(self) -> np.ndarray:
        """The elements as strided memory NumPy can walk; no copy."""
        if self.window is None:
            self.window = self.storage.window(self.view, self.dtype)
        return self.window

    @property
    def address(self) -> int:
        """The machine address of element (0, 0, …)."""
        return self.storage.address + self.view.offset * self.dtype.itemsize

    def copy(self) -> Buffer:
        """The same elements, dense, in memory of their own."""
        out = Buffer.empty(self.shape, self.dtype)
        np.copyto(out.array, self.array)
        return out

    def dense(self) -> Buffer:
        """Itself where its memory is one run in order, else a copy."""
        return self if self.view.is_dense else self.copy()

    def __str__(self) -> str:
        return format_array(self)

    def __repr__(self) -> str:
        shape, strides, offset = self.view
        return (f"Buffer({self.dtype}, shape={shape}, "
                f"strides={strides}, offset={offset})")

    def __array__(self, dtype: Any = None,
                  copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        if self.dtype is bfloat16:
            raise BufferError(
                "__dlpack__: NumPy exports no bfloat16; copy the elements "
                "to a float32 buffer, which holds each of them exactly")
        # PyTorch does not refuse a negative stride: it ends the process.
        if self.view.size > 0 and min(self.view.strides, default=0) < 0:
            raise BufferError(
                f"__dlpack__: strides {self.view.strides} run backwards, "
                f"and not every reader follows; make a dense copy first")
        return self.array.__dlpack__(**options)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not the window: copied by itself it would look at other memory.
        return type(self), (self.storage, self.view, self.dtype)


@functools.lru_cache(maxsize=4096)
def in_bytes(view: View, itemsize: int) -> tuple[int, tuple[int, ...]]:
    """Offset and strides in bytes; a view of nothing needs neither."""
    # NumPy would refuse an offset beyond the end, though nothing is read.
    if view.size == 0:
        return 0, (0,) * len(view.shape)
    return view.offset * itemsize, tuple([s * itemsize for s in view.strides])


def shown(n: int, edge: int) -> list[int | None]:
    """The indices of an axis to print; None stands for those left out."""
    if n <= 2 * edge:
        return list(range(n))
    return [*range(edge), None, *range(n - edge, n)]


def decimals(value: float) -> int:
    """How many of at most four decimals `value` needs."""
    for digits in (1, 2, 3):
        if math.isclose(round(value, digits), value, rel_tol=1e-6):
            return digits
    return 4


def notation(values: list[Any]) -> Callable[[Any], str]:
    """One way of writing that suits all of `values`."""
    finite = [v for v in values if isinstance(v, float) and math.isfinite(v)]
    if not finite:
        return str
    largest = max(map(abs, finite))
    if largest >= 1e6 or 0 < largest < 1e-3:
        return "{:.4e}".format
    digits = max(map(decimals, finite))
    return f"{{:.{digits}f}}".format


def brackets(axes: list[list[int | None]], write: Callable[..., str],
             indent: int, index: tuple[int, ...] = ()) -> str:
    """`write(index)` for every index, nested in brackets."""
    if len(index) == len(axes):
        return write(index)
    parts = [
        "…" if i is None else
        brackets(axes, write, indent + 1, (*index, i))
        for i in axes[len(index)]]
    depth = len(axes) - len(index)
    if depth == 1:
        fit = max((77 - indent) // (len(parts[0]) + 2), 1)
        parts = [", ".join(parts[i:i + fit])
                 for i in range(0, len(parts), fit)]
    margin = "\n" * max(depth - 1, 1) + " " * (indent + 1)
    return "[" + f",{margin}".join(parts) + "]"


PYTHON: dict[str, type] = {"b": bool, "u": int, "i": int, "f": float}


def format_array(buffer: Buffer, indent: int = 0, threshold: int = 1000,
                 edge: int = 3) -> str:
    """The elements in brackets; more than `threshold` are summarised."""
    if buffer.view.size == 0:
        return f"[], shape={buffer.shape}"
    if buffer.view.size <= threshold:
        edge = max(buffer.shape, default=0)
    axes = [shown(n, edge) for n in buffer.shape]
    kept = [[i for i in axis if i is not None] for axis in axes]
    convert = PYTHON[buffer.dtype.kind]
    values = {at: convert(buffer.array[at]) for at in product(*kept)}
    write = notation(list(values.values()))
    width = max(len(write(v)) for v in values.values())
    return brackets(axes, lambda at: write(values[at]).rjust(width), indent)


def adopt(array: np.ndarray) -> Buffer:
    """A buffer over a NumPy array's own memory; nothing is copied."""
    dtype = as_dtype(array)
    dense = array.flags.c_contiguous
    memory, view = (array, View.dense(array.shape)) if dense \
        else memory_and_view(array)
    storage = Storage(memory)
    storage.writable = array.flags.writeable
    return Buffer(storage, view, dtype)


def memory_and_view(array: np.ndarray) -> tuple[np.ndarray, View]:
    """The memory from the lowest element to the highest, and the view."""
    view = View(array.shape, strides_of(array))
    steps = [-1 if s < 0 else 1 for s in view.strides]
    # All axes forwards, its first element is the lowest in memory and its
    # last the highest. (An empty array is contiguous and never comes here.)
    low = view.flip(tuple([i for i, s in enumerate(steps) if s < 0]))
    high = low.address(tuple([n - 1 for n in low.shape]))
    forwards: Any = (..., *[slice(None, None, s) for s in steps])
    flat = np.lib.stride_tricks.as_strided(
        array[forwards], (high - low.offset + 1,), (array.itemsize,))
    return flat, view._replace(offset=-low.offset)


def strides_of(array: np.ndarray) -> tuple[int, ...]:
    """The strides of a NumPy array in elements."""
    if any(s % array.itemsize for s in array.strides):
        raise ValueError(
            f"adopt: strides {array.strides} are no multiples of the "
            f"{array.itemsize}-byte element; pass a copy instead")
    return tuple([s // array.itemsize for s in array.strides])


CPU_MEMORY = 1  # kDLCPU in dlpack.h; a GPU's is 2


def from_dlpack(source: Any) -> Buffer:
    """A buffer on the memory of any CPU array that speaks DLPack."""
    kind, number = source.__dlpack_device__()
    if kind != CPU_MEMORY:
        raise BufferError(
            f"from_dlpack: expected memory of the CPU ({CPU_MEMORY}), got "
            f"device {number} of kind {kind}; copy it to the host first")
    try:
        return adopt(np.from_dlpack(source))
    except (BufferError, RuntimeError) as error:
        raise BufferError(
            f"from_dlpack: NumPy cannot read this array ({error}); "
            f"convert it to one of {', '.join(DTYPES)} first") from None


def address_of(memory: np.ndarray) -> int:
    """Of the first byte of an array."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(memory.data))
    except (TypeError, ValueError):  # read-only, empty or bfloat16
        return memory.__array_interface__["data"][0]
