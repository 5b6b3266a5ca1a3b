"""Rewriting: real programs, threads, memory, and two rules that meet."""

import gc
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from companion import (
    AdamW,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    RMSNorm,
    Sequential,
    Tensor,
    cross_entropy,
    manual_seed,
)
from companion.compiler.graph import (
    NODES,
    OpNode,
    constant,
    interpret,
    toposort,
)
from companion.compiler.index import INDEX, bounds
from companion.compiler.lazy import Lazy
from companion.compiler.rewrite import filled, rewrite, rule
from companion.compiler.rules import RULES, i, x
from companion.device import CPU, Device
from companion.dtype import bool_, float32, int8, int64
from companion.ops import (
    ADD,
    BUFFER,
    GATHER,
    IOTA,
    MUL,
    RESHAPE,
    SHRINK,
    WHERE,
)


class Ordered(Device):
    """Kernels that see no strides: a sum's order is the graph's alone."""

    def run(self, op, *src, arg=None):
        return super().run(op, *[each.dense() for each in src], arg=arg)


def same(old, new):
    """Whether both compute the same bits; any NaN is any other."""
    def bits(buffer):
        array = np.array(buffer.array)
        if buffer.dtype.is_float:
            array[np.isnan(array)] = math.nan
        return buffer.shape, buffer.dtype, array.tobytes()
    before, after = [[*map(bits, interpret(roots, Ordered()))]
                     for roots in (old, new)]
    return before == after


def some(*shape):
    return np.random.default_rng(0).normal(size=shape)


def rows(device):
    return Tensor(some(6, 8), float32, device)


PROGRAMS = {
    "layers": (lambda: Sequential(Linear(8, 8), LayerNorm(8), Dropout(0.5),
                                  RMSNorm(8)), rows),
    "attention": (lambda: MultiHeadAttention(8, 2), lambda device: Tensor(
        some(2, 3, 8), float32, device)),
    "embedding": (lambda: Embedding(5, 8), lambda device: Tensor(
        [[0, 4], [2, 2]], device=device)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_means_what_it_meant(name):
    make, given = PROGRAMS[name]
    device = Lazy(CPU)
    manual_seed(0)
    model = make().to(device)
    optimizer = AdamW(model.parameters(), 1e-2)
    for _ in range(2):
        y = model(given(device)).reshape(-1, 8)
        targets = Tensor([0] * y.shape[0], device=device)
        loss = cross_entropy(y, targets) + (y[1:, ::2] ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    roots = [loss.detach().buffer.node,
             *[p.buffer.node for p in model.parameters()]]
    new = rewrite(roots, [*RULES, *INDEX])
    assert len(toposort(*new)) < len(toposort(*roots))
    assert same(roots, new)
    assert rewrite(new, [*RULES, *INDEX]) == new


def leaf(*numbers):
    return OpNode(BUFFER, (), CPU.adopt(np.array(numbers, np.float32)))


def test_the_old_graph_is_let_go():
    node = leaf(1.0, 2.0)
    before = len(NODES)
    old = node
    for n in range(200):
        old = filled(x * 1 + float(n), {x: old})
    (new,) = rewrite([old], RULES)
    assert len(toposort(new)) < len(toposort(old))
    del old
    gc.collect()
    assert len(NODES) - before <= len(toposort(new)) + 5


def test_nothing_to_do_is_nothing_new():
    root = filled(x * x + x, {x: leaf(1.0, 2.0)})
    assert rewrite([], RULES) == []
    assert rewrite([root, root], RULES) == [root, root]
    assert rewrite([root], []) == [root]


def test_threads_rewrite_to_the_same_nodes():
    numbers = leaf(1.0, 2.0)

    def tidy(_):
        node = numbers
        for n in range(100):
            node = OpNode(ADD, (node, constant(float(n), float32, (2,))))
            node = OpNode(RESHAPE, (OpNode(RESHAPE, (node,), (1, 2)),), (2,))
        (root,) = rewrite([node], [*RULES, *INDEX])
        return root, bounds(OpNode(IOTA, (), 7))
    with ThreadPoolExecutor(8) as crowd:
        first, *others = crowd.map(tidy, range(8))
    assert all(other == first for other in others)


def test_a_copy_and_its_original_become_one_node():
    """Whoever gives memory to nodes has to give two places to this one."""
    original = Tensor([1.0, 2.0], device=Lazy(CPU))
    roots = [original.buffer.node, original.clone().buffer.node]
    first, second = rewrite(roots, RULES)
    assert roots[0] is not roots[1] and first is second is roots[0]


def test_the_error_of_a_dead_value_dies_with_it():
    """An index out of range in a value that a rule drops is never used."""
    rows, bad = leaf(1.0, 2.0), OpNode(BUFFER, (), CPU.adopt(np.array([7])))
    dead = OpNode(GATHER, (rows, bad), 0)
    yes = constant(True, bool_, (1,))
    root = OpNode(WHERE, (yes, OpNode(SHRINK, (rows,), ((0, 1, 1),)), dead))
    with pytest.raises(IndexError):
        interpret([root], CPU)
    (value,) = interpret(rewrite([root], RULES), CPU)
    assert value.array.tolist() == [1.0]


def test_what_a_rule_returns_is_rewritten_too():
    """An EXPAND of a product: the product is on constants, and folds."""
    row = constant(3.0, float32, (1, 4))
    tall = OpNode(MUL, (row, constant(2.0, float32, (1, 4))))
    (new,) = rewrite([tall], RULES)
    assert new is constant(6.0, float32, (1, 4))


def test_a_rule_that_changes_the_dtype_is_named():
    bad = rule(x * 1, x < x)
    with pytest.raises(TypeError, match=r"rule x \* 1 → x < x: expected "
                                        r"float32 of shape \(1,\)"):
        rewrite([filled(x * 1, {x: leaf(1.0)})], [bad])


def test_a_product_that_wraps_is_no_multiple():
    steps = OpNode(IOTA, (), 100)
    for dtype, kept in ((int64, True), (int8, False)):
        narrow = filled(i.cast(dtype), {i: steps})
        found = filled(i * 4 // 4, {i: narrow})
        (new,) = rewrite([found], [*RULES, *INDEX])
        assert (new is narrow or new is steps) == kept
        assert same([found], [new])
