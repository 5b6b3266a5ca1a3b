# Tangled from training: edit there, `make tangle`. sha256:5b0da62a3f44
from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from companion.autograd import no_grad
from companion.dtype import float32, float64
from companion.layers import Module
from companion.optim import Optimizer
from companion.tensor import GENERATOR, Generator, Tensor, from_numpy, rand


# chapters/gradients/training.md:110
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
        self.tensors, self.size, self.seed = tensors, size, seed
        self.epoch, self.index = 0, 0
        self.order = self.shuffled()

    # chapters/gradients/training.md:132
    def shuffled(self) -> np.ndarray:
        """The order of the current epoch."""
        draw = Generator(self.seed * 1_000_003 + self.epoch)
        keys = rand(len(self.tensors[0]), dtype=float64, generator=draw)
        return np.argsort(keys.numpy(), kind="stable")

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self.index + self.size > len(self.order):
            self.go_to(self.epoch + 1, 0)
        rows = Tensor(self.order[self.index:self.index + self.size])
        self.index += self.size
        return tuple(t[rows] for t in self.tensors)

    def go_to(self, epoch: int, index: int) -> None:
        self.epoch, self.index = epoch, index
        self.order = self.shuffled()


# chapters/gradients/training.md:176
Schedule = Callable[[int], float]


# chapters/gradients/training.md:179
def constant_rate(step: int) -> float:
    return 1.0


# chapters/gradients/training.md:183
def warmup_cosine(steps: int, warmup: int = 0,
                  floor: float = 0.0) -> Schedule:
    """Up in a straight line, down to `floor` along half a cosine."""
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
    return factor


# chapters/gradients/training.md:194
def one_cycle(steps: int, peak: float = 0.3,
              start: float = 0.04) -> Schedule:
    """Cosines up to 1 at peak · steps, and down to nearly 0 (Smith)."""
    def factor(step: int) -> float:
        top = peak * steps
        if step < top:
            up = (1 - math.cos(math.pi * step / top)) / 2
            return start + (1 - start) * up
        done = min((step - top) / max(steps - top, 1), 1.0)
        return start / 1e4 + (1 + math.cos(math.pi * done)) / 2
    return factor


# chapters/gradients/training.md:224
def clip_grad_norm(parameters: Iterable[Tensor],
                   limit: float) -> float:
    """Scale all gradients so that their common length is ≤ `limit`.

    Returns the length before, in the Euclidean norm over everything.
    """
    moving = [(p, p.grad) for p in parameters if p.grad is not None]
    with no_grad():
        norm = math.sqrt(sum(
            [float(g.square().sum()) for _, g in moving]))
        if norm > limit:
            for p, g in moving:
                p.grad = g * (limit / norm)
    return norm


# chapters/gradients/training.md:257
@dataclass
class Trainer:
    """A run of training: what it trains, on what, and how far it is.

    `loss_of(model, *batch)` computes the loss; `rate` maps the step to
    a factor on each group's learning rate; `clip` limits the length of
    the gradient; `accumulate` batches make one step.
    """

    model: Module
    optimizer: Optimizer
    batches: Batches
    loss_of: Callable[..., Tensor]
    rate: Schedule = constant_rate
    clip: float = math.inf
    accumulate: int = 1
    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rates = [g["lr"] for g in self.optimizer.param_groups]

    # chapters/gradients/training.md:284
    def step(self) -> dict[str, float]:
        """One update; the numbers worth remembering about it."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self.accumulate):
            batch = next(self.batches)
            loss = self.loss_of(self.model, *batch) / self.accumulate
            total += self.checked(loss, batch)
            loss.backward()
        norm = clip_grad_norm(self.model.parameters(), self.clip)
        factor = self.rate(self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.steps += 1
        return {"step": self.steps, "loss": total, "norm": norm,
                "rate": factor, "seconds": time.perf_counter() - started}

    def checked(self, loss: Tensor, batch: tuple[Tensor, ...]) -> float:
        """The loss as a number, if it is one."""
        value = loss.item()
        if not math.isfinite(value):
            raise NotFinite(self, value, batch)
        return value

    # chapters/gradients/training.md:378
    saved = ""

    # chapters/gradients/training.md:401
    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that the run depends on: arrays, and a few numbers."""
        parts = {"model": self.model.state_dict(),
                 "optimizer": self.optimizer.state_dict()}
        arrays = {f"{part}/{name}": np.ascontiguousarray(value.numpy())
                  for part, tensors in parts.items()
                  for name, value in tensors.items()}
        numbers = {"steps": self.steps, "seed": GENERATOR.seed,
                   "place": GENERATOR.place, "epoch": self.batches.epoch,
                   "index": self.batches.index, "history": self.history}
        return arrays, numbers

    def save(self, path: str | Path) -> None:
        """Write a checkpoint: the old one or the new one, never half."""
        arrays, numbers = self.state()
        data = save(arrays, {"run": json.dumps(numbers)})
        write_atomically(Path(path), data)
        self.saved = str(path)

    # chapters/gradients/training.md:457
    def resume(self, path: str | Path) -> bool:
        """Continue from a checkpoint; False if there is none yet."""
        if not Path(path).exists():
            return False
        arrays, numbers = read_checkpoint(Path(path))
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        for key, array in arrays.items():
            part, name = key.split("/", 1)
            parts[part][name] = from_numpy(array)
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.batches.go_to(numbers["epoch"], numbers["index"])
        GENERATOR.seed, GENERATOR.place = numbers["seed"], numbers["place"]
        self.steps, self.history = numbers["steps"], numbers["history"]
        self.saved = str(path)
        return True

    # chapters/gradients/training.md:495
    def fit(self, steps: int, checkpoint: str | Path | None = None,
            every: int = 100, progress: bool = True) -> list[
                dict[str, float]]:
        """Train until `steps` in all; resume from `checkpoint` if there.

        Saves at every `every` steps and at the end. Returns the history.
        """
        if checkpoint is not None:
            self.resume(checkpoint)
        bar = tqdm(total=steps, initial=self.steps, disable=not progress)
        with bar:
            while self.steps < steps:
                self.history.append(self.step())
                bar.update()
                bar.set_postfix(loss=f"{self.history[-1]['loss']:.4f}")
                due = self.steps % every == 0 or self.steps == steps
                if checkpoint is not None and due:
                    self.save(checkpoint)
        return self.history


