"""The lazy device beside the CPU: writes, gradients, optimizers, threads."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from companion import (
    SGD,
    Adam,
    AdamW,
    Dropout,
    LayerNorm,
    Linear,
    RMSprop,
    Sequential,
    Tensor,
    cross_entropy,
    float64,
    manual_seed,
    rand,
    realize,
)
from companion.compiler.draw import draw
from companion.compiler.graph import NODES, OpNode, interpret, toposort
from companion.compiler.lazy import Lazy
from companion.device import CPU, named
from companion.dtype import DTYPES, float32, uint8
from companion.ops import BUFFER, CAST, CONST, WRITE
from companion.timing import Timed
from companion.training import clip_grad_norm_

LAZY = named("lazy")

# ----------------------------------------------------------------- writes


@st.composite
def movement(draw, shape):
    """One method that may move a tensor of `shape`, and what it makes."""
    kind = draw(st.sampled_from(["index", "permute", "flip", "reshape",
                                 "repeat"]))
    if kind == "index":
        entries = [draw(st.slices(n)) if draw(st.booleans()) or n == 0
                   else draw(st.integers(-n, n - 1)) for n in shape]
        return lambda x: x[tuple(entries)]
    if kind == "permute":
        order = draw(st.permutations(range(len(shape))))
        return lambda x: x.permute(*order) if order else x
    if kind == "flip":
        return lambda x: x.flip(0) if x.shape else x
    if kind == "reshape":
        return lambda x: x.reshape(-1) if x.size else x
    n = draw(st.integers(1, 3))
    at = draw(st.integers(0, n - 1))
    return lambda x: x.expand(n, *x.shape)[at]


def moved(data, x, times):
    """The same chain of movements, as a function and carried out."""
    chain = []
    for _ in range(times):
        move = data.draw(movement(x.shape))
        chain.append(move)
        x = move(x)
    return chain


@settings(max_examples=60)
@given(st.data(), st.sampled_from(sorted(DTYPES)), st.integers(0, 4))
def test_writes_through_views_are_those_of_the_cpu(data, name, times):
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    values = np.arange(math.prod(shape)).reshape(shape) % 2
    near = Tensor(values, DTYPES[name])
    far = near.to(LAZY)
    for _ in range(2):
        chain = moved(data, near, times)
        results = []
        for x in (near, far):
            part, before = x, x.clone()
            for move in chain:
                part = move(part)
            version = x.buffer.storage.version
            part.assign(part == 0)
            # A RESHAPE may have copied: then the write is the copy's.
            written = x.buffer.storage.version - version
            results.append([part, x, before, written])
        for a, b in zip(*results):
            if isinstance(a, int):
                assert a == b
            else:
                assert a.dtype is b.dtype
                np.testing.assert_array_equal(b.numpy(), a.numpy())


def test_a_write_to_other_shapes_or_dtypes_changes_nothing():
    x = Tensor([1.0, 2.0], device=LAZY)
    for value in (Tensor([1.0], device=LAZY), Tensor([1, 2], device=LAZY)):
        with pytest.raises((TypeError, ValueError), match="WRITE"):
            Tensor.apply(WRITE, x, value)
    assert x.buffer.storage.version == 0 and x.tolist() == [1, 2]


def test_signs_of_zero_and_kinds_of_one():
    x = Tensor([1.0], device=LAZY)
    assert (x / (x * 0)).item() == math.inf
    assert (x / (x * -0.0)).item() == -math.inf
    assert str((x > 0) & True) == "Tensor([True])"
    nan = x * math.nan
    assert nan.buffer.node is (x * math.nan).buffer.node
    assert (x * 1).buffer.node is (x * True).buffer.node  # both are 1.0


def test_nothing_and_a_number_without_axes():
    none = Tensor(np.ones((0, 3)), device=LAZY)
    none *= 2
    none[:, 1] = 5
    assert none.sum(0).tolist() == [0, 0, 0] and none.shape == (0, 3)
    one = Tensor(2.0, device=LAZY)
    one += 1
    assert one.item() == 3 and one.shape == ()


def test_bytes_lent_out_are_nobodys_but_the_readers():
    x = Tensor([1.0, 2.0], device=LAZY)
    y = x.reshape(2, 1)
    for t in (x, y, x.to(CPU), x + 0):
        t.numpy()[:] = -1
    assert x.tolist() == [1, 2] and y.tolist() == [[1], [2]]


# -------------------------------------------------------------- gradients


def test_a_value_that_was_overwritten_is_told():
    x = Tensor([1.0, 2.0], device=LAZY).requires_grad_()
    y = x * 2
    z = y.exp().sum()
    y.detach().assign(0)
    w = (y.detach() * x).sum()
    w.backward()
    with pytest.raises(RuntimeError, match="was written to"):
        (y * y).sum().backward()
    z.backward()
    assert np.allclose(x.grad.numpy(), 2 * np.exp([2.0, 4.0]))


def network(device):
    manual_seed(7)
    net = Sequential(Linear(4, 8), Tensor.tanh, LayerNorm(8), Dropout(0.2),
                     Linear(8, 3))
    return net.to(device)


MAKERS = {
    "sgd": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: RMSprop(p, 0.01),
    "adam": lambda p: Adam(p, 0.01),
    "adamw": lambda p: AdamW(p, 0.01),
}


def run(device, make, steps, look):
    """Losses and parameters after so many steps."""
    net, losses = network(device), []
    optimizer = make(net.parameters())
    for _ in range(steps):
        x = rand(5, 4, device=device)
        t = Tensor([0, 1, 2, 1, 0], device=device)
        net.zero_grad()
        loss = cross_entropy(net(x), t)
        loss.backward()
        clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        look(losses)
    realize(*losses, *net.parameters())
    return [t.numpy() for t in (*losses, *net.parameters())]


@pytest.mark.parametrize("look", [
    lambda losses: None,  # a program of all steps
    lambda losses: losses[-1].item(),
    lambda losses: realize(*losses)])
@pytest.mark.parametrize("name", MAKERS)
def test_optimizers_step_as_on_the_cpu(name, look):
    expected = run(CPU, MAKERS[name], 4, look)
    found = run(LAZY, MAKERS[name], 4, look)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-6)


# --------------------------------------------------- graphs and the device


def test_what_nobody_reads_is_not_computed():
    counted = Timed(CPU)
    device = Lazy(counted)
    x = Tensor([1.0, 2.0], device=device)
    x.exp().log()
    y = x + 1
    x *= 2
    assert [op for op, *_ in counted.calls if op is not CONST] == []
    assert y.tolist() == [2, 3]
    assert not any(op is WRITE for op, *_ in counted.calls)


def test_a_loop_that_reads_its_loss_computes_each_step_once():
    counted = Timed(CPU)
    device = Lazy(counted)
    net, calls = network(device), []
    optimizer = AdamW(net.parameters(), 0.01)
    for _ in range(6):
        loss = cross_entropy(net(rand(5, 4, device=device)),
                             Tensor([0, 1, 2, 1, 0], device=device))
        net.zero_grad()
        loss.backward()
        optimizer.step()
        counted.calls.clear()
        loss.item()
        calls.append(len(counted.calls))
    # The second makes what is kept of the first; from then on all alike.
    assert calls[2] == calls[3] == calls[4] == calls[5]


def test_a_graph_outlives_its_tensors_no_longer_than_needed():
    x = Tensor(np.ones(8), device=LAZY)
    before = len(NODES)
    y = x + 1
    for _ in range(1000):
        y = y * y - y
    del y
    assert len(NODES) < before + 10


def test_a_long_loop_that_reads_nothing():
    x = Tensor([0.0], device=LAZY)
    for _ in range(10_000):
        x = x + 1
    deep = x.buffer.node
    assert len(toposort(deep)) == 10_003  # and a leaf, a one, its EXPAND
    assert x.item() == 10_000 and x.buffer.node is not deep


def test_one_graph_on_two_devices():
    two = Lazy(CPU)
    a, b = [Tensor(2.0, device=device) for device in (LAZY, two)]
    with pytest.raises(ValueError, match="cannot meet"):
        a + b
    assert (a + 1).item() == (b + 1).item() == 3
    assert str(two) == "lazy" and str(Lazy(Timed(CPU))) == "lazy timed cpu"


def test_an_error_while_reading_leaves_the_promise():
    x = Tensor([1.0, 2.0], device=LAZY)
    at = Tensor([5], device=LAZY)
    wrong, right = x[at], x[at - 4]
    for _ in range(2):
        with pytest.raises(IndexError, match="index 5 is out of range"):
            realize(right, wrong)
    assert right.item() == 2


def test_a_lazy_model_is_copied_whole():
    net = network(LAZY)
    twin = deepcopy(net)
    for p, q in zip(net.parameters(), twin.parameters()):
        assert q.device is LAZY and np.array_equal(p.numpy(), q.numpy())
        before = p.numpy()
        q.detach().assign(q.detach() - 1)
        assert np.array_equal(p.numpy(), before)


def test_threads_read_and_write_one_tensor():
    x = Tensor(np.zeros(100), device=LAZY)
    start = threading.Barrier(8)

    def work(i):
        start.wait()
        for _ in range(30):
            y = x + i
            assert (y - x).numpy().shape == (100,)
            x[i * 10:(i + 1) * 10] = i
            x.numpy()

    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(work, range(8)))
    numbers = x.numpy()
    assert set(numbers) <= set(map(float, range(8)))


def test_the_emulated_card_computes_lazily():
    device = Lazy(named("emulated"))
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    x[0] *= 10
    assert (x @ x).tolist() == [[160, 280], [42, 76]]
    assert str(device) == "lazy emulated"


def test_a_copy_is_an_operation_of_its_own():
    x = OpNode(BUFFER, (), CPU.adopt(np.arange(6.0).reshape(2, 3).T))
    copy = OpNode(CAST, (x,), float64)
    found, leaf = interpret([copy, x], CPU)
    assert found.view.is_dense and found is not leaf
    assert toposort(copy) == [x, copy]


def test_a_constant_that_does_not_fit_is_refused_at_once():
    with pytest.raises(OverflowError, match="300 does not fit uint8"):
        LAZY.run(CONST, arg=(300, uint8, (2,)))
    assert LAZY.run(CONST, arg=(3, float32, ())).node.shape == ()


def test_a_number_is_one_node_however_it_is_written():
    x = Tensor([1.0, 2.0], float32, LAZY)
    one, *others = [(x * n).buffer.node for n in (1, 1.0, np.float32(1))]
    assert others == [one, one]
    assert (x * 0.1).buffer.node is (x * float(np.float32(0.1))).buffer.node
    assert (x * 0.0).buffer.node is not (x * -0.0).buffer.node
    assert draw((x * 0.1).buffer.node).count(">0.1<") == 1
