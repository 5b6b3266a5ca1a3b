# Tangled from serving: edit there, `make tangle`. sha256:f26c3d723aa7
from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any, NamedTuple

import numpy as np

from companion.cache import Ahead, CachedGPT
from companion.milestones.decode_bench import most_tokens
from companion.milestones.generate import loaded
from companion.milestones.language import (
    Recipe, Text, learner, letters_loss, plays)
from companion.milestones.report import Report, judged
from companion.native import POOL
from companion.quantize import lightened
from companion.serve import ask
from companion.tensor import Tensor
from companion.timing import best, limits
from companion.tokenizer import CharTokenizer
from companion.training import Observer, ProgressBar, evaluate
from companion.transformer import CONFIGS, GPT, GPTConfig

CLIENTS = (1, 4, 16)


def questions(text: Text, size: int, count: int) -> list[dict[str, Any]]:
    """Prompts of 8 held-out letters; answers that leave 8 places free."""
    most = len(text.held) - 8
    starts = [i * 8 % most for i in range(count)]
    return [{"prompt": text.tokenizer.decode(text.held[i:i + 8].tolist()),
             "tokens": size - 16, "seed": seed}
            for seed, i in enumerate(starts)]


def letter_times(url: str, question: dict[str, Any]) -> np.ndarray:
    """Seconds until each letter of an answer is there, (tokens,)."""
    start, times = time.perf_counter(), list[float]()
    for line in ask(url, **question):
        letters = len(line.get("text", ""))
        times += [time.perf_counter() - start] * letters
    if len(times) != question["tokens"]:
        raise RuntimeError(f"{url}: expected {question['tokens']} letters, "
                           f"got {len(times)}")
    return np.array(times)


def heard(url: str, clients: int,
          asked: list[dict[str, Any]]) -> tuple[float, np.ndarray]:
    """Seconds until all have their answers, and of each answer until its
    letters are there, (answers, tokens)."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as people:
        found = list(people.map(partial(letter_times, url), asked))
    return time.perf_counter() - start, np.array(found)


def load(url: str, clients: int, asked: list[dict[str, Any]],
         ) -> dict[str, float]:
    """Tokens a second of all clients together; milliseconds of one."""
    seconds, times = heard(url, clients, asked)
    first, last = 1e3 * times[:, 0], 1e3 * times[:, -1]
    return {"tok/s": times.size / seconds,
            "first ms": float(np.median(first)),
            "p50 ms": float(np.percentile(last, 50)),
            "p99 ms": float(np.percentile(last, 99))}


def pieces(held: np.ndarray, size: int, every: int) -> np.ndarray:
    """Held-out letters in rows of `size`, one behind the other; of the
    rows, `every` n-th."""
    rows = len(held) // size
    return held[:rows * size].reshape(rows, size)[::every]


def heard_loss(url: str, text: Text, size: int, every: int = 1) -> float:
    """Nats a letter, as the served model says itself."""
    prompts = [text.tokenizer.decode(row.tolist())
               for row in pieces(text.held, size, every)]
    with ThreadPoolExecutor(max(CLIENTS)) as people:
        found = list(people.map(
            lambda row: next(ask(url, "/loss", prompt=row)), prompts))
    if strange := [one for one in found if one["tokens"] != size - 1]:
        raise RuntimeError(f"{url}: expected the loss of {size - 1} tokens, "
                           f"got {strange[0]}")
    return sum(one["nats"] for one in found) / len(found) / (size - 1)


def written_rate(model: GPT, text: Text, rounds: int = 3) -> float:
    """Tokens a second of `generate`: the best of some answers."""
    def write(one: dict[str, Any]) -> None:
        for _ in model.generate(text.tokenizer.encode(one["prompt"]),
                                one["tokens"], generator=Ahead(one["seed"])):
            pass

    (one,) = questions(text, model.config.block_size, 1)
    return one["tokens"] / best(lambda: write(one), rounds)


class Baseline(NamedTuple):
    """The eager float32 model: bytes of its file, tokens a second of
    `generate`, nats for a held-out letter."""

    config: GPTConfig
    nbytes: int
    rate: float
    nats: float


def baseline(folder: Path, text: Text, every: int = 1) -> Baseline:
    """Measured on the float32 model of a folder."""
    model, _ = loaded(folder, "cpu")
    rows = pieces(text.held, model.config.block_size, every)
    nats = evaluate(model, letters_loss, Tensor(rows[:, :-1]),
                    Tensor(rows[:, 1:]), size=32)
    return Baseline(
        model.config, (folder / "model.safetensors").stat().st_size,
        max(written_rate(m, text) for m in (model, CachedGPT(model))), nats)


TARGETS = {"smaller": ("≥", 4.0), "faster": ("≥", 4.0),
           "nats lost": ("≤", 0.02), "nats": ("≤", 2.2)}


def capstone(url: str, nbytes: int, base: Baseline, text: Text,
             targets: dict[str, tuple[str, float]] = TARGETS,
             every: int = 1) -> Report:
    """An entry of so many bytes, served at `url`, beside the baseline."""
    start, size = time.perf_counter(), base.config.block_size
    loads = {n: load(url, n, questions(text, size, 6 * n)) for n in CLIENTS}
    nats = heard_loss(url, text, size, every)
    found = (base.nbytes / nbytes, loads[1]["tok/s"] / base.rate,
             nats - base.nats, nats)
    rows = [judged(task, value, *targets[task], start)
            for task, value in zip(targets, found)]
    done = [row["done"] == "yes" for row in rows]
    rows += figures(base, nbytes, loads, start)
    return Report("the systems age", "share of tasks done",
                  sum(done) / len(done), 1.0, rows,
                  time.perf_counter() - start)


def folder_bytes(folder: Path) -> int:
    """All that is in it."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def figures(base: Baseline, nbytes: int, loads: dict[int, dict[str, float]],
            start: float) -> list[dict[str, Any]]:
    """Rows of a report that nothing is asked of, the bounds among them."""
    found = {"bytes": nbytes, "was bytes": base.nbytes,
             "was tok/s": base.rate, "was nats": base.nats}
    bandwidth = limits(POOL.threads).bandwidth
    for n, measured in loads.items():
        found |= {f"{n} {what}": x for what, x in measured.items()}
        found[f"{n} limit"] = most_tokens(base.config, n, bandwidth)
    seconds = round(time.perf_counter() - start, 1)
    return [{"task": name, "found": round(x, 4), "asked": "-", "done": "-",
             "seconds": seconds} for name, x in found.items()]


