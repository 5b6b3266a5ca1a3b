# Tangled from fusion: edit there, `make tangle`. sha256:9a896f4a6298
"""What one element is made of: movements become arithmetic of indices."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

from companion.autograd import inverse_permutation
from companion.compiler.graph import OpNode
from companion.dtype import DType
from companion.ops import (
    BUFFER, CAST, CONST, EXPAND, FAMILIES, FLIP, IOTA, PAD, PERMUTE, RESHAPE,
    SHRINK, Op)
from companion.view import Shape, View, row_major


class Var(NamedTuple):
    """A variable from 0 to size - 1: of a loop, or made of an index.

    `depth` counts loops: 0 is the row's, which is outside of all others.
    `how` is "" for a loop; "/" and "%" divide `of` by `by`, and "=" is
    `of` itself where a guard keeps it within `size`.
    """

    depth: int
    size: int
    how: str = ""
    of: Any = ()
    by: int = 1

    def __str__(self) -> str:
        if self.how in ("/", "%"):
            of = f"({self.of})" if " " in f"{self.of}" else f"{self.of}"
            return f"({of} {self.how} {self.by})"
        return str(self.of or (f"i{self.depth}" if self.depth else "r"))


class Index(NamedTuple):
    """const + the sum of coefficient · variable."""

    const: int = 0
    terms: tuple[tuple[Var, int], ...] = ()

    def __str__(self) -> str:
        parts = [f"{k} {var}" if k != 1 else f"{var}"
                 for var, k in self.terms]
        parts += [str(self.const)] if self.const or not parts else []
        return " + ".join(parts)


def combined(*parts: tuple[Index, int]) -> Index:
    """The sum of some indices, each times a factor."""
    const, terms = 0, dict[Var, int]()
    for index, factor in parts:
        const += factor * index.const
        for var, k in index.terms:
            terms[var] = terms.get(var, 0) + factor * k
    for var, k in [*terms.items()]:
        # What was cut into quotient and remainder is whole again.
        whole = quotient(var.of, var.by) if var.how == "%" else var
        if var is not whole and k and terms.get(whole) == k * var.by:
            del terms[var], terms[whole]
            rest = Index(const, tuple(terms.items()))
            return combined((rest, 1), (var.of, k))
    return Index(const, tuple(sorted(
        [(v, k) for v, k in terms.items() if k and v.size != 1])))


def bounds(index: Index) -> tuple[int, int]:
    """The least and the greatest that it may be."""
    ends = [k * max(var.size - 1, 0) for var, k in index.terms]
    return (index.const + sum([e for e in ends if e < 0]),
            index.const + sum([e for e in ends if e > 0]))


def depth(index: Index) -> int:
    """How many loops are around what is computed from it."""
    return max([var.depth for var, _ in index.terms], default=0)


At = tuple[Index, ...]


def through_permute(node: OpNode, at: At) -> At:
    return tuple([at[axis] for axis in inverse_permutation(node.arg)])


def through_expand(node: OpNode, at: At) -> At:
    shape = node.src[0].shape
    return tuple([Index() if n == 1 else i for n, i in zip(
        shape, at[len(at) - len(shape):])])


def through_shrink(node: OpNode, at: At) -> At:
    return tuple([combined((Index(start), 1), (i, step))
                  for i, (start, _, step) in zip(at, node.arg)])


def through_flip(node: OpNode, at: At) -> At:
    return tuple([combined((Index(n - 1), 1), (i, -1)) if axis in node.arg
                  else i for axis, (i, n) in enumerate(zip(at, node.shape))])


def quotient(index: Index, by: int) -> Var:
    size = bounds(index)[1] // by + 1
    return Var(depth(index), size, "/", index, by)


THROUGH: dict[Op, Callable[[OpNode, At], At]] = {
    PERMUTE: through_permute, EXPAND: through_expand,
    SHRINK: through_shrink, FLIP: through_flip}


def remainder(index: Index, by: int) -> Var:
    return Var(depth(index), by, "%", index, by)


class Split(Exception):
    """A loop has to be two: its variable becomes factor · far + near."""

    def __init__(self, var: Var, factor: int):
        super().__init__(f"{var} becomes {factor} far + near")
        self.var, self.factor = var, factor


def cut(var: Var, k: int, by: int) -> list[tuple[Var, int]]:
    """k · var in parts that `by` divides, and that stay below it."""
    factor = by // k if k > 0 else 0
    if by % k or not 1 < factor < var.size:
        return [(var, k)]
    if var.depth and not var.how and var.size % factor == 0:
        raise Split(var, factor)
    whole = Index(0, ((var, 1),))
    return [(quotient(whole, factor), by), (remainder(whole, factor), k)]


def divided(index: Index, by: int) -> tuple[Index, Index]:
    """Quotient and remainder of what is at least 0."""
    if by == 1:
        return index, Index()
    parts = [part for var, k in index.terms for part in cut(var, k, by)]
    rest = Index(index.const % by, tuple([p for p in parts if p[1] % by]))
    low, high = bounds(rest)
    if low >= 0 and high < by:
        return Index(index.const // by, tuple(
            [(var, k // by) for var, k in parts if k % by == 0])), rest
    # No coefficient helps: the machine has to divide.
    found = quotient(index, by), remainder(index, by)
    one, other = [Index(0, ((var, 1),)) for var in found]
    return combined((one, 1)), other


def unravel(flat: Index, shape: Shape) -> tuple[Index, ...]:
    """The place in an array of `shape` that is the flat-th in order."""
    found = []
    for stride in row_major(shape)[:-1]:
        place, flat = divided(flat, max(stride, 1))
        found.append(place)
    return (*found, flat) if shape else ()


def ravel(at: Sequence[Index], strides: Sequence[int],
          offset: int = 0) -> Index:
    """Where the place `at` lies in memory."""
    return combined((Index(offset), 1), *zip(at, strides))


def through_reshape(node: OpNode, at: At) -> At:
    flat = ravel(at, row_major(node.shape))
    return unravel(flat, node.src[0].shape)


THROUGH |= {RESHAPE: through_reshape}


class Guard(NamedTuple):
    """0 <= place < size · step, and place a multiple of step."""

    place: Index
    size: int
    step: int


class Load(NamedTuple):
    """The element of a stored node at an address, 0 without `guards`."""

    node: OpNode
    address: Index
    guards: tuple[Guard, ...] = ()


class Scalar:
    """One element: an operation on others, inside `depth` loops.

    Leaves: CONST, BUFFER (arg is a Load), IOTA (arg is an Index). PAD
    has a Guard as its argument, and is 0 where it does not hold; CAST
    has the dtype that it comes from.
    """

    __slots__ = ("op", "src", "arg", "dtype", "depth")

    def __init__(self, op: Op, src: tuple[Scalar, ...], arg: Any,
                 dtype: DType, depth: int):
        self.op, self.src, self.arg = op, src, arg
        self.dtype, self.depth = dtype, depth


def scalars(root: Scalar) -> dict[Scalar, None]:
    """A scalar, and all that it is computed from, each once."""
    found, waiting = dict[Scalar, None](), [root]
    while waiting:
        scalar = waiting.pop()
        if scalar not in found:
            found[scalar] = None
            waiting += scalar.src
    return found


def loads(root: Scalar) -> list[Load]:
    """What a scalar reads of memory."""
    return [s.arg for s in scalars(root) if s.op is BUFFER]


def is_dense(node: OpNode) -> bool:
    """Whether its memory is in order: that of leaves may not be."""
    return node.op is not BUFFER or node.arg.view.is_dense


def stripped(node: OpNode) -> OpNode:
    """The node whose memory, in the same order, `node` is."""
    while node.op is RESHAPE and is_dense(node.src[0]):
        node = node.src[0]
    return node


class Lowering:
    """Scalars of the elements of nodes, down to those in `memory`."""

    def __init__(self, memory: Container[OpNode]):
        self.memory = memory
        self.scalars: dict[Any, Scalar] = {}
        self.known: dict[Any, Scalar] = {}

    def scalar(self, op: Op, src: tuple[Scalar, ...], arg: Any,
               dtype: DType, *indices: Index) -> Scalar:
        """The scalar, made once."""
        name = op, src, repr(arg) if op is CONST else arg, dtype
        if name not in self.scalars:
            level = max([*map(depth, indices), *[x.depth for x in src]],
                        default=0)
            self.scalars[name] = Scalar(op, src, arg, dtype, level)
        return self.scalars[name]

    def element(self, node: OpNode, at: At, guards: tuple[Guard, ...] = (),
                ) -> Scalar:
        """The element of `node` at a place, where `guards` hold."""
        key = node, at, guards
        if key not in self.known:
            make = MADE.get(node.op, Lowering.computed)
            inside = node in self.memory
            self.known[key] = (self.load(node, at, guards) if inside
                               else make(self, node, at, guards))
        return self.known[key]

    def load(self, node: OpNode, at: At, guards: Any) -> Scalar:
        view = node.arg.view if node.op is BUFFER else View.dense(node.shape)
        return self.read(node, ravel(at, view.strides, view.offset), guards)

    def read(self, node: OpNode, address: Index, guards: Any) -> Scalar:
        inside = Load(node, address, guards)
        return self.scalar(BUFFER, (), inside, node.dtype, address,
                           *[g.place for g in guards])

    def computed(self, node: OpNode, at: At, guards: Any) -> Scalar:
        if node.op not in FAMILIES["elementwise"]:
            raise ValueError(f"{node}: expected it in memory; no kernel "
                             f"makes it on the way")
        src = tuple([self.element(x, at, guards) for x in node.src])
        arg = src[0].dtype if node.op is CAST else node.arg
        return self.scalar(node.op, src, arg, node.dtype)

    def moved(self, node: OpNode, at: At, guards: Any) -> Scalar:
        base = stripped(node)
        if base is not node and base in self.memory:
            start = base.arg.view.offset if base.op is BUFFER else 0
            return self.read(base, ravel(at, row_major(node.shape), start),
                             guards)
        return self.element(node.src[0], THROUGH[node.op](node, at), guards)

    def constant(self, node: OpNode, at: At, guards: Any) -> Scalar:
        return self.scalar(CONST, (), node.arg[0], node.dtype)

    def position(self, node: OpNode, at: At, guards: Any) -> Scalar:
        return self.scalar(IOTA, (), at[0], node.dtype, at[0])

    def padded(self, node: OpNode, at: At, guards: Any) -> Scalar:
        """The source where it is, and 0 around it."""
        inner, more = [], []
        for i, n, (before, _, step) in zip(
                at, node.src[0].shape, node.arg):
            place = combined((i, 1), (Index(before), -1))
            low, high = bounds(place)
            if step > 1 or low < 0 or high >= n:
                more.append(Guard(place, n, step))
                # Behind its guard it is below n, whatever i may be.
                near = Var(depth(place), max(n, 1), "/" if step > 1 else "=",
                           place, step)
                place = combined((Index(0, ((near, 1),)), 1))
            inner.append(place)
        x = self.element(node.src[0], tuple(inner), (*guards, *more))
        for guard in more if x.op is not BUFFER else ():
            x = self.scalar(PAD, (x,), guard, node.dtype, guard.place)
        return x


MADE: dict[Op, Callable[..., Scalar]] = {
    CONST: Lowering.constant, IOTA: Lowering.position, PAD: Lowering.padded,
    **dict.fromkeys(THROUGH, Lowering.moved)}


class Item(NamedTuple):
    """A node that reaches memory from a kernel of `rows` rows.

    A map stores an element at each place; a "row" reduction one for
    each row, a "column" reduction one for each place within a row.
    """

    node: OpNode
    kind: str
    rows: int
    width: int


def is_prefix(node: OpNode) -> bool:
    """Whether a reduction's axes come before all others."""
    kept = [i for i, n in enumerate(node.shape) if n > 1]
    gone = [i for i in node.arg if node.src[0].shape[i] > 1]
    return bool(kept and gone) and max(gone) < min(kept)


