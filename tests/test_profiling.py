"""What the profiler says is what happened: clocks and costs are planted."""

import gc
import json
import math
import pickle
import re
import sys
import threading
import weakref
from dataclasses import dataclass

import jsonschema
import numpy as np
import pytest

from companion import (
    SGD,
    Linear,
    Module,
    Sequential,
    Tensor,
    conv2d,
    grad,
    jit,
    manual_seed,
    parameter,
    profiler,
    randn,
    timing,
)
from companion.compiler.lazy import Lazy
from companion.device import CPU, KERNELS, MOVE, Device, named
from companion.native import POOL, set_threads
from companion.ops import CONV, EXP, MATMUL, SHAPE, WRITE
from companion.profiler import (
    COST,
    Traced,
    amdahl,
    chrome_trace,
    flame,
    latency,
    layer,
    leaks,
    peak,
    place,
    timeline,
    totals,
)
from companion.timing import Timed


class Clock:
    """A clock that only goes on when it is told to."""

    now = 0.0

    def __call__(self):
        return self.now


class Planted(Device):
    """The CPU, on which each operation takes the time that we say."""

    def __init__(self, clock, **seconds):
        self.clock, self.seconds = clock, seconds

    def run(self, op, *src, arg=None):
        out = super().run(op, *src, arg=arg)
        self.clock.now += self.seconds.get(op.name, 0.0)
        return out


@pytest.fixture
def clock(monkeypatch):
    """The clock of all that is timed, planted."""
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    monkeypatch.setattr(profiler, "perf_counter", clock)
    return clock


@pytest.fixture
def usual_threads():
    usual = POOL.threads
    yield
    set_threads(usual)


def way(event):
    return event.where.phase


def trained(device, steps=3):
    """Losses and weights of a small network."""
    manual_seed(0)
    net = Sequential(Linear(5, 7), Tensor.tanh, Linear(7, 1)).to(device)
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    x, losses = randn(9, 5).to(device), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.numpy().tobytes() for p in net.parameters()]


@pytest.mark.parametrize("name", ["cpu", "emulated", "lazy"])
@pytest.mark.parametrize("wrap", [
    Timed, Traced, lambda d: Traced(Timed(d)), lambda d: Timed(Traced(d))])
def test_around_a_device_the_bits_are_its_own(name, wrap):
    assert trained(wrap(named(name))) == trained(named(name))


@pytest.mark.parametrize("wrap", [Timed, Traced])
def test_beneath_the_lazy_device_the_bits_are_its_own(wrap):
    watched = wrap(CPU)
    assert trained(Lazy(watched)) == trained(Lazy(CPU))
    assert MATMUL in {op for op, _, _ in watched.calls}


def test_seconds_are_those_of_the_clock(clock):
    trace = Traced(Planted(clock, MATMUL=3.0, EXP=0.5))
    net = Linear(4, 4).to(trace)
    x = randn(2, 4).to(trace)
    elapsed = trace.watch(lambda: net(x).exp())
    by_op = totals(trace.events, lambda e: e.op)
    assert elapsed == 3.5
    assert (by_op[MATMUL].seconds, by_op[EXP].seconds) == (3.0, 0.5)
    assert totals(trace.events, layer)["Linear"].seconds == 3.0
    assert sum(t.seconds for t in by_op.values()) == 3.5


def test_the_way_back_is_measured_and_not_derived(clock):
    """Slow on the way back only: the way there knows nothing of it."""
    device = Planted(clock, MATMUL=1.0)
    trace = Traced(device)
    net, x = Linear(4, 4).to(trace), parameter(randn(2, 4).to(trace))

    def step():
        device.seconds["MATMUL"] = 1.0
        loss = net(x).sum()
        device.seconds["MATMUL"] = 7.0
        loss.backward()
    trace.watch(step)
    found = totals(trace.events, way)
    assert found["forward"].seconds == 1.0
    assert found["backward"].seconds == 14.0
    trace.watch(lambda: net(x).sum())
    assert set(totals(trace.events, way)) == {"forward"}


