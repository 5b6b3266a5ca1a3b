# Tangled from fusion: edit there, `make tangle`. sha256:77ca95fd8fe1
"""What reaches memory, and which of it is made by one kernel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import (
    Collection, Container, Iterable, KeysView, Mapping, Sequence)
from typing import NamedTuple, cast

from companion.compiler.graph import OpNode, toposort
from companion.compiler.lower import (
    NEAREST, Index, Item, Load, Lowered, Lowering, Scalar, Var, as_item,
    bounds, loads, lower, scalars, stripped)
from companion.compiler.rewrite import rewrite
from companion.compiler.rules import FUSED, LOWERING, RULES
from companion.device import MOVE, moved
from companion.ops import (
    ATTENTION, ATTENTION_GRADIENT, BUFFER, CONV, ERF, EXP, FAMILIES, GATHER,
    IDIV, LOG, MATMUL, MOD, POW, RANDOM, RESHAPE, SCATTER, SIN, Op)
from companion.view import View

LIBRARY = {MATMUL, CONV, GATHER, SCATTER, RANDOM, ATTENTION,
           ATTENTION_GRADIENT}
# What a call asks of each operand's memory: anything, rows side by side,
# or all in order.
ANY, ROWS, DENSE = "any", "rows", "dense"
ASKS: dict[Op, tuple[str, ...]] = {
    MATMUL: (ANY, ANY), CONV: (ANY, ANY), GATHER: (DENSE, DENSE),
    SCATTER: (DENSE, DENSE),
    RANDOM: (DENSE,), ATTENTION: (ROWS, ROWS, ROWS, ANY, ANY),
    ATTENTION_GRADIENT: (DENSE, DENSE, ROWS, ROWS, ROWS, ANY, ANY)}


def fits(view: View, asked: str) -> bool:
    return asked == ANY or (view.is_dense if asked == DENSE else
                            view.strides[-1] == 1)


class Operand(NamedTuple):
    """A stored node, and the view of its memory that a call reads."""

    node: OpNode
    view: View


def own(node: OpNode) -> Operand:
    """A node's own memory: a leaf's as it lies, any other's in order."""
    return Operand(node, node.arg.view if node.op is BUFFER
                   else View.dense(node.shape))


def operand(node: OpNode, asked: str = ANY) -> Operand:
    """What has to be stored so that a call can read `node`."""
    moves = []
    base = node
    while base.op in MOVE:
        moves.append(base)
        base = base.src[0]
    found = own(base)
    for move in reversed(moves):
        view = moved(move.op, found.view, move.arg)
        # What no view can do is done by a kernel that copies.
        found = (Operand(found.node, view) if view is not None
                 else Operand(stripped(move), View.dense(move.shape)))
    return found if fits(found.view, asked) else Operand(
        stripped(node), View.dense(node.shape))


def operands(node: OpNode) -> list[Operand]:
    """Those of a call of the library."""
    return [operand(x, asked) for x, asked in zip(node.src, ASKS[node.op])]


def required(order: Sequence[OpNode], roots: Iterable[OpNode],
             ) -> dict[OpNode, None]:
    """What has to reach memory, in no order."""
    found = dict.fromkeys(map(stripped, roots))
    for node in order:
        if node.op in FAMILIES["reduce"]:
            found[node] = None
        elif node.op in LIBRARY:
            found |= dict.fromkeys([node, *[
                stripped(x.node) for x in operands(node)]])
    return found


# What takes as long as many additions had better be done once.
COSTLY = {EXP, LOG, SIN, ERF, POW, IDIV, MOD}


class Use(NamedTuple):
    """What computing an element again would take."""

    reads: frozenset[OpNode]  # of as many elements as the node has
    costly: bool
    length: int  # of the longest chain of operations
    size: int = 0  # operations, counted again for each use


def uses(order: Sequence[OpNode],
         memory: Container[OpNode]) -> dict[OpNode, Use]:
    """Of each node, with `memory` stored."""
    found: dict[OpNode, Use] = {}
    for node in order:
        parts = [Use(frozenset([x]), False, 0)
                 if x in memory or x.op is BUFFER or is_far(x, found[x])
                 else found[x] for x in node.src]
        size = math.prod(node.shape)
        reads = frozenset([x for part in parts for x in part.reads
                           if math.prod(x.shape) * 2 > size])
        # Costly: of more than half as many elements as the node.
        costly = any(p.costly and math.prod(x.shape) * 2 > size
                     for x, p in zip(node.src, parts))
        length = (8 if node.op is RESHAPE else 1) + max(
            [part.length for part in parts], default=0)
        count = (node.op not in MOVE) + sum([part.size for part in parts])
        found[node] = Use(reads, node.op in COSTLY or costly, length,
                          min(count, MANY + 1))
    return found


