# Tangled from data, pictures, vocabulary: edit there, `make tangle`. sha256:4ddaaee74e68  # noqa: E501
from __future__ import annotations

import contextlib
import copy
import fcntl
import functools
import gzip
import hashlib
import io
import math
import multiprocessing
import os
import pickle
import struct
import tarfile
import threading
import traceback
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from tqdm import tqdm

from companion.device import LOW, threefry
from companion.dtype import float32, uint8
from companion.native import cache, tell
from companion.tensor import Tensor, from_numpy
from companion.tensor.creation import arange
from companion.tensor.operands import where
from companion.tensor.random import GENERATOR, Generator, rand, randperm
from companion.training import Batches

STROKES = (
    "30 51 62 66 57 38 17 06 02 11 30", "12 30 38",
    "02 11 30 51 62 63 08 68", "01 30 51 62 53 34 55 66 57 38 07",
    "48 40 05 65", "60 10 03 33 54 66 57 38 07",
    "50 21 04 06 18 48 66 65 44 14 05", "00 60 28",
    "34 53 51 30 11 13 34 65 67 38 07 05 34", "62 50 20 02 14 44 62 58")


def strokes(digit: int, u: np.ndarray) -> np.ndarray:
    """Corners (points, n, 2) of a digit, n times with a shaky hand.

    `u` (n, at least 32) are uniform numbers: six for slant, size and
    place, then two for each corner.
    """
    corners = np.array([[int(at[0]) - 3, int(at[1]) - 4]
                        for at in STROKES[digit].split()], np.float32)
    shake = u[:, 6:6 + corners.size].reshape(-1, *corners.shape) - 0.5
    x, y = np.moveaxis(corners + shake, -1, 0)
    slant, turn, wide, high, right, down = u[:, :6, None].swapaxes(0, 1)
    left = (x * (1.7 + wide) - y * (slant - 0.4)) + (right * 5 + 11)
    top = (y * (1.7 + high * 0.7) + x * (turn - 0.5)) + (down * 5 + 11)
    return np.stack([left, top], -1).swapaxes(0, 1)


