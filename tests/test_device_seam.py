"""The framework on a device whose memory the host cannot read.

`Far` stands in for a GPU.  Its storage opens windows for its own kernels
alone; whoever else looks into it fails, so that everything outside
`run`, `adopt` and `host` is shown to work on any device.
"""

import pickle
from copy import deepcopy

import numpy as np
import pytest

from companion import (
    Tensor,
    arange,
    cat,
    cross_entropy,
    eye,
    float64,
    full,
    grad,
    gradcheck,
    linspace,
    one_hot,
    rand,
    randint,
    randn,
    stack,
    where,
    zeros,
)
from companion.buffer import Storage
from companion.device import CPU, DEVICES, KERNELS, READERS, Device
from companion.layers import Dropout, LayerNorm, Linear, Sequential
from companion.optim import SGD, Adam, AdamW, RMSprop
from companion.timing import Timed
from companion.training import clip_grad_norm_

DTYPES = [np.float32, np.float16, np.int64, np.int8, np.bool_]


class Locked(Storage):
    """Memory with a lock; a kernel of its device holds the key."""

    is_open = False

    def window(self, view, dtype):
        assert Locked.is_open, "the host looked into the device's memory"
        return super().window(view, dtype)

    @property
    def address(self):
        assert Locked.is_open, "the host asked for the device's address"
        return super().address


def far_memory(shape, dtype):
    """A dense buffer that the host may not look into."""
    buffer = CPU.empty(shape, dtype)
    return type(buffer)(Locked(buffer.storage.memory), buffer.view, dtype)


def opening(kernel):
    """A CPU kernel as one of the far device."""
    def run(out, *src):
        Locked.is_open = True
        try:
            kernel(out, *src)
        finally:
            Locked.is_open = False
            for buffer in (out, *src):
                if hasattr(buffer, "window"):
                    buffer.window = None
    return run


class Far(Device):
    """Another device: memory, kernels and two transfers of its own."""

    name = "far"
    empty = staticmethod(far_memory)
    kernels = {op: opening(kernel) for op, kernel in KERNELS.items()}

    def adopt(self, array):
        return self.carried(CPU.adopt(array), far_memory)

    def host(self, buffer):
        Locked.is_open = True
        try:
            return self.carried(buffer, CPU.empty)
        finally:
            Locked.is_open = False
            buffer.window = None

    @staticmethod
    def carried(source, memory):
        """The elements of a buffer, dense, in memory of another kind."""
        data = np.ascontiguousarray(source.array).reshape(source.shape)
        target = memory(data.shape, source.dtype)
        target.storage.memory[...] = data
        return target


FAR = Far()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(DEVICES, "far", FAR)


def both(function, *arrays):
    """The results of a function on the CPU and far away, as arrays."""
    results = []
    for device in (CPU, FAR):
        found = function(*[Tensor(a, device=device) for a in arrays])
        found = found if isinstance(found, list | tuple) else [found]
        assert all(t.device is device for t in found)
        results.append([t.numpy() for t in found])
    return results


