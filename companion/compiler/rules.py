# Tangled from rewriting, fusion: edit there, `make tangle`. sha256:d9d614f01206  # noqa: E501
"""The rules: which programs are the same, in every bit."""

from __future__ import annotations

import math
from typing import Any

from companion.blas import WIDE
from companion.compiler.graph import OpNode, interpret
from companion.compiler.rewrite import (
    Hole,
    constant,
    held,
    is_number,
    later,
    like,
    pattern,
    rule,
    value,
)
from companion.device import CPU
from companion.dtype import (
    DTYPES,
    DType,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int32,
    int64,
    uint8,
)
from companion.ops import (
    ADD,
    AND,
    CAST,
    DIV,
    EQUAL,
    FAMILIES,
    GATHER,
    IDIV,
    IOTA,
    LESS,
    MATMUL,
    MAX,
    MOD,
    MUL,
    SCATTER,
    SHAPE,
    SQRT,
    SUB,
    WHERE,
    Op,
)
from companion.view import Shape

x, y = Hole("x"), Hole("y")
i, j = Hole("i", "biu"), Hole("j", "biu")  # whole numbers
b = Hole("b", "b")
c, d, e = [Hole(name, constant=True) for name in "cde"]
p, q, s, t = [Hole(name) for name in "pqst"]  # arguments

ALGEBRA = [
    rule(x + -0.0, x),
    rule(x - 0.0, x),
    rule(x * 1, x),
    rule(x / 1, x),
    rule(x * -1 * -1, x),
    rule(x + y * -1, x - y),
    rule(x - y * -1, x + y),
    rule(x.maximum(x), x),
    rule(x.maximum(-math.inf), x),
    rule(x < x, False),
    rule(x & x, x),
    rule(b & True, b),
    rule(b.equal(True), b),
    rule(b.where(x, x), x),
    rule(pattern(WHERE, True, x, y), x),
    rule(pattern(WHERE, False, x, y), y),
    rule(b.where(True, False), b),
]


@later
def union(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*p, *q}))


