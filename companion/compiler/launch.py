# Tangled from launches: edit there, `make tangle`. sha256:e24d7ec1ab19
"""Programs as lists of launches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from companion.buffer import Buffer
from companion.compiler.cuda import BLOCK, CudaWriter, divisions
from companion.compiler.graph import OpNode
from companion.compiler.lazy import Lazy
from companion.compiler.program import (
    CHECKED, PROGRAMS, Code, Place, Plan, Program, align)
from companion.compiler.schedule import Call, Operand, own, size_of
from companion.cuda import Part, kernel_text
from companion.device import DEVICES, DRIVERS, QUIET
from companion.gpu import GPU
from companion.ops import BUFFER, MATMUL


class Launch(NamedTuple):
    """A kernel by name, how many threads it has, and what it is told:
    "fault", or what has a place in the plan."""

    kernel: str
    grid: int
    block: tuple[int, int]
    told: tuple[Any, ...]


class CudaCode(Code):
    """The CUDA text of a plan, and its launches, step by step.

    Kernels that make nodes in `guarded` are careful: they look for a
    note of a wrong index first.
    """

    def __init__(self, plan: Plan, guarded: Container[OpNode]):
        self.plan, self.guarded = plan, guarded
        self.texts: dict[str, str] = {}  # of kernels, and their names
        self.makes: dict[str, list[OpNode]] = {}
        self.launches = {i: [*self.kernel(i)] for i in plan.loops}
        kernels = [self.origin(name) + text.replace("NAME", name)
                   for text, name in self.texts.items()]
        self.text = "\n".join([
            kernel_text("kernels/fused.cu"), divisions(), *kernels])

    def kernel(self, i: int) -> Iterator[Launch]:
        """A step's kernel, and a second that ends sums of columns."""
        writer = CudaWriter(self.plan.loops[i])
        stores = self.plan.steps[i].stores
        guard = any(x in self.guarded for x in stores)
        text = "\n".join([writer.main(guard), writer.last(guard)])
        name = self.texts.setdefault(text, f"k{len(self.texts)}")
        self.makes.setdefault(name, stores)
        told = (*["fault"] * guard, *writer.slots, *[
            (i, total) for total, *_ in writer.totals()])
        yield Launch(name, writer.parts, (writer.lanes, writer.up), told)
        widths = [width for _, _, width, _ in writer.totals()]
        if widths:
            yield Launch(f"{name}_end", -(-max(*widths, 1) // 32), (32, 8),
                         told)


class LaunchProgram(Program):
    """A graph as launches on a card: calling it computes the roots once.

    A wrong index raises IndexError after the last launch; what the
    program was to overwrite is then as it was.
    """

    writer = CudaWriter
    device: GPU

    @staticmethod
    def ready() -> bool:
        return True  # where there is a card, there is its compiler

    def written(self) -> CudaCode:
        first = 1 + len(self.plan.leaves)
        careful = any(isinstance(step, Call) and step.node.op in CHECKED
                      for step in self.steps)
        slots = {first + i for i in self.targets} if careful else set()
        return CudaCode(self.plan, {
            x for x, place in self.plan.places.items()
            if isinstance(x, OpNode) and place.slot in slots})

    def load(self, text: str, *flags: str) -> None:
        """Compile the text for the card."""
        card = self.device.card
        self.compiled = card.compile(text, card.plain, *flags)

    def bind(self) -> None:
        """All launches with their addresses, in order."""
        self.start = align(self.arena.address) - self.arena.address
        self.parts = [
            Part(run, isinstance(step, Call) and step.node.op is MATMUL)
            for i, step in enumerate(self.steps)
            for run in ([self.call(step)] if isinstance(step, Call)
                        else map(self.launch, self.code.launches[i]))]
        self.parts += [Part(self.copy(slot, node), False)
                       for slot, node in self.plan.copies]
        self.replay: list[Callable[[], Any]] | None = None

    def launch(self, one: Launch) -> Callable[[], None]:
        told = [self.device.fault.address if what == "fault"
                else self.address(self.plan.places[what])
                for what in one.told]
        kernel = self.compiled[one.kernel]
        return functools.partial(kernel, one.grid, one.block, *told)

    def call(self, step: Call) -> Callable[[], None]:
        """A kernel of the device's own, on views of our memory."""
        node, found = step.node, map(self.buffer, step.operands)
        out = self.buffer(own(node))
        kernel = self.device.kernels[node.op]
        return functools.partial(kernel, out, *found, node.arg)

    def address(self, place: Place) -> int:
        leaves = self.plan.leaves
        bases = [self.arena.address + self.start,
                 *[x.arg.storage.address for x in leaves],
                 *[x.address for x in self.results]]
        return bases[place.slot] + place.offset

    def buffer(self, operand: Operand,
               lent: Mapping[OpNode, Buffer] = {}) -> Buffer:
        """What is in memory where a call reads."""
        node, view = operand
        if node.op is BUFFER:
            return node.arg.moved(view)
        slot, start = self.plan.places[node]
        memory, start = ((self.results[slot - 1 - len(self.plan.leaves)],
                          start) if slot else
                         (self.arena, start + self.start))
        first = memory.view.offset + start // node.dtype.itemsize
        return Buffer(memory.storage, view._replace(
            offset=view.offset + first), node.dtype)

    def copy(self, slot: Place, node: OpNode) -> Callable[[], None]:
        """A launch that writes a value over another at the end."""
        word = 4 if node.dtype.itemsize >= 4 else 1
        n = size_of(node) // word
        return functools.partial(
            self.compiled[f"keep{word}"], max(min(n >> 8, 4096), 1), BLOCK,
            self.device.fault.address, n, self.address(slot),
            self.address(self.plan.places[node]))

    def __call__(self, lent: Mapping[OpNode, Buffer] = {},
                 apart: Collection[int] = ()) -> list[Buffer]:
        """The results. Addresses hold still: what is lent is copied, and
        so are the results that will not be used again."""
        device = self.device
        for leaf in lent:
            device.put(leaf.arg, lent[leaf])
        # What others have done wrong is not to look like ours.
        device.check_indices()
        QUIET.copy().run(self.play)
        device.asked = any(isinstance(step, Call) and step.node.op in CHECKED
                           for step in self.steps)
        device.check_indices()
        return [device.twin(x) if i in apart else x
                for i, x in enumerate(self.results)]

    def play(self) -> None:
        """The first time one by one; then as the card has recorded it."""
        for run in self.replay or [part.run for part in self.parts]:
            run()
        if self.replay is None:
            self.replay = self.device.card.recorded(self.parts)


PROGRAMS[GPU] = LaunchProgram


def connect(name: str) -> Lazy:
    """The lazy device of that name: its programs are launches."""
    base = name.removeprefix("lazy ")
    # Not by `named`, which waits for us.
    if base not in DEVICES:
        DEVICES[base] = import_module(DRIVERS[base]).connect(base)
    return Lazy(DEVICES[base])