SENTENCES = {
    "arithmetic": lambda x, y: (x - 2 * y) / (y.abs() + 1) ** 2 + x % 3,
    "comparisons": lambda x, y: ((x <= y) | ~(x != 0)).any(0),
    "choices": lambda x, y: where(x > y, x.clamp(-1, 1), 0.5),
    "functions": lambda x, y: (x.exp().log().sin() + y.square().sqrt()).erf(),
    "activations": lambda x, y: x.relu() + y.tanh() + x.softmax(1),
    "folds": lambda x, y: [x.mean(0), y.std(), x.max(1), y.argmax(0)],
    "products": lambda x, y: [x @ y.T, x[0].dot(y[0]), x[0].outer(y[1])],
    "movement": lambda x, y: x.T.reshape(-1).flip(0).reshape(4, 3)[::2, 1:],
    "slices": lambda x, y: [x[1], y[..., ::-2], x[None, :, 2]],
    "gathering": lambda x, y: [x[[2, 0]], y[:, Tensor([1], device=y.device)]],
    "masks": lambda x, y: x[x > 0],
    "joining": lambda x, y: [cat([x, y]), stack([x, y]), x.roll(1, 0)],
    # Of whole numbers: devices add them up in orders of their own.
    "scans": lambda x, y: [(9 * x).floor().cumsum(0), y.prod(1), x.tril(),
                           y.triu(1)],
    "powers": lambda x, y: [x ** 3, 2 ** y, y.abs() ** y, (-x).floor()],
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences(name):
    rng = np.random.default_rng(0)
    near, far = both(SENTENCES[name], *rng.normal(
        size=(2, 3, 4)).astype(np.float32))
    for expected, found in zip(near, far):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ways_in_and_out(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    x, near = Tensor(array, device=FAR), Tensor(array)
    assert repr(x) == repr(near) and x.tolist() == near.tolist()
    assert x[1, 2].item() == near[1, 2].item() and len(x) == 2
    assert np.array_equal(np.asarray(x), array)
    for back in (x.to("cpu"), x.to(CPU), Tensor(array).to("far").to(CPU)):
        assert back.device is CPU and np.array_equal(back.numpy(), array)
    for twin in (deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert twin.device is FAR and isinstance(twin.buffer.storage, Locked)
        assert np.array_equal(twin.numpy(), array)


def test_making_tensors():
    made = [full((2, 3), 7.0, device=FAR), arange(1, 9, 2, device=FAR),
            linspace(0, 1, 5, device=FAR), eye(3, device=FAR),
            one_hot(Tensor([1, 0], device=FAR), 3)]
    here = [full((2, 3), 7.0), arange(1, 9, 2), linspace(0, 1, 5), eye(3),
            one_hot(Tensor([1, 0]), 3)]
    for x, expected in zip(made, here):
        assert x.device is FAR and x.tolist() == expected.tolist()
    for draw in (rand, randn):
        assert draw(3, 2, device=FAR).device is FAR
    dice = randint(1, 7, (50,), device=FAR)
    assert dice.min() == 1 and dice.max() == 6


def test_writing():
    x = full((3, 4), 1.0, device=FAR)
    x[1], x[:, 0] = 2, Tensor([5.0, 6.0, 7.0], device=FAR)
    x[x > 5] = -1
    assert x.tolist() == [[5, 1, 1, 1], [-1, 2, 2, 2], [-1, 1, 1, 1]]


def test_operands_on_two_devices_are_refused():
    far, near = full((2,), 1.0, device=FAR), full((2,), 1.0)
    index, mask = Tensor([0]), Tensor([True, False])
    for meet in (lambda: far + near, lambda: far @ near,
                 lambda: where(mask, far, 0), lambda: far[index],
                 lambda: far.assign(near), lambda: cat([far, near])):
        with pytest.raises(ValueError, match=r"cannot meet; move one with"):
            meet()


def test_memory_of_an_unknown_kind_is_refused():
    class Foreign:
        def __dlpack_device__(self):
            return 99, 0

    with pytest.raises(BufferError, match="to the host first"):
        Tensor.from_dlpack(Foreign())
    assert READERS[1][0] is CPU


@pytest.mark.parametrize("other", [FAR, Timed(CPU)], ids=str)
def test_gradients_move_back(other):
    x = Tensor([1.0, -2.0, 3.0]).requires_grad_()
    there = x.to(other)
    assert there.device is other and there.requires_grad
    (there.square().to(CPU) * Tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad.device is CPU
    assert x.grad.tolist() == [2.0, -40.0, 600.0]
    (first,) = grad(x.to(other).sin().sum(), [x], create_graph=True)
    (second,) = grad(first.sum(), [x])
    np.testing.assert_allclose(second.numpy(), -np.sin(x.numpy()), 1e-5)


@pytest.mark.parametrize("other", [FAR, Timed(CPU)], ids=str)
def test_a_moved_tensor_has_memory_of_its_own(other):
    x = Tensor([1.0, 2.0])
    x.to(other).assign(0)
    assert x.tolist() == [1.0, 2.0]


def model():
    return Sequential(Linear(4, 8), Tensor.relu, LayerNorm(8), Dropout(0.1),
                      Linear(8, 3))


def step(net, optimizer, device, clip=1e9):
    x = Tensor(np.linspace(-1, 1, 20).reshape(5, 4), net[0].weight.dtype,
               device=device)
    t = Tensor([0, 1, 2, 1, 0], device=device)
    net.zero_grad()
    loss = cross_entropy(net.eval()(x), t)
    loss.backward()
    clip_grad_norm_(net.parameters(), clip)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("make", [
    lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda p: RMSprop(p, 0.01), lambda p: Adam(p, 0.01),
    lambda p: AdamW(p, 0.01)])
def test_modules_gradients_and_optimizers_move(make):
    stays = model().to(float64)
    moves = deepcopy(stays)
    near, far = make(stays.parameters()), make(moves.parameters())
    for device in (CPU, FAR, FAR, CPU):
        moves.to(device)
        assert all(p.is_leaf and p.requires_grad and p.device is device
                   for p in moves.parameters())
        assert np.isclose(step(stays, near, CPU), step(moves, far, device))
    moves.to(FAR)
    far.step()  # the gradients have moved along
    near.step()
    for p, q in zip(stays.parameters(), moves.parameters()):
        np.testing.assert_allclose(q.numpy(), p.numpy(), atol=1e-12)


def test_states_are_loaded_where_the_parameters_are():
    near = model()
    far = deepcopy(near).to(FAR)
    trained = Adam(near.parameters())
    step(near, trained, CPU)
    far.load_state_dict(near.state_dict())
    adam = Adam(far.parameters())
    adam.load_state_dict(trained.state_dict())
    assert np.isclose(step(near, trained, CPU), step(far, adam, FAR))
    for p, q in zip(near.parameters(), far.parameters()):
        np.testing.assert_allclose(q.numpy(), p.numpy(), rtol=1e-5)


def test_numpy_arrays_join_a_tensor_wherever_it_is(device):
    beside = np.array([1.0, 2.0], np.float32)
    x = Tensor([3.0, 4.0], device=device)
    for y in (x + beside, beside - x, x / beside, x.maximum(beside),
              where(x > 3, beside, x), x.assign(beside)):
        assert y.device is device
    x *= beside
    x[1:] -= np.float32(1)
    assert x.tolist() == [1, 3]


def test_gradients_are_checked_wherever_the_tensor_is(device):
    x = Tensor([0.5, -1.5], float64, device).requires_grad_()
    weight = np.array([2.0, 3.0])
    gradcheck(lambda x: (x * weight).sin() / (x - 4), x)
    h = x * 2
    h += weight
    h.sum().backward()
    assert x.grad.device is device and x.grad.tolist() == [2, 2]


ROWS = 17_500_000


def test_a_bias_hears_of_every_row():
    bias = Tensor([1.0, 2.0]).requires_grad_()
    bias.expand(ROWS, 2).sum().backward()
    assert bias.grad.tolist() == [ROWS, ROWS]


@pytest.mark.slow
def test_a_row_of_a_table_hears_of_every_use():
    table = Tensor([[1.0], [2.0]]).requires_grad_()
    table[Tensor([1]).expand(ROWS)].sum().backward()
    assert table.grad.tolist() == [[0], [ROWS]]


@pytest.mark.parametrize("place", [0, True, 1.5, None.__class__])
def test_a_device_is_no_number(place):
    with pytest.raises(TypeError, match="expected a device or its name"):
        Tensor([1.0]).to(place)
    with pytest.raises(TypeError, match="expected a device or its name"):
        zeros(2, device=place)


def test_an_axis_is_no_bool():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    for f in (x.std, x.var, x.sum, x.max, x.argmax):
        with pytest.raises(TypeError, match="unbiased=False"):
            f(False)
    assert x.std(unbiased=False).shape == ()
