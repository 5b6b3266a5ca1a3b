# Tangled from capture: edit there, `make tangle`. sha256:ba93a4e799d9
"""Steps that are remembered once, and run again as one program."""

from __future__ import annotations

import dis
import functools
import gc
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple, NoReturn
from weakref import WeakKeyDictionary, ref

import numpy as np

from companion.buffer import Buffer, Storage
from companion.compiler.graph import AGES, OpNode, interpret, made, toposort
from companion.compiler.lazy import FED, Lazy, Promise, Promised
from companion.compiler.program import Program, compile_graph, program_of
from companion.compiler.schedule import captured
from companion.device import Device, named
from companion.layers import Module
from companion.native import CompileError, tell
from companion.ops import BUFFER, CONST, WRITE
from companion.optim import Optimizer
from companion.sharing import forkable, once
from companion.tensor import Tensor, wrap
from companion.training import Trainer
from companion.view import View


def settle(device: Lazy) -> WeakKeyDictionary[Promise, OpNode]:
    """All names of `device`, computed, and the node of each.

    No two share memory afterwards: a program may overwrite one of them.
    """
    keep_all(device)
    device.known.clear()
    found = WeakKeyDictionary[Promise, OpNode]()
    seen = set[Storage]()
    for promise, node in device.living():
        if node.op is BUFFER:
            if node.arg.storage in seen or not node.arg.view.is_dense:
                promise.node = node = OpNode(
                    BUFFER, (), device.device.twin(node.arg))
            seen.add(node.arg.storage)
        found[promise] = node
    return found


def keep_all(device: Lazy) -> None:
    """Compute all that names stand for. What a bad index has broken is
    left as it is, and will be told where it is read."""
    living = [p for p, _ in device.living()]
    try:
        device.realize(*living)
    except IndexError:
        for promise in living:
            with suppress(IndexError):
                device.realize(promise)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, NESTS):
        return []
    parts = value.values() if isinstance(value, dict) else value
    return [x for part in parts for x in tensors_in(part)]


NESTS = list, tuple, dict


def placed(tensor: Tensor, device: Lazy) -> Tensor:
    """A copy of the values in memory that a program can fill again."""
    new = wrap(device.adopt(np.array(tensor.numpy())), device)
    new.requires_grad = tensor.requires_grad
    return new


def replaced_in(value: Any, new: Iterator[Any]) -> Any:
    """The same nest, with other tensors in their places."""
    if isinstance(value, Tensor):
        return next(new)
    if not isinstance(value, NESTS):
        return value
    if isinstance(value, dict):
        return {k: replaced_in(v, new) for k, v in value.items()}
    make = getattr(value, "_make", type(value))  # tuples with names, too
    return make([replaced_in(v, new) for v in value])


def memory_of(tensor: Any) -> OpNode:
    return tensor.buffer.storage.node


@contextmanager
def unread(device: Lazy) -> Iterator[list[Any]]:
    """Inside the block nobody may read a value of `device`; a list of
    what is fed there."""
    def refuse(buffer: Any) -> NoReturn:
        raise ValueError(
            "jit: a value was read inside the function, and what was done "
            "because of it would be the same at every call; return the "
            "tensor, and read it behind the call")
    feeds: list[Any] = []
    vars(device).update(host=refuse, feeds=feeds)
    try:
        yield feeds
    finally:
        del vars(device)["host"], vars(device)["feeds"]


