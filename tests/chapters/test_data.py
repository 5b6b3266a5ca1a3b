# Tangled from data: edit there, `make tangle`. sha256:f5da3174d162
from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import multiprocessing
import os
import pickle
import struct
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from concurrent.futures import (
    BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor)
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.error import HTTPError

import numpy as np

from companion.data import (
    CHECKSUMS, DRAWN, MIRRORS, RECORD, Arrays, Chance, Compose, DataError,
    DataLoader, Normalize, RandomFlip, RandomShift, Unreachable, cifar10,
    collate, drawn_digits, mnist, names, obtain, read_idx, shakespeare)
from companion.device import CPU, try_copy_rows
from companion.dtype import float32, int32, int64, uint8
from companion.layers import Linear, Sequential
from companion.literate import message
from companion.losses import cross_entropy
from companion.native import POOL
from companion.ops import GATHER
from companion.optim import SGD
from companion.tensor import Tensor, from_numpy
from companion.tensor.creation import zeros
from companion.tensor.random import manual_seed
from companion.training import Batches


def seconds(call, times=15):
    """The best of several runs, in seconds."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_a_loader_is_batches_and_more():
    x, t = map(from_numpy, drawn_digits(50))
    old = Batches(x, t, size=8, seed=3)
    new = DataLoader(Arrays(x, t), 8, shuffle=True, seed=3, drop_last=True)
    for _ in range(20):
        for a, b in zip(next(old), next(new)):
            assert np.array_equal(a.numpy(), b.numpy())
        assert old.index == new.index and old.epoch == new.epoch


class Costly(Arrays):
    """Examples in memory that are expensive to get, all the same."""

    def __init__(self, *columns, cost, amount):
        super().__init__(*columns, transform=Normalize())
        self.cost, self.amount, self.log = cost, amount, []

    def __getitem__(self, rows):
        start = time.perf_counter()
        self.cost(self.amount)
        batch = super().__getitem__(rows)
        self.log.append((start, time.perf_counter()))
        return batch


def wait(tenths):
    """Do nothing for some tenths of a millisecond."""
    time.sleep(tenths * 1e-4)


def make_step(width=256):
    """One training step of a small classifier, as a function."""
    manual_seed(0)
    net = Sequential(Linear(784, width), Tensor.relu, Linear(width, 10))
    optimizer = SGD(net.parameters(), lr=0.1)

    def step(x, t):
        optimizer.zero_grad()
        cross_entropy(net(x.flatten(1)), t).backward()
        optimizer.step()
    return step


def run_epoch(loader, step):
    """Train for an epoch; when each step began and ended."""
    log = []
    for x, t in loader:
        start = time.perf_counter()
        step(x, t)
        log.append((start, time.perf_counter()))
    return log


def accelerated(x, t):
    """A step on another device, as the processor sees it: a wait."""
    time.sleep(6e-3)


BLOCK = np.ones(20_000, np.float32)


def arithmetic(times):
    """Let NumPy's loops run over an array of 80 kB."""
    for _ in range(times):
        np.exp(BLOCK)


def python(thousands):
    """Let Python itself work."""
    sum(range(thousands * 1000))


forked = functools.partial(
    ProcessPoolExecutor, mp_context=multiprocessing.get_context("fork"))


def batches(**options):
    """All batches of two epochs, as arrays."""
    data = Arrays(*drawn_digits(50), transform=Normalize())
    loader = DataLoader(data, 8, shuffle=True, seed=4, augment=Compose(
        RandomShift(2), RandomFlip()), **options)
    return [[np.array(c) for c in batch] for _ in range(2)
            for batch in loader]


def test_workers_do_not_change_the_batches():
    expected = batches()
    assert len(expected) == 14 and len(expected[6][1]) == 2
    for options in ({"workers": 1}, {"workers": 3, "prefetch": 1},
                    {"workers": 2, "pool": forked}):
        for a, b in zip(batches(**options), expected, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b))


