"""Workers agree: over sockets, over MPI, and when one of them is lost."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from companion import (
    SGD,
    AdamW,
    ColumnParallel,
    DataLoader,
    DataParallel,
    Linear,
    Sequential,
    Sharded,
    Tensor,
    Trainer,
    distributed,
    manual_seed,
    mse_loss,
    parameter,
    randn,
    spawn,
    timing,
)
from companion.autograd import sweep
from companion.compiler.capture import compiled
from companion.data import Arrays
from companion.distributed import (
    ALONE,
    Lost,
    Mpi,
    Nccl,
    Sums,
    all_gather,
    all_reduce,
    barrier,
    broadcast,
    buckets,
    later_interrupts,
    launch,
    no_mpi,
    parallel,
    part,
    reduce_scatter,
    sum_gradients,
    world,
)
from companion.milestones import language, scale_bench, train
from companion.training import NotFinite
from companion.transformer import GPTConfig

mpi = pytest.mark.needs("mpi")


def drawn(rank, n, dtype):
    return np.random.default_rng(rank).integers(0, 9, n).astype(dtype)


def collectives(group, n, dtype):
    """All of them, on whole numbers, which no order of a sum changes."""
    x = [drawn(group.rank, n, dtype) for _ in range(3)]
    mine = reduce_scatter(group, x[0]).copy()
    all_reduce(group, x[1])
    broadcast(group, x[2])
    every = np.full(n, -1, dtype)
    every[part(n, group.rank, group.size)] = mine
    all_gather(group, every)
    barrier(group)
    return [y.tolist() for y in (x[1], every, x[2])]


def expected(size, n, dtype):
    total = sum(drawn(rank, n, dtype) for rank in range(size)).tolist()
    return [total, total, drawn(0, n, dtype).tolist()]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 6), st.integers(0, 20),
       st.sampled_from(["f2", "f4", "f8", "i8"]))
def test_collectives_over_sockets(size, n, dtype):
    assert spawn(size, collectives, n, dtype) == [
        expected(size, n, dtype)] * size


def test_messages_larger_than_what_the_system_keeps():
    found = spawn(3, lambda group: (
        all_reduce(group, x := np.ones(3_000_000, np.float32)),
        float(x.min()), float(x.max())))
    assert found == [(None, 3.0, 3.0)] * 3


def test_parts_are_all_of_it_once():
    for n in range(12):
        for size in range(1, 7):
            parts = [part(n, i, size) for i in range(size)]
            places = [i for p in parts for i in range(n)[p]]
            assert places == list(range(n))
            widths = [p.stop - p.start for p in parts]
            assert max(widths) - min(widths) <= 1


def test_buckets_hold_all_tensors_in_order():
    tensors = [Tensor(np.zeros(n, d)) for n, d in (
        (3, "f4"), (5, "f4"), (1, "f8"), (9, "f4"), (0, "f4"), (2, "f4"))]
    found = buckets(tensors, 8)
    assert [[t.size for t in b] for b in found] == [[3, 5], [1], [9], [0, 2]]


# What the processes of mpiexec run: a function of this file, and of what
# it returns the first worker prints a line.
PROGRAM = """
import json, sys
from pathlib import Path
sys.path[:0] = ["tests"]
from companion.distributed import world
import test_distributed as tests
with world() as group:
    found = getattr(tests, {name!r})(group, *{args!r})
    if group.rank == 0:
        print(json.dumps(found))
