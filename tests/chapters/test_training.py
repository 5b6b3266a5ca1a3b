# Tangled from training: edit there, `make tangle`. sha256:ed0d8dae150a
from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from companion.dtype import float32, int64
from companion.layers import Dropout, Linear, Sequential
from companion.losses import cross_entropy
from companion.optim import SGD, AdamW
from companion.tensor import Generator, Tensor, manual_seed, ones, rand, randn
from companion.training import (
    Batches,
    EarlyStopping,
    NotFinite,
    Trainer,
    accuracy,
    clip_grad_norm,
    evaluate,
    one_cycle,
    warmup_cosine,
    write_atomically,
    write_history,
)


# chapters/gradients/training.md:57
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


# chapters/gradients/training.md:69
def classifier(width=32):
    return Sequential(Linear(2, width), Tensor.tanh,
                      Linear(width, width), Tensor.tanh, Linear(width, 2))


# chapters/gradients/training.md:590
def make_run(steps=600, seed=0, width=32, dropout=0.0):
    manual_seed(seed)
    x, t = spirals(1000)
    net = Sequential(classifier(width), Dropout(dropout)) if dropout \
        else classifier(width)
    optimizer = AdamW(net.parameters(), lr=0.02)
    return Trainer(net, optimizer, Batches(x, t, size=128, seed=seed),
                   lambda model, x, t: cross_entropy(model(x), t),
                   rate=warmup_cosine(steps, 50), clip=1.0)


# chapters/gradients/training.md:659
def train(folder):
    """The run that will be killed."""
    x = randn(256, 4, generator=Generator(5))
    t = (x.sum(1) > 0).to(int64)
    manual_seed(1)
    net = Sequential(Linear(4, 16), Dropout(0.2), Linear(16, 2))
    run = Trainer(net, AdamW(net.parameters(), lr=0.05),
                  Batches(x, t, size=24),
                  lambda model, x, t: cross_entropy(model(x), t),
                  rate=warmup_cosine(300, 10), clip=1.0)
    run.fit(300, folder / "run.safetensors", every=5, progress=False)
    losses = [row["loss"] for row in run.history]
    (folder / "losses.json").write_text(json.dumps(losses))


# chapters/gradients/training.md:674
def start(folder):
    """`train` in a process of its own, and the number of that."""
    number = os.fork()
    if number:
        return number
    try:
        train(folder)
        os._exit(0)
    finally:
        os._exit(1)


# chapters/gradients/training.md:688
def finished(folder):
    """The losses of a run that nobody disturbs."""
    _, status = os.waitpid(start(folder), 0)
    assert status == 0
    return json.loads((folder / "losses.json").read_text())


# chapters/gradients/training.md:695
def age(path):
    return path.stat().st_mtime_ns if path.exists() else 0


# chapters/gradients/training.md:699
def killed(folder, seconds):
    """Start, wait for a checkpoint and `seconds` more, and kill."""
    checkpoint = folder / "run.safetensors"
    before, number, ended = age(checkpoint), start(folder), 0
    while not ended and age(checkpoint) == before:
        time.sleep(0.001)
        ended, _ = os.waitpid(number, os.WNOHANG)
    if not ended:
        time.sleep(seconds)
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
    return not (folder / "losses.json").exists()


# chapters/gradients/training.md:716
def test_a_killed_run_resumes_bit_for_bit():
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        expected = finished(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        hits = [killed(Path(folder), draw.random() * 0.02)
                for _ in range(3)]
        assert hits[0] and finished(Path(folder)) == expected
    assert len(expected) == 300


# chapters/gradients/training.md:729
def message(call, kind=ValueError):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("expected an error")


# chapters/gradients/training.md:738
def test_a_failed_write_leaves_the_old_checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        write_atomically(path, b"old")
        try:
            write_atomically(path, "no bytes")
        except TypeError:
            assert path.read_bytes() == b"old"
        assert [p.name for p in Path(folder).iterdir()] == ["a"]


# chapters/gradients/training.md:752
def test_a_broken_checkpoint_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        run = make_run(10)
        run.fit(2, path, progress=False)
        path.write_bytes(path.read_bytes()[:-50])
        assert "is no checkpoint" in message(lambda: run.resume(path))


# chapters/gradients/training.md:764
def test_accumulated_batches_equal_one_large_batch():
    manual_seed(0)
    x, t = spirals(64)
    net = classifier()
    cross_entropy(net(x), t).backward()
    whole = [p.grad.numpy().copy() for p in net.parameters()]
    SGD(net.parameters()).zero_grad()
    for half in (slice(0, 32), slice(32, 64)):
        (cross_entropy(net(x[half]), t[half]) / 2).backward()
    for p, expected in zip(net.parameters(), whole):
        assert np.allclose(p.grad.numpy(), expected, atol=1e-6)


# chapters/gradients/training.md:780
def test_clipping_keeps_the_direction():
    p = Tensor([3.0, 4.0]).requires_grad_()
    p.grad = Tensor([30.0, 40.0])
    assert abs(clip_grad_norm([p], 5.0) - 50.0) < 1e-4
    assert np.allclose(p.grad.numpy(), [3.0, 4.0])
    assert abs(clip_grad_norm([p], 10.0) - 5.0) < 1e-4
    assert np.allclose(p.grad.numpy(), [3.0, 4.0])


# chapters/gradients/training.md:790
def test_schedules_begin_peak_and_end_where_they_should():
    schedule = warmup_cosine(100, 10, floor=0.1)
    assert schedule(0) == 0.1 and schedule(9) == 1.0
    assert abs(schedule(100) - 0.1) < 1e-12 and schedule(999) == schedule(100)
    cycle = one_cycle(100)
    assert max(range(100), key=cycle) == 30 and cycle(100) < 1e-5


# chapters/gradients/training.md:801
def test_every_row_comes_once_in_an_epoch():
    batches = Batches(Tensor(np.arange(10)), size=2, seed=3)
    rows = [v for _ in range(5) for v in next(batches)[0].tolist()]
    assert sorted(rows) == list(range(10)) and rows != list(range(10))
    assert "got lengths [3], size 5" in message(
        lambda: Batches(ones(3), size=5))


# chapters/gradients/training.md:810
def test_evaluation_rests_dropout_and_restores_the_mode():
    net = Sequential(Linear(2, 2), Dropout(0.9))
    x, t = spirals(50)
    values = {evaluate(net, accuracy, x, t, size=7) for _ in range(3)}
    assert len(values) == 1 and net.training


# chapters/gradients/training.md:820
def test_not_a_number_names_step_and_layer():
    run = make_run(10)
    run.model[2].weight.detach()[0, 0] = math.nan
    text = message(run.step, NotFinite)
    assert "step 1, first in layers.2 (Linear)" in text
    assert "forward" not in vars(run.model[2])


# chapters/gradients/training.md:829
def test_early_stopping_waits():
    stop = EarlyStopping(patience=2)
    assert [stop(v) for v in (3, 2, 2.5, 1, 1, 1)] == [
        False, False, False, False, False, True]


# chapters/gradients/training.md:838
def test_histories_are_written():
    history = make_run(3).fit(3, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("h.json", "h.csv"):
            write_history(history, Path(folder) / name)
        again = json.loads((Path(folder) / "h.json").read_text())
        assert again == history
        assert len((Path(folder) / "h.csv").read_text().splitlines()) == 4
        assert ".json or .csv" in message(
            lambda: write_history(history, "h.txt"))
