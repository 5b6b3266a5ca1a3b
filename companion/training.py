# Tangled from training: edit there, `make tangle`. sha256:e921948b680c
from __future__ import annotations

import csv
import functools
import io
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from companion.autograd import no_grad
from companion.dtype import DTYPES, FROM_NUMPY, float32, float64
from companion.layers import Module
from companion.optim import Optimizer, listed
from companion.tensor import Tensor, from_numpy
from companion.tensor.creation import zeros
from companion.tensor.operands import narrowed, where, widened
from companion.tensor.random import GENERATOR, Generator, rand


class Batches:
    """Endless shuffled batches of tensors of equal length.

    The order within an epoch depends on (seed, epoch) alone, so the
    place (epoch, index) says all that is needed to go on from it.
    """

    def __init__(self, *tensors: Tensor, size: int, seed: int = 0):
        lengths = {len(t) for t in tensors}
        if len(lengths) != 1 or not 0 < size <= min(lengths):
            raise ValueError(
                f"Batches: expected tensors of one length and a size of "
                f"1 to that, got lengths {sorted(lengths)}, size {size}")
        if seed < 0:
            raise ValueError(f"Batches: expected a seed of at least 0, "
                             f"got {seed}")
        self.tensors, self.size, self.seed = tensors, size, seed
        self.go_to(0, 0)

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.tensors[0])

    def go_to(self, epoch: int, index: int) -> None:
        """Continue with the example that is at `index` in `epoch`."""
        self.epoch, self.index = epoch, index
        self.order = self.shuffled()

    def shuffled(self) -> np.ndarray:
        """The order of the current epoch."""
        # Seeds lie a million epochs apart, so that no two share an order.
        draw = Generator(self.seed * 1_000_003 + self.epoch)
        keys = rand(self.examples, dtype=float64, generator=draw)
        return np.argsort(keys.numpy(), kind="stable")

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        # A short rest is left over: accumulation needs parts of one size.
        if self.index + self.size > len(self.order):
            self.go_to(self.epoch + 1, 0)
        rows = Tensor(self.order[self.index:self.index + self.size])
        self.index += self.size
        return tuple(t[rows] for t in self.tensors)


class Source(Protocol):
    """Where batches come from, and how to return to a place in them.

    (epoch, index) is the place of the next batch. After `go_to` with
    values read earlier, `next` gives the batch that came then, bit for
    bit, in any process. An epoch is made of so many `examples`.
    """

    epoch: int
    index: int

    @property
    def examples(self) -> int: ...

    def go_to(self, epoch: int, index: int) -> None: ...

    def __next__(self) -> tuple[Tensor, ...]: ...


Schedule = Callable[[int], float]


def constant_rate(step: int) -> float:
    return 1.0


def half_cosine(begin: float, end: float, done: float) -> float:
    """From `begin` to `end` along half a cosine; `done` up to 1."""
    return end + (begin - end) * (1 + math.cos(math.pi * min(done, 1))) / 2


def warmup_cosine(steps: int, warmup: int = 0,
                  floor: float = 0.0) -> Schedule:
    """Up in a straight line, down to `floor` along half a cosine."""
    # A partial: a function made in here could not be sent to a process.
    return functools.partial(warmed_up, steps, warmup, floor)


def warmed_up(steps: int, warmup: int, floor: float, step: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return half_cosine(1, floor, (step - warmup) / max(steps - warmup, 1))


def one_cycle(steps: int, peak: float = 0.3,
              start: float = 0.04) -> Schedule:
    """Cosines up to 1 at peak · steps, and down to nearly 0 (Smith)."""
    return functools.partial(cycled, steps, peak * steps, start)


def cycled(steps: int, top: float, start: float, step: int) -> float:
    if step < top:
        return half_cosine(start, 1, step / top)
    return half_cosine(1, start / 1e4, (step - top) / max(steps - top, 1))


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The Euclidean length of all together: a 0-d float64."""
    # In float32 the square of 1e20 is infinite, and that of 1e-25 is zero.
    squares = [g.cast(float64).square().sum() for g in gradients]
    first, *rest = squares or [zeros(dtype=float64)]
    return sum([square.to(first.device) for square in rest], first).sqrt()


def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor,
                    max_norm: float) -> Tensor:
    """Scale all gradients so that their common length is ≤ `max_norm`.

    Returns the length before: the Euclidean norm over everything, as a
    0-d float64. Where that is not a number nothing is scaled.
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: expected a limit of at least "
                         f"0, got {max_norm}")
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    moving = [(p, p.grad) for p in parameters if p.grad is not None]
    with no_grad():
        norm = norm_of([g for _, g in moving])
        # No `if`: Python need not wait until a device has found the norm.
        factor = where(norm > max_norm, max_norm / norm, 1.0)
        for p, g in moving if max_norm < math.inf else ():
            wide = widened(g)
            here = factor.cast(wide.dtype).to(g.device)
            p.grad = narrowed(wide * here, g)
    return norm


