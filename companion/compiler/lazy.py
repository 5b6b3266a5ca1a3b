# Tangled from graphs, capture: edit there, `make tangle`. sha256:beb756091d1e
"""A device that remembers what it is asked, until values are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from companion.autograd import (
    expanded_axes, inverse_permutation, shrink_to_pad)
from companion.buffer import Buffer, Storage
from companion.compiler.graph import (
    AGES, OpNode, constant, interpret, toposort)
from companion.device import CPU, MOVE, Device, moved, outcome
from companion.dtype import DType, bool_
from companion.ops import (
    BUFFER, CAST, CONST, EXPAND, FLIP, IOTA, PAD, PERMUTE, RESHAPE, SHRINK,
    WHERE, WRITE, Op)
from companion.tensor import Tensor
from companion.view import Shape, View


def put_back(new: OpNode, old: OpNode, ranges: Any, _: Any) -> OpNode:
    """`old` with `new` in the place that SHRINK cut out."""
    if new.shape == old.shape:
        return new
    margins = shrink_to_pad(old, ranges)
    mask, wide = [OpNode(PAD, (x,), margins) for x in (
        constant(True, bool_, new.shape), new)]
    return OpNode(WHERE, (mask, wide, old))


def unstretch(new: OpNode, old: OpNode, shape: Shape,
              rest: Moves) -> OpNode:
    """The one repeat of `new` that a write by way of `rest` reached."""
    axes = expanded_axes(old, shape)
    lengths = tuple([n if i in axes else 1 for i, n in enumerate(shape)])
    numbers = CPU.run(IOTA, arg=math.prod(lengths))
    for op, arg in ((RESHAPE, lengths), (EXPAND, shape), *rest):
        numbers = CPU.run(op, numbers, arg=arg)
    place = np.unravel_index(numbers.array.flat[0], lengths)
    ranges = tuple([(int(at), int(at) + 1, 1) if i in axes else (0, n, 1)
                    for i, (at, n) in enumerate(zip(place, shape))])
    return OpNode(RESHAPE, (OpNode(SHRINK, (new,), ranges),), old.shape)


Moves = tuple[tuple[Op, Any], ...]  # movements with their arguments

BACK: dict[Op, Callable[..., OpNode]] = {
    RESHAPE: lambda new, old, shape, _: OpNode(RESHAPE, (new,), old.shape),
    PERMUTE: lambda new, old, order, _: OpNode(
        PERMUTE, (new,), inverse_permutation(order)),
    FLIP: lambda new, old, axes, _: OpNode(FLIP, (new,), axes),
    SHRINK: put_back,
    EXPAND: unstretch,
}


def along(whole: OpNode, moves: Moves) -> list[OpNode]:
    """`whole`, and what each of the movements makes of it."""
    return list(accumulate(
        moves, lambda x, move: OpNode(move[0], (x,), move[1]),
        initial=whole))


def replaced(whole: OpNode, moves: Moves, new: OpNode) -> OpNode:
    """`whole` with `new` in the place to which `moves` lead."""
    if 0 in new.shape:
        return whole
    before = along(whole, moves)
    for i, (op, arg) in reversed([*enumerate(moves)]):
        new = BACK[op](new, before[i], arg, moves[i + 1:])
    return new


class Promise(Storage):
    """Memory to come: a name, and the node that it stands for now."""

    def __init__(self, device: Lazy, node: OpNode):
        self.device, self.node = device, node
        device.promises[self] = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.node.shape) * self.node.dtype.itemsize

    @property
    def memory(self) -> Any:  # type: ignore[override]
        raise BufferError("lazy: there is no memory yet, nor an address; "
                          "ask .numpy() for the values, or .to('cpu')")

    def __reduce__(self) -> tuple[Any, ...]:
        """Kept, before it is copied or sent."""
        self.device.realize(self)
        return type(self), (self.device, self.node)


class Promised(Buffer):
    """A view of memory to come; `moves` lead to it from the whole."""

    __slots__ = ("moves",)
    storage: Promise

    def __init__(self, storage: Promise, view: View, dtype: DType,
                 moves: Moves = ()):
        super().__init__(storage, view, dtype)
        self.moves = moves

    @property
    def node(self) -> OpNode:
        """What this stands for, until the next write."""
        whole = self.storage.node
        return along(whole, self.moves)[-1] if self.moves else whole

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.storage, self.view, self.dtype, self.moves)


class Lazy(Device):
    """Remembers what it is asked; `device` computes what is read.

    Shapes and dtypes are refused at once, a bad index when its values
    are read. A value that nobody reads is never computed.
    """

    def __init__(self, device: Device):
        self.device = device
        self.name = "lazy" if device is CPU else f"lazy {device}"
        self.promises: WeakKeyDictionary[Promise, None] = WeakKeyDictionary()
        self.known: WeakKeyDictionary[OpNode, Buffer] = WeakKeyDictionary()

    def run(self, op: Op, *src: Any, arg: Any = None) -> Buffer:
        """What `op` will make of `src`, promised."""
        if op in MOVE:
            return self.move(op, src[0], arg)
        if op is CONST:
            return self.constant(*arg)
        if op is WRITE:
            return self.write(*src)
        return self.promise(OpNode(op, tuple([x.node for x in src]), arg))

    def promise(self, node: OpNode) -> Promised:
        view = View.dense(node.shape)
        return Promised(Promise(self, node), view, node.dtype)

    def move(self, op: Op, x: Any, arg: Any) -> Promised:
        view = moved(op, x.view, arg)
        if view is None:
            x, view = self.run(CAST, x, arg=x.dtype), View.dense(arg)
        return Promised(x.storage, view, x.dtype, (*x.moves, (op, arg)))

    def write(self, x: Any, value: Any) -> Promised:
        """From now on the storage of `x` stands for another node."""
        outcome(WRITE, None, (x.shape, x.dtype), (value.shape, value.dtype))
        new = value.node
        self.target(x)
        x.storage.node = replaced(x.storage.node, x.moves, new)
        return x

    def constant(self, value: Any, dtype: DType, shape: Shape) -> Promised:
        # Refuses now what does not fit.
        self.device.run(CONST, arg=(value, dtype, ()))
        x = self.promise(constant(value, dtype))
        x.storage.writable = False
        return self.move(EXPAND, x, shape) if shape else x

    def adopt(self, array: np.ndarray) -> Promised:
        """A copy, which nobody else can write to."""
        return self.promise(OpNode(
            BUFFER, (), self.device.adopt(in_lines(array))))

    def realize(self, *promises: Promise) -> None:
        """Compute what they stand for, and keep what others need of it."""
        waiting = [p.node for p in promises if p.node.src]
        if not waiting:
            return  # all of it is in memory
        now = set(toposort(*waiting, known=self.known))
        living = self.living()
        names = [node for _, node in living]
        later = [node for node in toposort(*names, known=self.known)
                 if node not in now and node not in self.known]
        kept = list(now & {*names, *(x for n in later for x in n.src)})
        values = dict(zip(kept, interpret(kept, self.device, self.known)))
        self.known.update(values)
        for promise, node in living:
            # Another thread may have written to it in the meantime.
            if node in values and promise.node is node and node.src:
                promise.node = OpNode(BUFFER, (), values[node])

    def living(self) -> list[tuple[Promise, OpNode]]:
        """All promises that somebody holds, and what they stand for."""
        found = [weak() for weak in self.promises.keyrefs()]
        return [(p, p.node) for p in found if p is not None]

    def host(self, buffer: Any) -> Buffer:
        """The values, computed now, in memory of their own."""
        self.realize(buffer.storage)
        node = buffer.node
        value = node.arg if node.op is BUFFER else (
            interpret([node], self.device, self.known)[0])
        found = self.device.host(value)
        return found.copy() if found is value else found

    def __deepcopy__(self, _: Any) -> Lazy:
        """Itself: a copied tensor stays on its device."""
        return self

    feeds: list[Any] | None = None  # of the call that is being captured

    def feed(self, numbers: Callable[[], dict[str, np.ndarray]],
             ) -> dict[str, Buffer]:
        """Numbers of this moment; a program asks for them again."""
        found: dict[str, Any] = super().feed(numbers)
        for name, buffer in found.items():
            FED[buffer.node] = numbers, name
        if self.feeds is not None:
            self.feeds.append((numbers, {
                name: buffer.node for name, buffer in found.items()}))
        return found

    def target(self, buffer: Buffer) -> Buffer:
        """As ever; and the clock of nodes goes on, since a program has
        to know that names may mean something else now."""
        next(AGES)
        return super().target(buffer)


def in_lines(array: np.ndarray) -> np.ndarray:
    """A copy, dense, that begins where a line of the cache begins."""
    room = np.empty(array.nbytes + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    copy = room[start:start + array.nbytes].view(array.dtype)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


LINE = 64  # bytes


def realize(*tensors: Tensor) -> None:
    """Compute what these tensors stand for, together, on their devices.

    Tensors of a device that computes at once are left alone.
    """
    promised = [t.buffer.storage for t in tensors
                if isinstance(t.buffer, Promised)]
    for device in dict.fromkeys(p.device for p in promised):
        device.realize(*[p for p in promised if p.device is device])


def connect(name: str) -> Lazy:
    """The device "lazy", which computes on the CPU."""
    return Lazy(CPU)


# Leaves whose numbers are fed: the function, and the name it gives them.
FED: WeakKeyDictionary[OpNode, tuple[Callable[[], dict[str, np.ndarray]],
                                     str]] = WeakKeyDictionary()