LONGEST = 40  # operations in a row without memory; a RESHAPE counts as 8
MANY = 200  # operations in a kernel, or for one element


def is_far(node: OpNode, use: Use) -> bool:
    """Whether so much has been computed since memory was read that it
    is time to write again: texts and C compilers have their limits."""
    far = use.length > LONGEST or use.size > MANY
    return far and node.op is not RESHAPE and bool(node.src)


def chosen(order: Sequence[OpNode], must: Mapping[OpNode, None],
           cost: Mapping[OpNode, Use]) -> dict[OpNode, None]:
    """What must reach memory, and what had better: values with several
    readers there that are dear to compute again."""
    found = dict(must)
    readers: dict[OpNode, set[OpNode]] = {node: set() for node in order}
    for node in reversed(order):
        shared = len(readers[node]) > 1 and (
            cost[node].costly or len(cost[node].reads) > 1)
        if node.src and (shared and node.op not in MOVE
                         or is_far(node, cost[node])):
            found[node] = None
        # Of what has no memory, its readers read the operands.
        mine = {node} if node in found else readers[node]
        for x in node.src:
            readers[x] |= mine
    return found


def in_memory(order: Sequence[OpNode],
              roots: Iterable[OpNode]) -> dict[OpNode, None]:
    """All that reaches memory.

    In two rounds: what seemed dear may be cheap when others are stored.
    """
    must = required(order, roots)
    first = chosen(order, must, uses(order, must))
    return chosen(order, must, uses(order, first))


def is_local(load: Load, made: Lowered) -> bool:
    """Whether a row's element is read in the row that made it."""
    item, row = made.item, Var(0, made.item.rows)
    if item.kind == "column":
        return False
    width = item.width if item.kind == "map" else 1
    terms = dict(load.address.terms)
    far = terms.pop(row, 0)
    low, high = bounds(Index(load.address.const, tuple(terms.items())))
    within = all(var.depth for var in terms) and 0 <= low <= high < width
    return within and far == (width if item.rows > 1 else 0)