@dataclass
class Trainer:
    """A run of training: what it trains, on what, and how far it is.

    `loss_of(model, *batch)` computes the loss; `rate` maps the step to
    a factor on each group's learning rate; `clip` limits the length of
    the gradient; `accumulate` batches make a step; `observers` watch.
    """

    model: Module
    optimizer: Optimizer
    batches: Source
    loss_of: Callable[..., Tensor]
    rate: Schedule = constant_rate
    clip: float = math.inf
    accumulate: int = 1
    observers: list[Observer] = field(default_factory=list)
    steps: int = 0
    stopped: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    saved: str = "none was written"
    journal: Journal | None = None
    first: list[Any] | None = None  # its first batch: see next_batch

    def __post_init__(self) -> None:
        self.generators = generators_of(self.model)
        if self.accumulate < 1 or not self.clip >= 0:
            raise ValueError(
                f"Trainer: expected accumulate of at least 1 and clip of "
                f"at least 0, got {self.accumulate} and {self.clip}")

    def step(self) -> dict[str, float]:
        """One update; the numbers worth remembering about it."""
        started, before = time.perf_counter(), self.place()
        try:
            loss, norm, gradients = self.gradient()
        except BaseException:  # the key that stops a cell, too
            self.go_to(before)
            raise
        factor = float(self.rate(self.steps))
        with scaled(self.optimizer.param_groups, factor):
            self.update(gradients)
        self.steps += 1
        return {"step": self.steps, "loss": loss, "norm": norm,
                "rate": factor, "seconds": time.perf_counter() - started}

    def gradient(self) -> tuple[float, float, Gradients]:
        """Of all batches of a step: their loss, its norm, and itself."""
        place = self.place()
        found, length, gradients = self.sweep(self.next_batches())
        # Numbers are read here, after the last backward and before a weight
        # moves: every .item() waits for the device.
        loss, norm = found.item(), length.item()
        if not math.isfinite(loss):
            raise NotFinite(self, f"the loss is {loss}", self.search(place))
        if not math.isfinite(norm):
            # Damage flows back from the loss: the last in the list was first.
            names = [name for name, _ in self.model.named_parameters()]
            bad = [n for n, g in zip(names, gradients) if not finite(g)]
            raise NotFinite(
                self, f"the norm of the gradient is {norm}",
                f"the gradient of {bad[-1]}" if bad else "its square")
        return loss, norm, gradients

    def next_batches(self) -> list[tuple[Any, ...]]:
        return [self.next_batch() for _ in range(self.accumulate)]

    def sweep(self, batches: list[tuple[Any, ...]],
              ) -> tuple[Tensor, Tensor, Gradients]:
        """Loss, norm and gradients of batches, with no number read."""
        self.optimizer.zero_grad()
        parts = [self.backward(*batch) for batch in batches]
        parameters = list(self.model.parameters())
        norm = clip_grad_norm_(parameters, self.clip)
        return sum(parts[1:], parts[0]), norm, [p.grad for p in parameters]

    def backward(self, *batch: Any) -> Tensor:
        """Add the gradient of one batch to what is there; its loss."""
        part = self.loss_of(self.model, *batch) / self.accumulate
        part.backward()
        return part.detach()

    def update(self, gradients: Gradients) -> None:
        """A step of the optimizer along these gradients."""
        for p, gradient in zip(self.model.parameters(), gradients):
            p.grad = gradient
        self.optimizer.step()

    def place(self) -> list[Any]:
        """Where the next batch and the next random numbers come from."""
        return [self.batches.epoch, self.batches.index,
                [[draw.seed, draw.place] for draw in self.generators]]

    def go_to(self, place: list[Any]) -> None:
        """As if nothing had been read since."""
        self.batches.go_to(*place[:2])
        for draw, (seed, at) in zip(self.generators, place[2], strict=True):
            draw.go_to(seed, at)

    def search(self, place: list[Any]) -> str:
        """Where the loss of the step from `place` stops being a number."""
        self.go_to(place)
        batches = [next(self.batches) for _ in range(self.accumulate)]
        for batch in batches:
            here = self.place()
            if not sound(self, batch):
                self.go_to(here)  # the same dropout once more
                return suspect(self, batch)
        return "their sum"

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.place()[:2],
            "generators": self.place()[2],
            "first": self.first,
            "schedule": [self.steps, self.stopped],
            "observers": [[type(o).__name__, o.state_dict()]
                          for o in self.observers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, if all of it fits; else nothing changes."""
        before = deepcopy(self.state_dict())
        try:
            self.take_over(state)
        except Exception:
            # Our own state needs no comparison, whose batch might fail again.
            self.take_over(before | {"first": None})
            self.first = before["first"]
            raise

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Load part after part, and compare the first batch."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if len(state["generators"]) != len(self.generators):
            raise ValueError(
                f"load_state_dict: expected {len(self.generators)} random "
                f"generators, got {len(state['generators'])}; give the "
                f"model's modules the generators that they had")
        self.first = state["first"]
        if self.first is not None:
            self.check_first(*self.first)
        # After the comparison, which has gone to the first batch.
        self.go_to([*state["batches"], state["generators"]])
        self.steps, self.stopped = state["schedule"]
        remind(self.observers, state["observers"])

    def next_batch(self) -> tuple[Any, ...]:
        """The next batch; of the first one a checksum is kept."""
        place, batch = self.place(), next(self.batches)
        if self.first is None:
            self.first = [place, checksum(batch), self.batches.examples]
        return batch

    def check_first(self, place: list[Any], *expected: int) -> None:
        """Refuse data whose size or first batch is not what it was."""
        self.go_to(place)
        found = checksum(next(self.batches)), self.batches.examples
        if found != expected:
            raise ValueError(
                "load_state_dict: the first batch is not the one that this "
                "run began with; expected the same data, seed, order and "
                "batch size. (A state whose \"first\" is None is not asked.)")

    def note(self, path: Path) -> Journal:
        """Bring the journal beside a checkpoint up to date."""
        place = journal_of(path)
        if self.journal is None or self.journal.path != place:
            self.journal = Journal(place)
        self.journal.follow(self.history)
        return self.journal

    def save(self, path: str | Path) -> None:
        """Write a checkpoint: the old one or the new one, never half."""
        # The last step can have made one infinite: the last good file stays.
        for name, p in self.model.named_parameters():
            if not finite(p):
                raise NotFinite(self, "a weight is not finite", name)
        arrays: dict[str, np.ndarray] = {}
        run = json.dumps(packed(self.state_dict(), "run", arrays))
        if len(run) > HEADER:
            raise ValueError(
                f"save: the state has {len(run):,} bytes besides its "
                f"tensors, and a safetensors file has room for {HEADER:,}; "
                f"make tensors of an observer's long lists")
        journal = self.note(Path(path))
        # The journal first: a checkpoint counts on rows that are on disk.
        to_disk(journal.path)
        rows = json.dumps([journal.end, journal.rows])
        write_atomically(Path(path),
                         save(arrays, {"run": run, "journal": rows}))
        self.saved = f"{path} ({self.steps} steps)"

    def resume(self, path: str | Path) -> bool:
        """Continue from a checkpoint; False if there is none yet."""
        path = Path(path)
        for left in path.parent.glob(f".{path.name}.*"):
            left.unlink()  # half written by a process that was killed
        if not path.exists():
            return False
        state, rows = read_checkpoint(path)
        journal = Journal(journal_of(path), *rows)
        # All is read before anything changes.
        history = journal.read()
        self.load_state_dict(state)
        self.history, self.journal = history, journal
        self.saved = f"{path} ({self.steps} steps)"
        return True

    def fit(self, steps: int, checkpoint: str | Path | None = None,
            every: int = 100) -> list[dict[str, float]]:
        """Train until `steps` in all, or until an observer stops it.

        With a `checkpoint`: before the first step go on from it, if it
        is there; write it every `every` steps and at the end, and rows
        to its .jsonl. A stopped run goes on once `stopped` is False.
        """
        if every < 1:
            raise ValueError(f"fit: expected every ≥ 1, got {every}")
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and not self.steps:
            self.resume(path)
        with ExitStack() as stack:
            for observer in self.observers:
                observer.begin(self, steps)
                stack.callback(observer.end, self)
            while self.steps < steps and not self.stopped:
                self.history.append(self.step())
                for observer in self.observers:
                    self.history[-1] = seen_by(observer, self,
                                               self.history[-1])
                last = self.stopped or self.steps == steps
                if path is not None:
                    self.note(path)
                    if last or self.steps % every == 0:
                        self.save(path)
        return self.history


def generators_of(model: Module) -> list[Generator]:
    """The common generator, then those that modules have to themselves."""
    own = [draw for _, module in named_modules(model)
           for _, draw in module.parts((Generator,))]
    # Each once, and no set, whose order changes from process to process.
    return list(dict.fromkeys([GENERATOR, *own]))


def named_modules(module: Module, name: str = "") -> Iterator[
        tuple[str, Module]]:
    """The module and all below it, deepest first."""
    for own, part in module.parts():
        if isinstance(part, Module):
            yield from named_modules(part, f"{name}{own}.")
    yield name.rstrip(".") or "the model", module


@contextmanager
def scaled(groups: list[dict[str, Any]], factor: float) -> Iterator[None]:
    """Learning rates times `factor`, inside the block."""
    # Kept, since a division rounds, and after a factor of 0 there is none.
    rates = [group["lr"] for group in groups]
    try:
        for group in groups:
            group["lr"] *= factor
        yield
    finally:
        for group, rate in zip(groups, rates):
            group["lr"] = rate


Gradients = list[Tensor | None]  # of each parameter; None: no part in it


def finite(*values: Any) -> bool:
    """Whether every tensor among the values is free of nan and inf."""
    return all(np.isfinite(v.numpy()).all() for v in values
               if isinstance(v, Tensor))


def first_not_finite(model: Module, run: Callable[[], Any]) -> str | None:
    """The first module whose output is not finite, or its input."""
    found: list[str] = []

    def watch(name: str, module: Module) -> Callable[..., Any]:
        def watched(*inputs: Any, **named: Any) -> Any:
            sound = finite(*inputs, *named.values())
            out = type(module).forward(module, *inputs, **named)
            if not finite(*listed(out)):
                found.append(f"the {'output' if sound else 'input'} of "
                             f"{name} ({type(module).__name__})")
            return out
        return watched

    with ExitStack() as stack:
        for name, module in named_modules(model):
            vars(module)["forward"] = watch(name, module)
            stack.callback(vars(module).pop, "forward", None)
        run()
    return found[0] if found else None


def suspect(run: Trainer, batch: tuple[Any, ...]) -> str:
    """Where a loss that is no number comes from."""
    for i, value in enumerate(batch):
        if not finite(value):
            return f"tensor {i} of the batch"
    for name, p in run.model.named_parameters():
        if not finite(p):
            return f"the parameter {name}"
    try:
        place = first_not_finite(
            run.model, lambda: run.loss_of(run.model, *batch))
    except Exception as error:  # what failed first is the news
        return f"a loss that cannot be computed again ({error})"
    return place or "the loss itself"


def sound(run: Trainer, batch: tuple[Any, ...]) -> bool:
    """Whether the loss of a batch can be computed, and is a number."""
    try:
        return finite(run.loss_of(run.model, *batch))
    except Exception:  # `suspect` will meet it again, and tell
        return False


class NotFinite(ArithmeticError):
    """Training cannot go on: what, when, where, and what is left."""

    def __init__(self, run: Trainer, what: str, where: str):
        super().__init__(
            f"after {run.steps} steps {what}, first in {where}; last "
            f"good checkpoint: {run.saved}; resume from it with smaller "
            f"rates or a lower clip, or mend the data")


def checksum(batch: Iterable[Any]) -> int:
    """A number that changes with any bit of the tensors in a batch."""
    found = 0
    for part in batch:
        if isinstance(part, Tensor | np.ndarray):
            array = np.asarray(part, order="C")
            head = f"{array.shape} {array.dtype}".encode()
            found = zlib.crc32(head + array.tobytes(), found)
    return found


def remind(observers: list[Observer], states: list[Any]) -> None:
    """Give each observer the next state that one of its class left."""
    waiting: dict[str, list[Any]] = {}
    for name, state in states:
        waiting.setdefault(name, []).append(state)
    for observer in observers:
        if left := waiting.get(type(observer).__name__):
            observer.load_state_dict(left.pop(0))


PLAIN = (type(None), bool, int, float, str)  # JSON gives these back
ARRAYS = {Tensor: "tensor", np.ndarray: "array"}


def packed(tree: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """The tree as JSON, its arrays by name; those go to `arrays`."""
    # The very type: a np.float64 is a float too, and would return as one.
    kind = type(tree)
    if kind in PLAIN:
        return tree
    if kind in ARRAYS or isinstance(tree, np.generic):
        return {ARRAYS.get(kind, "scalar"): put(tree, name, arrays)}
    if kind in (list, tuple):
        parts = [packed(value, f"{name}/{i}", arrays)
                 for i, value in enumerate(tree)]
        return parts if kind is list else {"tuple": parts}
    if kind is dict:
        return {"dict": [[packed(part, f"{name}/{key}", arrays)
                          for part in (key, value)]
                         for key, value in tree.items()]}
    raise TypeError(f"{name} is a {kind.__name__}, which would not come "
                    f"back as one; expected numbers, texts, None, tensors "
                    f"and arrays, in lists, tuples and dicts")


def put(value: Any, name: str, arrays: dict[str, np.ndarray]) -> str:
    """Add a tensor, array or NumPy number; the name that it got."""
    array = np.asarray(value, order="C")
    if array.dtype not in FROM_NUMPY:
        raise TypeError(f"{name} holds {array.dtype}, which has no dtype "
                        f"here; expected one of {', '.join(DTYPES)}")
    while name in arrays:  # {"a/b": x, "a": {"b": y}}
        name += "'"
    arrays[name] = array
    return name


UNPACK: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "tensor": lambda name, arrays: from_numpy(arrays[name]),
    "array": lambda name, arrays: arrays[name],
    "scalar": lambda name, arrays: arrays[name][()],
    "tuple": lambda parts, arrays: tuple(unpacked(parts, arrays)),
    "dict": lambda pairs, arrays: dict(unpacked(pairs, arrays))}


def unpacked(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree as it was before `packed`."""
    if isinstance(tree, list):
        return [unpacked(value, arrays) for value in tree]
    if not isinstance(tree, dict):
        return tree
    (kind, inside), = tree.items()
    return UNPACK[kind](inside, arrays)


def write_atomically(path: Path, data: bytes) -> None:
    """`data` at `path`, or whatever was there before; nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it: a file is renamed in one act only within a file system.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        to_disk(beside)
        os.replace(beside, path)
        # The new name is an entry in the folder, which is a file as well.
        to_disk(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Return when the file, or the folder's list of names, is on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class Journal:
    """A list of rows on disk, a line of JSON each, that only grows.

    `end` bytes and `rows` rows of it count. What lies behind them was
    written by a process that died, and is cut off.
    """

    def __init__(self, path: Path, end: int = 0, rows: int = 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.end, self.rows = path, end, rows

    def follow(self, history: list[dict[str, float]]) -> None:
        """Append the rows that are new in `history`."""
        lines = [json.dumps(row) + "\n" for row in history[self.rows:]]
        with open(self.path, "ab") as file:
            self.check(file.seek(0, os.SEEK_END))
            file.truncate(self.end)
            file.seek(self.end)
            file.write("".join(lines).encode())
            self.end = file.tell()
        self.rows = len(history)

    def check(self, size: int) -> None:
        """Refuse a file that has lost rows."""
        if size < self.end:
            raise ValueError(
                f"{self.path} has {size} bytes, its checkpoint counts on "
                f"{self.end}: put the journal back, or delete the "
                f"checkpoint to start anew")

    def read(self) -> list[dict[str, float]]:
        """The rows that count."""
        data = self.path.read_bytes() if self.path.exists() else b""
        self.check(len(data))
        return [json.loads(line) for line in
                data[:self.end].splitlines()]


def journal_of(checkpoint: Path) -> Path:
    """The journal beside a checkpoint, under the whole of its name."""
    return checkpoint.with_name(f"{checkpoint.name}.jsonl")


HEADER = 50_000_000  # bytes: half of what the format allows in all


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a file, and what it says about them."""
    try:
        with safe_open(path, "numpy") as file:
            arrays = {key: file.get_tensor(key)
                      for key in sorted(file.keys())}
            return arrays, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is no whole safetensors file "
                         f"({error})") from None


