"""Every public operation: values and gradients, against two oracles.

One table says for each operation how it is called, what NumPy would
compute, and what PyTorch would; a test fails for an operation that is not
in it.  hypothesis draws shapes, options, the layout of the memory and the
style of the numbers.  Values are compared with NumPy in float64, gradients
with differences of that NumPy function, and both with PyTorch.
"""

import functools
import importlib
import math
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

import companion
from companion import Tensor
from companion.dtype import float32, float64


class Peer:
    """PyTorch, imported when a test first asks for it."""

    def __getattr__(self, name):
        return getattr(importlib.import_module("torch"), name)


torch = Peer()

# ------------------------------------------------------------------- draws

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
SOLID = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
LONGISH = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
MATRICES = hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=4)
MEETING = hnp.mutually_broadcastable_shapes
SEEDS = st.integers(0, 2**32 - 1)
NUMBERS = st.sampled_from([2, -1.5, 0.5, 3])


class Call(NamedTuple):
    """The shapes of the tensors, and what is passed after them.

    Arrays among the options become tensors of the library that is called,
    which need no gradient.
    """

    shapes: tuple
    options: tuple = ()


def calls(maker):
    """A strategy of calls from a function of `draw`."""
    return st.composite(maker)()


def one(shapes=SHAPES, *options):
    """One tensor, and options drawn for its shape."""

    def maker(draw):
        shape = draw(shapes)
        return Call((shape,), tuple([draw(f(shape)) for f in options]))

    return calls(maker)


def two(*options):
    """Two tensors whose shapes meet, either of them the wider."""
    pair = MEETING(num_shapes=2, min_side=0, max_side=4, max_dims=4)

    def maker(draw):
        shapes = draw(pair).input_shapes
        return Call(shapes, tuple([draw(f(shapes)) for f in options]))

    return calls(maker)


def axis(shape):
    return st.integers(-len(shape), len(shape) - 1)


def axes(shape):
    """None, one axis, or several, counted from either end."""
    if not shape:
        return st.none()
    several = hnp.valid_tuple_axes(len(shape), min_size=1)
    return st.none() | axis(shape) | several


def keep(_):
    return st.booleans()


def number(_):
    return NUMBERS


def order(shape):
    """A permutation; some axes counted from the end."""
    ndim = len(shape)
    back = st.lists(st.booleans(), min_size=ndim, max_size=ndim)
    return st.builds(
        lambda p, b: tuple([i - ndim * c for i, c in zip(p, b)]),
        st.permutations(range(ndim)),
        back,
    )


