"""Activations, layers and losses against PyTorch's: values and gradients."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from companion import Tensor
from companion.activations import gelu, leaky_relu, relu, silu
from companion.dtype import float16, float32, float64, int32, int64, uint8
from companion.layers import LayerNorm, Linear, RMSNorm
from companion.losses import bce_with_logits, cross_entropy, mse_loss
from companion.tensor.gradients import hessian_product

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6)
SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = st.sampled_from([1.0, 30.0, 1e4])
DTYPES = st.sampled_from([float32, float64])
REDUCTIONS = st.sampled_from(["mean", "sum", "none"])
TOLERANCE = {float32: 1e-5, float64: 1e-12}
many = settings(max_examples=60, deadline=None, derandomize=True)


def drawn(shape, dtype, seed, width=1.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * width).astype(dtype.numpy)


def same(ours, theirs, dtype):
    close(ours.numpy(), theirs.detach().numpy(), dtype)


def close(mine, other, dtype):
    """Close relative to each value, and to the largest among them."""
    assert mine.shape == other.shape
    scale = max(1.0, float(np.abs(other).max(initial=0)))
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(mine, other, tolerance, tolerance * scale)


def agree(ours, theirs, arrays, dtype, seed):
    """Both give the same value, and the same gradients of the arrays.

    PyTorch computes in double precision: it is the oracle, and in single
    it is not always the better of the two.
    """
    import torch

    xs = [Tensor(a).requires_grad_() for a in arrays]
    ts = [torch.tensor(np.float64(a), requires_grad=True) for a in arrays]
    y, z = ours(*xs), theirs(*ts)
    assert y.dtype is dtype
    same(y, z, dtype)
    weight = drawn(y.shape, y.dtype, seed + 9)
    y.backward(Tensor(weight))
    z.backward(torch.tensor(np.float64(weight)))
    for x, t in zip(xs, ts, strict=True):
        close(x.grad.numpy(), t.grad.numpy(), dtype)


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
    theirs = torch.nn.Linear(
        shape[-1], outputs, bias=bias, dtype=torch.float64
    )
    theirs.load_state_dict(
        {
            name: torch.tensor(np.float64(value.numpy()))
            for name, value in ours.state_dict().items()
        }
    )
    a = drawn(shape, dtype, seed)
    agree(ours, theirs, [a], dtype, seed)
    wanted = [p.grad.numpy() for p in theirs.parameters()]
    for p, expected in zip(ours.parameters(), wanted, strict=True):
        close(p.grad.numpy(), expected, dtype)


@many
@given(
    SHAPES,
    st.integers(1, 2),
    SEEDS,
    st.sampled_from([0.1, 1.0, 100.0]),
    DTYPES,
)
def test_normalizations(shape, axes, seed, width, dtype):
    from torch.nn import functional as f

    a, size = drawn(shape, dtype, seed, width), shape[-axes:]
    weight, bias = drawn(size, dtype, seed + 1), drawn(size, dtype, seed + 2)

    def layer_norm(x, w, b):
        layer = LayerNorm(size, dtype=dtype)
        layer.weight, layer.bias = w, b
        return layer(x)

    def rms_norm(x, w):
        layer = RMSNorm(size, dtype=dtype)
        layer.weight = w
        return layer(x)

    def their_norm(x, w, b):
        return f.layer_norm(x, size, w, b, 1e-5)

    def their_rms(x, w):
        return f.rms_norm(x, size, w, 1e-5)

    agree(layer_norm, their_norm, [a, weight, bias], dtype, seed)
    agree(rms_norm, their_rms, [a, weight], dtype, seed)


@pytest.mark.parametrize("make", [LayerNorm, RMSNorm])
def test_halves_are_normalized_as_pytorch_does(make):
    import torch
    from torch.nn import functional as f

    theirs = {LayerNorm: f.layer_norm, RMSNorm: f.rms_norm}[make]
    a = drawn((20, 64), float32, 1, 500.0).astype(np.float16)
    ours = make(64).to(float16)(Tensor(a))
    expected = theirs(torch.tensor(a), (64,), eps=1e-5)
    assert ours.dtype is float16
    np.testing.assert_allclose(ours.numpy(), expected.numpy(), 2e-3, 1e-3)


@many
@given(
    SHAPES,
    SEEDS,
    WIDTHS,
    DTYPES,
    st.sampled_from([0.0, 0.1, 0.5]),
    REDUCTIONS,
    st.sampled_from([uint8, int32, int64]),
)
def test_cross_entropy(shape, seed, width, dtype, smoothing, reduction, kind):
    """Classes last in ours, second in theirs; labels of any integers."""
    import torch

    a = drawn(shape, dtype, seed, width)
    rng = np.random.default_rng(seed)
    labels = np.asarray(rng.integers(0, shape[-1], shape[:-1]))
    hole = 200 if kind is uint8 else -100
    labels[rng.random(labels.shape) < 0.3] = hole
    options = {
        "label_smoothing": smoothing,
        "reduction": reduction,
        "ignore_index": hole,
    }
    second = torch.tensor(labels, dtype=torch.int64)

    def theirs(x):
        x = x.movedim(-1, 1) if x.ndim > 1 else x
        return torch.nn.functional.cross_entropy(x, second, **options)

    def ours(x):
        return cross_entropy(x, Tensor(labels, kind), **options)

    if (labels == hole).all() and reduction == "mean":
        assert np.isnan(ours(Tensor(a)).item())
        assert np.isnan(theirs(torch.tensor(a)).item())
    else:
        agree(ours, theirs, [a], dtype, seed)


@many
@given(
    SHAPES,
    SEEDS,
    WIDTHS,
    DTYPES,
    st.sampled_from([0.0, 0.1]),
    REDUCTIONS,
)
def test_cross_entropy_of_shares(
    shape, seed, width, dtype, smoothing, reduction
):
    import torch

    a = drawn(shape, dtype, seed, width)
    share = np.exp(drawn(shape, dtype, seed + 1))
    share /= share.sum(-1, keepdims=True)
    options = {"label_smoothing": smoothing, "reduction": reduction}

    def theirs(x, q):
        if x.ndim > 1:
            x, q = x.movedim(-1, 1), q.movedim(-1, 1)
        return torch.nn.functional.cross_entropy(x, q, **options)

    def ours(x, q):
        return cross_entropy(x, q, **options)

    agree(ours, theirs, [a, share], dtype, seed)


@many
@given(SHAPES, SEEDS, WIDTHS, DTYPES, REDUCTIONS)
def test_losses_of_equal_shapes(shape, seed, width, dtype, reduction):
    from torch.nn import functional as f

    a = drawn(shape, dtype, seed, width)
    share = np.random.default_rng(seed + 1).random(shape).astype(dtype.numpy)

    def bce(x, t):
        return f.binary_cross_entropy_with_logits(x, t, reduction=reduction)

    def mse(x, t):
        return f.mse_loss(x, t, reduction=reduction)

    agree(lambda x, t: mse_loss(x, t, reduction), mse, [a, share], dtype, seed)
    agree(
        lambda x, t: bce_with_logits(x, t, reduction),
        bce,
        [a, share],
        dtype,
        seed,
    )


@pytest.mark.parametrize("size", [1e4, 1e2, 0.0])
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_two_classes_at_the_extremes(size, target):
    """Values and slopes at ±10⁴ and at the corner, to the last digit."""
    from torch.nn import functional as f

    a = np.array([-size, size], np.float32)
    t = np.full(2, target, np.float32)
    agree(
        lambda x, t: bce_with_logits(x, t, "none"),
        lambda x, t: f.binary_cross_entropy_with_logits(
            x, t, reduction="none"
        ),
        [a, t],
        float32,
        0,
    )


def test_the_curvature_of_two_classes_at_zero():
    """A corner in the formula would answer 0 here."""
    x, t, v = [Tensor([n], float64) for n in (0.0, 1.0, 1.0)]
    curved = hessian_product(lambda x: bce_with_logits(x, t), x, v)
    assert curved.tolist() == [0.25]


def test_the_curvature_of_many_classes():
    """The shift is a constant: second derivatives are right as well."""
    import torch

    a, v = drawn((4,), float64, 1), drawn((4,), float64, 2)
    ours = hessian_product(
        lambda x: cross_entropy(x, Tensor(2)), Tensor(a), Tensor(v)
    )
    hessian = torch.autograd.functional.hessian(
        lambda x: torch.nn.functional.cross_entropy(x, torch.tensor(2)),
        torch.tensor(a),
    )
    close(ours.numpy(), hessian.numpy() @ v, float64)


@pytest.mark.parametrize(
    ("x", "target"),
    [
        (np.float32, np.float64),
        (np.float64, np.float32),
        (np.float32, np.int64),
        (np.float16, np.float32),
    ],
)
def test_mixed_dtypes(x, target):
    import torch

    a, t = np.array([1, 5, 2], x), np.array([4, 5, 0], target)
    ours = mse_loss(Tensor(a), Tensor(t))
    theirs = torch.nn.functional.mse_loss(torch.tensor(a), torch.tensor(t))
    assert ours.numpy().dtype == theirs.numpy().dtype
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-6)


def test_labels_out_of_range_are_an_index_error():
    import torch

    for labels in ([0, 3], [-1, 0], [-100, 7]):
        with pytest.raises(IndexError, match="targets must lie in 0 … 2"):
            cross_entropy(Tensor(np.zeros((2, 3))), Tensor(labels))
        with pytest.raises(IndexError):
            torch.nn.functional.cross_entropy(
                torch.zeros(2, 3), torch.tensor(labels)
            )