def test_a_prediction_meets_the_clock(clock):
    device = Planted(clock, MATMUL=3.0, EXP=2.0, SUM=1.0)
    trace = Traced(device)
    net, x = Linear(4, 4, bias=False).to(trace), randn(2, 4).to(trace)

    def step():
        net(x).exp().sum()
    before = trace.watch(step)
    share = totals(trace.events, layer)["Linear"].seconds / before
    predicted = amdahl(share, 4)
    device.seconds["MATMUL"] /= 4
    assert math.isclose(before / trace.watch(step), predicted)


def test_pictures_show_the_seconds_of_the_clock(clock):
    trace = Traced(Planted(clock, MATMUL=3.0, EXP=1.0))
    net, x = Linear(4, 4, bias=False).to(trace), randn(2, 4).to(trace)
    trace.watch(lambda: net(x).exp())
    whole = {e["name"]: e["dur"] for e in chrome_trace(trace)["traceEvents"]
             if e["ph"] == "X"}
    assert whole["forward"] == 4e6 and whole["Linear"] == 3e6
    text = flame(trace.events, 400)
    for label, width in (("forward", 400), ("Linear", 300), ("EXP", 100)):
        assert re.search(rf"<title>{label}: [^<]*</title><rect [^>]*"
                         rf'width="{width}\.00"', text), label


def test_of_each_operation_the_quickest_round_is_kept(clock):
    device = Planted(clock)
    trace, costs = Traced(device), iter([(5.0, 1.0), (2.0, 9.0)] * 2)
    x = randn(4).to(trace)

    def step(*more):
        device.seconds["EXP"], device.seconds["SIN"] = next(costs)
        for f in (Tensor.exp, Tensor.sin, *more):
            f(x)
    assert trace.watch(step, 2) == 6.0
    assert [e.seconds for e in trace.events] == [2.0, 1.0]
    more = iter([(), (Tensor.exp,)])
    with pytest.raises(ValueError, match="not all rounds ask for the same"):
        trace.watch(lambda: step(*next(more)), 2)


def test_latencies_are_those_of_the_clock(clock):
    times = iter([9.0, 8.0, *[1.0] * 98, 5.0, 7.0])

    def call():
        clock.now += next(times)
    found = latency(call, 100, warmup=2)
    assert found.warmup == [9.0, 8.0]
    assert [found.percentile(p) for p in (50, 98, 99)] == [1.0, 1.0, 5.0]


def test_watching_keeps_nothing_alive():
    """Neither what a layer's names meant before, nor the model."""
    trace, gone = Traced(CPU), []

    class Chain(Module):
        def __init__(self):
            self.inner = Linear(16, 16)

        def forward(self, x):
            x = self.inner(x).detach()
            memory = weakref.ref(x.buffer.storage)
            x = x.exp()
            gone.append(memory() is None)
            return x

    def model():
        net, x = Chain().to(trace), randn(2, 16).to(trace)
        trace.watch(lambda: net(x))
        return weakref.ref(net)
    net = model()
    gc.collect()
    assert gone == [True] and net() is None
    assert {layer(e) for e in trace.events} == {"inner", "Chain"}


def test_an_operation_that_fails_is_not_noted():
    trace = Traced(CPU)
    x, y = randn(2, 3).to(trace), randn(2, 3).to(trace)
    trace.events.clear()
    before = trace.allocations[:]
    with pytest.raises(ValueError, match="MATMUL"):
        Tensor.apply(MATMUL, x, y)
    assert trace.events == [] and trace.allocations == before


NUMBER = {"type": "number", "minimum": 0}
TEXT, PLACE = {"type": "string"}, {"type": "integer", "minimum": 0}
COMMON = {"name": TEXT, "pid": PLACE, "tid": PLACE}
KINDS = {  # of the Trace Event Format: complete, counter, metadata
    "X": {"cat": TEXT, "ts": NUMBER, "dur": NUMBER,
          "args": {"type": "object"}},
    "C": {"ts": NUMBER, "args": {
        "type": "object", "additionalProperties": NUMBER}},
    "M": {"name": {"const": "thread_name"}, "args": {
        "type": "object", "properties": {"name": TEXT},
        "required": ["name"]}}}
FORMAT = {
    "type": "object", "required": ["traceEvents", "displayTimeUnit"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "traceEvents": {"type": "array", "items": {"oneOf": [
            {"properties": COMMON | {"ph": {"const": ph}} | more,
             "required": [*COMMON | {"ph": 0} | more],
             "additionalProperties": False}
            for ph, more in KINDS.items()]}}}}


