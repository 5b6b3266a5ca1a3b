# Tangled from graphs: edit there, `make tangle`. sha256:e6773627c415
from __future__ import annotations

import math
import pickle
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np

from companion.compiler.draw import columns, draw, rows, steps
from companion.compiler.graph import (
    INTERNING, NODES, OpNode, constant, interpret, toposort)
from companion.compiler.lazy import Lazy
from companion.device import CPU, DEVICES, Device
from companion.dtype import DTYPES, bool_, float32, float64, int64, uint8
from companion.layers import LayerNorm
from companion.literate import message
from companion.ops import ADD, BUFFER, CONST, EXP, EXPAND, IOTA, SUM
from companion.tensor import Tensor, leaf
from companion.tensor.creation import arange, full
from companion.tensor.operands import where
from companion.view import View


def test_equal_nodes_are_one_node():
    values = [0.0, -0.0, False, 0, 1.0, True, 1, math.nan, math.inf]
    nodes = [OpNode(CONST, (), (v, float32, ())) for v in values]
    assert len(set(nodes)) == len(values)
    assert [OpNode(CONST, (), (v, float32, ())) for v in values] == nodes
    assert constant(math.nan, float64) is not constant(math.nan, float32)
    pair = OpNode(ADD, (nodes[0], nodes[4]))
    assert OpNode(ADD, (nodes[0], nodes[4])) is pair
    assert OpNode(ADD, (nodes[4], nodes[0])) is not pair
    assert OpNode(EXPAND, (pair,), (2,)).shape == (2,)
    assert pickle.loads(pickle.dumps(pair)) is deepcopy(pair) is pair


def test_a_constant_is_what_its_dtype_has():
    one = constant(1, float32)
    assert constant(1.0, float32) is constant(True, float32) is one
    assert type(one.arg[0]) is float
    assert constant(0.1, float32) is constant(np.float32(0.1), float32)
    assert constant(1, int64) is not one
    assert constant(True, bool_) is constant(1, bool_)
    assert constant(-0.0, float32) is not constant(0, float32)
    assert constant(-0.0, int64) is constant(0, int64)
    assert constant(1e300, float32) is constant(math.inf, float32)
    assert constant(2, float32, (3,)).src == (constant(2.0, float32),)
    for dtype in DTYPES.values():
        for number in (0, 1, 1.0, True, 0.1, 100, -0.0):
            held, given = [CPU.run(CONST, arg=arg).array for arg in (
                constant(number, dtype).arg, (number, dtype, ()))]
            assert held.tobytes() == given.tobytes()


def test_memory_is_one_leaf_where_place_and_view_are_one():
    x = CPU.adopt(np.arange(6.0))
    leaf = OpNode(BUFFER, (), x)
    assert OpNode(BUFFER, (), x.moved(x.view)) is leaf
    assert OpNode(BUFFER, (), x.moved(View.dense((2, 3)))) is not leaf
    assert OpNode(BUFFER, (), CPU.adopt(np.arange(6.0))) is not leaf


def test_depth_is_no_matter():
    y = OpNode(IOTA, (), 2)
    before = len(NODES)
    for _ in range(100_000):
        y = OpNode(ADD, (y, y))
    (value,) = interpret([y], CPU)
    assert value.array.tolist() == [0, 0]  # 2 ** 100,000 in 64 bits
    assert len(toposort(y)) == 100_001
    del y
    assert len(NODES) < before + 1_000


def test_a_value_is_kept_until_its_last_reader():
    x = OpNode(BUFFER, (), CPU.adopt(np.ones(1 << 17)))
    y, sums = x, []
    for _ in range(16):
        y = OpNode(EXP, (y,))
        sums.append(OpNode(SUM, (y,), (0,)))
    tracemalloc.start()
    found = interpret([*sums, sums[3], x], CPU)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5 << 20  # of sixteen values of 1 << 20
    assert found[3] is found[-2] and found[-1] is x.arg


def programs(device: Device) -> list[Tensor]:
    """Numbers of all kinds, by every family of words."""
    x = Tensor(np.linspace(-2, 2, 12).reshape(3, 4), float32, device)
    x.requires_grad_()
    y = (x.softmax(1) @ x.T).tanh() + x.std()
    y[:, 1:].sum().backward()
    with_writes = x.detach().clone()
    with_writes[1:, ::-2] *= 3
    with_writes.T[0] = with_writes[:, 3]
    picked = x.detach()[Tensor([2, 0, 2], device=device)]
    return [y.detach(), x.grad, with_writes, picked, picked.cumsum(0),
            where(x.detach() > 0, 1 / x.detach(), -math.inf),
            arange(5, device=device), full((2, 0), 1.0, device=device).sum()]


