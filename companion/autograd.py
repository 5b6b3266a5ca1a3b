# Tangled from autograd, convolution, attention, scaling, vocabulary: edit there, `make tangle`. sha256:71c97fbf919e  # noqa: E501
from __future__ import annotations

import functools
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from companion.ops import (
    ADD, AND, ATTENTION, ATTENTION_GRADIENT, CAST, CONV, DIV, EQUAL, ERF, EXP,
    EXPAND, FLIP, GATHER, IDIV, IOTA, LESS, LOG, MATMUL, MAX, MAXIMUM, MOD,
    MUL, PAD, PERMUTE, POW, RESHAPE, SCATTER, SHRINK, SIN, SQRT, SUB, SUM,
    WHERE, Op, Window)

if TYPE_CHECKING:  # not when it runs: tensors import this module
    from companion.tensor import Tensor


class Record:
    """How a tensor came to be: the operation, its operands, its argument.

    `pasts` are the records of the operands at that time, None for a
    leaf. `ages` says which version of each value's memory the gradient
    will read, and `born` which version of its memory the result is.
    """

    __slots__ = ("op", "src", "arg", "pasts", "ages", "born")

    def __init__(self, op: Op, src: tuple[Tensor, ...], arg: Any,
                 ages: Sequence[tuple[int, int]] = (), born: int = 0):
        self.op = op
        self.src = src
        self.arg = arg
        # Now, not when it is read: a later write in place gives an
        # operand another record.
        self.pasts = [x.record for x in src]
        self.ages = ages
        self.born = born

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "copy, pickle: this tensor was computed from what needs a "
            "gradient, and its whole graph would come along; copy its "
            ".detach(), or compute it again from copies")

    def release(self) -> None:
        """Let go of the operands; what is left says that it served."""
        self.op, self.src, self.arg = SPENT, (), None
        self.pasts, self.ages = [], ()


RECORDING: ContextVar[bool] = ContextVar("recording", default=True)


@contextmanager
def recording(on: bool) -> Iterator[None]:
    """Whether operations are recorded, inside the block."""
    token = RECORDING.set(on)
    try:
        yield
    finally:
        RECORDING.reset(token)


def no_grad(function: Callable[..., Any] | None = None) -> Any:
    """Compute without recording: results need no gradient.

    A block, or a decorator, with parentheses or without.
    """
    return switch(False, function)


Rule = Callable[..., Any]

NEEDS: dict[Op, tuple[tuple[int, ...], ...]] = {}


def check_rule(op: Op, src: tuple[Tensor, ...]) -> None:
    """Refuse, before anything is computed or written, what has no rule."""
    if op not in GRADIENT:
        raise TypeError(
            f"{op} has no gradient and was asked for one; run it under "
            f"no_grad(), or on .detach()")
    for x in src:
        check_unmodified(x)


def remember(y: Tensor, op: Op, src: tuple[Tensor, ...], arg: Any) -> None:
    """Record how `y` was made, if it varies smoothly with an operand."""
    if y.dtype.is_float and any(GRADIENT[op]):
        y.requires_grad = True
        y.record = Record(op, src, arg, ages(op, src, y), version(y))


def ages(op: Op, src: tuple[Tensor, ...], y: Tensor) -> list[tuple[int, int]]:
    """(place, version) of each value that a gradient of `op` reads."""
    values = (*src, y)
    return [(i, version(values[i]))
            for x, needs in zip(src, NEEDS.get(op, ()))
            if x.requires_grad for i in needs]


def version(x: Tensor) -> int:
    """How many times the memory of `x` has been written to."""
    return x.buffer.storage.version


def check_unmodified(x: Tensor) -> None:
    """Refuse a value that is no longer what its record computed."""
    if x.record is not None and x.record.born != version(x):
        raise RuntimeError(
            f"the memory of a value of shape {x.shape} was written to "
            f"through another tensor after {x.record.op} computed it, so "
            f"its gradient is lost; .clone() it before the write")


# 2/√π, as a part of the exponent: so it costs no sweep of its own.
LOG_SLOPE = math.log(2 / math.sqrt(math.pi))


def slope_of_base(x: Tensor, y: Tensor) -> Tensor:
    """y · x ** (y - 1); 0 for y = 0, whatever x is."""
    flat = (y == 0) & ((x < 0) == (x > 0))  # x is 0 or not a number
    # The base is replaced, not the slope: what is computed and thrown
    # away would come back as 0 * infinity in a second derivative.
    return y * x.masked_fill(flat, 1) ** (y - 1)


