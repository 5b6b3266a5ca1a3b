"""Schedules beside the interpreter, their rows in any order."""

import numpy as np
import pytest

from chapters import test_fusion as page, test_rewriting as programs
from companion import Tensor
from companion.compiler import schedule as compiler
from companion.compiler.graph import interpret, toposort
from companion.compiler.lower import Lowering, as_item, lower
from companion.compiler.schedule import Kernel
from companion.device import CPU
from companion.dtype import bfloat16, float16, float32
from companion.ops import MATMUL


def roots_of(seed):
    """Random programs, from all operations and the left sides of rules."""
    seeds = [*programs.ANYTHING, *[
        rule.left for rule in [*programs.RULES, *programs.INDEX]]]
    rng = np.random.default_rng(seed)
    for root in programs.random_program(rng, seeds):
        halves = {bfloat16, float16} & {n.dtype for n in toposort(root)}
        try:
            interpret([root], CPU)
        except IndexError:
            continue  # a GATHER that is refused
        if not halves:
            yield root


@pytest.mark.parametrize("start", range(0, 240, 24))
def test_random_programs(start):
    for seed in range(start, start + 24):
        roots = [*roots_of(seed)]
        if roots:
            with np.errstate(all="ignore"):
                page.compare(roots, seed)


@pytest.mark.parametrize("name", ["softmax", "layer norm", "gelu MLP"])
def test_named_programs(name):
    page.compare([t.buffer.node for t in page.PROGRAMS[name](page.LAZY)],
                 close=1e-5)


def test_a_read_of_another_row_would_be_found(monkeypatch):
    monkeypatch.setattr(compiler, "is_local", lambda load, made: True)
    x = page.some(6, 6)
    e = x.exp()
    steps = compiler.schedule(*compiler.prepared(
        [t.buffer.node for t in (e, e.T + 1)]))
    assert len(steps) == 1
    with pytest.raises(AssertionError):
        page.compare([t.buffer.node for t in (e, e.T + 1)])


@pytest.mark.parametrize("dtype", [float16, bfloat16], ids=str)
def test_halves_are_added_and_multiplied_as_float32(dtype):
    # Parts of the sum are beyond what a half can be; the whole is not.
    x = Tensor(np.repeat([100.0, -100.0], 4096), dtype, page.LAZY)
    a = page.some(4, 6).to(dtype)
    tensors = [x.sum(), (x + 1).max(), a @ a.T, a.sum(0)]
    nodes = [t.buffer.node for t in tensors]
    for root, expected in zip(compiler.prepared(nodes)[1], (0, 101)):
        (found,) = interpret([root], CPU)
        assert found.array == expected
    page.compare(nodes, close=1e-2)
    order, _ = compiler.prepared(nodes)
    assert {node.dtype for node in order if node.op is MATMUL} == {float32}


def test_what_no_kernel_makes_on_the_way_is_refused():
    x = page.some(4, 6)
    for y in (x.sum(1) + 1, x @ x.T + 1):
        node = y.buffer.node
        with pytest.raises(ValueError, match="expected it in memory"):
            lower(as_item(node), Lowering({x.buffer.node}))


def test_what_is_read_at_many_places_is_stored_now_and_then():
    x = page.some(3, 512)
    y, expected = x, np.cumsum(x.numpy(), 1, np.float64)
    for k in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        y = y + y[:, :-k].pad(((0, 0), (k, 0)))
    steps = page.compare([y.buffer.node], close=1e-4)
    assert max(len(step.scalars) for step in steps) < 600
    np.testing.assert_allclose(y.numpy(), expected, 1e-3, 1e-3)


def test_nothing_and_single_numbers():
    x = page.some(3, 4)
    empty = x[:0]
    tensors = [x.sum(), x.sum() + 1, empty + 1, empty.sum(0), empty.sum()]
    steps = page.compare([t.buffer.node for t in tensors], close=1e-5)
    assert all(isinstance(step, Kernel) for step in steps)


def test_what_a_step_reads_has_an_order():
    x = [page.some(4, 6) + 0 for _ in range(12)]
    found = []
    for tensors in (x, [page.some(4, 6) + 0 for _ in range(12)]):
        nodes = [t.buffer.node.src[0] for t in tensors]
        (step,) = page.steps_of(sum(tensors[1:], tensors[0]))
        found.append([nodes.index(node) for node in step.reads])
    assert found[0] == found[1] and len(found[0]) == 12
