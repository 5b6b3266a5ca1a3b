# Tangled from profiling: edit there, `make tangle`. sha256:00e773dd37aa
"""Where time, work and memory go: a device that remembers who asked."""

from __future__ import annotations

import ctypes
import gc
import linecache
import math
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from html import escape
from itertools import accumulate, count, groupby
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, finalize, ref

import numpy as np

from companion.autograd import give_shares
from companion.buffer import Buffer, Storage
from companion.compiler.capture import Capture
from companion.compiler.draw import svg
from companion.compiler.lazy import Promise
from companion.compiler.program import RUN, Code, Plan, Program, by_turn
from companion.compiler.schedule import Call, prepared, size_of
from companion.device import CPU, named
from companion.layers import Module
from companion.milestones.gpt_bench import training_step
from companion.ops import (
    ATTENTION, ATTENTION_GRADIENT, BUFFER, CAST, CONST, CONV, FAMILIES, GATHER,
    MATMUL, SCATTER, SHAPE, WRITE, Op)
from companion.optim import Optimizer
from companion.tensor import Tensor
from companion.timing import MISSING, Timed, best, bytes_moved, stamp
from companion.training import named_modules
from companion.transformer import CONFIGS
from companion.view import Shape

Line = tuple[str, int]  # a file, and a line of it
Layers = tuple[str, ...]  # the outermost first


class Where(NamedTuple):
    """Who asked for an operation."""

    phase: str  # backward, update (of an Optimizer), or else forward
    layers: Layers
    line: Line | None  # the nearest outside of the library


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """From a frame outwards, to the first that is not a function's."""
    while frame is not None:
        yield frame
        frame = None if frame.f_code.co_name == "<module>" else frame.f_back


def local(frame: FrameType, name: str) -> Any:
    """A variable of a function that is on its way; None if it has none."""
    found = frame.f_locals
    value = found.get(name)
    if sys.version_info < (3, 13) and not (sys.gettrace()
                                           or sys.getprofile()):
        found.clear()  # a copy; a debugger's would be written back
    return value


def asked(frame: FrameType | None, homes: Homes,
          named: dict[int, Names]) -> Where:
    """What is on the stack; `homes`: what asked for each buffer."""
    frames = list(callers(frame))
    line = next(((f.f_code.co_filename, f.f_lineno) for f in frames
                 if not in_library(f)), None)
    for f in frames:
        if f.f_code is give_shares.__code__:
            made = local(f, "y").buffer
            near = homes.get(made.storage, {})
            return Where("backward", near.get(id(made), ()), line)
    # Only of methods: a class's own frame would be its name space.
    own = [local(f, "self") for f in frames if f.f_code.co_name in METHODS
           and f.f_code.co_varnames[:1] == ("self",)]
    phase = next((PHASES[kind] for x in own for kind in PHASES
                  if isinstance(x, kind)), "forward")
    modules = [x for x in reversed(own) if isinstance(x, Module)]
    return Where(phase, layers(modules, named), line)


# By memory: an id may be another buffer's, once its own has died.
Homes = WeakKeyDictionary[Storage, dict[int, Layers]]
METHODS = "__call__", "forward", "backward", "step"
PHASES = {Tensor: "backward", Optimizer: "update", Module: "forward"}


def in_library(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] == "companion"


Names = dict[int, tuple[ref[Module], str]]  # not all modules have a hash


def known(names: Names, module: Module) -> bool:
    """Whether it is this one that has the name, and not one before it."""
    return id(module) in names and names[id(module)][0]() is module


def layers(modules: list[Module], named: dict[int, Names]) -> Layers:
    """Names as in the state_dict of the first, which has its class's;
    what it does not contain goes by its own class."""
    if not modules:
        return ()
    top = modules[0]
    names = named.get(id(top), {})
    if not all(known(names, m) for m in modules):
        found = [(type(m).__name__, m) for m in modules]
        found += [*named_modules(top), (type(top).__name__, top)]
        # Another dictionary, since threads may be reading the last one.
        names = named[id(top)] = (names if known(names, top) else {}) | {
            id(m): (ref(m), name) for name, m in found}
    # A method that calls its like is the same layer still.
    return tuple([names[id(m)][1] for i, m in enumerate(modules)
                  if i == 0 or m is not modules[i - 1]])


