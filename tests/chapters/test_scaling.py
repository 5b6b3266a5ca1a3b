# Tangled from scaling: edit there, `make tangle`. sha256:5ced989fc66d
from __future__ import annotations

import math
import os
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np

from companion.autograd import GRADIENT, remember
from companion.data import DataLoader
from companion.distributed import (
    ALONE, ColumnParallel, Cost, DataParallel, Group, Lost, RowParallel,
    Sharded, Sums, all_reduce, fitted, spawn, sum_gradients)
from companion.dtype import bfloat16, float32
from companion.layers import Linear, parameter
from companion.literate import message
from companion.ops import Op
from companion.optim import AdamW, decay_groups
from companion.tensor import Tensor
from companion.tensor.random import manual_seed, randn
from companion.training import NotFinite, Observer
from companion.transformer import (
    CONFIGS, GPT, GPTConfig, next_token_loss, windows)


class Counted(Group):
    """A group that counts the bytes that this worker sends."""

    def __init__(self, group):
        self.group, self.sent = group, 0
        self.rank, self.size = group.rank, group.size

    def send(self, x, to):
        self.sent += x.nbytes
        return self.group.send(x, to)

    def recv(self, x, source):
        self.group.recv(x, source)


def bytes_sent(group, reduce, n):
    """What this worker sends while n numbers are added up, in rows."""
    counted, x = Counted(group), np.full(n, group.rank + 1.0)
    reduce(counted, x)
    total = group.size * (group.size + 1) / 2
    assert (x == total).all()
    return counted.sent / x.nbytes


def sum_of(group, n, dtype):
    """The sum of what all workers have; worker 0's rank is 1."""
    x = np.random.default_rng(group.rank).normal(size=n).astype(dtype)
    all_reduce(group, x)
    return x


def test_every_worker_has_the_same_sum():
    for size in (1, 2, 3, 5):
        for n in (0, 1, 2, size, 1000):
            found = spawn(size, sum_of, n, np.float32)
            wanted = sum(np.random.default_rng(r).normal(size=n)
                         for r in range(size))
            assert {x.tobytes() for x in found} == {found[0].tobytes()}
            assert np.allclose(found[0], wanted, atol=1e-5)


LINE = "to be, or not to be, that is the question: " * 8
IDS = np.array([sorted(set(LINE)).index(c) for c in LINE])


def a_run(group, rows=12, share=None, seed=0):
    """A small GPT, about to learn a line; `share` makes its optimizer."""
    manual_seed(seed)
    model = GPT(GPTConfig(16, 32, 2, 2, 16, bias=False))
    optimizer = AdamW(decay_groups(model, 0.1), lr=3e-3)
    if share:
        optimizer = share(optimizer, group)
    batches = DataLoader(windows(IDS, 16), batch_size=rows, shuffle=True)
    return DataParallel(model, optimizer, batches, next_token_loss,
                        clip=1.0, group=group)


def losses(group, rows=12, steps=6, **options):
    """What `steps` steps have lost."""
    run = a_run(group, rows, **options)
    run.fit(steps)
    return [row["loss"] for row in run.history]


def test_the_losses_are_those_of_one_worker():
    for rows in (12, 5):
        plain = losses(ALONE, rows)
        assert plain[-1] < plain[0]
        for size in (2, 3):
            found = spawn(size, losses, rows)
            assert all(x == found[0] for x in found)
            assert np.allclose(found[0], plain, rtol=1e-4)


def stray(group):
    """Worker 1 has drawn other weights."""
    return losses(group, seed=group.rank)


def test_all_begin_with_the_weights_of_worker_0():
    found = spawn(2, stray)
    assert found[0] == found[1]
    assert np.allclose(found[0], losses(ALONE), rtol=1e-4)


class Plug(Observer):
    """Worker `rank` is killed after some step."""

    def __init__(self, group, rank, step):
        self.armed, self.step = group.rank == rank, step

    def look(self, run, row):
        if self.armed and run.steps == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kept(group, path, steps=6, plug=None, **options):
    """Train with checkpoints at every second step."""
    run = a_run(group, **options)
    if plug:
        run.observers.append(Plug(group, *plug))
    run.fit(steps, path, every=2)
    return [row["loss"] for row in run.history]


def remembered(group, share=None):
    """Bytes of an optimizer's memory after some steps, and the losses."""
    run = a_run(group, share=share)
    run.fit(6)
    memory = run.optimizer
    if share is None:
        total = sum(8 * p.size for p in run.model.parameters())
    return (memory.nbytes if share else total,
            [row["loss"] for row in run.history])


