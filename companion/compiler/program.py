# Tangled from codegen: edit there, `make tangle`. sha256:92739ffa0455
"""Steps as one compiled object."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple, NoReturn

import numpy as np

from companion.blas import against_the_grain, plan, product
from companion.buffer import Buffer, Storage
from companion.compiler.graph import OpNode
from companion.compiler.loops import Loops
from companion.compiler.lower import (
    Index, address_of, combined, loads, stripped)
from companion.compiler.render import C_TYPES, Writer
from companion.compiler.schedule import (
    Call, Kernel, Operand, Step, prepared, schedule, size_of)
from companion.device import (
    CPU, CREW, SUMS, WIDEST, Device, attender, attention_layout, check_index,
    convolution_job, convolver_of, least_index, scatterer)
from companion.dtype import uint8
from companion.native import CELLS, POOL, build, compiler
from companion.ops import (
    ATTENTION, ATTENTION_GRADIENT, BUFFER, CAST, CONV, GATHER, MATMUL, RANDOM,
    SCATTER, WHERE, Op)
from companion.view import Shape, View


def text_of(file: str) -> str:
    """A C file of the library; the notebook that writes it has it newer."""
    if file in CELLS:
        return "".join(CELLS[file])
    return (resources.files("companion") / file).read_text()


def renamed(text: str, suffix: str) -> str:
    """Functions of a C file under names of their own."""
    found = re.findall(r"(?m)^static INLINE [\w ]+?(\w+)\(", text)
    names = "|".join([*found, "WIDE", "DIGITS", "BIAS", "TERMS", "whole"])
    return re.sub(rf"\b({names})\b", rf"\1_{suffix}", text)


def mathematics() -> str:
    """EXP of the chapter on activations for both floats, ERF for one."""
    text = text_of("kernels/loops.c")
    parts = re.findall(r"(?ms)^enum \{ WIDE.*?\n\n|^/\*[^/]*\*/\n"
                       r"typedef __typeof__.*?;\n|^static INLINE .*?^\}\n",
                       text)
    exponential = [part for part in parts if " error(" not in part]
    return "\n".join([
        "#define INLINE inline __attribute__((always_inline))",
        *[f"#define REAL {t}\n" + renamed("".join(of), t) + "#undef REAL"
          for t, of in (("float", parts), ("double", exponential))],
        "#define exp_float exponential_float",
        "#define exp_double exponential_double",
        "#define erf_float error_float", "#define erf_double erf"])


FAST = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd",
        "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off")


def turns(steps: Sequence[Step]) -> list[int]:
    """For each step its turn: kernels that follow each other, and do
    not read each other, take theirs together, in one parallel region."""
    found, stored = list[int](), set[OpNode]()
    for i, step in enumerate(steps):
        alone = isinstance(step, Call) or isinstance(steps[i - 1], Call)
        if not i or alone or step.reads & stored:
            stored = set()
        found.append(found[-1] + (not stored) if found else 0)
        stored |= set(step.stores)
    return found


class Task(NamedTuple):
    """A call: a C expression that is 0 if it fails, where {i} are the
    addresses of the result and of the operands. `job` and `function`
    say, when threads are known, what FUNCTION is told, and what it is.
    """

    code: str
    job: Any = None
    function: Any = None


def product_views(out: OpNode, operands: Sequence[Operand],
                  ) -> tuple[View, View, View, str]:
    """A, B and C of a product, and the order of their addresses."""
    c, (a, b) = View.dense(out.shape), [x.view for x in operands]
    if not against_the_grain(a, b):
        return a, b, c, "{1}, {2}, {0}"
    # C^T = B^T A^T: the views of all three are turned.
    *stack, i, j = range(len(c.shape))
    b, a, c = [x.permute((*stack, j, i)) for x in (a, b, c)]
    return a, b, c, "{2}, {1}, {0}"


def product_task(out: OpNode, operands: Sequence[Operand]) -> Task:
    a, b, c, order = product_views(out, operands)

    def job() -> bytes:
        return plan(a, b, c, 1.0, 0.0, kernel_of(out)[1], POOL.threads)
    return Task(f"((call3 *)FUNCTION)(JOB, {order})", job,
                lambda: kernel_of(out)[0])


def kernel_of(out: OpNode) -> Any:
    return product(out.dtype)


def convolution_task(out: OpNode, operands: Sequence[Operand]) -> Task:
    x, w = [o.view for o in operands]

    def job() -> bytes:
        return convolution_job(x, w, out.arg, POOL.threads)
    return Task("((call3 *)FUNCTION)(JOB, {1}, {2}, {0})", job,
                lambda: convolver_of(w.shape, out.dtype))


def attention_task(name: str) -> Callable[..., Task]:
    def task(out: OpNode, operands: Sequence[Operand]) -> Task:
        n = len(operands)
        *_, q, k, v, mask, kept = [x.view for x in operands]
        if q.shape[-1] > WIDEST:
            raise ValueError(f"jit: heads of {q.shape[-1]} numbers; "
                             f"kernels/attention.c has room for {WIDEST}")
        small = q.size * k.shape[-2] < 1 << 18

        def job() -> bytes:
            heads = attention_layout(q, k, v, mask, kept, *out.arg)
            return heads + CREW.pack(1 if small else POOL.threads,
                                     POOL.address)
        order = ", ".join(f"{{{i}}}" for i in [*range(1, n + 1), 0])
        return Task(f"((call{n + 1} *)FUNCTION)(JOB, {order})", job,
                    lambda: attender(name, out.dtype, n + 1))
    return task


def indexed_sizes(x: Shape, axis: int, n: int,
                  index: Shape) -> tuple[int, int, int, int]:
    return (math.prod(index[:axis]), math.prod(index[axis:]), n,
            least_index(axis, n))


def gather_task(out: OpNode, operands: Sequence[Operand]) -> Task:
    x, index = [o.view.shape for o in operands]
    outer, count, n, low = indexed_sizes(x, out.arg, x[out.arg], index)
    size = math.prod(x[out.arg + 1:]) * out.dtype.itemsize
    return Task(f"gather({{1}}, (const long *){{2}}, {{0}}, {outer}, "
                f"{count}, {n}, {size}, {low})")


def scatter_task(out: OpNode, operands: Sequence[Operand]) -> Task:
    x, index = [o.view.shape for o in operands]
    axis, n = out.arg
    outer, count, n, low = indexed_sizes(x, axis, n, index)
    size, kind = math.prod(x[len(index):]), C_TYPES[out.dtype]
    order = f"{{1}}, (const long *){{2}}, {{0}}, {outer}, {count}, {n}"
    if not out.dtype.is_float:
        return Task(f"scatter_{kind.replace(' ', '_')}({order}, {size}, "
                    f"{low})")

    def job() -> bytes:
        threads = 1 if outer * (count + n) * size < 1 << 15 else POOL.threads
        return SUMS.pack(outer * count, outer * n, size, 8 * threads,
                         threads, POOL.address)
    return Task(f"scatter((sum_rows *)FUNCTION, JOB, {order}, {low})", job,
                lambda: scatterer(out.dtype))


def uniform_task(out: OpNode, operands: Sequence[Operand]) -> Task:
    size = math.prod(out.shape)
    return Task(f"(parallel(uniform, &(struct draw){{{{(const long *){{1}}, "
                f"(float *){{0}}, {size}}}}}, ({size} + DRAWN - 1) / DRAWN, "
                f"threads), 1)")


TASKS: dict[Op, Callable[..., Task]] = {
    MATMUL: product_task, CONV: convolution_task, GATHER: gather_task,
    SCATTER: scatter_task,
    RANDOM: uniform_task, ATTENTION: attention_task("attend"),
    ATTENTION_GRADIENT: attention_task("attend_back")}
CHECKED = {GATHER, SCATTER}  # may refuse an index


def align(n: int) -> int:
    return -(-n // 64) * 64


def arena(spans: Mapping[Any, tuple[int, int, int]],
          ) -> tuple[dict[Any, int], int]:
    """Offsets of values (bytes, first and last turn), and the size.

    The largest first, each at the lowest place that is free as long as
    it lives.
    """
    placed = list[tuple[int, int, int, int]]()
    found, most = dict[Any, int](), 0
    for key, (size, first, last) in sorted(
            spans.items(), key=lambda item: -item[1][0]):
        offset = 0
        for start, end, begin, over in sorted(placed):
            if begin <= last and first <= over:
                if offset + align(size) <= start:
                    break
                offset = max(offset, end)
        placed.append((offset, offset + align(size), first, last))
        found[key], most = offset, max(most, offset + align(size))
    return found, most


class Place(NamedTuple):
    """Bytes from the start of a slot of memory."""

    slot: int
    offset: int = 0


class Plan:
    """Where each value of a program is.

    Slot 0 is the arena, then come the leaves and, one by one, the roots.
    `targets`: of some roots the leaf whose memory they overwrite.
    """

    def __init__(self, steps: Sequence[Step], roots: Sequence[OpNode],
                 targets: Mapping[int, OpNode],
                 writer: type[Writer] = Writer):
        self.steps, self.writer = steps, writer
        read = {x for step in steps for x in step.reads if x.op is BUFFER}
        # By age, not as sets have them: the text has to be the same tomorrow.
        self.leaves = sorted(read, key=lambda x: x.age)
        self.places = {x: Place(1 + i) for i, x in enumerate(self.leaves)}
        self.copies: list[tuple[Place, OpNode]] = []
        self.live()
        self.kept = {*self.made} & {*self.last} | {*map(stripped, roots)}
        self.patched: dict[OpNode, None] = {}
        self.loops = {i: self.near(step) for i, step in enumerate(steps)
                      if isinstance(step, Kernel)}
        for i, root in enumerate(roots):
            self.put(i, stripped(root), targets.get(i))
        for i in dict.fromkeys([self.maker[x] for x in self.patched]):
            self.loops[i] = self.near(self.loops[i].kernel)
        self.room = self.arrange()

    def near(self, kernel: Kernel) -> Loops:
        """A kernel's loops; row buffers that are too large get memory."""
        loops = Loops(kernel, self.kept, self.patched)
        writer = self.writer(loops)
        if writer.near() <= writer.room:
            return loops
        self.kept |= set(loops.buffers)
        return Loops(kernel, self.kept, self.patched)

    def live(self) -> None:
        """In which turn each value is made, and read for the last time."""
        self.turns = turns(self.steps)
        self.maker = {x: i for i, step in enumerate(self.steps)
                      for x in step.stores}
        self.made = {x: self.turns[i] for x, i in self.maker.items()}
        self.last: dict[OpNode, int] = {}
        for turn, step in zip(self.turns, self.steps):
            self.last |= dict.fromkeys(step.reads, turn)

    def arrange(self) -> int:
        """Put all that is left into the arena: how large it is."""
        spans: dict[Any, tuple[int, int, int]] = {
            x: (size_of(x), self.made[x], self.last.get(x, self.made[x]))
            for x in self.made if x in self.kept and x not in self.places}
        for i, loops in self.loops.items():
            writer = self.writer(loops)
            for name, _, width, _ in writer.totals():
                turn = self.turns[i]
                spans[i, name] = (8 * width * writer.parts, turn, turn)
        offsets, size = arena(spans)
        self.places |= {x: Place(0, offset) for x, offset in offsets.items()}
        self.spans = spans
        return size

    def put(self, i: int, node: OpNode, leaf: OpNode | None) -> None:
        """The i-th root in its slot: at once, or by a copy at the end."""
        slot = Place(1 + len(self.leaves) + i)
        if node in self.places or leaf and not self.overwrites(node, leaf):
            self.copies.append((slot, node))
            self.last[node] = len(self.steps)  # until after all turns
        else:
            self.places[node] = slot
            if leaf and is_patch(node, leaf):
                self.patched[node] = None

    def overwrites(self, node: OpNode, leaf: OpNode) -> bool:
        """Whether `node` may be made in the memory of `leaf`: all has
        been read from there, and no call can fail any more."""
        i, turn, read = (self.maker[node], self.made[node],
                         self.last.get(leaf, -1))
        late = any(isinstance(step, Call) for step in self.steps[i:])
        # Of kernels in one turn, nobody knows which is the first.
        beside = any(leaf in step.reads for j, step in enumerate(self.steps)
                     if j != i and self.turns[j] == turn)
        return not late and (read < turn or read == turn and not beside
                             and self.in_step(i, node, leaf))

    def in_step(self, i: int, node: OpNode, leaf: OpNode) -> bool:
        """Whether a kernel reads the leaf only where `node` will be."""
        if i not in self.loops or len(self.loops[i].phases) > 1:
            return False
        kernel = self.loops[i].kernel
        made, start = kernel.lowered[node], Index(leaf.arg.view.offset)
        mine = combined((address_of(*made[:2]), 1), (start, 1))
        readers = [x for x in kernel.lowered.values() if any(
            load.node is leaf for load in loads(x.scalar))]
        # What is read after the write has been read before, or never.
        order = list(kernel.lowered.values())
        return order.index(readers[0]) <= order.index(made) and all(
            load.address == mine and x.inner == made.inner
            for x in readers for load in loads(x.scalar)
            if load.node is leaf)