def pairs(times: int, q: int) -> Callable[..., int]:
    """So many products of all queries, operand `q`, with all keys."""
    return lambda out, *src: (2 * times * math.prod(src[q].shape)
                              * src[q + 1].shape[-2])


def windows_met(out: Any, x: Any, w: Any) -> int:
    """Products of pixels and weights: a tap meets a place's pixel once.

    Of (N, G, O, H', W'), (N, G, C, H, W) and (G, O, C, kh, kw). Zeros
    between spread pixels do not count, so a pixel meets a tap once too.
    """
    places = map(min, out.shape[3:], x.shape[3:])
    return 2 * math.prod((*out.shape[:3], *places, *w.shape[2:]))


def elements_made(out: Any, *src: Any) -> int:
    return math.prod(out.shape)


def elements_read(out: Any, *src: Any) -> int:
    return math.prod(src[0].shape)


# FLOP of an operation, by shapes; of attention its products only.
COST: dict[Op, Callable[..., int]] = {
    **dict.fromkeys(SHAPE, lambda out, *src: 0),
    **dict.fromkeys(FAMILIES["elementwise"], elements_made),
    CAST: lambda *_: 0,
    **dict.fromkeys((*FAMILIES["reduce"], SCATTER), elements_read),
    MATMUL: lambda out, a, b: 2 * math.prod(out.shape) * a.shape[-1],
    CONV: windows_met,
    ATTENTION: pairs(2, 0), ATTENTION_GRADIENT: pairs(5, 2)}
PRODUCTS = MATMUL, CONV, ATTENTION, ATTENTION_GRADIENT


def work(op: Op, out: Any, src: Iterable[Any]) -> int:
    """FLOP of an operation; of buffers, or of nodes of a graph."""
    return COST[op](out, *src)


class Allocation:
    """Memory: which operation made it, and from when until when."""

    def __init__(self, event: Event, nbytes: int, made: int):
        self.event, self.nbytes, self.made = event, nbytes, made
        self.gone: int | None = None  # still there
        self.end = math.inf

    def release(self, turns: Iterator[int]) -> None:
        self.gone, self.end = next(turns), perf_counter()


class Event(NamedTuple):
    """An operation that was carried out: when, for whom, how much."""

    op: Op
    start: float  # seconds of perf_counter
    seconds: float
    nbytes: int  # read and written
    flop: int
    shape: Shape
    where: Where
    thread: int


class Traced(Timed):
    """A device, or its name, that also remembers who asked, how much
    work it was, and how long the memory of each result has lived.

    Memory that does not come from it, as that of a deepcopy, is not
    seen. A pickle of it has no record yet.
    """

    def __init__(self, device: Any):
        super().__init__(named(device))
        self.name = f"traced {self.device}"
        self.events: list[Event] = []
        self.homes: Homes = WeakKeyDictionary()
        self.named: dict[int, Names] = {}  # by the id of a model
        self.allocations: list[Allocation] = []
        self.turns = count()  # what happened before what

    def track(self, storage: Storage, event: Event) -> None:
        """Note the memory of a result, unless it is a constant, which is
        kept for the next one that asks, or only promised."""
        if event.op is CONST or isinstance(storage, Promise):
            return
        made = Allocation(event, storage.nbytes, next(self.turns))
        self.allocations.append(made)
        finalize(storage, made.release, self.turns).atexit = False

    def note(self, op: Op, out: Buffer, src: tuple[Buffer, ...],
             start: float, seconds: float) -> None:
        where = asked(sys._getframe(2), self.homes, self.named)
        if op is not WRITE:  # its target stays whose it was
            self.homes.setdefault(out.storage, {})[id(out)] = where.layers
        event = Event(op, start, seconds, bytes_moved(op, out, src),
                      work(op, out, src), out.shape, where,
                      threading.get_ident())
        self.calls.append((op, seconds, event.nbytes))
        self.events.append(event)
        if all(out.storage is not x.storage for x in src):
            self.track(out.storage, event)

    def adopt(self, array: np.ndarray) -> Buffer:
        """Host memory, which is noted as a BUFFER."""
        start = perf_counter()
        out = super().adopt(array)
        self.note(BUFFER, out, (), start, perf_counter() - start)
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device,)

    def watch(self, run: Callable[[], Any], rounds: int = 1) -> float:
        """Forget what was, and run: the seconds of the quickest round.

        Kept are the last round's events and memory, and as the seconds
        of each operation those of its quickest round; all rounds have
        to ask for the same, else a ValueError.
        """
        check_rounds("watch", rounds, 1)
        times, found = list[float](), list[list[Event]]()
        for _ in range(rounds):
            self.calls.clear()
            self.named.clear()
            self.events = []
            self.allocations = [
                a for a in self.allocations if a.gone is None]
            times.append(best(run, 1))
            found.append(self.events)
        asks = [[(e.op, e.shape, e.where) for e in one] for one in found]
        if any(one != asks[0] for one in asks):
            raise ValueError("watch: not all rounds ask for the same "
                             "operations; run it once before, or watch "
                             "one round")
        self.events = [same[-1]._replace(seconds=min(
            e.seconds for e in same)) for same in zip(*found)]
        return min(times)


