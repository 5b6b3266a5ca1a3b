# Tangled from rewriting: edit there, `make tangle`. sha256:e89c0e23c6c8
"""Rules that replace a part of a graph by one that means the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from companion.compiler.graph import OpNode, toposort
from companion.device import MOVE
from companion.dtype import DType, bool_
from companion.ops import (
    ADD,
    AND,
    CONST,
    DIV,
    EQUAL,
    EXPAND,
    FAMILIES,
    IDIV,
    LESS,
    MAXIMUM,
    MOD,
    MUL,
    PAD,
    SUB,
    Op,
)
from companion.view import Shape


def pattern(op: Op, *given: Any) -> Pattern:
    """`op` of as many operands as it reads, and the argument, if any."""
    return Pattern(op, given[:op.arity], *given[op.arity:])


class Term:
    """What rules are written in: it has the words of tensors."""

    def __getattr__(self, word: str) -> Callable[..., Pattern]:
        if word not in WORDS:
            raise AttributeError(f"no operation is called {word!r}")
        return functools.partial(pattern, WORDS[word], self)

    def __add__(self, other: Any) -> Pattern:
        return pattern(ADD, self, other)

    def __sub__(self, other: Any) -> Pattern:
        return pattern(SUB, self, other)

    def __mul__(self, other: Any) -> Pattern:
        return pattern(MUL, self, other)

    def __truediv__(self, other: Any) -> Pattern:
        return pattern(DIV, self, other)

    def __floordiv__(self, other: Any) -> Pattern:
        return pattern(IDIV, self, other)

    def __mod__(self, other: Any) -> Pattern:
        return pattern(MOD, self, other)

    def __and__(self, other: Any) -> Pattern:
        return pattern(AND, self, other)

    def __lt__(self, other: Any) -> Pattern:
        return pattern(LESS, self, other)


WORDS = {str(op).lower(): op for family in FAMILIES.values()
         for op in family if op.arity}


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
        parts = [f"({x})" if getattr(x, "op", None) in SIGNS else f"{x}"
                 for x in self.src]
        if self.op in SIGNS:
            return f" {SIGNS[self.op]} ".join(parts)
        first, rest = [f"{x}." for x in parts[:1]], parts[1:]
        rest += [f"{self.arg}"] if self.arg is not None else []
        return "".join(first) + f"{self.op}".lower() + f"({', '.join(rest)})"


SIGNS = {ADD: "+", SUB: "-", MUL: "*", DIV: "/", IDIV: "//", MOD: "%",
         AND: "&", LESS: "<"}


def value(node: OpNode) -> Any:
    """The number that all elements are, as its dtype has it, or None."""
    while node.op in MOVE:
        node = node.src[0]
    # A constant is a number and a dtype; its shape is an EXPAND.
    single = node.op is CONST and not node.shape
    return held(*node.arg[:2]) if single else None


def held(number: Any, dtype: DType) -> Any:
    """What `dtype` has for a number: True or False, an int, a float."""
    with np.errstate(all="ignore"):
        return np.asarray(number).astype(dtype.numpy).item()


def is_number(node: OpNode, number: Any) -> bool:
    """Whether all elements are `number`, to the sign of a zero."""
    found = value(node)
    if found != number or isinstance(number, bool) > (node.dtype is bool_):
        return False
    return not node.dtype.is_float or (
        math.copysign(1, found) == math.copysign(1, number))


Holes = dict[Hole, Any]
COMMUTES = {ADD, MUL, MAXIMUM, AND, EQUAL}


def matches(term: Any, found: Any, holes: Holes) -> Iterator[Holes]:
    """The ways to fill the holes so that `term` is what was found."""
    if isinstance(term, Hole):
        if holes.get(term, found) == found and fits(term, found):
            yield {**holes, term: found}
    elif isinstance(term, Pattern):
        if term.op is found.op:
            both = found.src, found.src[::-1]
            for src in both[:1 + (term.op in COMMUTES)]:
                yield from match_all((*term.src, term.arg),
                                     (*src, found.arg), holes)
    elif (is_number(found, term) if isinstance(found, OpNode)
          else found == term):
        yield holes


def match_all(terms: Sequence[Any], found: Sequence[Any],
              holes: Holes) -> Iterator[Holes]:
    """The ways in which each of the terms is what was found there."""
    if not terms:
        yield holes
        return
    for more in matches(terms[0], found[0], holes):
        yield from match_all(terms[1:], found[1:], more)


def fits(hole: Hole, found: Any) -> bool:
    """Whether a node may be there; an argument always may."""
    return not isinstance(found, OpNode) or (
        found.dtype.kind in hole.kinds
        and not (hole.constant and value(found) is None))


def filled(term: Any, holes: Holes) -> Any:
    """What a term is, with `holes` in its holes: a node, or a value."""
    if isinstance(term, Hole):
        return holes[term]
    if isinstance(term, Later):
        return term.function(*[filled(x, holes) for x in term.args])
    if not isinstance(term, Pattern):
        return term
    src = [filled(x, holes) for x in term.src]
    return OpNode(term.op, with_constants(src), filled(term.arg, holes))


def with_constants(src: Sequence[Any]) -> tuple[OpNode, ...]:
    """Operands; a number is a constant in the shape of the others."""
    nodes = [x for x in src if isinstance(x, OpNode)]
    return tuple([x if isinstance(x, OpNode) else like(x, nodes[0])
                  for x in src])


def like(number: Any, node: OpNode) -> OpNode:
    """A constant of the shape and dtype of `node`; True is a bool."""
    return constant(number, bool_ if isinstance(number, bool)
                    else node.dtype, node.shape)


def constant(number: Any, dtype: DType, shape: Shape) -> OpNode:
    """A CONST, and the EXPAND that gives it its shape."""
    one = OpNode(CONST, (), (held(number, dtype), dtype, ()))
    return OpNode(EXPAND, (one,), shape) if shape else one


class Later(NamedTuple):
    """A function of what will be in the holes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __repr__(self) -> str:
        inside = ", ".join(map(str, self.args))
        return f"{self.function.__name__}({inside})"


