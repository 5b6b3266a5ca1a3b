# Tangled from benchmarking: edit there, `make tangle`. sha256:5d307cb50bdc
"""How do we know? Verdicts on times, and results that can be checked."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays, save as save_arrays

from companion.activations import relu
from companion.convolution import Conv2d, Flatten
from companion.data import (
    Arrays, DataLoader, cifar10, drawn_digits, mnist, names)
from companion.dtype import float32
from companion.embedding import Embedding
from companion.layers import Linear, Module, Sequential
from companion.losses import cross_entropy
from companion.milestones.language import plays
from companion.milestones.pictures import (
    genuine, residual_net, seen_as, standard)
from companion.milestones.report import Unmeasured
from companion.native import POOL
from companion.optim import AdamW
from companion.sequence import LETTERS, split_names
from companion.tensor import Tensor
from companion.tensor.random import manual_seed
from companion.timing import machine, versions
from companion.training import (
    NotFinite, Trainer, evaluating, one_cycle, write_atomically)
from companion.transformer import GPT, GPTConfig, windows

Clock = Callable[[], float]


def clocked(run: Callable[[], Any], clock: Clock = perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    run()
    return clock() - start


def times(run: Callable[[], Any], rounds: int, warm_up: int = 1,
          clock: Clock = perf_counter) -> np.ndarray:
    """Seconds of each of `rounds` calls, after some that do not count."""
    found = [clocked(run, clock) for _ in all_rounds(rounds, warm_up)]
    return np.array(found[warm_up:])


def all_rounds(rounds: int, warm_up: int) -> range:
    """The rounds that warm up, and those that count: 1 or more."""
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"expected 1 round or more and a warm_up of 0 or "
                         f"more, got {rounds} and {warm_up}")
    return range(warm_up + rounds)


def interval(values: Any, statistic: Callable[..., Any] = np.median,
             level: float = 0.95, draws: int = 2000,
             seed: int = 0) -> tuple[float, float]:
    """Bounds of a statistic by the bootstrap (Efron, 1979).

    `statistic(rows, axis=-1)` of two or more finite values; the
    middle `level` of what it is on samples of the sample.
    """
    x = finite_row(values)
    if len(x) < 2:
        raise ValueError("interval: expected 2 values or more, got 1: how "
                         "much it varies cannot be seen; measure again")
    if not (0 < level < 1 and draws > 0):
        raise ValueError(f"interval: expected a level between 0 and 1, and "
                         f"1 draw or more, got {level} and {draws}")
    draw = np.random.default_rng(seed)
    # In parts: all draws of a million times would be gigabytes.
    size = max(1, 2 ** 20 // len(x))
    parts = [min(size, draws - i) for i in range(0, draws, size)]
    found = np.concatenate([statistic(
        x[draw.integers(0, len(x), (n, len(x)))], axis=-1) for n in parts])
    tail = (1 - level) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def finite_row(values: Any) -> np.ndarray:
    """Values as a row of float64; a ValueError if any is not finite."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"expected a row of finite numbers, got shape "
                         f"{x.shape} with {np.isfinite(x).sum()} finite")
    return x