def check_rounds(name: str, rounds: int, least: int) -> None:
    if rounds < least:
        raise ValueError(f"{name}: expected rounds of {least} or more, "
                         f"got {rounds}")


class Totals(NamedTuple):
    """Of some operations together."""

    calls: int
    seconds: float
    nbytes: int
    flop: int


def totals(events: Iterable[Event],
           key: Callable[[Event], Hashable]) -> dict[Any, Totals]:
    """Sums for each value of `key`, the longest time first."""
    found: dict[Any, list[Event]] = {}
    for event in events:
        found.setdefault(key(event), []).append(event)
    sums = {name: Totals(len(some), *[sum(column) for column in zip(
        *[(e.seconds, e.nbytes, e.flop) for e in some])])
        for name, some in found.items()}
    return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))


def layer(event: Event) -> str:
    """The innermost layer that asked; "-" outside of all of them."""
    return event.where.layers[-1] if event.where.layers else "-"


def place(line: Line | None) -> str:
    """A line of a file, or of a cell, with its text."""
    if line is None:
        return "-"
    name = Path(line[0]).name if Path(line[0]).is_file() else "cell"
    return f"{name}:{line[1]}  {linecache.getline(*line).strip()}"


def table(rows: Mapping[Any, Totals]) -> str:
    """Calls, milliseconds, megabytes and MFLOP in columns."""
    head = f"{'calls':>6}{'ms':>8}{'MB':>8}{'MFLOP':>9}"
    return "\n".join([head, *[
        f"{t.calls:6}{t.seconds * 1e3:8.2f}{t.nbytes / 1e6:8.1f}"
        f"{t.flop / 1e6:9.1f}  {name}" for name, t in rows.items()]])


def timeline(allocations: Iterable[Allocation]) -> list[tuple[int, int]]:
    """After each turn the bytes that were there."""
    changes = [(a.made, a.nbytes) for a in allocations]
    changes += [(a.gone, -a.nbytes) for a in allocations
                if a.gone is not None]
    turns, sizes = zip(*sorted(changes)) if changes else ((0,), (0,))
    return list(zip(turns, accumulate(sizes)))


def peak(allocations: list[Allocation]) -> tuple[int, list[Allocation]]:
    """The most bytes at once, and what they were, the largest first."""
    turn, most = max(timeline(allocations), key=lambda change: change[1])
    alive = [a for a in allocations if a.made <= turn
             and (a.gone is None or a.gone > turn)]
    return most, sorted(alive, key=lambda a: -a.nbytes)


def leaks(trace: Traced, run: Callable[[], Any],
          rounds: int = 6) -> list[Allocation]:
    """What the first half of some calls have made, and the second half
    have not let go; the first call of all warms up."""
    check_rounds("leaks", rounds, 2)
    run()
    start = next(trace.turns)
    for _ in range(rounds // 2):
        run()
    middle = next(trace.turns)
    for _ in range(rounds // 2):
        run()
    gc.collect()  # a cycle is no leak: it goes, but later
    return [a for a in trace.allocations
            if start < a.made < middle and a.gone is None]


def path(event: Event) -> tuple[str, ...]:
    """The phase, the layers from the outside, and the operation."""
    phase, whole, _ = event.where
    parts = [name.removeprefix(f"{outer}.")
             for outer, name in zip(["", *whole], whole)]
    return (phase, *parts, str(event.op))


class Span(NamedTuple):
    """A label, its depth in the tree, and the operations inside."""

    label: str
    depth: int
    events: list[Event]


def spans(events: Iterable[Event], depth: int = 0) -> Iterator[Span]:
    """One span for each stretch of neighbours with one label."""
    for label, some in groupby(events, lambda e: path(e)[depth]):
        inside = list(some)
        yield Span(label, depth, inside)
        longer = [e for e in inside if len(path(e)) > depth + 1]
        yield from spans(longer, depth + 1)


def chrome_trace(trace: Traced) -> dict[str, Any]:
    """What a trace viewer opens, as a value for json.dump.

    The format is "Trace Event Format" (Google, 2016): layers and
    operations are complete events (X), the memory is a counter (C).
    """
    zero = min((e.start for e in trace.events), default=0.0)
    threads = dict.fromkeys(e.thread for e in trace.events)
    found: list[dict[str, Any]] = []
    for i, thread in enumerate(threads):
        own = [e for e in trace.events if e.thread == thread]
        found.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": i,
                      "args": {"name": f"thread {i}"}})
        found += [complete(span, zero) | {"tid": i} for span in spans(own)]
    return {"traceEvents": found + counters(trace.allocations, zero),
            "displayTimeUnit": "ms"}


