"""Loaders: each example once, whoever loads it, and again after a kill."""

import functools
import json
import multiprocessing
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from companion import Arrays, Compose, DataLoader, RandomFlip, RandomShift
from companion.data import Chance, drawn_digits

few = settings(max_examples=40, deadline=None)
LENGTHS, SIZES = st.integers(1, 40), st.integers(1, 12)
SEEDS, WORKERS = st.integers(0, 1000), st.integers(0, 3)


def numbers(batches):
    """The examples of each batch, where examples are their own numbers."""
    return [batch.tolist() for (batch,) in batches]


@few
@given(LENGTHS, SIZES, SEEDS, WORKERS, st.booleans(), st.booleans())
def test_every_example_once(n, size, seed, workers, shuffle, drop):
    if drop and n < size:
        size = n
    loader = DataLoader(
        range(n), size, shuffle, seed, drop_last=drop, workers=workers
    )
    for epoch in range(2):
        found = numbers(loader)
        seen = [i for batch in found for i in batch]
        assert loader.epoch == epoch and len(found) == len(loader)
        assert len(set(seen)) == len(seen)
        assert len(seen) == (n // size * size if drop else n)
        assert {len(batch) for batch in found[:-1]} <= {size}
        assert shuffle or seen == list(range(len(seen)))


@few
@given(LENGTHS, SIZES, SEEDS, WORKERS, WORKERS, st.integers(0, 30))
def test_another_loader_goes_on_from_there(n, size, seed, a, b, batches):
    old = DataLoader(range(n), size, True, seed, workers=a)
    for _ in range(batches):
        next(old)
    new = DataLoader(range(n), size, True, seed, workers=b)
    new.go_to(old.epoch, old.index)
    for _ in range(5):
        assert numbers([next(old)]) == numbers([next(new)])
        assert (old.epoch, old.index) == (new.epoch, new.index)


@few
@given(LENGTHS, SIZES, SEEDS, st.integers(0, 10), st.booleans())
def test_a_loop_continues_an_epoch_that_was_restored(
    n, size, seed, batches, endless
):
    whole = numbers(DataLoader(range(n), size, True, seed))
    loader = DataLoader(range(n), size, True, seed)
    begun = min(batches, len(whole))
    loader.go_to(0, min(begun * size, n))
    if endless and begun < len(whole):
        assert numbers([next(loader)]) == [whole[begun]]
    else:
        assert numbers(loader) == whole[begun:]


@few
@given(SIZES, SEEDS, st.lists(st.integers(0, 19), min_size=1, max_size=6))
def test_augmentation_belongs_to_the_example(size, seed, rows):
    data = Arrays(*drawn_digits(20))
    augment = Compose(RandomShift(3), RandomFlip())
    loader = DataLoader(data, size, augment=augment, seed=seed)
    loader.go_to(3, 0)
    together = loader.fetch(np.array(rows))[0].numpy()
    for image, row in zip(together, rows):
        alone = loader.fetch(np.array([row]))[0].numpy()[0]
        np.testing.assert_array_equal(image, alone)


@few
@given(SEEDS, st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_an_example_has_its_numbers_in_any_company(seed, example, k):
    """However many examples there are: no table of an epoch is made."""
    crowd = Chance(seed, 2, np.array([0, example, 7]))
    alone = Chance(seed, 2, np.array([example]))
    for _call in range(3):
        np.testing.assert_array_equal(crowd(k)[1], alone(k)[0])


def test_a_long_call_does_not_meet_the_next():
    chance = Chance(0, 0, np.arange(1))
    for length in (1 << 20) + 1, 1 << 20, 1:
        assert chance(length)[0, -1] != chance()[0, 0]


def test_chances_are_uniform_and_unlike_each_other():
    chance = Chance(0, 0, np.arange(20_000))
    other = Chance(0, 1, np.arange(20_000))
    columns = np.concatenate([chance(2), chance(2), other(2)], axis=1)
    assert columns.dtype == np.float32
    assert columns.min() >= 0 and columns.max() < 1
    assert abs(columns.mean(0) - 1 / 2).max() < 0.01
    assert abs(columns.var(0) - 1 / 12).max() < 0.002
    related = np.corrcoef(columns.T) - np.eye(6)
    assert abs(related).max() < 0.03


def test_spawned_processes_load_the_same():
    """Nothing is inherited there: all that a worker needs is sent."""
    spawned = functools.partial(
        ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn")
    )
    data = Arrays(*drawn_digits(30))
    make = functools.partial(
        DataLoader, data, 8, True, augment=RandomShift(2)
    )
    for a, b in zip(make(), make(workers=2, pool=spawned), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x.numpy(), y.numpy())


RUN = """
import json, os, signal, sys
from companion import (Adam, Arrays, DataLoader, Linear, Normalize,
    RandomShift, Trainer, cross_entropy, manual_seed)
from companion.data import drawn_digits

path, deadly, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
manual_seed(0)
net = Linear(784, 10)
loader = DataLoader(Arrays(*drawn_digits(90), transform=Normalize()), 8,
    shuffle=True, augment=RandomShift(2), workers=workers)
def loss_of(net, x, t):
    if run.steps == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return cross_entropy(net(x.flatten(1)), t)
run = Trainer(net, Adam(net.parameters(), lr=1e-3), loader, loss_of)
run.fit(40, path, every=7)
print(json.dumps([row["loss"] for row in run.history]))
"""


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    """Killed in its first, second and third epoch, with other workers."""

    def start(name, deadly, workers):
        words = [tmp_path / name, str(deadly), str(workers)]
        return subprocess.run(
            [sys.executable, "-c", RUN, *words],
            capture_output=True, text=True,
        )  # fmt: skip

    whole = start("whole", -1, 0)
    assert whole.returncode == 0, whole.stderr
    for deadly, workers in ((9, 0), (20, 2), (33, 1)):
        assert start("run", deadly, workers).returncode == -signal.SIGKILL
    resumed = start("run", -1, 3)
    assert json.loads(resumed.stdout) == json.loads(whole.stdout)
