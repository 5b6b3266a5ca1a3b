# Tangled from cuda, kernels, gpu, launches, vocabulary: edit there, `make tangle`. sha256:b1df3c51ddff  # noqa: E501
from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import operator
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from companion.device import named
from companion.dtype import DType, bfloat16, float16, float32, float64
from companion.native import (
    CELLS, CompileError, build, compile_cell, compiler, complaint)
from companion.sharing import once
from companion.view import View

KERNEL = re.compile(r"__global__\s+(?:\w+\s+)*?void\s+(\w+)")


def kernel_names(source: str) -> list[str]:
    """The kernels of a CUDA text, each once; comments do not count."""
    noise = r"(?s)/\*.*?\*/|//[^\n]*|__launch_bounds__\(.*?\)"
    return list(dict.fromkeys(KERNEL.findall(re.sub(noise, "", source))))


def kernel_text(file: str) -> str:
    """The text of a kernel file: a notebook's cells, or the library's."""
    if file in CELLS:
        return "".join(CELLS[file])
    return (resources.files("companion") / file).read_text()


Sizes = int | tuple[int, ...]
MOST = {"grid": (2 ** 31 - 1, 65_535, 65_535), "block": (1024, 1024, 64)}


@functools.lru_cache(maxsize=1024)
def three(name: str, what: str, size: Sizes) -> tuple[int, ...]:
    """The size of a grid or a block along x, y and z, checked."""
    given = size if isinstance(size, tuple) else (size,)
    x, y, z = whole = (*given, 1, 1)[:3]
    fits = len(given) <= 3 and all(
        isinstance(n, Integral) and 1 <= n <= most
        for n, most in zip(whole, MOST[what]))
    if not fits or what == "block" and x * y * z > 1024:
        more = ", 1024 together" if what == "block" else ""
        raise ValueError(f"{name}: {what} {size}; expected 1 to 3 whole "
                         f"numbers, from 1 to {MOST[what]}{more}")
    return whole


class Program:
    """One CUDA text, compiled: program["name"](grid, block, *arguments).

    Sizes: a number, or up to three. An argument is an address (an
    int), an array, or a NumPy scalar, passed by value (a structured
    one is a struct).
    """

    def __init__(self, source: str, flags: tuple[str, ...],
                 find: Callable[[str], Callable[..., None]]) -> None:
        self.source, self.flags, self.find = source, flags, find
        self.names = kernel_names(source)
        self.ready: dict[str, Callable[..., None]] = {}

    def __getitem__(self, name: str) -> Callable[..., None]:
        if name not in self.ready:
            self.ready[name] = self.prepare(name)
        return self.ready[name]

    def prepare(self, name: str) -> Callable[..., None]:
        """Find a kernel; every launch of it will be checked."""
        if name not in self.names:
            raise LookupError(f"no kernel {name!r}: this program has "
                              f"{', '.join(self.names) or 'none'}")
        start = self.find(name)

        def launch(grid: Sizes, block: Sizes, *arguments: Any) -> None:
            start(three(name, "grid", grid), three(name, "block", block),
                  arguments)
        return launch


EMULATOR = "kernels/emulator.h"
# -O1: it is the compiler that takes the time here; the pass after it is
# the one that makes fused multiply-adds, as a card does. A fortified
# longjmp ends the process where it would go to another stack, and ours
# always do. (Tried: "longjmp causes uninitialized stack frame".)
EMULATED = ("-O1", "-fexpensive-optimizations", "-std=c++17",
            "-Wno-narrowing", "-fno-exceptions", "-fno-rtti",
            "-fno-threadsafe-statics", "-U_FORTIFY_SOURCE")
ENTRY = """
extern "C" const char *launch_{0}(void **list, const unsigned *sizes,
    unsigned count, const unsigned *shape, long order) {{
  return emulator.launch({0}, list, sizes, count, shape, order);
}}"""