# chapters/gradients/training.md:317
def named_modules(module: Module, name: str = "") -> Iterator[
        tuple[str, Module]]:
    """The module and all below it, deepest first."""
    for own, part in module.parts():
        if isinstance(part, Module):
            yield from named_modules(part, f"{name}{own}.")
    yield name.rstrip(".") or "the model itself", module


# chapters/gradients/training.md:332
def first_not_finite(model: Module,
                     run: Callable[[], Any]) -> str | None:
    """The first module whose output is not finite while `run` runs."""
    found: list[str] = []

    def watch(name: str, module: Module) -> None:
        forward = type(module).forward

        def watched(*inputs: Any) -> Any:
            out = forward(module, *inputs)
            if not found and not np.isfinite(out.numpy()).all():
                found.append(f"{name} ({type(module).__name__})")
            return out
        vars(module)["forward"] = watched

    modules = list(named_modules(model))
    for name, module in modules:
        watch(name, module)
    try:
        with no_grad():
            run()
    finally:
        for _, module in modules:
            del vars(module)["forward"]
    return found[0] if found else None


# chapters/gradients/training.md:361
class NotFinite(ArithmeticError):
    """The loss is nan or infinite: says when, where, and what is left."""

    def __init__(self, trainer: Trainer, value: float,
                 batch: tuple[Tensor, ...]):
        layer = first_not_finite(
            trainer.model, lambda: trainer.loss_of(trainer.model, *batch))
        place = f"first in {layer}" if layer else "in the loss itself"
        saved = trainer.saved or "none was written"
        super().__init__(
            f"the loss is {value} at step {trainer.steps + 1}, {place}; "
            f"last good checkpoint: {saved}; lower the learning rate, or "
            f"clip the gradients")


# chapters/gradients/training.md:425
def write_atomically(path: Path, data: bytes) -> None:
    """`data` at `path`, or whatever was there before; nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# chapters/gradients/training.md:475
def read_checkpoint(path: Path) -> tuple[
        dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, "numpy") as file:
            arrays = {key: file.get_tensor(key) for key in sorted(file.keys())}
            return arrays, json.loads(file.metadata()["run"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no checkpoint of a Trainer ({error}); delete it "
            f"to start anew, or name another") from None


# chapters/gradients/training.md:518
def write_history(history: list[dict[str, float]],
                  path: str | Path) -> None:
    """The history as .json or .csv, by the file's suffix."""
    path = Path(path)
    if path.suffix == ".json":
        write_atomically(path, json.dumps(history).encode())
    elif path.suffix == ".csv":
        names = list(history[0]) if history else []
        lines = [",".join(names)] + [
            ",".join(str(row[n]) for n in names) for row in history]
        write_atomically(path, ("\n".join(lines) + "\n").encode())
    else:
        raise ValueError(f"write_history: expected a name ending in .json "
                         f"or .csv, got {path.name}")


# chapters/gradients/training.md:534
def plot_history(history: list[dict[str, float]], axes: Any) -> None:
    """The loss, each step faint and a running mean on top."""
    loss = np.array([row["loss"] for row in history])
    span = max(len(loss) // 50, 1)
    axes.plot(loss, alpha=0.3, color="C2")
    mean = np.convolve(loss, np.ones(span) / span, "valid")
    axes.plot(np.arange(len(mean)) + span - 1, mean, color="C2")
    axes.set(xlabel="step", ylabel="loss")


# chapters/gradients/training.md:550
def evaluate(model: Module, measure: Callable[..., Tensor],
             *tensors: Tensor, size: int = 1024) -> float:
    """The mean of `measure(model, *batch)` over all rows, in eval mode."""
    n, total, was = len(tensors[0]), 0.0, model.training
    model.eval()
    try:
        with no_grad():
            for i in range(0, n, size):
                batch = [t[i:i + size] for t in tensors]
                total += measure(model, *batch).item() * len(batch[0])
    finally:
        model.train(was)
    return total / n


# chapters/gradients/training.md:565
def accuracy(model: Module, x: Tensor, target: Tensor) -> Tensor:
    """The part of rows whose largest logit is the target's."""
    return (model(x).argmax(-1) == target).to(float32).mean()


# chapters/gradients/training.md:572
class EarlyStopping:
    """Says when a measure has not improved for `patience` looks."""

    def __init__(self, patience: int, tolerance: float = 0.0):
        self.patience, self.tolerance = patience, tolerance
        self.best, self.waited = math.inf, 0

    def __call__(self, loss: float) -> bool:
        better = loss < self.best - self.tolerance
        self.waited = 0 if better else self.waited + 1
        self.best = min(self.best, loss)
        return self.waited >= self.patience
