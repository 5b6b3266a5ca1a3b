# Tangled from capture: edit there, `make tangle`. sha256:bb4b69f80c38
"""Steps that are remembered once, and run again as one program."""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from companion.buffer import Storage
from companion.compiler.graph import AGES, OpNode, toposort
from companion.compiler.lazy import FED, Lazy, Promise, Promised
from companion.compiler.program import Program, compile_graph
from companion.device import named
from companion.native import CompileError, compiler, tell
from companion.ops import BUFFER, CONST
from companion.tensor import Tensor, wrap


def keep_all(device: Lazy) -> None:
    """Compute all promises, but those that a bad index has broken:
    whoever reads one of them will be told."""
    living = [p for p, _ in device.living()]
    try:
        device.realize(*living)
    except IndexError:
        for promise in living:
            with suppress(IndexError):
                device.realize(promise)


def settle(device: Lazy) -> dict[Promise, OpNode]:
    """The promises that have memory, and the leaf of each.

    No two share it afterwards: a program may overwrite one of them.
    """
    keep_all(device)
    device.known.clear()
    found, seen = dict[Promise, OpNode](), set[Storage]()
    for promise, node in device.living():
        if node.op is BUFFER:
            buffer = node.arg
            if buffer.storage in seen or not buffer.view.is_dense:
                buffer = buffer.copy()
                promise.node = node = OpNode(BUFFER, (), buffer)
            seen.add(buffer.storage)
        found[promise] = node
    return found


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [x for part in parts for x in tensors_in(part)] if isinstance(
        value, list | tuple | dict) else []