def ink(corners: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Pictures (n, 28, 28) of the lines from corner to corner."""
    # Nothing but +, -, *, / and roots, whose last bit a standard prescribes:
    # every machine draws the same pictures.
    grid = np.arange(28, dtype=np.float32)
    nearest = np.full((corners.shape[1], 28, 28), np.inf, np.float32)
    for begin, end in zip(corners, corners[1:]):
        x, y = (grid - begin[..., None]).swapaxes(0, 1)
        x, y = x[:, None, :], y[:, :, None]
        u, v = (end - begin).T[..., None, None]
        # The millionth is for a line without a length.
        at = ((x * u + y * v) / (u * u + v * v + 1e-6)).clip(0, 1)
        away = (x - at * u) ** 2 + (y - at * v) ** 2
        np.minimum(nearest, away, out=nearest)
    return (width[:, None, None] - np.sqrt(nearest)).clip(0, 1)


def drawn_digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n pictures uint8 (n, 28, 28) of digits, and the digits, int64."""
    u = rand(n, 33, generator=Generator(seed)).numpy()
    images, labels = np.zeros((n, 28, 28), np.float32), np.arange(n) % 10
    for digit in range(10):
        rows = labels == digit
        images[rows] = ink(strokes(digit, u[rows]), u[rows, -1] + 1.2)
    noise = rand(n, 28, 28, generator=Generator(seed + 1)).numpy()
    return (images * 215 + noise * 40).astype(np.uint8), labels


class Dataset(Protocol):
    """Anything with a length whose examples have numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Batch = tuple[Tensor, ...]
Transform = Callable[..., Batch]


def collate(items: list[Any]) -> Batch:
    """Examples to a batch: a tuple with each column stacked."""
    rows = [i if isinstance(i, tuple) else (i,) for i in items]
    counts = {len(row) for row in rows}
    if len(counts) > 1:
        raise ValueError(f"collate: expected examples of equally many "
                         f"columns, got {sorted(counts)}")
    return tuple([column(parts) for parts in zip(*rows)])


def column(parts: tuple[Any, ...]) -> Tensor:
    """One tensor of the parts: numbers, arrays or tensors of one shape."""
    try:
        if isinstance(parts[0], (bool, int, float)):
            return Tensor(parts)
        shapes = {np.shape(part) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"their shapes are {sorted(shapes)}")
        return from_numpy(np.stack([np.asarray(part) for part in parts]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"collate: examples of type {type(parts[0]).__name__} do not "
            f"stack ({error}); make them arrays of one shape, or give the "
            f"loader a collate of your own") from None


def items(dataset: Dataset, rows: np.ndarray) -> list[Any]:
    """The examples at `rows`, one by one."""
    found = []
    for i in rows.tolist():
        try:
            found.append(dataset[i])
        except Exception as error:
            error.add_note(f"DataLoader: while loading example {i}")
            raise
    return found


@functools.singledispatch
def gather(dataset: Dataset, rows: np.ndarray) -> Batch:
    """A batch of the examples at `rows`; datasets register better ways."""
    return collate(items(dataset, rows))


class Arrays:
    """Columns of equal length in memory; row i of each is example i.

    `data[7]`, `data[:100]` and `data[rows]` give a tuple with the rows of
    each column, through `transform(*columns)`. `source` says in words
    where the data comes from.
    """

    def __init__(self, *columns: np.ndarray | Tensor,
                 transform: Transform | None = None, source: str = ""):
        self.columns = tuple([
            c if isinstance(c, Tensor) else from_numpy(np.asarray(c))
            for c in columns])
        self.transform, self.source = transform, source
        lengths = {len(c) for c in self.columns}
        if len(lengths) != 1:
            raise ValueError(f"Arrays: expected columns of one length, "
                             f"got lengths {[len(c) for c in columns]}")

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: Any) -> Batch:
        rows = tuple([c[index] for c in self.columns])
        if self.transform is None:
            return rows
        return as_batch(self.transform(*rows))

    def __repr__(self) -> str:
        kinds = [f"{c.dtype} {c.shape[1:]}" for c in self.columns]
        return f"Arrays({len(self)} of {', '.join(kinds)}; {self.source})"


def as_batch(made: Any) -> Batch:
    """What a transform gave back, as a tuple; one tensor is a column."""
    if not isinstance(made, (tuple, Tensor)):
        raise TypeError(f"transform: expected it to return a tensor or a "
                        f"tuple of tensors, got {type(made).__name__}")
    return made if isinstance(made, tuple) else (made,)


@gather.register
def gather_rows(dataset: Arrays, rows: np.ndarray) -> Batch:
    return dataset[rows]


@dataclass(eq=False)
class DataLoader(Batches):
    """Batches of a dataset, in an order that (seed, epoch) decide.

    A `for` loop runs to the end of an epoch; `next(loader)` goes on
    without end. The next batch begins at (epoch, index); see `go_to`.
    """

    dataset: Dataset = field(repr=False)
    batch_size: int = 1
    shuffle: bool = False
    seed: int = 0
    drop_last: bool = False
    collate: Callable[[list[Any]], Any] | None = None
    augment: Transform | None = None
    workers: int = 0
    pool: Callable[..., Executor] = ThreadPoolExecutor
    prefetch: int = 2

    def __post_init__(self) -> None:
        self.workers = self.workers or self.num_workers
        least = self.batch_size if self.drop_last else 1
        if self.batch_size < 1 or len(self.dataset) < least:
            raise ValueError(
                f"DataLoader: {len(self.dataset)} examples make no batch "
                f"of {self.batch_size} (drop_last={self.drop_last})")
        if min(self.workers, self.prefetch, self.seed) < 0:
            raise ValueError(
                f"DataLoader: expected 0 or more, got seed={self.seed}, "
                f"workers={self.workers}, prefetch={self.prefetch}")
        self.go_to(0, 0)

    def starts(self, index: int) -> range:
        """Where batches begin in an epoch's order, from `index` on."""
        n, size = len(self.dataset), self.batch_size
        return range(index, n - size + 1 if self.drop_last else n, size)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.starts(0))

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.dataset)

    def shuffled(self) -> np.ndarray:
        """The order of the current epoch."""
        if not self.shuffle:
            return np.arange(self.examples)
        # As in Batches; a Generator takes no larger seed.
        key = (self.seed * 1_000_003 + self.epoch) % 2 ** 63
        return randperm(self.examples, Generator(key)).numpy()

    def parts(self) -> list[np.ndarray]:
        """The rows of each batch that is left of the current epoch."""
        order, size = self.shuffled(), self.batch_size
        return [order[i:i + size] for i in self.starts(self.index)]

    def go_to(self, epoch: int, index: int) -> None:
        """Continue with the example that is at `index` in `epoch`."""
        if epoch < 0 or not 0 <= index <= len(self.dataset):
            raise ValueError(
                f"go_to: expected an epoch from 0 and an index of 0 to "
                f"{len(self.dataset)}, got {epoch} and {index}")
        self.epoch, self.index = epoch, index
        self.begun = False
        self.running: Iterator[Any] = iter(())

    def rest(self) -> Iterator[tuple[int, Batch]]:
        """The rest of the epoch: each batch, and the index after it."""
        index, parts = self.index, self.parts()
        for rows, batch in zip(parts, self.fetched(parts)):
            index += len(rows)
            yield index, batch

    def fetched(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        """The batches of `parts`, in order, from the workers."""
        if not self.workers:
            for rows in parts:
                yield self.fetch(rows)
            return
        pool = self.pool(self.workers, initializer=begin,
                         initargs=(self.fetch,))
        try:
            yield from ahead(lambda rows: pool.submit(work, rows), parts,
                             self.workers * self.prefetch)
        except BrokenExecutor as error:
            error.add_note("DataLoader: a worker died; with workers=0 the "
                           "cause comes to light")
            raise
        # Also where a loop is left early: no worker outlives it.
        finally:
            pool.shutdown(cancel_futures=True)

    def fetch(self, rows: np.ndarray) -> Batch:
        """The batch of the examples at `rows`, augmented."""
        batch = (gather(self.dataset, rows) if self.collate is None
                 else self.collate(items(self.dataset, rows)))
        if self.augment is None:
            return batch
        chance = Chance(self.seed, self.epoch, rows)
        return as_batch(self.augment(chance, *batch))

    def __iter__(self) -> Iterator[Batch]:
        # Even where the last loop was left early: to look at one batch
        # does not make an epoch short.
        if self.begun:
            self.go_to(self.epoch + 1, 0)
        self.begun, epoch = True, self.epoch
        for index, batch in copy.copy(self).rest():
            self.epoch, self.index = epoch, index
            yield batch

    def __next__(self) -> Batch:
        for index, batch in self.running:
            # Only now: a batch that cannot be made is tried again.
            self.index = index
            return batch
        if not self.starts(self.index):
            self.go_to(self.epoch + 1, 0)
        # Of a copy: it keeps the epoch while we move on, and does not
        # know us, so what is under way ends when we are dropped.
        self.begun, self.running = True, copy.copy(self).rest()
        return next(self)

    def __getstate__(self) -> dict[str, Any]:
        """All but the batches under way: a copy makes its own."""
        return vars(self) | {"running": iter(())}

    num_workers: int = field(default=0, repr=False)  # PyTorch's `workers`
    pin_memory: bool = field(default=False, repr=False)  # a wish
    persistent_workers: bool = field(default=False, repr=False)  # a wish


@dataclass(frozen=True)
class Normalize:
    """Bytes to float32: (x / 255 - mean) / std; for `Arrays`.

    `mean` and `std` are numbers, or tuples with one for each channel of
    images (…, C, H, W).
    """

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __call__(self, x: Tensor, *rest: Tensor) -> Batch:
        if x.dtype is not uint8:
            raise TypeError(f"Normalize: expected bytes (uint8), which it "
                            f"divides by 255; got {x.dtype}")
        mean, std = [
            Tensor(v, device=x.device).reshape(
                (-1, 1, 1) if isinstance(v, tuple) else ())
            for v in (self.mean, self.std)]
        return x.to(float32) * (1 / (255 * std)) - mean / std, *rest


class Chance:
    """Random numbers that belong to examples, not to their loader.

    `chance(k)` is a float32 array (examples, k), uniform in [0, 1), and
    depends on seed, epoch and example; each call gives other numbers.
    """

    def __init__(self, seed: int, epoch: int, rows: np.ndarray):
        key = seed * 1_000_003 + epoch
        self.key = key & LOW, key >> 32 & LOW
        self.examples = rows[:, None].astype(np.uint32)
        self.next = 1 << 20  # the first numbers of the key are randperm's

    def __call__(self, k: int = 1) -> np.ndarray:
        columns = np.arange(self.next, self.next + k, dtype=np.uint32)
        # Up to 2**20 numbers a call: what it draws then moves no later one,
        # and a longer call does.
        self.next += max(k, 1 << 20)
        words, _ = threefry(self.key, self.examples, columns)
        # 24 bits: with more, float32 would round the last ones up to 1.
        return ((words >> np.uint32(8)) * 2.0 ** -24).astype(np.float32)


@dataclass(frozen=True)
class RandomShift:
    """Move each image (B, …, H, W) by up to `reach`; zeros come in."""

    reach: int

    def __call__(self, chance: Chance, x: Tensor,
                 *rest: Tensor) -> Batch:
        margin = [(0, 0)] * (x.ndim - 2) + [(self.reach, self.reach)] * 2
        moved = x.pad(margin)
        by = (chance(2) * (2 * self.reach + 1)).astype(np.int64)
        for axis, part in ((-2, by[:, :1]), (-1, by[:, 1:])):
            begin = Tensor(part, device=x.device)
            along = arange(x.shape[axis], device=x.device)
            moved = taken(moved, x.ndim + axis, begin + along)
        return moved, *rest


@dataclass(frozen=True)
class RandomFlip:
    """Turn each image (B, …, W) left to right with probability `p`."""

    p: float = 0.5

    def __call__(self, chance: Chance, x: Tensor,
                 *rest: Tensor) -> Batch:
        turn = chance()[:, 0].reshape(-1, *[1] * (x.ndim - 1)) < self.p
        return where(Tensor(turn, device=x.device), x.flip(-1), x), *rest


class Compose:
    """One augmentation after the other."""

    def __init__(self, *steps: Transform):
        self.steps = steps

    def __call__(self, chance: Chance, *batch: Tensor) -> Batch:
        for step in self.steps:
            batch = as_batch(step(chance, *batch))
        return batch


def ahead(submit: Callable[..., Any], tasks: Iterable[Any],
          depth: int) -> Iterator[Any]:
    """The tasks' results in order; `depth` more are under way."""
    waiting: deque[Any] = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# Of each thread: the workers of two loaders have different jobs.
WORKER = threading.local()


def begin(fetch: Callable[[np.ndarray], Any]) -> None:
    """What a worker, thread or process, does first: it learns its job."""
    WORKER.fetch = fetch


def work(rows: np.ndarray) -> Any:
    """What it does then, again and again."""
    try:
        return WORKER.fetch(rows)
    except Exception as error:
        # Back from a process comes only what pickles; else its text does.
        if multiprocessing.parent_process() is None or travels(error):
            raise
        lines = "".join(traceback.format_exception(error))
        raise RuntimeError(f"a worker failed:\n{lines}") from None


def travels(error: Exception) -> bool:
    """Whether an exception survives the way from another process."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever it is, the answer is no
        return False


IDX = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(data: bytes) -> np.ndarray:
    """The array in an IDX file: kind, shape, elements, big end first."""
    start = 4 + 4 * data[3] if len(data) > 3 else 4
    if len(data) < start or data[:2] != b"\0\0" or data[2] not in IDX:
        raise ValueError(f"read_idx: no IDX file begins with {data[:4]!r}")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    dtype = np.dtype(IDX[data[2]])
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"read_idx: shape {shape} of {dtype} does not fit "
                         f"{len(data) - start} bytes")
    elements = np.frombuffer(data, dtype, offset=start)
    return elements.astype(dtype.newbyteorder("=")).reshape(shape)


CHECKSUMS = {
    "mnist/train-images-idx3-ubyte.gz":
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "mnist/train-labels-idx1-ubyte.gz":
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "mnist/t10k-images-idx3-ubyte.gz":
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "mnist/t10k-labels-idx1-ubyte.gz":
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "tinyshakespeare/input.txt":
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "names/names.txt":
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    "cifar-10/cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10/cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}

MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/",
              "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "tinyshakespeare": ("https://raw.githubusercontent.com/karpathy/"
                        "char-rnn/master/data/tinyshakespeare/",),
    "names": (
        "https://raw.githubusercontent.com/karpathy/makemore/master/",),
    "cifar-10": ("https://www.cs.toronto.edu/~kriz/",)}


class DataError(RuntimeError):
    """A dataset is not what it should be; the text says what to do."""


class Unreachable(DataError):
    """A dataset is not here, and no mirror answers."""


def verified(name: str, data: bytes, packed: bool = True) -> bytes:
    """The content of a file called `name`, unpacked if it is gzip."""
    if packed and name.endswith(".gz") and not name.endswith(".tar.gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"no gzip file ({error}); it begins with "
                            f"{data[:16]!r}") from None
    # Of the content: two servers may have packed the same file differently.
    wanted = CHECKSUMS[name]
    kind = "md5" if len(wanted) == 32 else "sha256"
    found = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
    if found != wanted:
        raise DataError(f"its {kind} is {found[:8]}… and not {wanted[:8]}…; "
                        f"{len(data):,} bytes, first {data[:16]!r}")
    return data


def receive(url: str, part: Path) -> None:
    """Download `url` into `part`, from where that ends."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-",
                                    "User-Agent": "companion"})
    try:
        response = urlopen(request, timeout=20)
    except HTTPError as error:
        if error.code == 416 and have:
            return  # there is nothing after what we have
        raise
    with response:
        # 206: it goes on from there; 200: it begins anew.
        begin = have if response.status == 206 else 0
        total = begin + int(response.headers.get("Content-Length", 0))
        with open(part, "ab" if begin else "wb") as file, tqdm(
                desc=part.stem, initial=begin, total=total or None,
                unit="B", unit_scale=True, delay=1, leave=False) as bar:
            while piece := response.read(1 << 16):
                bar.update(file.write(piece))
        size = part.stat().st_size
    if size < total:
        raise ConnectionError(f"it ended after {size:,} of {total:,} bytes")


