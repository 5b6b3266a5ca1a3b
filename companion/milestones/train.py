# Tangled from language, scaling: edit there, `make tangle`. sha256:7d543377f3f9  # noqa: E501
from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import shlex
import signal
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from companion.device import DEVICES, DRIVERS
from companion.distributed import Group, barrier, parallel, world
from companion.milestones.language import (
    RECIPES, Recipe, Text, held_loss, learner, plays)
from companion.native import POOL
from companion.tensor.random import Generator
from companion.timing import machine
from companion.training import (
    EarlyStopping, Observer, ProgressBar, Trainer, plot_history,
    write_atomically)
from companion.transformer import GPT, spoken

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Job:
    """A run of training from the command line, and where it is kept."""

    folder: Path
    config: str
    seed: int = 0
    device: str = "cpu"

    @property
    def again(self) -> str:
        """The command that goes on with it."""
        folder = shlex.quote(str(self.folder))
        return f"python -m companion train gpt --resume {folder}"

    def file(self, name: str) -> Path:
        """Where something of the run lies."""
        return self.folder / name


class StopKey(Observer):
    """Ctrl-C stops a run after its step; a second one, at once."""

    def begin(self, run: Trainer, steps: int) -> None:
        self.asked = False
        self.before = signal.signal(signal.SIGINT, self.ask)

    def ask(self, number: int, frame: Any) -> None:
        self.asked = True
        # Not as before: a run in the background of a script ignores it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def look(self, run: Trainer, row: dict[str, float]) -> None:
        # Not in `ask`, which may come when a step is half done.
        run.stopped = self.asked

    def end(self, run: Trainer) -> None:
        signal.signal(signal.SIGINT, self.before)


class Session(NamedTuple):
    """A job at work: on what, what it trains, and what watches."""

    job: Job
    recipe: Recipe
    text: Text
    model: GPT
    run: Trainer
    watch: EarlyStopping