def complete(span: Span, zero: float) -> dict[str, Any]:
    first, last = span.events[0], span.events[-1]
    end = last.start + last.seconds
    return {"name": span.label, "cat": first.where.phase, "ph": "X",
            "ts": (first.start - zero) * 1e6, "pid": 1,
            "dur": (end - first.start) * 1e6,
            "args": {"calls": len(span.events),
                     "bytes": sum(e.nbytes for e in span.events),
                     "flop": sum(e.flop for e in span.events),
                     "line": place(first.where.line)}}


def counters(allocations: Iterable[Allocation],
             zero: float) -> list[dict[str, Any]]:
    """The bytes in use, whenever they change; from `zero` on."""
    changes = [(max(a.event.start, zero), a.nbytes) for a in allocations]
    changes += [(max(a.end, zero), -a.nbytes) for a in allocations
                if a.end < math.inf]
    times, sizes = zip(*sorted(changes)) if changes else ((), ())
    return [{"name": "memory", "ph": "C", "pid": 1, "tid": 0,
             "ts": (time - zero) * 1e6, "args": {"bytes": size}}
            for time, size in zip(times, accumulate(sizes))]


def box(x: float, width: float, span: Span, share: float) -> str:
    """A rectangle, with its label if there is room for it."""
    y, room = 18 * span.depth, int(width / 6.2) - 1
    ink = {"backward": "#c8662f", "update": "#96791f"}.get(
        span.events[0].where.phase, "#2f7fc1")
    says = (f"{span.label}: {share:.1%}, "
            f"{sum(e.seconds for e in span.events) * 1e3:.3f} ms, "
            f"{len(span.events)} operations")
    label = span.label if len(span.label) <= room else ""
    return (f'<g><title>{escape(says)}</title><rect x="{x:.2f}" y="{y}" '
            f'width="{width:.2f}" height="17" fill="{ink}" '
            f'fill-opacity="0.35" stroke="{ink}"/><text x="{x + 3:.1f}" '
            f'y="{y + 12}">{escape(label)}</text></g>')


def flame(events: list[Event], width: int = 690) -> str:
    """An SVG: phases, layers and operations, as wide as their seconds."""
    rank: dict[tuple[str, ...], int] = {}
    for e in events:
        own = path(e)
        for depth in range(len(own)):
            rank.setdefault(own[:depth + 1], len(rank))
    order = sorted(events, key=lambda e: [
        rank[path(e)[:d + 1]] for d in range(len(path(e)))])
    total = sum(e.seconds for e in events) or 1.0
    left = dict(zip(map(id, order), accumulate(
        [e.seconds for e in order], initial=0.0)))
    parts = [box(left[id(span.events[0])] / total * width,
                 share * width, span, share)
             for span in spans(order)
             for share in [sum(e.seconds for e in span.events) / total]]
    deepest = max((len(own) for own in rank), default=0)
    return svg(width, 18 * deepest + 2, parts)


class Latency(NamedTuple):
    """Seconds of calls: first those that warm up, then the others."""

    warmup: list[float]
    seconds: list[float]

    def percentile(self, p: float) -> float:
        """The shortest time that p % of the calls did not exceed."""
        if not 0 < p < 100:
            raise ValueError(f"percentile: expected p above 0 and below "
                             f"100, got {p:g}")
        n, least = len(self.seconds), math.ceil(round(100 / (100 - p), 6))
        if n < least:
            raise ValueError(f"percentile: p{p:g} of {n} calls says "
                             f"nothing; expected {least} calls or more")
        return sorted(self.seconds)[math.ceil(p * n / 100) - 1]


