# Tangled from training: edit there, `make tangle`. sha256:8807f63a38ec
from __future__ import annotations

import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr
from copy import deepcopy
from pathlib import Path
from unittest import mock

import numpy as np

from companion.device import CPU, Device
from companion.dtype import bfloat16, float16, float32, float64, int64
from companion.layers import Dropout, Linear, Module, Sequential
from companion.literate import message
from companion.losses import cross_entropy
from companion.optim import SGD, Adam, AdamW
from companion.tensor import Tensor
from companion.tensor.creation import ones, zeros
from companion.tensor.gradients import grad
from companion.tensor.operands import where
from companion.tensor.random import (
    GENERATOR, Generator, manual_seed, rand, randn)
from companion.training import (
    Batches, EarlyStopping, LossPlot, NotFinite, Observer, ProgressBar,
    Trainer, accuracy, clip_grad_norm_, draw_nothing, evaluate, journal_of,
    one_cycle, read_checkpoint, warmup_cosine, write_atomically, write_history)


def spirals(n, seed=0):
    """n points on two spiral arms, and which arm each is on."""
    draw = Generator(seed)
    arm = (rand(n, generator=draw) < 0.5).to(int64)
    t = rand(n, generator=draw).sqrt() * 9.0
    angle = t + arm * math.pi
    noise = randn(n, 2, generator=draw).numpy() * 0.15
    points = np.stack([(t * angle.cos()).numpy(),
                       (t * angle.sin()).numpy()], 1) / 4 + noise / 2
    return Tensor(points, float32), arm


def classifier(width=32):
    return Sequential(Linear(2, width), Tensor.tanh,
                      Linear(width, width), Tensor.tanh, Linear(width, 2))


def loss_of(model, x, t):
    return cross_entropy(model(x), t)


def make_run(steps=100, seed=0, width=32):
    """A run on the spirals; the same seed gives the same run."""
    manual_seed(seed)
    x, t = spirals(400)
    net = Sequential(*classifier(width), Dropout(0.1))
    return Trainer(net, AdamW(net.parameters(), lr=0.1),
                   Batches(x, t, size=64, seed=seed), loss_of,
                   rate=warmup_cosine(steps, 10), clip=1.0)


def overfitting(steps=300, every=10, patience=5):
    manual_seed(4)
    x, t = spirals(60, seed=4)
    t = (t + (rand(60, generator=Generator(1)) < 0.15).to(int64)) % 2
    unseen = spirals(300, seed=5)
    net = classifier()
    stopping = EarlyStopping(
        lambda model: evaluate(model, loss_of, *unseen), every, patience)
    return Trainer(net, Adam(net.parameters(), lr=0.05),
                   Batches(x, t, size=60), loss_of,
                   observers=[stopping]), stopping


def train(folder, steps=60, every=5):
    """The run that will be killed, with all that a run can have."""
    x = randn(256, 4, generator=Generator(5))
    t = (x.sum(1) > 0).to(int64)
    manual_seed(1)
    net = Sequential(Linear(4, 16), Dropout(0.2), Linear(16, 2))
    stopping = EarlyStopping(
        lambda model: evaluate(model, loss_of, x, t), 3, patience=99)
    run = Trainer(net, AdamW(net.parameters(), lr=0.05),
                  Batches(x, t, size=24), loss_of, clip=1.0, accumulate=2,
                  rate=warmup_cosine(steps, 10), observers=[stopping])
    run.fit(steps, folder / "run.safetensors", every)
    (folder / "done").write_text(str(stopping.best))


def start(work, folder):
    """`work` in a process of its own."""
    process = multiprocessing.get_context("fork").Process(
        target=work, args=(folder,))
    process.start()
    return process


def finished(folder, work=train):
    """All that a run has noted, seconds apart, when left alone."""
    run = start(work, folder)
    run.join()
    assert run.exitcode == 0
    lines = journal_of(folder / "run.safetensors").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row | {"seconds": 0} for row in rows], (
        folder / "done").read_text()