def prepared(job: Job, text: Text) -> Session:
    """A job that begins, or goes on from its checkpoint."""
    recipe = RECIPES[job.config]
    model, run = learner(recipe, text, job.seed, job.device)
    watch = EarlyStopping(partial(held_loss, held=text.held, every=8),
                          every=max(recipe.steps // 10, 1),
                          patience=recipe.steps)
    run.observers.extend([watch, ProgressBar(), StopKey()])
    run.resume(job.file(CHECKPOINT))
    run.stopped = False
    return Session(job, recipe, text, model, run, watch)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one would say it."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def seconds_a_step(recipe: Recipe, text: Text, device: str) -> float:
    """What the third step takes; earlier ones make memory."""
    _, run = learner(recipe, text, device=device)
    return [run.step()["seconds"] for _ in range(3)][-1]


def draw_losses(history: list[dict[str, Any]], path: Path) -> None:
    """The losses as a picture, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture of the losses: matplotlib is not installed")
        return
    # No pyplot, which would choose a screen to draw on.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    plot_history(history, axes)
    looks = [(row["step"], row["validation"]) for row in history
             if "validation" in row]
    axes.plot(*zip(*looks or [(0, math.nan)]), "C0o-", label="held back")
    axes.legend()
    figure.savefig(path)


def keep(now: Session) -> None:
    """Write the best weights so far, and a picture of the losses."""
    if now.watch.best_model:
        now.model.load_state_dict(now.watch.best_model)
    now.model.save(now.job.file("model.safetensors"))
    draw_losses(now.run.history, now.job.file("losses.svg"))


def conclude(now: Session) -> None:
    """Write result.json, with a text as a sample, and say what it is."""
    job, model, tokenizer = now.job, now.model, now.text.tokenizer
    loss, target = held_loss(model, now.text.held), now.recipe.target
    sample = model.generate(tokenizer.encode("\n"), 400, 0.8,
                            generator=Generator(0))
    found = {
        "config": job.config, "loss": loss, "target": target,
        "steps": now.run.steps, "parameters": model.config.parameters,
        "seconds": sum(row["seconds"] for row in now.run.history),
        "sample": "".join(spoken(tokenizer, sample)),
        "threads": POOL.threads, "device": job.device,
        "machine": machine(), "python": platform.python_version(),
        "date": date.today().isoformat()}
    write_atomically(job.file("result.json"),
                     (json.dumps(found, indent=1) + "\n").encode())
    print(f"loss on letters held back: {loss:.4f}, asked for at most "
          f"{target}: {'reached' if loss <= target else 'MISSED'}\n"
          f"It writes: python -m companion generate "
          f"{shlex.quote(str(job.folder))}")


STOPPED = 128 + signal.SIGINT  # as every program that Ctrl-C ends


def announce(now: Session, each: float, group: Group) -> None:
    """What will be done, and about how long it will take."""
    job, left = now.job, now.recipe.steps - now.run.steps
    many = f", on {group.size} processes" if group.size > 1 else ""
    # A key that mpiexec hears ends all at once.
    key = f"stops: {job.again}" if many else "saves and stops."
    print(f"{job.config}: {now.model.config.parameters:,} parameters, "
          f"{left:,} steps of {now.recipe.batch} x "
          f"{now.model.config.block_size} letters on {job.device}{many}, "
          f"about {duration(each * left)}.\n"
          f"All goes to {job.folder}; Ctrl-C {key}", flush=True)


def work(job: Job, group: Group) -> int:
    """Train until it is done, or Ctrl-C stops it."""
    recipe, text = RECIPES[job.config], plays()
    print("three steps to see how long it takes ...", flush=True)
    each = seconds_a_step(replace(
        recipe, batch=-(-recipe.batch // group.size)), text, job.device)
    now = shared(job, text, group)
    announce(now, each, group)
    first = group.rank == 0
    if first:
        about = {n: getattr(job, n) for n in ("config", "seed", "device")}
        write_atomically(job.file("run.json"), json.dumps(about).encode())
        text.tokenizer.save(job.file("tokenizer.json"))
    try:
        now.run.fit(recipe.steps, job.file(CHECKPOINT))
        if first:
            keep(now)
        if now.run.steps == recipe.steps:
            if first:
                conclude(now)
            return 0
    except KeyboardInterrupt:
        print("\nstopped at once", end=": ")
    print(f"last checkpoint: {now.run.saved}; go on with\n{job.again}")
    return STOPPED


def begun(job: Job) -> Job:
    """A new run; a ValueError where the folder holds one."""
    if job.file("run.json").exists():
        raise ValueError(f"{job.folder} holds a run; go on with it: "
                         f"{job.again}; or choose another: --out FOLDER")
    return job


def resumed(folder: Path, device: str | None) -> Job:
    """The run of a folder, on the device that it had, or another."""
    try:
        job = Job(folder, **json.loads((folder / "run.json").read_text()))
        varied(job.config)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no run to go on with ({error!r}); begin one: "
            f"python -m companion train gpt --config cpu "
            f"--out {shlex.quote(str(folder))}") from None
    return replace(job, device=device or job.device)


def job_of(options: argparse.Namespace) -> Job:
    """The run that is asked for."""
    if options.resume:
        return resumed(options.resume, options.device)
    config = options.config or "cpu"
    others = [f"{name}={getattr(options, name)}"
              for name in ("steps", "batch") if getattr(options, name)]
    return begun(Job(options.out or Path(f"_build/gpt-{config}"),
                     varied(" ".join([config, *others])),
                     options.seed or 0, options.device or "cpu"))


def options_of(argv: list[str]) -> argparse.Namespace:
    """What was typed; --resume goes with --device alone."""
    parser = argparse.ArgumentParser(prog="python -m companion train")
    parser.add_argument("what", choices=["gpt"])
    parser.add_argument("--config", choices=RECIPES, help="recipe (cpu)")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="where it is kept (_build/gpt-CONFIG)")
    parser.add_argument("--seed", type=int, help="of a new run (0)")
    parser.add_argument("--steps", type=count, help="as in the recipe")
    parser.add_argument("--batch", type=count, help="rows of all workers")
    parser.add_argument("--device", choices=DEVICES | DRIVERS,
                        help="where it runs (cpu)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER",
                        help="go on with the run in there")
    options = parser.parse_args(argv)
    given = [options.config, options.out, options.seed, options.steps,
             options.batch]
    if options.resume and given != [None] * 5:
        parser.error("--resume takes config, seed, steps, batch and folder "
                     "from the run; beside it only --device can be given")
    return options


def main(argv: list[str]) -> int:
    """Train a GPT on Shakespeare, or go on: train gpt --config cpu."""
    options = options_of(argv)
    with world() as group, open(os.devnull, "w") as nobody:
        with redirect_stdout(nobody if group.rank else sys.stdout):
            status = obeyed(options, group)
        if status == 2 and group.size > 1:
            raise SystemExit(status)  # inside: it ends the others as well
        return status


def shared(job: Job, text: Text, group: Group) -> Session:
    """A job that begins or goes on, on the workers of a group."""
    if group.size == 1:
        return prepared(job, text)
    if group.rank:
        barrier(group)  # worker 0 reads first, and clears up before
    now = prepared(job, text)
    if group.rank == 0:
        barrier(group)
    watching = now.run.observers
    now.run.observers = [x for x in watching if group.rank == 0
                         or not isinstance(x, ProgressBar)]
    return now._replace(run=parallel(now.run, group))


def varied(name: str) -> str:
    """A recipe's name, such as "cpu" or "cpu steps=9"; makes it known."""
    if name not in RECIPES:
        base, *others = str(name).split()
        changes: dict[str, Any] = {
            key: int(n) for key, n in (x.split("=") for x in others)}
        RECIPES[name] = replace(RECIPES[base], **changes)
    return name


def count(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


def obeyed(options: argparse.Namespace, group: Group) -> int:
    """Do what was typed; what cannot be done is one line."""
    try:
        job = job_of(options)
        barrier(group)  # before anybody writes what others look for
        return work(job, group)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped before the first step")
        return STOPPED
