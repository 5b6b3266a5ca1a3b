# Tangled from codegen: edit there, `make tangle`. sha256:6ae0b6050fd0
"""The loops of a kernel: which line stands where."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple

from companion.compiler.graph import OpNode
from companion.compiler.lower import (
    Guard, Index, Load, Lowered, Scalar, address_of, depth)
from companion.compiler.schedule import Kernel
from companion.dtype import DType, bool_, int64
from companion.ops import BUFFER, IDIV, IOTA, PAD, WRITE, Op


class Line(NamedTuple):
    """name = op of arguments; `arg` as in a Scalar.

    WRITE stores its last argument at an address of a node, if the one
    before it, where there is one, holds. SUM and MAX fold theirs into
    the accumulator `name`. IDIV is a variable made of an index.
    """

    op: Op
    name: str
    args: tuple[str, ...]
    arg: Any
    dtype: DType


class Nest:
    """Loops inside each other, and the lines at the head of each."""

    def __init__(self, inner: tuple[int, ...]):
        self.inner = inner
        self.lines: list[list[Line]] = [[] for _ in inner]
        self.folds: list[Line] = []  # what is folded along the loops


class Phase:
    """What is done once for a row, and then the loops over it."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.nests: dict[tuple[int, ...], Nest] = {}


class Loops:
    """A kernel as phases of lines; `kept` are nodes that others read.

    A node that is `patched` is a WHERE in memory that holds its last
    operand: where that is chosen, nothing has to be written.
    """

    def __init__(self, kernel: Kernel, kept: Container[OpNode],
                 patched: Container[OpNode] = ()):
        self.kernel, self.kept, self.patched = kernel, kept, patched
        self.phases: list[Phase] = []
        self.columns: list[tuple[Lowered, str]] = []
        self.nodes: dict[OpNode, None] = {}  # memory, of others or kept
        self.buffers: dict[OpNode, None] = {}  # memory for a row
        self.at: dict[OpNode, int] = {}  # the phase that makes an item
        self.results: dict[OpNode, str] = {}  # values of the whole row
        self.names: dict[Any, str] = {}
        self.when: dict[Any, int] = {}
        for made in kernel.lowered.values():
            PLACED[made.item.kind](self, made)

    def phase(self, i: int) -> Phase:
        while len(self.phases) <= i:
            self.phases.append(Phase())
        return self.phases[i]

    def lines(self, i: int, inner: tuple[int, ...], level: int) -> list[Line]:
        """Where a line goes: into which phase, inside how many loops."""
        phase = self.phase(i)
        if not level:
            return phase.lines
        return phase.nests.setdefault(inner, Nest(inner)).lines[level - 1]

    def earliest(self, scalar: Scalar, inner: tuple[int, ...]) -> int:
        """The phase in which a scalar can be computed."""
        key = scalar, inner
        if key not in self.when:
            self.when[key] = max(
                [self.earliest(x, inner) for x in scalar.src], default=0)
            if scalar.op is BUFFER and scalar.arg.node in self.at:
                self.when[key] = self.after(scalar.arg, inner)
        return self.when[key]

    def after(self, load: Load, inner: tuple[int, ...]) -> int:
        made, at = self.kernel.lowered[load.node], self.at[load.node]
        now = made.item.kind == "map" and (
            not made.inner or self.same_place(load, inner))
        return at if now else at + 1

    def same_place(self, load: Load, inner: tuple[int, ...]) -> bool:
        """Whether it reads what the same round of the loop has made."""
        made = self.kernel.lowered[load.node]
        return made.inner == inner and not load.guards and (
            load.address == address_of(made.item, inner))

    def line(self, scalar: Scalar, i: int, inner: tuple[int, ...]) -> str:
        """The name of a scalar, after the line that computes it."""
        level = scalar.depth
        i = i if level else self.earliest(scalar, inner)
        key = scalar, i, inner if level else ()
        if key not in self.names:
            args = tuple([self.name(x, i, inner) for x in scalar.src])
            for index in indices(scalar):
                self.prepare(index, i, inner)
            args += self.memory(scalar)
            for guard in guards_of(scalar):
                self.guard(guard, i, inner)
            self.names[key] = name = f"v{len(self.names)}"
            self.lines(i, inner, level).append(Line(
                scalar.op, name, args, scalar.arg, scalar.dtype))
        return self.names[key]

    def name(self, scalar: Scalar, i: int, inner: tuple[int, ...]) -> str:
        """Of the scalar, after lines that compute it in phase `i`."""
        if scalar.op is BUFFER and scalar.arg.node in self.at:
            return self.inside(scalar, i, inner)
        return self.line(scalar, i, inner)

    def inside(self, scalar: Scalar, i: int, inner: tuple[int, ...]) -> str:
        """Of an element that this kernel has made itself."""
        load: Load = scalar.arg
        made = self.kernel.lowered[load.node]
        if load.node in self.results and not load.guards:
            return self.results[load.node]
        if i == self.at[load.node] and self.same_place(load, inner):
            return self.name(made.scalar, i, inner)
        if load.node not in self.kept and load.node not in self.results:
            self.buffers[load.node] = None
        return self.line(scalar, i, inner)

    def memory(self, scalar: Scalar) -> tuple[str, ...]:
        """A value of the row that a load is, or none: it has memory."""
        node = scalar.arg.node if scalar.op is BUFFER else None
        if node in self.results:
            return (self.results[node],)
        if node is not None and node not in self.buffers:
            self.nodes[node] = None
        return ()

    def guard(self, guard: Guard, i: int, inner: tuple[int, ...]) -> None:
        """A line that asks, outside of all loops that do not matter."""
        level = depth(guard.place)
        key = guard, i if level else 0, inner if level else ()
        if key not in self.names:
            self.names[key] = ""
            self.lines(key[1], inner, level).append(
                Line(PAD, "", (), guard, bool_))

    def prepare(self, index: Index, i: int, inner: tuple[int, ...]) -> None:
        """Lines for the variables that are made of others."""
        for var, _ in index.terms:
            key = var, i if var.depth else 0, inner if var.depth else ()
            if var.how and key not in self.names:
                self.prepare(var.of, i, inner)
                self.names[key] = ""
                self.lines(key[1], inner, var.depth).append(
                    Line(IDIV, "", (), var, int64))

    def map(self, made: Lowered) -> None:
        """Each element, where it belongs."""
        node, inner = made.item.node, made.inner
        i = self.at[node] = self.earliest(made.scalar, inner)
        name = self.name(made.scalar, i, inner)
        if not inner:
            self.results[node] = name
        if node in self.kept:
            self.nodes[node] = None
        address = address_of(made.item, inner)
        self.prepare(address, i, inner)
        stored = (name,) if node not in self.patched else tuple(
            [self.name(x, i, inner) for x in made.scalar.src[:2]])
        self.lines(i, inner, len(inner)).append(
            Line(WRITE, "", stored, Load(node, address), node.dtype))

    def row(self, made: Lowered) -> None:
        """A sum, or a maximum, for each row."""
        node, inner = made.item.node, made.inner
        i = self.earliest(made.scalar, inner)
        name = self.name(made.scalar, i, inner)
        if inner:
            fold = f"s{len(self.results)}"
            line = Line(node.op, fold, (name,), None, node.dtype)
            self.lines(i, inner, len(inner)).append(line)
            self.phase(i).nests[inner].folds.append(line)
            i, name = i + 1, fold
        self.at[node], self.results[node] = i - 1, name
        if node in self.kept:
            self.nodes[node] = None
            self.lines(i, (), 0).append(Line(WRITE, "", (name,), Load(
                node, address_of(made.item, inner)), node.dtype))

    def column(self, made: Lowered) -> None:
        """A sum for each place of a row, over all rows of a part."""
        node, inner = made.item.node, made.inner
        i = self.at[node] = self.earliest(made.scalar, inner)
        name = self.name(made.scalar, i, inner)
        address = address_of(made.item, inner)
        self.prepare(address, i, inner)
        self.nodes[node] = None
        total = f"c{len(self.columns)}"
        self.columns.append((made, total))
        self.lines(i, inner, len(inner)).append(
            Line(node.op, total, (name,), address, node.dtype))


PLACED: dict[str, Callable[[Loops, Lowered], None]] = {}


def indices(scalar: Scalar) -> list[Index]:
    """The indices in a scalar's argument."""
    if scalar.op is BUFFER:
        return [scalar.arg.address, *[g.place for g in scalar.arg.guards]]
    found = {IOTA: scalar.arg, PAD: getattr(scalar.arg, "place", None)}
    return [found[scalar.op]] if scalar.op in found else []


def guards_of(scalar: Scalar) -> tuple[Guard, ...]:
    return scalar.arg.guards if scalar.op is BUFFER else (
        (scalar.arg,) if scalar.op is PAD else ())


PLACED |= {"map": Loops.map}

PLACED |= {"row": Loops.row}

PLACED |= {"column": Loops.column}
