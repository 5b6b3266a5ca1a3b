"""Networks with a state are the same on every device."""

import numpy as np
import pytest

from companion import GRU, RNN, Generator, Tensor, sample, unbind
from companion.dtype import float32, float64

LETTERS = np.random.default_rng(0).standard_normal((2, 5, 3))
STATE = np.random.default_rng(1).standard_normal((2, 2, 4))


def gradients(net, x, h):
    """The states, the last of them, and every gradient."""
    states, last = net(x, h)
    (states.square().sum() + last.sum()).backward()
    return [states, last, x.grad, h.grad, *[p.grad for p in net.parameters()]]


@pytest.mark.parametrize("kind", [RNN, GRU])
@pytest.mark.parametrize("dtype", [float32, float64])
def test_states_and_gradients(device, kind, dtype):
    net = kind(3, 4, num_layers=2, dtype=dtype)
    there = kind(3, 4, num_layers=2, dtype=dtype, device=device)
    there.load_state_dict(net.state_dict())
    expected, found = [
        gradients(
            n,
            Tensor(LETTERS, dtype, place).requires_grad_(),
            Tensor(STATE, dtype, place).requires_grad_(),
        )
        for n, place in ((net, "cpu"), (there, device))
    ]
    tolerance = {float32: 1e-5, float64: 1e-12}[dtype]
    for a, b in zip(found, expected, strict=True):
        assert a.device is device and a.dtype is dtype
        np.testing.assert_allclose(a.numpy(), b.numpy(), 0, 10 * tolerance)


def test_a_sequence_taken_apart(device):
    x = Tensor(LETTERS, float32, device).requires_grad_()
    parts = unbind(x, -2)
    assert [p.shape for p in parts] == [(2, 3)] * 5
    sum(p.sum() * i for i, p in enumerate(parts)).backward()
    weights = np.arange(5.0)[:, None] * np.ones((2, 5, 3))
    assert np.array_equal(x.grad.numpy(), weights)


def test_draws(device):
    """The noise has the same bits; scores here are far apart."""
    scores = np.array([[0.0, 50.0, -np.inf], [90.0, 0.0, 20.0]])
    drawn = sample(Tensor(scores, float32, device), generator=Generator(3))
    assert drawn.device is device
    assert drawn.tolist() == [1, 0]
    even = Tensor(np.zeros((500, 3)), float32, device)
    counts = np.bincount(sample(even, generator=Generator(4)).numpy())
    assert counts.sum() == 500 and counts.min() > 120
