"""What threads share is safe, however often they take turns."""

import functools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import companion
from companion import (
    Adam,
    Arrays,
    DataLoader,
    Generator,
    Linear,
    Tensor,
    manual_seed,
    native,
    no_grad,
    rand,
    randint,
    randn,
)
from companion.device import DEVICES, named
from companion.dtype import float64
from companion.sharing import once
from companion.tensor.random import GENERATOR
from companion.view import View

MANY = 8


@pytest.fixture(autouse=True)
def short_turns():
    """Threads that take turns a hundred thousand times a second."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def together(work, times=MANY):
    """What `work(i)` gives in as many threads, begun at one moment."""
    start = threading.Barrier(times)

    def begin(i):
        start.wait()
        return work(i)

    with ThreadPoolExecutor(times) as crowd:
        return list(crowd.map(begin, range(times)))


@pytest.mark.parametrize("draw", [
    lambda n, g: rand(n, generator=g),
    lambda n, g: randint(0, 1 << 40, (n,), generator=g),
    lambda n, g: randn(n, generator=g),
    lambda n, g: rand(n, dtype=float64, generator=g)])
@pytest.mark.parametrize("make", [lambda: Generator(5), lambda: GENERATOR])
def test_no_number_is_drawn_twice(draw, make):
    shared = make()
    manual_seed(5)
    found = together(lambda i: [
        draw(25, shared).numpy().tobytes() for _ in range(40)])
    everything = [numbers for drawn in found for numbers in drawn]
    assert len(set(everything)) == len(everything) == 40 * MANY


def test_a_line_is_told_once(capsys, monkeypatch):
    monkeypatch.setattr(native, "TOLD", {})
    together(lambda i: [native.tell(f"line {n}") for n in range(200)])
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"companion: line {n}"
                                   for n in range(200))


def test_a_text_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    compiled, compile_c = [], native.compile_c
    monkeypatch.setattr(native, "compile_c", lambda *given: (
        compiled.append(given), compile_c(*given)))
    source = "int eleven(void) { return 11; }"
    found = together(lambda i: native.load(source).eleven())
    assert found == [11] * MANY and len(compiled) == 1


def test_the_pool_serves_everybody():
    x = np.random.default_rng(0).integers(-9, 9, (300, 300)).astype("f4")
    expected = x @ x.T
    for products in together(lambda i: [
            (Tensor(x) @ Tensor(x).T).numpy() for _ in range(10)]):
        assert all(np.array_equal(p, expected) for p in products)


def test_the_caches_keep_nothing_of_a_neighbour():
    """Views, plans, constants and shapes, asked for at once."""
    def work(i):
        for n in range(1, 60):
            x = Tensor(np.arange(n * 6.0).reshape(n, 2, 3))
            y = (x.permute(2, 0, 1).reshape(-1) * (i + 1) + 0.5 * i).sum()
            total = n * 6 * (n * 6 - 1) / 2
            assert y.item() == total * (i + 1) + 0.5 * i * n * 6
            assert View.dense((n, i + 1)).size == n * (i + 1)
        return True

    assert all(together(work))


def test_a_device_is_made_once(monkeypatch):
    monkeypatch.delitem(DEVICES, "emulated", raising=False)
    made = together(lambda i: named("emulated"))
    assert len({id(device) for device in made}) == 1


def test_recording_is_each_threads_own():
    def work(i):
        x = Tensor([1.0]).requires_grad_()
        for _ in range(50):
            if i % 2:
                with no_grad():
                    assert (x * 2).is_leaf
            else:
                assert not (x * 2).is_leaf
        return True

    assert all(together(work))


def test_models_side_by_side_learn_as_alone():
    x, t = [Tensor(np.random.default_rng(n).random((64, 4), np.float32))
            for n in (0, 1)]

    def train(i):
        net = Linear(4, 4)
        net.weight.detach().assign(0.1 * (i + 1))
        optimizer = Adam(net.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            (net(x) - t).square().mean().backward()
            optimizer.step()
        return net.weight.tolist()

    np.testing.assert_allclose(
        together(train), [train(i) for i in range(MANY)], 1e-5)


def test_batches_of_one_dataset_in_many_loops():
    data = Arrays(np.arange(500), np.arange(500) % 7)
    alone = [t.tolist() for _, t in DataLoader(data, 8, shuffle=True)]
    found = together(lambda i: [t.tolist() for _, t in DataLoader(
        data, 8, shuffle=True, workers=2)])
    assert found == [alone] * MANY


FORK = """
import os, sys, threading
from companion import jit, manual_seed, rand
from companion.device import DEVICES, named
from companion.native import load