"""


def by_mpi(size, name, *args, **options):
    return launch(size, "-c", PROGRAM.format(name=name, args=args),
                  **options)


def answer(ran):
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@mpi
@pytest.mark.parametrize("size", [1, 2, 3])
def test_collectives_over_mpi(size):
    found = answer(by_mpi(size, "several_lengths"))
    assert found == [expected(size, n, "f4") for n in (0, 1, 2, 7)]


def several_lengths(group):
    return [collectives(group, n, "f4") for n in (0, 1, 2, 7)]


MOMENTUM = partial(SGD, momentum=0.5)


def a_run(group=ALONE, kind=MOMENTUM, share=None, rows=6,
          accumulate=1, seed=0):
    manual_seed(seed)
    x, y = randn(30, 4), randn(30, 2)
    model = Sequential(Linear(4, 7), Tensor.tanh, Linear(7, 2))
    optimizer = kind(model.parameters(), lr=0.05)
    batches = DataLoader(Arrays(x, y), batch_size=rows, shuffle=True)
    return DataParallel(
        model, share(optimizer, group) if share else optimizer, batches,
        lambda model, x, y: mse_loss(model(x), y), clip=0.5,
        accumulate=accumulate, group=group)


def losses(group=ALONE, steps=6, path=None, **options):
    run = a_run(group, **options)
    run.fit(steps, path, every=2)
    return [row["loss"] for row in run.history]


@pytest.mark.parametrize("options", [
    {"accumulate": 2}, {"rows": 5}, {"kind": AdamW, "share": Sharded},
    {"share": Sharded}])
def test_losses_over_sockets(options):
    plain = losses(**options | {"share": None})
    assert plain[-1] != plain[0]
    for size in (2, 5):
        for found in spawn(size, partial(losses, **options)):
            np.testing.assert_allclose(found, plain, rtol=1e-4)


@mpi
def test_losses_over_mpi():
    found = answer(by_mpi(2, "losses"))
    np.testing.assert_allclose(found, losses(), rtol=1e-4)


def test_one_worker_is_a_trainer():
    """DataParallel in a group of one."""
    plain = a_run()
    given = {f: getattr(plain, f) for f in (
        "model", "optimizer", "batches", "loss_of", "clip")}
    run = Trainer(**given)
    run.fit(6)
    np.testing.assert_allclose([row["loss"] for row in run.history],
                               losses(), rtol=1e-6)


def test_a_shared_state_is_the_plain_one():
    """Either can go on from the other's."""
    plain, ours = a_run(kind=AdamW), a_run(kind=AdamW, share=Sharded)
    for run in (plain, ours):
        run.fit(3)
    states = [run.optimizer.state_dict() for run in (plain, ours)]
    for place, memory in states[0]["state"].items():
        for name, x in memory.items():
            np.testing.assert_allclose(
                states[1]["state"][place][name], x, rtol=1e-5, atol=1e-8)
    plain.optimizer.load_state_dict(states[1])
    ours.optimizer.load_state_dict(states[0])
    fresh = a_run(share=Sharded)
    assert fresh.optimizer.state_dict()["state"] == {}
    with pytest.raises(ValueError, match="expected groups"):
        ours.optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_a_step_of_all_weights_in_fewer_numbers_than_workers():
    """Some workers have an empty part."""
    def tiny(group):
        p = parameter(Tensor([1.0, 2.0]))
        optimizer = Sharded(AdamW([p]), group)
        p.grad = Tensor([1.0, -1.0])
        optimizer.step()
        return p.tolist(), len(optimizer.state_dict()["state"])
    found = spawn(4, tiny)
    assert found == [found[0]] * 4
    assert found[0][1] == 1 and found[0][0] != [1.0, 2.0]


def test_layers_without_a_bias_and_an_uneven_cut():
    def outputs(group):
        manual_seed(0)
        whole = Linear(3, 5, bias=False)
        cut = ColumnParallel(whole, group)
        x = randn(2, 3)
        wanted = whole(x).numpy()[:, part(5, group.rank, group.size)]
        return bool(np.allclose(cut(x).numpy(), wanted, atol=1e-6))
    assert spawn(3, outputs) == [True] * 3


class Ends(train.Observer):
    """Worker 1 ends after the third step: killed, or by an error."""

    def __init__(self, group, how):
        self.group, self.how = group, how

    def look(self, run, row):
        if self.group.rank == 1 and run.steps == 3:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("somebody stumbled")


def ended(group, how, path):
    run = a_run(group)
    run.observers.append(Ends(group, how))
    run.fit(6, path, every=2)


def left(path):
    return sorted(p.name for p in path.parent.iterdir())


@mpi
@pytest.mark.parametrize("how", ["killed", "raises"])
def test_a_lost_process_of_mpi_ends_all_and_the_run_goes_on(how, tmp_path):
    path = tmp_path / "run"
    ran = by_mpi(3, "ended", how, str(path))
    assert ran.returncode
    assert (how == "killed") or "somebody stumbled" in ran.stderr
    found = answer(by_mpi(2, "losses", 6, str(path)))
    np.testing.assert_allclose(found, losses(), rtol=1e-4)
    assert left(path) == ["run", "run.jsonl"]