def replaced_in(value: Any, new: Iterator[Tensor]) -> Any:
    """The same nest, with other tensors in their places."""
    if isinstance(value, Tensor):
        return next(new)
    if isinstance(value, dict):
        return {k: replaced_in(v, new) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([replaced_in(v, new) for v in value])
    return value


def placed(tensor: Tensor, device: Lazy) -> Tensor:
    """A copy of the values in memory that a program can fill again."""
    new = wrap(device.adopt(np.array(tensor.numpy())), device)
    new.requires_grad = tensor.requires_grad
    return new


def memory_of(tensor: Any) -> OpNode:
    return tensor.buffer.storage.node


class Capture:
    """A call of `function`, and the program that repeats it."""

    def __init__(self, device: Lazy, function: Callable[..., Any],
                 args: Any):
        self.device = device
        before = settle(device)
        self.given = [placed(x, device) for x in tensors_in(args)]
        self.inputs = [memory_of(x) for x in self.given]
        inputs = set(self.inputs)
        start = next(AGES)
        try:
            self.result = function(*replaced_in(args, iter(self.given)))
        except BaseException:
            for promise, node in before.items():
                promise.node = node
            raise
        gc.collect()  # what nobody can reach is not a result
        self.kept = [(p, node) for p, node in device.living()
                     if before.get(p) is not node and node.op is not CONST
                     and node not in inputs]
        self.states = before
        self.program = self.make(start, before, inputs)
        self.finish(before)

    def make(self, start: int, before: Mapping[Promise, OpNode],
             inputs: Container[OpNode]) -> Program:
        roots = [node for _, node in self.kept]
        nodes = toposort(*roots)
        for node in nodes:
            known = node in inputs or node in FED or node.age < start
            if node.op is BUFFER and not known:
                raise ValueError(
                    f"jit: numbers of shape {node.shape} were brought to "
                    f"the device, or read from it, inside the function, "
                    f"and would be the same for ever; pass them as an "
                    f"argument, or read them behind it")
        return compile_graph(roots, {
            i: before[p] for i, (p, _) in enumerate(self.kept)
            if p in before and before[p].op is BUFFER})

    def finish(self, before: Mapping[Promise, OpNode]) -> None:
        """Run for the first time; names stand for memory from now on."""
        self.mine = {p: node for p, node in before.items()
                     if node.op is BUFFER
                     and node in self.program.plan.places}
        values = self.program()
        for (promise, _), value in zip(self.kept, values):
            self.mine[promise] = promise.node = OpNode(BUFFER, (), value)
        self.fed = {node: FED[node] for node in self.program.plan.leaves
                    if node in FED}
        self.age = next(AGES)

    def __call__(self, args: Any) -> Any:
        """Once more, on other arguments and the numbers of this moment."""
        if next(AGES) != self.age + 1:
            self.return_home()
        for node, new in zip(self.inputs, tensors_in(args)):
            np.copyto(node.arg.array, new.numpy())
        numbers = {f: f() for f in dict.fromkeys(
            function for function, _ in self.fed.values())}
        for node, (function, name) in self.fed.items():
            np.copyto(node.arg.array, numbers[function][name])
        self.program()
        for promise, _ in self.kept:
            promise.version += 1
        return self.answer()

    def return_home(self) -> None:
        """Something was asked since: keep all promises, and bring back
        what has been assigned to ours."""
        ours = {leaf.arg.storage for leaf in self.mine.values()}
        for promise, node in settle(self.device).items():
            if (node is not self.mine.get(promise) and node.op is BUFFER
                    and node.arg.storage in ours):
                promise.node = OpNode(BUFFER, (), node.arg.copy())
        for promise, leaf in self.mine.items():
            if promise.node is not leaf:
                np.copyto(leaf.arg.array, promise.node.arg.array)
                promise.node = leaf

    def answer(self) -> Any:
        """The result, in memory that the next call leaves alone."""
        found = [self.copied(x) for x in tensors_in(self.result)]
        self.age = next(AGES)
        return replaced_in(self.result, iter(found))

    def copied(self, tensor: Tensor) -> Tensor:
        """A result; what was there before the call is itself."""
        buffer: Any = tensor.buffer
        if buffer.storage in self.states or buffer.storage.node.op is CONST:
            return tensor
        value = buffer.storage.node.arg.copy()
        new = self.device.promise(OpNode(BUFFER, (), value))
        return wrap(Promised(new.storage, buffer.view, buffer.dtype,
                             buffer.moves), self.device)


def kind_of(value: Any) -> Any:
    """What a program depends on: all but the numbers in tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, dict):
        return tuple([(k, kind_of(v)) for k, v in value.items()])
    if isinstance(value, list | tuple):
        return tuple(map(kind_of, value))
    return repr(value)


class Jit:
    """`function`, compiled: see `jit`."""

    def __init__(self, function: Callable[..., Any], device: Lazy):
        self.function, self.device = function, device
        self.captures: dict[Any, Capture | None] = {}

    def __call__(self, *args: Any) -> Any:
        key = kind_of(args)
        if key not in self.captures or not can_compile():
            self.captures[key] = None
            return self.first(args)
        capture = self.captures[key]
        if capture is None:
            capture = self.captures[key] = Capture(
                self.device, self.function, args)
            return capture.answer()
        return capture(args)

    def first(self, args: Any) -> Any:
        """A call like any other: it makes what later ones overwrite."""
        given = [placed(x, self.device) for x in tensors_in(args)]
        before = dict(self.device.living())
        result = self.function(*replaced_in(args, iter(given)))
        self.device.realize(*[p for p, node in self.device.living()
                              if before.get(p) is not node])
        return result


def can_compile() -> bool:
    """Whether there is a C compiler; if not, it is told once."""
    try:
        return bool(compiler())
    except CompileError as error:
        tell(f"jit: programs are interpreted: {error}")
        return False


def jit(function: Callable[..., Any], device: Any = "lazy") -> Jit:
    """`function` as one program, for tensors of a lazy device.

    The first call with arguments of new shapes or dtypes runs as ever,
    the second is remembered and compiled, later ones repeat it: Python
    is not asked any more. What it changes is changed in place. Tensors
    among the arguments are copied to the device, others are constants.
    """
    place: Any = named(device)
    return Jit(function, place)
