# Tangled from gpu: edit there, `make tangle`. sha256:53dab6685437
from __future__ import annotations

import copy
from typing import Any

import numpy as np

from companion.cuda import Emulator
from companion.device import CPU
from companion.dtype import int32
from companion.gpu import GPU, prefetch
from companion.literate import message
from companion.ops import (
    ADD, CAST, DIV, EQUAL, ERF, EXP, FLIP, GATHER, IDIV, LESS, LOG, MATMUL,
    MAX, MAXIMUM, MOD, MUL, PAD, PERMUTE, SCATTER, SIN, SQRT, SUB, SUM, WHERE,
    WRITE, Op)
from companion.tensor import Tensor
from companion.tensor.random import Generator


def test_the_same_chance_on_both_devices():
    device = GPU("emulated", Emulator())
    for n in (1, 2, 7, 1000):
        here = Generator(7).uniform((n,))
        there = Generator(7).uniform((n,), device)
        assert here.tolist() == there.tolist()


def test_a_copied_tensor_stays_on_its_device():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]]).to("emulated")
    rows = copy.deepcopy([x, x[1]])
    rows[1].assign(Tensor([7.0, 8.0]).to("emulated"))
    assert rows[0].tolist() == [[1.0, 2.0], [7.0, 8.0]]
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_batches_arrive_in_order_and_whole():
    device = GPU("emulated", Emulator())
    batches = [(Tensor([i, i + 1.0]), Tensor([i])) for i in range(5)]
    for depth in (0, 1, 2, 7):
        found = [[t.tolist() for t in batch]
                 for batch in prefetch(batches, device, depth)]
        assert found == [[t.tolist() for t in batch] for batch in batches]
    here = list(prefetch(batches, "cpu"))
    assert here[4][0].tolist() == [4.0, 5.0] and here[4][0].device is CPU


def test_a_batch_of_something_else_is_refused():
    for device in "cpu", GPU("emulated", Emulator()):
        for batch in {"x": Tensor(1)}, (np.ones(2),), [Tensor(1)]:
            try:
                next(prefetch([batch], device))
            except TypeError as error:
                assert "tuple of tensors, got " in str(error)
            else:
                raise AssertionError("expected an error")


def test_a_batch_is_not_there_before_it_arrived():
    device = GPU("emulated", Emulator())
    tensor, arrive = device.begin(Tensor([1.0, 2.0]))
    tensor.assign(0)
    assert tensor.tolist() == [0.0, 0.0]
    arrive()
    assert tensor.tolist() == [1.0, 2.0]


def both(op: Op, *arrays: np.ndarray, arg: Any = None) -> None:
    """Run `op` here and there, on what is seen through a strange view."""
    found = []
    for device in (CPU, GPU("emulated", Emulator())):
        buffers = [device.adopt(array) for array in arrays]
        turned = device.run(PERMUTE, buffers[0], arg=(1, 0))
        buffers[0] = device.run(FLIP, turned, arg=(1,))
        found.append(device.host(device.run(op, *buffers, arg=arg)).array)
    assert np.allclose(*found, rtol=1e-6), op


def test_every_kernel_agrees_with_the_cpu():
    random = np.random.default_rng(0)
    x, y = random.uniform(0.5, 2, (2, 5, 5)).astype(np.float32)
    index, choice = random.integers(-5, 5, 5), x < y
    for op in (EXP, LOG, SIN, SQRT, ERF):
        both(op, x)
    for op in (ADD, SUB, MUL, DIV, MAXIMUM, LESS, EQUAL, IDIV, MOD, MATMUL):
        both(op, x, y)
    both(WHERE, choice, x, y)
    both(CAST, x, arg=int32)
    both(SUM, x, arg=(0,))
    both(MAX, x, arg=(1,))
    both(PAD, x, arg=((1, 0, 1), (0, 2, 2)))
    both(GATHER, x, index, arg=0)
    both(GATHER, x, abs(index) % 5, arg=1)
    both(SCATTER, x, index, arg=(0, 5))
    both(WRITE, x.copy(), y)


def test_a_large_number_hides_none_of_many_ones():
    """Their sum in float32 would stay at the first, 2 ** 24."""
    x, gpu = np.ones((301, 2), np.float32), GPU("emulated", Emulator())
    x[0] = 2 ** 24
    tall, wide, index = map(gpu.adopt, (x, x.T.copy(), np.zeros(301, int)))
    for op, src, arg in ((SUM, [tall], (0,)), (SUM, [wide], (1,)),
                         (SCATTER, [tall, index], (0, 1))):
        found = gpu.host(gpu.run(op, *src, arg=arg)).array
        assert found.ravel().tolist() == [2.0 ** 24 + 300] * 2, op


def test_a_wrong_index_costs_one_operation_and_not_the_device():
    table = Tensor([[1.0], [2.0]]).to("emulated")
    for wrong in (2, -3):
        row = table[Tensor([wrong]).to("emulated")]
        assert f"index {wrong} " in message(row.numpy, IndexError)
    assert table.sum().item() == 3


def test_operands_must_be_on_one_device():
    x = Tensor([1.0])
    assert ".to(device)" in message(lambda: x + x.to("emulated"))
