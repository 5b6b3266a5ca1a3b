# Tangled from gpu, convolution, attention, launches: edit there, `make tangle`. sha256:7896484432ed  # noqa: E501
from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from companion.blas import ceil
from companion.buffer import Buffer, Storage, adopt, strides_of
from companion.cuda import (
    CUBLAS, Card, Emulator, Memory, Operand, Program, kernel_text, spoken)
from companion.data import ahead
from companion.device import (
    CPU, READERS, Device, attention_layout, convolve_by_columns, least_index,
    named)
from companion.dtype import (
    DType, as_dtype, bfloat16, bool_, float16, float32, float64, int8, int32,
    int64, uint8)
from companion.ops import (
    ADD, AND, ATTENTION, ATTENTION_GRADIENT, CAST, CONST, CONV, DIV, EQUAL,
    ERF, EXP, GATHER, IDIV, IOTA, LESS, LOG, MATMUL, MAX, MAXIMUM, MOD, MUL,
    PAD, POW, RANDOM, SCATTER, SIN, SQRT, SUB, SUM, WHERE, WRITE, Op)
from companion.sharing import once
from companion.tensor import Tensor, wrap
from companion.tensor.operands import where
from companion.tensor.random import rand, randn
from companion.timing import best, burst, stamp, steadiest, turns
from companion.view import Shape, View, coalesce