@contextlib.contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """Where a download is collected, by one program at a time."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise DataError(f"cannot write {part} ({error}): name a folder of "
                        f"yours in COMPANION_CACHE") from None
    with file:
        yield part


def complete(name: str, url: str, part: Path) -> bytes:
    """The rest of a file; all of it, if what we had does not fit."""
    begun = part.stat().st_size
    receive(url, part)
    try:
        return verified(name, part.read_bytes())
    except DataError:
        part.write_bytes(b"")
        # What we had may be to blame: once more, from the start.
        if begun:
            return complete(name, url, part)
        raise


def download(name: str, path: Path) -> bytes:
    """The file `name` from the first mirror that has it, now at `path`."""
    folder, _, file = name.partition("/")
    with part_of(path) as part:
        with contextlib.suppress(OSError, DataError):
            return verified(name, path.read_bytes())  # others were faster
        complaints = dict[str, Exception]()
        # Twice: the part of a download that broke off can be completed.
        for url in [mirror + file for mirror in MIRRORS[folder]] * 2:
            try:
                data = complete(name, url, part)
                part.replace(path)
                return data
            except (DataError, OSError, HTTPException) as error:
                complaints[url] = error
    wrong = any(isinstance(e, DataError) for e in complaints.values())
    told = "; ".join(f"{url}: {error}" for url, error in complaints.items())
    raise (DataError if wrong else Unreachable)(
        f"cannot download {name}: {told}; connect, or name in "
        f"COMPANION_DATA a folder that has {name}{holdings(name)}")


def folder_of_yours() -> Path | None:
    """What COMPANION_DATA names; None if it is not set."""
    told = os.environ.get("COMPANION_DATA")
    if told and not Path(told).is_dir():
        raise DataError(f"COMPANION_DATA names {told}, which is no folder: "
                        f"make it, or unset the variable")
    return Path(told) if told else None


def own(name: str) -> Path | None:
    """Where a file of the user's is, in one of the usual forms."""
    folder = folder_of_yours()
    places = [folder / form for form in usual_names(name)] if folder else []
    return next(filter(Path.exists, places), None)