def shape_of_same_size(shape):
    """Other lengths with the same product, one of them perhaps -1."""
    size = math.prod(shape)
    if not size:
        return st.sampled_from([(0,), (2, 0), (0, 3, 1)])
    divisor = st.sampled_from([d for d in range(1, size + 1) if size % d == 0])
    return divisor.flatmap(
        lambda d: st.sampled_from([(d, size // d), (-1, d), (1, d, -1)])
    )


def wider(shape):
    """A shape to which `shape` expands, by one axis in front."""
    return st.integers(0, 3).map(lambda n: (n, *shape))


def margins(shape):
    return st.tuples(*[st.tuples(*[st.integers(0, 2)] * 2) for _ in shape])


def mask(shape):
    return hnp.arrays(bool, shape)


def rows(shape):
    """Places on the first axis, some of them twice, in any shape."""
    where = hnp.array_shapes(min_dims=0, max_dims=2, max_side=5)
    place = st.integers(-shape[0], shape[0] - 1)
    return hnp.arrays(np.int64, where, elements=place)


@st.composite
def mixed(draw, shape):
    """Slices, numbers, None, an ellipsis and arrays, in any order."""
    meeting = draw(st.sampled_from([(), (2,), (2, 3), (1, 3), (0,)]))
    first = draw(st.integers(0, len(shape)))
    after = draw(st.integers(first, len(shape)))
    entries = [draw(entry(n, meeting)) for n in shape[:first]]
    if after > first and (after < len(shape) or draw(st.booleans())):
        entries.append(...)  # never for no axis: NumPy and PyTorch differ
    entries += [draw(entry(n, meeting)) for n in shape[after:]]
    if draw(st.booleans()):
        entries.insert(draw(st.integers(0, len(entries))), None)
    return tuple(entries)


def entry(n, meeting):
    """A number, a slice of any step, or places on an axis of length n."""
    place = st.integers(-n, n - 1)
    return place | st.slices(n) | hnp.arrays(np.int64, meeting, elements=place)


@calls
def products(draw):
    """Two shapes whose matrix product exists, vectors and stacks too."""
    m, k, n = [draw(st.integers(0, 9)) for _ in range(3)]
    stacks = MEETING(num_shapes=2, min_side=0, max_side=3, max_dims=2)
    left, right = draw(stacks).input_shapes
    a = draw(st.sampled_from([(k,), (m, k), (*left, m, k)]))
    b = draw(st.sampled_from([(k,), (k, n), (*right, k, n)]))
    return Call((a, b))


@calls
def product_with_an_array(draw):
    shapes = draw(products).shapes
    seed = draw(SEEDS)
    left = np.random.default_rng(seed).normal(size=shapes[0])
    return Call((shapes[1],), (left,))


def vectors(same):
    def maker(draw):
        n = draw(st.integers(0, 9))
        return Call(((n,), (n if same else draw(st.integers(0, 9)),)))

    return calls(maker)


@calls
def joined(draw):
    """Up to three tensors that agree except along one axis."""
    shape = list(draw(LONGISH))
    at = draw(axis(shape))
    lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    shapes = []
    for n in lengths:
        shape[at] = n
        shapes.append(tuple(shape))
    return Call(tuple(shapes), (at,))


@calls
def stacked(draw):
    shape, n = draw(SHAPES), draw(st.integers(1, 3))
    return Call((shape,) * n, (draw(axis((*shape, 1))),))


@calls
def chosen(draw):
    """Two tensors and a condition, all of which broadcast together."""
    three = MEETING(num_shapes=3, min_side=0, max_side=4, max_dims=4)
    a, b, condition = draw(three).input_shapes
    return Call((a, b), (draw(mask(condition)),))


@calls
def narrowed(draw):
    shape = draw(LONGISH)
    at = draw(axis(shape))
    start = draw(st.integers(0, shape[at]))
    return Call((shape,), (at, start, draw(st.integers(0, shape[at] - start))))


@calls
def labelled(draw):
    """Classes in any shape, and how many there are."""
    shape, n = draw(SHAPES), draw(st.integers(1, 5))
    classes = hnp.arrays(np.int64, shape, elements=st.integers(0, n - 1))
    return Call((), (draw(classes), n))


REDUCTIONS = st.sampled_from(["mean", "sum", "none"])


@calls
def losses(draw):
    """A tensor, a target in [0, 1] of its shape, and a reduction."""
    shape, seed = draw(SOLID), draw(SEEDS)
    target = np.random.default_rng(seed).random(shape)
    return Call((shape,), (target, draw(REDUCTIONS)))


@calls
def classified(draw):
    """Logits (n, c), classes of which some are ignored, and options."""
    n, classes = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(SEEDS))
    target = rng.integers(0, classes, n)
    target[1:][rng.random(n - 1) < 0.3] = -100
    smoothing = draw(st.sampled_from([0.0, 0.1, 0.5]))
    return Call(((n, classes),), (target, smoothing, draw(REDUCTIONS)))


@calls
def layered(draw):
    """(…, inputs), a weight (outputs, inputs) and a bias (outputs)."""
    shape, outputs = draw(SOLID), draw(st.integers(1, 6))
    return Call((shape, (outputs, shape[-1]), (outputs,)))


@calls
def attended(draw):
    """Queries (…, t, 3), keys and values (…, s, 3), and who sees whom."""
    stack, t = draw(SOLID)[:2], draw(st.integers(1, 6))
    keys = draw(st.integers(1, 6))
    seen = np.random.default_rng(draw(SEEDS)).random((t, keys)) < 0.6
    seen[:, 0] = True
    shapes = [(*stack, n, 3) for n in (t, keys, keys)]
    return Call(tuple(shapes), (seen,))


def normalized(parameters):
    """(…, size), size at least 2, and parameters of shape (size)."""

    def maker(draw):
        shape = (*draw(SOLID)[1:], draw(st.integers(2, 9)))
        return Call((shape, *[shape[-1:]] * parameters))

    return calls(maker)


# ----------------------------------------------------------------- numbers

SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0]


def distinct(rng, shape, low, high):
    """No two alike, no two near each other, none on a kink."""
    n = math.prod(shape)
    places = rng.permutation(n) + rng.uniform(0.2, 0.8)
    return (low + (high - low) * places / max(n, 1)).reshape(shape)


def ties(rng, shape, low, high):
    """Whole numbers: equal ones, zeros of both signs and ones too."""
    whole = rng.integers(math.ceil(low), math.floor(high) + 1, shape)
    return np.where(whole == 0, rng.choice([0.0, -0.0], shape), whole)


def special(rng, shape, low, high):
    """One in five is NaN, an infinity, a signed zero or a one."""
    usual = distinct(rng, shape, low, high)
    return np.where(rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), usual)


def wide(rng, shape, low, high):
    """Up to ten thousand on either side."""
    return distinct(rng, shape, -1e4, 1e4)


def booleans(rng, shape, low, high):
    return rng.random(shape) < 0.5


EVERY = (distinct, ties, special)
FINITE = (distinct, ties)
UNBOUNDED = (distinct, ties, special, wide)
BOOLEAN = (booleans,)
ANY, POSITIVE = (-2.0, 2.0), (0.3, 3.0)


# ----------------------------------------------------------------- layouts


class Layout(NamedTuple):
    """How to see a tensor of a wanted shape in memory of another one."""

    memory: Callable[[tuple], tuple]
    tensor: Callable[[Any, tuple], Any]
    array: Callable[[np.ndarray, tuple], np.ndarray]


def backwards(shape):
    return tuple(range(len(shape)))[::-1]


LAYOUTS = {
    "dense": Layout(lambda s: s, lambda x, s: x, lambda a, s: a),
    "turned": Layout(
        lambda s: s[::-1],
        lambda x, s: x.permute(backwards(s)),
        lambda a, s: a.transpose(),
    ),
    "flipped": Layout(
        lambda s: s,
        lambda x, s: x.flip(backwards(s)),
        lambda a, s: np.flip(a),
    ),
    "stepped": Layout(
        lambda s: (*s, 3), lambda x, s: x[..., 1], lambda a, s: a[..., 1]
    ),
    "expanded": Layout(
        lambda s: (*[1] * bool(s), *s[1:]),
        lambda x, s: x.expand(s),
        lambda a, s: np.broadcast_to(a, s),
    ),
}

# --------------------------------------------------------------- the table
# fmt: off


