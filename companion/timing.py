# Tangled from native, blas, activations, mnist, gpu, convolution, pictures, attention, transformers, capture, profiling, memoization, quantization, compression, scaling, serving, vocabulary: edit there, `make tangle`. sha256:e17bf54c3114  # noqa: E501
from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import import_module
from statistics import quantiles
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from companion.buffer import Buffer
from companion.native import compiler, cpu, kernel
from companion.ops import CAST, GATHER, WRITE, Op


def best(run: Callable[[], Any], rounds: int = 5) -> float:
    """The shortest of several times, in seconds."""
    times = []
    for _ in range(rounds):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)


class Limits(NamedTuple):
    """What a machine can do: GFLOP/s, and GB/s from memory."""

    peak: float
    bandwidth: float


def limits(threads: int = 1) -> Limits:
    """Measure the peak and the bandwidth of some threads together."""
    library = kernel("kernels/limits.c")
    # 32 MB an array: more than caches hold, or we would measure those.
    steps, size = 1 << 17, 1 << 23
    x = np.ones((2, threads, size), np.float32)

    def work(i: int) -> float:
        """The rate of one thread while the others work as well."""
        count = library.multiply_add(steps, 0.5, 0.5, x[0, i])
        return count / best(lambda: library.multiply_add(
            steps, 0.5, 0.5, x[0, i]), 100)

    def move(i: int) -> None:
        library.update(size, 0.5, *x[:, i])

    with ThreadPoolExecutor(threads) as workers:
        peak = sum(workers.map(work, range(threads)))
        seconds = best(lambda: list(workers.map(move, range(threads))), 15)
    return Limits(peak / 1e9, 12 * threads * size / seconds / 1e9)


FORK = multiprocessing.get_context("fork")
Setup = Callable[[], Callable[[], Any]]


class Rival:
    """A program in a process of its own that runs when it is its turn."""

    def __init__(self, setup: Setup) -> None:
        self.pipe, end = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(setup, end),
                                    daemon=True)
        self.process.start()
        # Our copy of its end, or no EOFError would tell that it has died.
        end.close()
        self.result = self.answer()

    def answer(self) -> Any:
        """What it sends next; it stands still afterwards."""
        try:
            found = self.pipe.recv()
        except EOFError:
            raise RuntimeError("a program that was to be timed has failed; "
                               "its own message stands above") from None
        # Threads and all: those of its library spin on after the last call,
        # and would take the other rival's processors.
        os.kill(self.process.pid or 0, signal.SIGSTOP)
        return found

    def turn(self) -> float:
        """The shortest call of a burst, in seconds."""
        os.kill(self.process.pid or 0, signal.SIGCONT)
        self.pipe.send(None)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(setup: Setup, pipe: Any) -> None:
    """In the rival's process: a first result, then bursts on demand."""
    run = setup()
    pipe.send(run())
    while True:
        pipe.recv()
        pipe.send(burst(run))


def burst(run: Callable[[], Any]) -> float:
    """The shortest call of some milliseconds, after as many to warm up."""
    shortest = []
    for _ in "warm up", "measure":
        times = [best(run, 1)]
        while sum(times) < 4e-3:
            times.append(best(run, 1))
        shortest.append(min(times))
    return shortest[1]


class Comparison(NamedTuple):
    """Two programs timed in turn; a ratio above 1 is in favour of ours."""

    ours: float
    peer: float
    ratio: float
    spread: float

    def line(self, measure: Callable[[float], float],
             limit_fraction: float | None = None) -> dict[str, Any]:
        """What a bench says of it; `measure` makes its unit of seconds."""
        return {"ours": measure(self.ours), "peer": measure(self.peer),
                "ratio": self.ratio, "spread": self.spread,
                "limit_fraction": limit_fraction}


def turns(one: Callable[[], float], other: Callable[[], float],
          rounds: int) -> Comparison:
    """Two timings in turn; the first pair warms up and is left out."""
    pairs = [(one(), other()) for _ in range(rounds + 1)][1:]
    low, middle, high = quantiles([p / o for o, p in pairs], n=4)
    a, b = zip(*pairs)
    # A rival kept waiting at most of its turns is slow by the median alone.
    apart = abs(middle - min(b) / min(a))
    return Comparison(min(a), min(b), middle, max(high - low, apart))