def test_every_example_once_in_an_epoch():
    for workers, drop in ((0, False), (2, False), (2, True)):
        loader = DataLoader(range(23), 5, shuffle=True, workers=workers,
                            drop_last=drop)
        orders = [[i for batch, in loader for i in batch.tolist()]
                  for _ in range(3)]
        for order in orders:
            assert len(order) == len(set(order)) == (20 if drop else 23)
        assert orders[0] != orders[1] != orders[2] and len(loader) == 5 - drop
    plain = [batch.tolist() for batch, in DataLoader(range(5), 2)]
    assert plain == [[0, 1], [2, 3], [4]]


def test_rows_by_the_pool_are_numpys():
    draw = np.random.default_rng(2)
    for n, shape in ((1, (70_000,)), (2, (9, 5_000)), (400, (100,)),
                     (40_000, ()), (7, (3,)), (0, (3,)), (5, (0,))):
        table = draw.random((11, *shape), np.float32)
        at = draw.integers(-11, 11, n)
        for threads in (1, 3):
            with mock.patch.object(POOL, "threads", threads):
                assert np.array_equal(Tensor(table)[at], table[at])


def test_rows_that_the_pool_cannot_copy_are_numpys_too():
    draw = np.random.default_rng(3)
    table = draw.random((300, 300), np.float32)
    at = draw.integers(-300, 300, 1200)
    flat, places = Tensor(table), Tensor(at)
    for x, rows, expected in (
            (flat.T, places, table.T[at]),
            (flat, places[::2], table[at[::2]]),
            (flat, places.to(int32), table[at])):
        assert np.array_equal(x[rows], expected)
    with mock.patch.dict(vars(sys.modules[try_copy_rows.__module__]),
                         row_copier=lambda: None):
        assert np.array_equal(flat[places], table[at])


def test_each_epoch_augments_anew():
    images, labels = drawn_digits(9)
    loader = DataLoader(
        Arrays(images, labels), 9,
        augment=lambda chance, x, t: (from_numpy(chance(2)), t))
    first, second = [[x.tolist() for x, _ in loader] for _ in range(2)]
    assert first != second
    x = from_numpy(images)
    for p, expected in ((0.0, images), (1.0, images[:, :, ::-1])):
        turned, = RandomFlip(p)(Chance(0, 0, np.arange(9)), x)
        assert np.array_equal(turned, expected)


def test_a_loop_left_early_leaves_no_worker():
    before = threading.active_count()
    loader = DataLoader(range(1000), 1, workers=3)
    for _batch in loader:
        break
    assert threading.active_count() == before
    assert (loader.epoch, loader.index) == (0, 1)
    assert len(list(loader)) == 1000 and loader.epoch == 1


def test_a_dropped_loader_leaves_no_worker():
    before = threading.active_count()
    for pool in ThreadPoolExecutor, forked:
        loader = DataLoader(range(9), 2, workers=2, pool=pool)
        next(loader)
        del loader
    assert threading.active_count() == before
    assert not multiprocessing.active_children()


def test_loops_over_one_loader_do_not_disturb_each_other():
    loader = DataLoader(range(4), 2, workers=1)
    seen = [(a.tolist(), b.tolist()) for a, in loader for b, in loader]
    assert seen == [([0, 1], [0, 1]), ([0, 1], [2, 3]),
                    ([2, 3], [0, 1]), ([2, 3], [2, 3])]


def test_a_loop_keeps_its_epoch():
    make = functools.partial(DataLoader, range(4), 2, augment=(
        lambda chance, x: from_numpy(chance())))
    expected, loader = [x.tolist() for x, in make()], make()
    loop = iter(loader)
    found = [next(loop)[0].tolist()]
    next(iter(loader))
    assert found + [x.tolist() for x, in loop] == expected


def test_a_copied_loader_makes_its_own_batches():
    loader = DataLoader(range(9), 2)
    next(loader)
    twin = pickle.loads(pickle.dumps(loader))
    assert next(twin)[0].tolist() == next(loader)[0].tolist() == [2, 3]


def test_next_goes_on_where_a_loop_was_left():
    loader = DataLoader(range(9), 4, drop_last=True)
    for _batch in loader:
        break
    assert next(loader)[0].tolist() == [4, 5, 6, 7]
    loader.go_to(0, 6)
    assert next(loader)[0].tolist() == [0, 1, 2, 3] and loader.epoch == 1


