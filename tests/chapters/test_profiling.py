# Tangled from profiling: edit there, `make tangle`. sha256:a51104f23a70
from __future__ import annotations

import json
import math
import re
import threading
import tracemalloc
from functools import partial

import numpy as np

from companion.compiler.capture import jit
from companion.compiler.lazy import Lazy
from companion.device import CPU
from companion.dtype import float32
from companion.layers import Linear, Module, Sequential
from companion.literate import message
from companion.milestones.gpt_bench import training_step
from companion.native import POOL
from companion.ops import MATMUL, WRITE
from companion.optim import SGD
from companion.profiler import (
    PRODUCTS, Latency, Traced, amdahl, chrome_trace, clocked, flame, layer,
    leaks, place, timeline, totals)
from companion.tensor import Tensor
from companion.tensor.random import randn
from companion.timing import Timed
from companion.transformer import GPTConfig


def test_every_operation_has_an_owner():
    trace = Traced(CPU)
    net = Sequential(Linear(3, 4), Sequential(Linear(4, 2))).to(trace)
    optimizer = SGD(net.parameters(), 0.1)
    x = randn(5, 3).to(trace)

    def step():
        net(x).square().sum().backward()
        optimizer.step()
    trace.watch(step)
    owners = {(e.where.phase, layer(e)) for e in trace.events
              if e.op is MATMUL}
    assert owners == {(phase, name) for phase in ("forward", "backward")
                      for name in ("layers.0", "layers.1.layers.0")}
    squares = [e for e in trace.events if layer(e) == "-"]
    assert {e.where.phase for e in squares} == {
        "forward", "backward", "update"}
    lines = {place(e.where.line).split("  ")[1] for e in trace.events}
    assert lines == {"net(x).square().sum().backward()",
                     "optimizer.step()"}


def test_the_work_of_a_step_is_the_closed_form():
    for sizes in ((8, 11, 1, 1, 4), (5, 7, 3, 2, 12)):
        c, trace = GPTConfig(*sizes, bias=False), Traced(CPU)
        step = training_step(c, batch=3, threads=POOL.threads, device=trace)
        trace.watch(step)
        attention = c.n_layer * 4 * c.block_size * c.n_embd
        matrices, tokens = c.flops() - attention, 3 * c.block_size
        ways = {"forward": matrices + attention,
                "backward": 2 * matrices + 5 * attention // 2, "update": 0}
        for way, expected in ways.items():
            counted = sum(e.flop for e in trace.events
                          if e.op in PRODUCTS and e.where.phase == way)
            assert counted == tokens * expected


def test_memory_is_what_python_counts():
    numpys = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)

    def large(sizes):
        return sorted(n for n in sizes if n >= 1024)

    trace = Traced(CPU)
    net = Sequential(*[Linear(32, 32) for _ in range(4)]).to(trace)
    x = randn(64, 32).to(trace)
    net(x).square().sum().backward()
    net.zero_grad()
    tracemalloc.start()
    start, found = next(trace.turns), []
    try:
        loss = net(x).square().sum()
        for go in (lambda: None, loss.backward):
            go()
            ours = large(a.nbytes for a in trace.allocations
                         if a.made > start and a.gone is None)
            traces = tracemalloc.take_snapshot().filter_traces([numpys])
            assert ours == large(t.size for t in traces.traces)
            found.append(sum(ours))
    finally:
        tracemalloc.stop()
    assert found[0] > found[1] == 4 * 32 * 32 * 4


def test_a_leak_is_found():
    trace, kept = Traced(CPU), []
    x = randn(300, 4).to(trace)

    def step(keep):
        loss = (x * 2).sum()
        kept.append(keep(loss * x))
    planted = leaks(trace, lambda: step(lambda y: y))
    assert len(planted) == 3 and all(a.nbytes == 4800 for a in planted)
    assert all("kept.append" in place(a.event.where.line) for a in planted)
    assert leaks(trace, lambda: step(Tensor.tolist)) == []


def test_nothing_changes_by_being_watched():
    def losses(device):
        c = GPTConfig(8, 11, 2, 2, 8, bias=False)
        step = training_step(c, 2, POOL.threads, device)
        return [step() for _ in range(3)]
    expected = losses(CPU)
    for device in (Timed(CPU), Traced(CPU), Traced(Timed(CPU)),
                   Timed(Traced(CPU))):
        assert losses(device) == expected
    beneath = Traced(CPU)
    assert np.allclose(losses(Lazy(beneath)), expected)
    assert {MATMUL, WRITE} & {e.op for e in beneath.events} == {MATMUL}
    around = Traced(Lazy(CPU))
    assert np.allclose(losses(around), expected)
    assert around.events and not around.allocations