RECIPES = {
    "short": Recipe(GPTConfig(32, 65, 2, 4, 64, bias=False),
                    16, 240, 5e-3, 20, 2.5),
    "long": Recipe(CONFIGS["cpu"], 12, 600, 2e-3, 60, 2.2)}
SHORT = TARGETS | {"faster": ("≥", 2.0), "nats": ("≤", 2.6)}


def keep(model: GPT, tokenizer: CharTokenizer, folder: Path) -> Path:
    """Write both to a folder, for `host` and `generate`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.safetensors")
    tokenizer.save(folder / "tokenizer.json")
    return folder


def trained(recipe: Recipe, text: Text,
            observers: Sequence[Observer] = ()) -> GPT:
    """A GPT that was trained by `jit`, on the CPU."""
    model, run = learner(recipe, text, device="lazy")
    run.observers.extend(observers)
    run.fit(recipe.steps)
    model.to("cpu")
    return model


ADDRESS = re.compile(r"http://(\[[\da-fA-F:]+\]|[\w.-]+):\d+")
PATIENCE = 300.0  # seconds for a server to open, and as many to close


def listened(output: IO[str], found: SimpleQueue[str]) -> None:
    """Give on the line with an address, or the last; read to the end."""
    with output:
        said = ""
        for said in output:
            if ADDRESS.search(said):
                break
        found.put(said)
        for _ in output:  # nobody needs it
            pass


def ended(process: subprocess.Popen[str]) -> int:
    """The exit status of a process that is asked to end, or made to."""
    process.terminate()
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def started(command: Sequence[str]) -> Iterator[str]:
    """A server in a process of its own: the address that it prints."""
    # It finds the library where we have found it, and else its own.
    path = os.pathsep.join(filter(None, (
        str(Path(inspect.getfile(GPT)).parents[1]),
        os.environ.get("PYTHONPATH"))))
    found, said = SimpleQueue[str](), ""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, errors="replace",
        env=os.environ | {"PYTHONPATH": path})
    try:
        Thread(target=listened, args=(process.stdout, found),
               daemon=True).start()
        with suppress(Empty):  # nothing came, which is said below
            said = found.get(timeout=PATIENCE)
        if not (address := ADDRESS.search(said)):
            raise RuntimeError(f"{shlex.join(command)}: expected the "
                               f"address of a server, got {said!r}")
        yield address[0]
    finally:
        status = ended(process)
    if status:
        raise RuntimeError(f"{shlex.join(command)}: ended with {status}, "
                           f"expected 0")


def entered(folder: Path, command: Sequence[str], plain: Path,
            every: int = 1) -> Report:
    """The report on an entry: its folder, and what starts its server.

    `plain` is the folder of the float32 model that it was made of.
    """
    if not (nbytes := folder_bytes(folder)):
        raise ValueError(f"{folder}: expected what the server reads, and "
                         f"there is nothing")
    text = plays()
    base = baseline(plain, text, every)
    with started(command) as url:
        return capstone(url, nbytes, base, text, every=every)


def hosted(folder: Path) -> list[str]:
    """The command for a folder that our own server can read."""
    return [sys.executable, "-m", "companion", "host", str(folder),
            "--port", "0", "--slots", str(max(CLIENTS))]


def milestone() -> Report:
    """Our entry: the GPT of `train gpt`, or one that is trained here."""
    with tempfile.TemporaryDirectory() as home:
        text, found = plays(), Path("_build/gpt-cpu/model.safetensors")
        model = GPT.load(found) if found.exists() else trained(
            RECIPES["long"], text, [ProgressBar()])
        plain, small = [
            keep(one, text.tokenizer, Path(home, name)) for name, one in (
                ("plain", model), ("small", lightened(model)))]
        return entered(small, hosted(small), plain)