@pytest.mark.parametrize("name", ["cpu", "emulated", "lazy"])
def test_a_trace_is_of_the_format(name):
    trace = Traced(named(name))
    trained(trace, steps=1)
    found = json.loads(json.dumps(chrome_trace(trace), allow_nan=False))
    jsonschema.validate(found, FORMAT)
    kinds = {e["ph"] for e in found["traceEvents"]}
    # Of what is only promised there is no memory.
    assert kinds == ({"X", "M"} if name == "lazy" else {"X", "M", "C"})
    jsonschema.validate(chrome_trace(Traced(CPU)), FORMAT)
    found["traceEvents"][-1]["ph"] = "Y"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, FORMAT)


def test_threads_have_owners_of_their_own():
    trace, wait = Traced(CPU), threading.Barrier(4)
    nets = [Sequential(*[Linear(3, 3)] * (i + 1)).to(trace)
            for i in range(4)]
    x = randn(2, 3).to(trace)
    trace.events.clear()

    def work(net):
        wait.wait()
        for _ in range(10):
            net(x).sum().backward()
    threads = [threading.Thread(target=work, args=[net]) for net in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = totals([e for e in trace.events if e.op is MATMUL],
                    lambda e: (e.thread, way(e)))
    # A shared layer: its input needs no gradient in the first place.
    assert sorted(t.calls for (_, phase), t in counts.items()
                  if phase == "forward") == [10, 20, 30, 40]
    assert sorted(t.calls for (_, phase), t in counts.items()
                  if phase == "backward") == [10, 30, 50, 70]
    threads = {e["tid"] for e in chrome_trace(trace)["traceEvents"]}
    assert threads == {0, 1, 2, 3}


def test_nested_traces_agree():
    inner = Traced(CPU)
    outer = Traced(inner)
    net = Sequential(Linear(3, 3)).to(outer)
    x = randn(2, 3).to(outer)
    outer.watch(lambda: inner.watch(lambda: net(x).sum().backward()))
    assert [(e.op, e.where, e.flop, e.nbytes) for e in outer.events] == [
        (e.op, e.where, e.flop, e.nbytes) for e in inner.events]


def test_a_line_is_the_readers():
    trace = Traced(CPU)
    x = randn(4).to(trace)
    x.mean()
    first = test_a_line_is_the_readers.__code__.co_firstlineno
    assert place(trace.events[-1].where.line) == (
        f"test_profiling.py:{first + 3}  x.mean()")
    assert place(None) == "-"


def test_a_part_that_is_exchanged_has_the_name_of_its_place():
    trace = Traced(CPU)
    net = Sequential(Linear(2, 2), Linear(2, 2)).to(trace)
    x = randn(1, 2).to(trace)
    net(x)
    net.layers[1] = Sequential(Linear(2, 2)).to(trace)
    trace.watch(lambda: net(x))
    owners = [layer(e) for e in trace.events if e.op is MATMUL]
    assert owners == ["layers.0", "layers.1.layers.0"]


def test_every_primitive_has_a_cost():
    assert set(COST) == set(SHAPE) >= set(KERNELS) | set(MOVE)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_way_back_of_a_convolution_is_twice_the_way(stride):
    """Zeros between the messages of a stride are no work."""
    trace = Traced(CPU)
    x, kernel = [randn(*s).to(trace).requires_grad_() for s in (
        (2, 6, 8, 10), (4, 3, 3, 5))]
    y = conv2d(x, kernel, stride=stride, padding=(1, 2), groups=2)
    y.sum().backward()
    there = 2 * y.size * 3 * 3 * 5
    assert y.shape == (2, 4, 8 // stride, 10 // stride)
    assert [e.flop for e in trace.events if e.op is CONV] == [there] * 3
    assert CONV in profiler.PRODUCTS


def test_memory_is_the_sum_of_what_is_there():
    trace = Traced(CPU)
    x = Tensor(np.zeros((250,)), device=trace)
    y = x.exp()
    z = [y.exp() for _ in range(3)]
    most, alive = peak(trace.allocations)
    assert most == 5 * x.size * x.dtype.itemsize
    assert [a.nbytes for a in alive] == [most // 5] * 5
    del y, z
    assert timeline(trace.allocations)[-1][1] == most // 5
    assert peak(trace.allocations)[0] == most
    view = x.reshape(10, 25).T  # views are no memory
    assert view.shape == (25, 10) and len(trace.allocations) == 5


@pytest.mark.parametrize("fault", ["list", "cycle", "two rounds"])
def test_what_is_a_leak_and_what_is_none(fault):
    """A cycle goes, later; what each second call exchanges is none."""
    trace, kept = Traced(CPU), []
    x = randn(100).to(trace)

    def step():
        y = x.exp()
        if fault == "cycle":
            y.me = y
        else:
            kept.append(y)
        if fault == "two rounds":
            del kept[:-2]
    found = leaks(trace, step)
    assert len(found) == (3 if fault == "list" else 0)


def test_the_bench_says_where_a_step_goes(usual_threads):
    found = json.loads(json.dumps(list(profiler.bench(1, quick=True))))
    cases = {line["case"]: line for line in found}
    assert {"forward", "backward", "update", "MATMUL", "h.3.mlp.c_fc",
            "memory at the peak", "-"} <= set(cases)
    ways = [cases[case] for case in ("forward", "backward", "update")]
    rows = [line for line in found if line["case"].isupper()
            and line["case"] != "GPT"]
    for column in ("calls", "bytes", "flop"):
        assert (sum(line[column] for line in ways)
                == sum(line[column] for line in rows) > 0)
    assert all(line["ours"] >= 0 and timing.row_of(line) for line in found)


def test_the_module_hides_no_other():
    """In a folder of modules a name of Python's own would be found
    first: cProfile imports profile."""
    assert profiler.__name__.rpartition(".")[2] not in (
        sys.stdlib_module_names | {"profiling"})


def test_the_page_draws_no_lots(root):
    """Its figures are measured: no cell has a generator of numbers but
    the framework's, for weights and words."""
    page = (root / "chapters/systems/profiling.md").read_text()
    assert not re.search(r"np\.random|default_rng|import random", page)
    assert "turns(" in page and "claim(\"foretold\", abs(measured" in page


class Exp(Module):
    def forward(self, x):
        return x.exp()


class Doubled(Exp):
    """A layer that takes itself for its own part."""

    def forward(self, x, times=2):
        return self(x, times=times - 1) if times else super().forward(x)


class Static(Module):
    @staticmethod
    def forward(x):
        return x.exp()


class Short(Module):
    forward = lambda self, x: x.exp()  # noqa: E731


class Otherwise(Module):
    def forward(this, x):  # noqa: N805
        return x.exp()


class Generating(Module):
    def forward(self, x):
        yield x.exp()


@dataclass
class Unhashable(Exp):
    width: int = 3


@pytest.mark.parametrize("kind", [
    Exp, Doubled, Static, Short, Otherwise, Generating, Unhashable])
def test_a_layer_is_known_however_it_is_written(kind):
    trace = Traced("cpu")
    x = randn(3).to(trace)
    list(kind()(x))
    (event,) = [e for e in trace.events if e.op is EXP]
    assert event.where.layers == (kind.__name__,)


@pytest.mark.parametrize("watcher", [sys.settrace, sys.setprofile])
def test_a_debugger_may_compute_in_the_middle(watcher):
    """Up to Python 3.12 a frame's variables are written back behind it."""
    trace, busy = Traced(CPU), []
    x, net = randn(3).to(trace), Sequential(Exp(), Exp())

    def look(frame, event, arg):
        if not busy:
            busy.append(x)
            x + x
            busy.clear()
        return look
    before = sys.gettrace(), sys.getprofile()
    watcher(look)
    try:
        y = net(x)
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    assert y.tolist() == x.exp().exp().tolist()


def test_who_made_a_buffer_is_forgotten_with_it():
    """Another's may be given its id, and made elsewhere."""
    trace, net = Traced(CPU), Exp()
    x, w = randn(300).to(trace), parameter(randn(3))
    for _ in range(3):
        net(x)  # gone at once
    before = len(trace.homes)
    stolen = []
    for _ in range(300):
        net(x)
        y = (w.to(trace).exp().to("cpu") * 2).sum()
        trace.events.clear()
        y.backward()
        stolen += [e for e in trace.events if e.where.layers]
    assert stolen == []
    del y
    assert len(trace.homes) <= before + 3  # w's, in its gradient


def test_names_are_of_the_modules_that_live():
    trace = Traced(CPU)
    x, walks = randn(3).to(trace), []

    class Both(Module):
        def forward(self, x):
            return Static()(Exp()(x))  # the second may get the first's id

        def parts(self, kinds=None):
            walks.append(self)
            return super().parts(kinds)
    net = Both()
    trace.watch(lambda: net(x))
    assert [layer(e) for e in trace.events] == ["Exp", "Static"]
    net.left = Exp()
    net.forward = net.left.__call__
    net(x)
    net.right = net.left
    del net.left
    trace.watch(lambda: net(x))
    assert layer(trace.events[0]) == "right"

    outer, inner = Both(), Exp()  # a part that nothing says it has
    outer.forward = lambda x: inner(x)
    outer(x)
    walks.clear()
    outer(x)
    assert layer(trace.events[-1]) == "Exp" and not walks


def test_views_of_constants_are_no_memory():
    trace = Traced(CPU)
    w = parameter(randn(300).to(trace))
    before = len(trace.allocations)
    w.exp().sum().backward()  # begins with a view of the constant 1
    assert [a.event.op.name for a in trace.allocations[before:]
            if a.gone is None] == ["MUL"]
    assert len(trace.allocations) == before + 3


def test_a_write_within_its_own_memory_moves_bytes():
    x = randn(8).to(Traced(CPU))
    x[:4] = x[4:]
    (event,) = [e for e in x.device.events if e.op is WRITE]
    assert event.nbytes == 2 * 4 * x.dtype.itemsize


def test_rounds_make_one_timeline(clock):
    """The quickest seconds, in the last round's order of time."""
    device = Planted(clock)
    trace, costs = Traced(device), iter([(1.0, 9.0), (5.0, 2.0)])
    x = randn(4).to(trace)

    def step():
        device.seconds["EXP"], device.seconds["SIN"] = next(costs)
        x.exp().sin()
    trace.watch(step, 2)
    first, second = trace.events
    assert (first.seconds, second.seconds) == (1.0, 2.0)
    assert (first.start, second.start) == (10.0, 15.0)
    nets = iter([Exp(), Static()])
    with pytest.raises(ValueError, match="not all rounds ask for the same"):
        trace.watch(lambda: next(nets)(x), 2)


def test_too_few_rounds_are_refused():
    trace = Traced(CPU)
    with pytest.raises(ValueError, match="watch: .* 1 or more, got 0"):
        trace.watch(lambda: None, 0)
    with pytest.raises(ValueError, match="leaks: .* 2 or more, got 1"):
        leaks(trace, lambda: None, 1)


def test_a_pickled_tensor_takes_no_record_along():
    x = randn(3).to(Traced(CPU))
    y = pickle.loads(pickle.dumps(x))
    assert y.tolist() == x.tolist() and y.device.events == []


def test_the_second_derivative_has_owners():
    trace = Traced(CPU)
    net = Sequential(Linear(3, 3), Tensor.tanh, Linear(3, 1)).to(trace)
    x = parameter(randn(2, 3).to(trace))
    (g,) = grad(net(x).sum(), x, create_graph=True)
    trace.events.clear()
    g.square().sum().backward()
    assert {layer(e) for e in trace.events if e.op is MATMUL} == {
        "layers.0", "layers.2"}


def test_a_way_back_that_is_listened_to_has_owners():
    """Also where the leaves are told one by one, as to other workers."""
    trace = Traced(CPU)
    net = Sequential(Linear(3, 4), Tensor.tanh, Linear(4, 2)).to(trace)
    told = []
    net(randn(5, 3).to(trace)).sum().backward(finished=told.append)
    assert {id(x) for x in told} == {id(p) for p in net.parameters()}
    back = [e for e in trace.events if e.where.phase == "backward"]
    assert {layer(e) for e in back} >= {"layers.0", "layers.2"}


def test_a_program_of_no_lines_has_no_parts():
    run, x = jit(lambda x: x.reshape(4)), randn(2, 2)
    for _ in range(3):
        run(x)
    if run.programs:  # without a C compiler nothing is compiled
        program = profiler.clocked(run.programs[0])
        program()
        assert program.parts() == {}
