# Tangled from capture: edit there, `make tangle`. sha256:30a7fb8a4ff2
"""Steps that are remembered once, and run again as one program."""

from __future__ import annotations

import dis
import functools
import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import CellType, CodeType, FunctionType
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np

from companion.buffer import Buffer, Storage
from companion.compiler.graph import AGES, OpNode, made, toposort
from companion.compiler.lazy import FED, Lazy, Promise, Promised
from companion.compiler.program import Program, compile_graph
from companion.device import named
from companion.layers import Module
from companion.native import CompileError, compiler, tell
from companion.ops import BUFFER, CONST
from companion.optim import Optimizer
from companion.tensor import Tensor, wrap
from companion.training import named_modules


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
                promise.node = node = OpNode(BUFFER, (), node.arg.copy())
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


def replaced_in(value: Any, new: Iterator[Tensor]) -> Any:
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
def unread(device: Lazy) -> Iterator[None]:
    """Inside the block nobody may read a value of `device`."""
    def refuse(buffer: Any) -> NoReturn:
        raise ValueError(
            "jit: a value was read inside the function, and what was done "
            "because of it would be the same at every call; return the "
            "tensor, and read it behind the call")
    vars(device)["host"] = refuse
    try:
        yield
    finally:
        del vars(device)["host"]


class Capture:
    """A call of `function`, and the program that repeats it."""

    def __init__(self, device: Lazy, function: Callable[..., Any],
                 args: Any):
        self.device = device
        self.before = settle(device)
        given = [placed(x, device) for x in tensors_in(args)]
        inputs = [memory_of(x) for x in given]
        self.inputs = [leaf.arg.array for leaf in inputs]
        self.age = next(AGES)
        try:
            with unread(device):
                self.result = function(*replaced_in(args, iter(given)))
            gc.collect()  # what nobody can reach is not a result
            self.kept = [(p, node) for p, node in device.living()
                         if self.before.get(p) is not node
                         and node.op is not CONST and node not in inputs]
            self.program = self.compiled(inputs)
            self.begin()
        except BaseException:
            for promise, node in self.before.items():
                promise.node = node
            raise

    def compiled(self, inputs: Collection[OpNode]) -> Program:
        """All that was changed or made, as a program."""
        roots = [node for _, node in self.kept]
        known = {*inputs, *self.before.values()}
        for leaf in toposort(*roots):
            if leaf.op is BUFFER and leaf not in known and leaf not in FED:
                said = BROUGHT if leaf.age > self.age else REPLACED
                raise ValueError(f"jit: {said.format(leaf.shape)}")
        return compile_graph(roots, {
            i: self.before[p] for i, (p, _) in enumerate(self.kept)
            if p in self.before and self.before[p].op is BUFFER})

    def begin(self) -> None:
        """Run for the first time; names stand for memory from now on."""
        places, values = self.program.plan.places, self.program()
        self.mine = {p: node for p, node in self.before.items()
                     if node.op is BUFFER and node in places}
        for (promise, _), value in zip(self.kept, values):
            self.mine[promise] = promise.node = OpNode(BUFFER, (), value)
        self.fed: dict[Callable[..., Any], list[tuple[str, Any]]] = {}
        for leaf in self.program.plan.leaves:
            if leaf in FED:
                numbers, name = FED[leaf]
                self.fed.setdefault(numbers, []).append(
                    (name, leaf.arg.array))
        self.fresh = [x.buffer.storage not in self.before
                      and memory_of(x).op is not CONST
                      for x in tensors_in(self.result)]
        self.age = next(AGES)

    def __call__(self, args: Any) -> Any:
        """Once more, on other arguments and the numbers of this moment."""
        if next(AGES) != self.age + 1:
            self.return_home()
        for array, new in zip(self.inputs, tensors_in(args)):
            np.copyto(array, new.numpy())
        for numbers, places in self.fed.items():
            found = numbers()
            for name, array in places:
                array[...] = found[name]
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
        found = [self.copied(x) if fresh else x for x, fresh in zip(
            tensors_in(self.result), self.fresh)]
        self.age = next(AGES)
        return replaced_in(self.result, iter(found))

    def copied(self, tensor: Any) -> Tensor:
        """A tensor of the same values, in memory of its own."""
        buffer, value = tensor.buffer, memory_of(tensor).arg
        own = Buffer(Storage(value.array.copy()), value.view, value.dtype)
        name = Promise(self.device, made(BUFFER, (), own))
        return wrap(Promised(name, buffer.view, buffer.dtype, buffer.moves),
                    self.device)