class Operation(NamedTuple):
    """How an operation is called here, in NumPy, and in PyTorch.

    `scale` widens the tolerance where rounding adds up, `steep` that of
    gradients whose terms are so many times larger than the numbers.
    """

    calls: st.SearchStrategy
    numpy: Callable
    ours: Callable
    torch: Callable
    smooth: bool
    styles: tuple
    interval: tuple[float, float]
    scale: float
    steep: float


OPERATIONS: dict[str, Operation] = {}


def add(
    name, calls, numpy=None, ours=None, torch=None, *, smooth=True,
    styles=EVERY, interval=ANY, scale=1.0, steep=1.0,
):
    """An entry; what is not said is the function of that name.

    PyTorch is called as we are, unless told otherwise.
    """
    assert name not in OPERATIONS
    ours = ours or found(name)
    library = operator if name.startswith("__") else np
    OPERATIONS[name] = Operation(
        calls, numpy or getattr(library, name), ours, torch or ours,
        smooth, styles, interval, scale, steep,
    )


def found(name):
    """The operator or the method called `name`, of any library."""
    if name.startswith("__"):
        return getattr(operator, name)
    return lambda x, *options: getattr(x, name)(*options)


def torch_function(path):
    """A function of PyTorch, looked up when it is called."""
    return lambda *xs: operator.attrgetter(path)(torch)(*xs)


def functional(name):
    return torch_function(f"nn.functional.{name}")


def ours_named(name):
    return getattr(companion, name)


# One operand, element by element.

for name in "exp square abs floor ceil".split():
    add(name, one(), scale=4)
for name in "sin cos".split():
    add(name, one(), styles=UNBOUNDED, scale=4)
for name in "log sqrt".split():
    add(name, one(), interval=POSITIVE, scale=4)
add("rsqrt", one(), lambda a: 1 / np.sqrt(a), interval=POSITIVE, scale=8)
add("reciprocal", one(), lambda a: 1 / a, interval=POSITIVE, scale=4)
add("sign", one())
add("isnan", one(), smooth=False)
add("__neg__", one())
add("__pos__", one())
add("__abs__", one(), np.abs)
add("__invert__", one(), styles=BOOLEAN, smooth=False)
add("clamp", one(SHAPES, lambda s: st.sampled_from([-1, -0.5, None]),
                 lambda s: st.sampled_from([1, 0.5])),
    np.clip)
add("masked_fill", one(SHAPES, mask, number),
    lambda a, m, v: np.where(m, v, a))


# Activations.

erf = np.vectorize(math.erf, otypes=[float])


def logistic(a):
    e = np.exp(-np.abs(a))
    return np.where(a < 0, e, 1) / (1 + e)


def gelu_by_tanh(a):
    bent = math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)
    return a / 2 * (1 + np.tanh(bent))


def logsumexp(a, axis=None, keepdims=False):
    top = np.max(a, axis, keepdims=True)
    top = np.where(np.isinf(top), 0, top)
    total = np.log(np.exp(a - top).sum(axis, keepdims=True)) + top
    return total if keepdims else total.squeeze(axis)


def log_softmax(a, axis):
    top = a - a.max(axis, keepdims=True)
    return top - np.log(np.exp(top).sum(axis, keepdims=True))


BENT = {"styles": UNBOUNDED, "scale": 8}
add("relu", one(), lambda a: np.maximum(a, 0), styles=UNBOUNDED)
add("relu as a function", one(), lambda a: np.maximum(a, 0),
    ours_named("relu"), functional("relu"), styles=UNBOUNDED)
add("leaky_relu", one(), lambda a: np.where(a > 0, a, 0.01 * a),
    ours_named("leaky_relu"), functional("leaky_relu"), **BENT)
add("sigmoid", one(), logistic, **BENT)
add("tanh", one(), np.tanh, **BENT)
add("erf", one(), erf, **BENT)
add("gelu", one(), lambda a: a * (1 + erf(a / math.sqrt(2))) / 2,
    ours_named("gelu"), functional("gelu"), **BENT)
add("gelu with a tangent", one(), gelu_by_tanh,
    lambda x: companion.gelu(x, "tanh"),
    lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
    **BENT)
add("silu", one(), lambda a: a * logistic(a), ours_named("silu"),
    functional("silu"), **BENT)
add("softmax", one(SOLID, axis), lambda a, i: np.exp(log_softmax(a, i)),
    **BENT)
add("log_softmax", one(SOLID, axis), log_softmax, **BENT)


# Two operands, with broadcasting, and a number on either side.

ARITHMETIC = {
    "add": {}, "sub": {}, "mul": {}, "truediv": {"scale": 4},
    "floordiv": {"smooth": False}, "mod": {"scale": 8},
}
COMPARISONS = "eq ne lt le gt ge".split()


def backward_operator(name):
    """The operator of that name with its operands exchanged."""
    return lambda x, y: getattr(operator, name)(y, x)


torch_reflected = {"mod": lambda t, n: torch.full_like(t, n) % t}
for name, rest in ARITHMETIC.items():
    method, reflected = f"__{name}__", f"__r{name}__"
    numpy = getattr(operator, method)
    inputs = {"interval": POSITIVE} if "mod" in name or "div" in name else {}
    styles = FINITE if "mod" in name or "floor" in name else EVERY
    rest = {"styles": styles, **inputs, **rest}
    add(method, two(), numpy, **rest)
    add(f"{method} with a number", one(SHAPES, number), numpy,
        found(method), **rest)
    add(reflected, one(SHAPES, number), backward_operator(method),
        backward_operator(method), torch_reflected.get(name),
        **rest)