def test_a_share_is_the_whole_divided():
    whole, plain = remembered(ALONE)
    for size in (2, 4):
        found = spawn(size, remembered, Sharded)
        shares, (first, *rest) = zip(*found)
        assert sum(shares) == whole and max(shares) <= whole // size + 16
        assert all(x == first for x in rest)
        assert np.allclose(first, plain, rtol=1e-4)


def pair(group=None):
    """Two layers, whole or shared out: the answer and all gradients."""
    manual_seed(0)
    a, b, x = Linear(6, 10), Linear(10, 4), randn(3, 6).requires_grad_()
    if group:
        a, b = ColumnParallel(a, group), RowParallel(b, group)
    y = b(a(x).tanh())
    (y * y).sum().backward()
    return [t.detach().numpy() for t in (
        y, x.grad, a.weight.grad, a.bias.grad, b.weight.grad, b.bias.grad)]


def test_a_pair_of_layers_is_the_plain_one():
    plain = pair()
    for size in (1, 2, 3):
        found = list(zip(*spawn(size, pair)))
        for i, axis in ((2, 0), (3, 0), (4, 1)):
            found[i] = [np.concatenate(found[i], axis)]
        for ours, wanted in zip(found, plain):
            assert all(np.allclose(x, wanted, atol=1e-5) for x in ours)


def small_step():
    """The CPU configuration, and what gives the loss of a batch."""
    config = CONFIGS["cpu"]
    manual_seed(0)
    model = GPT(config)
    x, y = [Tensor(np.resize(IDS, (12, config.block_size))) for _ in "xy"]

    def loss():
        model.zero_grad()
        return next_token_loss(model, x, y)
    return model.parameters(), loss


def where_it_goes(group, steps=6):
    """Seconds of backward and of adding up, in the quickest step."""
    (parameters, new_loss), times = small_step(), []
    for _ in range(steps):
        loss = new_loss()
        start = time.perf_counter()
        loss.backward()
        middle = time.perf_counter()
        sum_gradients(group, parameters)
        times.append((middle - start, time.perf_counter() - middle))
    return min(times, key=sum)


def three_layers():
    """Three weights, and what is computed from them; the first is used
    once more, at the end."""
    manual_seed(0)
    a, b, c = [parameter(randn(4, 4)) for _ in "abc"]
    x = randn(2, 4)
    return (a, b, c), ((x @ a).tanh() @ b).tanh() @ c + x @ a


def test_a_leaf_is_told_after_its_last_use():
    (a, b, c), y = three_layers()
    seen = []
    y.sum().backward(finished=lambda leaf: seen.append(
        (leaf, leaf.grad.numpy().copy())))
    assert [leaf for leaf, _ in seen] == [c, b, a]
    assert all((g == leaf.grad.numpy()).all() for leaf, g in seen)


def summed(group, during):
    """Gradients of a worker's rows, added up during backward or after
    it; and how many buckets had left when the last one was complete."""
    manual_seed(0)
    model, early = GPT(GPTConfig(16, 32, 2, 2, 16, bias=False)), [0]
    x, y = windows(IDS, 16)[group.rank:group.rank + 2]
    with Sums(group, model.parameters(), 1 << 11) as sums:
        def finished(p):
            early.append(len(sums.sent))
            sums.done(p)
        next_token_loss(model, x, y).backward(
            finished=finished if during else None)
    return early[-1], [p.grad.numpy().tobytes() for p in model.parameters()]


def test_added_up_during_backward_is_the_same_to_the_last_bit():
    for size in (1, 2, 3):
        (none, after), *_ = spawn(size, summed, False)
        for early, found in spawn(size, summed, True):
            assert none == 0 and early > 2 and found == after


FAILS = Op("FAILS", 1)


def no_gradient(*_):
    raise ArithmeticError("in the middle of it")


def fails(group):
    """Backward ends early on all: names of threads before and behind."""
    all_reduce(group, np.zeros(1))
    before = {thread.name for thread in threading.enumerate()}
    a, b = parameter(randn(2, 2)), parameter(randn(2, 2))
    GRADIENT[FAILS] = (no_gradient,)
    x = a.detach() * 2
    remember(x, FAILS, (a,), None)
    loss = (x @ b).sum()
    try:
        with Sums(group, [a, b], most=1) as sums:
            loss.backward(finished=sums.done)
    except ArithmeticError as error:
        return (str(error), len(sums.sent) > 0, before == {
            thread.name for thread in threading.enumerate()})


def test_an_error_in_the_middle_leaves_no_thread():
    assert spawn(2, fails) == [("in the middle of it", True, True)] * 2


