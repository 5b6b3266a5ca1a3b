# Tangled from rewriting: edit there, `make tangle`. sha256:58e17388d371
"""Rules that replace a part of a graph by one that means the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from companion.compiler.graph import OpNode, constant, toposort
from companion.device import MOVE
from companion.dtype import bool_
from companion.ops import (
    ADD, AND, CONST, DIV, EQUAL, FAMILIES, IDIV, LESS, MAXIMUM, MOD, MUL, PAD,
    SUB, Op)


def word(op: Op) -> Callable[..., Pattern]:
    """A function that asks for `op` of its operands, and its argument."""
    return lambda *given: Pattern(op, given[:op.arity], *given[op.arity:])


class Term:
    """What rules are written in: it has the words and signs of tensors."""

    def __getattr__(self, name: str) -> Callable[..., Pattern]:
        if name not in WORDS:
            raise AttributeError(f"no operation is called {name!r}")
        return functools.partial(word(WORDS[name]), self)

    def __add__(self, other: Any) -> Pattern:
        return word(ADD)(self, other)

    def __sub__(self, other: Any) -> Pattern:
        return word(SUB)(self, other)

    def __mul__(self, other: Any) -> Pattern:
        return word(MUL)(self, other)

    def __truediv__(self, other: Any) -> Pattern:
        return word(DIV)(self, other)

    def __floordiv__(self, other: Any) -> Pattern:
        return word(IDIV)(self, other)

    def __mod__(self, other: Any) -> Pattern:
        return word(MOD)(self, other)

    def __and__(self, other: Any) -> Pattern:
        return word(AND)(self, other)

    def __lt__(self, other: Any) -> Pattern:
        return word(LESS)(self, other)


WORDS = {str(op).lower(): op for family in FAMILIES.values()
         for op in family if op.arity}

SIGNS = {ADD: "+", SUB: "-", MUL: "*", DIV: "/", IDIV: "//", MOD: "%",
         AND: "&", LESS: "<"}


class Hole(Term):
    """A place for a node of one of the `kinds`, or for an argument.

    With `constant`, for a node whose elements are all one number.
    """

    def __init__(self, name: str, kinds: str = "biuf",
                 constant: bool = False):
        self.name, self.kinds, self.constant = name, kinds, constant

    def __repr__(self) -> str:
        return self.name


class Pattern(Term):
    """An operation on terms and on numbers."""

    def __init__(self, op: Op, src: tuple[Any, ...] = (), arg: Any = None):
        self.op, self.src, self.arg = op, src, arg

    def __repr__(self) -> str:
        return text(self)


def text(term: Pattern) -> str:
    """A pattern as one would write it."""
    parts = [f"({x})" if getattr(x, "op", None) in SIGNS else f"{x}"
             for x in term.src]
    if term.op in SIGNS:
        return f" {SIGNS[term.op]} ".join(parts)
    first, rest = [f"{x}." for x in parts[:1]], parts[1:]
    rest += [f"{term.arg}"] if term.arg is not None else []
    return "".join(first) + f"{term.op}".lower() + f"({', '.join(rest)})"


def value(node: OpNode) -> Any:
    """The number that all elements are; None where they may differ."""
    while node.op in MOVE:
        node = node.src[0]
    return node.arg[0] if node.op is CONST else None


def is_number(node: OpNode, number: Any) -> bool:
    """Whether all elements are `number`, to the sign of a zero."""
    found, dtype = value(node), node.dtype
    return found == number and (
        constant(found, dtype) is constant(number, dtype))


Holes = dict[Hole, Any]
COMMUTES = {ADD, MUL, MAXIMUM, AND, EQUAL}


def matches(pairs: list[tuple[Any, Any]], holes: Holes) -> Iterator[Holes]:
    """The ways to fill the holes so that each term is what was found."""
    if not pairs:
        yield holes
        return
    (term, found), *rest = pairs
    if isinstance(term, Hole):
        if holes.get(term, found) == found and fits(term, found):
            yield from matches(rest, {**holes, term: found})
    elif isinstance(term, Pattern):
        if term.op is found.op:
            orders = (found.src, found.src[::-1])
            for src in orders[:1 + (term.op in COMMUTES)]:
                yield from matches([*zip(term.src, src), (
                    term.arg, found.arg), *rest], holes)
    elif (is_number(found, term) if isinstance(found, OpNode)
          else found == term):
        yield from matches(rest, holes)


def fits(hole: Hole, found: Any) -> bool:
    """Whether a node may be there; an argument always may."""
    return not isinstance(found, OpNode) or (
        found.dtype.kind in hole.kinds
        and not (hole.constant and value(found) is None))


class Later(NamedTuple):
    """A function of what will be in the holes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __repr__(self) -> str:
        inside = ", ".join(map(str, self.args))
        return f"{self.function.__name__}({inside})"