def read_checkpoint(path: Path) -> tuple[dict[str, Any], list[int]]:
    """The state in a checkpoint, and how much of the journal counts."""
    try:
        arrays, about = read_safetensors(path)
        run, rows = [json.loads(about[name]) for name in ("run", "journal")]
        return unpacked(run, arrays), rows
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no checkpoint of a Trainer ({error}); delete it "
            f"to start anew, or name another") from None


class Observer:
    """Watches a run while it trains; override what you need.

    `look` may add numbers and texts to the row, and may set
    `run.stopped`. What an observer remembers between steps belongs into
    its state: tensors and plain values, in lists, tuples and dicts.
    """

    def begin(self, run: Trainer, steps: int) -> None:
        """Training is about to go on, until `steps` in all."""

    def look(self, run: Trainer, row: dict[str, float]) -> None:
        """A step has been made; `row` is what will be noted of it."""

    def end(self, run: Trainer) -> None:
        """Training has stopped, with or without an error."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another of this class remembered."""


def seen_by(observer: Observer, run: Trainer,
            row: Mapping[str, Any]) -> dict[str, Any]:
    """The row after an observer has looked at it, fit for the journal."""
    seen = dict(row)
    observer.look(run, seen)
    for name, value in seen.items():
        if isinstance(value, np.generic | np.ndarray | Tensor) and (
                value.size == 1):
            seen[name] = value = value.item()
        if type(value) not in PLAIN or type(name) is not str:
            raise TypeError(
                f"{type(observer).__name__}: row[{name!r}] is a "
                f"{type(value).__name__}; expected a number, a text or "
                f"None under a name")
    return seen


