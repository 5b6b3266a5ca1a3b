# Tangled from autograd: edit there, `make tangle`. sha256:0552dda93f22
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from companion.ops import (
    ADD,
    CAST,
    DIV,
    EQUAL,
    ERF,
    EXP,
    EXPAND,
    FLIP,
    GATHER,
    IDIV,
    LESS,
    LOG,
    MATMUL,
    MAX,
    MAXIMUM,
    MOD,
    MUL,
    PAD,
    PERMUTE,
    RESHAPE,
    SCATTER,
    SHRINK,
    SIN,
    SQRT,
    SUB,
    SUM,
    WHERE,
    Op,
)


# chapters/gradients/autograd.md:196
class Record:
    """How a tensor came to be: the operation, its operands, its argument.

    `ages` are the versions of the memory that the gradient will read.
    """

    __slots__ = ("op", "src", "arg", "ages")

    def __init__(self, op: Op, src: tuple[Any, ...], arg: Any,
                 ages: list[int]):
        self.op = op
        self.src = src
        self.arg = arg
        self.ages = ages


# chapters/gradients/autograd.md:258
RECORDING: ContextVar[bool] = ContextVar("recording", default=True)


# chapters/gradients/autograd.md:261
@contextmanager
def recording(on: bool) -> Iterator[None]:
    """Whether operations are recorded, inside the block."""
    token = RECORDING.set(on)
    try:
        yield
    finally:
        RECORDING.reset(token)


# chapters/gradients/autograd.md:271
def no_grad() -> AbstractContextManager[None]:
    """Compute without recording: results need no gradient."""
    return recording(False)


# chapters/gradients/autograd.md:320
Rule = Callable[..., Any]
GRADIENT: dict[Op, tuple[Rule | None, ...]] = {}
NEEDS: dict[Op, tuple[int, ...]] = {}


# chapters/gradients/autograd.md:325
def check_rule(op: Op) -> None:
    """Refuse, before anything is computed or written, what has no rule."""
    if op not in GRADIENT:
        raise TypeError(
            f"{op} has no gradient and was asked for one; run it under "
            f"no_grad(), or on .detach()")


# chapters/gradients/autograd.md:333
def remember(y: Any, op: Op, src: tuple[Any, ...], arg: Any) -> None:
    """Record how `y` was made, if it varies smoothly with an operand."""
    if y.dtype.is_float and any(GRADIENT[op]):
        y.requires_grad = True
        y.record = Record(op, src, arg, ages(op, *src, y))


# chapters/gradients/autograd.md:340
def ages(op: Op, *values: Any) -> list[int]:
    """The versions of the memory that the gradient of `op` reads."""
    return [values[i].buffer.storage.version for i in NEEDS.get(op, ())]


# chapters/gradients/autograd.md:362
TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)

GRADIENT[EXP] = (lambda g, y, x, _: g * y,)
GRADIENT[LOG] = (lambda g, y, x, _: g / x,)
GRADIENT[SIN] = (lambda g, y, x, _: g * x.cos(),)
GRADIENT[SQRT] = (lambda g, y, x, _: g * 0.5 / y,)
GRADIENT[ERF] = (
    lambda g, y, x, _: g * (-x * x).exp() * TWO_OVER_ROOT_PI,)
GRADIENT[CAST] = (lambda g, y, x, _: g.cast(x.dtype),)

# chapters/gradients/autograd.md:388
GRADIENT[ADD] = (lambda g, y, a, b, _: g,
                 lambda g, y, a, b, _: g)
GRADIENT[SUB] = (lambda g, y, a, b, _: g,
                 lambda g, y, a, b, _: -g)
GRADIENT[MUL] = (lambda g, y, a, b, _: g * b,
                 lambda g, y, a, b, _: g * a)
GRADIENT[DIV] = (lambda g, y, a, b, _: g / b,
                 lambda g, y, a, b, _: -g * y / b)
