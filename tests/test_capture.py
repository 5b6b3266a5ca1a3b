"""A device that records a training step and plays it again."""
import copy

import numpy as np
import pytest

from companion.buffer import Buffer, Storage
from companion.device import CPU, MOVE, QUIET, Device
from companion.dtype import float64, int64
from companion.embedding import Embedding, rotary, sinusoidal
from companion.layers import Dropout, Linear, Sequential
from companion.losses import cross_entropy, mse_loss
from companion.ops import ADD, CONST, FLIP, PERMUTE, SUM
from companion.optim import SGD, Adam, AdamW, RMSprop
from companion.sequence import GRU, sample
from companion.tensor import Tensor
from companion.tensor.creation import arange, ones, zeros
from companion.tensor.operands import where
from companion.tensor.random import (
    GENERATOR,
    Generator,
    feed,
    randint,
    randn,
)
from companion.training import clip_grad_norm_
from companion.transformer import GPT, GPTConfig, next_token_loss
from companion.view import View


class Recorder(Device):
    """The CPU, with a memory for what it did and what it was fed."""

    def __init__(self):
        self.name = "recorder"
        self.program = []

    def run(self, op, *src, arg=None):
        out = super().run(op, *src, arg=arg)
        if op not in MOVE and op is not CONST:
            self.program.append(
                lambda: QUIET.copy().run(self.kernels[op], out, *src, arg))
        return out

    def feed(self, numbers):
        fed = super().feed(numbers)

        def again():
            for name, number in numbers().items():
                np.copyto(fed[name].array, number)
        self.program.append(again)
        return fed

    def replay(self):
        for act in self.program:
            act()


def network(device):
    draw = Generator(1)
    net = Sequential(Linear(3, 4), Tensor.tanh, Dropout(0.5, draw),
                     Linear(4, 2))
    for p in net.parameters():
        p.detach().assign(randn(*p.shape, generator=draw))
    return net.to(device), draw


def batches(steps):
    draw = Generator(2)
    return [(randn(5, 3, generator=draw), randn(5, 2, generator=draw))
            for _ in range(steps)]


def train(net, optimizer, x, t):
    optimizer.zero_grad()
    loss = mse_loss(net(x), t)
    loss.backward()
    clip_grad_norm_(net.parameters(), 0.5)
    optimizer.step()


MAKERS = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "rmsprop": lambda p: RMSprop(p, lr=0.01),
    "adam": lambda p: Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_recorded_step_played_again_is_the_next_step(make):
    """Counts, rates and dropout masks go on; nothing is frozen."""
    device = Recorder()
    (net, draw), (twin, other) = network(device), network(CPU)
    optimizer, plain = make(net.parameters()), make(twin.parameters())
    x, t = [b.to(device).clone() for b in batches(1)[0]]
    for i, batch in enumerate(batches(6)):
        for place, values in zip((x, t), batch):
            np.copyto(place.buffer.array, values.numpy())
        for group in (*optimizer.param_groups, *plain.param_groups):
            group["lr"] = 0.1 / (i + 1)
        if i < 2:  # the first step makes the memory, the second is kept
            device.program.clear()
            train(net, optimizer, x, t)
        else:
            device.replay()
        train(twin, plain, *batch)
        for p, q in zip(net.parameters(), twin.parameters()):
            assert np.array_equal(p.numpy(), q.numpy()), i
    assert draw.place == other.place
    counts = [[m["step"] for m in o.state.values()]
              for o in (optimizer, plain)]
    assert counts[0] == counts[1] == [6] * 4


def test_a_step_reads_nothing_from_the_device():
    """What is read would be frozen, and would have to be waited for."""
    device = Recorder()
    net, _ = network(device)
    optimizer = AdamW(net.parameters())
    x, t = [b.to(device) for b in batches(1)[0]]
    train(net, optimizer, x, t)
    device.host = lambda buffer: pytest.fail("a value was read")
    train(net, optimizer, x, t)


