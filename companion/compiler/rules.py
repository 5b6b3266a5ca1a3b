# Tangled from rewriting: edit there, `make tangle`. sha256:dcdf7bbe794a
"""The rules: which programs are the same, in every bit."""

from __future__ import annotations

import math

from companion.compiler.graph import OpNode, constant, interpret
from companion.compiler.rewrite import Hole, as_node, later, rule, value, word
from companion.device import CPU
from companion.dtype import DType
from companion.ops import (
    ADD,
    AND,
    DIV,
    EQUAL,
    IDIV,
    LESS,
    MOD,
    MUL,
    SQRT,
    SUB,
    WHERE,
)
from companion.view import Shape

x, y = Hole("x"), Hole("y")
i, j = Hole("i", "biu"), Hole("j", "biu")  # whole numbers
b = Hole("b", "b")
c, d, e = [Hole(name, constant=True) for name in "cde"]
p, q, s, t = [Hole(name) for name in "pqst"]  # arguments

choose = word(WHERE)

ALGEBRA = [
    rule(x + -0.0, x),
    rule(x - 0.0, x),
    rule(x * 1, x),
    rule(x * -1 * -1, x),
    rule(x + y * -1, x - y),
    rule(x - y * -1, x + y),
    rule(x.maximum(x), x),
    rule(x < x, False),
    rule(b & True, b),
    rule(b.equal(True), b),
    rule(choose(b, x, x), x),
    rule(choose(True, x, y), x),
    rule(choose(False, x, y), y),
]

WHOLE = [
    rule(i - i, 0),
    rule(i * 0, 0),
    rule(i & 0, 0),
    rule(i.equal(i), True),
    rule(i // 1, i),
    rule(i % 1, 0),
]


@later
def inverse(c: OpNode) -> OpNode:
    return as_node(1 / value(c), c)


@later
def has_inverse(c: OpNode) -> bool:
    """Whether 1 / c is a number of the dtype: c is ± a power of two."""
    number = value(c)
    return (math.isfinite(number) and abs(math.frexp(number)[0]) == 0.5
            and value(constant(1 / number, c.dtype)) * number == 1)


ALGEBRA += [rule(x / c, x * inverse(c), has_inverse(c))]

Ranges = tuple[tuple[int, int, int], ...]


@later
def then(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([p[axis] for axis in q])


@later
def either(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of one of the two: those of both are turned back."""
    return tuple(sorted({*p} ^ {*q}))


@later
def walk(p: Ranges, q: Ranges) -> Ranges:
    """The ranges q of what the ranges p have left: Python knows how."""
    walks = [range(*far)[slice(*near)] for far, near in zip(p, q)]
    return tuple([(at[0], at[-1] + 1, at.step) if at else (0, 0, 1)
                  for at in walks])


MOVEMENTS = [
    rule(x.reshape(s).reshape(t), x.reshape(t)),
    rule(x.expand(s).expand(t), x.expand(t)),
    rule(x.permute(p).permute(q), x.permute(then(p, q))),
    rule(x.flip(p).flip(q), x.flip(either(p, q))),
    rule(x.shrink(p).shrink(q), x.shrink(walk(p, q))),
]


@later
def alike(x: OpNode, y: OpNode) -> bool:
    return (x.shape, x.dtype) == (y.shape, y.dtype)


@later
def in_order(p: tuple[int, ...]) -> bool:
    return p == tuple(range(len(p)))


@later
def all_ones(x: OpNode, p: tuple[int, ...]) -> bool:
    """Whether all of the axes have length 1."""
    return all(x.shape[axis] == 1 for axis in p)


# The CAST is a copy: what two storages hold may become one node.
MOVEMENTS += [rule(idle, x, alike(x, idle)) for idle in (
    x.reshape(s), x.expand(s), x.shrink(p), x.pad(p), x.max(p), x.cast(t))]
MOVEMENTS += [
    rule(i.sum(p), i, alike(i, i.sum(p))),
    rule(x.permute(p), x, in_order(p)),
    rule(x.flip(p), x, all_ones(x, p)),
]


@later
def folded(node: OpNode) -> OpNode:
    """What an operation makes of constants, found by doing it once."""
    singles = [constant(value(x), x.dtype) for x in node.src]
    one = OpNode(node.op, tuple(singles), node.arg)
    (found,) = interpret([one], CPU)
    return constant(found.array.item(), one.dtype, node.shape)


@later
def is_prescribed(x: OpNode, t: DType) -> bool:
    """Whether one result is right, however large a float may be."""
    return not (x.dtype.is_float and t.kind in "iu")


# Of these the bits are prescribed, whichever loop computes them.
EXACT = (ADD, SUB, MUL, DIV, SQRT, AND, LESS, EQUAL, IDIV, MOD, WHERE)
FOLDING = [rule(call, folded(call)) for call in [
    word(op)(*(c, d, e)[:op.arity]) for op in EXACT]]
FOLDING += [rule(c.cast(t), folded(c.cast(t)), is_prescribed(c, t))]


@later
def shape(x: OpNode) -> Shape:
    return x.shape


@later
def is_scalar(x: OpNode) -> bool:
    return x.shape == ()


wide = x.expand(s)
FOLDING += [rule(moved, x.expand(shape(moved)), is_scalar(x)) for moved in (
    wide.reshape(t), wide.permute(p), wide.flip(p), wide.shrink(p))]
FOLDING += [rule(x.reshape(s).expand(t), x.expand(t), is_scalar(x))]
RULES = [*FOLDING, *ALGEBRA, *WHOLE, *MOVEMENTS]