for name in COMPARISONS:
    method = f"__{name}__"
    numpy = getattr(operator, method)
    add(method, two(), numpy, smooth=False)
    add(f"{method} with a number", one(SHAPES, number), numpy,
        found(method), smooth=False)
for name in "and or xor".split():
    method = f"__{name}__"
    only = {"styles": BOOLEAN, "smooth": False}
    add(method, two(), getattr(operator, method), **only)
    add(f"__r{name}__", one(SHAPES, keep), backward_operator(method),
        backward_operator(method), **only)
add("maximum", two(), ours=lambda x, y: x.maximum(y))
add("minimum", two(), ours=lambda x, y: x.minimum(y))
add("where", chosen, lambda a, b, c: np.where(c, a, b),
    lambda x, y, c: x.where(c, y))
add("where as a function", chosen, lambda a, b, c: np.where(c, a, b),
    lambda x, y, c: companion.where(c, x, y),
    lambda t, u, c: torch.where(c, t, u))

EXPONENTS = st.sampled_from([0, 1, 2, 3, -1, -2, 2.0, 0.5])
add("__pow__", two(), np.power, styles=FINITE, interval=POSITIVE,
    scale=16)
add("__pow__ of a number", one(SHAPES, lambda s: EXPONENTS),
    lambda a, n: np.power(a, float(n)), operator.pow, styles=FINITE,
    interval=POSITIVE, scale=16)
add("__pow__ of a fraction", one(SHAPES, lambda s: st.just(2.5)),
    np.power, operator.pow, styles=FINITE, interval=(0.0, 3.0),
    scale=16)
add("__rpow__", one(SHAPES, lambda s: st.sampled_from([2, 0.5, 1])),
    backward_operator("__pow__"), backward_operator("__pow__"),
    styles=FINITE, scale=8)


# Reductions.

def fold(name, numpy, ours=None, torch=None, **rest):
    """A reduction over None, one axis or several."""
    add(name, one(rest.pop("shapes", SHAPES), axes, keep),
        lambda a, i, k: numpy(a, axis=i, keepdims=k),
        ours or (lambda x, i, k: getattr(x, name)(i, k)),
        torch, **rest)


def all_of(t, i):
    return tuple(range(t.ndim)) if i is None else i


def torch_prod(t, i, k):
    """PyTorch multiplies along one axis at a time."""
    for a in sorted(np.atleast_1d(all_of(t, i)) % max(t.ndim, 1))[::-1]:
        t = t.prod(int(a), keepdim=True)
    return t if k or not t.ndim else t.squeeze(all_of(t, i))


def at_least_two(call):
    """Whether what is folded into one number has two elements."""
    (shape,), (folded, _) = call
    places = range(len(shape)) if folded is None else np.atleast_1d(folded)
    return math.prod(shape[i] for i in places) > 1


def moment(name, correction):
    inputs = one(SOLID, axes, keep).filter(at_least_two)
    add(f"{name} with correction {correction}", inputs,
        lambda a, i, k: getattr(np, name)(
            a, axis=i, keepdims=k, ddof=correction),
        lambda x, i, k: getattr(x, name)(i, correction, k),
        lambda t, i, k: getattr(t, name)(
            i, correction=correction, keepdim=k),
        styles=FINITE, scale=16)


fold("sum", np.sum, scale=16)
fold("mean", np.mean, scale=16, shapes=SOLID)
fold("prod", np.prod, torch=torch_prod, scale=16)
fold("any", np.any, torch=lambda t, i, k: t.any(all_of(t, i), k)
     if t.ndim else t.any(), smooth=False)
fold("all", np.all, torch=lambda t, i, k: t.all(all_of(t, i), k)
     if t.ndim else t.all(), smooth=False)
fold("max", np.max, torch=lambda t, i, k: t.amax(all_of(t, i), k),
     shapes=SOLID)
fold("min", np.min, torch=lambda t, i, k: t.amin(all_of(t, i), k),
     shapes=SOLID)
fold("logsumexp", logsumexp, torch=lambda t, i, k: t.logsumexp(
     all_of(t, i), k), shapes=SOLID, scale=8)
for correction in 0, 1:
    moment("var", correction)
    moment("std", correction)


def place(name):
    """The place of an extreme: along one axis, or of all elements."""
    add(name, one(SOLID, lambda s: st.none() | axis(s), keep),
        lambda a, i, k: getattr(np, name)(a, i, keepdims=k),
        smooth=False, styles=(distinct, special))


place("argmax")
place("argmin")
add("cumsum", one(LONGISH, axis), scale=16)


# Movement.

add("reshape", one(SHAPES, shape_of_same_size))
add("view", one(SHAPES, shape_of_same_size), np.reshape,
    lambda x, s: x.contiguous().view(s))
add("permute", one(SHAPES, order), np.transpose)
add("transpose", one(LONGISH, axis, axis), np.swapaxes)
add("T", one(SHAPES), np.transpose, lambda x: x.T,
    lambda t: t.permute(backwards(t.shape)))
add("mT", one(MATRICES), np.matrix_transpose, lambda x: x.mT)
add("flip", one(SHAPES, axes), np.flip, torch=lambda t, i: t.flip(
    all_of(t, i) if np.ndim(all_of(t, i)) else (i,)))
add("squeeze", one(SHAPES), np.squeeze)
add("squeeze of one axis", one(SHAPES.map(lambda s: (2, 1, *s[2:])),
                               lambda s: st.sampled_from([1, 1 - len(s)])),
    np.squeeze, found("squeeze"))