BROUGHT = ("numbers of shape {} were brought to the device inside the "
           "function, and would be the same at every call; pass them as an "
           "argument")
REPLACED = ("a tensor of shape {} was replaced by another inside the "
            "function; assign to it, so that its memory goes on")


def kind_of(value: Any) -> Any:
    """What a program depends on: all but the numbers in tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if not isinstance(value, NESTS):
        return repr(value)
    if isinstance(value, dict):
        return tuple([(k, kind_of(v)) for k, v in value.items()])
    return tuple(map(kind_of, value))


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

    def look() -> list[Any]:
        found = [start, own, *getattr(own, "__dict__", {}).values()]
        functions = [start] if isinstance(start, FunctionType) else []
        for one in functions:  # which grow on the way
            space = one.__globals__
            values = [*contents(one.__closure__ or ()),
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


def settings_of(module: Module) -> tuple[int, str]:
    """Mode, probabilities and the like, here and in all parts."""
    if module not in PARTS:
        PARTS[module] = [vars(part) for _, part in named_modules(module)]
    return id(module), repr([
        (own.get("training", True), [v for name, v in own.items()
         if type(v) in PLAIN and name != "training"])
        for own in PARTS[module]])


def settings_in(optimizer: Optimizer) -> tuple[int, str]:
    return id(optimizer), repr([
        value for group in optimizer.param_groups
        for name, value in group.items() if name not in ("lr", "params")])


PLAIN = bool, int, float, complex, str, bytes, type(None)
# Attributes of a module's parts; which parts there are is looked up once.
PARTS: WeakKeyDictionary[Module, list[dict[str, Any]]] = WeakKeyDictionary()

LOOKS: list[tuple[Any, Callable[[Any], Any]]] = [
    (Module, settings_of), (Optimizer, settings_in),
    ((str, bytes), lambda text: (text,)), (PLAIN, repr),
    (list | tuple, lambda values: tuple(map(seen, values))),
    (dict, lambda values: tuple(map(seen, values.items()))),
    (object, id)]


@functools.lru_cache(maxsize=1024)
def look_at(kind: type) -> Callable[[Any], Any]:
    """How to see an object of that kind."""
    return next(look for kinds, look in LOOKS if issubclass(kind, kinds))


def seen(value: Any) -> Any:
    """What a program depends on, in what its function reads."""
    kind: Any = type(value)
    return look_at(kind)(value)


class Jit:
    """`function`, compiled: see `jit`."""

    def __init__(self, function: Callable[..., Any], device: Lazy):
        self.function, self.device = function, device
        self.look = surroundings(function)
        self.captures: dict[Any, Capture | None] = {}
        self.held: list[Any] = []  # or another could get an id again

    def __call__(self, *args: Any) -> Any:
        around = self.look()
        key = (kind_of(args), *map(seen, around))
        if key not in self.captures or not can_compile():
            self.meet(key, around)
            return self.first(args)
        capture = self.captures[key]
        if capture is None:
            capture = self.captures[key] = Capture(
                self.device, self.function, args)
            return capture.answer()
        return capture(args)

    def meet(self, key: Any, around: Any) -> None:
        """A call of a new kind."""
        self.captures[key] = None
        self.held.append(around)
        if len(self.captures) == MANY:
            name = getattr(self.function, "__name__", self.function)
            tell(f"jit: {name} was called in {MANY} ways, each of which "
                 f"becomes a program; pass as a tensor what changes often")

    def first(self, args: Any) -> Any:
        """A call like any other: it makes what later ones overwrite."""
        given = [placed(x, self.device) for x in tensors_in(args)]
        before = dict(self.device.living())
        result = self.function(*replaced_in(args, iter(given)))
        self.device.realize(*[p for p, node in self.device.living()
                              if before.get(p) is not node])
        return result


MANY = 16


def can_compile() -> bool:
    """Whether there is a C compiler; if not, it is told once."""
    try:
        return bool(compiler())
    except CompileError as error:
        tell(f"jit: programs are interpreted: {error}")
        return False


def jit(function: Callable[..., Any], device: Any = "lazy") -> Jit:
    """`function` as one program, for tensors of a lazy device.

    The first call of a kind (shapes and dtypes of arguments, numbers in
    them and around the function, modes of modules) runs as ever, the
    second is remembered and compiled, later ones repeat it: Python is
    not asked any more. What it changes is changed in place. Tensors
    among the arguments are copied to the device.
    """
    return Jit(function, named(device))  # type: ignore[arg-type]
