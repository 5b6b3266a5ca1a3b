# Tangled from embeddings: edit there, `make tangle`. sha256:5720c9866cad
from __future__ import annotations

import math
from functools import partial
from itertools import product

import numpy as np

from companion.buffer import Buffer, adopt
from companion.device import CPU, FLOATS, least_index, scatter
from companion.dtype import float16, float32, float64, int32, int64, uint8
from companion.embedding import Embedding, look_up, rotary, sinusoidal
from companion.layers import Linear, Module, parameter
from companion.literate import message
from companion.losses import cross_entropy
from companion.native import POOL, set_threads
from companion.ops import SCATTER
from companion.tensor import Tensor
from companion.tensor.creation import arange, one_hot, ones, zeros
from companion.tensor.gradients import gradcheck
from companion.tensor.random import manual_seed, rand, randn
from companion.timing import Timed


def turned(x, positions, base=10000.0):
    """The definition: pair i of x is (x[i], x[i + half])."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    speeds = base ** (-np.arange(half) / half)
    pairs = pairs * np.exp(1j * np.multiply.outer(positions, speeds))
    return np.concatenate([pairs.real, pairs.imag], -1)


def test_turned_products_know_the_distance_alone():
    manual_seed(0)
    q, k = randn(2, 7, 16, dtype=float64)
    place = arange(7)
    assert np.allclose(rotary(q, place).numpy(),
                       turned(q.numpy(), place.numpy()))
    near = rotary(q, place) @ rotary(k, place).T
    for shift in (1, 1000, 123_456):
        far = rotary(q, place + shift) @ rotary(k, place + shift).T
        assert np.allclose(near.numpy(), far.numpy(), atol=1e-8)
    assert not np.allclose(near.numpy(), (q @ k.T).numpy(), atol=0.1)


class Tied(Module):
    """The letter between four, with one table for both ends."""

    def __init__(self, width):
        self.embedding = Embedding(27, width)
        self.between = Linear(width, width)

    def forward(self, context):
        middle = self.between(self.embedding(context).mean(-2))
        return middle @ self.embedding.weight.T


def two_sources(model, x, y):
    """The gradients of the table at the bottom and at the top."""
    bottom, top = [parameter(model.embedding.weight.detach().clone())
                   for _ in range(2)]
    middle = model.between(look_up(bottom, x).mean(-2))
    cross_entropy(middle @ top.T, y).backward()
    return bottom.grad, top.grad


def test_a_look_up_is_a_product_with_one_hots():
    manual_seed(0)
    for shape in ((), (5,), (2, 3, 4), (0,), (2, 0)):
        ids = (rand(*shape) * 6).cast(int64)
        hot, layer = one_hot(ids, 6), Embedding(6, 3, dtype=float64)
        g = randn(*shape, 3, dtype=float64)
        found = layer(ids)
        found.backward(g)
        flat = hot.numpy().reshape(-1, 6)
        assert found.shape == (*shape, 3)
        assert np.allclose(found.numpy(), hot.numpy() @ layer.weight.numpy())
        assert np.allclose(layer.weight.grad.numpy(),
                           flat.T @ g.numpy().reshape(-1, 3))
    gradcheck(lambda w: look_up(w, Tensor([2, 0, 2])).square(),
              randn(3, 2, dtype=float64).requires_grad_())


def test_a_table_used_twice_is_one_parameter():
    manual_seed(0)
    model = Tied(4)
    x, y = Tensor([[0, 1, 4, 26], [1, 1, 0, 3]]), Tensor([2, 26])
    cross_entropy(model(x), y).backward()
    bottom, top = two_sources(model, x, y)
    assert np.allclose(model.embedding.weight.grad.numpy(),
                       (bottom + top).numpy(), atol=1e-6)
    assert len(model.parameters()) == len(model.state_dict()) == 3
    assert model.count() == 27 * 4 + 4 * 4 + 4


def test_sums_by_lists_have_the_bits_of_the_loop():
    rng = np.random.default_rng(0)
    cases = [((700, 70), 30, 0), ((9, 5), 4, 0), ((3,), 2, 0), ((), 1, 0),
             ((0, 4), 3, 0), ((5, 0), 3, 0), ((6, 4, 130), 7, 1),
             ((6, 4), 7, 1)]
    for (shape, n, axis), dtype in product(cases, (*FLOATS, int64)):
        places = shape[:axis + 1]
        index = adopt(rng.integers(least_index(axis, n), n, places))
        values = (100 * rng.standard_normal(shape)).astype(dtype.numpy)
        for x in map(adopt, (values, np.flip(values))):
            found = CPU.run(SCATTER, x, index, arg=(axis, n))
            loop = Buffer.empty(found.shape, dtype)
            scatter(loop, x, index, (axis, n))
            assert (found.array == loop.array).all()
    nowhere = adopt(np.ones((2, 3))), adopt(np.zeros(2, np.int64))
    assert "allows none" in message(
        lambda: CPU.run(SCATTER, *nowhere, arg=(0, 0)), IndexError)


def test_threads_share_the_rows():
    rng = np.random.default_rng(0)
    x = adopt(rng.standard_normal((3000, 33)).astype(np.float32))
    index = adopt(rng.integers(-50, 50, 3000))
    found, usual = [], POOL.threads
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append(CPU.run(SCATTER, x, index, arg=(0, 50)).array)
    set_threads(usual)
    assert all((other == found[0]).all() for other in found)
    x.array[7] = np.nan
    lost = CPU.run(SCATTER, x, index, arg=(0, 50)).array
    assert np.isnan(lost).any(-1).nonzero()[0].tolist() == [
        index.array[7] % 50]


def test_rows_begin_standard_normal():
    manual_seed(0)
    weight = Embedding(300, 400).weight
    assert abs(weight.mean().item()) < 0.02
    assert abs(weight.std().item() - 1) < 0.02
    assert set(Embedding(2, 3).state_dict()) == {"weight"}
    assert Embedding(2, 3, init=zeros).weight.tolist() == [[0.0] * 3] * 2
    timed = Timed(CPU)
    far = Embedding(4, 2, padding_idx=1, dtype=float64, device=timed)
    assert far.weight.device is timed and far.weight.dtype is float64
    assert far.weight[1].tolist() == [0.0, 0.0]
    for dtype in (uint8, int32, int64):
        same = far(Tensor([3, 1], dtype, timed)) == far.weight[[3, 1]]
        assert same.all()


def test_padding_learns_nothing():
    for padding in (0, 3, -1):
        layer = Embedding(4, 2, padding_idx=padding)
        row = padding % 4
        assert layer.padding_idx == row
        assert layer.weight[row].tolist() == [0.0, 0.0]
        layer(Tensor([[0, 1], [2, 3]])).square().sum().backward()
        expected = 2 * layer.weight.numpy()
        assert np.allclose(layer.weight.grad.numpy(), expected)
        layer.load_state_dict({"weight": ones(4, 2)})
        layer.zero_grad()
        found = layer(Tensor([0, 1, 2, 3, row]))
        found.sum().backward()
        assert found.tolist() == [[1.0, 1.0]] * 5
        learned = layer.weight.grad.tolist()
        assert learned == [[float(i != row)] * 2 for i in range(4)]


def test_what_has_no_row_is_refused():
    layer = Embedding(5, 2)
    for wrong in (-1, 5, -6, 1000):
        text = message(partial(layer, Tensor([0, wrong])), IndexError)
        assert text.startswith("Embedding: expected indices from 0 to 4 ")
        assert f"the index {wrong} is" in text and "\n" not in text
    assert "integer" in message(lambda: layer(Tensor([1.0])), TypeError)
    assert "wrap it" in message(lambda: layer([1, 2]), TypeError)
    assert "from -5 to 4, got 5" in message(lambda: Embedding(5, 2, 5))


def test_waves_have_the_values_of_the_formula():
    rows = sinusoidal(Tensor([0, 1, 40_000]), 4, dtype=float64)
    for row, p in zip(rows.tolist(), (0, 1, 40_000)):
        assert np.allclose(row, [math.sin(p), math.cos(p),
                                 math.sin(p / 100), math.cos(p / 100)])
    assert sinusoidal(arange(6).reshape(2, 3), 8).shape == (2, 3, 8)
    far = sinusoidal(Tensor([10_000_001]), 2)
    assert np.allclose(far.tolist(), [[math.sin(10_000_001),
                                       math.cos(10_000_001)]], atol=1e-6)
    assert "even number of features, got 5" in message(
        lambda: sinusoidal(arange(3), 5))
    assert "got a int" in message(lambda: sinusoidal(3, 4), TypeError)


def test_rotary_turns_and_changes_no_length():
    manual_seed(0)
    x = randn(2, 3, 5, 8)
    y = rotary(x, arange(5))
    assert y.shape == x.shape and y.dtype is float32
    assert np.allclose(y[:, :, 0].numpy(), x[:, :, 0].numpy())
    assert np.allclose(y.square().sum(-1).numpy(),
                       x.square().sum(-1).numpy(), atol=1e-5)
    each = arange(10).reshape(2, 1, 5) * 7
    assert np.allclose(rotary(x, each).numpy(), turned(
        x.numpy(), np.broadcast_to(each.numpy(), (2, 3, 5))), atol=1e-5)
    half = rotary(x.cast(float16), arange(5))
    assert half.dtype is float16
    assert np.allclose(half.numpy(), y.numpy(), atol=0.01)
    assert np.allclose(rotary(ones(1, 2), Tensor([1])).tolist(), [[
        math.cos(1) - math.sin(1), math.cos(1) + math.sin(1)]])
    gradcheck(lambda x: rotary(x, arange(3)).square() * 2,
              randn(3, 4, dtype=float64).requires_grad_())


def test_places_that_do_not_fit_are_refused():
    x = ones(2, 3, 4)
    assert "positions of shape (2,) for vectors of shape (2, 3)" in message(
        lambda: rotary(x, arange(2)))
    assert "broadcasts" in message(
        lambda: rotary(x, zeros(5, 2, 3)))
    assert "broadcasts" in message(lambda: rotary(ones(1, 4), arange(3)))
    assert "even" in message(lambda: rotary(ones(3, 5), arange(3)))
    assert "got a list" in message(
        lambda: rotary(x, [0, 1, 2]), TypeError)