def is_patch(node: OpNode, leaf: OpNode) -> bool:
    """Whether it is the leaf, with other elements in some places."""
    return node.op is WHERE and stripped(node.src[2]) is leaf


def patches(order: Sequence[OpNode], roots: Sequence[OpNode],
            targets: Mapping[int, OpNode]) -> dict[OpNode, None]:
    """The roots that patch their targets, and that nobody reads."""
    read = {stripped(x) for node in order for x in node.src
            if stripped(node) is not stripped(x)}
    found = [stripped(roots[i]) for i, leaf in targets.items()
             if is_patch(stripped(roots[i]), leaf)]
    return dict.fromkeys([node for node in found if node not in read])


class Code:
    """The C text of a plan, and what its calls are told."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.texts: dict[str, str] = {}  # of kernels, and their names
        self.makes: dict[str, list[OpNode]] = {}
        self.tasks: list[Task] = []
        self.lines = [self.call(i, plan.steps[i]) if i not in plan.loops
                      else self.turn([i, *more]) for i, *more in by_turn(plan)]
        self.lines += [
            f"memmove({self.at(slot)}, {self.at(plan.places[x])}, "
            f"{size_of(x)});" for slot, x in plan.copies]
        kernels = [self.origin(name) + text.replace("NAME", name)
                   for text, name in self.texts.items()]
        self.text = "\n".join([
            text_of("kernels/program.c"), mathematics(), *kernels,
            '#line 1 "run"', RUN % "\n  ".join(self.lines)])

    def origin(self, kernel: str) -> str:
        """What a C compiler calls the lines that follow."""
        made = ", ".join(map(repr, self.makes[kernel]))
        return f'#line 1 "the kernel of {made}"\n'

    def at(self, place: Place, extra: int = 0) -> str:
        return f"m[{place.slot}] + {place.offset + extra}"

    def turn(self, steps: Sequence[int]) -> str:
        """Lines that start the kernels of some steps together."""
        slots, pieces, ends, parts = [], [], [], 0
        for i in steps:
            writer = Writer(self.plan.loops[i])
            text = "\n".join([writer.main(), writer.last()])
            name = self.texts.setdefault(text, f"k{len(self.texts)}")
            self.makes.setdefault(name, self.plan.steps[i].stores)
            places: list[Any] = [*writer.slots, *[
                (i, total) for total, *_ in writer.totals()]]
            inside = ", ".join(self.at(self.plan.places[x]) for x in places)
            slots.append(f"char *p{i}[] = {{{inside}}};")
            pieces.append(f"{{{name}, p{i}, {writer.parts}}}")
            ends += [f"{name}_end(p{i});"] if writer.loops.columns else []
            parts += writer.parts
        return " ".join([
            "{", *slots, f"struct piece g[] = {{{', '.join(pieces)}}};",
            f"parallel(some, g, {parts}, threads);", *ends, "}"])

    def call(self, i: int, step: Any) -> str:
        """A line that calls the library, and ends the program if that
        fails."""
        task = TASKS[step.node.op](step.node, step.operands)
        places = self.plan.places
        slots = [self.at(places[step.node]), *[self.at(
            places[x.node], x.view.offset * x.node.dtype.itemsize)
            for x in step.operands]]
        code = task.code.format(*[f"({slot})" for slot in slots])
        if task.function:
            n = len(self.tasks)
            code = code.replace("JOB", f"jobs[{n}]").replace(
                "FUNCTION", f"functions[{n}]")
            self.tasks.append(task)
        return f"if (!{code}) return {i + 1};"


RUN = """
typedef int call3(const void *, void *, void *, void *);
typedef int call6(const void *, void *, void *, void *, void *, void *,
                  void *);