add("unsqueeze", one(SHAPES, lambda s: axis((*s, 1))), np.expand_dims)
add("flatten", one(SHAPES), np.ravel)
add("flatten from the second axis", one(MATRICES),
    lambda a: a.reshape(a.shape[0], math.prod(a.shape[1:])),
    lambda x: x.flatten(1))
add("broadcast", one(SHAPES, wider), np.broadcast_to,
    torch=torch_function("broadcast_to"))
add("expand", one(SHAPES, wider), np.broadcast_to)
add("expand with -1", one(SHAPES.map(lambda s: (1, *s[1:]))),
    lambda a: np.broadcast_to(a, (2, 3, *a.shape[1:])),
    lambda x: x.expand(2, 3, *[-1] * (len(x.shape) - 1)))
add("clone", one(), np.copy)
add("contiguous", one(), np.copy)
add("detach", one(), np.copy, smooth=False)
add("cast", one(), np.copy, lambda x: x.cast(float64).cast(x.dtype),
    lambda t: t.double().to(t.dtype))
add("to", one(), np.copy, lambda x: x.to(float64).to(x.dtype),
    lambda t: t.to(torch.float64).to(t.dtype))
for name in "tril", "triu":
    add(name, one(MATRICES, lambda s: st.integers(-3, 3)))


# Cutting and joining.

def torch_index(t, index):
    """Any index of NumPy's, as places in the flattened tensor."""
    places = np.arange(t.numel()).reshape(t.shape)
    plain = tuple([e.numpy() if hasattr(e, "numpy") else e for e in index])
    return t.flatten()[torch.tensor(places[plain].copy())]


def pieces(a, n, i):
    return np.split(a, range(n, a.shape[i], n), i)


def torch_pad(t, pairs, value):
    flat = [m for pair in pairs[::-1] for m in pair]
    return torch.nn.functional.pad(t, flat, value=value)


LENGTHS = st.integers(1, 4)
add("__getitem__", one(SHAPES, lambda s: hnp.basic_indices(
    s, allow_newaxis=True).map(lambda i: i if isinstance(i, tuple) else (i,)
    )), operator.getitem, torch=torch_index)
add("__getitem__ of rows", one(SOLID, rows), operator.getitem,
    operator.getitem)
add("__getitem__ of a mixture", one(SOLID, mixed), operator.getitem,
    operator.getitem, torch_index)
add("__getitem__ of a mask", one(SOLID, mask), operator.getitem,
    operator.getitem)
add("__iter__", one(LONGISH), list, lambda x: list(x))
add("narrow", narrowed, lambda a, i, start, n: np.moveaxis(
    np.moveaxis(a, i, 0)[start:start + n], 0, i))
add("pad", one(SHAPES, margins, number),
    lambda a, m, v: np.pad(a, m, constant_values=v) if m else a,
    torch=torch_pad)
add("split", one(SOLID, lambda s: LENGTHS, axis), pieces)
add("unbind", one(SOLID, axis), lambda a, i: list(np.moveaxis(a, i, 0)),
    lambda x, i: companion.unbind(x, i), lambda t, i: list(t.unbind(i)))