def in_turn(one: Callable[[], Any], other: Callable[[], Any], rounds: int,
            warm_up: int = 1, clock: Clock = perf_counter,
            seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of both, a pair a round; a coin says who goes first."""
    coin = np.random.default_rng(seed)
    pairs = []
    for _ in all_rounds(rounds, warm_up):
        second_first = coin.random() < 0.5
        order = [other, one] if second_first else [one, other]
        pair = [clocked(run, clock) for run in order]
        pairs.append(pair[::-1] if second_first else pair)
    found = np.array(pairs[warm_up:])
    return found[:, 0], found[:, 1]


def coins(above: int, below: int) -> float:
    """The sign test (Arbuthnot, 1710): two-sided, and exact.

    The chance that so many coins fall as unevenly, or more so.
    """
    # Python's whole numbers: 2 ** 64 is 0 to NumPy's.
    n, least = int(above) + int(below), int(min(above, below))
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2 ** n)


class Verdict(NamedTuple):
    """A word, and how many times as long the other one takes."""

    word: str  # "faster", "slower" or "cannot tell"
    ratio: float
    low: float
    high: float
    chance: float

    def __str__(self) -> str:
        return (f"{self.word}: ratio {self.ratio:.3f}, from {self.low:.3f} "
                f"to {self.high:.3f}, chance {self.chance:.3f}")


def verdict(ours: Any, other: Any, error: float = 0.05) -> Verdict:
    """Whether `ours` is faster, by times in seconds of one pair a row.

    Of equal programs, a share of at most `error` is told apart.
    """
    a, b = finite_row(ours), finite_row(other)
    if a.shape != b.shape or min(a.min(), b.min()) <= 0:
        raise ValueError(f"verdict: expected as many times above 0 of both, "
                         f"got {len(a)} and {len(b)}, the least "
                         f"{min(a.min(), b.min()):g}")
    if not 0 <= error < 1:
        raise ValueError(f"verdict: expected an error of 0 to less than 1, "
                         f"such as 0.05, got {error}")
    logs, above, below = np.log(b / a), (a < b).sum(), (a > b).sum()
    chance = coins(above, below)  # a tie tells nothing
    word = "cannot tell" if chance > error else (
        "faster" if above > below else "slower")
    # Of a single pair nothing is known but that it was so.
    bounds = interval(logs) if len(logs) > 1 else (-math.inf, math.inf)
    ratio, low, high = np.exp([np.median(logs), *bounds]).tolist()
    return Verdict(word, ratio, low, high, chance)


Split = Sequence[Arrays]  # rows to learn from, and rows to be judged by


@dataclass(frozen=True)
class Task:
    """What is learned, by which model, and the quality to be reached.

    `target` is a share of right answers on rows that were not learned;
    looked at every `every` steps, and missed after `steps`.
    """

    data: Callable[[], Split]
    model: Callable[[], Module]
    target: float
    steps: int
    every: int
    lr: float = 5e-3
    batch: int = 64


def grey(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    """Bytes (B, 28, 28) as floats (B, 1, 28, 28) from 0 to 1."""
    return x.unsqueeze(1).to(float32) * (1 / 255), *rest


def digits() -> Split:
    return [seen_as(data, grey) for data in genuine(mnist, "MNIST")]


def digit_net() -> Sequential:
    """Two convolutions, and ten logits: 3,898 weights."""
    return Sequential(Conv2d(1, 6, 5, 2), relu, Conv2d(6, 12, 5, 2), relu,
                      Flatten(), Linear(192, 10))


def photographs() -> Split:
    sets = genuine(cifar10, "CIFAR-10")
    levels = standard(sets[0].columns[0])
    return [seen_as(data, levels) for data in sets]


def text() -> Split:
    """Windows of 32 letters of plays; every 32nd of those held back."""
    found = plays()
    read, held = [windows(ids, 32) for ids in (found.read, found.held)]
    return read, Arrays(*held[:32_000:32], source=read.source)


def letters() -> Split:
    """Three letters of a name, and the one that comes next."""
    people = names()
    if len(people) < 1000:
        raise Unmeasured(
            "expected 32,033 names, got a few; connect to a network, or set "
            "COMPANION_DATA to a folder with names/names.txt")
    read, held = map(trigrams, split_names(people))
    return read, Arrays(*held[:10_000])


def trigrams(words: Iterable[str]) -> Arrays:
    rows = [[0, 0, 0, *LETTERS.encode(word), 0] for word in words]
    found = np.array([row[i:i + 4] for row in rows
                      for i in range(len(row) - 3)])
    return Arrays(found[:, :3].copy(), found[:, 3].copy())


def speller() -> Sequential:
    """Bengio's network of 2003: three letters, a layer, 27 logits."""
    return Sequential(Embedding(27, 16), Flatten(), Linear(48, 64),
                      Tensor.tanh, Linear(64, 27))


TASKS = {
    "digits": Task(digits, digit_net, 0.96, 1500, 100),
    "photographs": Task(photographs, partial(residual_net, 4), 0.4,
                        3000, 200, lr=1e-2),
    "text": Task(text, partial(GPT, GPTConfig(32, 65, 1, 2, 32, bias=False)),
                 0.38, 3000, 200, lr=1e-2, batch=32),
    "names": Task(letters, speller, 0.28, 2000, 250, lr=1e-2)}


def answers(model: Module, rows: Arrays, size: int = 500) -> np.ndarray:
    """The likeliest class for each target of the rows, as bytes."""
    with evaluating(model):
        found = [model(rows[i:i + size][0]).argmax(-1).numpy()
                 for i in range(0, len(rows), size)]
    return np.concatenate(found).astype(np.uint8)


def quality(given: np.ndarray, rows: Arrays) -> float:
    """The share of answers that are right."""
    return float((given == rows.columns[-1].numpy()).mean())


def loss_of(model: Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


Run = tuple[dict[str, Any], dict[str, np.ndarray]]


def attempt(task: Task, split: Split, seed: int,
            clock: Clock = perf_counter) -> Run:
    """Train to the quality: what was measured, and what shows it."""
    train, judged = split
    start = clock()
    manual_seed(seed)
    model = task.model()
    run = Trainer(model, AdamW(model.parameters(), task.lr), DataLoader(
        train, task.batch, shuffle=True, seed=seed, drop_last=True),
        loss_of, rate=one_cycle(task.steps))
    while True:
        run.fit(run.steps + task.every)
        given = answers(model, judged)
        found = quality(given, judged)
        if found >= task.target or run.steps >= task.steps:
            break
    return ({"seed": seed, "steps": run.steps, "quality": found,
             "seconds": clock() - start},
            {**{name: x.numpy() for name, x in model.state_dict().items()},
             "answers": given})


def rehearsal() -> Split:
    """Digits that need no file: 2,000, and 500 to be judged by."""
    return [Arrays(*drawn_digits(n, seed), transform=grey, source="drawn")
            for n, seed in ((2000, 1), (500, 3))]


def beginning(data: Callable[[], Split], learn: int, judge: int) -> Split:
    """The first rows of both parts."""
    return [Arrays(*[c[:n] for c in part.columns], transform=part.transform,
                   source=part.source)
            for part, n in zip(data(), (learn, judge))]


def short(name: str, target: float, steps: int) -> Task:
    """A task on 12,800 rows, judged by 500."""
    task = TASKS[name]
    return replace(task, data=partial(beginning, task.data, 12_800, 500),
                   target=target, steps=steps, every=50, batch=16)


TASKS |= {
    "rehearsal": Task(rehearsal, digit_net, 0.8, 300, 20),
    "digits-short": short("digits", 0.85, 400),
    "photographs-short": short("photographs", 0.2, 400),
    "text-short": short("text", 0.2, 400),
    "names-short": short("names", 0.2, 400)}

SCHEMA, RUNS = 1, 6
FIELDS = {"schema": int, "task": str, "target": float, "runs": list,
          "seconds": float, "data": str, "arrays": str, "threads": int,
          "memory": float, "machine": str, "versions": dict, "date": str}
RUN = {"seed": int, "steps": int, "quality": float, "seconds": float}


def perform(name: str, clock: Clock = perf_counter,
            ) -> tuple[dict[str, Any], bytes]:
    """A result of RUNS runs, and the arrays that show it, as a file's."""
    task = TASKS[name]
    split = task.data()
    attempt(replace(task, steps=2, every=2), split, 0)  # warms up
    runs: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for seed in range(RUNS):
        row, found = attempt(task, split, seed, clock)
        if row["quality"] < task.target:
            raise Refused(f"{name}, seed {seed}: quality "
                          f"{row['quality']:.4f} after {row['steps']} steps, "
                          f"asked for {task.target}: no result")
        runs.append(row)
        arrays |= {f"{seed}/{key}": x for key, x in found.items()}
    data = save_arrays(arrays)
    return {"schema": SCHEMA, "task": name, "target": task.target,
            "runs": runs, "seconds": middle(runs), "data": hashed(split),
            "arrays": hashlib.sha256(data).hexdigest(), **system()}, data


class Refused(ValueError):
    """A result that does not show what it claims; the text says why."""


def middle(runs: list[dict[str, Any]]) -> float:
    """The median of the runs' seconds."""
    return float(np.median([run["seconds"] for run in runs]))


def hashed(split: Split) -> str:
    """SHA-256 of all rows, those to learn from and those to be judged by."""
    found = hashlib.sha256()
    for part in split:
        for column in part.columns:
            x = np.ascontiguousarray(column.numpy())
            found.update(f"{x.shape} {x.dtype.str}".encode())
            found.update(x.data)
    return found.hexdigest()


def system() -> dict[str, Any]:
    """Where and when it was measured; memory in GB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"threads": POOL.threads, "memory": round(memory, 1),
            "machine": machine(), "versions": versions("numpy"),
            "date": date.today().isoformat()}


def publish(path: Path, result: dict[str, Any], arrays: bytes) -> None:
    """Write a result, and its arrays beside it; those first."""
    write_atomically(arrays_of(path), arrays)
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())


def arrays_of(path: Path) -> Path:
    """Where a result's arrays go; an error if it cannot be written."""
    if path.suffix != ".json" or path.is_dir():
        raise Refused(f"expected the name of a file that ends in .json, got "
                      f"{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_suffix(".safetensors")


def shaped(found: Any, fields: dict[str, type], what: str) -> None:
    """Refuse what has not these fields, of these types, and no others."""
    if type(found) is not dict:
        raise Refused(f"{what}: expected an object, got "
                      f"{type(found).__name__}")
    for name in sorted(found.keys() ^ fields.keys()):
        state = "missing" if name in fields else "not a field of ours"
        raise Refused(f"{what}: {name!r:.40} is {state}")
    for name, kind in fields.items():
        if type(found[name]) is not kind:
            raise Refused(f"{what}: {name} is a {type(found[name]).__name__}"
                          f", expected {kind.__name__}")


def read_result(path: Path) -> dict[str, Any]:
    """What a file claims, if it has the form of a result."""
    try:
        found = json.loads(whole(path), parse_constant=no_number,
                           object_pairs_hook=said_once)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path.name} is no result ({error})") from None
    if type(found) is dict and found.get("schema", SCHEMA) != SCHEMA:
        raise Refused(f"{path.name}: schema {found['schema']!r:.20}, this "
                      f"library reads {SCHEMA}")
    shaped(found, FIELDS, path.name)
    for run in found["runs"]:
        shaped(run, RUN, f"{path.name}, a run")
    return found


LARGEST = 50_000_000  # bytes of a file that is read


def whole(path: Path) -> bytes:
    """The content of a regular file of reasonable size."""
    try:
        if path.is_file() and path.stat().st_size <= LARGEST:
            return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path.name:.40}: {error.strerror}") from None
    raise Refused(f"{path.name}: expected a file of at most "
                  f"{LARGEST:,} bytes")


def no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def said_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a ValueError where it says a thing twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is there twice")
    return found


def check_claims(found: dict[str, Any]) -> None:
    """Refuse what contradicts the suite, or itself."""
    name, runs = found["task"], found["runs"]
    if name not in TASKS:
        raise Refused(f"no task {name!r:.40}; there are {', '.join(TASKS)}")
    task = TASKS[name]
    least = min((run["quality"] for run in runs), default=0.0)
    positive = [run["seconds"] > 0 and math.isfinite(run["seconds"])
                for run in runs]
    for holds, problem in (
            (found["target"] == task.target, f"the target of {name} is "
             f"{task.target}, not {found['target']}"),
            ([run["seed"] for run in runs] == list(range(RUNS)),
             f"expected runs with the seeds 0 to {RUNS - 1}, in order"),
            (task.target <= least <= 1, f"a run has a quality of {least}, "
             f"asked for {task.target}"),
            (all(run["steps"] in range(task.every, task.steps + 1,
                                       task.every) for run in runs),
             f"a run has not {task.every}, {2 * task.every}, … or "
             f"{task.steps} steps"),
            (found["threads"] > 0 and 0 < found["memory"] < math.inf,
             "threads and memory are not numbers above 0"),
            (all(positive), "a run's seconds are not above 0"),
            (bool(runs) and found["seconds"] == middle(runs),
             f"{found['seconds']} s is not the median of the runs")):
        if not holds:
            raise Refused(problem)


DOUBT = 1e-3  # share of answers that may differ on another processor


def verify(path: Path) -> dict[str, Any]:
    """The result in a file, its quality recomputed from its weights.

    Raises Refused where a claim does not hold, and Unmeasured where the
    data to check it is not here.
    """
    found = read_result(path)
    check_claims(found)
    task = TASKS[found["task"]]
    split = task.data()
    if hashed(split) != found["data"]:
        raise Refused("it was measured on other data than that of its task")
    held = whole(path.with_suffix(".safetensors"))
    if hashlib.sha256(held).hexdigest() != found["arrays"]:
        raise Refused("the arrays are not those that the result names")
    shown = by_seed(held)
    for run, arrays in zip(found["runs"], shown):
        check_run(task, split[-1], run, arrays)
    # Left are the weights, and no two seeds lead to the same.
    if len({save_arrays(arrays) for arrays in shown}) < RUNS:
        raise Refused("two runs show the same weights")
    return found


def check_run(task: Task, rows: Arrays, run: dict[str, Any],
              arrays: dict[str, np.ndarray]) -> None:
    """Refuse weights that do not give the answers, or the quality."""
    model, given = task.model(), arrays.pop("answers", np.zeros(0))
    try:
        model.load_state_dict(arrays)
    except (TypeError, ValueError) as error:
        told = " ".join(str(error).split())  # of one line
        raise Refused(f"seed {run['seed']}: {told:.200}") from None
    own = answers(model, rows)
    if given.shape != own.shape or (given != own).mean() > DOUBT:
        raise Refused(f"seed {run['seed']}: the weights give other answers")
    if quality(given, rows) != run["quality"] or (
            quality(own, rows) < task.target - DOUBT):
        raise Refused(f"seed {run['seed']}: of the answers "
                      f"{quality(given, rows):.4f} are right, claimed "
                      f"{run['quality']:.4f}")


def by_seed(data: bytes) -> list[dict[str, np.ndarray]]:
    """The arrays of each run, out of the content of a file."""
    try:
        arrays = load_arrays(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"no whole safetensors file ({error})") from None
    found: list[dict[str, np.ndarray]] = [{} for _ in range(RUNS)]
    seeds = {str(seed): seed for seed in range(RUNS)}
    for key, x in arrays.items():
        seed, _, name = key.partition("/")
        if seed not in seeds:
            raise Refused(f"an array called {key!r:.40} belongs to no run")
        found[seeds[seed]][name] = x
    return found


def contest(one: Path, other: Path) -> Verdict:
    """The first file against the second, run by run; both verified.

    It tells these runs apart: days differ too, and no coin mixed them.
    """
    found = [verify(path) for path in (one, other)]
    tasks = {result["task"] for result in found}
    if len(tasks) > 1:
        raise Refused(f"two tasks, {' and '.join(sorted(tasks))}: seconds "
                      f"of different work do not compare")
    one_took, other_took = [[run["seconds"] for run in result["runs"]]
                            for result in found]
    return verdict(one_took, other_took)


def plain(text: str) -> str:
    """A stranger's text, with nothing in it that a page would obey."""
    return re.sub(r"[^\w .,:;()@+-]", "?", text)[:160]


def board(paths: Iterable[Path]) -> list[str]:
    """A table in Markdown of what holds, the fastest of a task first."""
    found, rest = [], []
    for path in sorted(paths):
        try:
            found.append(verify(path))
        except (Refused, Unmeasured) as error:
            rest.append(f"\n`{plain(path.name)}` is not listed: "
                        f"{plain(str(error))}")
    head = ["| task | quality | seconds | threads | machine | date |",
            "|---|--:|--:|--:|---|---|"]
    found.sort(key=lambda r: (r["task"], r["seconds"]))
    return [*head, *[
        f"| {r['task']} | ≥ {r['target']} | {r['seconds']:.2f} | "
        f"{r['threads']} | {plain(r['machine'])} | {plain(r['date'])} |"
        for r in found], *rest]


def main(argv: list[str]) -> int:
    """Train to a quality, and check results: suite run NAME."""
    parser = argparse.ArgumentParser(prog="python -m companion suite")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="six runs, and a file")
    run.add_argument("name", choices=TASKS)
    run.add_argument("--out", type=Path, metavar="FILE",
                     help="(_build/suite/NAME.json)")
    for verb, count, about in (("compare", 2, "faster, slower, or neither"),
                               ("verify", "+", "recompute what is claimed")):
        verbs.add_parser(verb, help=about).add_argument(
            "files", type=Path, nargs=count, metavar="FILE")
    try:
        return obeyed(parser.parse_args(argv))
    except (OSError, NotFinite, Refused, Unmeasured) as error:
        print(f"suite: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: no result was written")
        return 128 + signal.SIGINT  # as every program that Ctrl-C ends


def told_of(path: Path) -> int:
    """Say whether a file holds; 1 if it does not, or cannot be checked."""
    try:
        found = verify(path)
    except (Refused, Unmeasured) as error:
        kind = type(error).__name__.lower()
        print(f"{path}: {kind}: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {found['task']} holds, {found['seconds']:.2f} s")
    return 0


def obeyed(options: argparse.Namespace) -> int:
    """Do what was asked for, and say what came of it."""
    if options.verb == "compare":
        print(contest(*options.files))
    elif options.verb == "verify":
        return max(map(told_of, options.files))
    else:
        path = options.out or Path(f"_build/suite/{options.name}.json")
        arrays_of(path)  # a wrong name is told before the runs, not after
        result, arrays = perform(options.name)
        publish(path, result, arrays)
        print(f"{options.name}: {result['seconds']:.2f} s to "
              f"{result['target']}, in {path}")
    return 0