def test_a_loss_looks_at_its_labels_on_the_device():
    """Ignored or wrong, what a replay finds is what it then refuses."""
    device = Recorder()
    device.host = lambda buffer: pytest.fail("a value was read")
    x = randn(4, 3, generator=Generator(3)).to(device).requires_grad_()
    t = zeros(4, dtype=int64).to(device).clone()
    device.program.clear()
    loss = cross_entropy(x, t)
    loss.backward()
    for labels in ([2, 0, 1, 2], [-100, 0, -100, 1]):
        np.copyto(t.buffer.array, labels)
        device.replay()
        twin = Tensor(x.buffer.array).requires_grad_()
        expected = cross_entropy(twin, Tensor(labels))
        expected.backward()
        assert loss.buffer.array == expected.numpy()
        assert (x.grad.buffer.array == twin.grad.numpy()).all()
    for wrong in (-1, 3):
        np.copyto(t.buffer.array, wrong)
        with pytest.raises(IndexError, match=f"index {wrong} .* 0 to 2"):
            device.replay()


def test_tokens_and_places_are_read_on_the_device():
    """A replay finds other rows, turns them further, refuses what is not."""
    device = Recorder()
    layer = Embedding(6, 4, padding_idx=0, dtype=float64)
    twin = copy.deepcopy(layer)
    layer.to(device)
    ids, places = [zeros(3, dtype=int64).to(device).clone() for _ in "it"]
    device.host = lambda buffer: pytest.fail("a value was read")

    def loss_of(layer, ids, places):
        rows = layer(ids) + sinusoidal(places, 4, dtype=float64)
        loss = (rotary(rows, places) @ layer.weight.T).square().sum()
        loss.backward()
        return loss

    device.program.clear()
    loss = loss_of(layer, ids, places)
    for tokens, at in (([5, 0, 5], [0, 1, 2]), ([1, 1, 4], [7, 70, 700])):
        np.copyto(ids.buffer.array, tokens)
        np.copyto(places.buffer.array, at)
        device.replay()
        twin.zero_grad()
        expected = loss_of(twin, Tensor(tokens), Tensor(at))
        assert loss.buffer.array == expected.numpy()
        assert np.array_equal(
            layer.weight.grad.buffer.array, twin.weight.grad.numpy())
    np.copyto(ids.buffer.array, [0, -1, 0])
    with pytest.raises(IndexError, match="index -1 .* 0 to 5"):
        device.replay()


def test_a_recurrent_step_is_played_again():
    """Other letters, another state to begin with, other draws."""
    device, draw, twin_draw = Recorder(), Generator(5), Generator(5)
    net = GRU(3, 4, num_layers=2)
    twin = copy.deepcopy(net)
    net.to(device)
    x, h = [zeros(*n).to(device).clone() for n in ((2, 5, 3), (2, 2, 4))]
    device.host = lambda buffer: pytest.fail("a value was read")

    def step(net, x, h, draw):
        net.zero_grad()
        states, last = net(x, h)
        states.square().sum().backward()
        h.assign(last.detach())
        return sample(states[:, -1].detach(), 0.5, draw)

    step(net, x, h, draw)
    step(twin, zeros(2, 5, 3), h_twin := zeros(2, 2, 4), twin_draw)
    device.program.clear()
    drawn = step(net, x, h, draw)
    step(twin, zeros(2, 5, 3), h_twin, twin_draw)
    for seed in range(3):
        letters = randn(2, 5, 3, generator=Generator(seed))
        np.copyto(x.buffer.array, letters.numpy())
        device.replay()
        expected = step(twin, letters, h_twin, twin_draw)
        assert np.array_equal(drawn.buffer.array, expected.numpy())
        assert np.array_equal(h.buffer.array, h_twin.numpy())
        for p, q in zip(net.parameters(), twin.parameters()):
            assert np.array_equal(p.grad.buffer.array, q.grad.numpy())