def mismatched(group, difference):
    """Worker 1 has a row of another length."""
    all_reduce(group, np.zeros(8 + difference * group.rank))


@mpi
@pytest.mark.parametrize("difference", [-4, 4])
def test_other_lengths_over_mpi(difference):
    ran = by_mpi(2, "mismatched", difference)
    assert ran.returncode and "the same on all?" in ran.stderr


def silent(group):
    group.patience = 0.5
    if group.rank == 1:
        time.sleep(300)  # the end of the other is its end
    all_reduce(group, np.zeros(3))


@mpi
def test_a_silent_process_of_mpi_is_told():
    ran = by_mpi(2, "silent")
    assert ran.returncode
    assert "worker 0 has waited 0.5 s for worker 1" in ran.stderr


def test_without_mpi_it_is_said(monkeypatch):
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    assert distributed.mpiexec() is None
    assert "companion[mpi]" in no_mpi.__wrapped__()
    with pytest.raises(RuntimeError, match=r"companion\[mpi\]"):
        launch(2, "-c", "pass")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(RuntimeError, match="mpi4py is missing"), world():
        pytest.fail("the block must not run")


@pytest.fixture
def broken_mpi(tmp_path, monkeypatch):
    """An mpiexec that says why it can't start anything."""
    file = tmp_path / "mpiexec"
    file.write_text("#!/bin/sh\n(echo ----; echo no network) >&2\nexit 213\n")
    file.chmod(0o755)
    monkeypatch.setattr(distributed, "mpiexec", lambda: str(file))
    no_mpi.cache_clear()
    yield file
    no_mpi.cache_clear()


def test_an_mpi_that_starts_nothing_is_told_in_a_line(broken_mpi, capsys,
                                                      monkeypatch):
    said = "mpiexec fails on this machine: no network (status 213)"
    assert no_mpi() == said
    monkeypatch.setattr(scale_bench, "by_sockets", lambda work, *args: (
        1.0 if work == "speed" else []))
    monkeypatch.setattr(scale_bench, "spawn", lambda *args: [2.0])
    cases = [x["case"] for x in scale_bench.bench(1, True)]
    assert cases == ["1 process", "2 processes, sockets",
                     "efficiency of 2, sockets"]
    assert said in capsys.readouterr().err


def test_an_mpi_that_cannot_be_started_or_does_not_end(broken_mpi):
    broken_mpi.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(RuntimeError, match=r"was not done after 0\.1 s"):
        launch(1, "-c", "pass", seconds=0.1)
    broken_mpi.chmod(0o644)
    assert "ermission denied" in no_mpi()


def unended(group, folder):
    """Each tells its number, and goes on for long."""
    (Path(folder) / str(group.rank)).write_text(str(os.getpid()))
    barrier(group)
    time.sleep(600)


def runs(process):
    """Whether there is one of this number; what nobody has reaped is none."""
    try:
        return ") Z " not in Path("/proc", process, "stat").read_text()
    except FileNotFoundError:
        return False


@mpi
def test_what_takes_too_long_is_ended_with_its_processes(tmp_path):
    with pytest.raises(RuntimeError, match="was not done after 10 s"):
        by_mpi(2, "unended", str(tmp_path), seconds=10)
    limit = time.monotonic() + 120
    for file in tmp_path.iterdir():
        while runs(file.read_text()):
            assert time.monotonic() < limit, f"process {file.name} goes on"
            time.sleep(0.1)


@mpi
@pytest.mark.parametrize("ending, status, said", [
    ("sys.exit()", 0, ""), ("sys.exit(0)", 0, ""), ("sys.exit(3)", 3, ""),
    ("sys.exit('enough')", 1, "enough"), ("1 / 0", 1, "ZeroDivisionError")])
def test_how_a_block_of_the_world_may_end(ending, status, said):
    ran = launch(2, "-c", f"import sys\n"
                          f"from companion.distributed import world\n"
                          f"with world():\n    {ending}")
    assert ran.returncode == status and said in ran.stderr


def test_without_mpiexec_one_is_alone():
    with world() as group:
        assert group is ALONE and (group.rank, group.size) == (0, 1)
    with pytest.raises(KeyError), world():
        raise KeyError("goes through as it is")