class ProgressBar(Observer):
    """How far a run is, how fast, and its loss."""

    def begin(self, run: Trainer, steps: int) -> None:
        self.bar = tqdm(total=steps, initial=run.steps)

    def look(self, run: Trainer, row: dict[str, float]) -> None:
        self.bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        self.bar.update()

    def end(self, run: Trainer) -> None:
        self.bar.close()

    def __getstate__(self) -> dict[str, Any]:
        """Its settings: a copy begins with a bar and a picture anew."""
        return {name: value for name, value in vars(self).items()
                if name not in ("bar", "draw")}


class LossPlot(ProgressBar):
    """A progress bar; in a notebook, with the loss as a curve above.

    The curve is drawn anew when `pause` seconds have passed.
    """

    def __init__(self, pause: float = 1.0):
        self.pause, self.drawn = pause, 0.0

    def begin(self, run: Trainer, steps: int) -> None:
        self.draw = canvas() if in_notebook() else draw_nothing
        super().begin(run, steps)

    def look(self, run: Trainer, row: dict[str, float]) -> None:
        super().look(run, row)
        if time.monotonic() - self.drawn > self.pause:
            self.draw(run.history)
            self.drawn = time.monotonic()

    def end(self, run: Trainer) -> None:
        self.draw(run.history)
        super().end(run)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs us; it has imported IPython then."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    kinds = [kind.__name__ for kind in type(shell).__mro__]
    return "ZMQInteractiveShell" in kinds


