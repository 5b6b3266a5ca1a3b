# Tangled from graphs: edit there, `make tangle`. sha256:b3e96e4ad9ba
"""Operations that remember themselves, and a loop that runs them."""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping, Sequence
from itertools import count
from operator import attrgetter
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from companion.buffer import Buffer
from companion.device import Device
from companion.dtype import DType
from companion.ops import BUFFER, CONST, DTYPE, EXPAND, SHAPE, Op
from companion.sharing import forkable
from companion.view import Shape


class OpNode:
    """One operation on nodes, asked for and not carried out.

    Equal nodes are one object, so `is` compares whole graphs. Shape and
    dtype come from the tables, which refuse what has no meaning. `age`
    grows from node to node: operands are older than their readers.
    """

    __slots__ = ("op", "src", "arg", "shape", "dtype", "age", "__weakref__")

    op: Op
    src: tuple[OpNode, ...]
    arg: Any
    shape: Shape
    dtype: DType
    age: int

    def __new__(cls, op: Op, src: tuple[OpNode, ...] = (),
                arg: Any = None) -> OpNode:
        key = op, src, identity(op, arg)
        return NODES.get(key) or interned(key, made(op, src, arg))

    def __repr__(self) -> str:
        return f"OpNode({self.op}, {self.dtype}, {self.shape})"

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was made: a copy is looked up in the table as well."""
        return OpNode, (self.op, self.src, self.arg)


def made(op: Op, src: tuple[OpNode, ...], arg: Any) -> OpNode:
    """A node of its own, younger than all that there are."""
    node = object.__new__(OpNode)
    node.op, node.src, node.arg = op, src, arg
    node.shape = SHAPE[op](*src, arg)
    node.dtype = DTYPE[op](*src, arg)
    node.age = next(AGES)
    return node


AGES = count()


def identity(op: Op, arg: Any) -> Any:
    """What an argument has to share with another to be the same one."""
    if op is BUFFER:
        return arg.storage, arg.view, arg.dtype
    # -0.0 == 0.0 and True == 1, and NaN is not NaN: texts know better.
    return repr(arg)


# Weak: a node lives as long as a tensor or a reader needs it.
NODES: WeakValueDictionary[Any, OpNode] = WeakValueDictionary()
# Garbage may be collected inside, and its last act may be an operation.
INTERNING = forkable(threading.RLock())


def interned(key: Any, node: OpNode) -> OpNode:
    """`node`, or the equal one that another thread has put there."""
    with INTERNING:
        return NODES.setdefault(key, node)


def constant(number: Any, dtype: DType, shape: Shape = ()) -> OpNode:
    """A number as `dtype` has it, in `shape`: 1 and 1.0 are one float."""
    with np.errstate(all="ignore"):  # too large a float is infinite
        held = np.asarray(number).astype(dtype.numpy).item()
    one = OpNode(CONST, (), (held, dtype, ()))
    return OpNode(EXPAND, (one,), shape) if shape else one


def toposort(*roots: OpNode,
             known: Container[OpNode] = ()) -> list[OpNode]:
    """All that `roots` are made of, once each, operands first.

    In the order in which a program asked for it; behind what is
    `known` it does not look.
    """
    found, waiting = set[OpNode](), list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            if node not in known:
                waiting += node.src
    return sorted(found, key=attrgetter("age"))


def interpret(roots: Sequence[OpNode], device: Device,
              known: Mapping[OpNode, Buffer] = {}) -> list[Buffer]:
    """The values of `roots`, one operation after another on `device`.

    `known` holds values found earlier. One that is computed is let go
    after its last reader.
    """
    order = toposort(*roots, known=known)
    values = {node: known[node] for node in order if node in known}
    waiting = [node for node in order if node not in values]
    last: dict[OpNode, OpNode | None] = {
        x: node for node in waiting for x in node.src}
    last |= dict.fromkeys(roots)
    for node in waiting:
        values[node] = node.arg if node.op is BUFFER else device.run(
            node.op, *[values[x] for x in node.src], arg=node.arg)
        for x in set(node.src):
            if last[x] is node:
                del values[x]
    return [values[root] for root in roots]