# A program that a shell has started; in the background it would be deaf to
# Ctrl-C. Its alarm ends it if nothing else does, and a worker ends by itself.
INTERRUPTED = """
import os, signal, time
signal.signal(signal.SIGINT, signal.{handler})
signal.alarm({seconds})
from companion import spawn
def work(group):
    os.write(1, b"%d\\n" % os.getpid())  # at once: print may write in pieces
    time.sleep({seconds})
spawn(2, work)
"""


def test_ctrl_c_ends_all_workers():
    """As a shell does it: the signal goes to all processes at once."""
    code = INTERRUPTED.format(handler="default_int_handler", seconds=200)
    run = subprocess.Popen([sys.executable, "-c", code], text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           start_new_session=True)
    try:
        workers = [int(run.stdout.readline()) for _ in range(2)]
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate(timeout=300)
    finally:
        run.kill()  # else the end of this block would wait for it
        run.communicate()
    assert run.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.fixture
def heard():
    """What a handler of Ctrl-C has heard, in place of the usual one."""
    found = []
    before = signal.signal(signal.SIGINT, lambda *_: found.append("key"))
    yield found
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_workers_start_goes_to_who_listens(heard):
    with later_interrupts():
        signal.raise_signal(signal.SIGINT)
        assert heard == []
    assert heard == ["key"]
    with pytest.raises(OSError), later_interrupts():
        raise OSError("no more processes")
    signal.raise_signal(signal.SIGINT)
    assert heard == ["key"] * 2


def test_a_program_that_ignores_ctrl_c_goes_on_to(heard):
    """As one in the background of a shell, which gets its terminal's keys."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with later_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not heard


def test_a_worker_lost_in_the_middle_of_its_answer():
    """It was a bare OSError of multiprocessing's."""
    mine, others = distributed.FORK.Pipe(duplex=False)
    os.write(others.fileno(), b"\0\0\1\0half of it")
    others.close()
    worker = SimpleNamespace(join=lambda seconds: None, exitcode=-9)
    done, _, *words = distributed.heard(worker, mine)
    mine.close()
    assert not done
    assert words[:2] == ["killed", "it ended with status -9"]


def test_a_result_that_cannot_travel():
    with pytest.raises(RuntimeError, match="pickle"):
        spawn(2, lambda group: lambda: None)


def test_an_error_tells_where_it_was_raised():
    with pytest.raises(RuntimeError, match="worker 0: ZeroDivisionError"
                       ) as raised:
        spawn(2, lambda group: 1 / group.rank)
    assert "test_distributed.py" in raised.value.__notes__[0]


def test_who_was_first_is_told_not_who_followed():
    """Neighbours of a worker that is gone fail as well, a little later."""
    def fall(group):
        if group.rank == 2:
            raise Lost("I was the first")
        barrier(group)
    with pytest.raises(RuntimeError, match="worker 2: Lost: I was"):
        spawn(4, fall)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    def spoiled(group):
        run = a_run(group)
        if group.rank == 0:
            p = next(iter(run.model.parameters())).detach()
            p.assign(p * math.nan)
        run.save(tmp_path / "run")
    with pytest.raises(RuntimeError, match=NotFinite.__name__):
        spawn(2, spoiled)
    assert not list(tmp_path.iterdir())


def test_half_written_files_are_cleared_away(tmp_path):
    path = tmp_path / "run"
    (tmp_path / ".run.123").write_bytes(b"half")
    plain = losses(path=tmp_path / "other" / "run")
    found = spawn(3, partial(losses, path=path))
    np.testing.assert_allclose(found, [plain] * 3, rtol=1e-4)
    assert left(path) == ["other", "run", "run.jsonl"]


def test_a_run_of_captured_steps_is_refused():
    run = a_run()
    model = run.model.to("lazy")
    whole = Trainer(model, SGD(model.parameters()), run.batches, run.loss_of)
    with pytest.raises(ValueError, match="not lazy"):
        parallel(compiled(whole), ALONE)


def test_a_run_that_has_begun_goes_on_in_parallel():
    def going_on(group):
        run = a_run()
        run.fit(3)
        on = parallel(run, group)
        on.fit(6)
        return [row["loss"] for row in on.history]
    np.testing.assert_allclose(spawn(2, going_on), [losses()] * 2, rtol=1e-4)