add("chunk", one(SOLID, lambda s: LENGTHS, axis),
    lambda a, n, i: pieces(a, -(-a.shape[i] // n), i))
add("repeat", one(SHAPES, lambda s: st.tuples(
    *[st.integers(0, 2)] * (len(s) + 1))), np.tile)
add("roll", one(LONGISH, lambda s: st.integers(-5, 5), axis))
add("cat", joined, lambda *a: np.concatenate(a[:-1], a[-1]),
    lambda *x: companion.cat(x[:-1], x[-1]),
    lambda *t: torch.cat(t[:-1], t[-1]))
add("stack", stacked, lambda *a: np.stack(a[:-1], a[-1]),
    lambda *x: companion.stack(x[:-1], x[-1]),
    lambda *t: torch.stack(t[:-1], t[-1]))


# Products.

PRODUCTS = {"styles": EVERY, "scale": 16}
add("matmul", products, **PRODUCTS)
add("__matmul__", products, np.matmul, **PRODUCTS)
add("__rmatmul__", product_with_an_array, lambda b, a: a @ b,
    lambda y, x: y.__rmatmul__(x), lambda u, t: t @ u, **PRODUCTS)
add("dot", vectors(same=True), **PRODUCTS)
add("outer", vectors(same=False), **PRODUCTS)


# From a tensor, others of its shape.

def filled(name, value):
    def ours(x, *v):
        return getattr(companion, name)(x, *v)

    add(name, one(SHAPES, *[number] * (value is None)),
        lambda a, *v: np.full(a.shape, v[0] if v else value, float), ours,
        torch_function(name), smooth=False)


filled("zeros_like", 0)
filled("ones_like", 1)
filled("full_like", None)
add("one_hot", labelled, lambda at, n: np.eye(n, dtype=int)[at],
    lambda x, n: companion.one_hot(x, n), functional("one_hot"),
    smooth=False)


# Losses and layers.

REDUCE = {"mean": np.mean, "sum": np.sum, "none": lambda a: a}


def squares(a, target, reduction):
    return REDUCE[reduction]((a - target) ** 2)


def binary_cross_entropy(a, target, reduction):
    loss = np.maximum(a, 0) - a * target + np.log1p(np.exp(-np.abs(a)))
    return REDUCE[reduction](loss)


def cross_entropy(a, target, smoothing, reduction):
    logs, counted = log_softmax(a, -1), target != -100
    hit = logs[range(len(a)), np.where(counted, target, 0)]
    loss = -(1 - smoothing) * hit - smoothing * logs.mean(-1)
    loss = np.where(counted, loss, 0)
    return loss if reduction == "none" else loss.sum() / (
        counted.sum() if reduction == "mean" else 1)


def with_parameters(module, **parameters):
    vars(module).update(parameters)
    return module


def normal(a, size, eps=1e-5):
    return a / np.sqrt((a * a).mean(-1, keepdims=True) + eps)


def linear(x, w, b):
    layer = companion.Linear(*w.shape[::-1])
    return with_parameters(layer, weight=w, bias=b)(x)


def layer_norm(x, w, b):
    norm = companion.LayerNorm(x.shape[-1])
    return with_parameters(norm, weight=w, bias=b)(x)


def rms_norm(x, w):
    return with_parameters(companion.RMSNorm(x.shape[-1]), weight=w)(x)


LOSS = {"styles": (distinct, wide), "scale": 16}
add("mse_loss", losses, squares, ours_named("mse_loss"),
    lambda t, u, r: torch.nn.functional.mse_loss(t, u, reduction=r),
    **LOSS)
add("bce_with_logits", losses, binary_cross_entropy,
    ours_named("bce_with_logits"),
    lambda t, u, r: torch.nn.functional.binary_cross_entropy_with_logits(
        t, u, reduction=r), **LOSS)
add("cross_entropy", classified, cross_entropy,
    lambda x, y, s, r: companion.cross_entropy(
        x, y, label_smoothing=s, reduction=r),
    lambda t, u, s, r: torch.nn.functional.cross_entropy(
        t, u, label_smoothing=s, reduction=r), **LOSS)
LAYER = {"styles": (distinct,), "scale": 32}
add("Linear", layered, lambda a, w, b: a @ w.T + b, linear,
    functional("linear"), **LAYER)
add("Linear without a bias", layered, lambda a, w, b: a @ w.T,
    lambda x, w, b: linear(x, w, None),
    lambda t, w, b: torch.nn.functional.linear(t, w), **LAYER)
# Equal numbers have no variance: only epsilon bounds their slopes.
add("LayerNorm", normalized(2), lambda a, w, b: normal(
    a - a.mean(-1, keepdims=True), a.shape[-1]) * w + b, layer_norm,
    lambda t, w, b: torch.nn.functional.layer_norm(
        t, t.shape[-1:], w, b, 1e-5), steep=1e-5**-0.5, **LAYER)
add("RMSNorm", normalized(1), lambda a, w: normal(a, a.shape[-1]) * w,
    rms_norm, lambda t, w: torch.nn.functional.rms_norm(
        t, t.shape[-1:], w, 1e-5), **LAYER)


def attention_weights(a, b, seen):
    scores = a @ np.swapaxes(b, -1, -2) / math.sqrt(a.shape[-1])
    return np.exp(log_softmax(np.where(seen, scores, -math.inf), -1))


ATTENDED = {"styles": (distinct,), "scale": 32}
add("scaled_dot_product_attention", attended,
    lambda a, b, c, seen: attention_weights(a, b, seen) @ c,
    ours_named("scaled_dot_product_attention"),
    functional("scaled_dot_product_attention"), **ATTENDED)
add("attention_weights", attended,
    lambda a, b, c, seen: attention_weights(a, b, seen) @ c,
    lambda q, k, v, seen: companion.attention_weights(q, k, seen) @ v,
    functional("scaled_dot_product_attention"), **ATTENDED)


# fmt: on
# ------------------------------------------------------ nothing is left out

EXCLUDED = {
    "the seam, below every operation of the table": "apply",
    "facts about a tensor, no numbers": """
        shape dtype ndim size numel is_leaf __len__ __hash__ __getattr__""",
    "another device: test_gpu": "cuda",
    "numbers for Python, in every other test": """
        numpy tolist item __array__ __dlpack__ __dlpack_device__
        __repr__ __bool__ __float__ __int__ __index__ __format__""",
    "made from no tensor: test_tensor_properties, chapters": """
        __init__ causal_mask from_dlpack from_numpy arange eye full
        linspace ones zeros""",
    "writes in place: test_tensor_properties, chapters": """
        assign copy_ __setitem__ __iadd__ __isub__ __imul__ __itruediv__
        __ifloordiv__ __imod__ __ipow__ __imatmul__ __iand__ __ior__
        __ixor__ __ilshift__ __irshift__""",
    "drawn at random: the chapters test the distribution": """
        rand randn randint randperm Generator manual_seed Dropout he
        sample xavier""",
    "gradients themselves, used on every operation here": """
        requires_grad_ backward grad gradcheck no_grad""",
    "only of integers: test_standard": """
        __lshift__ __rshift__ __rlshift__ __rrshift__""",
    "tells whether, not what: test_tensor_properties": "allclose",
    "of whole sequences: test_sequence_peers": """
        GRU GRUCell RNN RNNCell""",
    "holds tensors and other modules: chapters": """
        Module MultiHeadAttention Sequential parameter""",
    "beside PyTorch's: test_embedding_peers": """
        Embedding rotary sinusoidal""",
    "keeps what was computed: test_memoization": """
        CachedGPT KVCache PagedCache Request Server""",
    "serves texts: test_serving": "Engine Host Stream",
    "of few bits: test_quantization": """
        HalfWeight IntegerWeight QuantizedWeight RoundedWeight Scheme
        calibrate load_quantized quantized""",
    "makes smaller: chapters": """
        CSR Masks SparseLinear distilled layerwise low_rank magnitude
        pareto_front prunable shrunk strongest svd two_of_four unit_masks""",
    "trains in less memory or with fewer bits: test_acceleration": """
        GradScaler accumulate checkpoint computing_in tune""",
    "of several workers: test_distributed, chapters": """
        ColumnParallel DataParallel RowParallel Sharded spawn world""",
    "of pictures: test_convolution_devices, test_convolution_peers": """
        AdaptiveAvgPool2d AvgPool2d BatchNorm1d BatchNorm2d Conv1d Conv2d
        ConvTranspose2d Dropout2d Flatten MaxPool2d adaptive_avg_pool2d
        avg_pool2d conv1d conv2d conv_transpose2d max_pool2d""",
    "cuts text: chapters": "CharTokenizer Tokenizer",
    "trains: test_optimizers_peers, chapters": """
        Adam AdamW RMSprop SGD decay_groups Batches EarlyStopping Trainer
        Observer ProgressBar LossPlot accuracy clip_grad_norm_ evaluate
        one_cycle warmup_cosine""",
    "loads: test_data_properties, chapters": """
        Arrays Compose Cutout DataLoader Dataset Normalize RandomFlip
        RandomShift TensorDataset
        cifar10 collate mnist names prefetch shakespeare""",
    "a language model: test_transformer_peers, chapters": """
        GPT GPTConfig next_token_loss spoken windows""",
    "no operation": """
        set_threads set_float32_matmul_precision OutOfMemory realize jit
        load_program save_program""",
}


def public():
    """Methods and operators of Tensor, and all that companion exports."""
    methods = {
        name
        for name, member in vars(Tensor).items()
        if callable(member) or isinstance(member, property)
    }
    dtypes = {n for n, m in companion.EXPORTS.items() if "dtype" in m}
    return methods | set(companion.EXPORTS) - dtypes - {"Tensor"}


def test_every_public_operation_is_in_the_table():
    named = {name.partition(" ")[0] for name in OPERATIONS}
    excluded = " ".join(EXCLUDED.values()).split()
    assert len(set(excluded)) == len(excluded)
    assert not named & set(excluded)
    assert named | set(excluded) <= public()
    rows = Path(__file__).with_name("test_vocabulary.py").read_text()
    spoken = set(re.findall(r"[.](\w+)", rows))
    assert public() - named - set(excluded) <= spoken


# ------------------------------------------------------------------- tests

UNIT = {float32: 6e-7, float64: 1e-15}
STEP = 1e-6


def every(smooth=False):
    """All operations, or all that are smooth."""
    names = [n for n, o in OPERATIONS.items() if o.smooth or not smooth]
    return pytest.mark.parametrize("name", names)


@pytest.fixture(scope="session")
def examples(request, device):
    """How many draws: a quick run makes few, and graphs are the CPU's."""
    if request.config.option.markexpr == "not slow":
        return 2
    return 4 if device.name == "lazy" else 30


class Drawn(NamedTuple):
    """A call with its numbers (float64, but exact in float32)."""

    call: Call
    memory: list[np.ndarray]
    layouts: list[Layout]
    seed: int

    def views(self, movement, values):
        """The operands, as the layouts show them in `values`."""
        return [
            getattr(layout, movement)(value, shape)
            for layout, value, shape in zip(
                self.layouts, values, self.call.shapes
            )
        ]


@st.composite
def drawn(draw, operation, style, names):
    call, seed = draw(operation.calls), draw(SEEDS)
    rng = np.random.default_rng(seed)
    layouts = [LAYOUTS[draw(st.sampled_from(names))] for _ in call.shapes]
    memory = [
        exact(style(rng, layout.memory(shape), *operation.interval))
        for layout, shape in zip(layouts, call.shapes)
    ]
    return Drawn(call, memory, layouts, seed)


@functools.cache
def draws(name, style, examples, layouts):
    """So many draws, small ones first, for every device and peer.

    To draw takes hypothesis three times as long as to check.
    """
    found = []

    @settings(max_examples=examples, derandomize=True, database=None)
    @given(drawn(OPERATIONS[name], style, layouts))
    def note(draw):
        found.append(draw)

    note()
    return sorted(found, key=lambda draw: sum(a.size for a in draw.memory))


def exact(a):
    """Numbers as float64 that float32 can hold; bools as they are."""
    a = np.asarray(a)
    return a if a.dtype == bool else a.astype(np.float32).astype(float)


def narrow(a, dtype):
    """A floating array in `dtype`; others as they are."""
    return a.astype(dtype.numpy) if a.dtype.kind == "f" else a


def converted(options, make):
    """Options, the arrays among them made into tensors by `make`."""

    def convert(option):
        if type(option) is tuple:
            return converted(option, make)
        return make(option) if isinstance(option, np.ndarray) else option

    return tuple(map(convert, options))


def flat(results):
    return results if isinstance(results, (list, tuple)) else [results]


def reference(operation, draw):
    """NumPy's results, in float64."""
    with np.errstate(all="ignore"):
        found = operation.numpy(
            *draw.views("array", draw.memory), *draw.call.options
        )
    return [np.asarray(a) for a in flat(found)]


def computed(operation, draw, dtype, device, smooth=False):
    """Our results, and the tensors in whose memory the operands lie."""

    def make(a):
        return Tensor(narrow(a, dtype), device=device)

    leaves = [make(a) for a in draw.memory]
    for x in leaves if smooth else ():
        x.requires_grad_()
    found = operation.ours(
        *draw.views("tensor", leaves), *converted(draw.call.options, make)
    )
    return flat(found), leaves


def close(ours, theirs, unit):
    """Equal up to `unit` of each value and of the largest among them."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    finite = theirs[np.isfinite(theirs)]
    largest = max(1.0, np.abs(finite).max(initial=0)) if finite.size else 1.0
    np.testing.assert_allclose(ours, theirs, unit, unit * largest)


def examine(name, styles, examples, check, layouts=tuple(LAYOUTS)):
    """Run `check` on so many draws in each style, always the same."""
    for style in styles:
        for draw in draws(name, style, examples, layouts):
            for dtype in float32, float64:
                rng = np.random.default_rng(draw.seed)
                check(OPERATIONS[name], draw, dtype, rng)


@every()
def test_values_are_numpys(name, examples, device):
    def check(operation, draw, dtype, rng):
        ours, _ = computed(operation, draw, dtype, device)
        theirs = reference(operation, draw)
        assert len(ours) == len(theirs)
        unit = operation.scale * UNIT[dtype]
        for x, a in zip(ours, theirs):
            assert x.device is device
            with np.errstate(over="ignore"):
                close(x.numpy(), narrow(a, dtype), unit)

    examine(name, OPERATIONS[name].styles, examples, check)


@every()
def test_no_operation_asks_a_tensor_for_a_word_it_lacks(
        name, device, monkeypatch):
    """`hasattr` and its like fail slowly, and would on every call."""

    def unknown(x, word):
        if not word.startswith("__"):
            raise AssertionError(f"{name} asks whether a Tensor has {word}")
        raise AttributeError(word)

    monkeypatch.setattr(Tensor, "__getattr__", unknown)
    operation = OPERATIONS[name]
    for style in operation.styles:
        for draw in draws(name, style, 1, tuple(LAYOUTS)):
            computed(operation, draw, float32, device)


@every(smooth=True)
def test_gradients_are_numpys_slopes(name, examples, device):
    """Along a random direction, by central differences in float64."""

    def slope(operation, draw, ways, weights):
        def ahead(step):
            moved = [a + step * way for a, way in zip(draw.memory, ways)]
            found = reference(operation, draw._replace(memory=moved))
            return sum((a * w).sum() for a, w in zip(found, weights))

        return (ahead(STEP) - ahead(-STEP)) / (2 * STEP)

    def check(operation, draw, dtype, rng):
        ours, leaves = computed(operation, draw, dtype, device, smooth=True)
        weights = [rng.uniform(0.5, 1.5, y.shape) for y in ours]
        ways = [rng.normal(size=x.shape) for x in leaves]
        loss = Tensor(0.0, dtype, device)
        for y, w in zip(ours, weights):
            loss += (y * Tensor(narrow(w, dtype), device=device)).sum()
        if loss.requires_grad:
            loss.backward()
        found, size = 0.0, 1.0
        for x, way in zip(leaves, ways):
            if x.grad is not None:
                assert x.grad.shape == x.shape and x.grad.dtype is dtype
                found += float((x.grad.numpy() * way).sum())
                size += float(np.abs(x.grad.numpy() * way).sum())
        expected = slope(operation, draw, ways, weights)
        unit = 1e-7 if dtype is float64 else 1e-5
        assert abs(found - expected) <= unit * operation.scale * size

    apart = tuple([name for name in LAYOUTS if name != "expanded"])
    examine(name, (distinct,), 2 * examples, check, apart)


@pytest.mark.parametrize(
    "name", [n for n, o in OPERATIONS.items() if not o.smooth]
)
def test_what_has_no_slope_asks_for_none(name, device):
    def check(operation, draw, dtype, rng):
        floats = operation.styles != BOOLEAN
        ours, _ = computed(operation, draw, dtype, device, smooth=floats)
        assert not any(y.requires_grad for y in ours)

    examine(name, OPERATIONS[name].styles, 3, check)


def peer(operation, draw, dtype):
    """PyTorch's results and leaves."""

    def make(a):
        return torch.tensor(narrow(a, dtype))

    leaves = [make(a) for a in draw.memory]
    for t in leaves if operation.smooth else ():
        t.requires_grad_()
    found = operation.torch(
        *draw.views("tensor", leaves), *converted(draw.call.options, make)
    )
    return flat(found), leaves


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.filterwarnings("ignore:grad and param do not obey")
@every()
def test_values_and_gradients_are_pytorchs(name, examples, device):
    def check(operation, draw, dtype, rng):
        smooth = operation.smooth
        ours, xs = computed(operation, draw, dtype, device, smooth)
        theirs, ts = peer(operation, draw, dtype)
        assert len(ours) == len(theirs)
        unit = 4 * operation.scale * UNIT[dtype]
        for y, z in zip(ours, theirs):
            close(y.numpy(), z.detach().numpy(), unit)
            weight = rng.uniform(-1, 1, y.shape)
            weight = narrow(np.asarray(weight), dtype)
            if y.requires_grad:
                y.backward(Tensor(weight, device=device), retain_graph=True)
            if z.requires_grad:
                z.backward(torch.tensor(weight), retain_graph=True)
        for x, t in zip(xs, ts):
            if x.grad is None:
                assert t.grad is None or not t.grad.any()
            else:
                steep = 2 * unit * operation.steep
                close(x.grad.numpy(), t.grad.numpy(), steep)

    operation = OPERATIONS[name]
    styles = [s for s in operation.styles if s is not special]
    examine(name, styles, examples, check)