sys.setswitchinterval(1e-6)
stop = threading.Event()
twice = jit(lambda x: x + x)


def busy():
    while not stop.is_set():
        rand(4)
        load("int one(void) { return 1; }")


def make():
    while not stop.is_set():
        DEVICES.pop("emulated", None), named("emulated")


def replay():
    while not stop.is_set():
        twice(rand(4))


threads = [threading.Thread(target=run) for run in (busy, busy, make, replay)]
[thread.start() for thread in threads]
for _ in range(30):
    child = os.fork()
    if not child:
        rand(4), load("int one(void) { return 1; }")
        DEVICES.pop("emulated", None), named("emulated"), twice(rand(4))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
[thread.join() for thread in threads]
print("thirty children")
"""


@pytest.mark.parametrize("shape", [
    (20_001, 3), (5000, 7, 2), (768, 128), (2, 9001, 2), (129, 65, 40)])
def test_blocks_of_rows_leave_no_row_out(shape):
    """Sums and maxima, by as many threads as there may be."""
    whole = np.random.default_rng(7).integers(-9, 9, shape)
    before = native.POOL.threads
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            for dtype in (np.float32, np.float64):
                x = Tensor(whole.astype(dtype))
                for axis in range(len(shape)):
                    assert (x.sum(axis).numpy() == whole.sum(axis)).all()
                    assert (x.max(axis).numpy() == whole.max(axis)).all()
    finally:
        native.set_threads(before)


def test_a_fork_finds_no_lock_taken(tmp_path):
    # An empty cache: the first child comes while all is made.
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK],
                          env=os.environ | {"COMPANION_CACHE": str(tmp_path)},
                          capture_output=True, text=True, timeout=300)
    assert done.stdout == "thirty children\n", done.stderr


def library():
    """The modules of the library that users import."""
    folder = Path(companion.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        if not {"literate", "__main__", "__init__"} & {*parts}:
            yield import_module(".".join(parts))


LOCKS = type(threading.Lock()), type(threading.RLock())


def test_a_child_finds_every_lock_open():
    """Though another thread holds it in the moment of the fork."""
    locks = {f"{module.__name__}.{name}": lock for module in library()
             for name, lock in vars(module).items()
             if isinstance(lock, LOCKS)}
    assert len(locks) > 4
    for name, lock in locks.items():
        held, done = threading.Event(), threading.Event()

        def hold(lock=lock, held=held, done=done):
            with lock:
                held.set()
                done.wait(0.1)  # a fork that does not wait comes earlier

        threading.Thread(target=hold).start()
        held.wait()
        child = os.fork()
        if not child:
            os._exit(not lock.acquire(timeout=1))
        done.set()
        assert os.waitpid(child, 0)[1] == 0, name


def test_no_property_hides_a_lock():
    """functools.cached_property has one in Python 3.11, for all objects."""
    hidden = [f"{kind.__name__}.{name}" for module in library()
              for kind in vars(module).values() if isinstance(kind, type)
              for name, value in vars(kind).items()
              if isinstance(value, functools.cached_property)]
    assert not hidden


def test_what_is_made_once_is_one_object():
    """Though two threads made it."""
    class Slow:
        @once
        def made(self):
            """What a reader is told."""
            barrier.wait()
            return object()

    barrier, slow = threading.Barrier(MANY), Slow()
    assert len(set(together(lambda i: slow.made))) == 1
    assert Slow.made.__doc__ == "What a reader is told."