GRADIENT[MOD] = (lambda g, y, a, b, _: g,
                 lambda g, y, a, b, _: -g * (a // b))
GRADIENT[WHERE] = (None,
                   lambda g, y, c, a, b, _: g.masked_fill(~c, 0),
                   lambda g, y, c, a, b, _: g.masked_fill(c, 0))
GRADIENT[LESS] = (None, None)
GRADIENT[EQUAL] = (None, None)
GRADIENT[IDIV] = (None, None)


# chapters/gradients/autograd.md:420
def share(g: Any, a: Any, b: Any) -> Any:
    """What max(a, b) passes on to a: all, nothing, or half of a tie."""
    return g.where(b < a, (g * 0.5).where(a == b, 0))


GRADIENT[MAXIMUM] = (lambda g, y, a, b, _: share(g, a, b),
                     lambda g, y, a, b, _: share(g, b, a))


# chapters/gradients/autograd.md:457
def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The order that undoes `order`."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


# chapters/gradients/autograd.md:462
def stretched(x: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which an EXPAND repeated x."""
    new = len(shape) - len(x.shape)
    return tuple([i for i, m in enumerate(shape)
                  if i < new or x.shape[i - new] != m])


# chapters/gradients/autograd.md:469
def inside(x: Any, margins: Any) -> tuple[tuple[int, int, int], ...]:
    """The ranges that cut x out of its padding again."""
    return tuple([
        (before, before + max(n - 1, 0) * step + min(n, 1), step)
        for n, (before, _, step) in zip(x.shape, margins)])


# chapters/gradients/autograd.md:476
def around(x: Any, ranges: Any) -> tuple[tuple[int, int, int], ...]:
    """The margins that put a cut-out back in its place."""
    walks = [range(*r) for r in ranges]
    lasts = [walk[-1] if walk else walk.start - 1 for walk in walks]
    return tuple([(walk.start, n - 1 - last, walk.step)
                  for n, walk, last in zip(x.shape, walks, lasts)])


# chapters/gradients/autograd.md:493
GRADIENT[RESHAPE] = (
    lambda g, y, x, shape: g.reshape(x.shape).to(x.device),)
GRADIENT[PERMUTE] = (
    lambda g, y, x, order: g.apply(PERMUTE, g, arg=inverse(order)),)
GRADIENT[FLIP] = (lambda g, y, x, axes: g.apply(FLIP, g, arg=axes),)
GRADIENT[EXPAND] = (
    lambda g, y, x, shape: g.apply(
        SUM, g, arg=stretched(x, shape)).reshape(x.shape),)
GRADIENT[PAD] = (
    lambda g, y, x, margins: g.apply(SHRINK, g, arg=inside(x, margins)),)
GRADIENT[SHRINK] = (
    lambda g, y, x, ranges: g.apply(PAD, g, arg=around(x, ranges)),)


# chapters/gradients/autograd.md:534
def among_ties(g: Any, y: Any, x: Any, axes: tuple[int, ...]) -> Any:
    """g divided equally among the elements that reach the maximum."""
    hits = (x == y).cast(g.dtype)
    return hits * (g / hits.sum(axes, keepdim=True))


GRADIENT[SUM] = (lambda g, y, x, axes: g.broadcast(x.shape),)
GRADIENT[MAX] = (lambda g, y, x, axes: among_ties(g, y, x, axes),)

# chapters/gradients/autograd.md:554
GRADIENT[MATMUL] = (lambda g, y, a, b, _: g @ b.mT,
                    lambda g, y, a, b, _: (g.mT @ a).mT)
GRADIENT[GATHER] = (
    lambda g, y, x, at, _: g.apply(SCATTER, g, at, arg=x.shape[0]),
    None)
GRADIENT[SCATTER] = (
    lambda g, y, x, at, _: g.apply(GATHER, g, at),
    None)


# chapters/gradients/autograd.md:641
def lineage(root: Any) -> list[Any]:
    """What `root` was computed from, operands before results.

    Depth-first with a stack of our own: a program of a million
    operations in a row is as good as any.
    """
    order: list[Any] = []
    seen: set[int] = set()
    stack = [(root, False)]
    while stack:
        y, finished = stack.pop()
        if finished:
            order.append(y)
        elif y.record is not None and id(y) not in seen:
            seen.add(id(y))
            stack.append((y, True))
            stack += [(x, False) for x in y.record.src
                      if x.requires_grad]
    return order


# chapters/gradients/autograd.md:726
def flow(y: Any, g: Any) -> Iterator[tuple[Any, Any]]:
    """Each operand of `y` that wants a gradient, with its share."""
    record = y.record
    if record.ages and record.ages != ages(record.op, *record.src, y):
        raise RuntimeError(
            f"backward: the memory of a value that the gradient of "
            f"{record.op} reads was written to after it was used; "
            f".clone() it before the write")
    for x, rule in zip(record.src, GRADIENT[record.op]):
        if rule is not None and x.requires_grad:
            yield x, rule(g, y, *record.src, record.arg)


# chapters/gradients/autograd.md:748
def sweep(root: Any, seed: Any, keep: bool) -> Iterator[tuple[Any, Any]]:
    """Every value behind `root` with its complete gradient, leaves last.

    Lets go of each record as soon as it has served, unless `keep`.
    """
    order = lineage(root)
    check_unspent(order)
    partial = {id(root): (root, seed)}
    while order:
        y = order.pop()
        if id(y) in partial:
            _, g = partial.pop(id(y))
            yield y, g
            for x, share in flow(y, g):
                if id(x) in partial:
                    share = partial[id(x)][1] + share
                partial[id(x)] = x, share
        if not keep:
            y.record = SPENT
    yield from partial.values()


# chapters/gradients/autograd.md:774
SPENT = Record(Op("SPENT", 0), (), None, [])


# chapters/gradients/autograd.md:777
def check_unspent(order: list[Any]) -> None:
    """Refuse to walk through a graph that an earlier walk let go."""
    if any(y.record is SPENT for y in order):
        raise RuntimeError(
            "backward: an earlier one released (part of) this graph; call "
            "that one with retain_graph=True, or compute the value again")


# chapters/gradients/autograd.md:1030
RESULT = -1
NEEDS |= {
    EXP: (RESULT,), SQRT: (RESULT,), DIV: (1, RESULT),
    LOG: (0,), SIN: (0,), ERF: (0,), MAX: (0, RESULT),
    MUL: (0, 1), MAXIMUM: (0, 1), MOD: (0, 1), MATMUL: (0, 1),
    WHERE: (0,), GATHER: (1,), SCATTER: (1,),
}