class Capture:
    """A call of `function`, and what it has asked of a lazy device."""

    program: Program

    def __init__(self, device: Lazy, function: Callable[..., Any],
                 args: Any, named: Mapping[str, Any] = {}):
        self.device, self.before = device, settle(device)
        # A name that dies in the call is remembered: it was another one.
        self.names = {node: ref(p) for p, node in self.before.items()}
        given = [placed(x, device) for x in tensors_in([args, named])]
        self.inputs = [memory_of(x) for x in given]
        self.arguments = replaced_in((args, named), iter(self.inputs))
        new = iter(given)
        try:
            with unread(device) as self.feeds:
                self.result = function(*replaced_in(args, new),
                                       **replaced_in(named, new))
        except BaseException:
            self.undo()
            raise
        lazy = [isinstance(x.buffer, Promised)
                for x in tensors_in(self.result)]
        if not self.moved() and not any(lazy):
            raise ValueError(
                f"jit: {name_of(function)} asked nothing of {device}; move "
                f"the model, and what it reads, there: .to({str(device)!r})")

    def moved(self) -> list[tuple[Promise, OpNode]]:
        """The names that stand for something else, or are new."""
        return [(p, node) for p, node in self.device.living()
                if self.before.get(p) is not node
                and node.op is not CONST and node not in self.inputs]

    @once
    def kept(self) -> list[tuple[Promise, OpNode]]:
        """The same, without those that nobody can reach."""
        gc.collect()
        return self.moved()

    def undo(self) -> None:
        """All names stand for what they stood for before."""
        for promise, node in self.before.items():
            promise.node = node

    def form(self) -> list[Any]:
        """What was asked for, in words that do not depend on memory."""
        order = captured(*[[node for _, node in self.kept]] * 2)
        place = {node: i for i, node in enumerate(order)}
        leaf: dict[OpNode, Any] = {
            node: (i, name) for i, (_, found) in enumerate(self.feeds)
            for name, node in found.items()}
        leaf |= {node: i for i, node in enumerate(self.inputs)}
        leaf |= self.names
        said = [(node.op, [place[x] for x in node.src], leaf.get(node)
                 if node.op is BUFFER else repr(node.arg)) for node in order]
        return [said, *[(place[node], ref(p) if p in self.before else None)
                        for p, node in self.kept]]

    def keep(self) -> Any:
        """Compute what was asked for, as ever: the function's result."""
        self.device.realize(*[p for p, _ in self.moved()])
        return replaced_in(self.result, iter([
            x.detach() if fresh else x for x, fresh in zip(
                tensors_in(self.result), self.fresh)]))

    @property
    def fresh(self) -> list[bool]:
        """Of the tensors of the result, whether the call has made them."""
        return [x.buffer.storage not in self.before
                and memory_of(x).op is not CONST
                for x in tensors_in(self.result)]

    def begin(self) -> Any:
        """Make a program of it, and run that for the first time."""
        self.given = [*zip(tensors_in(self.result), self.fresh)]
        given = {x.buffer.storage for x, new in self.given if new}
        self.apart = {i: p for i, (p, _) in enumerate(self.kept)
                      if p in given}
        try:
            program = self.compiled()
            values = program(apart=self.apart)
        except BaseException:
            self.undo()
            raise
        self.program, places = program, program.plan.places
        self.mine = {p: node for p, node in self.before.items()
                     if node.op is BUFFER and node in places}
        for (promise, _), value in zip(self.kept, values):
            promise.node = OpNode(BUFFER, (), value)
            if promise not in given:
                self.mine[promise] = promise.node
        held = {node for _, node in self.device.living()}
        self.held = [leaf for leaf in self.inputs if leaf in held]
        self.fed = [(numbers, [
            (name, leaf.arg) for name, leaf in found.items()
            if leaf in places]) for numbers, found in self.feeds]
        self.hung = hung_in({p for p, _ in self.kept})
        return self.answer()

    def compiled(self) -> Program:
        """All that was changed or made, as a program."""
        roots = [node for _, node in self.kept]
        known = {*self.inputs, *self.names}
        for leaf in toposort(*roots):
            if leaf.op is BUFFER and leaf not in known and leaf not in FED:
                raise ValueError(f"jit: {BROUGHT.format(leaf.shape)}")
        return compile_graph(roots, {
            i: self.before[p] for i, (p, _) in enumerate(self.kept)
            if p in self.before and self.before[p].op is BUFFER},
            device=self.device.device)

    def __call__(self, args: Any, named: Mapping[str, Any] = {}) -> Any:
        """Once more, on other arguments and the numbers of this moment."""
        if next(AGES) != self.age + 1:
            self.return_home()
        values = self.program(self.brought(args, named), self.apart)
        for i, promise in self.apart.items():
            promise.node = made(BUFFER, (), values[i])
        for promise, _ in self.kept:
            promise.version += 1
        for weak, gradient in self.hung:
            tensor = weak()
            if tensor is not None:
                tensor.grad = gradient
        return self.answer()

    def brought(self, args: Any,
                named: Mapping[str, Any]) -> dict[OpNode, Buffer]:
        """New arguments, and new numbers of those that are fed."""
        if not self.inputs and not self.fed:
            return {}
        given = tensors_in((args, named) if named else args)
        lent = {leaf: self.lent(x) for leaf, x in zip(self.inputs, given)}
        put = self.device.device.put
        for leaf in self.held:
            put(leaf.arg, lent.pop(leaf))
        for numbers, places in self.fed:
            try:
                found = numbers()
            except ReferenceError:
                raise ValueError(f"jit: {GONE}") from None
            for name, buffer in places:
                put(buffer, found[name])
        return lent

    def lent(self, x: Any) -> Buffer:
        """The values of an argument, where they lie if that is safe."""
        here, storage = self.device.device, x.buffer.storage
        if x.device is self.device:
            self.device.realize(storage)
            if storage not in self.mine and storage.node.op is BUFFER:
                return dense(storage.node.arg.moved(x.buffer.view), here)
        if x.device is here:
            return dense(x.buffer, here)
        return x.device.host(x.buffer).dense()

    def return_home(self) -> None:
        """Something was asked since: keep all promises, and bring back
        what has been assigned to ours."""
        ours = {leaf.arg.storage for leaf in self.mine.values()}
        for promise, node in settle(self.device).items():
            if (node is not self.mine.get(promise) and node.op is BUFFER
                    and node.arg.storage in ours):
                promise.node = OpNode(
                    BUFFER, (), self.device.device.twin(node.arg))
        for promise, leaf in self.mine.items():
            if promise.node is not leaf:
                (value,) = interpret([promise.node], self.device.device)
                write = self.device.device.kernels[WRITE]
                write(leaf.arg, leaf.arg, value, None)
                promise.node = leaf

    def answer(self) -> Any:
        """The result, in memory that the next call leaves alone."""
        found = [self.named(x) if new else x for x, new in self.given]
        self.age = next(AGES)
        return replaced_in(self.result, iter(found))

    def named(self, tensor: Any) -> Tensor:
        """A tensor of the same values, which nobody else can change."""
        node, device = memory_of(tensor), self.device
        value = node.arg
        if tensor.buffer.view != value.view or node in self.inputs:
            value = value.moved(tensor.buffer.view)
            if node in self.inputs:
                value = device.device.twin(value)
            node = made(BUFFER, (), value)
        name = Promise(device, node)
        return wrap(Promised(name, value.view, value.dtype), device)


