"""Activations, layers and losses against PyTorch's, value by value."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from companion import Tensor
from companion.activations import gelu, leaky_relu, relu, silu
from companion.dtype import float32, float64
from companion.layers import LayerNorm, Linear, RMSNorm
from companion.losses import bce_with_logits, cross_entropy, mse_loss

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6)
SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = st.sampled_from([1.0, 30.0, 1e4])
DTYPES = st.sampled_from([float32, float64])
TOLERANCE = {float32: 1e-5, float64: 1e-12}
many = settings(max_examples=60, deadline=None, derandomize=True)


def drawn(shape, dtype, seed, width=1.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * width).astype(dtype.numpy)


def same(ours, theirs, dtype):
    """Close relative to each value, and to the largest among them."""
    mine, other = ours.numpy(), theirs.detach().numpy()
    assert mine.shape == other.shape
    scale = max(1.0, float(np.abs(other).max(initial=0)))
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(mine, other, tolerance, tolerance * scale)


@many
@given(SHAPES, SEEDS, WIDTHS, DTYPES)
def test_activations(shape, seed, width, dtype):
    import torch
    from torch.nn import functional as f

    a = drawn(shape, dtype, seed, width)
    x, t = Tensor(a), torch.tensor(a)
    for ours, theirs in (
        (relu, f.relu),
        (leaky_relu, f.leaky_relu),
        (Tensor.sigmoid, torch.sigmoid),
        (Tensor.tanh, torch.tanh),
        (Tensor.erf, torch.erf),
        (gelu, f.gelu),
        (lambda x: gelu(x, "tanh"), lambda x: f.gelu(x, approximate="tanh")),
        (silu, f.silu),
        (lambda x: x.softmax(-1), lambda x: x.softmax(-1)),
        (lambda x: x.log_softmax(0), lambda x: x.log_softmax(0)),
        (lambda x: x.logsumexp(-1), lambda x: x.logsumexp(-1)),
    ):
        same(ours(x), theirs(t), dtype)


@many
@given(SHAPES, st.integers(1, 7), st.booleans(), SEEDS, DTYPES)
def test_linear(shape, outputs, bias, seed, dtype):
    import torch

    ours = Linear(shape[-1], outputs, bias=bias, dtype=dtype)
    theirs = torch.nn.Linear(shape[-1], outputs, bias=bias,
                             dtype=getattr(torch, dtype.name))
    theirs.load_state_dict({
        name: torch.tensor(value.numpy())
        for name, value in ours.state_dict().items()})
    a = drawn(shape, dtype, seed)
    same(ours(Tensor(a)), theirs(torch.tensor(a)), dtype)


@many
@given(SHAPES, SEEDS, st.sampled_from([0.1, 1.0, 100.0]), DTYPES)
def test_normalizations(shape, seed, width, dtype):
    import torch
    from torch.nn import functional as f

    a = drawn(shape, dtype, seed, width)
    size = shape[-1:]
    weight, bias = drawn(size, dtype, seed + 1), drawn(size, dtype, seed + 2)
    state = {"weight": Tensor(weight), "bias": Tensor(bias)}
    norm, rms = LayerNorm(*size, dtype=dtype), RMSNorm(*size, dtype=dtype)
    norm.load_state_dict(state)
    rms.load_state_dict({"weight": state["weight"]})
    x, w, b = map(torch.tensor, (a, weight, bias))
    same(norm(Tensor(a)), f.layer_norm(x, size, w, b, 1e-5), dtype)
    same(rms(Tensor(a)), f.rms_norm(x, size, w, 1e-5), dtype)


@many
@given(st.integers(1, 8), st.integers(1, 9), SEEDS, WIDTHS, DTYPES,
       st.sampled_from([0.0, 0.1, 0.5]),
       st.sampled_from(["mean", "sum", "none"]))
def test_cross_entropy(n, classes, seed, width, dtype, smoothing, reduction):
    import torch

    a = drawn((n, classes), dtype, seed, width)
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, n)
    target[1:][rng.random(n - 1) < 0.3] = -100
    options = {"label_smoothing": smoothing, "reduction": reduction}
    same(cross_entropy(Tensor(a), Tensor(target), **options),
         torch.nn.functional.cross_entropy(
             torch.tensor(a), torch.tensor(target), **options), dtype)


@many
@given(SHAPES, SEEDS, WIDTHS, DTYPES,
       st.sampled_from(["mean", "sum", "none"]))
def test_losses_of_equal_shapes(shape, seed, width, dtype, reduction):
    import torch
    from torch.nn import functional as f

    a = drawn(shape, dtype, seed, width)
    share = np.random.default_rng(seed + 1).random(shape).astype(dtype.numpy)
    x, t = torch.tensor(a), torch.tensor(share)
    same(mse_loss(Tensor(a), Tensor(share), reduction),
         f.mse_loss(x, t, reduction=reduction), dtype)
    same(bce_with_logits(Tensor(a), Tensor(share), reduction),
         f.binary_cross_entropy_with_logits(x, t, reduction=reduction), dtype)
