"""Embeddings and positions against PyTorch's: values and gradients."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from companion import Embedding, Linear, Module, Tensor, rotary, sinusoidal
from companion.dtype import float16, float32, float64, int32, int64, uint8
from companion.losses import cross_entropy
from companion.optim import SGD, Adam

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
SEEDS = st.integers(0, 2**32 - 1)
TOLERANCE = {float32: 1e-5, float64: 1e-12}
FLOATS = st.sampled_from([float32, float64])
many = settings(max_examples=60, deadline=None, derandomize=True)


def close(ours, theirs, dtype, slack=1):
    expected = theirs.detach().numpy()
    assert ours.shape == expected.shape
    assert ours.dtype is dtype
    tolerance = TOLERANCE[dtype] * slack
    np.testing.assert_allclose(ours.numpy(), expected, tolerance, tolerance)


@many
@given(
    SHAPES,
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
    SEEDS,
    FLOATS,
    st.sampled_from([uint8, int32, int64]),
)
def test_embedding(shape, rows, width, pads, seed, dtype, kind):
    """The rows, and the gradient where rows repeat and where one pads."""
    import torch

    rng = np.random.default_rng(seed)
    padding = int(rng.integers(-rows, rows)) if pads else None
    ours = Embedding(rows, width, padding_idx=padding, dtype=dtype)
    theirs = torch.nn.Embedding(
        rows, width, padding_idx=padding, dtype=torch.float64
    )
    assert ours.padding_idx == theirs.padding_idx
    if pads:
        assert (ours.weight.numpy()[padding] == 0).all()
    weight = rng.standard_normal((rows, width)).astype(dtype.numpy)
    ours.load_state_dict({"weight": Tensor(weight)})
    theirs.load_state_dict({"weight": torch.tensor(np.float64(weight))})
    index = np.asarray(rng.integers(0, rows, shape))
    g = rng.standard_normal((*shape, width)).astype(dtype.numpy)
    found = ours(Tensor(index, kind))
    expected = theirs(torch.tensor(index))
    close(found, expected, dtype)
    found.backward(Tensor(g))
    expected.backward(torch.tensor(np.float64(g)))
    close(ours.weight.grad, theirs.weight.grad, dtype)


def test_what_has_no_row_is_refused_by_both():
    import torch

    for index in ([0, -1], [5]):
        with pytest.raises(IndexError, match="expected indices from 0 to 4"):
            Embedding(5, 2)(Tensor(index))
        with pytest.raises(IndexError):
            torch.nn.Embedding(5, 2)(torch.tensor(index))


@many
@given(SHAPES, st.integers(1, 8), SEEDS, st.sampled_from([100.0, 1e4, 5e5]))
def test_sinusoidal(shape, half, seed, base):
    import torch

    rng = np.random.default_rng(seed)
    places = np.asarray(rng.integers(0, 1_000_000, shape))
    i = torch.arange(half, dtype=torch.float64)
    turn = torch.tensor(places).double()[..., None] * base ** (-i / half)
    expected = torch.stack([turn.sin(), turn.cos()], -1).flatten(-2)
    found = sinusoidal(Tensor(places, int64), 2 * half, base)
    assert found.dtype is float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), 0, 1e-6)


def rotated(x, places, base):
    """The formula of the checkpoints with halves: x cos + (-b, a) sin."""
    import torch

    half = x.shape[-1] // 2
    speeds = base ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = places.double()[..., None] * speeds
    turn = torch.cat([turn, turn], -1)
    other = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * turn.cos() + other * turn.sin()


@many
@given(
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4),
    st.integers(1, 5),
    st.integers(0, 3),
    SEEDS,
    FLOATS,
    st.sampled_from([100.0, 1e4]),
)
def test_rotary(shape, half, axes, seed, dtype, base):
    import torch

    rng = np.random.default_rng(seed)
    a = rng.standard_normal((*shape, 2 * half)).astype(dtype.numpy)
    behind = shape[max(0, len(shape) - axes):]
    places = np.asarray(rng.integers(0, 100_000, behind))
    x = Tensor(a).requires_grad_()
    t = torch.tensor(np.float64(a), requires_grad=True)
    y = rotary(x, Tensor(places, int64), base)
    z = rotated(t, torch.tensor(places), base)
    # A rounded speed times a large place: 100,000 times the rounding.
    slack = 1000 if dtype is float64 else 1
    close(y, z, dtype, slack)
    g = rng.standard_normal(a.shape).astype(dtype.numpy)
    y.backward(Tensor(g))
    z.backward(torch.tensor(np.float64(g)))
    close(x.grad, t.grad, dtype, slack)


def test_halves_are_turned_in_float32():
    import torch

    a = np.random.default_rng(1).standard_normal((9, 8)).astype(np.float16)
    places = np.arange(9) * 1000
    y = rotary(Tensor(a), Tensor(places))
    z = rotated(torch.tensor(np.float64(a)), torch.tensor(places), 1e4)
    assert y.dtype is float16
    np.testing.assert_allclose(y.numpy(), z.numpy(), 1e-3, 1e-3)


class Tied(Module):
    """A word's neighbour, with one table at both ends."""

    def __init__(self, rows, width):
        self.embedding = Embedding(rows, width)
        self.between = Linear(width, width)

    def forward(self, index):
        return self.between(self.embedding(index)) @ self.embedding.weight.T


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_tied_tables_learn_as_in_pytorch(name):
    """Ten steps: the gradient has two sources, and rows repeat."""
    import torch

    ours = Tied(7, 4)
    state = {k: v.numpy().copy() for k, v in ours.state_dict().items()}
    table = torch.nn.Embedding(7, 4)
    layer = torch.nn.Linear(4, 4)
    weights = [table.weight, layer.weight, layer.bias]
    with torch.no_grad():
        for weight, value in zip(weights, state.values(), strict=True):
            weight.copy_(torch.tensor(value))
    kind = {"SGD": SGD, "Adam": Adam}[name]
    mine = kind(ours.parameters(), lr=0.05)
    other = getattr(torch.optim, name)(weights, lr=0.05)
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, y = rng.integers(0, 5, (2, 12))
        mine.zero_grad()
        other.zero_grad()
        loss = cross_entropy(ours(Tensor(x)), Tensor(y))
        loss.backward()
        scores = layer(table(torch.tensor(x))) @ table.weight.T
        theirs = torch.nn.functional.cross_entropy(scores, torch.tensor(y))
        theirs.backward()
        np.testing.assert_allclose(loss.item(), theirs.item(), 1e-4)
        for p, q in zip(ours.parameters(), weights, strict=True):
            np.testing.assert_allclose(
                p.grad.numpy(), q.grad.numpy(), 1e-3, 1e-5
            )
        mine.step()
        other.step()
    for p, q in zip(ours.parameters(), weights, strict=True):
        np.testing.assert_allclose(
            p.numpy(), q.detach().numpy(), 1e-3, 1e-4
        )