class Remote(Storage):
    """A run of bytes in the memory of a device."""

    def __init__(self, device: GPU, memory: Any, address: int):
        super().__init__(memory)
        self.device, self.address = device, address

    def window(self, view: View, dtype: DType) -> Any:
        """The view as an array of the library that walks this memory."""
        return self.device.card.window(self.memory, view, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        """As bytes, and back to the device of that name."""
        values = Buffer(self, View.dense((self.nbytes,)), uint8)
        return stored, (self.device, self.device.host(values).array)


LAUNCH: dict[Op, Callable[..., None]] = {}


class GPU(Device):
    """A device with memory of its own, behind a Card or an Emulator."""

    def __init__(self, name: str, card: Any):
        self.name = name
        self.card = card
        self.kernels = {op: functools.partial(launch, self)
                        for op, launch in LAUNCH.items()}

    def fresh(self, nbytes: int) -> Storage:
        """Uninitialised memory of the device; OutOfMemory without room."""
        try:
            return Remote(self, *self.card.allocate(nbytes))
        except MemoryError:
            raise OutOfMemory(
                f"{self}: no room for {spoken(nbytes)}; {self.memory()}. "
                f"Make the batch smaller, let go of tensors that are not "
                f"needed (a loss kept without .item() keeps its whole "
                f"graph), or use no_grad where no gradient is "
                f"wanted") from None

    def empty(self, shape: Shape, dtype: DType) -> Buffer:
        """A dense buffer on the device, its elements not yet written."""
        view = View.dense(shape)
        return Buffer(self.fresh(view.size * dtype.itemsize), view, dtype)

    def adopt(self, array: np.ndarray) -> Buffer:
        """A copy of host memory on the device."""
        source = adopt(array).dense()
        out = self.empty(source.shape, source.dtype)
        self.card.copy(out.address, source.address, out.storage.nbytes)
        return out

    def host(self, buffer: Buffer) -> Buffer:
        """A copy of a buffer in host memory; waits for what is queued."""
        if not buffer.view.is_dense:
            buffer = self.run(CAST, buffer, arg=buffer.dtype)
        out = Buffer.empty(buffer.shape, buffer.dtype)
        self.card.copy(out.address, buffer.address, out.storage.nbytes)
        # The card has been waited for anyway: the note costs nothing more.
        self.check_indices()
        return out

    def blocks(self, n: int) -> int:
        """Blocks for n threads that may loop."""
        return max(min(-(-n // THREADS), 16 * self.card.processors), 1)

    def each(self, dtype: DType, kernel: str, out: Buffer, *src: Buffer,
             given: tuple[Any, ...] = ()) -> None:
        """Let a kernel of `dtype` visit the buffers together."""
        buffers = (out, *src)
        steps = [b.view.strides for b in buffers]
        program(self.card, dtype)[kernel](
            self.blocks(out.view.size), THREADS,
            walk_struct(out.shape, *steps),
            *given, *[b.address for b in buffers])

    def fold(self, kernel: str, dtype: DType, out: Buffer, x: Buffer,
             axes: tuple[int, ...], pieces: int = 1) -> None:
        """One launch: every result, or `pieces` partial ones of each."""
        kept, along = halves(x.view, axes)
        threads, results = block(kernel.split("_")[1], along.size)
        program(self.card, dtype)[kernel](
            (-(-kept.size // results), pieces), threads,
            walk_struct(kept.shape, kept.strides),
            walk_struct(along.shape, along.strides),
            np.int64(-(-along.size // pieces)), out.address, x.address)

    def pieces(self, how: str, kept: int, along: int) -> int:
        """Into how many parts to cut a fold to keep the card busy."""
        blocks = -(-kept // block(how, along)[1])
        least = 4096 if how == "rows" else 128  # elements worth a block
        wanted = min(4 * self.card.processors // blocks, along // least)
        size = -(-along // max(wanted, 1))
        # Counted anew, or the last parts might be empty.
        return -(-along // size)

    asked = False  # whether an index may have been wrong

    @once
    def fault(self) -> Buffer:
        """Where kernels note a wrong index: whether, which; the axis."""
        return self.adopt(np.zeros(4, np.int64))

    def indexed(self, kernel: str, shape: Shape, axis: np.ndarray,
                *walked: Walked) -> None:
        """Let an indexing kernel walk result, index and source."""
        steps = [s + (0,) * (len(shape) - len(s)) for _, s in walked]
        program(self.card, walked[-1][0].dtype)[kernel](
            self.blocks(math.prod(shape)), THREADS, walk_struct(shape, *steps),
            axis[()], self.fault.address,
            *[buffer.address for buffer, _ in walked])
        self.asked = True

    def check_indices(self) -> None:
        """Raise what indexing kernels have found since the last look."""
        if not self.asked:
            return
        # First, for `host` will ask again while it fetches the note.
        self.asked = False
        wrong, index, n, least = self.host(self.fault).array.tolist()
        if wrong:
            fill(self, self.fault, 0)
            raise IndexError(
                f"GATHER or SCATTER: the index {index} is out of range; an "
                f"axis of length {n} allows {least} to {n - 1} (found on "
                f"{self} some operations ago)")

    def share(self, source: Any) -> Buffer:
        """A buffer on memory of the card that speaks DLPack; no copy."""
        array = self.card.arrays.from_dlpack(source)
        size, view = array.itemsize, View(array.shape, strides_of(array))
        # Steps may run backwards: the storage begins at the lowest element.
        low = view.flip(tuple([
            i for i, step in enumerate(view.strides) if step < 0]))
        high = low.address(tuple([n - 1 for n in low.shape]))
        memory = self.card.arrays.ndarray(
            (high - low.offset + 1) * size if view.size else 0, np.uint8,
            array.data + low.offset * size)
        return Buffer(Remote(self, memory, memory.data.ptr),
                      view._replace(offset=-low.offset), as_dtype(array))

    def memory(self) -> Memory:
        """What the device's memory holds."""
        return self.card.memory()

    def begin(self, tensor: Tensor) -> tuple[Tensor, Callable[[], None]]:
        """A tensor on its way here, and what makes kernels wait for it."""
        source = tensor.device.host(tensor.buffer).dense()
        out = self.empty(source.shape, source.dtype)
        return wrap(out, self), self.card.send(
            out.storage.memory, source.array.reshape(-1).view(np.uint8))

    def put(self, buffer: Buffer, values: Any) -> None:
        """Write over a dense buffer of this device: an array of the
        host, or a dense buffer of the host or of this device."""
        if not isinstance(values, Buffer):
            values = adopt(np.ascontiguousarray(values, buffer.dtype.numpy))
        self.card.copy(buffer.address, values.address,
                       buffer.view.size * buffer.dtype.itemsize)


WALK = np.dtype([("size", "i8"), ("rank", "i8"), ("length", "i8", 8),
                 ("step", "i8", (4, 8))])


@functools.lru_cache(maxsize=4096)
def walk_struct(shape: Shape, *strides: tuple[int, ...]) -> Any:
    """A `struct Walk`: how to visit up to four arrays of one shape."""
    axes = coalesce(zip(shape, *strides))
    if len(axes) > 8:
        raise ValueError(f"GPU: {len(axes)} axes of shape {shape} remain "
                         f"after merging; expected at most 8: work on "
                         f"x[0], x[1], … one by one")
    found = np.zeros((), WALK)
    found["size"], found["rank"] = math.prod(shape), len(axes)
    for d, (n, *steps) in enumerate(axes):
        found["length"][d] = n
        found["step"][:len(steps), d] = steps
    return found[()]


CUDA_CODE: dict[Op, str] = {
    EXP: "exp(a)",
    LOG: "log(a)",
    SIN: "sin(a)",
    SQRT: "sqrt(a)",
    ERF: "erf(a)",
    ADD: "a + b",
    SUB: "a - b",
    MUL: "a * b",
    DIV: "a / b",
    # nan is not equal to itself, and has to win, as in NumPy.
    MAXIMUM: "a != a || a > b ? a : b",
    LESS: "a < b",
    EQUAL: "a == b",
    IDIV: "floor_quotient(a, b)",
    MOD: "floor_remainder(a, b)",
    POW: "power(a, b)",
    AND: "a & b",
}


class Types(NamedTuple):
    """How CUDA spells a dtype; what it is computed in, and summed in."""

    memory: str
    work: DType
    total: DType


TYPES: dict[DType, Types] = {
    bool_: Types("bool", bool_, int32),
    uint8: Types("unsigned char", int32, int32),
    int8: Types("signed char", int32, int32),
    int32: Types("int", int32, int32),
    int64: Types("long long", int64, int64),
    float16: Types("__half", float32, float64),
    bfloat16: Types("__nv_bfloat16", float32, float64),
    float32: Types("float", float32, float64),
    float64: Types("double", float64, float64),
}

# No larger blocks: a thread may have its share of the registers.
HEAD = 'extern "C" __global__ void __launch_bounds__(256) '
MAPS = {1: "{0}(Walk w, {1} *out, const T *x) "
           "{{ map(w, out, x, [](W a) {{ return {2}; }}); }}",
        2: "{0}(Walk w, {1} *out, const T *x, const T *y) "
           "{{ map(w, out, x, y, [](W a, W b) {{ return {2}; }}); }}"}
NEEDS_KIND = dict.fromkeys((SUB, IDIV, MOD, POW), "iuf") | dict.fromkeys(
    (DIV, EXP, LOG, SIN, SQRT, ERF), "f") | {AND: "biu"}


def maps(dtype: DType) -> Iterator[str]:
    """A kernel for each elementwise operation that `dtype` knows."""
    for op, code in CUDA_CODE.items():
        if dtype.kind in NEEDS_KIND.get(op, "biuf"):
            result = "bool" if op in (LESS, EQUAL) else "T"
            yield HEAD + MAPS[op.arity].format(op, result, code)


def casts() -> Iterator[str]:
    """A kernel for each dtype to come from."""
    for source, (memory, work, _) in TYPES.items():
        yield (f"{HEAD}from_{source}(Walk w, T *out, const {memory} *x) "
               f"{{ cast<{TYPES[work].memory}>(w, out, x); }}")


@functools.cache
def program(card: Any, dtype: DType) -> Program:
    """The primitives of a dtype, compiled for a card."""
    return card.compile(program_text(dtype), *spelled(dtype))


def program_text(dtype: DType) -> str:
    """The CUDA text of all kernels that compute in `dtype`."""
    return "\n".join([kernel_text("kernels/primitives.cu"),
                      *maps(dtype), *casts(), *reduction_sources(dtype)])


def spelled(dtype: DType) -> list[str]:
    """The three types of a dtype, as flags of the compiler."""
    memory, work, total = TYPES[dtype]
    return [f"-DMEMORY={memory}", f"-DWORK={TYPES[work].memory}",
            f"-DTOTAL={TYPES[total].memory}"]


THREADS = 256  # of a block


def elementwise(kernel: str) -> Callable[..., None]:
    """The launch of an elementwise kernel."""
    def launch(gpu: GPU, out: Buffer, *rest: Any) -> None:
        *src, _ = rest
        gpu.each(src[-1].dtype, kernel, out, *src)
    return launch


LAUNCH |= {op: elementwise(op.name) for op in CUDA_CODE}
LAUNCH[WHERE] = elementwise("choose")


def copy_on(gpu: GPU, out: Buffer, x: Buffer, _: Any = None) -> None:
    """Copy between any views, from any dtype to any other."""
    gpu.each(out.dtype, f"from_{x.dtype}", out, x)


LAUNCH[CAST] = copy_on

FORMS = {"": ("T", "T"), "_first": ("A", "T"), "_last": ("T", "A")}


def forms(dtype: DType) -> list[str]:
    """The forms of a fold: one, where T and A are the same type."""
    return [""] if TYPES[dtype].total is dtype else list(FORMS)


def reduction_sources(dtype: DType) -> Iterator[str]:
    """SUM and MAX, by rows and columns, in every form."""
    for op, struct in {SUM: "Sum", MAX: "Max"}.items():
        for way, form in product(("rows", "columns"), forms(dtype)):
            result, source = FORMS[form]
            if (way, form) != ("columns", "_last"):  # parts lie in rows
                yield (f"{HEAD}{op}_{way}{form}(Walk kept, Walk along, "
                       f"i64 piece, {result} *out, const {source} *x) "
                       f"{{ {way}<{struct}>(kept, along, piece, out, x); }}")


def nearest(view: View) -> int:
    """The smallest step along an axis that has one."""
    steps = [abs(s) for n, s in zip(view.shape, view.strides) if n > 1]
    return min(steps, default=1 << 62)


def halves(view: View, axes: tuple[int, ...]) -> tuple[View, View]:
    """A view's kept axes, and those that are folded."""
    kept = [i for i in range(len(view.shape)) if i not in axes]
    first, second = [View(tuple([view.shape[i] for i in part]),
                          tuple([view.strides[i] for i in part]))
                     for part in (kept, axes)]
    return first, second


def way(kept: View, along: View) -> str:
    """Whether a block folds one row or 32 columns."""
    # Lanes side by side should read side by side, and a row fill a warp.
    near = nearest(along) < nearest(kept)
    return "rows" if near and along.size >= 32 else "columns"


def block(how: str, along: int) -> tuple[tuple[int, int], int]:
    """The shape of a block, and how many results it folds."""
    if how == "columns":
        return (THREADS, 1), 32
    return ((32, 8), 8) if along < 1024 else ((THREADS, 1), 1)


def fold(op: Op) -> Callable[..., None]:
    """The launch of a reduction: one fold, or a fold of folds."""
    def launch(gpu: GPU, out: Buffer, x: Buffer,
               axes: tuple[int, ...]) -> None:
        kept, along = halves(x.view, axes)
        if x.view.size == 0:
            fill(gpu, out, 0)
            return
        how = way(kept, along)
        pieces = gpu.pieces(how, kept.size, along.size)
        if pieces == 1:
            gpu.fold(f"{op}_{how}", x.dtype, out, x, axes)
            return
        first, last = forms(x.dtype)[1:] or ("", "")
        # No atomics, but a second launch: the same sum gives the same bits.
        # And no rounding in between, for which the sums are wide.
        part = gpu.empty((kept.size, pieces), TYPES[x.dtype].total)
        gpu.fold(f"{op}_{how}{first}", x.dtype, part, x, axes, pieces)
        gpu.fold(f"{op}_rows{last}", x.dtype, out, part, (1,))
    return launch


def fill(gpu: GPU, out: Buffer, value: Any) -> None:
    """Write one number everywhere."""
    given = TYPES[out.dtype].total.numpy.type(value)
    gpu.each(out.dtype, "fill", out, given=(given,))


LAUNCH[SUM], LAUNCH[MAX] = fold(SUM), fold(MAX)


def const_on(gpu: GPU, out: Buffer, arg: tuple[Any, DType, Shape]) -> None:
    value, dtype, _ = arg
    # The CPU's CONST knows whether the value fits the dtype.
    fill(gpu, out, CPU.run(CONST, arg=(value, dtype, ())).array.item())


LAUNCH[CONST] = const_on


def iota_on(gpu: GPU, out: Buffer, n: int) -> None:
    # It stands in every program, and float32's is compiled in any case.
    program(gpu.card, float32)["iota"](
        gpu.blocks(n), THREADS, np.int64(n), out.address)


def random_on(gpu: GPU, out: Buffer, key: Buffer, _: Any) -> None:
    n = out.view.size
    if not key.view.is_dense:
        key = gpu.run(CAST, key, arg=key.dtype)
    program(gpu.card, float32)["uniform"](
        gpu.blocks((n + 1) // 2), THREADS, np.int64(n), out.address,
        key.address)


LAUNCH[IOTA], LAUNCH[RANDOM] = iota_on, random_on


def pad_on(gpu: GPU, out: Buffer, x: Buffer, margins: Any) -> None:
    fill(gpu, out, 0)
    inner = tuple([(before, n - after, step) for n, (before, after, step)
                   in zip(out.shape, margins)])
    copy_on(gpu, out.moved(out.view.shrink(inner)), x)


def write_on(gpu: GPU, out: Buffer, _: Buffer, value: Buffer,
             arg: None) -> None:
    # Or threads would read what others have overwritten.
    if value.storage is out.storage:
        value = gpu.run(CAST, value, arg=value.dtype)
    copy_on(gpu, out, value)


LAUNCH[PAD], LAUNCH[WRITE] = pad_on, write_on

Walked = tuple[Buffer, tuple[int, ...]]  # a buffer, and its steps

AXIS = np.dtype([("n", "i8"), ("far", "i8"), ("least", "i8")])


def in_table(table: Buffer, index: Buffer,
             axis: int) -> tuple[np.ndarray, Walked]:
    """The indexed axis, and the table's steps without it."""
    n, steps = table.shape[axis], table.view.strides
    still = (0,) * (len(index.shape) - axis)
    return (np.array((n, steps[axis], least_index(axis, n)), AXIS),
            (table, steps[:axis] + still + steps[axis + 1:]))


def wide_index(gpu: GPU, index: Buffer) -> Walked:
    """An index in 64 bits, and its steps."""
    if index.dtype is not int64:
        index = gpu.run(CAST, index, arg=int64)
    return index, index.view.strides


def gather_on(gpu: GPU, out: Buffer, x: Buffer, index: Buffer,
              axis: int) -> None:
    indexed, table = in_table(x, index, axis)
    gpu.indexed("gather", out.shape, indexed, (out, out.view.strides),
                wide_index(gpu, index), table)


def scatter_on(gpu: GPU, out: Buffer, x: Buffer, index: Buffer,
               arg: tuple[int, int]) -> None:
    # Wide, as in a fold; and a card of 2018 cannot add a bfloat16 atomically.
    sums = gpu.empty(out.shape, TYPES[x.dtype].total)
    fill(gpu, sums, 0)
    indexed, table = in_table(sums, index, arg[0])
    gpu.indexed("scatter", x.shape, indexed, table,
                wide_index(gpu, index), (x, x.view.strides))
    copy_on(gpu, out, sums)


LAUNCH[GATHER], LAUNCH[SCATTER] = gather_on, scatter_on


class Matrix(NamedTuple):
    """How cuBLAS is to read a matrix: T turns it, rows `lead` apart."""

    turned: bool
    lead: int


LONGEST = 2 ** 31 - 1  # cuBLAS counts in 32 bits


def matrix(view: View) -> Matrix | None:
    """The last two axes for cuBLAS; None where only a copy will do."""
    (m, n), (row, column) = view.shape[-2:], view.strides[-2:]
    if min(view.strides[:-2], default=0) < 0:
        return None
    if (column == 1 or n == 1) and (n <= row <= LONGEST or m == 1):
        return Matrix(False, row if m > 1 else n)
    if (row == 1 or m == 1) and (m <= column <= LONGEST or n == 1):
        return Matrix(True, column if n > 1 else m)
    return None


def batch_launches(a: Buffer, b: Buffer, c: Buffer
                   ) -> Iterator[tuple[int, list[int], list[int]]]:
    """For each launch how many products, how far apart, and from where."""
    steps = [x.view.strides[:-2] for x in (a, b, c)]
    *outer, (count, *apart) = coalesce(zip(c.shape[:-2], *steps)) or [
        (1, 0, 0, 0)]
    for index in np.ndindex(*[n for n, *_ in outer]):
        yield count, apart, [
            sum(i * axis[k] for i, axis in zip(index, outer))
            for k in (1, 2, 3)]


def product_on(gpu: GPU, out: Buffer, a: Buffer, b: Buffer) -> None:
    """MATMUL of integers and booleans, by our own naive kernel."""
    *stack_a, down_a, right = a.view.strides
    *stack_b, down, right_b = b.view.strides
    steps = walk_struct(out.shape, out.view.strides, (*stack_a, down_a, 0),
                        (*stack_b, 0, right_b))
    program(gpu.card, out.dtype)["product"](
        gpu.blocks(out.view.size), THREADS, steps,
        *map(np.int64, (a.shape[-1], right, down)),
        out.address, a.address, b.address)


def readable(gpu: GPU, x: Buffer) -> tuple[Buffer, Matrix]:
    """A buffer in a form that cuBLAS reads: itself, or a copy."""
    found = matrix(x.view)
    if found:
        return x, found
    return readable(gpu, gpu.run(CAST, x, arg=x.dtype))


def matmul_on(gpu: GPU, out: Buffer, a: Buffer, b: Buffer,
              _: None) -> None:
    (m, k), n, size = a.shape[-2:], b.shape[-1], out.dtype.itemsize
    if k * out.view.size == 0:
        fill(gpu, out, 0)
        return
    if out.dtype not in CUBLAS:
        product_on(gpu, out, a, b)
        return
    if max(m, n, k) > LONGEST:
        raise ValueError(f"MATMUL: cuBLAS takes lengths up to {LONGEST:,}, "
                         f"got {a.shape} @ {b.shape}; multiply a part of "
                         f"them at a time")
    (a, left), (b, right) = readable(gpu, a), readable(gpu, b)
    sides = (a, left), (b, right), (out, Matrix(False, n))
    for count, apart, places in batch_launches(a, b, out):
        x, y, z = [
            Operand(how.turned, side.address + at * size, how.lead, step)
            for (side, how), step, at in zip(sides, apart, places)]
        # cuBLAS takes our rows for columns: it makes C^T, which is B^T A^T.
        gpu.card.gemm(out.dtype, n, m, k, y, x, z, count)


LAUNCH[MATMUL] = matmul_on


def card() -> Card:
    """The NVIDIA GPU of this machine; or an error that says what lacks."""
    if find_spec("cupy") is None:
        raise RuntimeError("cuda: CuPy is not installed; install the "
                           "library with its extra `gpu`, or use the "
                           "device 'emulated', which needs no GPU")
    found = Card()
    if not found.arrays.is_available():
        raise RuntimeError("cuda: CuPy finds no NVIDIA GPU on this machine "
                           "(nvidia-smi lists what the driver knows); use "
                           "'cpu', or 'emulated' to try the kernels")
    return found


CARDS: dict[str, Callable[[], Any]] = {"cuda": card, "emulated": Emulator}


def connect(name: str) -> GPU:
    """The device "cuda" or "emulated"; CUDA's arrays become its own."""
    device = GPU(name, CARDS[name]())
    if name == "cuda":
        READERS[CUDA_MEMORY] = device, device.share
    return device


def stored(device: GPU, values: np.ndarray) -> Storage:
    """Fresh memory of a device that holds these bytes."""
    return device.adopt(values).storage


CUDA_MEMORY = 2  # kDLCUDA in dlpack.h


class OutOfMemory(MemoryError):
    """A device has no room for a tensor; nothing else is lost."""


class Sent(NamedTuple):
    """A batch on its way: tensors, each with what waits for it."""

    copies: list[tuple[Tensor, Callable[[], None]]]

    def result(self) -> tuple[Tensor, ...]:
        """The batch, for kernels that are launched from now on."""
        for _, arrive in self.copies:
            arrive()
        return tuple([tensor for tensor, _ in self.copies])


def prefetch(batches: Iterable[tuple[Tensor, ...]], device: Device | str,
             depth: int = 2) -> Iterator[tuple[Tensor, ...]]:
    """Batches on a GPU; `depth` of them are copied ahead of their use.

    To a device without copies of its own, such as the CPU, each goes
    when its turn comes.
    """
    place: Any = named(device)
    if not isinstance(place, GPU):
        return (tuple([x.to(place) for x in columns(b)]) for b in batches)
    return ahead(lambda batch: Sent([place.begin(x) for x in columns(batch)]),
                 batches, depth)


def columns(batch: Any) -> tuple[Tensor, ...]:
    """A batch, if it is one."""
    if not (isinstance(batch, tuple)
            and all(isinstance(x, Tensor) for x in batch)):
        raise TypeError(f"prefetch: expected a batch to be a tuple of "
                        f"tensors, got {batch!r:.60}")
    return batch


Case = tuple[str, Callable[[], Any], Callable[[], Any], float]


def measured(device: GPU, cases: Iterable[Case],
             limit: float | None) -> Iterator[dict]:
    """Rates of ours and CuPy's: the work of a case, for each second."""
    wait = device.card.arrays.cuda.get_current_stream().synchronize

    def finished(run: Callable[[], Any]) -> Callable[[], float]:
        return functools.partial(burst, lambda: (run(), wait()))
    for case, ours, theirs, work in cases:
        # Both in this process: a forked one would have no context of CUDA's.
        pair = finished(ours), finished(theirs)
        found = steadiest(functools.partial(turns, *pair, 15))
        yield {"case": case, **found.line(
            functools.partial(operator.truediv, work),
            limit and work / found.ours / limit)}


def sweeps(device: GPU, n: int) -> Iterator[dict]:
    """GB/s of kernels that read and write about n float32."""
    cp, side = device.card.arrays, math.isqrt(n)
    x = rand(side, side, device=device)
    a, out = cp.from_dlpack(x), cp.empty((side, side), np.float32)
    small, few = x < 0.5, a < 0.5
    one, two, flagged = [4e-9 * side ** 2 * k for k in (1, 2, 2.25)]
    cases: list[Case] = [
        ("add", lambda: x + x, lambda: a + a, two),
        ("add a row", lambda: x + x[0], lambda: a + a[0], two),
        ("transpose", lambda: x.T.clone(), lambda: a.T.copy(), two),
        ("exp", x.exp, lambda: cp.exp(a), two),
        ("sum of rows", lambda: x.sum(1), lambda: a.sum(1), one),
        ("sum of columns", lambda: x.sum(0), lambda: a.sum(0), one),
        ("sum", x.sum, a.sum, one),
        ("where", lambda: where(small, x, 0.0),
         lambda: cp.where(few, a, np.float32(0)), flagged)]
    wait = cp.cuda.get_current_stream().synchronize
    limit = two / best(lambda: (cp.copyto(out, a), wait()), 20)
    yield from measured(device, cases, limit)


def products(device: GPU, n: int) -> Iterator[dict]:
    """TFLOP/s of matrix products in several dtypes and layouts."""
    cp, work = device.card.arrays, 2e-12 * n ** 3
    x = randn(n, n, device=device)
    a = cp.from_dlpack(x)
    y, b = x.to(float16), a.astype(np.float16)
    stack, c = x.reshape(64, n // 8, n // 8), a.reshape(64, n // 8, n // 8)
    cases: list[Case] = [
        ("float32", lambda: x @ x, lambda: a @ a, work),
        ("float32, transposed", lambda: x.T @ x, lambda: a.T @ a, work),
        ("float16", lambda: y @ y, lambda: b @ b, work),
        ("64 small ones", lambda: stack @ stack, lambda: c @ c, work / 8)]
    yield from measured(device, cases, None)


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """What the device reaches beside CuPy; needs an NVIDIA GPU."""
    try:
        device = connect("cuda")
    except RuntimeError as error:
        raise SystemExit(f"bench gpu: {error}") from None
    found = device.card.arrays.cuda.runtime.getDeviceProperties(0)
    common = {"bench": "gpu", "threads": threads, **stamp("cupy"),
              "machine": found["name"].decode()}
    size, side = (1 << 22, 1024) if quick else (1 << 28, 8192)
    for line in sweeps(device, size):
        yield common | {"unit": "GB/s"} | line
    for line in products(device, side):
        yield common | {"unit": "TFLOP/s"} | line


LAUNCH[CONV] = convolve_by_columns


@functools.cache
def attention_program(card: Any, dtype: DType, width: int) -> Program:
    """kernels/attention.cu for heads of one width."""
    return card.compile(kernel_text("kernels/attention.cu"),
                        f"-DREAL={TYPES[dtype].memory}", f"-DWIDTH={width}")


SIZES_OF_HEADS = np.dtype([
    ("sizes", "i8", 12), ("axis", "i8", (8, 6)), ("causal", "i8"),
    ("scale", "f8"), ("keep", "f8")])


def heads_on(gpu: GPU, *src: Any) -> tuple[Any, ...]:
    """The program, a `struct Heads` and the operands' addresses."""
    q, k, v, *bools, arg = src
    q, k, v = [x if x.view.strides[-1] == 1 else
               gpu.run(CAST, x, arg=x.dtype) for x in (q, k, v)]
    layout = attention_layout(*[x.view for x in (q, k, v, *bools)], *arg)
    made = attention_program(gpu.card, q.dtype, q.shape[-1])
    heads = np.frombuffer(layout, SIZES_OF_HEADS)[0]
    return made, heads, (q, k, v, *bools)


def attend_on(gpu: GPU, out: Buffer, *src: Any) -> None:
    made, heads, operands = heads_on(gpu, *src)
    count, n = heads["sizes"][:2].tolist()
    if out.view.size:
        made["attend"]((count, ceil(n, 32)), (32, 8), heads,
                       *[x.address for x in operands], out.address)


def attend_back_on(gpu: GPU, out: Buffer, g: Buffer, y: Buffer,
                   *src: Any) -> None:
    made, heads, operands = heads_on(gpu, *src)
    count, n, keys = heads["sizes"][:3].tolist()
    if not g.view.is_dense:
        g = gpu.run(CAST, g, arg=g.dtype)
    delta = gpu.empty((count, n), g.dtype)
    block = 32, 8
    if count * n:
        made["deltas"]((count, ceil(n, 8)), block, np.int64(n), g.address,
                       y.address, delta.address)
    given = [x.address for x in (g, y, delta, *operands, out)]
    for name, rows in (("attend_queries", n), ("attend_keys", keys)):
        if count * rows:
            made[name]((count, ceil(rows, 32)), block, heads, *given)


LAUNCH[ATTENTION], LAUNCH[ATTENTION_GRADIENT] = attend_on, attend_back_on