def compare(ours: Setup, peer: Setup, rounds: int = 15, tries: int = 1,
            agree: Callable[[Any, Any], None] | None = None) -> Comparison:
    """Best times in seconds, median and spread of peer time / our time.

    Each argument makes, in a process of its own, the function that is
    timed. `agree` gets what both return and raises if they differ.
    """
    # One after the other, so that the first ends if the second cannot begin.
    rivals: list[Rival] = []
    try:
        rivals += [Rival(ours)]
        rivals += [Rival(peer)]
        if agree:
            agree(*[rival.result for rival in rivals])
        one, other = rivals
        return steadiest(lambda: turns(one.turn, other.turn, rounds), tries)
    finally:
        for rival in rivals:
            rival.end()


def steadiest(attempt: Callable[[], Comparison],
              tries: int = 5) -> Comparison:
    """The comparison with the least spread; under 5 % ends the search."""
    def unrest(found: Comparison) -> float:
        return found.spread / found.ratio

    found = attempt()
    while unrest(found) > 0.05 and tries > 1:
        found, tries = min(found, attempt(), key=unrest), tries - 1
    return found


def judged(found: dict) -> dict:
    """A measurement, or the reason why it is refused in its place."""
    ratio, spread = found["ratio"], found["spread"]
    limit = found["limit_fraction"]
    if ratio is None:
        return found
    if spread > max(0.1, abs(ratio - 1) / 2):
        reason = f"its spread, {spread:.2f}, exceeds half its effect"
    elif limit is not None and limit / ratio < 0.1:
        reason = (f"{found['peer_name']} reaches {limit / ratio:.0%} "
                  f"of the limit")
    else:
        return found
    return found | MISSING | {"refused": reason}


ONCE = {"tangle"}  # benches on which threads have no influence
THREADS = ("COMPANION_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
           "OMP_NUM_THREADS")


def measure(name: str, threads: int, quick: bool) -> Iterator[dict]:
    """The measurements of one bench, made by a process of its own."""
    # Libraries read the number of threads once, when they are loaded.
    code = (f"import json\nfrom {BENCHES[name]} import bench\n"
            f"for found in bench({threads}, {quick}):\n"
            f"    print(json.dumps(found), flush=True)")
    count = dict.fromkeys(THREADS, str(threads))
    with subprocess.Popen([sys.executable, "-c", code], text=True,
                          env=os.environ | count,
                          stdout=subprocess.PIPE) as process:
        for line in process.stdout or ():
            yield judged(json.loads(line))
    if process.returncode:
        raise SystemExit(f"bench {name}: failed on {threads} threads")


def machine() -> str:
    """The processor's name, and how many of them the machine has."""
    name = cpu().partition("\n")[0].partition(":")[2].strip()
    units = {"avx512f": " (AVX-512)", "avx2": " (AVX2)"}
    kind = [units[flag] for flag in units if flag in cpu().split()][:1]
    return (f"{name or platform.machine()}{''.join(kind)}, "
            f"{os.cpu_count()} processors")


def versions(peer: str) -> dict[str, str]:
    """What has been compared with what, for the record."""
    found = {"python": platform.python_version(), "compiler": compiler()[1]}
    if importlib.util.find_spec(peer):
        found[peer] = import_module(peer).__version__
    return found


def stamp(peer: str) -> dict[str, Any]:
    """Where and when a measurement was made, and beside whom."""
    return {"peer_name": peer, "machine": machine(),
            "versions": versions(peer), "date": date.today().isoformat()}


MISSING = dict.fromkeys(
    ("ours", "peer", "ratio", "spread", "limit_fraction"))


def main(argv: list[str]) -> int:
    """Measure ours against the libraries people use: bench NAME."""
    parser = argparse.ArgumentParser(
        prog="python -m companion bench", description=main.__doc__)
    parser.add_argument("name", choices=BENCHES, help="what to measure")
    parser.add_argument("--json", action="store_true",
                        help="a line of JSON for each measurement")
    parser.add_argument("--quick", action="store_true",
                        help="fewer cases and rounds")
    parser.add_argument("--threads", default="1,2", type=counts,
                        help="such as 1,2, which is the default")
    options = parser.parse_args(argv)
    for threads in [1] if options.name in ONCE else options.threads:
        for found in measure(options.name, threads, options.quick):
            print(json.dumps(found) if options.json else row_of(found),
                  flush=True)
    return 0


def counts(text: str) -> list[int]:
    """Numbers of threads, written with commas between them."""
    if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", text):
        raise argparse.ArgumentTypeError(
            f"expected numbers of threads such as 1,2, got {text!r}")
    return [int(count) for count in text.split(",")]