FOLDERS = {"mnist": ("mnist/", "MNIST/raw/", "MNIST/", "")}


def usual_names(name: str) -> Iterator[str]:
    """The names under which a file may lie in a folder of the user's."""
    folder, _, file = name.partition("/")
    bare = file if file.endswith(".tar.gz") else file.removesuffix(".gz")
    for place in FOLDERS.get(folder, (f"{folder}/", "")):
        for form in dict.fromkeys((file, bare, bare.replace("-idx", ".idx"))):
            yield place + form


def holdings(name: str) -> str:
    """What lies where the user has files, for an error that looked there."""
    folder = folder_of_yours()
    if folder is None:
        return ""
    inside = folder / name.partition("/")[0]
    folder = inside if inside.is_dir() else folder
    found = sorted(p.name for p in folder.iterdir())
    more = ", …" if len(found) > 8 else ""
    return (f"; {folder}, by COMPANION_DATA, holds "
            f"{', '.join(found[:8]) or 'nothing'}{more}")


def obtain(name: str) -> bytes:
    """The content of a file: the user's, the cache's, or a mirror's."""
    given, cached = own(name), cache() / "data" / name
    path = given or cached
    try:
        if path.exists():
            return verified(name, path.read_bytes(), path.suffix == ".gz")
    except DataError as error:
        if given:
            raise DataError(f"{given} is damaged: {error}; mend it or "
                            f"remove it") from None
        tell(f"{cached} is damaged, fetching it again: {error}")
    return download(name, cached)


