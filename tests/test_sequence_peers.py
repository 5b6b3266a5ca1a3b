"""Recurrent networks against PyTorch's: names, values and gradients."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from companion import (
    GRU,
    RNN,
    Adam,
    Embedding,
    GRUCell,
    Linear,
    Module,
    RNNCell,
    Tensor,
    clip_grad_norm_,
    cross_entropy,
)
from companion.dtype import float32, float64

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 6)
FLOATS = st.sampled_from([float32, float64])
TOLERANCE = {float32: 1e-5, float64: 1e-12}
many = settings(max_examples=40, deadline=None, derandomize=True)


def close(ours, theirs, dtype):
    """Close relative to each value, and to the largest among them."""
    expected = theirs.detach().numpy()
    assert ours.shape == expected.shape
    assert ours.dtype is dtype
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
        ours.numpy(), expected, tolerance, tolerance * scale
    )


def give(ours, theirs):
    """The weights of ours to theirs; both have the same names."""
    import torch

    state = ours.state_dict()
    assert [*state] == [*theirs.state_dict()]
    theirs.load_state_dict(
        {k: torch.tensor(np.float64(v.numpy())) for k, v in state.items()}
    )


def drawn(rng, shape, dtype):
    """The same numbers as a leaf of ours and as one of PyTorch's."""
    import torch

    a = rng.standard_normal(shape).astype(dtype.numpy)
    return (
        Tensor(a).requires_grad_(),
        torch.tensor(np.float64(a), requires_grad=True),
    )


@many
@given(
    st.sampled_from([RNN, GRU]),
    st.lists(SIZES, max_size=1),
    st.tuples(SIZES, SIZES, SIZES, st.integers(1, 3)),
    st.booleans(),
    st.booleans(),
    SEEDS,
    FLOATS,
)
def test_layers(kind, batch, sizes, bias, begins, seed, dtype):
    import torch

    length, inputs, hidden, layers = sizes
    ours = kind(inputs, hidden, layers, bias=bias, dtype=dtype)
    theirs = getattr(torch.nn, kind.__name__)(
        inputs,
        hidden,
        layers,
        bias=bias,
        batch_first=True,
        dtype=torch.float64,
    )
    give(ours, theirs)
    rng = np.random.default_rng(seed)
    x, t = drawn(rng, (*batch, length, inputs), dtype)
    h, s = drawn(rng, (layers, *batch, hidden), dtype)
    y, last = ours(x, h) if begins else ours(x)
    z, end = theirs(t, s) if begins else theirs(t)
    close(y, z, dtype)
    close(last, end, dtype)
    g, up = drawn(rng, y.shape, dtype)
    k, down = drawn(rng, last.shape, dtype)
    ((y * g).sum() + (last * k).sum()).backward()
    ((z * up).sum() + (end * down).sum()).backward()
    close(x.grad, t.grad, dtype)
    if begins:
        close(h.grad, s.grad, dtype)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    for p, q in pairs:
        close(p.grad, q.grad, dtype)


@many
@given(
    st.sampled_from([RNNCell, GRUCell]),
    st.lists(SIZES, max_size=1),
    SIZES,
    SIZES,
    st.booleans(),
    SEEDS,
    FLOATS,
)
def test_cells(kind, batch, inputs, hidden, bias, seed, dtype):
    import torch

    ours = kind(inputs, hidden, bias, dtype=dtype)
    theirs = getattr(torch.nn, kind.__name__)(
        inputs, hidden, bias, dtype=torch.float64
    )
    give(ours, theirs)
    rng = np.random.default_rng(seed)
    x, t = drawn(rng, (*batch, inputs), dtype)
    h, s = drawn(rng, (*batch, hidden), dtype)
    y, z = ours(x, h), theirs(t, s)
    close(y, z, dtype)
    close(ours(x), theirs(t), dtype)
    y.sum().backward()
    z.sum().backward()
    for p, q in ((x, t), (h, s)):
        close(p.grad, q.grad, dtype)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    for p, q in pairs:
        close(p.grad, q.grad, dtype)


def test_first_values_have_pytorch_s_size():
    import torch

    for kind in ("RNN", "GRU"):
        ours = {"RNN": RNN, "GRU": GRU}[kind](30, 50)
        theirs = getattr(torch.nn, kind)(30, 50)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            bound = 50**-0.5
            assert p.abs().max().item() <= bound
            assert abs(p.std().item() / q.std().item() - 1) < 0.3


class Speller(Module):
    """The next letter, by a network with a state."""

    def __init__(self, letters, width):
        self.embedding = Embedding(letters, width)
        self.rnn = GRU(width, width)
        self.head = Linear(width, letters)

    def forward(self, ids):
        return self.head(self.rnn(self.embedding(ids))[0])


def test_a_speller_learns_as_in_pytorch():
    """Ten clipped steps, with places that are not asked about."""
    import torch

    ours = Speller(7, 6)
    theirs = torch.nn.ModuleList(
        [
            torch.nn.Embedding(7, 6),
            torch.nn.GRU(6, 6, batch_first=True),
            torch.nn.Linear(6, 7),
        ]
    )
    with torch.no_grad():
        pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
        for q, p in pairs:
            q.copy_(torch.tensor(p.numpy()))
    mine = Adam(ours.parameters(), lr=0.02)
    other = torch.optim.Adam(theirs.parameters(), lr=0.02)
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, y = rng.integers(0, 7, (2, 4, 9))
        y[rng.random(y.shape) < 0.3] = -100
        mine.zero_grad()
        other.zero_grad()
        loss = cross_entropy(ours(Tensor(x)), Tensor(y))
        loss.backward()
        table, rnn, head = theirs
        scores = head(rnn(table(torch.tensor(x)))[0])
        expected = torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), torch.tensor(y).flatten()
        )
        expected.backward()
        np.testing.assert_allclose(loss.item(), expected.item(), 1e-4)
        norm = clip_grad_norm_(ours.parameters(), 0.5)
        limit = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        np.testing.assert_allclose(norm.item(), limit.item(), 1e-3)
        mine.step()
        other.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), 1e-2, 1e-3)


@pytest.mark.parametrize("kind", [RNN, GRU])
def test_the_batch_comes_first(kind):
    kind(3, 4, batch_first=True)
    with pytest.raises(ValueError, match=r"x\.transpose\(0, 1\)"):
        kind(3, 4, batch_first=False)