class Broken:
    """Fails at one example, and takes the process along at another."""

    def __init__(self, bad=None, deadly=None):
        self.bad, self.deadly = bad, deadly

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == self.bad:
            raise LookupError(f"no example {i}")
        if i == self.deadly:
            os._exit(1)
        return i


def failure(loader):
    try:
        list(loader)
    except Exception as error:
        return error
    raise AssertionError("expected an error")


def test_an_error_in_a_worker_arrives():
    for options in ({}, {"workers": 2}, {"workers": 2, "pool": forked}):
        loader = DataLoader(Broken(bad=5), 2, **options)
        error = failure(loader)
        text = "".join(traceback.format_exception(error))
        assert isinstance(error, LookupError) and "no example 5" in text
        assert "in __getitem__" in text
        assert "while loading example 5" in text
        assert (loader.epoch, loader.index) == (0, 4)


def test_an_error_that_cannot_travel_sends_its_words():
    class Distant(Broken):
        def __getitem__(self, i):
            if i == 5:
                raise HTTPError("http://x/5.png", 404, "Not Found", {}, None)
            return i

    for pool, kind in ((ThreadPoolExecutor, HTTPError),
                       (forked, RuntimeError)):
        error = failure(DataLoader(Distant(), 2, workers=1, pool=pool))
        text = "".join(traceback.format_exception(error))
        assert type(error) is kind and "404: Not Found" in text
        assert "while loading example 5" in text and "__getitem__" in text


def test_a_dataset_that_runs_dry_ends_no_epoch():
    """StopIteration is an error like others, and not the end of a loop."""
    class Dry(Broken):
        def __getitem__(self, i):
            return i if i < 5 else next(iter(()))

    for workers in 0, 2:
        error = failure(DataLoader(Dry(), 2, workers=workers))
        assert isinstance(error.__cause__, StopIteration)
        assert "while loading example 5" in error.__cause__.__notes__[0]


class Counted(Broken):
    """Takes its time, and counts how often it was asked."""

    def __init__(self):
        self.asked = 0

    def __len__(self):
        return 1000

    def __getitem__(self, i):
        self.asked += 1
        time.sleep(2e-3)
        return i


def test_workers_run_ahead_so_far_and_no_farther():
    data = Counted()
    loader = DataLoader(data, 1, workers=1, prefetch=3)
    next(loader)
    time.sleep(0.1)
    assert data.asked == 4
    data = Counted()
    for _batch in DataLoader(data, 1, workers=1, prefetch=200):
        break
    assert data.asked < 20


def test_after_an_error_the_same_batch_comes_again():
    loader = DataLoader(Broken(bad=5), 2, workers=1)
    failure(loader)
    loader.dataset.bad = None
    assert next(loader)[0].tolist() == [4, 5]


def test_a_process_that_dies_is_noticed():
    loader = DataLoader(Broken(deadly=6), 1, workers=1, pool=forked)
    error = failure(loader)
    assert isinstance(error, BrokenExecutor)
    assert "workers=0" in error.__notes__[0]
    place, loader.dataset.deadly = loader.index, None
    assert next(loader)[0].tolist() == [place]


def test_bad_input_is_one_clear_error():
    for call, words in (
        (lambda: DataLoader([], 2), "0 examples make no batch of 2"),
        (lambda: DataLoader(range(3), 0), "no batch of 0"),
        (lambda: DataLoader(range(3), 4, drop_last=True), "drop_last=True"),
        (lambda: DataLoader(range(3)).go_to(0, 4), "got 0 and 4"),
        (lambda: Arrays(np.ones(3), np.ones(4)), "got lengths [3, 4]"),
        (lambda: collate([np.ones(3), np.ones(2)]), "[(2,), (3,)]"),
        (lambda: collate(["cat", "dog"]), "of type str do not stack"),
        (lambda: collate([(1, 2), 3]), "many columns, got [1, 2]"),
        (lambda: DataLoader(range(3), seed=-1), "got seed=-1"),
        (lambda: DataLoader(range(3), workers=-1), "workers=-1"),
    ):
        assert words in message(call), words