def emulated(source: str, *flags: str) -> ctypes.PyDLL:
    """A CUDA text compiled for the processor, behind our header."""
    # Without #line a kernel is compiled once, wherever it stands; `original`
    # looks its lines up when something is wrong with one.
    text = re.sub(r"(?m)^ *#include <(?:cuda_\w+|mma)\.h.*|^#line .*", "",
                  source)
    whole = "\n".join([
        kernel_text(EMULATOR), '# 1 "kernel.cu"', text, '# 1 "entries"',
        *map(ENTRY.format, kernel_names(source))])
    try:
        # PyDLL keeps Python's lock: one emulator serves one thread at a time.
        # With CDLL, three threads that launch end the process.
        return ctypes.PyDLL(str(build(whole, *EMULATED, *flags)))
    except CompileError as error:
        raise CompileError(original(source, str(error))) from None


def original(source: str, message: str) -> str:
    """A message whose lines are named as the text's #line say."""
    def place(found: re.Match) -> str:
        before = source.split("\n")[:int(found[1])]
        for back, line in enumerate(reversed(before)):
            mark = re.match(r'#line (\d+) "(.*)"', line)
            if mark:
                return f"{mark[2]}, line {int(mark[1]) + back - 1}"
        return found[0]
    return re.sub(r"kernel\.cu, line (\d+)", place, message)


def scalar(value: Any) -> Any:
    """An argument as something whose bytes the kernel can read."""
    if isinstance(value, np.ndarray) and value.ndim:
        if not value.flags.c_contiguous:
            raise TypeError(f"a kernel takes elements side by side, got "
                            f"strides {value.strides}; pass a copy")
        return np.int64(value.ctypes.data)
    if isinstance(value, (np.generic, np.ndarray)):
        return value
    if type(value) is not int:
        raise TypeError(f"{value!r}: a kernel takes addresses, arrays and "
                        f"NumPy scalars, whose size is known: np.float32(…)")
    return np.int64(value)


class LaunchError(RuntimeError):
    """A kernel was given the wrong arguments, or went wrong itself."""


def run_grid(source: str, library: ctypes.PyDLL, order: int, name: str,
             grid: tuple, block: tuple, arguments: Iterable[Any]) -> None:
    """Run a grid of blocks on the processor."""
    values = [np.array(scalar(value)) for value in arguments]
    n = len(values)
    function = library["launch_" + name]
    function.restype = ctypes.c_char_p
    trouble = function(
        (ctypes.c_void_p * n)(*[v.ctypes.data for v in values]),
        (ctypes.c_uint * n)(*[v.nbytes for v in values]), n,
        (ctypes.c_uint * 6)(*grid, *block), ctypes.c_long(order))
    if trouble:
        message = original(source, trouble.decode())
        raise LaunchError(f"{name}: {message}")


class Emulator:
    """A card made of one processor: NumPy memory, blocks in turn.

    order: in which order blocks, and threads in them, run: 1 forwards,
    -1 backwards, every other number in some other order.
    """

    name, arrays = "emulated", np
    plain = "-ffp-contract=off"  # each operation is rounded by itself

    def __init__(self, order: int = 1) -> None:
        self.order = order

    def compile(self, source: str, *flags: str) -> Program:
        """A CUDA text, for the processor; flags like -DREAL=float."""
        check_flags(flags)
        library = emulated(source, *flags)
        return Program(source, flags, lambda name: functools.partial(
            run_grid, source, library, self.order, name))

    processors = 2
    capacity, used = 1 << 30, 0  # bytes

    def allocate(self, nbytes: int) -> tuple[Any, int]:
        """As a card's: no more than there is."""
        if self.used + nbytes > self.capacity:
            raise MemoryError
        memory = np.empty(nbytes, np.uint8)
        self.used += nbytes
        weakref.finalize(memory, self.free, nbytes)
        return memory, memory.ctypes.data

    def free(self, nbytes: int) -> None:
        self.used -= nbytes

    def copy(self, target: int, source: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)

    def window(self, memory: np.ndarray, view: View, dtype: DType) -> Any:
        # It could answer; but a program that cheats here would end on a card.
        raise BufferError("this memory is a device's, which NumPy cannot "
                          "read; .numpy() makes a copy, .to('cpu') a tensor")

    def gemm(self, dtype: DType, m: int, n: int, k: int, a: Operand,
             b: Operand, c: Operand, count: int) -> None:
        """As a card's, in NumPy."""
        total = CUBLAS[dtype].total
        wide = FACTORS[total].dtype
        x: Any = column_major(a, dtype, m, k, count).astype(wide)
        y: Any = column_major(b, dtype, k, n, count).astype(wide)
        if total == HIGH:
            x, y = tf32(x), tf32(y)
        column_major(c, dtype, m, n, count)[...] = x @ y

    def memory(self) -> Memory:
        return Memory(self.used, 0, self.capacity - self.used,
                      self.capacity)

    def send(self, target: np.ndarray,
             source: np.ndarray) -> Callable[[], None]:
        """Begin a copy that is made when somebody waits for it."""
        # As late as a card may: a program that does not wait reads garbage.
        return functools.partial(np.copyto, target, source.copy())

    def recorded(self, parts: Sequence[Part]) -> list[Callable[[], Any]]:
        """As it stands: launching costs nothing here."""
        return [part.run for part in parts]