NEAREST = 4096  # elements of a row that stay near


def as_item(node: OpNode) -> Item:
    """The node in rows as it would have them by itself."""
    size = math.prod(node.shape)
    if node.op not in FAMILIES["reduce"]:
        width = width_of_map(node)
        return Item(node, "map", size // max(width, 1), width)
    gone = math.prod([node.src[0].shape[i] for i in node.arg])
    if is_prefix(node) and size <= NEAREST:
        return Item(node, "column", gone, size)
    return Item(node, "row", size, gone)


def width_of_map(node: OpNode) -> int:
    """The last axis; of a copy, more if it is short; less if long."""
    width, *more = [*node.shape[::-1], 1]
    for n in more if node.op is PAD or node.op in THROUGH else ():
        width *= n if width < 64 and width * n <= NEAREST else 1
    return width if width <= NEAREST else max(
        [d for d in range(1, NEAREST + 1) if width % d == 0])


def variables(rows: int, inner: tuple[int, ...]) -> tuple[Index, Index]:
    """The number of the row, and of the place within it."""
    loops = [Index(0, ((Var(i + 1, n), 1),)) for i, n in enumerate(inner)]
    return (combined((Index(0, ((Var(0, rows), 1),)), 1)),
            ravel(loops, row_major(inner)))


def place_of(item: Item, inner: tuple[int, ...]) -> At:
    """Where the element is that a kernel computes, of all its places."""
    row, near = variables(item.rows, inner)
    if item.kind == "map":
        return unravel(combined((row, item.width), (near, 1)), item.node.shape)
    shape, axes = item.node.src[0].shape, item.node.arg
    gone = [shape[i] for i in axes]
    kept = [n for i, n in enumerate(shape) if i not in axes]
    outer, within = (gone, kept) if item.kind == "column" else (kept, gone)
    far, close = unravel(row, tuple(outer)), unravel(near, tuple(within))
    ends, rest = (far, close) if item.kind == "column" else (close, far)
    one, other = iter(ends), iter(rest)
    return tuple([next(one) if i in axes else next(other)
                  for i in range(len(shape))])


def address_of(item: Item, inner: tuple[int, ...]) -> Index:
    """Where the result of the kernel's place goes."""
    row, near = variables(item.rows, inner)
    return {"map": combined((row, item.width), (near, 1)),
            "row": row, "column": near}[item.kind]


class Lowered(NamedTuple):
    """An item, the lengths of its inner loops, and its element."""

    item: Item
    inner: tuple[int, ...]
    scalar: Scalar


def lower(item: Item, lowering: Lowering) -> Lowered:
    """The element of an item, in as few loops as make it affine."""
    inner: tuple[int, ...] = (item.width,) if item.width != 1 else ()
    node = item.node
    make = MADE.get(node.op, Lowering.computed)
    while True:
        try:
            at = place_of(item, inner)
            scalar = (make(lowering, node, at, ()) if item.kind == "map"
                      else lowering.element(node.src[0], at))
            return Lowered(item, inner, scalar)
        except Split as split:
            i, factor = split.var.depth - 1, split.factor
            inner = (*inner[:i], inner[i] // factor, factor, *inner[i + 1:])