def test_where_a_place_does_not_exist_nothing_is_copied():
    table, out = Tensor(np.ones((5, 4_000))), zeros(9, 4_000)
    for wrong in (5, -6, 1 << 62):
        at = Tensor([0] * 8 + [wrong])
        call = functools.partial(CPU.kernels[GATHER], out.buffer,
                                 table.buffer, at.buffer, 0)
        words = message(call, IndexError)
        assert f"the index {wrong} is out of range" in words
        assert not out.numpy().any()


def test_a_transform_returns_its_batch():
    for made, forget in (({"transform": lambda x: x * 2}, {}),
                         ({}, {"augment": lambda chance, x: x * 2})):
        x, = next(DataLoader(Arrays([1, 2], **made), 2, **forget))
        assert x.tolist() == [2, 4]
    for made in ({"transform": lambda x: None},
                 {"transform": lambda x: [x]}):
        assert "expected it to return" in message(
            lambda made=made: Arrays([1, 2], **made)[:], TypeError)
    loader = DataLoader(Arrays([1, 2]), augment=Compose(lambda *_: None))
    assert "got NoneType" in message(lambda: next(loader), TypeError)


def test_a_repr_is_one_line():
    shown = repr(DataLoader([0] * 1000, 8))
    assert shown.startswith("DataLoader(batch_size=8") and len(shown) < 250
    assert repr(Arrays(np.ones((5, 3)), [1, 2, 3, 4, 5], source="me")
                ) == "Arrays(5 of float64 (3,), int64 (); me)"


def test_augmentations_move_and_turn():
    x = np.zeros((200, 2, 5, 7), np.uint8)
    x[:, :, 2, 3] = np.arange(200)[:, None]
    chance = Chance(0, 0, np.arange(200))
    moved, kept = RandomShift(2)(chance, from_numpy(x), Tensor([1]))
    assert moved.shape == x.shape and kept.tolist() == [1]
    _, _, down, right = np.nonzero(moved.numpy())
    assert set(down.tolist()) == {0, 1, 2, 3, 4}
    assert set(right.tolist()) == {1, 2, 3, 4, 5}
    assert (moved.numpy().sum((2, 3)) == np.arange(200)[:, None]).all()
    turned, = RandomFlip()(chance, from_numpy(x + np.arange(7, dtype="u1")))
    first = turned.numpy()[:, 0, 0, 0]
    assert set(first.tolist()) == {0, 6} and 60 < (first == 6).sum() < 140


def test_normalized_images_have_the_mean_and_spread_asked_for():
    x = from_numpy(np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4))
    y, t = Normalize((0.1, 0.2), (0.5, 0.25))(x, Tensor([1]))
    expected = (x.numpy() / 255 - np.array([0.1, 0.2])[:, None, None]
                ) / np.array([0.5, 0.25])[:, None, None]
    assert np.allclose(y.numpy(), expected, atol=1e-6)
    assert y.dtype is float32 and t.tolist() == [1]


SERVED, ASKED = {}, []
SPOILED = {"login": b"<html>Please accept our terms</html>",
           "other": gzip.compress(b"something else", mtime=0)}


class Moody(BaseHTTPRequestHandler):
    """Serves /MOOD/FILE, from the byte that the reader asks for."""

    def do_GET(self):
        _, mood, file = self.path.split("/")
        data = SPOILED.get(mood, SERVED.get(file))
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        ASKED.append((mood, begin))
        if mood == "down" or begin >= len(data):
            return self.send_error(503 if mood == "down" else 416)
        if mood == "babble":
            return self.wfile.write(b"hello")
        time.sleep(0.1 * (mood == "slow"))
        begin = 0 if mood in ("login", "anew") else begin
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        middle = (begin + len(data)) // 2
        return self.wfile.write(
            data[begin:middle if mood == "short" else len(data)])

    def log_message(self, *words):
        """Keep quiet."""