def check_flags(flags: Iterable[str]) -> None:
    """CUDA's own headers use names of one letter for their types."""
    for flag in flags:
        if re.match(r"-D[A-Z]\b", flag):
            raise CompileError(f"{flag}: CUDA's headers use this name "
                               f"themselves; take a longer one")


def load_ipython_extension(shell: Any) -> None:
    """%load_ext companion.cuda: the magic %%cuda FILE.cu [flags]."""
    magic = functools.partial(cuda_cell, shell)
    shell.register_magic_function(magic, "cell", "cuda")


def cuda_cell(shell: Any, line: str, cell: str) -> None:
    """Compile all cells of a file, bind its Program to the file's name."""
    header = line.partition(" ")[0].endswith(".h")
    make = check_header if header else Emulator().compile
    compile_cell(shell, line, cell, make)


def check_header(source: str, *flags: str) -> None:
    """Let the compiler read the emulator itself."""
    build(source, *EMULATED, *flags)


# The hooks are in our header, not in a library; and a pass that takes
# structures apart would make four accesses of one to a float4.
TRACED = ("-fsanitize=thread", "-nodefaultlibs", "-fno-tree-sra")


def check_marks(version: str) -> None:
    """Refuse to trace with a compiler that marks accesses its own way."""
    if "clang" in version:
        raise CompileError(f"trace: expected GCC, which marks each access "
                           f"once, got {version}; install GCC and name it "
                           f"in CC")


ACCESS = np.dtype([
    ("address", "u8"), ("code", "u8"), ("block", "u4"), ("thread", "u4"),
    ("barriers", "u4"), ("exchanges", "u4"), ("size", "u2"),
    ("writes", "u2"), ("shared", "u2"), ("atomic", "u2")])


class Notes(ctypes.Structure):
    """What the emulator's header calls struct Notes."""

    _fields_ = [("rows", ctypes.c_void_p), ("length", ctypes.c_uint64),
                ("room", ctypes.c_uint64), ("arrays", ctypes.c_uint64),
                ("bounds", ctypes.c_void_p)]


def trace(program: Program, name: str, grid: Sizes, block: Sizes,
          *arguments: Any) -> np.ndarray:
    """Every load and store of a launch, as rows of ACCESS.

    Addresses count from 0 in shared memory, and from i << 40 in the
    i-th array among the arguments. An access elsewhere is an error.
    """
    check_marks(compiler()[1])
    library = emulated(program.source, *program.flags, *TRACED)
    library.traced.restype = ctypes.POINTER(Notes)
    found = library.traced().contents
    arrays = [x for x in arguments if isinstance(x, np.ndarray) and x.ndim]
    bounds = np.array([(x.ctypes.data, x.ctypes.data + x.nbytes)
                       for x in arrays], np.uint64)
    found.length, found.arrays = 0, len(arrays)
    found.bounds = bounds.ctypes.data
    run_grid(program.source, library, 1, name, three(name, "grid", grid),
             three(name, "block", block), arguments)
    size = found.length * ACCESS.itemsize
    return np.frombuffer(ctypes.string_at(found.rows or 0, size), ACCESS)