def row_of(found: dict) -> str:
    """A measurement as a row of text."""
    start = f"{found['case']:20} {found['threads']} threads"
    if found["peer_name"] is None:  # nobody to compare with
        return f"{start} {found['ours']:8.2f} {found['unit']}"
    if found["ratio"] is None:
        reason = found.get("refused", "it is not installed")
        return f"{start}  no ratio to {found['peer_name']}: {reason}"
    limit = found["limit_fraction"]  # not everything has one
    share = "" if limit is None else f" {100 * limit:4.0f} %"
    return (f"{start} {found['ours']:8.1f} {found['unit']}{share}"
            f"  {found['ratio']:.2f} × {found['peer_name']}"
            f" (± {found['spread'] / 2:.2f})")


def bytes_seen(buffer: Buffer) -> int:
    """Memory behind a buffer; what an EXPAND repeats counts once."""
    n = math.prod(n for n, stride in zip(buffer.shape, buffer.view.strides)
                  if stride != 0)
    return n * buffer.dtype.itemsize


class Timed:
    """A device that counts time, bytes and calls, and delegates."""

    def __init__(self, device: Any):
        self.device = device
        self.name = f"timed {device.name}"
        self.calls: list[tuple[Op, float, int]] = []

    def run(self, op: Op, *src: Buffer, arg: Any = None) -> Buffer:
        start = perf_counter()
        out = self.device.run(op, *src, arg=arg)
        self.note(op, out, src, start, perf_counter() - start)
        return out

    def __repr__(self) -> str:
        return self.name

    def adopt(self, array: np.ndarray) -> Buffer:
        return self.device.adopt(array)

    def host(self, buffer: Buffer) -> Buffer:
        return self.device.host(buffer)

    def feed(self, numbers: Callable[[], dict[str, np.ndarray]],
             ) -> dict[str, Buffer]:
        return self.device.feed(numbers)

    def __deepcopy__(self, _: Any) -> Timed:
        """Itself: a copied tensor stays on its device."""
        return self

    def table(self) -> str:
        """Calls, milliseconds and megabytes for each primitive."""
        totals: dict[Op, list[float]] = {}
        for op, seconds, moved in self.calls:
            row = totals.setdefault(op, [0, 0.0, 0.0])
            row[0] += 1
            row[1] += seconds * 1e3
            row[2] += moved / 1e6
        rows = [f"{'op':10}{'calls':>6}{'ms':>9}{'MB':>9}"]
        rows += [f"{str(op):10}{n:6.0f}{ms:9.2f}{mb:9.1f}"
                 for op, (n, ms, mb) in totals.items()]
        return "\n".join(rows)

    def note(self, op: Op, out: Buffer, src: tuple[Buffer, ...],
             start: float, seconds: float) -> None:
        self.calls.append((op, seconds, bytes_moved(op, out, src)))

    def twin(self, buffer: Buffer) -> Buffer:
        return self.run(CAST, buffer, arg=buffer.dtype)

    def put(self, buffer: Buffer, values: Any) -> None:
        self.device.put(buffer, values)


ONCE.add("gpu")


def beside(ours: Setup, peer: Setup, quick: bool, unit: float,
           **agree: Any) -> dict[str, Any]:
    """A measurement of both, in seconds divided by `unit`."""
    if importlib.util.find_spec("torch") is None:
        return MISSING
    found = compare(ours, peer, rounds=3 if quick else 15, **agree)
    return found.line(lambda s: s / unit)


def bytes_moved(op: Op, out: Buffer, src: tuple[Buffer, ...]) -> int:
    """What `op` has to read and to write; 0 for a view."""
    if op is not WRITE and any(out.storage is x.storage for x in src):
        return 0
    # The target of a WRITE is not read; of a table the rows are.
    read = {WRITE: src[1:], GATHER: (out, *src[1:])}.get(op, src)
    return sum(map(bytes_seen, (out, *read)))


ONCE.add("scale")  # a worker has one thread; there are more workers

BENCHES = {
    "gemm": "companion.blas",
    "tangle": "companion.literate.growth",
    "eager": "companion.benchmark",
    "mlp": "companion.milestones.mlp_bench",
    "gpu": "companion.gpu",
    "conv": "companion.milestones.conv_bench",
    "attention": "companion.attention",
    "gpt": "companion.milestones.gpt_bench",
    "capture": "companion.milestones.capture_bench",
    "profile": "companion.profiler",
    "decode": "companion.milestones.decode_bench",
    "quantize": "companion.milestones.quantize_bench",
    "sparse": "companion.milestones.sparse_bench",
    "scale": "companion.milestones.scale_bench",
    "serve": "companion.milestones.serve_bench",
    "vocabulary": "companion.milestones.vocabulary_bench",
}