def age(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def killed(folder, seconds):
    """Start, wait for a checkpoint and `seconds` more, and kill."""
    checkpoint = folder / "run.safetensors"
    before, run = age(checkpoint), start(train, folder)
    while run.is_alive() and age(checkpoint) == before:
        time.sleep(0.001)
    time.sleep(seconds)
    run.kill()
    run.join()
    return not (folder / "done").exists()


def test_a_killed_run_resumes_bit_for_bit():
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        expected = finished(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        hits = [killed(Path(folder), draw.random() * 0.02)
                for _ in range(3)]
        assert hits[0] and finished(Path(folder)) == expected
        names = sorted(p.name for p in Path(folder).iterdir())
        assert names == ["done", "run.safetensors",
                         "run.safetensors.jsonl"]
    assert len(expected[0]) == 60 and "validation" in expected[0][2]


def short(folder):
    train(folder, steps=4, every=2)


def dying(n):
    """`short`, killed before it touches the disk for the n-th time."""
    def work(folder):
        touches = itertools.count(1)

        def watched(event, _):
            if event in ("open", "os.rename", "os.remove") and (
                    next(touches) == n):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watched)
        short(folder)
    return work


def survives(n, expected):
    """Whether it was killed; if so, a second start ends the same."""
    with tempfile.TemporaryDirectory() as folder:
        run = start(dying(n), Path(folder))
        run.join()
        if run.exitcode == -signal.SIGKILL:
            assert finished(Path(folder), short) == expected, n
        return run.exitcode == -signal.SIGKILL


def test_every_moment_that_touches_the_disk_is_survived():
    with tempfile.TemporaryDirectory() as folder:
        expected = finished(Path(folder), short)
    moments = list(itertools.takewhile(
        lambda n: survives(n, expected), itertools.count(1)))
    assert len(moments) >= 15


def test_a_failed_write_leaves_the_old_checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        write_atomically(path, b"old")
        message(lambda: write_atomically(path, 3.5), TypeError)
        assert path.read_bytes() == b"old"
        assert [p.name for p in Path(folder).iterdir()] == ["a"]


def test_what_the_killed_left_behind_is_cleared_away():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        make_run(10).fit(3, path)
        journal, half = journal_of(path), '{"step": 4, "lo'
        whole = journal.read_text()
        journal.write_text(whole + half)
        (Path(folder) / ".run.safetensors.99").write_bytes(b"half")
        again = make_run(10)
        again.fit(3, path)
        assert len(again.history) == 3 and len(os.listdir(folder)) == 2
        again.fit(4, path)
        lines = journal.read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_what_is_broken_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        make_run(10).fit(2, path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-50])
        assert "is no checkpoint" in message(
            lambda: make_run(10).resume(path))
        path.write_bytes(whole)
        journal_of(path).write_text("{}\n")
        assert "put the journal back" in message(
            lambda: make_run(10).resume(path))


def test_what_a_checkpoint_counts_on_is_on_the_disk_before_it():
    with tempfile.TemporaryDirectory() as folder:
        path, run, synced = Path(folder) / "run", make_run(10), []
        run.fit(2, path)
        with mock.patch.object(os, "fsync", lambda number: synced.append(
                os.fstat(number).st_ino)):
            run.save(path)
        assert synced == [p.stat().st_ino for p in (
            journal_of(path), path, Path(folder))]


def test_runs_side_by_side_keep_their_own_journals():
    with tempfile.TemporaryDirectory() as folder:
        losses = {}
        for name in "lr0.1", "lr0.3", "lr.jsonl":
            losses[name] = make_run(9).fit(3, Path(folder) / name)
        for name, rows in losses.items():
            again = make_run(9)
            assert again.resume(Path(folder) / name)
            assert again.history == rows


class Scaled(Module):
    """A parameter without axes, and one called array."""

    def __init__(self):
        self.array = Tensor([1.0, 2.0]).requires_grad_()
        self.scale = Tensor(0.5).requires_grad_()


def test_any_shape_and_any_name_is_saved():
    runs = [Trainer(net, SGD(net.parameters(), lr=0.1),
                    Batches(ones(4), size=2),
                    lambda net, x: (net.array * net.scale).sum())
            for net in (Scaled(), Scaled())]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        runs[0].fit(2, path)
        runs[1].fit(3, path)
    runs[0].fit(3)
    for a, b in zip(*[run.model.parameters() for run in runs]):
        assert a.shape == b.shape and a.tolist() == b.tolist()


class Remembers(Observer):
    """An observer whose state is whatever it was given."""

    def __init__(self, state):
        self.kept = state

    def state_dict(self):
        return self.kept

    def load_state_dict(self, state):
        self.kept = state