def numbered(*columns: np.ndarray) -> np.ndarray:
    """A number for each row; rows that agree in all columns share it."""
    number, size = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        values, place = np.unique(column, return_inverse=True)
        # Counted anew, before the numbers leave their 64 bits.
        if size * len(values) >= 1 << 62:
            known, number = np.unique(number, return_inverse=True)
            size = len(known)
        number, size = number * len(values) + place, size * len(values)
    return np.unique(number, return_inverse=True)[1]


def occurrence_index(group: np.ndarray) -> np.ndarray:
    """How many earlier rows belong to the same group as this one."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(group)))
    found = np.empty(len(group), np.int64)
    found[order] = np.arange(len(group)) - np.repeat(starts, sizes)
    return found


def requests(seen: np.ndarray) -> np.ndarray:
    """For each access the number of its warp's instruction."""
    group = numbered(seen["block"], seen["thread"], seen["code"])
    turn = occurrence_index(group)
    return numbered(seen["block"], seen["thread"] // 32, seen["code"], turn)


class Traffic(NamedTuple):
    """What warps asked of an array, or of shared memory.

    Transactions are sectors of 32 bytes; in shared memory, rounds in
    which each of 32 banks gives a word. At least so many were needed.
    """

    requests: int
    transactions: int
    least: int


def pieces(seen: np.ndarray, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """Accesses cut into units: of which access each is, and the unit."""
    address = seen["address"].astype(np.int64)
    first, last = address // unit, (address + seen["size"] - 1) // unit
    rows = np.repeat(np.arange(len(seen)), last - first + 1)
    return rows, first[rows] + occurrence_index(rows)


def traffic(seen: np.ndarray) -> dict[tuple[int | str, str], Traffic]:
    """The traffic of a trace: {(number of array or "shared", kind): …}."""
    request = requests(seen)
    rows, word = pieces(seen, 4)
    array = (seen["address"] >> 40).astype(np.int64)
    place = np.where(seen["shared"], -1, array)
    found = {}
    for array, writes in {*zip(place.tolist(), seen["writes"].tolist())}:
        part = ((place == array) & (seen["writes"] == writes))[rows]
        count = rounds if array < 0 else sectors
        kind = "store" if writes else "load"
        found["shared" if array < 0 else int(array), kind] = count(
            request[rows[part]], word[part])
    return dict(sorted(found.items(), key=str))


def distinct(request: np.ndarray, unit: np.ndarray) -> tuple[
        np.ndarray, np.ndarray]:
    """The different units of each request, each once."""
    _, first = np.unique(numbered(request, unit), return_index=True)
    return request[first], unit[first]


def sectors(request: np.ndarray, word: np.ndarray) -> Traffic:
    """Traffic with global memory."""
    _, words = np.unique(distinct(request, word)[0], return_counts=True)
    return Traffic(len(words), len(distinct(request, word // 8)[0]),
                   int(np.ceil(words / 8).sum()))


def rounds(request: np.ndarray, word: np.ndarray) -> Traffic:
    """Traffic with shared memory: the fullest bank decides."""
    request, word = distinct(request, word)
    bank, height = np.unique(32 * request + word % 32, return_counts=True)
    tallest = np.zeros(request.max() + 1, np.int64)
    np.maximum.at(tallest, bank // 32, height)
    _, words = np.unique(request, return_counts=True)
    return Traffic(len(words), int(tallest.sum()),
                   int(np.ceil(words / 32).sum()))


def clashes(seen: np.ndarray, key: np.ndarray,
            actor: np.ndarray) -> np.ndarray:
    """Accesses with the same key by different actors, one a writer."""
    low = np.full(key.max(initial=-1) + 1, np.iinfo(np.int64).max)
    high, writes, atomic = -np.ones_like(low), 0 * low, 1 + 0 * low
    np.minimum.at(low, key, actor)
    np.maximum.at(high, key, actor)
    np.maximum.at(writes, key, seen["writes"])
    np.minimum.at(atomic, key, seen["atomic"])
    return ((low < high) & (writes == 1) & (atomic == 0))[key]


def races(seen: np.ndarray) -> np.ndarray:
    """The accesses whose order nothing in the kernel decides."""
    # As small as the smallest, or neighbours in a word would seem to clash.
    unit = np.gcd.reduce(seen["address"] | seen["size"], initial=4)
    rows, piece = pieces(seen, int(unit))
    all_seen, seen = seen, seen[rows]
    block, warp = seen["block"].astype(np.int64), seen["thread"] // 32
    place = numbered(piece, np.where(seen["shared"], block, -1))
    # Barriers order the warps of a block; barriers and exchanges, the lanes
    # of a warp; and nothing orders blocks.
    meeting = numbered(place, block, seen["barriers"])
    within = numbered(meeting, warp, seen["exchanges"])
    bad = (clashes(seen, meeting, warp.astype(np.int64))
           | clashes(seen, within, seen["thread"].astype(np.int64))
           | clashes(seen, place, block))
    return all_seen[np.unique(rows[bad])]


class Card:
    """An NVIDIA GPU: the same interface, memory and compiler of CuPy."""

    name, plain = "cuda", "-fmad=false"

    def __init__(self) -> None:
        import cupy
        self.arrays = cupy

    def compile(self, source: str, *flags: str) -> Program:
        """A CUDA text, for the GPU; flags like -DREAL=float."""
        check_flags(flags)
        module = self.arrays.RawModule(
            code=source, options=("-std=c++17", *flags, *includes()))
        try:
            module.compile()
        except self.arrays.cuda.compiler.CompileException as error:
            raise CompileError(complaint(str(error))) from None
        return Program(source, flags, lambda name: functools.partial(
            launch_on_card, module.get_function(name)))

    @once
    def processors(self) -> int:
        """How many streaming multiprocessors the card has."""
        return self.arrays.cuda.Device().attributes["MultiProcessorCount"]

    def allocate(self, nbytes: int) -> tuple[Any, int]:
        """Fresh memory of the card: its owner, and its address."""
        memory = self.arrays.empty(nbytes, np.uint8)
        return memory, memory.data.ptr

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy between any two addresses, and wait until it is done."""
        stream = self.arrays.cuda.get_current_stream()
        self.queue(stream, target, source, nbytes)
        # The host's array may be gone a moment later.
        stream.synchronize()

    def queue(self, stream: Any, target: int, source: int,
              nbytes: int) -> None:
        """Let a stream copy; which way, the addresses tell."""
        runtime = self.arrays.cuda.runtime
        if nbytes > 0:  # nothing has no address
            runtime.memcpyAsync(target, source, nbytes,
                                runtime.memcpyDefault, stream.ptr)

    def gemm(self, dtype: DType, m: int, n: int, k: int, a: Operand,
             b: Operand, c: Operand, count: int) -> None:
        """Column-major C = A B, `count` times (GemmStridedBatchedEx)."""
        elements, total = CUBLAS[dtype]
        # Their addresses: 1 and 0 lie side by side, in the type of the sums.
        one = FACTORS[total].ctypes.data
        zero = one + FACTORS[total].itemsize
        cuda = self.arrays.cuda
        cuda.cublas.gemmStridedBatchedEx(
            cuda.get_cublas_handle(),
            a.turned, b.turned, m, n, k, one,
            a.address, elements, a.lead, a.step,
            b.address, elements, b.lead, b.step, zero,
            c.address, elements, c.lead, c.step, count, total, -1)

    def window(self, memory: Any, view: View, dtype: DType) -> Any:
        """The view as an array of CuPy; no copy."""
        size = dtype.itemsize
        return self.arrays.ndarray(
            view.shape, dtype.numpy, memory.data + view.offset * size,
            [s * size for s in view.strides])

    def memory(self) -> Memory:
        pool = self.arrays.get_default_memory_pool()
        free, total = self.arrays.cuda.runtime.memGetInfo()
        return Memory(pool.used_bytes(), pool.free_bytes(), free, total)

    @once
    def bus(self) -> Any:
        """The stream of copies that nobody waits for."""
        return self.arrays.cuda.Stream(non_blocking=True)

    # copies under way: event, memory they read, memory they write
    sent: tuple[tuple[Any, Any, Any], ...] = ()

    def send(self, target: Any, source: np.ndarray) -> Callable[[], None]:
        """Begin a copy; what is returned lets kernels wait for its end."""
        cuda, nbytes = self.arrays.cuda, source.nbytes
        pinned = cuda.alloc_pinned_memory(nbytes)
        staged = np.frombuffer(pinned, np.uint8, nbytes)
        staged[:] = source
        present = cuda.get_current_stream()
        self.bus.wait_event(present.record())  # that memory may be in use
        self.queue(self.bus, target.data.ptr, staged.ctypes.data, nbytes)
        # Both ends stay with their event: a batch may be dropped, and the copy
        # goes on, into what would by then be another tensor's memory.
        event = self.bus.record()
        self.sent = (*[sent for sent in self.sent if not sent[0].done],
                     (event, pinned, target))
        return functools.partial(self.wait_for, event)

    def wait_for(self, event: Any) -> None:
        """Let what is launched from now on wait for an event."""
        self.arrays.cuda.get_current_stream().wait_event(event)

    def recorded(self, parts: Sequence[Part]) -> list[Callable[[], Any]]:
        """What launches the parts again, all between two products as one
        graph. CuPy lets nobody call cuBLAS while it records."""
        pool = self.arrays.cuda.MemoryPool()
        found: list[Callable[[], Any]] = []
        for product, group in itertools.groupby(
                parts, key=operator.attrgetter("product")):
            runs = [part.run for part in group]
            found += runs if product else [self.graph(runs, pool)]
        return found

    def graph(self, runs: Sequence[Callable[[], Any]], pool: Any) -> Recorded:
        """What some launches ask of the card, recorded and not done."""
        cuda = self.arrays.cuda
        stream = cuda.Stream(non_blocking=True)
        # Memory that is given back on the way is the graph's all the same.
        with stream, cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            try:
                for run in runs:
                    run()
            finally:
                graph = stream.end_capture()
        return Recorded(graph, pool)


def launch_on_card(kernel: Any, grid: tuple, block: tuple,
                   arguments: Iterable[Any]) -> None:
    kernel(grid, block, tuple(map(on_card, arguments)))


def on_card(value: Any) -> Any:
    """An argument as CuPy's launches want it."""
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("this array lies in the processor's memory, and a "
                        "card needs it in its own: cupy.asarray(x)")
    if not isinstance(value, (int, float, np.generic, np.ndarray)):
        return value  # CuPy's own
    value = scalar(value)
    # CuPy takes a struct as an array that has one for its element.
    whole = isinstance(value, (np.void, np.ndarray))
    return np.asarray(value).reshape(1) if whole else value


def includes() -> list[str]:
    """Where CUDA's headers lie, as flags, if pip has installed them."""
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations if found else None
    return [f"-I{path}" for folder in folders or ()
            for path in sorted(Path(folder).glob("cuda_*/include"))]


class Usage(NamedTuple):
    """What a kernel occupies: registers a thread, the rest in bytes."""

    registers: int
    shared: int
    spilled: int


def usage(source: str, *flags: str, arch: str = "sm_80") -> dict[str, Usage]:
    """What NVRTC makes of each kernel of a text, for an architecture."""
    from cupy.cuda import nvrtc
    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    options = ("-std=c++17", f"-arch={arch}", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, (*options, *flags, *includes()))
        report = nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError:
        report = nvrtc.getProgramLog(program)
        raise CompileError(complaint(report)) from None
    finally:
        nvrtc.destroyProgram(program)
    return dict(map(read_usage, report.split("entry function '")[1:]))


def read_usage(report: str) -> tuple[str, Usage]:
    """A kernel's name and usage, from what ptxas says of it."""
    def number(before: str) -> int:
        found = re.search(rf"(\d+) {before}", report)
        return int(found[1]) if found else 0
    return report.partition("'")[0], Usage(
        number("registers"), number("bytes smem"),
        number("bytes spill stores"))


class Processor(NamedTuple):
    """What a streaming multiprocessor holds; memory in bytes."""

    threads: int
    blocks: int
    registers: int
    shared: int
    reserved: int  # of shared memory, for each block


PROCESSORS = {"sm_75": Processor(1024, 16, 1 << 16, 64 << 10, 0),
              "sm_80": Processor(2048, 32, 1 << 16, 164 << 10, 1024),
              "sm_90": Processor(2048, 32, 1 << 16, 228 << 10, 1024)}


def occupancy(use: Usage, threads: int, arch: str) -> float:
    """The share of a multiprocessor's threads that blocks fill."""
    card, warps = PROCESSORS[arch], -(-threads // 32)
    registers = -(-use.registers * 32 // 256) * 256  # of a warp
    fitting = 4 * (card.registers // 4 // registers)
    shared = max(use.shared + card.reserved, 1)
    blocks = min(card.blocks, card.threads // (32 * warps),
                 fitting // warps, card.shared // shared)
    return blocks * 32 * warps / card.threads


class Kind(NamedTuple):
    """What cuBLAS calls the elements, and the type it adds them in."""

    elements: int
    total: int


HIGHEST, HIGH, DOUBLE = 68, 77, 70  # CUBLAS_COMPUTE_32F, _FAST_TF32, _64F
# CUDA_R_32F, _64F, _16F and _16BF; halves are added in float32, always.
CUBLAS = {float32: Kind(0, HIGHEST), float64: Kind(1, DOUBLE),
          float16: Kind(2, HIGHEST), bfloat16: Kind(14, HIGHEST)}
FACTORS: dict[int, np.ndarray] = {
    HIGHEST: np.array([1, 0], np.float32),
    HIGH: np.array([1, 0], np.float32),
    DOUBLE: np.array([1, 0], np.float64)}


def set_float32_matmul_precision(precision: str) -> None:
    """Products of float32 on a GPU: "highest", or "high" for TF32."""
    totals = {"highest": HIGHEST, "high": HIGH}
    if precision not in totals:
        raise ValueError(f"set_float32_matmul_precision: expected one of "
                         f"{', '.join(totals)}; got {precision!r}")
    CUBLAS[float32] = Kind(0, totals[precision])


class Operand(NamedTuple):
    """A stack of matrices as cuBLAS is told of it."""

    turned: bool
    address: int
    lead: int
    step: int


def column_major(x: Operand, dtype: DType, rows: int, cols: int,
                 count: int) -> np.ndarray:
    """The (count, rows, cols) column-major matrices at an address."""
    if x.turned:
        rows, cols = cols, rows
    # As strict as cuBLAS, or mistakes would show on a card alone.
    if x.lead < max(rows, 1):
        raise ValueError(f"gemm: columns of {rows} elements cannot lie "
                         f"{x.lead} apart")
    size = dtype.itemsize
    last = (count - 1) * x.step + (cols - 1) * x.lead + rows
    memory: Any = (ctypes.c_char * (last * size)).from_address(x.address)
    found = np.ndarray((count, rows, cols), dtype.numpy, memory,
                       strides=(x.step * size, size, x.lead * size))
    return found.transpose(0, 2, 1) if x.turned else found


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to ten bits behind the point."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return (bits + 0x1000 & 0xFFFFE000).astype(np.uint32).view(np.float32)


class Memory(NamedTuple):
    """Bytes of a device: in tensors, kept in the pool, free, in all."""

    used: int
    pooled: int
    free: int
    total: int

    def __str__(self) -> str:
        return ("{} in use by tensors, {} kept for the next ones, {} of {} "
                "free".format(*map(spoken, self)))


def spoken(nbytes: float) -> str:
    """A number of bytes in the unit that suits it."""
    units = ["bytes", "KiB", "MiB", "GiB"]
    while nbytes >= 1024 and len(units) > 1:
        nbytes, units = nbytes / 1024, units[1:]
    return f"{nbytes:.4g} {units[0]}"


class Part(NamedTuple):
    """A part of a program: what runs it, and whether it is cuBLAS's."""

    run: Callable[[], Any]
    product: bool


class Recorded:
    """A graph of launches, and the memory that only it may use."""

    def __init__(self, graph: Any, pool: Any):
        self.graph, self.pool = graph, pool

    def __call__(self) -> None:
        self.graph.launch()


def is_available() -> bool:
    """Whether there is a card, and what it takes to use it."""
    try:
        return bool(named("cuda"))
    except (OSError, RuntimeError, ValueError):
        return False
