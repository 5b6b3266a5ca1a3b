# Tangled from sequences: edit there, `make tangle`. sha256:cadc2ac39458
from __future__ import annotations

import math
from functools import partial

import numpy as np

from companion.device import CPU
from companion.dtype import float16, float32, float64, int64
from companion.embedding import Embedding
from companion.layers import Linear, Module, Sequential
from companion.literate import message
from companion.losses import cross_entropy
from companion.ops import SCATTER
from companion.sequence import (
    GRU, RNN, GRUCell, RNNCell, next_letters, sample, split_names, unbind,
    unroll)
from companion.tensor import Tensor
from companion.tensor.creation import ones, zeros
from companion.tensor.gradients import grad, gradcheck
from companion.tensor.indexing import allclose, cat, stack
from companion.tensor.random import Generator, manual_seed, rand, randn
from companion.tensor.reductions import shifted
from companion.timing import Timed


def pair_counts(x, y):
    """(27, 27): how often column came after row."""
    pairs = (x * 27 + y)[y >= 0]
    flat = Tensor.apply(SCATTER, ones(pairs.size), pairs, arg=(0, 27 * 27))
    return flat.reshape(27, 27)


class Window(Module):
    """A linear map of each row (…, T, C) and some rows before it."""

    def __init__(self, distances, inputs, outputs):
        self.distances = distances
        self.linear = Linear(len(distances) * inputs, outputs)

    def forward(self, rows):
        past = [shifted(rows, rows.ndim - 2, d) for d in self.distances]
        return self.linear(cat(past, -1))


class Speller(Module):
    """Scores (…, T, 27) of what comes after each of the ids (…, T)."""

    def __init__(self, mix, width):
        self.embedding, self.mix = Embedding(27, 24), mix
        self.head = Linear(width, 27)

    def forward(self, ids):
        return self.head(self.mix(self.embedding(ids)))


def reach(mix, rows, t):
    """By how much the result at place t depends on each row (T,)."""
    rows = rows.detach().requires_grad_()
    (g,) = grad(mix(rows)[..., t, :].sum(), rows)
    return g.abs().sum(-1)


def one_by_one(cell, x, h):
    """All states (…, T, H), as one would write it."""
    states = []
    for t in range(x.shape[-2]):
        h = cell(x[..., t, :], h)
        states.append(h)
    return stack(states, -2)


def megabytes(run, length):
    """What run(cell, x, h) and its gradients move, by the device."""
    timed = Timed(CPU)
    cell = RNNCell(512, 8, device=timed)
    x = randn(4, length, 512, device=timed).requires_grad_()
    run(cell, x, zeros(4, 8, device=timed)).sum().backward()
    return sum(moved for _, _, moved in timed.calls) / 1e6


class Outputs(Module):
    """The states of a recurrent network, as a mix of rows."""

    def __init__(self, rnn):
        self.rnn = rnn

    def forward(self, rows):
        return self.rnn(rows)[0]


def by_formula(kind, weights, x, h):
    """One step of one layer, in NumPy (weights as in the files)."""
    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    w_ih, w_hh, b_ih, b_hh = weights
    a, b = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
    if kind is RNN:
        return np.tanh(a + b)
    (ar, az, an), (br, bz, bn) = [np.split(v, 3, -1) for v in (a, b)]
    r, z = sigmoid(ar + br), sigmoid(az + bz)
    return (1 - z) * np.tanh(an + r * bn) + z * h


def test_a_run_is_the_formula_step_after_step():
    manual_seed(0)
    for kind in (RNN, GRU):
        for before, layers in (((), 1), ((3,), 2), ((2, 3), 3)):
            net = kind(4, 5, layers, dtype=float64)
            x = randn(*before, 6, 4, dtype=float64)
            h = randn(layers, *before, 5, dtype=float64)
            y, last = net(x, h)
            weights = [w.numpy() for w in net.state_dict().values()]
            state = [row.numpy() for row in h]
            for t in range(6):
                below = x[..., t, :].numpy()
                for i in range(layers):
                    below = state[i] = by_formula(
                        kind, weights[4 * i:4 * i + 4], below, state[i])
                assert np.allclose(y[..., t, :].numpy(), below)
            assert np.allclose(last.numpy(), np.stack(state))


def test_windows_carry_the_state():
    manual_seed(0)
    for kind in (RNN, GRU):
        net, x = kind(3, 4, 2, dtype=float64), randn(2, 9, 3, dtype=float64)
        whole, end = net(x)
        front, h = net(x[:, :4])
        back, last = net(x[:, 4:], h)
        assert allclose(cat([front, back], 1), whole)
        assert allclose(last, end)
        want = grad(whole.square().sum(), net.parameters())
        joint = cat([front, back], 1).square().sum()
        assert all(map(allclose, grad(joint, net.parameters()), want))
        _, h = net(x[:, :4])
        cut, _ = net(x[:, 4:], h.detach())
        (g,) = grad(cut.sum(), [net.layers[0].weight_hh])
        assert not allclose(g, want[1])


def test_gradients_through_time():
    manual_seed(0)
    x, h = randn(3, 2, dtype=float64), randn(1, 2, dtype=float64)
    for kind in (RNN, GRU):
        net = kind(2, 2, dtype=float64)

        def run(x, h, *weights, net=net):
            return cat(net(x, h))

        inputs = [t.clone().requires_grad_() for t in (x, h)]
        gradcheck(run, *inputs, *net.parameters())
    gradcheck(lambda x: cat(unbind(x, 1)).square(),
              randn(2, 5, 3, dtype=float64).requires_grad_())
    assert unbind(ones(2, 0), 1) == []