def latency(run: Callable[[], Any], rounds: int = 100,
            warmup: int = 5) -> Latency:
    """Time every call, one after another."""
    times = [best(run, 1) for _ in range(warmup + rounds)]
    return Latency(times[:warmup], times[warmup:])


def amdahl(share: float, factor: float) -> float:
    """How much faster the whole is, if a part of it that takes `share`
    of the time becomes `factor` times faster (Amdahl, 1967)."""
    if not 0 <= share <= 1 or factor <= 0:
        raise ValueError(f"amdahl: expected a share from 0 to 1 and a "
                         f"factor above 0, got {share} and {factor}")
    left = (1 - share) + share / factor
    return 1 / left if left else math.inf


CLOCK = """
#include <time.h>
double clock_at[{}];
static double now(void) {{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}}
"""


class Clocked(Code):
    """The C text of a plan that notes the time after each line."""

    def __init__(self, plan: Plan):
        super().__init__(plan)
        marks = ["clock_at[0] = now();", *[
            f"{line} clock_at[{i}] = now();"
            for i, line in enumerate(self.lines, 1)]]
        head = self.text.removesuffix(RUN % "\n  ".join(self.lines))
        self.text = head + CLOCK.format(len(marks)) + RUN % (
            "\n  ".join(marks))


class TimedProgram(Program):
    """A program that knows how long each of its lines took."""

    def written(self) -> Clocked:
        return Clocked(self.plan)

    def parts(self) -> dict[str, Totals]:
        """Of the last call: what took how long, the longest first; the
        FLOP of products and the like, without those of fused kernels."""
        steps: list[list[Any]] = [
            [self.steps[i] for i in some] for some in by_turn(self.plan)]
        steps += [[] for _ in self.plan.copies]
        n = len(steps) + 1
        at = (ctypes.c_double * n).in_dll(self.library, "clock_at")
        rows = dict[str, list[Totals]]()
        for some, start, end in zip(steps, at, at[1:]):
            calls = [s.node for s in some if isinstance(s, Call)]
            name = str(calls[0].op) if calls else "fused kernels"
            rows.setdefault(name if some else "copies", []).append(Totals(
                len(some), end - start, sum(map(self.traffic, some)),
                sum(work(x.op, x, x.src) for x in calls)))
        sums = {name: Totals(*map(sum, zip(*some)))
                for name, some in rows.items()}
        return dict(sorted(sums.items(), key=lambda row: -row[1].seconds))

    def traffic(self, step: Any) -> int:
        """Bytes that a step reads from memory, and writes there."""
        stored = [x for x in step.stores if x in self.plan.places]
        rows = isinstance(step, Call) and step.node.op is GATHER
        read = [step.node, *step.node.src[1:]] if rows else step.reads
        return sum(map(size_of, [*stored, *read]))


def clocked(call: Capture) -> TimedProgram:
    """The program of a captured call, with a clock between its lines."""
    targets = {i: call.before[p] for i, (p, _) in enumerate(call.kept)
               if p in call.before and call.before[p].op is BUFFER}
    return TimedProgram(*prepared([node for _, node in call.kept]), targets)


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """A training step of the small GPT, by phase, primitive and layer."""
    trace = Traced(CPU)
    step = training_step(CONFIGS["cpu"], threads=threads, device=trace)
    step()  # makes the optimizer's memory
    elapsed = trace.watch(step, 3 if quick else 10)
    line = {"bench": "profile", "threads": threads, **MISSING,
            **stamp("numpy"), "peer_name": None}
    yield {**line, "case": "step, traced", "unit": "ms",
           "ours": elapsed * 1e3}
    yield {**line, "case": "memory at the peak", "unit": "MB",
           "ours": peak(trace.allocations)[0] / 1e6}
    for key in (lambda e: e.where.phase, lambda e: str(e.op), layer):
        for case, t in totals(trace.events, key).items():
            yield {**line, "case": case, "unit": "ms",
                   "ours": t.seconds * 1e3, "calls": t.calls,
                   "bytes": t.nbytes, "flop": t.flop}