WHOLE = [
    rule(i - i, 0),
    rule(i * 0, 0),
    rule(i & 0, 0),
    rule(i.equal(i), True),
    rule(i // 1, i),
    rule(i % 1, 0),
    rule(i.pow(1), i),
    rule(i.sum(p).sum(q), i.sum(union(p, q))),
    rule(i.max(p).max(q), i.max(union(p, q))),
]


@later
def inverse(c: OpNode) -> OpNode:
    return like(1 / value(c), c)


@later
def has_inverse(c: OpNode) -> bool:
    """Whether 1 / c is a number of the dtype: c is ± a power of two."""
    number = value(c)
    return (math.isfinite(number) and abs(math.frexp(number)[0]) == 0.5
            and held(1 / number, c.dtype) * number == 1)


ALGEBRA += [rule(x / c, x * inverse(c), has_inverse(c))]

FOR_BYTES = int32, int64, float16, bfloat16, float32, float64
ROOM: dict[DType, tuple[DType, ...]] = {  # for all values of the first
    bool_: tuple(DTYPES.values()), uint8: FOR_BYTES, int8: FOR_BYTES,
    int32: (int64, float64), float16: (float32, float64),
    bfloat16: (float32, float64), float32: (float64,),
}


@later
def is_dtype(x: OpNode, t: DType) -> bool:
    return x.dtype is t


@later
def is_detour(x: OpNode, s: DType, t: DType) -> bool:
    """Whether x reaches t by way of s as it would without."""
    # What a float out of range becomes in a whole number is left open.
    whole = t.kind in "iu" and s.is_float
    return s in ROOM.get(x.dtype, ()) and (not whole or t is x.dtype)


CASTS = [
    rule(x.cast(t), x, is_dtype(x, t)),
    rule(x.cast(s).cast(t), x.cast(t), is_detour(x, s, t)),
]


@later
def then(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([p[axis] for axis in q])


@later
def either(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of one of the two: those of both are turned back."""
    return tuple(sorted({*p} ^ {*q}))


@later
def has_elements(x: OpNode) -> bool:
    return 0 not in x.shape


Ranges = tuple[tuple[int, int, int], ...]


@later
def walk(p: Ranges, q: Ranges) -> Ranges:
    """The ranges q of what the ranges p have left."""
    walks = [range(*far)[slice(*near)] for far, near in zip(p, q)]
    return tuple([(at[0], at[-1] + 1, at.step) if at else (0, 0, 1)
                  for at in walks])


@later
def around(p: Ranges, q: Ranges) -> Ranges:
    """The margins q around the margins p."""
    return tuple([(far[0] + far[2] * near[0], far[1] + far[2] * near[1],
                   far[2] * near[2]) for near, far in zip(p, q)])


MOVEMENTS = [
    rule(x.reshape(s).reshape(t), x.reshape(t)),
    rule(x.expand(s).expand(t), x.expand(t)),
    rule(x.permute(p).permute(q), x.permute(then(p, q))),
    rule(x.flip(p).flip(q), x.flip(either(p, q))),
    rule(x.shrink(p).shrink(q), x.shrink(walk(p, q))),
    rule(x.pad(p).pad(q), x.pad(around(p, q)), has_elements(x)),
]


@later
def has_shape(x: OpNode, s: Shape) -> bool:
    return x.shape == s


@later
def in_order(p: tuple[int, ...]) -> bool:
    return p == tuple(range(len(p)))


@later
def all_ones(x: OpNode, p: tuple[int, ...]) -> bool:
    """Whether all of the axes have length 1."""
    return all(x.shape[axis] == 1 for axis in p)


@later
def is_whole(x: OpNode, p: Ranges) -> bool:
    return all(range(*r) == range(n) for r, n in zip(p, x.shape))


@later
def is_bare(x: OpNode, p: Ranges) -> bool:
    """Whether there are no margins, and no room between elements."""
    return all(before == after == 0 and (step == 1 or n < 2)
               for n, (before, after, step) in zip(x.shape, p))


@later
def is_count(x: OpNode, n: int) -> bool:
    return x.shape[:1] == (n,)


MOVEMENTS += [
    rule(x.reshape(s), x, has_shape(x, s)),
    rule(x.expand(s), x, has_shape(x, s)),
    rule(x.permute(p), x, in_order(p)),
    rule(x.flip(p), x, all_ones(x, p)),
    rule(x.shrink(p), x, is_whole(x, p)),
    rule(x.pad(p), x, is_bare(x, p)),
    rule(x.max(p), x, all_ones(x, p)),
    rule(i.sum(p), i, all_ones(i, p)),
    rule(pattern(GATHER, x, pattern(IOTA, p), 0), x, is_count(x, p)),
]


@later
def undoes(x: OpNode, p: Ranges, q: Ranges) -> bool:
    """Whether the ranges q cut out what the margins p were put around."""
    places = [range(before, before + n * step, step)
              for n, (before, _, step) in zip(x.shape, p)]
    return all(range(*r) == at for r, at in zip(q, places))


@later
def in_repeats(x: OpNode, s: Shape, p: Ranges) -> bool:
    """Whether the ranges p of x stretched to s leave x as it is."""
    new = len(s) - len(x.shape)
    return all(n == 1 != m or range(*r) == range(n)
               for n, m, r in zip(x.shape, s[new:], p[new:]))


@later
def lengths(p: Ranges) -> Shape:
    return tuple([len(range(*r)) for r in p])


@later
def among_repeats(x: OpNode, s: Shape, p: tuple[int, ...]) -> bool:
    """Whether all of the axes p of s are new, or have length 1 in x."""
    new = len(s) - len(x.shape)
    return all(axis < new or x.shape[axis - new] == 1 for axis in p)


MOVEMENTS += [
    rule(x.pad(p).shrink(q), x, undoes(x, p, q)),
    rule(x.expand(s).shrink(p), x.expand(lengths(p)), in_repeats(x, s, p)),
    rule(x.expand(s).flip(p), x.expand(s), among_repeats(x, s, p)),
    rule(x.expand(s).reshape(t), x.expand(t), has_shape(x, ())),
    rule(x.expand(s).permute(p), x.expand(then(s, p)), has_shape(x, ())),
]


@later
def folded(op: Op, arg: Any, *src: OpNode) -> OpNode:
    """What the operation makes of constants, found by doing it once."""
    singles = [constant(value(x), x.dtype, ()) for x in src]
    one = OpNode(op, tuple(singles), arg)
    (found,) = interpret([one], CPU)
    return constant(found.array.item(), one.dtype, src[0].shape)


@later
def is_prescribed(x: OpNode, t: DType) -> bool:
    return not (x.dtype.is_float and t.kind in "iu")


@later
def one_of(c: OpNode, p: tuple[int, ...]) -> OpNode:
    """The constant, with length 1 along the axes p."""
    return constant(value(c), c.dtype, SHAPE[MAX](c, p))


@later
def is_zero(c: OpNode) -> bool:
    """Whether c is what PAD pads with, and not minus zero."""
    return is_number(c, 0.0)


# Of these the bits are prescribed, whichever loop computes them.
EXACT = (ADD, SUB, MUL, DIV, SQRT, AND, LESS, EQUAL, IDIV, MOD, WHERE)
FOLDING = [rule(pattern(op, *(c, d, e)[:op.arity]),
                folded(op, None, *(c, d, e)[:op.arity])) for op in EXACT]
FOLDING += [
    rule(c.cast(t), folded(CAST, t, c), is_prescribed(c, t)),
    rule(c.max(p), one_of(c, p)),
    rule(c.pad(p), 0, is_zero(c)),
]


@later
def fewer(x: OpNode, s: Shape) -> bool:
    return math.prod(x.shape) < math.prod(s)


@later
def alike(x: OpNode, y: OpNode) -> bool:
    return x.shape == y.shape


@later
def shaped(c: OpNode, x: OpNode) -> OpNode:
    """The constant in the shape of x."""
    return constant(value(c), c.dtype, x.shape)


BEFORE_EXPAND = [
    rule(x.expand(s).sqrt(), x.sqrt().expand(s), fewer(x, s)),
    rule(x.expand(s).cast(t), x.cast(t).expand(s), fewer(x, s),
         is_prescribed(x, t)),
    *[each for op in EXACT if op.arity == 2 for each in (
        rule(pattern(op, x.expand(s), y.expand(s)),
             pattern(op, x, y).expand(s), alike(x, y), fewer(x, s)),
        rule(pattern(op, x.expand(s), c),
             pattern(op, x, shaped(c, x)).expand(s), fewer(x, s)),
        rule(pattern(op, c, x.expand(s)),
             pattern(op, shaped(c, x), x).expand(s), fewer(x, s)))],
]

RULES = [*FOLDING, *ALGEBRA, *WHOLE, *CASTS, *MOVEMENTS, *BEFORE_EXPAND]

LONG = 4096  # more elements than this are folded in two steps


@later
def is_narrow(i: OpNode) -> bool:
    return i.dtype in WIDE


@later
def wide_of(i: OpNode) -> DType:
    return WIDE[i.dtype]


@later
def dtype_of(i: OpNode) -> DType:
    return i.dtype


@later
def is_not_int64(j: OpNode) -> bool:
    return j.dtype is not int64


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


LOWERING = [
    rule(pattern(MATMUL, i, j), pattern(
        MATMUL, i.cast(wide_of(i)), j.cast(wide_of(i))).cast(dtype_of(i)),
        is_narrow(i)),
    rule(pattern(GATHER, x, j, p), pattern(GATHER, x, j.cast(int64), p),
         is_not_int64(j)),
    rule(pattern(SCATTER, x, j, p), pattern(SCATTER, x, j.cast(int64), p),
         is_not_int64(j)),
    *[rule(pattern(op, x, p), pattern(op, pattern(
        op, x.reshape(in_parts(x, p)), (2,)), (1,)).reshape(without(x, p)),
        is_long(x, p)) for op in FAMILIES["reduce"]]]