def ends(group, how):
    """Worker 1 does something that nobody expects."""
    if group.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raises":
            raise KeyError("lost")
        if how == "leaves":
            return
        if how == "silent":
            time.sleep(300)
    all_reduce(group, np.zeros(5 + (how == "longer") * group.rank))


def test_every_end_is_an_error_on_all():
    for how, words in (
            ("killed", "worker 1: killed: it ended with status -9"),
            ("raises", "worker 1: KeyError: 'lost'"),
            ("leaves", "worker 1 is gone"),
            ("silent", "has waited 0.5 s for worker"),
            ("longer", "the same on all?")):
        patience = 0.5 if how == "silent" else 600.0
        said = message(partial(spawn, 3, ends, how, patience=patience),
                       RuntimeError)
        assert words in said, (how, said)


def test_a_run_goes_on_with_other_workers():
    with tempfile.TemporaryDirectory() as folder:
        plain = kept(ALONE, Path(folder) / "plain", share=Sharded)
        for name, first, then in (("a", 3, 2), ("b", 2, 1), ("c", 1, 3)):
            path = Path(folder) / name
            said = message(partial(
                spawn, first, kept, path, 6, (first - 1, 3)), RuntimeError)
            assert "killed" in said
            # Shared out or not, the state is the same.
            for found in spawn(then, partial(kept, share=Sharded), path):
                assert len(found) == 6
                assert np.allclose(found, plain, rtol=1e-4)


def test_the_costs_of_exact_times_are_found_again():
    cost = Cost(2e-5, 3e-10)
    rows = [(p, n, cost.all_reduce(p, n)) for p in (2, 4)
            for n in (10, 10 ** 4, 10 ** 7)]
    assert np.allclose(fitted(rows), cost, rtol=1e-6, atol=0)
    assert cost.all_reduce(1, 10) == 0
    # What would be less than nothing costs nothing.
    assert fitted([(2, 10, 1.0), (2, 1000, 0.5)]).per_byte == 0


class Stops(Observer):
    """Worker 1 has seen enough after the second step."""

    def __init__(self, group):
        self.group = group

    def look(self, run, row):
        run.stopped = self.group.rank == 1 and run.steps == 2


def stopped(group):
    run = a_run(group)
    run.observers.append(Stops(group))
    run.fit(6)
    return run.steps, len(run.observers)


def test_where_one_stops_all_stop():
    assert spawn(3, stopped) == [(2, 1)] * 3


def poisoned(group):
    """The rows of worker 1 are no numbers."""
    def loss_of(model, x, y):
        loss = next_token_loss(model, x, y)
        return loss * (math.nan if group.rank == 1 else 1)
    run = a_run(group)
    run.loss_of = loss_of
    return message(run.step, NotFinite)


def test_what_is_no_number_on_one_is_none_on_any():
    assert all("the loss is nan" in said for said in spawn(2, poisoned))


def halves(group):
    """Gradients in halves, one of a kind that worker 1 has not."""
    a, b, c = [parameter(randn(n).to(dtype)) for n, dtype in (
        (5, bfloat16), (0, bfloat16), (3, float32))]
    ones, unused = parameter(randn(4)), parameter(randn(2))
    for p in (a, b, c, ones):
        if p is not c or group.rank == 0:
            p.grad = (p.detach() * 0 + 2 ** -9) + (p is ones)
    sum_gradients(group, [a, b, c, ones, unused], most=4)
    assert unused.grad is None and b.grad.shape == (0,)
    assert a.grad.dtype is bfloat16
    return [p.grad.to(float32).tolist() for p in (a, c, ones)]


def test_halves_are_added_wide_and_none_is_zero():
    for found in spawn(3, halves):
        assert found == [[3 * 2 ** -9] * 5, [2 ** -9] * 3,
                         [3 + 3 * 2 ** -9] * 4]


def test_what_does_not_fit_is_refused():
    a, b = parameter(randn(3)), parameter(randn(2).to(bfloat16))
    for act, words in (
            (lambda: spawn(0, print), "1 worker or more"),
            (lambda: all_reduce(ALONE, np.zeros((2, 2))), "in one piece"),
            (lambda: all_reduce(ALONE, np.zeros(4)[::2]), "in one piece"),
            (lambda: Sharded(AdamW([a, b]), ALONE), "one dtype"),
            (lambda: Sharded(AdamW([a]), ALONE).step(), "one for each")):
        assert words in message(act), words
    for act in (lambda: ALONE.send(np.zeros(1), 1),
                lambda: ALONE.recv(np.zeros(1), 1)):
        assert "group of one" in message(act, Lost)
    few = message(lambda: spawn(3, losses, 2), RuntimeError)
    assert "2 rows for 3 workers" in few