def test_errors_and_threads_leave_nothing_behind():
    class Broken(Module):
        def __init__(self):
            self.inner = Linear(2, 2)

        def forward(self, x):
            return self.inner(x).reshape(77)

    trace = Traced(CPU)
    net, other = Broken().to(trace), Linear(2, 3).to(trace)
    x = randn(3, 2).to(trace)
    before = set(vars(net)), vars(Module)["__call__"]
    assert "77" in message(lambda: net(x), ValueError)
    assert (set(vars(net)), vars(Module)["__call__"]) == before
    x + x
    assert trace.events[-1].where.layers == ()
    start = threading.Barrier(3)  # so that none has another's number
    workers = [threading.Thread(target=lambda: (
        start.wait(), [other(x) for _ in range(20)])) for _ in range(3)]
    trace.events.clear()
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    owned = totals(trace.events, lambda e: (e.thread, e.where.layers))
    assert len(owned) == 3 and len({t.calls for t in owned.values()}) == 1


def test_percentiles_and_predictions_by_hand():
    found = Latency([9.0], [float(n) for n in range(100, 0, -1)])
    for p in (1, 50, 55, 90, 99):
        assert found.percentile(p) == p
    assert Latency([], [1.0] * 1000).percentile(99.9) == 1
    for p in (0, 100):
        assert "below 100" in message(
            partial(found.percentile, p), ValueError)
    assert "p99 of 20 calls" in message(
        lambda: Latency([], [1.0] * 20).percentile(99), ValueError)
    assert Latency([], [3.0, 1.0]).percentile(50) == 1.0
    assert amdahl(0.5, 2) == 1 / 0.75 and amdahl(0.75, math.inf) == 4
    assert amdahl(0, 100) == amdahl(0.3, 1) == 1
    assert amdahl(1, math.inf) == math.inf
    assert "a share from 0 to 1" in message(lambda: amdahl(2, 2))


def test_a_trace_is_nested_and_complete():
    trace, c = Traced(CPU), GPTConfig(8, 11, 2, 2, 8, bias=False)
    step = training_step(c, 2, POOL.threads, trace)
    trace.watch(step)
    found = json.loads(json.dumps(chrome_trace(trace)))["traceEvents"]
    whole = [e for e in found if e["ph"] == "X"]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 and e["pid"] == 1
               and isinstance(e["name"], str) for e in whole)
    stack = []
    for e in whole:  # parents come before their parts
        while stack and e["ts"] >= stack[-1] - 1e-3:
            stack.pop()
        end = e["ts"] + e["dur"]
        assert not stack or end <= stack[-1] + 1e-3
        stack.append(end)
    last = [e for e in found if e["ph"] == "C"][-1]["args"]["bytes"]
    assert last == timeline(trace.allocations)[-1][1] > 0
    assert {e["name"] for e in whole} >= {"forward", "wte", "h.0", "attn"}


def test_a_flame_is_as_wide_as_its_seconds():
    trace = Traced(CPU)
    layer = Linear(2, 2).to(trace)
    trace.watch(lambda: layer(randn(1, 2).to(trace)).exp())
    events = [e._replace(seconds=float(2 ** i))
              for i, e in enumerate(trace.events)]
    total, text = sum(e.seconds for e in events), flame(events, 1000)
    at = re.findall(r"<title>(.*?):.*?<rect x=\"(.*?)\" y=\"(.*?)\" "
                    r"width=\"(.*?)\"", text)
    wide = {name: float(width) for name, _, _, width in at}
    assert math.isclose(wide["forward"], 1000, abs_tol=0.1)
    own = sum(e.seconds for e in events if e.where.layers)
    assert math.isclose(wide["Linear"], 1000 * own / total, abs_tol=0.1)
    assert flame([]).startswith("<svg")


def test_a_program_with_clocks_is_the_same_program():
    w = Tensor(np.ones((8, 8)), float32, "lazy")

    def step(x):
        y = (x @ w).exp().sum()
        w.assign(w * 0.5)
        return y
    run, x = jit(step), Tensor(np.ones((8, 8)), float32)
    for _ in range(3):
        run(x)
    if not run.programs:  # without a C compiler nothing is compiled
        return
    program = clocked(run.programs[0])
    before = w.numpy().copy()
    program()
    assert (w.numpy() == before / 2).all()
    found = program.parts()
    assert set(found) == {"MATMUL", "fused kernels"}
    assert found["MATMUL"].flop == 2 * 8 ** 3
    assert all(t.calls > 0 and t.nbytes > 0 for t in found.values())