@contextlib.contextmanager
def serving():
    """The address of a moody server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    ASKED.clear()
    try:
        with mock.patch.dict(os.environ, no_proxy="*"):
            yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


four = (struct.pack(">HBB3I", 0, 8, 3, 4, 28, 28)
        + drawn_digits(4)[0].tobytes())
SERVED["four.gz"] = gzip.compress(four, mtime=0)
SPOILED["stored"] = gzip.compress(four, 0, mtime=0)

CHECKSUMS["tiny/four.gz"] = hashlib.sha256(
    gzip.decompress(SERVED["four.gz"])).hexdigest()


@contextlib.contextmanager
def reader(*moods):
    """A reader with an empty cache and mirrors of these moods."""
    with (serving() as home, tempfile.TemporaryDirectory() as folder,
          mock.patch.dict(CHECKSUMS, CHECKSUMS), mock.patch.dict(MIRRORS),
          mock.patch.dict(os.environ, COMPANION_CACHE=folder),
          contextlib.redirect_stderr(io.StringIO())):
        CHECKSUMS["tiny/four.gz"] = hashlib.sha256(
            gzip.decompress(SERVED["four.gz"])).hexdigest()
        for name in [*MIRRORS, "tiny"]:
            MIRRORS[name] = tuple(f"{home}{mood}/" for mood in moods)
        os.environ.pop("COMPANION_DATA", None)
        yield Path(folder, "data", "tiny", "four.gz")


def test_no_file_and_no_split_are_refused():
    for call, words in (
        (lambda: read_idx(b"<html>no</html>"), "begins with b'<htm'"),
        (lambda: read_idx(b"\0\0\x08"), "no IDX file begins"),
        (lambda: mnist("validation"), "'train' or 'test'"),
        (lambda: cifar10("all"), "'train' or 'test'"),
    ):
        assert words in message(call), words


def test_what_is_wrong_is_never_kept():
    for mood, kind, words in (
            ("down", Unreachable, "503"),
            ("short", Unreachable, "it ended after"),
            ("babble", Unreachable, "hello"),
            ("login", DataError, "begins with b'<html>Please acc'"),
            ("other", DataError, "14 bytes, first b'something else'")):
        with reader(mood) as path:
            text = message(lambda: obtain("tiny/four.gz"), kind)
            assert words in text and "COMPANION_DATA" in text, text
            assert not path.exists()
            assert len(ASKED) == 2 and text.count("http://") == 1


def test_a_good_mirror_is_found_behind_bad_ones():
    with reader("down", "other", "login", "good") as path:
        assert read_idx(obtain("tiny/four.gz")).shape == (4, 28, 28)
        assert [p.name for p in path.parent.iterdir()] == ["four.gz"]


def test_halves_that_do_not_fit_are_not_joined():
    """A mirror that always breaks off spoils nothing for the others."""
    with reader("short", "stored"):
        assert read_idx(obtain("tiny/four.gz")).shape == (4, 28, 28)
    with reader("anew") as path:
        path.parent.mkdir(parents=True)
        path.with_name("four.gz.part").write_bytes(b"rubbish")
        obtain("tiny/four.gz")
        assert ASKED == [("anew", 7)], "it did not go on, it began anew"


def test_of_two_at_once_one_downloads():
    with reader("slow") as path, ThreadPoolExecutor(2) as two:
        found = list(two.map(obtain, ["tiny/four.gz"] * 2))
        assert found[0] == found[1] and ASKED == [("slow", 0)]
        assert path.read_bytes() == SERVED["four.gz"]


def test_a_download_goes_on_where_it_ended():
    with reader("short", "good") as path:
        obtain("tiny/four.gz")
        half = len(SERVED["four.gz"]) // 2
        assert [("short", 0), ("good", half)] == ASKED
    for begun, requests in (
            (SERVED["four.gz"][:100], [("good", 100)]),
            (SERVED["four.gz"], [("good", len(SERVED["four.gz"]))]),
            (b"rubbish", [("good", 7), ("good", 0)])):
        with reader("good") as path:
            path.parent.mkdir(parents=True)
            path.with_name("four.gz.part").write_bytes(begun)
            obtain("tiny/four.gz")
            assert requests == ASKED
            assert path.read_bytes() == SERVED["four.gz"]


def test_a_damaged_file_is_fetched_again_unless_it_is_yours():
    whole = SERVED["four.gz"]
    for damaged in (b"", whole[:-9], b"x" + whole, gzip.compress(b"other"),
                    whole[:50] + bytes(50) + whole[100:]):
        with reader("good") as path:
            path.parent.mkdir(parents=True)
            path.write_bytes(damaged)
            assert len(obtain("tiny/four.gz")) == 16 + 4 * 784
            assert path.read_bytes() == whole
        with reader("good") as path, tempfile.TemporaryDirectory() as mine:
            os.environ["COMPANION_DATA"] = mine
            Path(mine, "tiny").mkdir()
            Path(mine, "tiny", "four.gz").write_bytes(damaged)
            text = message(lambda: obtain("tiny/four.gz"), DataError)
            assert str(Path(mine, "tiny", "four.gz")) in text
            assert Path(mine, "tiny", "four.gz").read_bytes() == damaged
            assert not ASKED and not path.exists()


def test_a_cache_that_cannot_be_written_is_an_error():
    with reader("good") as path:
        path.with_name("four.gz.part").mkdir(parents=True)
        text = message(lambda: obtain("tiny/four.gz"), DataError)
        assert "cannot write" in text and "COMPANION_CACHE" in text
        assert not ASKED


def test_a_folder_that_is_none_is_an_error():
    with reader("good"), tempfile.NamedTemporaryFile() as file:
        os.environ["COMPANION_CACHE"] = file.name
        assert "folder of yours in COMPANION_CACHE" in message(
            mnist, DataError)
        os.environ["COMPANION_DATA"] = "/no/such/folder"
        assert "/no/such/folder, which is no" in message(mnist, DataError)


def test_a_loader_reads_what_a_mirror_serves():
    names = {"train-images-idx3-ubyte.gz": gzip.decompress(SERVED["four.gz"]),
             "train-labels-idx1-ubyte.gz": struct.pack(">HBBI4B", 0, 8, 1, 4,
                                                       3, 1, 4, 1)}
    with reader("good"), mock.patch.dict(SERVED):
        for name, content in names.items():
            SERVED[name] = gzip.compress(content)
            CHECKSUMS[f"mnist/{name}"] = hashlib.sha256(content).hexdigest()
        data = mnist("train")
        assert data.source == "MNIST" and data[:][1].tolist() == [3, 1, 4, 1]
        assert data[:][0].dtype is uint8 and data[:][1].dtype is int64


def test_photographs_are_checked():
    with reader("down"), tempfile.TemporaryDirectory() as mine:
        os.environ["COMPANION_DATA"] = mine
        folder = Path(mine, "cifar-10-batches-bin")
        folder.mkdir()
        file = folder / "test_batch.bin"
        records = np.zeros((10_000, RECORD), np.uint8)
        records[:, 0] = np.arange(10_000) % 10
        assert "no test_batch.bin" in message(
            lambda: cifar10("test"), DataError)
        for change, words in (
                (lambda r: r[:-1], "got 30,726,927 bytes"),
                (lambda r: r | 16, "each label from 0 to 9, got [0, 0"),
                (lambda r: r * 0, "got [10000, 0, 0")):
            file.write_bytes(change(records).tobytes())
            text = message(lambda: cifar10("test"), DataError)
            assert words in text and "remove" in text
        file.write_bytes(records.tobytes())
        x, t = cifar10("test")[:]
        assert x.shape == (10_000, 3, 32, 32) and t[12].item() == 2


@contextlib.contextmanager
def folder_with(**files):
    """A reader whose mirrors are down and whose folder has these files."""
    with reader("down"), tempfile.TemporaryDirectory() as mine:
        os.environ["COMPANION_DATA"] = mine
        for name, content in files.items():
            path = Path(mine, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(mine)


def idx(values, *shape):
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape
                       ) + bytes(values)


def test_digits_are_read_in_every_usual_form():
    parts = {"images-idx3": idx(range(8), 2, 2, 2), "labels-idx1": idx(
        (3, 1), 2)}
    for place in "mnist/", "MNIST/raw/", "MNIST/", "":
        for end, point, write in ((".gz", "-idx", gzip.compress),
                                  ("", "-idx", bytes), ("", ".idx", bytes)):
            files = {f"{place}t10k-{part.replace('-idx', point)}-ubyte{end}":
                     write(content) for part, content in parts.items()}
            with folder_with(**files):
                CHECKSUMS.update({
                    f"mnist/t10k-{part}-ubyte.gz": hashlib.sha256(
                        content).hexdigest()
                    for part, content in parts.items()})
                data = mnist("test")
                assert data.source == "MNIST" and not ASKED
                assert data[:][1].tolist() == [3, 1]
                assert data[:][0].shape == (2, 2, 2)


def batch_of_python(records, protocol=4):
    """Records as CIFAR-10's authors pickle them."""
    return pickle.dumps({b"labels": records[:, 0].tolist(),
                         b"data": records[:, 1:], b"batch_label": b"test"},
                        protocol)