def test_names_shapes_and_first_values():
    manual_seed(0)
    for kind, gates in ((RNN, 1), (GRU, 3)):
        net = kind(40, 100, num_layers=2)
        shapes = {k: v.shape for k, v in net.state_dict().items()}
        rows = gates * 100
        assert shapes == {
            "weight_ih_l0": (rows, 40), "weight_hh_l0": (rows, 100),
            "bias_ih_l0": (rows,), "bias_hh_l0": (rows,),
            "weight_ih_l1": (rows, 100), "weight_hh_l1": (rows, 100),
            "bias_ih_l1": (rows,), "bias_hh_l1": (rows,)}
        assert net.count() == sum(map(math.prod, shapes.values()))
        for weight in net.state_dict().values():
            assert 0.095 < weight.abs().max().item() <= 0.1
            assert abs(weight.mean().item()) < 0.02
        bare = kind(2, 3, bias=False, dtype=float16)
        assert [*bare.state_dict()] == ["weight_ih_l0", "weight_hh_l0"]
        assert bare(ones(4, 2, dtype=float16))[0].dtype is float16
    assert sorted(GRUCell(2, 3).state_dict()) == [
        "bias_hh", "bias_ih", "weight_hh", "weight_ih"]


def test_nothing_sees_its_future():
    manual_seed(0)
    stacked = Sequential(Window((0, 1), 4, 4), Tensor.tanh,
                         Window((0, 2), 4, 4), Tensor.tanh)
    rows = randn(6, 4)
    for mix, before in ((Window((0, 1, 2), 4, 4), 2), (stacked, 3),
                        (Outputs(RNN(4, 5)), 6), (Outputs(GRU(4, 5, 2)), 6)):
        for t in range(6):
            felt = (reach(mix, rows, t) > 0).tolist()
            assert felt == [t - before <= s <= t for s in range(6)]


def test_bytes_grow_with_the_length():
    for run, power in ((one_by_one, 2), (unroll, 1)):
        slope = math.log2(megabytes(run, 32) / megabytes(run, 16))
        assert abs(slope - power) < 0.4, (run, slope)
    manual_seed(0)
    cell, x = GRUCell(3, 4), randn(2, 7, 3)
    assert allclose(one_by_one(cell, x, None),
                    unroll(cell, x, zeros(2, 4)), atol=1e-6)


def test_names_become_questions():
    people = ["ada", "bo", "ada", "constantine", *"cdefghijk"]
    learnt, held = split_names(people)
    assert held == ["ada", "k"] and learnt == ["bo", *"cdefghij"]
    x, y = next_letters(["ada", "grace"])
    assert x.tolist() == [[0, 1, 4, 1, 0, 0], [0, 7, 18, 1, 3, 5]]
    assert y.tolist() == [[1, 4, 1, 0, -100, -100], [7, 18, 1, 3, 5, 0]]
    assert next_letters([""])[1].tolist() == [[0]]
    assert "at least one row" in message(partial(next_letters, []))
    assert "no token for ['é']" in message(partial(next_letters, ["zoé"]))


def test_counts_are_the_best_table():
    manual_seed(0)
    x, y = [(rand(50, 7) * 5).cast(int64) for _ in range(2)]
    y = y.masked_fill(rand(50, 7) < 0.3, -100)
    counts = pair_counts(x, y)
    assert counts.sum().item() == (y >= 0).sum().item()
    for a, b in ((0, 0), (3, 4), (4, 1)):
        pairs = ((x == a) & (y == b)).sum()
        assert counts[a, b].item() == pairs.item()
    model = Embedding(27, 27)
    model.load_state_dict({"weight": counts.log()})
    cross_entropy(model(x), y).backward()
    assert model.weight.grad.abs().max().item() < 1e-6


def test_samples_follow_the_scores():
    scores = Tensor([[0.0, 1.0, 2.0, -math.inf], [3.0, 3.0, 3.0, 3.0]])
    for temperature in (0.5, 1.0, 2.0):
        draw = Generator(7)
        drawn = sample(scores.expand(20_000, 2, 4), temperature, draw)
        assert drawn.shape == (20_000, 2) and drawn.dtype is int64
        found = [[(drawn[:, i] == c).cast(float32).mean().item()
                  for c in range(4)] for i in range(2)]
        wanted = (scores / temperature).softmax(-1)
        assert np.allclose(found, wanted.numpy(), atol=0.02)
        assert found[0][3] == 0
        again = sample(scores.expand(20_000, 2, 4), temperature, Generator(7))
        assert (again == drawn).all()
    for wrong in (0, -1.0, math.nan):
        assert "argmax" in message(partial(sample, scores, wrong))


def test_what_does_not_fit_is_refused():
    cell, net = GRUCell(3, 4), RNN(3, 4, 2)
    assert "GRUCell: expected (…, 3), got (5,)" in message(
        lambda: cell(ones(5)))
    assert "state of shape (2, 4)" in message(
        lambda: cell(ones(2, 3), ones(1, 4)))
    assert "RNN: expected a state of shape (2, 6, 4)" in message(
        lambda: net(ones(6, 5, 3), ones(6, 4)))
    for shape in ((3,), (2, 0, 3)):
        assert "T of at least 1" in message(partial(net, ones(*shape)))
    assert "got a list" in message(lambda: net([[1, 2, 3]]), TypeError)
