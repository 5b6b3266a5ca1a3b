# Tangled from rewriting, fusion: edit there, `make tangle`. sha256:37274731d3e2  # noqa: E501
"""The rules: which programs are the same, in every bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from companion.blas import WIDE
from companion.compiler.graph import OpNode, constant, interpret, toposort
from companion.compiler.rewrite import (
    Hole, Rule, as_node, later, rule, value, word)
from companion.device import CPU, WIDEST
from companion.dtype import (
    DType, bfloat16, bool_, float16, float32, float64, int64)
from companion.ops import (
    ADD, AND, ATTENTION, ATTENTION_GRADIENT, BUFFER, CONV, DIV, EQUAL, ERF,
    EXP, EXPAND, FAMILIES, GATHER, IDIV, LESS, LOG, MATMUL, MAX, MAXIMUM, MOD,
    MUL, PERMUTE, POW, RANDOM, SCATTER, SHAPE, SHRINK, SIN, SQRT, SUB, WHERE,
    Op)
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

LONG = 4096  # more elements than this are folded in two steps
HALVES = {float16, bfloat16}


@later
def is_narrow(x: OpNode) -> bool:
    return x.dtype in WIDE


@later
def is_half(x: OpNode) -> bool:
    return x.dtype in HALVES


@later
def wide_of(x: OpNode) -> DType:
    return WIDE[x.dtype]


@later
def dtype_of(x: OpNode) -> DType:
    return x.dtype


@later
def is_by_float32(x: OpNode, p: DType) -> bool:
    """Whether a cast from or to halves is two, with float32 between."""
    kinds = {x.dtype, p}
    return len(kinds) == 2 and bool(kinds & HALVES) and float32 not in kinds


@later
def is_not_int64(j: OpNode) -> bool:
    return j.dtype is not int64


@later
def is_empty(x: OpNode) -> bool:
    return 0 in x.shape


@later
def lies_otherwise(x: OpNode) -> bool:
    """Whether it is a leaf whose memory is not in order."""
    return x.op is BUFFER and not x.arg.view.is_dense


@later
def is_long(x: OpNode, p: tuple[int, ...]) -> bool:
    """Whether a row of many elements is folded, and can be in parts."""
    rows, length = in_two(x, p)
    ends = x.shape[:len(x.shape) - len(p)]
    last = p == tuple(range(len(ends), len(x.shape))) or rows == 1
    return last and length > LONG and width_of(length) > 8


def in_two(x: OpNode, p: tuple[int, ...]) -> tuple[int, int]:
    """How many folds there are, and of how many elements."""
    length = math.prod([x.shape[axis] for axis in p])
    return math.prod(x.shape) // max(length, 1), length


def width_of(length: int) -> int:
    """The longest part of up to 1024 elements that divides so many."""
    return max([n for n in range(1, 1025) if length % n == 0])


@later
def in_parts(x: OpNode, p: tuple[int, ...]) -> Shape:
    rows, length = in_two(x, p)
    return rows, length // width_of(length), width_of(length)


@later
def without(x: OpNode, p: tuple[int, ...]) -> Shape:
    return SHAPE[MAX](x, p)


def copying(op: Op, n: int) -> Rule:
    """A call that takes operand n in order gets a copy of what is not."""
    src = [Hole(f"x{k}") for k in range(op.arity)]
    copied = src[n].reshape(shape(src[n]))
    return rule(word(op)(*src, p), word(op)(
        *src[:n], copied, *src[n + 1:], p), lies_otherwise(src[n]))


def in_float32(op: Op) -> Rule:
    """Halves are computed in float32; numbers are rounded, answers not."""
    src = [x, y][:op.arity]
    wide = word(op)(*[operand.cast(float32) for operand in src], p)
    answers = op in (LESS, EQUAL)
    return rule(word(op)(*src, p), wide if answers else wide.cast(
        dtype_of(x)), is_half(x))


ROUNDED = (EXP, LOG, SIN, SQRT, ERF, ADD, SUB, MUL, DIV, POW, MAXIMUM, IDIV,
           MOD, LESS, EQUAL, *FAMILIES["reduce"])

matmul, conv = word(MATMUL), word(CONV)
LOWERING = [
    # What does not depend on the loop is read ahead of it, from nowhere.
    rule(x.sum(p), 0, is_empty(x)),
    rule(matmul(x, y), matmul(
        x.cast(wide_of(x)), y.cast(wide_of(x))).cast(dtype_of(x)),
        is_narrow(x)),
    rule(conv(x, y, p), conv(
        x.cast(wide_of(x)), y.cast(wide_of(x)), p).cast(dtype_of(x)),
        is_narrow(x)),
    rule(x.gather(j, p), x.gather(j.cast(int64), p), is_not_int64(j)),
    rule(x.scatter(j, p), x.scatter(j.cast(int64), p), is_not_int64(j)),
    *map(in_float32, ROUNDED),
    rule(x.cast(p), x.cast(float32).cast(p), is_by_float32(x, p)),
    rule(x.scatter(j, p), x.cast(float32).scatter(j, p).cast(dtype_of(x)),
         is_half(x)),
    *[rule(word(op)(x, p), word(op)(word(op)(
        x.reshape(in_parts(x, p)), (2,)), (1,)).reshape(without(x, p)),
        is_long(x, p)) for op in FAMILIES["reduce"]],
    *[copying(op, n) for op in (
        GATHER, SCATTER, RANDOM, ATTENTION, ATTENTION_GRADIENT)
      for n in range(op.arity)]]

z = Hole("z", "f")


@later
def number(c: OpNode) -> float:
    return float(value(c))


@later
def over(c: OpNode) -> float:
    return 1 / value(c) if value(c) else math.inf


@later
def opposite(b: OpNode) -> OpNode:
    inner = b.src[0] if b.op is EXPAND else b
    wrong = constant(False, bool_, inner.shape)
    return OpNode(EXPAND, (OpNode(EQUAL, (inner, wrong)),), b.shape)


@later
def is_hidden(d: OpNode) -> bool:
    """Whether scores are hidden where `d` is put."""
    return value(d) == -math.inf


@later
def attended(x: OpNode, y: OpNode, z: OpNode, scale: float,
             seen: Any) -> OpNode:
    """softmax(x y · scale) z by the kernel; NaN where all is hidden."""
    *stack, keys, width = z.shape
    *axes, last = range(len(z.shape))
    k = OpNode(PERMUTE, (y,), (*axes[:-1], last, axes[-1]))
    all_keys = constant(True, bool_, (*stack, x.shape[-2], keys))
    causal = seen is not True and is_causal(seen)
    mask = all_keys if causal or seen is True else seen
    both = OpNode(ATTENTION, (x, k, z, mask, all_keys), (scale, causal, 1.0))
    rows = [(0, length, 1) for length in both.shape[:-1]]
    found, logarithm = [OpNode(SHRINK, (both,), (*rows, columns)) for columns
                        in ((0, width, 1), (width, width + 1, 1))]
    nothing = OpNode(EQUAL, (logarithm, constant(
        -math.inf, x.dtype, logarithm.shape)))
    return OpNode(WHERE, (OpNode(EXPAND, (nothing,), found.shape), constant(
        math.nan, x.dtype, found.shape), found))


def is_causal(seen: OpNode) -> bool:
    """Whether a query sees the keys up to its own, as far as is known."""
    sizes = seen.shape[-2:]
    while seen.op is EXPAND:
        seen = seen.src[0]
    data = any(node.op is BUFFER for node in toposort(seen))
    if data or seen.shape[-2:] != sizes:
        return False  # one row or column for all is another mask
    (bits,) = interpret([seen], CPU)
    return np.array_equal(bits.array, np.tri(*sizes, dtype=bool))


def softmax(scores: Any) -> Any:
    """The pattern of weights that add up to 1."""
    powers = (scores - scores.max(p).expand(t)).exp()
    return powers / powers.sum(p).expand(t)


@later
def has_kernel(x: OpNode, z: OpNode, p: tuple[int, ...],
               scale: float) -> bool:
    """Whether ATTENTION takes such queries and values."""
    last, width = len(x.shape) - 1, x.shape[-1]
    return (p == (last,) and last <= 8 and math.isfinite(scale)
            and z.shape[-1] == width <= WIDEST
            and x.dtype in (float32, float64))


product = matmul(x, y)
FUSED = [
    rule(matmul(softmax(scores), z), attended(x, y, z, scale, seen),
         has_kernel(x, z, p, scale), *conditions)
    for scaled, scale in (
        (matmul(x * c, y), number(c)), (product, 1.0),
        (product * c, number(c)), (product / c, over(c)))
    for scores, seen, *conditions in (
        (scaled, True), (choose(b, scaled, d), b, is_hidden(d)),
        (choose(b, d, scaled), opposite(b), is_hidden(d)))]
