# Tangled from rewriting: edit there, `make tangle`. sha256:2675d5330ab2
"""The arithmetic of indices: how large they get, and what is equal."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from companion.compiler.graph import OpNode, toposort
from companion.compiler.rewrite import later, rule, value
from companion.compiler.rules import c, d, folded, i, j
from companion.device import MOVE
from companion.dtype import DType, bool_
from companion.ops import ADD, CAST, CONST, IDIV, IOTA, MOD, MUL, SUB, Op

Bounds = tuple[float, float]  # whole numbers, or infinite


def corners(function: Callable[[Any, Any], Any]) -> Callable[..., Bounds]:
    """The bounds of what grows, or falls, with each operand."""
    def bound(_: OpNode, *ends: Bounds) -> Bounds:
        found = [function(k, m) for k, m in product(*ends)]
        return min(found), max(found)
    return bound


def quotient(node: OpNode, k: Bounds, m: Bounds) -> Bounds:
    known = m[0] == m[1] > 0
    return (k[0] // m[0], k[1] // m[0]) if known else limits(node.dtype)


def remainder(node: OpNode, k: Bounds, m: Bounds) -> Bounds:
    if not m[0] == m[1] > 0:
        return limits(node.dtype)
    return k if k[0] >= 0 and k[1] < m[0] else (0, m[0] - 1)


def limits(dtype: DType) -> Bounds:
    """The least and the greatest number of a dtype."""
    if dtype.kind in "iu":
        return np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max
    return (0, 1) if dtype is bool_ else (-math.inf, math.inf)


BOUNDS: dict[Op, Callable[..., Bounds]] = {
    CONST: lambda node: (value(node), value(node)),
    IOTA: lambda node: (0, max(node.arg - 1, 0)),
    ADD: corners(operator.add), SUB: corners(operator.sub),
    MUL: corners(operator.mul), IDIV: quotient, MOD: remainder}
BOUNDS |= {op: lambda node, k: k for op in (CAST, *MOVE)}

KNOWN: WeakKeyDictionary[OpNode, Bounds] = WeakKeyDictionary()


def bounds(node: OpNode) -> Bounds:
    """The least and the greatest that an element may be."""
    for each in toposort(node, known=KNOWN):
        if each not in KNOWN:
            KNOWN[each] = ideal(each) if in_range(each) else limits(each.dtype)
    return KNOWN[node]


def ideal(node: OpNode) -> Bounds:
    """The bounds of a result, if its dtype had room for all numbers."""
    if node.op not in BOUNDS or node.dtype.is_float:
        return limits(node.dtype)
    return BOUNDS[node.op](node, *[KNOWN[x] for x in node.src])


def in_range(node: OpNode) -> bool:
    """Whether the result has room in its dtype, and never wraps."""
    least, greatest = limits(node.dtype)
    low, high = ideal(node)
    return least <= low and high <= greatest


@later
def below(i: OpNode, c: OpNode) -> bool:
    """Whether always 0 <= i < c."""
    low, high = bounds(i)
    return low >= 0 and high < value(c)


@later
def divides(d: OpNode, c: OpNode) -> bool:
    return value(d) > 0 and value(c) % value(d) == 0


@later
def exact(node: OpNode) -> bool:
    """Whether it stays in the range of its dtype, and its operands do."""
    bounds(node)
    return in_range(node) and all(map(in_range, node.src))


@later
def positive(c: OpNode) -> bool:
    return bool(value(c) > 0)


INDEX = [
    rule(i + c + d, i + folded(c + d)),
    rule(i * c * d, i * folded(c * d)),
    rule(i // c, 0, below(i, c)),
    rule(i % c, i, below(i, c)),
    rule(i * c // d, i * folded(c // d), divides(d, c), exact(i * c)),
    rule(i * c // d, i // folded(d // c), divides(c, d), exact(i * c)),
    rule(i * c % d, 0, divides(d, c), exact(i * c)),
    rule((i * c + j) // d, i * folded(c // d) + j // d,
         divides(d, c), exact(i * c + j)),
    rule((i * c + j) % d, j % d, divides(d, c), exact(i * c + j)),
    rule(i // c * c + i % c, i, positive(c)),
    rule(i // c // d, i // folded(c * d),
         positive(c), positive(d), exact(c * d)),
    rule(i % c % d, i % d, positive(c), divides(d, c)),
]