class Wire:
    """CuPy's interface to NCCL, answered by a group of sockets.

    As there, a send and a recv do nothing until the group ends; the
    address of a row stands for its memory.
    """

    NCCL_UINT8 = 1

    def __init__(self, group, memory):
        self.group, self.memory, self.queue = group, memory, []
        self.depth, self.asked = 0, []

    def get_unique_id(self):
        return tuple(range(-64, 64))

    def NcclCommunicator(self, size, name, rank):
        assert name == tuple(range(-64, 64))
        assert (size, rank) == (self.group.size, self.group.rank)
        return self

    def groupStart(self):
        self.depth += 1

    def groupEnd(self):
        self.depth -= 1
        self.flush()

    def flush(self):
        if self.depth == 0:
            queue, self.queue = self.queue, []
            sent = [self.group.send(x, to) for way, x, to in queue
                    if way == "send"]
            for way, x, source in queue:
                if way == "recv":
                    self.group.recv(x, source)
            for done in sent:
                done()

    def call(self, way, pointer, count, kind, other, stream):
        assert kind == self.NCCL_UINT8 and stream == 7
        x = self.memory[pointer]
        assert x.nbytes == count
        self.queue.append((way, x, other))
        self.flush()

    def send(self, *args):
        self.call("send", *args)

    def recv(self, *args):
        self.call("recv", *args)


class Row(np.ndarray):
    """An array whose .data.ptr can be asked, as a CuPy array's."""

    memory: dict[int, np.ndarray] = {}

    @property
    def data(self):
        plain = np.asarray(self)
        pointer = plain.__array_interface__["data"][0], plain.nbytes
        Row.memory[pointer] = plain
        return SimpleNamespace(ptr=pointer)


def on_cards(group):
    wire = Wire(group, Row.memory)
    cuda = SimpleNamespace(
        nccl=wire, Stream=SimpleNamespace(null=SimpleNamespace(ptr=7)),
        Device=lambda i: SimpleNamespace(use=lambda: None),
        runtime=SimpleNamespace(getDeviceCount=lambda: 2))
    sys.modules["cupy"] = SimpleNamespace(cuda=cuda)
    cards = Nccl(group)
    x = np.arange(7, dtype=np.float32).view(Row) + group.rank
    all_reduce(cards, x)
    y = np.full(3, group.rank, np.float32).view(Row)
    broadcast(cards, y)
    return x.tolist(), y.tolist()


def test_the_ring_on_a_stand_in_for_cards():
    wanted = [3.0 * i + 3 for i in range(7)], [0.0] * 3
    assert spawn(3, on_cards) == [wanted] * 3


@pytest.mark.needs("cupy")
def test_cupy_has_what_the_cards_ask_for():
    """Its own use of NCCL, read; the library itself needs a card."""
    file = distribution("cupy-cuda12x").locate_file(
        "cupyx/distributed/_nccl_comm.py")
    text = Path(str(file)).read_text()
    for call in ("nccl.NcclCommunicator(", "nccl.get_unique_id()",
                 "nccl.groupStart()", "nccl.groupEnd()", "nccl.NCCL_UINT8"):
        assert call in text, call


@pytest.mark.parametrize("x", [Tensor([1.0]), [1.0]])
def test_what_is_no_array_is_refused(x):
    for act in (all_reduce, all_gather, reduce_scatter, broadcast):
        with pytest.raises(TypeError, match=r"np\.array\(x\) makes one"):
            act(ALONE, x)


def test_losses_of_both_infinities_are_told_as_the_loss():
    """math.fsum refused to add them up, in words of its own."""
    run, signs = a_run(accumulate=2), iter([1.0, -1.0] * 3)
    plain = run.loss_of
    run.loss_of = lambda *args: plain(*args) * math.inf * next(signs)
    with pytest.raises(NotFinite, match="the loss is nan"):
        run.step()


def test_a_memory_of_unlike_steps_cannot_be_shared_out():
    """A shard has one count: that of others would be lost."""
    plain, ours = a_run(), a_run(share=Sharded)
    plain.fit(2)
    state = plain.optimizer.state_dict()
    del state["state"][0]
    with pytest.raises(ValueError, match=r"made \[0, 2\] steps"):
        ours.optimizer.load_state_dict(state)


@pytest.mark.slow
def test_a_line_of_the_bench_has_all_its_fields(capsys):
    assert timing.main(["scale", "--json", "--quick"]) == 0
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert {x["bench"] for x in lines} == {"scale"}
    assert {x["threads"] for x in lines} == {1}
    cases = [x["case"] for x in lines]
    assert "1 process" in cases and "2 processes, sockets" in cases
    assert "all-reduce of 4 MB, sockets" in cases
    assert ("2 processes, MPI" in cases) == (not no_mpi())
    for x in lines:
        assert {"ours", "peer", "ratio", "unit", "peer_name"} <= set(x)


