"""Convolutions, pools and batch norms against PyTorch's."""

import functools

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from companion import (
    SGD,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Linear,
    MaxPool2d,
    Sequential,
    Tensor,
    conv2d,
    conv_transpose2d,
    cross_entropy,
    grad,
    relu,
)
from companion.dtype import float32, float64

pytestmark = [pytest.mark.needs("torch"), pytest.mark.slow]

many = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([float32, float64])
TOLERANCE = {float32: 1e-4, float64: 1e-11}


def pairs(low, high):
    """One number for both axes, or one for each."""
    number = st.integers(low, high)
    return st.one_of(number, st.tuples(number, number))


CHANNELS = st.sampled_from([(1, 1, 1), (2, 3, 1), (4, 6, 2), (9, 2, 1),
                            (16, 4, 2), (3, 3, 3), (3, 6, 3)])
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8))
KERNELS = pairs(1, 4)


def drawn(rng, dtype, *shapes):
    """The same numbers for both, both asking for gradients."""
    import torch

    arrays = [rng.standard_normal(s).astype(dtype.numpy) for s in shapes]
    return ([Tensor(a).requires_grad_() for a in arrays],
            [torch.tensor(a, requires_grad=True) for a in arrays])


def agree(ours, theirs, dtype, slack=1.0):
    expected = theirs.detach().numpy()
    assert ours.shape == expected.shape
    assert ours.dtype is dtype
    tolerance = slack * TOLERANCE[dtype]
    np.testing.assert_allclose(ours.numpy(), expected, tolerance, tolerance)


def both_ways(f, g, mine, others, rng, dtype, slack=1.0):
    """Values, and the gradients of everything for one message."""
    import torch

    y, z = f(*mine), g(*others)
    agree(y, z, dtype, slack)
    message = rng.standard_normal(y.shape).astype(dtype.numpy)
    y.backward(Tensor(message))
    z.backward(torch.tensor(message))
    for x, t in zip(mine, others, strict=True):
        agree(x.grad, t.grad, dtype, slack)


def two(value):
    return (value, value) if isinstance(value, int) else value


@many
@given(SIZES, CHANNELS, KERNELS, pairs(1, 3),
       st.one_of(pairs(0, 2), st.sampled_from(["same", "valid"])),
       pairs(1, 2), SEEDS, DTYPES)