def test_a_step_of_a_gpt_played_again_is_the_next_step():
    """New tokens, rates and dropout; no value is read, none is frozen."""
    config = GPTConfig(block_size=6, vocab_size=7, n_layer=2, n_head=2,
                       n_embd=8, dropout=0.1)
    device, draw = Recorder(), Generator(5)
    net = GPT(config)
    twin = copy.deepcopy(net)
    net.to(device)
    optimizer, plain = [AdamW(n.parameters(), lr=0.1) for n in (net, twin)]
    host = device.host

    def step(net, optimizer, batch):
        optimizer.zero_grad()
        loss = next_token_loss(net, *batch)
        loss.backward()
        clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        return loss

    batch = [zeros(3, 6, dtype=int64).to(device).clone() for _ in "xy"]
    place = GENERATOR.place
    for i in range(5):
        tokens = randint(0, 7, (2, 3, 6), generator=draw).numpy()
        for own, values in zip(batch, tokens):
            np.copyto(own.buffer.array, values)
        for group in (*optimizer.param_groups, *plain.param_groups):
            group["lr"] = 0.1 / (i + 1)
        GENERATOR.go_to(GENERATOR.seed, place)
        device.host = lambda buffer: pytest.fail("a value was read")
        if i < 2:
            device.program.clear()
            loss = step(net, optimizer, batch)
        else:
            device.replay()
        device.host = host
        after = GENERATOR.place
        GENERATOR.go_to(GENERATOR.seed, place)  # the same dropout
        expected = step(twin, plain, [Tensor(v) for v in tokens])
        assert GENERATOR.place == after
        place = after
        assert loss.item() == expected.item(), i
        for p, q in zip(net.parameters(), twin.parameters()):
            assert np.array_equal(p.numpy(), q.numpy()), i


def test_a_position_that_moves_is_an_operand():
    """A ring of 5 rows: written at a place, read from the last three on."""
    device, clock = Recorder(), iter(range(100))
    ring, row = zeros(5, 2).to(device).clone(), ones(2).to(device).clone()
    rows = arange(5, device=device).reshape(5, 1)

    def act():
        t = feed(lambda: {"t": np.array(next(clock))}, device)["t"]
        ring.assign(where(rows == t % 5, row * t, ring))
        return ring[(t - arange(3, device=device)) % 5]

    act()
    device.program.clear()
    last = act()
    for t in range(2, 12):
        device.replay()
        expected = [[max(t - i, 0)] * 2 for i in range(3)]
        assert last.tolist() == expected, t


class Promise(Buffer):
    """What a device of another kind would hand out."""

    __slots__ = ()


class Planned(Buffer):
    """A window on memory that may lie elsewhere at the next run."""

    __slots__ = ()

    @property
    def array(self):
        return self.storage.window(self.view, self.dtype)


class Plan(Storage):
    """Memory that a plan assigns, and may assign again."""

    @property
    def address(self):
        return self.memory.ctypes.data

    @property
    def bytes(self):
        return self.memory.view(np.uint8)


@pytest.mark.parametrize("n", [6, 1 << 16])  # by NumPy and by C
def test_memory_may_be_planned_again(n):
    storage = Plan(np.ones(n))
    x = Planned(storage, View.dense((n,)), float64)
    assert CPU.run(ADD, x, x).array[0] == CPU.run(SUM, x, arg=(0,)).array / (
        n / 2)
    storage.memory = np.full(n, 2.0)
    turned = CPU.run(FLIP, x, arg=(0,))
    assert CPU.run(ADD, x, turned).array[0] == 4
    assert CPU.run(SUM, x, arg=(0,)).array == 2 * n


def test_a_buffer_of_another_kind_stays_what_it_is():
    storage = Storage(np.arange(6.0))
    buffer = Promise(storage, View.dense((2, 3)), float64)
    turned = CPU.run(PERMUTE, buffer, arg=(1, 0))
    copied = copy.deepcopy(turned)
    assert type(turned) is type(copied) is Promise
    assert copied.array.tolist() == [[0, 3], [1, 4], [2, 5]]
