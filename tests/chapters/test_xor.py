# Tangled from xor: edit there, `make tangle`. sha256:f4a666095b44
from __future__ import annotations

import json
import math
import tempfile
from itertools import product
from pathlib import Path

import numpy as np

from companion.dtype import float32
from companion.layers import Linear, Module, Sequential, parameter
from companion.losses import bce_with_logits
from companion.milestones.report import run
from companion.milestones.xor import (
    bits, loss_of, milestone, network, parity, right, taught)
from companion.tensor import Tensor
from companion.tensor.creation import ones, zeros
from companion.tensor.random import manual_seed, rand


def folded():
    """Two rectifiers that fold the square, and a cut behind them."""
    net = Sequential(Linear(2, 2), Tensor.relu, Linear(2, 1))
    state = {"layers.0.weight": ones(2, 2),
             "layers.0.bias": Tensor([0.0, -1.0]),
             "layers.2.weight": Tensor([[1.0, -2.0]]),
             "layers.2.bias": Tensor([-0.5])}
    net.load_state_dict(state)
    return net


class Crowd(Module):
    """n networks of one shape, side by side along the first axis."""

    def __init__(self, n, inputs, width, bend=Tensor.tanh):
        def draw(rows, columns):
            bound = math.sqrt(6 / (rows + columns))
            return parameter((rand(n, rows, columns) * 2 - 1) * bound)

        self.bend = bend
        self.first, self.shift = draw(inputs, width), zeros(n, 1, width)
        self.second, self.offset = draw(width, 1), zeros(n, 1, 1)
        parameter(self.shift), parameter(self.offset)

    def forward(self, x):
        hidden = self.bend(x @ self.first + self.shift)
        return hidden @ self.second + self.offset


def each_loss(crowd, x, t):
    scores = crowd(x)
    losses = bce_with_logits(scores, t.expand(*scores.shape),
                             reduction="none")
    return losses.mean((1, 2))


def test_the_milestone_is_reached():
    assert milestone().passed


def test_no_cut_gives_parity_and_folding_does():
    x, t = bits(2), parity(bits(2))
    assert t.tolist() == [[0.0], [1.0], [1.0], [0.0]]
    for a, c, b in product(np.linspace(-2, 2, 9), repeat=3):
        line = Linear(2, 1)
        line.load_state_dict({"weight": Tensor([[a, c]], float32),
                              "bias": Tensor([b], float32)})
        assert right(line, x, t) <= 3
    assert right(folded(), x, t) == 4


def test_the_best_line_says_one_half():
    manual_seed(3)
    run = taught(Linear(2, 1), bits(2), parity(bits(2)), steps=200)
    assert abs(run.history[-1]["loss"] - math.log(2)) < 1e-4
    assert right(run.model, bits(2), parity(bits(2))) <= 3


def member(crowd, i):
    """Network i of a crowd, built from ordinary layers."""
    first, shift, second, offset = [p.detach()[i]
                                    for p in crowd.parameters()]
    net = network(first.shape[0], first.shape[1])
    net.load_state_dict({
        "layers.0.weight": first.T, "layers.0.bias": shift.reshape(-1),
        "layers.2.weight": second.T, "layers.2.bias": offset.reshape(1)})
    return net


def test_a_crowd_is_many_networks():
    x, t = bits(3), parity(bits(3))
    manual_seed(0)
    crowd = Crowd(3, 3, 5)
    nets = [member(crowd, i) for i in range(3)]
    each_loss(crowd, x, t).sum().backward()
    for i, net in enumerate(nets):
        loss_of(net, x, t).backward()
        assert np.allclose(net(x).numpy(), crowd(x).numpy()[i], atol=1e-5)
        assert np.allclose(net[0].weight.grad.numpy(),
                           crowd.first.grad.numpy()[i].T, atol=1e-5)


def test_parity_counts_ones():
    rows = [f"{i:b}".count("1") % 2 for i in range(64)]
    assert parity(bits(6)).reshape(-1).tolist() == rows
    assert bits(3).tolist()[6] == [0.0, 1.0, 1.0]


def test_a_report_is_written_whole():
    with tempfile.TemporaryDirectory() as folder:
        report = run("1957", Path(folder) / "new")
        path = Path(folder) / "new" / "1957.json"
        assert json.loads(path.read_text())["value"] == report.value
        assert [p.name for p in path.parent.iterdir()] == ["1957.json"]
