# Tangled from fusion: edit there, `make tangle`. sha256:fc5ecf96c79f
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from companion.compiler.graph import OpNode, interpret
from companion.compiler.lazy import Lazy
from companion.compiler.lower import (
    Index,
    Lowering,
    Scalar,
    Var,
    as_item,
    lower,
)
from companion.compiler.schedule import Step, prepared, schedule
from companion.device import CPU
from companion.dtype import float32
from companion.ops import (
    BUFFER,
    EXPAND,
    FLIP,
    PAD,
    PERMUTE,
    RESHAPE,
    SHRINK,
    Op,
)
from companion.tensor import Tensor

LAZY = Lazy(CPU)


def some(*shape: int) -> Tensor:
    x = np.random.default_rng(0).normal(size=shape)
    return Tensor(x, float32, LAZY)


def steps_of(*tensors: Tensor) -> list[Step]:
    roots: list[Any] = [t.buffer for t in tensors]
    return schedule(*prepared([x.node for x in roots]))


def kinds(*tensors: Tensor) -> list[str]:
    """Of each step: the operations that reach memory."""
    return [" ".join(str(x.op) for x in step.stores)
            for step in steps_of(*tensors)]


def test_softmax_is_one_kernel():
    assert kinds(some(4, 96).softmax(1)) == ["MAX EXP SUM DIV"]
    assert kinds((some(4, 8) @ some(8, 96)).softmax(1)) == [
        "MATMUL", "MAX EXP SUM DIV"]
    # Of columns, a kernel knows no sum before its end.
    assert kinds(some(4, 96).softmax(0)) == ["MAX", "EXP SUM", "DIV"]


def test_what_is_cheap_is_computed_again():
    x, y = [some(4, 64) for _ in range(2)]
    y = y + 1
    a = x * 2
    assert kinds(a.sum(1), a.T + 1) == ["SUM ADD"]
    # Two reads, or an exponential: it had better be stored.
    for b, op in ((x * y, "MUL"), (x.exp(), "EXP")):
        assert kinds(b.sum(1), b.T + 1) == [f"{op} SUM", "ADD"]
    # What is made of a stored value by one cheap operation is not.
    b = x.exp()
    assert kinds(b.sum(1), (b * 2).T + 1, (b * 2).max(1)) == [
        "EXP SUM MAX", "ADD"]


MOVES: dict[Op, Callable[..., Any]] = {
    PERMUTE: lambda rng, s: tuple(rng.permutation(len(s)).tolist()),
    FLIP: lambda rng, s: (int(rng.integers(len(s))),),
    RESHAPE: lambda rng, s: [(*s[::-1],), (math.prod(s),), (1, *s)][
        int(rng.integers(3))],
    SHRINK: lambda rng, s: tuple([(int(n > 3), n, 1 + (n > 4)) for n in s]),
    PAD: lambda rng, s: tuple([(1, 0, 1 + (n < 3)) for n in s]),
    EXPAND: lambda rng, s: (2, *s)}


def found_at(load: Scalar, place: tuple[int, ...]) -> int | None:
    """The address that a load of one element means; None outside."""
    def number(index: Index) -> int:
        return index.const + sum([k * value(var) for var, k in index.terms])

    def value(var: Var) -> int:
        whole = number(var.of) if var.how else place[var.depth]
        return {"": whole, "=": whole, "/": whole // var.by if var.by else 0,
                "%": whole % var.by if var.by else 0}[var.how]
    inside = all(0 <= number(g.place) <= (g.size - 1) * g.step
                 and number(g.place) % g.step == 0 for g in load.arg.guards)
    return number(load.arg.address) if inside else None


def test_an_element_is_found_through_all_movements():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(1, 6, 3).tolist())
        base = OpNode(BUFFER, (), CPU.adopt(np.arange(
            1, math.prod(shape) + 1)))
        node = OpNode(RESHAPE, (base,), shape)
        for op in rng.choice(np.array(list(MOVES), object), 4):
            node = OpNode(op, (node,), MOVES[op](rng, node.shape))
        made = lower(as_item(node), Lowering({base}))
        (expected,) = interpret([node], CPU)
        numbers = []
        for place in np.ndindex((made.item.rows, *made.inner)):
            at = found_at(made.scalar, place)
            numbers.append(0 if at is None else at + 1)
        assert numbers == expected.array.ravel().tolist()