def later(function: Callable[..., Any]) -> Callable[..., Later]:
    """Called on terms, the function waits until their holes are filled."""
    return lambda *args: Later(function, args)


def filled(term: Any, holes: Holes) -> Any:
    """What a term is, with `holes` in its holes: a node, or a value."""
    if isinstance(term, Hole):
        return holes[term]
    if isinstance(term, Later):
        return term.function(*[filled(each, holes) for each in term.args])
    if not isinstance(term, Pattern):
        return term
    src = [filled(each, holes) for each in term.src]
    nodes = [each for each in src if isinstance(each, OpNode)]
    return OpNode(term.op, tuple([as_node(each, nodes[0]) for each in src]),
                  filled(term.arg, holes))


def as_node(found: Any, like: OpNode) -> OpNode:
    """A number becomes a constant in the form of `like`; True is a bool."""
    if isinstance(found, OpNode):
        return found
    dtype = bool_ if isinstance(found, bool) else like.dtype
    return constant(found, dtype, like.shape)


class Rule(NamedTuple):
    """Where all `conditions` hold, `left` may become `right`."""

    left: Pattern
    right: Any
    conditions: tuple[Later, ...]

    def __repr__(self) -> str:
        needs = " if " + " and ".join(map(str, self.conditions))
        return f"{self.left} → {self.right}{needs * bool(self.conditions)}"


def rule(left: Pattern, right: Any, *conditions: Later) -> Rule:
    """The rule that `left` may become `right`, a term or a number.

    A ValueError tells of holes that `left` does not fill.
    """
    new = Rule(left, right, conditions)
    empty = holes_of((right, *conditions)) - holes_of((left,))
    if empty:
        raise ValueError(
            f"rule {new}: expected all holes on the left; "
            f"{', '.join(sorted(map(str, empty)))} stands elsewhere alone")
    return new


def holes_of(terms: Sequence[Any]) -> set[Hole]:
    """The holes of terms, those of their arguments and later ones too."""
    found = set[Hole]()
    for term in terms:
        if isinstance(term, Hole):
            found.add(term)
        elif isinstance(term, Pattern):
            found |= holes_of((*term.src, term.arg))
        elif isinstance(term, Later):
            found |= holes_of(term.args)
    return found


def replacement(node: OpNode, rule: Rule) -> OpNode | None:
    """What the rule makes of a node; None where it does not fit."""
    for holes in matches([(rule.left, node)], {}):
        if all(filled(wanted, holes) for wanted in rule.conditions):
            new = as_node(filled(rule.right, holes), node)
            if (new.shape, new.dtype) != (node.shape, node.dtype):
                raise TypeError(
                    f"rule {rule}: expected {node.dtype} of shape "
                    f"{node.shape}, as it was; got {new}")
            return new
    return None


Table = dict[Op, list[Rule]]


def firings(roots: list[OpNode], table: Table) -> Iterator[Rule]:
    """Replace the roots, pass by pass; tells of each rule that fires."""
    final = set[OpNode]()
    while not final.issuperset(roots):
        now: dict[OpNode, OpNode] = {}
        for node in toposort(*roots, known=final):
            if node in final:
                continue
            src = tuple([now.get(operand, operand) for operand in node.src])
            new = OpNode(node.op, src, node.arg)
            fired, now[node] = fire(new, table)
            if fired:
                yield fired
            elif final.issuperset(src):
                final.add(new)
        roots[:] = [now.get(root, root) for root in roots]


def fire(node: OpNode, table: Table) -> tuple[Rule | None, OpNode]:
    """The first rule that fits, and what it makes of the node."""
    for each in table.get(node.op, ()):
        new = replacement(node, each)
        if new is not None:
            return each, new
    return None, node


def rewrite(roots: Sequence[OpNode], rules: Sequence[Rule],
            note: Callable[[Rule], Any] = lambda rule: None) -> list[OpNode]:
    """The roots, with all rules applied until none of them fits.

    `note` is told of each rule that fires. Every rule has to make the
    `weight` smaller; a RuntimeError names one that goes round.
    """
    table: Table = {}
    for each in rules:
        table.setdefault(each.left.op, []).append(each)
    new, limit = list(roots), 100 * len(toposort(*roots))
    for count, fired in enumerate(firings(new, table)):
        note(fired)
        if count == limit:
            raise RuntimeError(
                f"rewrite: the rule {fired} goes round, alone or with "
                f"others; a rule has to make the weight smaller")
    return new


def weight(root: OpNode) -> int:
    """What every rule makes smaller: nodes, elements and divisions."""
    found: dict[OpNode, int] = {}
    for node in toposort(root):
        moves = not node.src or node.op in MOVE or node.op is PAD
        own = 1 if moves else 1 + math.prod(node.shape)
        twice = 2 if node.op in (DIV, IDIV, MOD) else 1
        found[node] = twice * (own + sum([found[x] for x in node.src]))
    return found[root]