def ten_thousand():
    records = np.zeros((10_000, RECORD), np.uint8)
    records[:, 0], records[:, 5] = np.arange(10_000) % 10, 7
    return records


def test_photographs_are_read_in_their_python_form():
    batch = batch_of_python(ten_thousand())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        entry = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        entry.size = len(batch)
        tar.addfile(entry, io.BytesIO(batch))
    tar = packed.getvalue()
    for name, content in (("cifar-10-batches-py/test_batch", batch),
                          ("cifar-10/cifar-10-batches-py/test_batch", batch),
                          ("cifar-10-python.tar.gz", tar)):
        with folder_with(**{name: content}):
            CHECKSUMS["cifar-10/cifar-10-python.tar.gz"] = hashlib.md5(
                tar).hexdigest()
            data = cifar10("test")
            assert data.source == "CIFAR-10" and not ASKED
            x, t = data[12]
            assert t == 2 and x.flatten()[4] == 7 and x.shape == (3, 32, 32)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_that_is_a_program_is_not_run():
    name = "cifar-10-batches-py/test_batch"
    for content, words in ((pickle.dumps(Harmful()), "asks for posix.mkdir"),
                           (pickle.dumps([Harmful()]), "posix.mkdir"),
                           (pickle.dumps(1), "TypeError"),
                           (pickle.dumps({b"data": 1}), "KeyError"),
                           (b"junk", "no pickle of labels and images")):
        with folder_with(**{name: content}) as mine:
            text = message(lambda: cifar10("test"), DataError)
            assert words in text and str(mine / name) in text
            assert not Path("harm").exists()