DRAWN = {"train": (4000, 1), "test": (1000, 3)}  # how many, and a seed
Columns = tuple[np.ndarray, np.ndarray]


def found_or_drawn(name: str, read: Callable[[str], Columns],
                   draw: Callable[[int, int], Columns], split: str,
                   transform: Transform | None) -> Arrays:
    """The split as `read` finds it, or drawn where that is unreachable."""
    if split not in DRAWN:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    try:
        columns, source = read(split), name
    except Unreachable as error:
        tell(f"drawn digits stand in for {name}: {error}")
        columns, source = draw(*DRAWN[split]), "drawn"
    return Arrays(*columns, transform=transform, source=source)


def read_mnist(split: str) -> Columns:
    """Images and labels out of two files."""
    prefix = {"train": "train", "test": "t10k"}[split]
    images, labels = [
        read_idx(obtain(f"mnist/{prefix}-{part}-ubyte.gz"))
        for part in ("images-idx3", "labels-idx1")]
    return images, labels.astype(np.int64)


def mnist(split: str = "train", transform: Transform | None = None
          ) -> Arrays:
    """Handwritten digits (LeCun and others, 1998), 60,000 and 10,000.

    Images uint8 (n, 28, 28) and labels int64 (n,). Where they are neither
    here nor to be had, 4,000 and 1,000 drawn digits; see `source`.
    """
    return found_or_drawn("MNIST", read_mnist, drawn_digits, split,
                          transform)


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain values and NumPy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # NumPy has moved the first of the three: an array says where it is.
        known = {"_reconstruct": np.zeros(0).__reduce__()[0],
                 "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] == "numpy" and name in known:
            return known[name]
        raise DataError(f"it asks for {module}.{name}, and an array needs "
                        f"no such thing")


def cifar_records(data: bytes) -> bytes:
    """The records in a file of CIFAR-10's Python form."""
    try:
        found = ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        labels = np.array(found[b"labels"], np.uint8)
        images = np.asarray(found[b"data"], np.uint8)
        return np.concatenate([labels[:, None], images], 1).tobytes()
    except DataError:
        raise
    except Exception as error:  # a pickle can be broken in any way
        raise DataError(f"no pickle of labels and images "
                        f"({type(error).__name__}: {error})") from None


CIFAR = {"train": [f"data_batch_{i}" for i in range(1, 6)],
         "test": ["test_batch"]}
CIFAR_FORMS = (
    ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", bytes),
    ("cifar-10-python.tar.gz", "cifar-10-batches-py", "", cifar_records))


def cifar_files(split: str) -> Iterator[tuple[str, bytes]]:
    """Names and records of CIFAR-10's files: unpacked, or in a tar."""
    for _, folder, end, records in CIFAR_FORMS:
        if path := own(f"cifar-10/{folder}"):
            for file in CIFAR[split]:
                yield from unpacked_file(path / (file + end), records)
            return
    yours = [form for form in CIFAR_FORMS if own(f"cifar-10/{form[0]}")]
    tar, folder, end, records = (yours or CIFAR_FORMS)[0]
    packed = io.BytesIO(obtain(f"cifar-10/{tar}"))
    with tarfile.open(fileobj=packed) as archive:
        for file in CIFAR[split]:
            member = archive.extractfile(f"{folder}/{file}{end}")
            assert member is not None
            yield file, records(member.read())


def unpacked_file(path: Path, records: Callable[[bytes], bytes]
                  ) -> Iterator[tuple[str, bytes]]:
    """The name of a file of the user's, and the records in it."""
    if not path.exists():
        raise DataError(f"{path.parent} has no {path.name}: add it, or "
                        f"remove the folder")
    try:
        yield str(path), records(path.read_bytes())
    except DataError as error:
        raise DataError(f"{path}: {error}; mend it or remove it") from None


RECORD = 1 + 3 * 32 * 32  # a label, then planes of red, green and blue


def read_cifar(split: str) -> Columns:
    """Images and labels out of records of bytes."""
    parts = []
    for name, data in cifar_files(split):
        if len(data) != 10_000 * RECORD:
            raise DataError(f"{name}: expected 10,000 records of {RECORD} "
                            f"bytes, got {len(data):,} bytes; mend it or "
                            f"remove it")
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, RECORD))
    records = np.concatenate(parts)
    # Files that others have unpacked fit no checksum: their labels must do.
    counts = np.bincount(records[:, 0], minlength=10)
    if (counts != len(records) // 10).any():
        raise DataError(f"CIFAR-10: expected as many of each label from 0 "
                        f"to 9, got {counts.tolist()}; mend or remove the "
                        f"files for {split}")
    images = records[:, 1:].reshape(-1, 3, 32, 32).copy()
    return images, records[:, 0].astype(np.int64)


def coloured(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn digits (n, 3, 32, 32) in two colours each."""
    images, labels = drawn_digits(n, seed)
    ink = np.pad(images, [(0, 0), (2, 2), (2, 2)])[:, None] / np.float32(255)
    colours = rand(2, n, 3, 1, 1, generator=Generator(seed + 2)).numpy()
    mixed = ink * colours[0] + (1 - ink) * colours[1]
    return (mixed * 255).astype(np.uint8), labels


def cifar10(split: str = "train", transform: Transform | None = None
            ) -> Arrays:
    """Small photographs of ten things (Krizhevsky 2009), 50,000, 10,000.

    Images uint8 (n, 3, 32, 32) and labels int64 (n,). Where they are
    neither here nor to be had, coloured drawn digits; see `source`.
    """
    return found_or_drawn("CIFAR-10", read_cifar, coloured, split,
                          transform)


SPARE = {"tinyshakespeare/input.txt": """\
BERNARDO:
Who's there?

FRANCISCO:
Nay, answer me: stand, and unfold yourself.

BERNARDO:
Long live the king!
""", "names/names.txt": """ada alan albert alonzo augusta barbara blaise
carl charles david donald edsger emmy frank george grace hedy ida isaac
jean john kathleen kurt leonhard lise marie mary maurice noam norbert
pierre rosalind sofia stephen thomas warren walter""".replace(" ", "\n")}


def load_text(name: str) -> str:
    """A text by its file's name, or a few lines to go on with."""
    try:
        return obtain(name).decode()
    except Unreachable as error:
        tell(f"a few lines stand in for {name}: {error}")
        return SPARE[name]


def shakespeare() -> str:
    """A megabyte of Shakespeare's plays (Karpathy 2015)."""
    return load_text("tinyshakespeare/input.txt")


def names() -> list[str]:
    """32,033 first names in lower case (Karpathy 2022)."""
    return load_text("names/names.txt").split()


def taken(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """x (B, …), each example at its own places (B, n) along an axis."""
    # The axis goes to the front: whole lines are gathered, not numbers.
    order = [0, axis, *(i for i in range(1, x.ndim) if i != axis)]
    front = x.permute(*order)
    b, n = front.shape[:2]
    first = (arange(b, device=x.device) * n).unsqueeze(1)
    lines = front.reshape(b * n, *front.shape[2:])[first + places]
    return lines.permute(*np.argsort(order).tolist())


@dataclass(frozen=True)
class Cutout:
    """Set a square of each image (B, …, H, W) to zero (DeVries, 2017).

    Its middle lies anywhere, so a part of it may lie outside.
    """

    side: int

    def __call__(self, chance: Chance, x: Tensor,
                 *rest: Tensor) -> Batch:
        middle, inside = chance(2), []
        for axis in (-2, -1):
            n = x.shape[axis]
            shape = [-1, *[1] * (x.ndim - 1)]
            first = np.floor(middle[:, axis] * n) - self.side // 2
            begin = Tensor(first.astype(np.int64), device=x.device)
            at = arange(n, device=x.device).reshape(-1, *[1] * (-1 - axis))
            begin = begin.reshape(shape)
            inside.append((at >= begin) & (at < begin + self.side))
        return where(inside[0] & inside[1], 0, x), *rest


class TensorDataset(Arrays):
    """Tensors of one length: example i is element i of each."""

    def __init__(self, *tensors: Tensor):
        super().__init__(*tensors)


class Subset:
    """Some examples of a dataset, by their numbers."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def random_split(dataset: Dataset, lengths: Sequence[float],
                 generator: Generator = GENERATOR) -> list[Subset]:
    """Parts of these lengths, or shares of 1, drawn without replacement."""
    n = len(dataset)
    if sum(lengths) != n and math.isclose(sum(lengths), 1):
        floors = [math.floor(n * share) for share in lengths]
        # What is left over goes round, one to each.
        lengths = [m + (i < n - sum(floors)) for i, m in enumerate(floors)]
    if sum(lengths) != n:
        raise ValueError(f"random_split: expected lengths that add up to "
                         f"{n}, or shares to 1, got {list(lengths)}")
    order = randperm(n, generator).tolist()
    ends = np.cumsum([0, *lengths]).tolist()
    return [Subset(dataset, order[a:b]) for a, b in zip(ends, ends[1:])]