GONE = ("an optimizer, a generator or a scale of the loss was made inside "
        "the function, and would be another one at every call; make it before")
BROUGHT = ("numbers of shape {} were brought to the device inside the "
           "function, and would be the same at every call; pass them as an "
           "argument")


def hung_in(new: Collection[Storage]) -> list[tuple[Any, Tensor]]:
    """The tensors that have a gradient among these, and the gradients."""
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    return [(ref(x), x.grad) for x in tensors
            if x.grad is not None and x.grad.buffer.storage in new]


def dense(buffer: Buffer, device: Device) -> Buffer:
    """Itself where its memory is one run in order, else a copy."""
    view = buffer.view  # nearly always the usual one, which is soon seen
    return buffer if view == View.dense(view.shape) or view.is_dense else (
        device.twin(buffer))


def kind_of(value: Any) -> Any:
    """What a program depends on: all but the numbers in tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.requires_grad
    if isinstance(value, np.ndarray):
        raise TypeError(f"jit: an array of shape {value.shape} among the "
                        f"arguments; expected tensors: Tensor(array)")
    if not isinstance(value, NESTS):
        return seen([value])
    parts = value.items() if isinstance(value, dict) else value
    return type(value), tuple(map(kind_of, parts))


@functools.lru_cache(maxsize=1024)
def globals_of(code: CodeType) -> tuple[str, ...]:
    """The global names that a function's code reads."""
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return tuple(dict.fromkeys([
        *[line.argval for line in dis.get_instructions(code)
          if line.opname == "LOAD_GLOBAL"],
        *[name for part in inner for name in globals_of(part)]]))


