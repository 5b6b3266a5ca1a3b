# Tangled from language: edit there, `make tangle`. sha256:6e2ab8a2290c
from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import shlex
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from companion.device import DEVICES, DRIVERS
from companion.milestones.language import (
    RECIPES,
    Recipe,
    Text,
    held_loss,
    learner,
    plays,
)
from companion.native import POOL
from companion.tensor.random import Generator
from companion.timing import machine
from companion.training import (
    EarlyStopping,
    Observer,
    ProgressBar,
    Trainer,
    plot_history,
    write_atomically,
)
from companion.transformer import spoken, training_step

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
        signal.signal(signal.SIGINT, self.before)

    def look(self, run: Trainer, row: dict[str, float]) -> None:
        # Not in `ask`, which may come when a step is half done.
        run.stopped = self.asked

    def end(self, run: Trainer) -> None:
        signal.signal(signal.SIGINT, self.before)


def prepared(job: Job, text: Text) -> tuple[Trainer, EarlyStopping]:
    """A run that begins, or goes on, and what looks at its loss."""
    recipe = RECIPES[job.config]
    run = learner(recipe, text, job.seed, job.device)
    watch = EarlyStopping(partial(held_loss, held=text.held, every=8),
                          every=max(recipe.steps // 10, 1),
                          patience=recipe.steps)
    run.observers.extend([watch, ProgressBar(), StopKey()])
    run.resume(job.file(CHECKPOINT))
    run.stopped = False
    return run, watch


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one would say it."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def seconds_a_step(recipe: Recipe, device: str) -> float:
    """What the second of two steps takes; the first makes memory."""
    step = training_step(recipe.config, recipe.batch, POOL.threads, device)
    step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def draw_losses(history: list[dict[str, Any]], path: Path) -> None:
    """The losses as a picture, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture of the losses: matplotlib is not installed")
        return
    # No pyplot, which would choose a screen to draw on.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    plot_history(history, axes)
    looks = [(row["step"], row["validation"]) for row in history
             if "validation" in row]
    axes.plot(*zip(*looks or [(0, math.nan)]), "C0o-", label="held back")
    axes.legend()
    figure.savefig(path)


def keep(job: Job, run: Trainer, watch: EarlyStopping) -> None:
    """Write the best weights so far, and a picture of the losses."""
    if watch.best_model:
        run.model.load_state_dict(watch.best_model)
    run.model.save(job.file("model.safetensors"))
    draw_losses(run.history, job.file("losses.svg"))


def conclude(job: Job, run: Trainer, text: Text) -> None:
    """Write result.json, with a text as a sample, and say what it is."""
    target, model = RECIPES[job.config].target, run.model
    loss = held_loss(model, text.held)
    sample = model.generate(text.tokenizer.encode("\n"), 400, 0.8,
                            generator=Generator(0))
    found = {
        "config": job.config, "loss": loss, "target": target,
        "steps": run.steps, "parameters": model.config.parameters,
        "seconds": sum(row["seconds"] for row in run.history),
        "sample": "".join(spoken(text.tokenizer, sample)),
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


def announce(job: Job, run: Trainer, each: float) -> None:
    """What will be done, and about how long it will take."""
    recipe, left = RECIPES[job.config], RECIPES[job.config].steps - run.steps
    print(f"{job.config}: {run.model.config.parameters:,} parameters, "
          f"{left:,} steps of {recipe.batch} x {recipe.config.block_size} "
          f"letters on {job.device}, about {duration(each * left)}.\n"
          f"All goes to {job.folder}; Ctrl-C saves and stops.", flush=True)


def work(job: Job) -> int:
    """Train until it is done, or Ctrl-C stops it."""
    recipe, text = RECIPES[job.config], plays()
    print("two steps to see how long it takes ...", flush=True)
    each = seconds_a_step(recipe, job.device)
    run, watch = prepared(job, text)
    announce(job, run, each)
    about = {n: getattr(job, n) for n in ("config", "seed", "device")}
    write_atomically(job.file("run.json"), json.dumps(about).encode())
    text.tokenizer.save(job.file("tokenizer.json"))
    try:
        run.fit(recipe.steps, job.file(CHECKPOINT))
        keep(job, run, watch)
        if run.steps == recipe.steps:
            conclude(job, run, text)
            return 0
    except KeyboardInterrupt:
        print("\nstopped at once", end=": ")
    print(f"last checkpoint: {run.saved}; go on with\n{job.again}")
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
        RECIPES[job.config]
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
    return begun(Job(options.out or Path(f"_build/gpt-{config}"), config,
                     options.seed or 0, options.device or "cpu"))


def options_of(argv: list[str]) -> argparse.Namespace:
    """What was typed; --resume goes with --device alone."""
    parser = argparse.ArgumentParser(prog="python -m companion train")
    parser.add_argument("what", choices=["gpt"])
    parser.add_argument("--config", choices=RECIPES, help="recipe (cpu)")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="where it is kept (_build/gpt-CONFIG)")
    parser.add_argument("--seed", type=int, help="of a new run (0)")
    parser.add_argument("--device", choices=DEVICES | DRIVERS,
                        help="where it runs (cpu)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER",
                        help="go on with the run in there")
    options = parser.parse_args(argv)
    given = [options.config, options.out, options.seed]
    if options.resume and given != [None] * 3:
        parser.error("--resume takes config, seed and folder from the run; "
                     "beside it only --device can be given")
    return options


def main(argv: list[str]) -> int:
    """Train a GPT on Shakespeare, or go on: train gpt --config cpu."""
    options = options_of(argv)
    try:
        return work(job_of(options))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped before the first step")
        return STOPPED