def test_the_library_runs_as_on_the_cpu():
    device = Lazy(CPU)
    for found, expected in zip(programs(device), programs(CPU)):
        assert found.device is device and found.dtype is expected.dtype
        assert np.array_equal(found.numpy(), expected.numpy())
        assert str(found) == str(expected)


def test_what_is_brought_begins_at_a_line():
    for shape in ((), (0, 3), (3,), (5, 7)):
        x = np.ones(shape, np.float32).T
        held = Tensor(x, device=Lazy(CPU)).buffer.node.arg
        assert held.view.is_dense
        assert held.address % 64 == 0 or x.size == 0
        assert np.array_equal(held.array, x)


def test_a_write_is_a_new_value():
    x = Tensor([1.0, 2.0, 3.0, 4.0], device=Lazy(CPU))
    before, alias = x + 0, x.detach()
    x += 1
    x[1:3] *= 10
    x[0] = x[3]
    assert before.tolist() == [1, 2, 3, 4]
    assert alias.tolist() == x.tolist() == [5, 30, 40, 5]
    numbers = x.numpy()
    numbers[:] = 0
    assert x.tolist() == [5, 30, 40, 5]
    source = np.array([1.0, 2.0])
    y = Tensor(source, device=x.device)
    source[:] = 0
    assert y.tolist() == [1, 2]


def test_a_write_by_way_of_one_repeat():
    for cut in (lambda x: x.expand(3, 4)[1],
                lambda x: x.expand(3, 4).expand(2, 3, 4).reshape(6, 4)[5],
                lambda x: x.reshape(2, 2).unsqueeze(1).expand(2, 3, 2)[:, 2],
                lambda x: x.expand(3, 4).flip((0, 1))[2, 1:],
                lambda x: x.unsqueeze(1).expand(4, 0)):
        found = []
        for device in (CPU, Lazy(CPU)):
            x = Tensor([1.0, 2.0, 3.0, 4.0], device=device)
            part = cut(x)
            part.assign(part * -10)
            found.append(x.tolist())
        assert found[0] == found[1]


def test_copies_of_promises_have_values():
    here = DEVICES.setdefault("lazy", Lazy(CPU))  # pickles go by name
    x = Tensor([1.0, 2.0, 3.0], device=here) * 2
    pair = [x, x[1:]]
    for twin, part in (deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        part.assign(0)
        assert twin.tolist() == [2, 0, 0] and twin.device is x.device
    assert x.tolist() == [2, 4, 6]


def test_what_a_promise_refuses():
    x = Tensor([1.0], device=Lazy(CPU))
    for look in (lambda: x.buffer.array, lambda: x.buffer.address,
                 x.__dlpack__, lambda: np.from_dlpack(x)):
        assert "there is no memory yet" in message(look, BufferError)
    assert "300 does not fit" in message(
        lambda: x.device.run(CONST, arg=(300, uint8, (2,))), OverflowError)
    fixed = leaf(CONST, (1.0, float32, (1,)), x.device)
    assert "clone the tensor" in message(
        lambda: fixed.assign(x), ValueError)


def test_threads_share_their_nodes():
    with INTERNING:  # as where garbage is collected inside
        assert constant(17.0, float32) is constant(17, float32)

    def build(_: int) -> list[OpNode]:
        x = OpNode(IOTA, (), 3)
        for step in range(300):
            x = OpNode(ADD, (x, constant(step, int64, (3,))))
        return toposort(x)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as crowd:
            first, *others = crowd.map(build, range(8))
    finally:
        sys.setswitchinterval(usual)
    assert all(order == first for order in others)


def test_a_graph_is_let_go():
    device = Lazy(CPU)
    x = Tensor(np.ones(1 << 16), device=device)
    before = len(NODES)
    tracemalloc.start()
    for _ in range(40):
        x = x + 1
        assert x[0].item() > 1
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(NODES) < before + 10 and len(device.known) < 10
    assert most < 4 << 20  # a few values of 1 << 19 bytes


def test_a_picture_has_a_circle_for_each_node():
    x = Tensor(np.ones((2, 4)), device=Lazy(CPU))
    node = LayerNorm(4).to(x.device).to(float64)(x).buffer.node
    picture, table = draw(node), rows(node)
    assert picture.count("<circle") == len(toposort(node))
    assert table[0] == [node] and all(
        len(set(at.values())) == len(at) for at in columns(table))
    for row, nodes in enumerate(table):
        assert row == 0 or all(steps(table, row, n) for n in nodes)