def later(function: Callable[..., Any]) -> Callable[..., Later]:
    """Called on holes, the function waits until they are filled."""
    return lambda *args: Later(function, args)


class Rule(NamedTuple):
    """Where all `conditions` hold, `left` may become `right`."""

    left: Pattern
    right: Any
    conditions: tuple[Later, ...] = ()

    def __repr__(self) -> str:
        return f"{self.left} → {self.right}"


def rule(left: Pattern, right: Any, *conditions: Later) -> Rule:
    """The rule that `left` may become `right`, a term or a number.

    A ValueError tells of holes that `left` does not fill.
    """
    empty = {hole for term in (right, *conditions)
             for hole in holes_of(term)} - holes_of(left)
    if empty:
        raise ValueError(
            f"rule {left} → {right}: expected all holes on the left; "
            f"{', '.join(sorted(map(str, empty)))} stands elsewhere alone")
    return Rule(left, right, conditions)


def holes_of(term: Any) -> set[Hole]:
    """The holes of a term, those of its arguments and later ones too."""
    if isinstance(term, Hole):
        return {term}
    parts = ((*term.src, term.arg) if isinstance(term, Pattern)
             else term.args if isinstance(term, Later) else ())
    return {hole for part in parts for hole in holes_of(part)}


def replacement(node: OpNode, rule: Rule) -> OpNode | None:
    """What the rule makes of a node; None where it does not fit."""
    for holes in matches(rule.left, node, {}):
        if all(filled(wanted, holes) for wanted in rule.conditions):
            right = filled(rule.right, holes)
            new = right if isinstance(right, OpNode) else like(right, node)
            if (new.shape, new.dtype) != (node.shape, node.dtype):
                raise TypeError(
                    f"rule {rule}: expected {node.dtype} of shape "
                    f"{node.shape}, as it was; got {new}")
            return new
    return None


Table = dict[Op, list[Rule]]
Note = Callable[[Rule, OpNode, OpNode], None]


def rewrite(roots: Sequence[OpNode], rules: Sequence[Rule],
            note: Note = lambda rule, old, new: None) -> list[OpNode]:
    """The roots, with all rules applied until none of them fits.

    `note` is told of each rule that fires. Every rule has to make the
    `weight` smaller; a RuntimeError names one that goes round.
    """
    table: Table = {}
    for each in rules:
        table.setdefault(each.left.op, []).append(each)
    settled: dict[OpNode, OpNode] = {}
    for node in toposort(*roots):
        settle(node, table, settled, note)
    return [settled[root] for root in roots]


def settle(node: OpNode, table: Table, settled: dict[OpNode, OpNode],
           note: Note) -> None:
    """Find what becomes of `node`, and of all that it may become."""
    waiting = [(node, node)]  # each with the node whose fate it shares
    while waiting:
        node, other = waiting.pop()
        unseen = [x for x in node.src if x not in settled]
        if other is not node:
            settled[node] = settled[other]
        elif node not in settled and unseen:
            waiting += [(node, node), *[(x, x) for x in unseen]]
        elif node not in settled:
            new, fired = advance(node, table, settled)
            if new is node:
                settled[node] = node
            else:
                waiting += [(node, new), (new, new)]
            if fired:
                note(fired, node, new)
                check_end(fired, waiting)


def advance(node: OpNode, table: Table, settled: dict[OpNode, OpNode],
            ) -> tuple[OpNode, Rule | None]:
    """The node on settled operands; or the first rule, and its result."""
    src = tuple([settled[x] for x in node.src])
    if src != node.src:
        return OpNode(node.op, src, node.arg), None
    for each in table.get(node.op, ()):
        new = replacement(node, each)
        if new is not None:
            return new, each
    return node, None


def check_end(fired: Rule, waiting: Sequence[Any]) -> None:
    if len(waiting) > 1_000:
        raise RuntimeError(
            f"rewrite: the rule {fired} goes round, alone or with others; "
            f"each rule has to make the weight of a program smaller")


def weight(root: OpNode) -> int:
    """What every rule makes smaller: nodes, elements and divisions."""
    found: dict[OpNode, int] = {}
    for node in toposort(root):
        moves = not node.src or node.op in MOVE or node.op is PAD
        own = 1 if moves else 1 + math.prod(node.shape)
        twice = 2 if node.op in (DIV, IDIV, MOD) else 1
        found[node] = twice * (own + sum([found[x] for x in node.src]))
    return found[root]