TINY = language.Recipe(GPTConfig(8, 65, 1, 2, 8), batch=4, steps=12,
                       lr=1e-2, warmup=2, target=9.0)
LINES = "It is the cause, it is the cause, my soul:\n" * 40


def command(*words):
    """`train gpt`, of a recipe of seconds, on a few lines."""
    language.RECIPES["tiny"] = TINY
    language.shakespeare = lambda: LINES
    raise SystemExit(train.main(["gpt", *words]))


def train_by_mpi(size, *words):
    return launch(size, "-c", f"import sys; sys.path[:0] = ['tests']\n"
                              f"from test_distributed import command\n"
                              f"command(*{words!r})")


def journal(folder):
    rows = (folder / "checkpoint.safetensors.jsonl").read_text()
    return [json.loads(row)["loss"] for row in rows.splitlines()]


@mpi
def test_the_command_trains_on_two_as_on_one(tmp_path, monkeypatch, capsys):
    words = ("--config", "tiny", "--steps", "9", "--batch", "5", "--out")
    ran = train_by_mpi(2, *words, str(tmp_path / "two"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("loss on letters held back") == 1
    assert "9 steps of 5 x 8 letters on cpu" in ran.stdout
    assert ran.stderr.count("9/9") >= 1
    recipes = language.RECIPES | {"tiny": TINY}
    monkeypatch.setattr(language, "RECIPES", recipes)
    monkeypatch.setattr(train, "RECIPES", recipes)
    monkeypatch.setattr(language, "shakespeare", lambda: LINES)
    assert train.main(["gpt", *words, str(tmp_path / "one")]) == 0
    one, two = journal(tmp_path / "one"), journal(tmp_path / "two")
    assert len(one) == 9
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert left(tmp_path / "one" / "x") == left(tmp_path / "two" / "x")
    # It can be gone on with by one alone, which reads what was asked for.
    capsys.readouterr()
    assert train.main(["gpt", "--resume", str(tmp_path / "two")]) == 0
    assert "0 steps of 5 x 8" in capsys.readouterr().out
    again = train_by_mpi(2, *words, str(tmp_path / "two"))
    assert again.returncode == 2 and "holds a run" in again.stderr


@pytest.mark.parametrize("words, said", [
    (("--steps", "0"), "1 or more"), (("--batch", "x"), "1 or more"),
    (("--resume", "x", "--steps", "3"), "only --device"),
    (("--resume", "x", "--batch", "3"), "only --device")])
def test_what_cannot_be_asked_of_the_command(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["gpt", *words])
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.needs("torch")
def test_both_all_reduces_of_the_bench_have_the_same_sum(tmp_path):
    def both(group):
        found = [np.arange(5, dtype=np.float32) * (group.rank + 1)
                 for _ in range(2)]
        all_reduce(group, found[0])
        with scale_bench.gloo(group, str(tmp_path / "store")) as reduce:
            reduce(found[1])
        return [x.tolist() for x in found]
    assert spawn(2, both) == [[[0.0, 3.0, 6.0, 9.0, 12.0]] * 2] * 2


# ------------------------------------------------- while backward goes on


def told(y, **options):
    """Leaves in the order in which they are told, with their gradients."""
    found = []
    y.backward(finished=lambda x: found.append((x, x.grad.tolist())),
               **options)
    return found


def weights(*shapes):
    manual_seed(0)
    return [parameter(randn(*shape)) for shape in shapes]


def test_a_leaf_is_told_once_with_its_whole_gradient():
    a, b = weights((3,), (3,))
    x = a * b
    y = (x * a + (b * b).exp() + x.tanh()).sum()
    found = told(y, retain_graph=True)
    assert sorted(id(x) for x, _ in found) == sorted([id(a), id(b)])
    assert all(g == x.grad.tolist() for x, g in found)
    # A second walk adds to what is there, and tells the sum.
    again = told(y)
    assert [(x, [2 * n for n in g]) for x, g in found] == again


def test_leaves_of_no_use_and_a_leaf_as_its_own_root():
    a, b = weights((), ())
    assert told(a) == [(a, 1.0)]
    assert told(a.detach() * b + 0) == [(b, a.item())]
    assert [x for x, _ in sweep(b * b, Tensor(1.0), keep=False)][-1] is b


def test_a_deep_net_is_told_from_its_end():
    """A weight may come first or second in its product, or turned."""
    layers = weights(*[(4, 4)] * 9)
    x = randn(4, 4)
    for i, w in enumerate(layers):
        x = (x @ w if i % 3 == 0 else w @ x if i % 3 == 1 else x @ w.T).tanh()
    assert [id(w) for w, _ in told(x.sum())] == [
        id(w) for w in layers[::-1]]


def test_two_leaves_told_apart_have_memory_of_their_own():
    """ADD gives both the same gradient, and one is told much earlier."""
    a, b = weights((3,), (3,))
    y = a + b.tanh().exp()
    found = told(y.sum())
    assert [id(x) for x, _ in found] == [id(a), id(b)]
    a.grad.assign(0)
    assert b.grad.tolist() == found[1][1]


def crossed(group, during):
    """Workers use the same weights in another order, and not all."""
    a, b, c, d = weights((5,), (5,), (3,), (2,))
    frozen = randn(4)
    one, other = [(a, b), (b, a)][group.rank % 2]
    y = ((one * 2).tanh() * 3 + other).square().sum()
    if group.rank == 0:
        y = y + c.sum()
    wanted = [frozen, a, b, c, d]
    with Sums(group, wanted, most=4) as sums:
        y.backward(finished=sums.done if during else None)
    assert frozen.grad is None and d.grad is None
    return [p.grad.tolist() for p in (a, b, c)]


def test_buckets_leave_in_one_order_whoever_has_them_first():
    for size in (2, 3):
        plain = spawn(size, crossed, False)
        assert spawn(size, crossed, True) == plain == [plain[0]] * size
        assert plain[0][2] == [1.0] * 3


@mpi
def test_sums_beside_backward_over_mpi():
    during, after = answer(by_mpi(2, "both_orders"))
    assert during == after


def both_orders(group):
    assert group.aside  # mpi4py asks for threads, and Open MPI has them
    return [crossed(group, during) for during in (True, False)]


def names():
    return {thread.name for thread in threading.enumerate()}


def broken_off(group, error):
    """Worker 1 ends in the middle of its backward; the others are told."""
    all_reduce(group, np.zeros(1))  # the group has a thread that sends
    (a, b), before = weights((2,), (2,)), names()
    try:
        with Sums(group, [b, a], most=1) as sums:
            sums.done(a)
            if group.rank == 1:
                raise error
            sums.done(b)
    except (Lost, KeyboardInterrupt, ArithmeticError) as found:
        return type(found).__name__, sorted(names() - before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_a_worker_that_breaks_off_leaves_no_thread(error):
    found = spawn(2, broken_off, error)
    assert found == [("Lost", []), (error.__name__, [])]


def where_it_runs(group, aside):
    """Names of the threads that add up."""
    seen, group.aside = [], aside
    send = group.send
    group.send = lambda *x: (seen.append(threading.current_thread()),
                             send(*x))[1]
    (a,) = weights((6,))
    a.square().sum().backward()
    sum_gradients(group, [a])
    return {x is threading.main_thread() for x in seen}


def test_a_group_without_threads_adds_up_in_the_first():
    assert spawn(2, where_it_runs, True) == [{False}] * 2
    assert spawn(2, where_it_runs, False) == [{True}] * 2
    assert not ALONE.aside


@pytest.mark.parametrize("level, aside", [(1, False), (2, True), (3, True)])
def test_mpi_says_whether_another_thread_may_call(level, aside, monkeypatch):
    mpi4py = SimpleNamespace(Query_thread=lambda: level, THREAD_SERIALIZED=2)
    monkeypatch.setattr(distributed, "import_module", lambda name: mpi4py)
    assert Mpi(SimpleNamespace(rank=0, size=1)).aside is aside


def test_what_goes_wrong_beside_backward_is_told():
    """Another length on another worker, found by the thread."""
    def unlike(group):
        (a,) = weights((6 + group.rank,))
        a.sum().backward()
        sum_gradients(group, [a])
    with pytest.raises(RuntimeError, match="the same on all"):
        spawn(2, unlike)
