# Tangled from launches: edit there, `make tangle`. sha256:bce5621817b1
from __future__ import annotations

from typing import Any

import numpy as np

from companion.compiler.capture import jit
from companion.compiler.launch import LaunchProgram
from companion.compiler.lazy import Lazy
from companion.compiler.program import compile_graph
from companion.compiler.schedule import own
from companion.cuda import Emulator, races, trace
from companion.dtype import float32
from companion.gpu import GPU
from companion.literate import message
from companion.tensor import Tensor


def results(*tensors: Tensor, order: int = 1) -> list[np.ndarray]:
    """Of a program on an emulated card that takes threads in an order."""
    device = GPU("emulated", Emulator(order))
    there: list[Any] = [Tensor(t.numpy(), t.dtype, Lazy(device))
                        for t in tensors]
    x = there[0]
    made: list[Any] = [x.softmax(1).buffer, (x * x).sum(0).buffer,
                       x.max(1).buffer, (x @ x.T).flip(1).buffer,
                       x.std(1).buffer, x[::2, 1:].exp().max(0).buffer]
    program = compile_graph([b.node for b in made], device=device)
    return [device.host(b).array for b in program()]


def test_a_program_of_launches_computes_what_the_graph_means():
    for shape in ((9, 3), (40, 70), (3, 600)):
        x = Tensor(np.random.default_rng(2).normal(size=shape), float32)
        expected = [x.softmax(1), (x * x).sum(0), x.max(1),
                    (x @ x.T).flip(1), x.std(1), x[::2, 1:].exp().max(0)]
        for found, t in zip(results(x), expected):
            assert np.allclose(found, t.numpy(), rtol=1e-5, atol=1e-5)


def test_threads_in_any_order_give_the_same_bits():
    x = Tensor(np.random.default_rng(3).normal(size=(70, 300)), float32)
    expected = [found.tobytes() for found in results(x)]
    for order in (-1, 7):
        assert [f.tobytes() for f in results(x, order=order)] == expected


def test_no_two_threads_meet():
    device = GPU("emulated", Emulator())
    for width in (3, 70, 300):
        values = np.random.default_rng(1).normal(size=(9, width))
        x = Tensor(values, float32, Lazy(device))
        e: Any = x.exp()
        turned: Any = e.flip(1) + x.sum(1, keepdim=True)
        program = compile_graph([e.buffer.node, turned.buffer.node],
                                device=device)
        assert isinstance(program, LaunchProgram)
        room = {node: np.array(device.host(program.buffer(own(node))).array)
                for loops in program.plan.loops.values()
                for node in loops.nodes}
        for launches in program.code.launches.values():
            for one in launches:
                told = [room[x] for x in one.told]
                seen = trace(program.compiled, one.kernel, one.grid,
                             one.block, *told)
                assert len(races(seen)) == 0


def test_a_wrong_index_changes_nothing():
    device = Lazy(GPU("emulated", Emulator()))
    w = Tensor([1.0, 2.0, 3.0], float32, device)
    step = jit(lambda i: w.assign(w + w[i].sum()), device)
    for _ in range(3):
        step(Tensor([0]))
    before = w.tolist()
    assert "is out of range" in message(
        lambda: step(Tensor([5])), IndexError)
    assert w.tolist() == before
    step(Tensor([0]))
    assert w.tolist() != before