def test_what_is_not_read_is_named():
    with folder_with(**{"mnist/mnist.npz": b"", "mnist/digits.csv": b""}):
        with contextlib.redirect_stderr(io.StringIO()) as told:
            assert mnist("test").source == "drawn"
        line, = told.getvalue().splitlines()
        assert "holds digits.csv, mnist.npz" in line
    with folder_with(**{"photographs/cat.png": b""}):
        with contextlib.redirect_stderr(io.StringIO()) as told:
            assert cifar10("test").source == "drawn"
        assert "by COMPANION_DATA, holds photographs" in told.getvalue()


def test_photographs_come_out_of_the_tar():
    records = np.zeros((10_000, RECORD), np.uint8)
    records[:, 0] = np.arange(10_000) % 10
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        entry = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        entry.size = records.size
        tar.addfile(entry, io.BytesIO(records.tobytes()))
    with reader("short", "good"), mock.patch.dict(SERVED):
        SERVED["cifar-10-binary.tar.gz"] = packed.getvalue()
        CHECKSUMS["cifar-10/cifar-10-binary.tar.gz"] = hashlib.md5(
            packed.getvalue()).hexdigest()
        assert cifar10("test").source == "CIFAR-10"
        assert len(ASKED) == 2


def test_without_files_and_network_there_are_drawn_digits():
    with reader("down"):
        for load in mnist, cifar10:
            data = load("test")
            assert data.source == "drawn" and len(data) == 1000
            assert sorted(set(data.columns[1].tolist())) == list(range(10))
        assert names()[0] == "ada" and "BERNARDO" in shakespeare()
        assert DRAWN["test"][1] != DRAWN["train"][1]
