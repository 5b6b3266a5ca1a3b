# Tangled from codegen: edit there, `make tangle`. sha256:4354f3f6e513
from __future__ import annotations

import math
from typing import Any

import numpy as np

from companion.compiler.lazy import Lazy
from companion.compiler.loops import Loops
from companion.compiler.program import arena, compile_graph
from companion.compiler.render import C_CODE, Writer
from companion.compiler.schedule import Call, prepared, schedule
from companion.device import CPU
from companion.dtype import float32
from companion.literate import message
from companion.native import POOL, CompileError, set_threads
from companion.ops import EXP
from companion.tensor import Tensor
from companion.tensor.operands import where


def test_a_patch_writes_where_its_mask_holds():
    draw, lazy = np.random.default_rng(0), Lazy(CPU)
    w, v = [Tensor(draw.random((6, 4)), device=lazy) for _ in "wv"]
    mask = Tensor(np.arange(6) % 2 == 0, device=lazy).unsqueeze(1)
    asked = [where(mask, v, w), where(mask, w, v), w @ v.T]
    roots = [t.buffer.node for t in asked]
    want = [np.array(t.numpy()) for t in asked]
    program = compile_graph(roots, {0: w.buffer.node, 1: v.buffer.node})
    assert isinstance(program.steps[0], Call)  # the product goes first
    assert len(program.plan.patched) == 2 and not program.plan.copies
    for found, wanted in zip(program(), want):
        assert np.allclose(found.array, wanted)


def test_what_reads_a_patch_comes_behind_it():
    w = Tensor(np.random.default_rng(0).random((6, 4)), device=Lazy(CPU))
    new = where(w < 0.5, w + 1, w)
    asked = [new, new @ new.T, new.exp()]
    roots = [t.buffer.node for t in asked]
    want = [np.array(t.numpy()) for t in asked]
    program = compile_graph(roots, {0: w.buffer.node})
    assert program.plan.copies and not program.plan.patched
    for found, wanted in zip(program(), want):
        assert np.allclose(found.array, wanted)


def results(*tensors: Tensor) -> list[np.ndarray]:
    """Of a program compiled for the occasion."""
    found: list[Any] = [t.buffer for t in tensors]
    return [x.array for x in compile_graph([x.node for x in found])()]


def test_a_program_computes_what_the_graph_means():
    x = Tensor(np.arange(24.0).reshape(4, 6) - 7, float32, Lazy(CPU))
    values = [x.softmax(1), x @ x.T, x.max(0), x[::2, 1:], x.std(1),
              x[Tensor([1, 1, -1], device=x.device)], (x * 0.3).erf(),
              x.flip((0, 1)).T.reshape(3, 8), x.cumsum(1), x > 0]
    for found, t in zip(results(*values), values):
        assert found.dtype == t.dtype.numpy
        assert np.allclose(found, t.numpy(), rtol=1e-5, atol=1e-6)


def test_nan_and_infinity_stay_what_they_are():
    x = Tensor([[0.0, math.inf, 1.0], [math.nan, 3.0, -math.inf],
                [-math.inf, -math.inf, 2.0]], float32, Lazy(CPU))
    values = [x.max(1), x.max(0), x.sum(1), x.exp(), x.maximum(x.T),
              1 / x, x < 1, x.softmax(1), x.erf(), x == x]
    for found, t in zip(results(*values), values):
        assert np.allclose(found, t.numpy(), equal_nan=True)
    # A masked weight is 0, and no small number.
    assert results(x[2:].softmax(1))[0].tolist() == [[0, 0, 1]]


def test_threads_give_the_same_bits():
    x = Tensor(np.random.default_rng(1).normal(size=(3_000, 200)), float32,
               Lazy(CPU))
    sums: list[Any] = [x.sum(0).buffer, x.softmax(1).max(0).buffer]
    program = compile_graph([buffer.node for buffer in sums])
    assert any(Writer(loops).parts > 4
               for loops in program.plan.loops.values())
    usual, found = POOL.threads, []
    try:
        for threads in (1, 2, 3):
            set_threads(threads)
            found.append([b.array.tobytes() for b in program()])
    finally:
        set_threads(usual)
    assert found[0] == found[1] == found[2]


def test_what_waits_for_a_sum_stands_behind_its_loop():
    x = Tensor(np.ones((4, 6)), float32, Lazy(CPU))
    node: Any = x.softmax(1).buffer
    order, roots = prepared([node.node])
    (kernel,) = schedule(order, roots)
    loops = Loops(kernel, set(roots))
    assert [str(node.op) for node in loops.at] == ["MAX", "EXP", "SUM", "DIV"]
    assert list(loops.at.values()) == [0, 1, 1, 2]
    # Only the exponentials are kept for a row, and only the end in memory.
    assert [str(node.op) for node in loops.buffers] == ["EXP"]
    assert [node in roots for node in loops.nodes] == [False, True]


def test_memory_is_used_again():
    offsets, size = arena({"a": (64, 0, 1), "b": (64, 1, 2), "c": (64, 2, 3),
                           "d": (128, 3, 3)})
    assert size == 192
    for one, other in (("a", "b"), ("b", "c"), ("c", "d")):
        assert offsets[one] != offsets[other]


def test_live_spans_do_not_meet_in_the_arena():
    rng = np.random.default_rng(0)
    for _ in range(30):
        first = rng.integers(0, 20, 40)
        last = first + rng.integers(0, 6, 40)
        spans = {i: (int(rng.integers(1, 5_000)), int(first[i]), int(last[i]))
                 for i in range(40)}
        offsets, size = arena(spans)
        for i, (n, begin, end) in spans.items():
            assert offsets[i] % 64 == 0 and offsets[i] + n <= size
            for j, (m, start, over) in spans.items():
                if i != j and begin <= over and start <= end:
                    assert offsets[i] + n <= offsets[j] or (
                        offsets[j] + m <= offsets[i])


def test_a_refusal_names_the_operations():
    x = Tensor(np.ones((4, 6)), float32, Lazy(CPU))
    both: list[Any] = [(x @ x.T).exp().buffer, (x.sum(0) * 2).buffer]
    right, C_CODE[EXP] = C_CODE[EXP], "{0} -"
    try:
        said = message(lambda: compile_graph([b.node for b in both]),
                       CompileError)
    finally:
        C_CODE[EXP] = right
    assert said.startswith(
        "the kernel of OpNode(EXP, float32, (4, 4)), line ")
    assert "SUM" not in said and "\n" not in said
    compile_graph([b.node for b in both])()