def draw_nothing(history: list[dict[str, float]]) -> None:
    """Where no picture can be shown, the bar has to do."""


def canvas() -> Callable[[list[dict[str, float]]], None]:
    """A function that draws a history where the last one was drawn."""
    import matplotlib.pyplot as plt
    from IPython.display import display

    figure, axes = plt.subplots(figsize=(6, 2.6))
    plt.close(figure)  # shown by us, not at the end of the cell
    handle = display(figure, display_id=True)

    def draw(history: list[dict[str, float]]) -> None:
        axes.clear()
        plot_history(history, axes)
        handle.update(figure)
    return draw


def plot_history(history: list[dict[str, float]], axes: Any) -> None:
    """The loss, each step faint and a running mean on top."""
    loss = np.array([row["loss"] for row in history])
    span = max(len(loss) // 50, 1)
    axes.plot(loss, alpha=0.3, color="C2")
    if len(loss):
        mean = np.convolve(loss, np.ones(span) / span, "valid")
        axes.plot(np.arange(len(mean)) + span - 1, mean, color="C2")
    axes.set(xlabel="step", ylabel="loss")


def write_history(history: list[dict[str, float]],
                  path: str | Path) -> None:
    """The history as .json or .csv, by the file's suffix."""
    path, text = Path(path), io.StringIO()
    if path.suffix == ".json":
        json.dump(history, text)
    elif path.suffix == ".csv":
        names = dict.fromkeys(name for row in history for name in row)
        rows = csv.DictWriter(text, list(names), lineterminator="\n")
        rows.writeheader()
        rows.writerows(history)
    else:
        raise ValueError(f"write_history: expected a name ending in .json "
                         f"or .csv, got {path.name}")
    write_atomically(path, text.getvalue().encode())


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Eval mode without records; afterwards each module's own mode."""
    modes = [(m, m.training) for _, m in named_modules(model)]
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(model: Module, measure: Callable[..., Tensor],
             *tensors: Tensor, size: int = 1024) -> float:
    """The mean of `measure(model, *batch)` over all rows, in eval mode."""
    n, total = len(tensors[0]), 0.0
    if not n:
        raise ValueError("evaluate: expected rows, got tensors of length 0")
    with evaluating(model):
        for i in range(0, n, size):
            batch = [t[i:i + size] for t in tensors]
            total += measure(model, *batch).item() * len(batch[0])
    return total / n


def accuracy(model: Module, x: Tensor, target: Tensor) -> Tensor:
    """The part of rows whose largest logit is the target's."""
    return (model(x).argmax(-1) == target).to(float32).mean()


class EarlyStopping(Observer):
    """Stops a run when `measure(model)` no longer falls.

    Looks at every `every` steps and stops after `patience` looks in a
    row that are not better by more than `tolerance`. The value is noted
    as "validation"; the best weights are kept in `best_model`.
    """

    def __init__(self, measure: Callable[[Module], float], every: int,
                 patience: int, tolerance: float = 0.0):
        self.measure, self.every = measure, every
        self.patience, self.tolerance = patience, tolerance
        self.best, self.waited = math.inf, 0
        self.best_model: dict[str, Tensor] = {}

    def look(self, run: Trainer, row: dict[str, float]) -> None:
        if run.steps % self.every:
            return
        row["validation"] = value = float(self.measure(run.model))
        self.waited += 1
        if value < self.best - self.tolerance:
            self.best, self.waited = value, 0
            self.best_model = {name: tensor.detach().clone() for name,
                               tensor in run.model.state_dict().items()}
        if self.waited >= self.patience:
            run.stopped = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited,
                "best_model": self.best_model}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"EarlyStopping: expected a state of "
                             f"{[*self.state_dict()]}, got {[*state]}")
        vars(self).update(state)