def test_conv2d(size, channels, kernel, stride, padding, dilation, seed,
                dtype):
    import torch

    (n, h, w), (c, o, groups) = size, channels
    stride = 1 if padding == "same" else stride
    if padding != "same":
        edge = two(0 if padding == "valid" else padding)
        assume(all(d * (k - 1) < m + 2 * p for d, k, m, p in zip(
            two(dilation), two(kernel), (h, w), edge)))
    rng = np.random.default_rng(seed)
    mine, others = drawn(rng, dtype, (n, c, h, w),
                         (o, c // groups, *two(kernel)), (o,))
    options = (stride, padding, dilation, groups)
    both_ways(lambda *t: conv2d(*t, *options),
              lambda *t: torch.nn.functional.conv2d(*t, *options),
              mine, others, rng, dtype)


@many
@given(SIZES, CHANNELS, KERNELS, pairs(1, 3), pairs(0, 2), pairs(0, 2),
       pairs(1, 2), SEEDS, DTYPES)
def test_conv_transpose2d(size, channels, kernel, stride, padding, more,
                          dilation, seed, dtype):
    import torch

    (n, h, w), (c, o, groups) = size, channels
    for m, s, d in zip(*map(two, (more, stride, dilation))):
        assume(m < max(s, d))
    for n_, k, s, p, m, d in zip((h, w), *map(
            two, (kernel, stride, padding, more, dilation))):
        assume((n_ - 1) * s - 2 * p + d * (k - 1) + m + 1 > 0)
    rng = np.random.default_rng(seed)
    mine, others = drawn(rng, dtype, (n, c, h, w),
                         (c, o // groups, *two(kernel)), (o,))
    options = (stride, padding, more, groups, dilation)
    both_ways(lambda *t: conv_transpose2d(*t, *options),
              lambda *t: torch.nn.functional.conv_transpose2d(*t, *options),
              mine, others, rng, dtype)


@many
@given(SIZES, pairs(1, 3), st.one_of(st.none(), pairs(1, 3)), pairs(0, 1),
       st.booleans(), st.booleans(), SEEDS, DTYPES)
def test_pools(size, kernel, stride, padding, inside, ceil, seed, dtype):
    """Rounded numbers, so that windows have ties."""
    import torch

    n, h, w = size
    edges = list(zip(two(kernel), two(padding), (h, w)))
    assume(all(2 * p <= k <= m + 2 * p for k, p, m in edges))
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, (n, 2, h, w)).astype(dtype.numpy)
    how, rest = (kernel, stride, padding), (ceil, inside)
    pools = [(MaxPool2d(*how, ceil_mode=ceil),
              torch.nn.MaxPool2d(*how, ceil_mode=ceil)),
             (AvgPool2d(*how, *rest), torch.nn.AvgPool2d(*how, *rest))]
    for ours, theirs in pools:
        both_ways(ours, theirs, [Tensor(values).requires_grad_()],
                  [torch.tensor(values, requires_grad=True)], rng, dtype)


@many
@given(SIZES, pairs(1, 9), SEEDS, DTYPES)
def test_adaptive_avg_pool2d(size, output, seed, dtype):
    import torch

    n, h, w = size
    rng = np.random.default_rng(seed)
    mine, others = drawn(rng, dtype, (n, 2, h, w))
    both_ways(AdaptiveAvgPool2d(output),
              torch.nn.AdaptiveAvgPool2d(output), mine, others, rng, dtype)


@many
@given(st.sampled_from([(4, 3), (2, 3, 5), (3, 2, 4, 3), (2, 1, 1, 2)]),
       st.sampled_from([0.1, 0.5, None]), st.floats(-100, 100), SEEDS)
def test_batch_norm(shape, momentum, centre, seed):
    """Three batches in training, then one in eval."""
    import torch

    dtype, slack = float64, 1e4  # a mean of 100 costs both four digits
    rng, c = np.random.default_rng(seed), shape[1]
    name = "BatchNorm2d" if len(shape) == 4 else "BatchNorm1d"
    kind = {"BatchNorm1d": BatchNorm1d, "BatchNorm2d": BatchNorm2d}[name]
    ours = kind(c, momentum=momentum, dtype=dtype)
    theirs = getattr(torch.nn, name)(
        c, momentum=momentum, dtype=getattr(torch, str(dtype)))
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for _ in range(3):
        x = (rng.standard_normal(shape) + centre).astype(dtype.numpy)
        both_ways(ours, theirs, [Tensor(x).requires_grad_()],
                  [torch.tensor(x, requires_grad=True)], rng, dtype, slack)
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(state[key].numpy(), value.numpy(), 1e-4,
                                   1e-4)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        agree(p.grad, q.grad, dtype, slack)
    ours.eval()
    theirs.eval()
    x = (rng.standard_normal(shape) + centre).astype(dtype.numpy)
    agree(ours(Tensor(x)), theirs(torch.tensor(x)), dtype, slack)


@pytest.mark.parametrize("c", [2, 8])
def test_second_derivatives(c):
    """The gradient of the gradients' squares."""
    import torch

    rng = np.random.default_rng(c)
    mine, others = drawn(rng, float64, (2, c, 5, 6), (3, c, 3, 2))
    y = conv2d(*mine, stride=2, padding=1).tanh().square().sum()
    z = torch.nn.functional.conv2d(
        *others, stride=2, padding=1).tanh().square().sum()
    ours = grad(y, mine, create_graph=True)
    theirs = torch.autograd.grad(z, others, create_graph=True)
    sum(g.square().sum() for g in ours).backward()
    sum(g.square().sum() for g in theirs).backward()
    for x, t in zip(mine, others, strict=True):
        agree(x.grad, t.grad, float64, 100)


def layers():
    """Pairs of a layer of ours and one of PyTorch's."""
    import torch

    return [
        (Conv1d(4, 6, 3, 2, 1, groups=2),
         torch.nn.Conv1d(4, 6, 3, 2, 1, groups=2), (2, 4, 9)),
        (Conv2d(8, 4, (3, 2), padding="same", bias=False),
         torch.nn.Conv2d(8, 4, (3, 2), padding="same", bias=False),
         (2, 8, 5, 5)),
        (ConvTranspose2d(4, 6, 3, 2, 1, 1, 2),
         torch.nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2), (2, 4, 5, 5)),
    ]


def test_layers_and_the_names_of_their_states():
    import torch

    rng = np.random.default_rng(0)
    for ours, theirs, shape in layers():
        state = theirs.state_dict()
        assert list(ours.state_dict()) == list(state)
        ours.load_state_dict({k: v.numpy() for k, v in state.items()})
        x = rng.standard_normal(shape).astype(np.float32)
        agree(ours(Tensor(x)), theirs(torch.tensor(x)), float32)


def test_a_small_network_learns_as_in_pytorch():
    """Ten steps of a network with one of each."""
    import torch

    nn = torch.nn
    ours = Sequential(Conv2d(2, 8, 3, padding=1), BatchNorm2d(8), relu,
                      MaxPool2d(2), Conv2d(8, 4, 3, stride=2),
                      relu, AdaptiveAvgPool2d(2), Flatten(), Linear(16, 3))
    theirs = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    state = theirs.state_dict()
    ours.load_state_dict({f"layers.{k}": v.numpy()
                          for k, v in state.items()})
    mine = SGD(ours.parameters(), lr=0.05, momentum=0.9)
    other = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    rng = np.random.default_rng(1)
    for _ in range(10):
        x = rng.standard_normal((6, 2, 10, 10)).astype(np.float32)
        labels = rng.integers(0, 3, 6)
        mine.zero_grad()
        other.zero_grad()
        loss = cross_entropy(ours(Tensor(x)), Tensor(labels))
        loss.backward()
        theirs_loss = nn.functional.cross_entropy(
            theirs(torch.tensor(x)), torch.tensor(labels))
        theirs_loss.backward()
        np.testing.assert_allclose(loss.item(), theirs_loss.item(), 1e-3)
        mine.step()
        other.step()
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(
            ours.state_dict()[f"layers.{name}"].numpy(), value.numpy(),
            1e-2, 1e-3)


REFUSED = [
    lambda f, x, w: f(x, w[:, :1]),
    lambda f, x, w: f(x[:, :2], w),
    lambda f, x, w: f(x[..., :2], w),
]


@pytest.mark.parametrize("call", REFUSED)
def test_what_pytorch_refuses_is_refused(call):
    import torch

    x, w = np.ones((1, 3, 5, 5)), np.ones((4, 3, 3, 3))
    ours = functools.partial(call, conv2d, Tensor(x), Tensor(w))
    theirs = functools.partial(call, torch.nn.functional.conv2d,
                               torch.tensor(x), torch.tensor(w))
    with pytest.raises(RuntimeError):
        theirs()
    with pytest.raises(ValueError, match="conv"):
        ours()