def surroundings(function: Any) -> Callable[[], list[Any]]:
    """A look around: all that `function`, and functions of its file that
    it calls, read without being given it."""
    own = getattr(function, "__self__", None)
    start = getattr(function, "__func__", function)
    plain = isinstance(start, FunctionType)  # and so always the same

    def look() -> list[Any]:
        found = [] if plain else [start]
        if own is not None:
            found += [own, *getattr(own, "__dict__", {}).values()]
        functions = [start] if plain else []
        for one in functions:  # which grow on the way
            space = one.__globals__
            values = [*contents(one.__closure__ or ()),
                      *(one.__defaults__ or ()),
                      *[space.get(n) for n in globals_of(one.__code__)]]
            found += values
            functions += [v for v in values if type(v) is FunctionType
                          and v.__globals__ is start.__globals__
                          and v not in functions]
        return found
    return look


def contents(cells: Any) -> list[Any]:
    """Values of the variables around, as far as they have any."""
    try:
        return [cell.cell_contents for cell in cells]
    except ValueError:  # one has no value yet: it equals an empty cell
        return contents([cell for cell in cells if cell != CellType()])


class Same(NamedTuple):
    """An object as a key: equal to itself alone, and kept alive."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: Any) -> bool:
        return type(other) is Same and other.value is self.value


def looks_of(x: Tensor) -> tuple[Any, ...]:
    return ref(x.buffer.storage), x.requires_grad, x.grad is None


def attributes(module: Module) -> dict[str, Any]:
    """Its attributes, and the mode in any case."""
    return {"training": getattr(module, "training", True)} | vars(module)


def parts_of(optimizer: Optimizer) -> list[Any]:
    """Settings and memory, without numbers that change at each step."""
    return [*[v for group in optimizer.param_groups
              for k, v in group.items() if k != "lr"],
            *[x for own in optimizer.state.values()
              for x in own.values() if isinstance(x, Tensor)]]


# Of each kind: what is seen at once, and where to look further.
Look = Callable[[Any], Any]
LOOKS: list[tuple[Any, Look, Look | None]] = [
    (Tensor, looks_of, lambda x: ()),
    ((int, str, bytes, type(None)), lambda x: (type(x), x), None),
    ((float, complex, slice, range), lambda x: (type(x), repr(x)), None),
    (list | tuple, lambda x: (type(x), len(x)), lambda x: x),
    (dict, lambda x: (type(x), len(x)), lambda x: [*x.keys(), *x.values()]),
    (Module, lambda x: (Same(x), *attributes(x)),
     lambda x: attributes(x).values()),
    (Optimizer, lambda x: (Same(x), *map(len, x.param_groups)), parts_of),
    (Trainer, Same, lambda run: [run.model, run.optimizer, run.loss_of,
                                 run.clip, run.accumulate]),
    (object, Same, None)]


@functools.lru_cache(maxsize=1024)
def look_at(kind: type) -> tuple[Look, Look | None]:
    """How to see an object of that kind."""
    return next((say, further) for kinds, say, further in LOOKS
                if issubclass(kind, kinds))


def seen(values: Iterable[Any]) -> tuple[Any, ...]:
    """What a program depends on, in what its function reads."""
    found, met, waiting = list[Any](), dict[int, int](), [*values]
    for value in waiting:  # which grows on the way
        kind: Any = type(value)
        say, further = look_at(kind)
        if further is not None:
            first = met.setdefault(id(value), len(found))
            if first < len(found):  # the same object again
                found.append(first)
                continue
            waiting += further(value)
        found.append(say(value))
    return tuple(found)


class Jit:
    """`function`, compiled: see `jit`."""

    def __init__(self, function: Callable[..., Any], device: Any):
        if not isinstance(device, Lazy):
            raise TypeError(f"jit: expected a lazy device, got {device}")
        self.function, self.kind = function, program_of(device.device)
        self.device, self.look = device, surroundings(function)
        self.made: dict[Any, Capture] = {}
        self.forms: dict[Any, list[Any]] = {}
        self.unlike = Counter[Any]()  # calls that have not repeated one

    def __call__(self, *args: Any, **named: Any) -> Any:
        with LOCK:
            # Inside of another captured function it is a part of that.
            if "host" in vars(self.device):
                return self.function(*args, **named)
            if named:  # in whatever order
                named = dict(sorted(named.items()))
            key = (kind_of(args) if args else (),
                   kind_of(named) if named else (), seen(self.look()))
            if known := self.made.get(key):
                return known(args, named)
            call = Capture(self.device, self.function, args, named)
            if not can_compile(self.kind) or not self.repeats(key, call):
                return call.keep()
            result = call.begin()
            self.made[key] = call
            return result

    def repeats(self, key: Any, call: Capture) -> bool:
        """Whether it asks for what the last call of its kind asked for."""
        if self.unlike[key] > UNLIKE or (
                key not in self.forms and len(self.forms) == MANY):
            return False
        form, name = call.form(), name_of(self.function)
        if self.forms.get(key) == form:
            return True
        self.forms[key] = form
        self.unlike[key] += 1
        if self.unlike[key] > UNLIKE:
            tell(f"jit: {name} asks for something else at every call, and "
                 f"is run as ever; assign to a tensor instead of exchanging "
                 f"it, and pass as an argument what changes")
        if len(self.forms) == MANY:
            tell(f"jit: {name} was called in {MANY} ways, each of which may "
                 f"become a program; others are run as ever; pass as a "
                 f"tensor what changes often")
        return False

    @property
    def programs(self) -> list[Capture]:
        """The calls that are programs by now."""
        return list(self.made.values())


LOCK = forkable(threading.RLock())  # one program at a time writes to the names
UNLIKE, MANY = 5, 16


def name_of(function: Any) -> str:
    return getattr(function, "__name__", str(function))


def can_compile(kind: type[Program]) -> bool:
    """Whether such programs can be made; if not, it is told once."""
    try:
        return bool(kind.ready())
    except CompileError as error:
        tell(f"jit: programs are interpreted: {error}")
        return False


def jit(function: Callable[..., Any], device: Any = "lazy") -> Jit:
    """`function` as one program, for tensors of a lazy device.

    A call runs as ever, and is remembered. Once two calls of a kind have
    asked for the same, the second is compiled, and later ones repeat it:
    Python is not asked any more. A kind is: shapes and dtypes of tensors
    among the arguments, all else that the function is given or reads
    from its surroundings, and modes of modules. What is changed is
    changed in place. Tensors among the arguments are brought to the
    device, and those that are returned are detached.
    """
    return Jit(function, named(device))


def compiled(run: Trainer) -> Trainer:
    """The run, whose sweep and update are programs from now on."""
    kind, device = type(run), next(iter(run.model.parameters())).device
    vars(run).update(
        sweep=jit(lambda batches: kind.sweep(run, batches), device),
        update=jit(lambda gradients: kind.update(run, gradients), device))
    return run