def slope_of_exponent(power: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x ** y · log x; 0 for x = 0 and y >= 0."""
    return power * x.masked_fill((x == 0) & (y >= 0), 1).log()


def maximum_gradient(g: Tensor, y: Tensor, mine: Tensor, other: Tensor,
                     wins: bool | None) -> Tensor:
    """What a maximum passes on to one operand: all, nothing, its share.

    `wins` says whether a tie is its own; None, that it is shared.
    """
    if wins is None:
        halved = (g * 0.5).where(mine == other, g)
        return halved.masked_fill(mine < other, 0)
    return g.where(y == mine, 0) if wins else g.masked_fill(y == other, 0)


def wins_tie(tie: int | None, operand: int) -> bool | None:
    return None if tie is None else tie == operand


def inverse_permutation(order: tuple[int, ...]) -> tuple[int, ...]:
    """The order that undoes `order`."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def expanded_axes(x: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which an EXPAND repeated x."""
    new = len(shape) - len(x.shape)
    return tuple([i for i, m in enumerate(shape)
                  if i < new or x.shape[i - new] != m])


def pad_to_shrink(x: Any, margins: Any) -> tuple[tuple[int, int, int], ...]:
    """The ranges that cut x out of its padding again."""
    return tuple([
        (before, before + max(n - 1, 0) * step + min(n, 1), step)
        for n, (before, _, step) in zip(x.shape, margins)])


def shrink_to_pad(x: Any, ranges: Any) -> tuple[tuple[int, int, int], ...]:
    """The margins that put a cut-out back in its place."""
    walks = [range(*r) for r in ranges]
    lasts = [walk[-1] if walk else walk.start - 1 for walk in walks]
    return tuple([(walk.start, n - 1 - last, walk.step)
                  for n, walk, last in zip(x.shape, walks, lasts)])


def split_ties(g: Tensor, y: Tensor, x: Tensor,
               axes: tuple[int, ...]) -> Tensor:
    """g divided equally among the elements that reach the maximum."""
    hits = (x == y).cast(g.dtype)
    return hits * (g / hits.sum(axes, keepdim=True))


GRADIENT: dict[Op, Iterable[Rule | None]] = {
    EXP: (lambda g, y, x, _: g * y,),
    LOG: (lambda g, y, x, _: g / x,),
    SIN: (lambda g, y, x, _: g * x.cos(),),
    SQRT: (lambda g, y, x, _: g * 0.5 / y,),
    ERF: (lambda g, y, x, _: g * (LOG_SLOPE - x * x).exp(),),
    CAST: (lambda g, y, x, _: g.cast(x.dtype),),
    ADD: (lambda g, y, a, b, _: g,
          lambda g, y, a, b, _: g),
    SUB: (lambda g, y, a, b, _: g,
          lambda g, y, a, b, _: -g),
    MUL: (lambda g, y, a, b, _: g * b,
          lambda g, y, a, b, _: g * a),
    DIV: (lambda g, y, a, b, _: g / b,
          lambda g, y, a, b, _: -g * y / b),
    MOD: (lambda g, y, a, b, _: g,
          lambda g, y, a, b, _: -g * (a // b)),
    # A fill, not g * c: infinity times zero would be NaN.
    WHERE: (None,
            lambda g, y, c, a, b, _: g.masked_fill(~c, 0),
            lambda g, y, c, a, b, _: g.masked_fill(c, 0)),
    LESS: (None, None),
    EQUAL: (None, None),
    IDIV: (None, None),
    AND: (None, None),
    POW: (lambda g, p, x, y, _: g * slope_of_base(x, y),
          lambda g, p, x, y, _: g * slope_of_exponent(p, x, y)),
    MAXIMUM: (
        lambda g, y, a, b, tie: maximum_gradient(
            g, y, a, b, wins_tie(tie, 0)),
        lambda g, y, a, b, tie: maximum_gradient(
            g, y, b, a, wins_tie(tie, 1))),
    RESHAPE: (
        lambda g, y, x, shape: g.reshape(x.shape).to(x.device),),
    PERMUTE: (
        lambda g, y, x, order: g.apply(
            PERMUTE, g, arg=inverse_permutation(order)),),
    FLIP: (lambda g, y, x, axes: g.apply(FLIP, g, arg=axes),),
    EXPAND: (
        lambda g, y, x, shape: g.apply(
            SUM, g, arg=expanded_axes(x, shape)).reshape(x.shape),),
    PAD: (
        lambda g, y, x, margins: g.apply(
            SHRINK, g, arg=pad_to_shrink(x, margins)),),
    SHRINK: (
        lambda g, y, x, ranges: g.apply(
            PAD, g, arg=shrink_to_pad(x, ranges)),),
    SUM: (lambda g, y, x, axes: g.broadcast(x.shape),),
    MAX: (lambda g, y, x, axes: split_ties(g, y, x, axes),),
    # Not a.mT @ g: a layer multiplies by its weight's transpose, and this
    # order leaves the gradient of the weight itself dense.
    MATMUL: (lambda g, y, a, b, _: g @ b.mT,
             lambda g, y, a, b, _: (g.mT @ a).mT),
    GATHER: (
        lambda g, y, x, at, axis: g.apply(
            SCATTER, g, at, arg=(axis, x.shape[axis])),
        None),
    SCATTER: (
        lambda g, y, x, at, arg: g.apply(GATHER, g, at, arg=arg[0]),
        None),
}


def lineage(root: Tensor) -> list[tuple[Tensor, Record]]:
    """What `root` was computed from, and how, operands before results.

    Depth-first with a stack of our own: a program of a million
    operations in a row is as good as any.
    """
    order: list[tuple[Tensor, Record]] = []
    seen: set[int] = set()
    stack = [(root, root.record, False)]
    while stack:
        y, record, finished = stack.pop()
        if record is None:
            continue
        if finished:
            order.append((y, record))
        # By record, not by tensor: one that was overwritten in place is
        # visited once for each of its pasts.
        elif id(record) not in seen:
            seen.add(id(record))
            stack.append((y, record, True))
            stack += [(x, past, False) for x, past
                      in zip(record.src, record.pasts) if x.requires_grad]
    return order


def flow(y: Tensor, record: Record,
         g: Tensor) -> Iterator[tuple[Tensor, Record | None, Tensor]]:
    """The operands that want a gradient, their pasts and their shares."""
    values = (*record.src, y)
    if any(version(values[i]) != age for i, age in record.ages):
        raise RuntimeError(
            f"backward: the memory of a value that the gradient of "
            f"{record.op} reads was written to after it was used; "
            f".clone() it before the write")
    for x, past, rule in zip(record.src, record.pasts, GRADIENT[record.op]):
        if rule is not None and x.requires_grad:
            yield x, past, rule(g, y, *record.src, record.arg)


def give_shares(y: Tensor, record: Record,
                partial: dict[int, tuple[Tensor, Tensor]],
                keep: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """y with its complete gradient; shares of it go to its operands."""
    if id(record) in partial:
        _, g = partial.pop(id(record))
        if y.record is record:
            yield y, g
        # A leaf has no record, so it is found by its own identity.
        for x, past, share in flow(y, record, g):
            place = id(past or x)
            if place in partial:
                share = partial[place][1] + share
            partial[place] = x, share
    if not keep:
        record.release()


def sweep(root: Tensor, seed: Tensor,
          keep: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Every value behind `root` with its complete gradient, leaves last.

    Lets go of each record as soon as it has served, unless `keep`.
    """
    order = lineage(root)
    check_unspent(order)
    partial = {id(root.record or root): (root, seed)}
    while order:
        yield from give_shares(*order.pop(), partial, keep)
    yield from partial.values()


SPENT = Op("SPENT", 0)


def check_unspent(order: list[tuple[Tensor, Record]]) -> None:
    """Refuse to walk through a graph that an earlier walk let go."""
    if any(record.op is SPENT for _, record in order):
        raise RuntimeError(
            "backward: an earlier one released (part of) this graph; call "
            "that one with retain_graph=True, or compute the value again")


RESULT = -1
NEEDS |= {
    EXP: ((RESULT,),), SQRT: ((RESULT,),),
    LOG: ((0,),), SIN: ((0,),), ERF: ((0,),), MAX: ((0, RESULT),),
    MUL: ((1,), (0,)), DIV: ((1,), (1, RESULT)),
    MOD: ((), (0, 1)), POW: ((0, 1), (0, 1, RESULT)),
    MAXIMUM: ((0, 1, RESULT), (0, 1, RESULT)),
    MATMUL: ((1,), (0,)), WHERE: ((), (0,), (0,)),
    GATHER: ((1,), ()), SCATTER: ((1,), ()),
}


def through(change: Callable[..., Window], windows: Sequence[Window],
            x: Tensor, w: Tensor, y: Tensor) -> tuple[Window, ...]:
    """The windows of a gradient, by n, k and m of each axis: the lengths
    of the picture, of the kernel and of the answer."""
    return tuple([change(*sizes) for sizes in zip(
        windows, x.shape[3:], w.shape[3:], y.shape[3:])])


def on_picture(old: Window, n: int, k: int, m: int) -> Window:
    """Each pixel sees the places whose taps have seen it."""
    stride, dilation, spread, before, _ = old
    return Window(spread, dilation, stride, dilation * (k - 1) - before,
                  (n - 1) * spread - (m - 1) * stride + before)


def on_kernel(old: Window, n: int, k: int, m: int) -> Window:
    """Each tap sees the pixels that it has met, one for each place."""
    stride, dilation, spread, before, _ = old
    return Window(dilation, stride, spread, before, (k - 1) * dilation
                  + (m - 1) * stride - (n - 1) * spread - before)


def picture_gradient(g: Tensor, y: Tensor, x: Tensor, w: Tensor,
                     windows: Any) -> Tensor:
    """g, seen through the kernel turned round."""
    turned = g.apply(FLIP, g.apply(PERMUTE, w, arg=(0, 2, 1, 3, 4)),
                     arg=(3, 4))
    return g.apply(CONV, g, turned, arg=through(on_picture, windows, x, w, g))


def kernel_gradient(g: Tensor, y: Tensor, x: Tensor, w: Tensor,
                    windows: Any) -> Tensor:
    """x, seen through g as a kernel: pictures and channels exchanged."""
    pictures = g.apply(PERMUTE, x, arg=(2, 1, 0, 3, 4))
    message = g.apply(PERMUTE, g, arg=(1, 2, 0, 3, 4))
    found = g.apply(CONV, pictures, message,
                    arg=through(on_kernel, windows, x, w, g))
    return g.apply(PERMUTE, found, arg=(1, 2, 0, 3, 4))


GRADIENT |= {CONV: (picture_gradient, kernel_gradient)}
NEEDS |= {CONV: ((1,), (0,))}


class Jointly:
    """An entry of GRADIENT whose rules share one computation.

    `rule(g, y, *operands, arg)` answers the gradients of the first
    `count` operands; those behind them have none.
    """

    def __init__(self, rule: Callable[..., Sequence[Tensor]], count: int):
        self.rule, self.count = rule, count

    def __iter__(self) -> Iterator[Rule]:
        # Anew for each record, so that nothing outlives its gradients.
        found: list[Any] = []

        def share(i: int, *values: Any) -> Tensor:
            found[:] = found or self.rule(*values)
            return found[i]
        return iter([partial(share, i) for i in range(self.count)])


def attention_gradients(g: Tensor, y: Tensor, q: Tensor, k: Tensor,
                        v: Tensor, mask: Tensor, kept: Tensor,
                        arg: Any) -> Sequence[Tensor]:
    """The gradients of q, k and v, cut out of one tensor."""
    n, s = q.shape[-2], k.shape[-2]
    rows = g.apply(ATTENTION_GRADIENT, g, y, q, k, v, mask, kept, arg=arg)
    return (rows[..., :n, :], rows[..., n:n + s, :], rows[..., n + s:, :])


GRADIENT |= {ATTENTION: Jointly(attention_gradients, 3)}
NEEDS |= {ATTENTION: ((0, 1, 2, 3, 4, RESULT),) * 3}


def seen_by(mask: Tensor, causal: bool) -> Tensor:
    """`mask`, and where `causal` also that no key comes after its query."""
    if not causal:
        return mask
    at, key = [mask.apply(IOTA, arg=n, device=mask.device)
               for n in mask.shape[-2:]]
    return mask & (key <= at.unsqueeze(1))


def thinned(x: Tensor, kept: Tensor, keep: float) -> Tensor:
    """0 where x is not kept; the rest is divided by the part that is."""
    return x if keep == 1 else (x / keep).masked_fill(~kept, 0)


def second_attention_gradients(
        up: Tensor, _: Tensor, g: Tensor, y: Tensor, q: Tensor, k: Tensor,
        v: Tensor, mask: Tensor, kept: Tensor,
        arg: Any) -> Sequence[Tensor]:
    """Of ATTENTION_GRADIENT, through all the weights: g, y, q, k and v."""
    (scale, causal, keep), n, s = arg, q.shape[-2], k.shape[-2]
    a, b, c = up[..., :n, :], up[..., n:n + s, :], up[..., n + s:, :]
    dy, rest = g[..., :-1], g[..., -1:]
    means, logarithm = y[..., :-1], y[..., -1:]
    scores = (q * scale) @ k.mT - logarithm
    p = scores.masked_fill(~seen_by(mask, causal), -math.inf).exp()
    left = partial(thinned, kept=kept, keep=keep)
    # The rule in question: dq = ds k, dk = dsᵀ q and dv = left(p)ᵀ dy.
    slope = scale * (left(dy @ v.mT) - (dy * means).sum(-1, keepdim=True)
                     + rest)
    ds, to_ds = p * slope, a @ k.mT + q @ b.mT
    to_slope = to_ds * p * scale
    to_scores = (to_ds * slope + left(dy @ c.mT)) * p
    all_slopes, to_dp = to_slope.sum(-1, keepdim=True), left(to_slope)
    return (joined(to_dp @ v - all_slopes * means + left(p) @ c, all_slopes),
            joined(-all_slopes * dy, -to_scores.sum(-1, keepdim=True)),
            to_scores @ k * scale + ds @ b,
            to_scores.mT @ q * scale + ds.mT @ a, to_dp.mT @ dy)


def joined(rows: Tensor, last: Tensor) -> Tensor:
    """`rows` with one more column."""
    none = ((0, 0, 1),) * (rows.ndim - 1)
    width = rows.shape[-1]
    return (rows.apply(PAD, rows, arg=(*none, (0, 1, 1)))
            + rows.apply(PAD, last, arg=(*none, (width, 0, 1))))


GRADIENT |= {ATTENTION_GRADIENT: Jointly(second_attention_gradients, 5)}
NEEDS |= {ATTENTION_GRADIENT: ((0, 1, 2, 3, 4, 5, 6),) * 5}


def sweep_to_leaves(root: Tensor, seed: Tensor,
                    keep: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """As `sweep`, but each leaf as soon as its gradient is complete."""
    uses = uses_behind(root)
    partial = {id(root.record or root): (root, seed)}
    ready = [(root, root.record)] if root.record else []
    while ready:
        y, record = ready.pop()
        operands = wanting(record)
        yield from give_shares(y, record, partial, keep)
        for x, past in operands:
            uses[place := id(past or x)] -= 1
            if past and not uses[place]:
                ready.append((x, past))
            elif not uses[place] and place in partial:
                yield partial.pop(place)
    yield from partial.values()  # a root that is a leaf


def uses_behind(root: Tensor) -> Counter[int]:
    """How often the walk will meet each value: a record's identity, or a
    leaf's own."""
    order = lineage(root)
    check_unspent(order)
    return Counter(id(past or x) for _, record in order
                   for x, past in wanting(record))


def wanting(record: Record) -> list[tuple[Tensor, Record | None]]:
    """The operands that want a gradient, and their pasts."""
    return [(x, past) for x, past in zip(record.src, record.pasts)
            if x.requires_grad]


class Switch:
    """A block, or a decorator, inside which recording is on, or off."""

    def __init__(self, on: bool):
        self.on = on
        self.tokens: list[Token[bool]] = []  # one block may hold itself

    def __enter__(self) -> None:
        self.tokens.append(RECORDING.set(self.on))

    def __exit__(self, *error: Any) -> None:
        RECORDING.reset(self.tokens.pop())

    def __call__(self, function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def called(*args: Any, **options: Any) -> Any:
            with Switch(self.on):
                found = function(*args, **options)
            return (drawn_with(self.on, found)
                    if inspect.isgenerator(found) else found)
        return called


def drawn_with(on: bool, steps: Any) -> Iterator[Any]:
    """A generator whose values are computed under a switch, one by one."""
    sent = None
    while True:
        with Switch(on):
            try:
                value = steps.send(sent)
            except StopIteration as end:
                return end.value
        sent = yield value


class Switched(Switch):
    """A switch that is turned when it is made, and back at a block's end."""

    def __init__(self, on: bool):
        super().__init__(on)
        super().__enter__()

    def __enter__(self) -> None:
        if not self.tokens:
            super().__enter__()

    def __call__(self, function: Callable[..., Any]) -> Any:
        self.__exit__()  # a decorator turns nothing until it is called
        return super().__call__(function)


def switch(on: bool, function: Callable[..., Any] | None) -> Any:
    """A block; of a function, that function inside of one."""
    return Switch(on) if function is None else Switch(on)(function)


def enable_grad(function: Callable[..., Any] | None = None) -> Any:
    """Record after all, inside a block that does not."""
    return switch(True, function)


def inference_mode(mode: Any = True) -> Any:
    """no_grad under another name; here there is no faster kind."""
    return no_grad(mode) if callable(mode) else Switch(not mode)


def set_grad_enabled(mode: bool) -> Switch:
    """Record, or do not, from here on, or to the end of a block."""
    return Switched(mode)


def is_grad_enabled() -> bool:
    return RECORDING.get()