typedef int call8(const void *, void *, void *, void *, void *, void *,
                  void *, void *, void *);

int run(char **m, char **jobs, void **functions, long threads,
        pool *parallel) {
  %s
  return 0;
}
"""


def by_turn(plan: Plan) -> list[list[int]]:
    """The steps of each turn."""
    found: dict[int, list[int]] = {}
    for i, turn in enumerate(plan.turns):
        found.setdefault(turn, []).append(i)
    return list(found.values())


class Program:
    """A graph, compiled: calling it computes the roots once.

    `results` are their buffers; a leaf's memory is read where it is.
    A CompileError names the operations of the kernel that C refuses.
    """

    writer = Writer

    def __init__(self, order: Sequence[OpNode], roots: Sequence[OpNode],
                 targets: Mapping[int, OpNode] = {}, *flags: str,
                 device: Device = CPU):
        roots = [OpNode(CAST, (r,), r.dtype) if stripped(r).op is BUFFER
                 else r for r in roots]
        order = list(dict.fromkeys([*order, *roots]))
        check_targets(targets.values())
        last = patches(order, roots, targets)
        self.steps, self.targets = schedule(order, roots, last), targets
        self.plan = Plan(self.steps, roots, targets, self.writer)
        self.device = device
        self.results = [targets[i].arg if i in targets
                        else device.empty(root.shape, root.dtype)
                        for i, root in enumerate(roots)]
        self.arena = device.empty((self.plan.room + 64,), uint8)
        self.code = self.written()
        self.load(self.code.text, *flags)
        self.bind()

    @staticmethod
    def ready() -> Any:
        """What a machine has to have, or a CompileError."""
        return compiler()

    def written(self) -> Any:
        return Code(self.plan)

    def load(self, text: str, *flags: str) -> None:
        """Compile the text, or find it compiled."""
        self.library = ctypes.CDLL(str(build(text, *FAST, *flags)))
        self.run = self.library.run
        self.run.argtypes = [ctypes.c_void_p] * 3 + [
            ctypes.c_long, ctypes.c_void_p]
        self.threads = 0

    def bind(self) -> None:
        """The addresses of all memory."""
        start = align(self.arena.address)
        found = [start, *[x.arg.storage.address for x in self.plan.leaves],
                 *[x.address for x in self.results]]
        self.memory = (ctypes.c_void_p * len(found))(*found)
        self.usual = bytes(self.memory)

    def tell(self) -> None:
        """What the library is told depends on the threads."""
        tasks = self.code.tasks
        self.told = [task.job() for task in tasks]
        self.jobs = (ctypes.c_char_p * len(tasks))(*self.told)
        self.functions = (ctypes.c_void_p * len(tasks))(*[ctypes.cast(
            task.function(), ctypes.c_void_p).value for task in tasks])
        self.threads = POOL.threads

    def __call__(self, lent: Mapping[OpNode, Buffer] = {},
                 apart: Collection[int] = ()) -> list[Buffer]:
        """The results, some of them in memory that is not used again."""
        if self.threads != POOL.threads:
            self.tell()
        found, memory = [*self.results], self.memory
        places, first = self.plan.places, 1 + len(self.plan.leaves)
        for i in apart:
            found[i] = Buffer.empty(found[i].shape, found[i].dtype)
            memory[first + i] = found[i].address
        for leaf, buffer in lent.items():
            if leaf in places:
                memory[places[leaf].slot] = buffer.address
        failed = self.run(memory, self.jobs, self.functions, self.threads,
                          POOL.address)
        if lent or apart:
            ctypes.memmove(memory, self.usual, len(self.usual))
        if failed:
            for i in apart:
                np.copyto(self.results[i].array, found[i].array)
            self.fail(self.steps[failed - 1], lent)
        return found

    def fail(self, step: Any, lent: Mapping[OpNode, Buffer]) -> NoReturn:
        """Say what the library has refused, as it would have said it."""
        node = step.node
        if node.op in CHECKED:
            x, index = [self.buffer(o, lent) for o in step.operands]
            axis, n = node.arg if node.op is SCATTER else (
                node.arg, x.shape[node.arg])
            check_index(node.op, index, axis, n)
        raise MemoryError(f"{node.op}: no memory for {node.shape}")

    def buffer(self, operand: Operand,
               lent: Mapping[OpNode, Buffer] = {}) -> Buffer:
        """What is in memory where a call reads."""
        if operand.node in lent:
            memory = lent[operand.node].array
            return Buffer(Storage(memory), operand.view, operand.node.dtype)
        if operand.node.op is BUFFER:
            return operand.node.arg.moved(operand.view)
        place = self.plan.places[operand.node]
        start = align(self.arena.address) - self.arena.address
        memory = self.arena.array[start + place.offset:] if (
            not place.slot) else self.results[
                place.slot - 1 - len(self.plan.leaves)].array
        return Buffer(Storage(memory), operand.view, operand.node.dtype)


def check_targets(leaves: Iterable[OpNode]) -> None:
    for leaf in leaves:
        if not leaf.arg.view.is_dense:
            raise ValueError(
                f"jit: {leaf} has strides {leaf.arg.view.strides}; expected "
                f"memory in order, to write over it: copy it first")


# The programs of a device, by its kind.
PROGRAMS: dict[type[Device], type[Program]] = {Device: Program}


def program_of(device: Device) -> type[Program]:
    """The kind of program that a device runs."""
    if type(device) not in PROGRAMS:
        raise TypeError(f"jit: no programs are made for the device {device}, "
                        f"a {type(device).__name__}; known are those of "
                        f"{', '.join(k.__name__ for k in PROGRAMS)}")
    return PROGRAMS[type(device)]


def compile_graph(roots: Sequence[OpNode],
                  targets: Mapping[int, OpNode] = {}, *flags: str,
                  device: Device = CPU) -> Program:
    """The program that computes `roots` on `device`, by all rules."""
    kind = program_of(device)
    return kind(*prepared(roots), targets, *flags, device=device)
