"""Values and gradients of the public operations against PyTorch's.

One draw serves a family of functions: hypothesis invents the shapes, a
seed the values.  Every function is run on the same numbers in both
libraries, with one random weight on each element of the result.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from companion import Tensor, cat, stack, where
from companion.activations import gelu, leaky_relu, silu
from companion.dtype import float32, float64
from companion.losses import (
    bce_with_logits,
    cross_entropy,
    mse_loss,
)

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

DTYPES = st.sampled_from([float32, float64])
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
SOLID = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
TOLERANCE = {float32: 2e-5, float64: 1e-11}

many = settings(max_examples=100, deadline=None, derandomize=True)


def drawn(shape, dtype, seed, low=-2.0, high=2.0):
    """Numbers from low to high, no two alike."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.uniform(low, high, shape)).astype(dtype.numpy)


def results(ours, theirs, *arrays, seed=0):
    """Value and gradients of one function in both libraries, as arrays."""
    import torch

    xs = [Tensor(a).requires_grad_() for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = ours(*xs), theirs(*ts)
    assert y.shape == tuple(z.shape)
    weight = drawn(y.shape, y.dtype, seed + 1)
    y.backward(Tensor(weight))
    z.backward(torch.tensor(weight))
    return (
        [y.numpy(), *[x.grad for x in xs]],
        [z.detach().numpy(), *[t.grad for t in ts]],
    )


def agree(ours, theirs, *arrays, seed=0, scale=1.0):
    """Both libraries give the same value and the same gradients."""
    pairs = results(ours, theirs, *arrays, seed=seed)
    for found, expected in zip(*pairs, strict=True):
        assert (found is None) == (expected is None)
        if found is None:
            continue
        a, b = np.asarray(found), np.asarray(expected)
        assert a.shape == b.shape and a.dtype == b.dtype
        unit = scale * TOLERANCE[float32 if a.itemsize == 4 else float64]
        np.testing.assert_allclose(a, b, rtol=unit, atol=unit)


def both(call):
    """One lambda for both libraries, where their names are the same."""
    return call, call


@many
@given(SHAPES, DTYPES, SEEDS)
def test_functions_of_one(shape, dtype, seed):
    a = drawn(shape, dtype, seed)
    for name in ("exp", "sin", "cos", "abs", "square", "tanh", "sigmoid"):
        agree(*both(lambda x, n=name: getattr(x, n)()), a, seed=seed)
    agree(*both(lambda x: -x), a)
    agree(*both(lambda x: x**3), a, scale=4)
    agree(*both(lambda x: x.clamp(-1, 1)), a)
    agree(*both(lambda x: x.relu()), a)
    agree(*both(lambda x: x.erf()), a)
    positive = drawn(shape, dtype, seed, 0.2, 3.0)
    for name in ("log", "sqrt", "rsqrt", "reciprocal"):
        agree(
            *both(lambda x, n=name: getattr(x, n)()), positive, scale=20
        )
    agree(*both(lambda x: x**2.5), positive, scale=10)
    agree(*both(lambda x: 2.0**x), a)


def test_smooth_functions_at_zero():
    import torch
    from torch.nn import functional as F

    for dtype in (float32, float64):
        a = np.array([0.0, -0.0], dtype.numpy)
        for name in ("sigmoid", "tanh", "exp", "sin", "erf"):
            agree(*both(lambda x, n=name: getattr(x, n)()), a)
        agree(gelu, F.gelu, a)
        agree(silu, F.silu, a)
        agree(lambda x: x.softmax(-1), lambda x: x.softmax(-1), a)
        agree(lambda x: x.maximum(x), lambda x: torch.maximum(x, x), a)


@many
@given(SHAPES, DTYPES, SEEDS)
def test_activations(shape, dtype, seed):
    from torch.nn import functional as F

    a = drawn(shape, dtype, seed, -6, 6)
    agree(gelu, F.gelu, a, scale=4)
    agree(silu, F.silu, a, scale=4)
    agree(leaky_relu, F.leaky_relu, a)


@many
@given(SOLID, DTYPES, SEEDS, st.data())
def test_softmax_and_its_kin(shape, dtype, seed, data):
    a = drawn(shape, dtype, seed, -8, 8)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    for name in ("softmax", "log_softmax", "logsumexp"):
        agree(
            *both(lambda x, n=name: getattr(x, n)(axis)),
            a,
            seed=seed,
            scale=10,
        )


@many
@given(
    hnp.mutually_broadcastable_shapes(
        num_shapes=2, min_side=0, max_side=4, max_dims=4
    ),
    DTYPES,
    SEEDS,
)
def test_functions_of_two(shapes, dtype, seed):
    import torch

    a, b = [
        drawn(s, dtype, seed + i) for i, s in enumerate(shapes.input_shapes)
    ]
    far = np.abs(drawn(b.shape, dtype, seed, 0.3, 3.0))
    agree(*both(lambda x, y: x + y), a, b)
    agree(*both(lambda x, y: x - y), a, b)
    agree(*both(lambda x, y: x * y), a, b)
    agree(*both(lambda x, y: x / y), a, far, scale=10)
    agree(*both(lambda x, y: x.maximum(y)), a, b)
    agree(*both(lambda x, y: x.minimum(y)), a, b)
    agree(
        lambda x, y: where(x < y, x, y * y),
        lambda x, y: torch.where(x < y, x, y * y),
        a,
        b,
    )
    agree(*both(lambda x, y: 3 - x * 0.5 + 2 / y), a, far, scale=10)


@many
@given(SOLID, DTYPES, SEEDS, st.booleans(), st.data())
def test_reductions(shape, dtype, seed, keep, data):
    a = drawn(shape, dtype, seed)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    for name in ("sum", "mean"):
        agree(
            *both(lambda x, n=name: getattr(x, n)(axis, keepdim=keep)),
            a,
            scale=4,
        )
        agree(*both(lambda x, n=name: getattr(x, n)()), a, scale=4)
    for name in ("max", "min"):
        agree(
            lambda x, n=name: getattr(x, n)(axis, keepdim=keep),
            lambda x, n=name: getattr(x, n)(axis, keepdim=keep).values,
            a,
        )
    agree(*both(lambda x: x.max()), a)
    agree(*both(lambda x: x.cumsum(axis)), a, scale=4)
    assume(shape[axis] > 1)
    agree(
        lambda x: x.var(axis, 1, keep),
        lambda x: x.var(axis, correction=1, keepdim=keep),
        a,
        scale=10,
    )


@many
@given(SOLID, DTYPES, SEEDS, st.data())
def test_movement(shape, dtype, seed, data):
    import torch

    a, ndim = drawn(shape, dtype, seed), len(shape)
    order = data.draw(st.permutations(range(ndim)))
    axis = data.draw(st.integers(0, ndim - 1))
    n = data.draw(st.integers(-3, 3))
    agree(*both(lambda x: x.permute(*order).reshape(-1)), a)
    agree(*both(lambda x: x.transpose(0, -1)), a)
    agree(*both(lambda x: x.unsqueeze(axis).expand(*[-1] * (ndim + 1))), a)
    agree(*both(lambda x: x.expand(3, *shape)), a)
    agree(*both(lambda x: x.flip((axis,))), a)
    agree(*both(lambda x: x.roll(n, axis)), a)
    agree(*both(lambda x: x.squeeze().flatten()), a)
    agree(
        lambda x: cat([x, x * 2, x], axis),
        lambda x: torch.cat([x, x * 2, x], axis),
        a,
    )
    agree(
        lambda x: stack([x, -x], axis),
        lambda x: torch.stack([x, -x], axis),
        a,
    )
    margins = [
        data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        for _ in shape
    ]
    flat = [m for pair in margins[::-1] for m in pair]
    agree(
        lambda x: x.pad(margins, 1.5),
        lambda x: torch.nn.functional.pad(x, flat, value=1.5),
        a,
    )


@many
@given(SOLID, DTYPES, SEEDS, st.data())
def test_indexing(shape, dtype, seed, data):
    import torch

    a = drawn(shape, dtype, seed)
    last = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    parts = last if isinstance(last, tuple) else (last,)
    assume(all((p.step or 1) > 0 for p in parts if isinstance(p, slice)))
    agree(*both(lambda x: x[last]), a)
    rows = data.draw(
        hnp.arrays(
            np.int64,
            hnp.array_shapes(max_dims=2, max_side=5),
            elements=st.integers(-shape[0], shape[0] - 1),
        )
    )
    agree(lambda x: x[Tensor(rows)], lambda x: x[torch.tensor(rows)], a)
    mask = np.random.default_rng(seed).random(shape) < 0.5
    agree(lambda x: x[Tensor(mask)], lambda x: x[torch.tensor(mask)], a)
    agree(
        lambda x: x.masked_fill(Tensor(mask), 2.0),
        lambda x: x.masked_fill(torch.tensor(mask), 2.0),
        a,
    )


@st.composite
def factors(draw):
    """Two shapes whose matrix product exists, vectors and stacks too."""
    m, k, n = [draw(st.integers(0, 5)) for _ in range(3)]
    left, right = draw(
        st.sampled_from(
            [
                ((k,), (k,)),
                ((m, k), (k,)),
                ((k,), (k, n)),
                ((m, k), (k, n)),
                ((2, m, k), (k, n)),
                ((3, 1, m, k), (2, k, n)),
                ((m, k), (2, k, n)),
                ((2, m, k), (2, k, n)),
            ]
        )
    )
    return left, right


@many
@given(factors(), DTYPES, SEEDS)
def test_products(shapes, dtype, seed):
    a, b = [drawn(s, dtype, seed + i) for i, s in enumerate(shapes)]
    agree(*both(lambda x, y: x @ y), a, b, seed=seed, scale=10)


@many
@given(st.integers(1, 6), st.integers(2, 6), DTYPES, SEEDS)
def test_losses(rows, classes, dtype, seed):
    import torch
    from torch.nn import functional as F

    rng = np.random.default_rng(seed)
    a = drawn((rows, classes), dtype, seed, -5, 5)
    t = drawn((rows, classes), dtype, seed, 0, 1)
    wanted = rng.integers(0, classes, rows)
    agree(
        lambda x: mse_loss(x, Tensor(t)),
        lambda x: F.mse_loss(x, torch.tensor(t)),
        a,
        scale=4,
    )
    agree(
        lambda x: bce_with_logits(x, Tensor(t)),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(t)),
        a,
        scale=4,
    )
    wanted[1:][rng.random(rows - 1) < 0.3] = -100
    for smoothing in (0.0, 0.1):
        agree(
            lambda x, s=smoothing: cross_entropy(
                x, Tensor(wanted), label_smoothing=s
            ),
            lambda x, s=smoothing: F.cross_entropy(
                x, torch.tensor(wanted), label_smoothing=s
            ),
            a,
            scale=4,
        )