def in_rows(item: Item, rows: int) -> Item | None:
    """The item, if it can be made in so many rows."""
    size = item.rows * item.width
    if item.kind != "map" or item.rows == rows:
        return item if item.rows == rows else None
    fits = rows > 0 and size % rows == 0 and size // rows <= NEAREST
    return Item(item.node, "map", rows, size // rows) if fits else None


class Call(NamedTuple):
    """A kernel of the library: the node, and what it reads."""

    node: OpNode
    operands: tuple[Operand, ...]

    @property
    def stores(self) -> list[OpNode]:
        return [self.node]

    @property
    def reads(self) -> KeysView[OpNode]:
        return dict.fromkeys([x.node for x in self.operands]).keys()


class Kernel:
    """Items that are made row by row, in one walk over `rows` rows."""

    def __init__(self, rows: int):
        self.rows = rows
        self.lowered: dict[OpNode, Lowered] = {}
        self.needs: dict[OpNode, None] = {}
        self.scalars: set[Scalar] = set()

    def add(self, made: Lowered) -> None:
        self.lowered[made.item.node] = made
        self.needs |= dict.fromkeys([x.node for x in loads(made.scalar)])
        self.scalars |= set(scalars(made.scalar))

    @property
    def stores(self) -> list[OpNode]:
        return list(self.lowered)

    @property
    def reads(self) -> KeysView[OpNode]:
        """What it needs of others, in the order of its first reads."""
        return dict.fromkeys([
            x for x in self.needs if x not in self.lowered]).keys()


def joined(kernel: Kernel | Call, item: Item,
           lowering: Lowering) -> Lowered | None:
    """The item as a part of a kernel, if that is the same program."""
    if isinstance(kernel, Call):
        return None
    same = in_rows(item, kernel.rows)
    if same is None or same.width > NEAREST or len(kernel.scalars) > MANY:
        return None
    found = lower(same, lowering)
    local = all(is_local(load, kernel.lowered[load.node])
                for load in loads(found.scalar)
                if load.node in kernel.lowered)
    return found if local else None


Step = Kernel | Call


def places(item: Lowered, at: Mapping[OpNode, int],
           steps: Sequence[Step]) -> list[int]:
    """The steps that it may join: its latest producer's, then those
    behind it that read what it reads."""
    needs = {load.node for load in loads(item.scalar)}
    latest = max([at[x] for x in needs if x in at], default=-1)
    # Right behind it, what it made is near; at the end, all the rest is.
    behind = range(latest + 1, len(steps))
    near = [*behind[:NEAR], *behind[NEAR:][-NEAR:]]
    return [i for i in [latest] if i >= 0] + [
        i for i in near if steps[i].reads & needs]


NEAR = 8  # steps: among so many right behind, and the last so many


def best_place(item: Item, lowering: Lowering, at: Mapping[OpNode, int],
               steps: Sequence[Step]) -> tuple[int, Lowered]:
    """The step that makes an item, or one more at the end."""
    alone = lower(item, lowering)
    for i in places(alone, at, steps):
        found = joined(steps[i], item, lowering)
        if found:
            return i, found
    return len(steps), alone


def grouped(order: Sequence[OpNode], memory: Container[OpNode],
            made: Container[OpNode] = ()) -> list[Step]:
    """The steps that make all of `memory` that is not `made`, in program
    order."""
    lowering = Lowering({
        node for node in order if node in memory or node.op is BUFFER})
    steps, at = list[Step](), dict[OpNode, int]()
    for node in order:
        if node.op is BUFFER or node not in memory or node in made:
            continue
        if node.op in LIBRARY:
            steps.append(Call(node, tuple(operands(node))))
            at[node] = len(steps) - 1
            continue
        i, found = best_place(as_item(node), lowering, at, steps)
        if i == len(steps):
            steps.append(Kernel(found.item.rows))
        cast(Kernel, steps[i]).add(found)
        at[node] = i
    return steps


def schedule(order: Sequence[OpNode], roots: Iterable[OpNode],
             last: Collection[OpNode] = ()) -> list[Step]:
    """The steps that make `roots`, of nodes in program order; those of
    the `last`, which nobody reads, come after all others."""
    memory = in_memory(order, roots)
    early = [node for node in order if node not in last]
    return [*grouped(early, memory), *grouped(order, memory, {*early})]


def captured(whole: Sequence[OpNode],
             roots: Sequence[OpNode]) -> list[OpNode]:
    """All that `roots` are made of, in the order in which a program
    first asked for each part: `whole` is what became of its nodes."""
    wanted, found = set(toposort(*roots)), dict[OpNode, None]()
    for root in whole:
        waiting = [root] if root in wanted else []
        while waiting:
            node = waiting.pop()
            missing = [x for x in node.src if x not in found]
            if node not in found and missing:
                waiting += [node, *reversed(missing)]
            else:
                found[node] = None
    return list(found)


def saves_products(old: Sequence[OpNode], new: Sequence[OpNode]) -> bool:
    """Whether each new call of ATTENTION has taken two products away."""
    before, after = [Counter(node.op for node in toposort(*roots))
                     for roots in (old, new)]
    return before[MATMUL] - after[MATMUL] == 2 * (
        after[ATTENTION] - before[ATTENTION])


def prepared(roots: Sequence[OpNode],
             ) -> tuple[list[OpNode], list[OpNode]]:
    """All nodes of rewritten roots in program order, and the roots."""
    nodes = toposort(*roots)
    place = {node: i for i, node in enumerate(nodes)}
    at = [place[root] for root in roots]
    plain = rewrite(nodes, RULES)
    whole = rewrite(plain, FUSED)
    if not saves_products(*[[form[i] for i in at] for form in (plain, whole)]):
        whole = plain
    whole = rewrite(whole, LOWERING)
    found = [whole[i] for i in at]
    return captured(whole, found), found


def traffic(steps: Sequence[Step], roots: Iterable[OpNode]) -> int:
    """Bytes that the steps read from memory and write to it.

    A value counts as a whole, also where a part of it is read.
    """
    outside = {x for step in steps for x in step.reads}
    outside |= {stripped(root) for root in roots}
    return sum([size_of(x) for step in steps for x in (
        *step.reads, *[y for y in step.stores if y in outside])])


def size_of(node: OpNode) -> int:
    return math.prod(node.shape) * node.dtype.itemsize