def run_with(state, steps=9):
    run = make_run(steps)
    run.observers = [Remembers(state)]
    return run


def returned(state):
    """A state after its way through a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "run", run_with(None)
        run_with(state).save(path)
        again.resume(path)
        return again.observers[0].kept


def same(a, b):
    """Equal, and of equal types, all the way down."""
    if isinstance(a, dict):
        return type(b) is dict and same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(
            map(same, a, b))
    if isinstance(a, Tensor | np.ndarray):
        return (type(a) is type(b) and a.dtype is b.dtype
                and np.array_equal(np.asarray(a), np.asarray(b)))
    return type(a) is type(b) and repr(a) == repr(b)


def test_what_is_saved_comes_back_as_it_was():
    x = Tensor([1.0, 2.0], bfloat16)
    for state in (
            {}, None, [], (), {"": {}}, {1: "a", "1": "b", (2, "x"): "c"},
            {"steps": (1, [2, (3.5,)]), "on": True, "nothing": None},
            {"a/b": x, "a": {"b": Tensor(3)}, "a/b'": Tensor([])},
            {"tensor": {"tuple": {"dict": ["tensor"]}}},
            {"Größe 大小": np.float32(0.1), "many.dots": np.arange(3)},
            {"far": math.inf, "none": math.nan, "long": 10 ** 30,
             "half": np.float16(2.5), "yes": np.bool_(True)},
            [Tensor(np.ones((2, 0, 3))), Tensor(True), np.array(2.0)]):
        assert same(returned(state), state), state


def test_what_would_not_come_back_is_refused_and_nothing_written():
    for state, words in (
            ({"seen": {1, 2}}, "run/observers/0/1/seen is a set"),
            ({"at": {2: [Path()]}}, "run/observers/0/1/at/2/0 is a Posix"),
            ({"z": np.ones(2, complex)}, "/z holds complex128"),
            ({1 + 2j: 0}, "is a complex")):
        with tempfile.TemporaryDirectory() as folder:
            run = run_with(state)
            text = message(lambda run=run, at=folder: run.save(
                Path(at) / "run"), TypeError)
            assert words in text and "expected" in text, text
            assert os.listdir(folder) == []
    with mock.patch.dict(vars(sys.modules[Trainer.save.__module__]),
                         HEADER=1000):
        assert "has room for 1,000" in message(
            lambda: returned(["long"] * 999))


class Extra(Observer):
    def __init__(self, value, name="extra"):
        self.value, self.name = value, name

    def look(self, run, row):
        row[self.name] = self.value


def test_an_observer_hears_what_cannot_be_noted_and_the_run_goes_on():
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "run", make_run(9)
        for wrong, words in ((Extra(ones(2)), "row['extra'] is a Tensor"),
                             (Extra({1}), "row['extra'] is a set"),
                             (Extra(1, 2), "row[2] is a int")):
            run.observers = [Extra(0.5, "fine"), wrong]
            text = message(lambda: run.fit(9, path), TypeError)
            assert words in text and text.startswith("Extra: ")
        run.observers = [Extra(np.float32(0.5)), Extra(Tensor([3]), "n"),
                         Extra(np.array(True), "ok"), Extra("é", "word")]
        again, history = make_run(9), run.fit(9, path)
        again.resume(path)
        assert again.history == history and len(history) == 9
        assert history[0]["fine"] == 0.5 and "extra" not in history[0]
        assert [history[-1][name] for name in (
            "extra", "n", "ok", "word")] == [0.5, 3, True, "é"]
        assert type(history[-1]["extra"]) is float


def on(make, seed=0, size=64, rows=slice(None)):
    """The same model, on batches of `make`."""
    x, t = spirals(400)
    run = make_run(9)
    run.batches = make(x[rows], t[rows], size=size, seed=seed)
    return run


def test_other_data_is_refused_and_changes_nothing():
    backwards = np.arange(400)[::-1].copy()
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "run", on(Batches)
        run.fit(9, path)
        assert on(Batches).resume(path)
        for other in ({"seed": 1}, {"size": 32}, {"rows": slice(399)},
                      {"rows": Tensor(backwards)}):
            again = on(Batches, **other)
            before = again.state_dict() | {"model": deepcopy(
                again.model.state_dict())}
            assert "the first batch is not the one" in message(
                lambda again=again: again.resume(path))
            assert same(again.state_dict(), before)
            assert again.journal is None and again.history == []
            GENERATOR.go_to(0, 0)
        state, _ = read_checkpoint(path)
        again.load_state_dict(state | {"first": None})
        assert again.steps == 9


def half_way(*observers):
    """A run with all that a run can have, in its middle."""
    run = make_run(9)
    run.accumulate, run.rate = 2, one_cycle(9)
    run.observers = [ProgressBar(), EarlyStopping(weight, 2, patience=9),
                     *observers]
    with redirect_stderr(io.StringIO()):
        run.fit(4)
    return run


def weight(model):
    return model[0].weight.detach().square().sum().item()


def ended(run):
    with redirect_stderr(io.StringIO()):
        history = run.fit(9)
    return [row | {"seconds": 0} for row in history]


def test_a_copied_run_goes_on_as_the_first():
    expected = None
    for way in (lambda run: run, deepcopy,
                lambda run: pickle.loads(pickle.dumps(run)),
                lambda run: deepcopy([run.observers, run])[1]):
        found = ended(way(half_way()))
        expected = expected or found
        assert found == expected and len(found) == 9


def test_a_run_can_be_copied_by_an_observer():
    class Twins(Observer):
        def look(self, run, row):
            runs.append(deepcopy(run))

    runs = []
    expected = ended(half_way(Twins()))
    assert len(runs) == 9 and expected[-1]["step"] == 9
    assert [run.steps for run in runs] == [*range(1, 10)]
    assert len(ended(runs[3])) == 9


def test_a_generator_of_a_modules_own_is_part_of_the_run():
    def private(copies=2):
        run, draw = make_run(9), Generator(5)
        net = Sequential(Dropout(0.5, draw), run.model, *[
            Dropout(0.3, draw)] * copies, Dropout(0.1, Generator(6)))
        return Trainer(net, SGD(net.parameters(), lr=0.1), run.batches,
                       loss_of)

    expected = [row["loss"] for row in private().fit(6)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        private().fit(3, path)
        again = private()
        assert [row["loss"] for row in again.fit(6, path)] == expected
        assert "expected 1 random generators, got 3" in message(
            lambda: make_run(9).load_state_dict(again.state_dict() | {
                part: make_run(9).state_dict()[part]
                for part in ("model", "optimizer")}))


def test_a_journal_that_lost_rows_is_not_filled_up():
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "run", make_run(9)
        run.fit(3, path)
        journal_of(path).write_text("")
        assert "put the journal back" in message(lambda: run.fit(4, path))


def test_a_state_that_does_not_fit_changes_nothing():
    run, other = make_run(10), make_run(10)
    other.fit(2)
    run.observers = [EarlyStopping(None, 2, 2)]
    state, before = other.state_dict(), run.model[0].weight.tolist()
    for part, wrong in (("optimizer", {"state": {}, "param_groups": []}),
                        ("model", Linear(1, 1).state_dict()),
                        ("batches", [0, -5, 3]), ("generators", []),
                        ("observers", [["EarlyStopping", {"worst": 1}]])):
        spoilt = state | {part: wrong}
        message(functools.partial(run.load_state_dict, spoilt),
                ValueError, KeyError, TypeError)
        assert run.place()[:2] == [0, 0] and run.steps == 0
        assert run.first is None and run.observers[0].best == math.inf
        assert run.model[0].weight.tolist() == before
        assert run.optimizer.state_dict()["state"] == {}


def test_a_step_that_was_interrupted_has_not_begun():
    expected = [row["loss"] for row in make_run(9).fit(6)]
    run, losses = make_run(9), []
    whole = run.loss_of

    def loss_of(*values):
        loss = whole(*values)
        if len(losses) == 3:
            losses.append(None)
            raise KeyboardInterrupt
        return loss
    run.loss_of = loss_of
    for _ in range(2):
        try:
            while len(losses) < 7:
                losses.append(run.step()["loss"])
        except KeyboardInterrupt:
            assert run.steps == 3
    assert [v for v in losses if v is not None] == expected


def test_not_a_number_names_step_and_place():
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "run.safetensors", make_run(10)
        run.fit(4, path, every=3)
        run.model[2].weight.detach()[0, 0] = math.nan
        text = message(run.step, NotFinite)
        assert "after 4 steps the loss is nan" in text
        assert "the parameter layers.2.weight" in text
        assert f"{path} (4 steps)" in text
        assert "is not finite" in message(
            lambda: run.save(path), NotFinite)
        again = make_run(10)
        assert again.resume(path) and again.steps == 4
        for group in again.optimizer.param_groups:
            group["lr"] /= 10
        rates = [row["rate"] for row in again.fit(6, path)]
        assert len(rates) == 6 and max(rates) <= 1


def test_the_batch_and_the_layer_are_named():
    run = make_run(10)
    run.model[4].weight.detach().assign(3e38)
    text = message(run.step, NotFinite)
    assert "first in the output of layers.4 (Linear)" in text
    assert "forward" not in vars(run.model[4])
    run.batches.tensors[0].assign(math.nan)
    assert "tensor 0 of the batch" in message(run.step, NotFinite)


class Masked(Module):
    """Adds a mask, given by name, and scales."""

    def forward(self, x, mask=None, scale=1.0):
        return where(mask == 0, x, 0) * scale


class Outer(Module):
    def __init__(self, scale, hidden=-math.inf):
        self.inner, self.linear = Masked(), Linear(2, 1)
        self.scale, self.hidden = scale, hidden

    def forward(self, x):
        mask = Tensor([0.0, self.hidden])
        return self.linear(self.inner(x, mask=mask, scale=self.scale))


def place_of(net, loss_of):
    run = Trainer(net, SGD(net.parameters(), lr=0.1),
                  Batches(ones(4, 2), size=2), loss_of)
    return message(run.step, NotFinite).partition("first in ")[2]


def test_the_search_survives_names_masks_and_penalties():
    inner = place_of(Outer(math.inf, 1.0), lambda net, x: net(x).sum())
    assert inner.startswith("the output of inner (Masked)")
    mask = place_of(Outer(1.0), lambda net, x: net(x).sum() * math.inf)
    assert mask.startswith("the loss itself")

    def penalty(net, x):
        loss = net(x).sum()
        slope, = grad(loss, [net.linear.weight], create_graph=True)
        return loss + slope.square().sum() * math.inf
    assert place_of(Outer(1.0), penalty).startswith("the loss itself")
    calls = itertools.count()

    def once(net, x):
        return net(x).sum() * (math.nan if next(calls) == 0 else [])
    assert "cannot be computed again" in place_of(Outer(1.0), once)


def test_an_infinite_gradient_stops_before_the_step():
    net = Linear(2, 1)
    net.weight.detach().assign(0.0)
    net.bias.detach().assign(0.0)
    run = Trainer(net, SGD(net.parameters(), lr=0.1),
                  Batches(ones(4, 2), size=2),
                  lambda model, x: model(x).abs().sqrt().sum())
    text = message(run.step, NotFinite)
    assert "norm of the gradient" in text and "gradient of bias" in text
    assert net.weight.tolist() == [[0.0, 0.0]]


def test_accumulated_batches_equal_one_large_batch():
    grads = []
    for size, parts in ((64, 1), (32, 2)):
        manual_seed(0)
        net = classifier()
        run = Trainer(net, SGD(net.parameters()), Batches(
            *spirals(64), size=size), loss_of, accumulate=parts)
        run.step()
        grads.append([p.grad.numpy() for p in net.parameters()])
    for a, b in zip(*grads):
        assert np.allclose(a, b, atol=1e-6)


def test_clipping_keeps_the_direction():
    p = Tensor([3.0, 4.0]).requires_grad_()
    p.grad = Tensor([30.0, 40.0])
    assert abs(clip_grad_norm_([p], 5.0) - 50.0) < 1e-4
    assert np.allclose(p.grad.numpy(), [3.0, 4.0])
    assert abs(clip_grad_norm_([p], 10.0) - 5.0) < 1e-4
    assert np.allclose(p.grad.numpy(), [3.0, 4.0])


def test_clipping_reads_no_number():
    class Far(Device):
        def host(self, buffer):
            raise AssertionError("read")

    far = Far()
    p = Tensor([0.0, 0.0]).requires_grad_()
    p.grad = Tensor([30.0, 40.0])
    p.device = p.grad.device = far
    norm = clip_grad_norm_([p], 5.0)
    norm.device = p.grad.device = CPU
    assert norm == 50 and np.allclose(p.grad.numpy(), [3, 4])


def test_a_healthy_step_reads_two_numbers():
    run = make_run()
    run.accumulate = 3
    with mock.patch.object(Tensor, "item", autospec=True,
                           side_effect=Tensor.item) as read:
        run.step()
    assert read.call_count == 2


def test_the_bad_one_of_several_batches_is_found():
    run = make_run()
    run.accumulate = 4
    third = int(run.batches.order[2 * run.batches.size])
    run.batches.tensors[0][third] = math.nan
    before = [p.numpy().copy() for p in run.model.parameters()]
    told = message(run.step, NotFinite)
    assert "the loss is nan, first in tensor 0 of the batch" in told
    assert run.place()[:2] == [0, 0] and run.steps == 0
    for old, p in zip(before, run.model.parameters()):
        assert np.array_equal(old, p.numpy())


def test_no_square_is_too_large_or_too_small():
    for values, dtype in (([3e20, 4e20], float32), ([3e-25, 4e-25], float32),
                          ([3e38, 0.0], float32), ([1e-44, 0.0], float32),
                          ([3e150, 4e150], float64), ([3e4, 4e4], float16),
                          ([3e38, 1e38], bfloat16)):
        p = Tensor([0.0, 0.0], dtype).requires_grad_()
        p.grad = Tensor(values, dtype)
        g = p.grad.to(float64).numpy()
        length = math.hypot(*g)
        norm = clip_grad_norm_([p], 0.5)
        assert norm.shape == () and norm.dtype is float64
        assert math.isclose(norm, length, rel_tol=1e-6)
        expected = g * min(0.5 / length, 1)
        assert np.allclose(p.grad.to(float64).numpy(), expected, rtol=1e-2,
                           atol=0), (values, dtype)
    p.grad = zeros(2)
    assert clip_grad_norm_([p], 0.5) == 0 == clip_grad_norm_([], 0.5)
    p.grad = Tensor([math.inf, 1.0])
    assert clip_grad_norm_([p], math.inf) == math.inf
    p.grad = Tensor([1.0, math.nan])
    assert math.isnan(clip_grad_norm_([p], 1.0))


def test_schedules_begin_peak_and_end_where_they_should():
    schedule = warmup_cosine(100, 10, floor=0.1)
    assert schedule(0) == 0.1 and schedule(9) == 1.0
    assert abs(schedule(100) - 0.1) < 1e-12 and schedule(999) == schedule(100)
    cycle = one_cycle(100)
    assert max(range(100), key=cycle) == 30 and cycle(100) < 1e-5
    assert cycle(30) == 1.0
    for factor in schedule, cycle:
        assert pickle.loads(pickle.dumps(factor))(50) == factor(50)


def test_every_row_comes_once_in_an_epoch():
    batches = Batches(Tensor(np.arange(10)), size=2, seed=3)
    rows = [v for _ in range(5) for v in next(batches)[0].tolist()]
    assert sorted(rows) == list(range(10)) and rows != list(range(10))
    assert "got lengths [3], size 5" in message(
        lambda: Batches(ones(3), size=5))
    assert "got -1" in message(lambda: Batches(ones(3), size=1, seed=-1))


def test_evaluation_rests_dropout_and_restores_the_mode():
    net = Sequential(Linear(2, 2), Dropout(0.9))
    x, t = spirals(50)
    values = {evaluate(net, accuracy, x, t, size=7) for _ in range(3)}
    assert len(values) == 1 and net.training
    net[1].eval()
    evaluate(net, accuracy, x, t)
    assert net.training and not net[1].training
    assert "length 0" in message(lambda: evaluate(net, accuracy, x[:0]))


def test_a_short_last_batch_counts_by_its_rows():
    mean = evaluate(Linear(1, 1), lambda _, x: x.mean(),
                    Tensor([1.0, 1.0, 4.0]), size=2)
    assert mean == 2.0


def test_one_norm_for_all_gradients():
    a, b = [Tensor([v]).requires_grad_() for v in (1.0, 2.0)]
    a.grad, b.grad = Tensor([3.0]), Tensor([4.0])
    assert clip_grad_norm_([a, b], 1.0) == 5.0
    assert np.allclose([a.grad.item(), b.grad.item()], [0.6, 0.8])
    assert abs(clip_grad_norm_(b, 0.4) - 0.8) < 1e-6
    assert abs(b.grad.item() - 0.4) < 1e-6
    half = Tensor([300.0, 400.0], float16).requires_grad_()
    half.grad = Tensor([300.0, 400.0], float16)
    assert clip_grad_norm_([half], 1.0) == 500.0
    assert np.allclose(half.grad.numpy(), [0.6, 0.8], atol=1e-3)
    assert "got -1" in message(lambda: clip_grad_norm_([a], -1))


def test_groups_keep_their_rates_and_schedules_leave_no_trace():
    a, b = [Tensor([0.0]).requires_grad_() for _ in range(2)]
    net = Module()
    net.a, net.b = a, b
    optimizer = SGD([{"params": [a], "lr": 1.0}, {"params": [b]}], lr=0.1)
    run = Trainer(net, optimizer, Batches(ones(4), size=2),
                  lambda net, x: (net.a + net.b).sum(), accumulate=2,
                  rate=lambda step: 0.5)
    row = run.step()
    assert a.tolist() == [-0.5] and np.allclose(b.tolist(), [-0.05])
    assert row["rate"] == 0.5 and row["loss"] == 0.0
    assert [g["lr"] for g in optimizer.param_groups] == [1.0, 0.1]
    assert abs(run.step()["loss"] + 0.55) < 1e-6
    for options in {"accumulate": 0}, {"clip": -1.0}:
        assert "got" in message(functools.partial(
            Trainer, net, optimizer, None, None, **options))
    assert "every" in message(lambda: run.fit(9, every=0))


def test_early_stopping_waits_keeps_the_best_and_resumes():
    values = iter((3, 2, 2.5, 1, 1, 1))
    run = make_run(50)
    stop = EarlyStopping(lambda model: next(values), 2, patience=2)
    run.observers = [stop]
    history = run.fit(50)
    assert [row.get("validation") for row in history] == [
        v for value in (3, 2, 2.5, 1, 1, 1) for v in (None, value)]
    assert run.stopped and stop.best == 1
    assert type(history[1]["validation"]) is float
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        run.save(path)
        again = make_run(50)
        again.observers = [EarlyStopping(lambda model: 0.0, 2, 2)]
        assert len(again.fit(50, path)) == 12
        assert again.observers[0].best == 1
        again.model.load_state_dict(again.observers[0].best_model)


def test_two_observers_neither_overrule_nor_impersonate_each_other():
    falling = itertools.count(0, -1)
    run = make_run(50)
    run.observers = [EarlyStopping(lambda model: 1.0, 1, patience=2),
                     EarlyStopping(lambda model: next(falling), 1, 50)]
    assert len(run.fit(50)) == 3
    again = make_run(50)
    again.observers = [EarlyStopping(None, 1, 2) for _ in range(2)]
    again.load_state_dict(run.state_dict())
    assert [o.best for o in again.observers] == [1.0, -2.0]


def test_early_stopping_asks_for_more_than_its_tolerance():
    values = iter((1.0, 0.95, 0.9, 0.8))
    run = make_run(50)
    run.observers = [EarlyStopping(lambda model: next(values), 1, 2, 0.1)]
    assert len(run.fit(50)) == 3 and run.observers[0].best == 1.0


def test_a_bar_watches_and_a_plot_outside_a_notebook_is_a_bar():
    run, kept = make_run(3), sys.modules.pop("IPython", None)
    run.observers = [LossPlot()]
    try:
        with redirect_stderr(io.StringIO()) as shown:
            run.fit(3)
    finally:
        sys.modules.update({"IPython": kept} if kept else {})
    assert run.observers[0].draw is draw_nothing
    twin = pickle.loads(pickle.dumps(run.observers[0]))
    assert vars(twin).keys() == {"pause", "drawn"}
    assert "3/3" in shown.getvalue() and "loss=" in shown.getvalue()


def test_histories_are_written():
    history = make_run(3).fit(3)
    history[1]["validation"] = 0.5
    with tempfile.TemporaryDirectory() as folder:
        for name in ("h.json", "h.csv"):
            write_history(history, Path(folder) / name)
        again = json.loads((Path(folder) / "h.json").read_text())
        assert again == history
        lines = (Path(folder) / "h.csv").read_text().splitlines()
        assert len(lines) == 4 and lines[0].endswith(",validation")
        assert lines[2].endswith(",0.5") and lines[3].endswith(",")
        assert ".json or .csv" in message(
            lambda: write_history(history, "h.txt"))
