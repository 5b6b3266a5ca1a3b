# Tangled from data: edit there, `make tangle`. sha256:cfe2688f5789
from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import math
import os
import struct
import tarfile
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from tqdm import tqdm

from companion.blas import tell
from companion.dtype import float32
from companion.native import cache
from companion.ops import GATHER
from companion.tensor import Generator, Tensor, from_numpy, rand, randperm
from companion.training import Batches

# chapters/gradients/data.md:85
STROKES = (
    "30 51 62 66 57 38 17 06 02 11 30", "12 30 38",
    "02 11 30 51 62 63 08 68", "01 30 51 62 53 34 55 66 57 38 07",
    "48 40 05 65", "60 10 03 33 54 66 57 38 07",
    "50 21 04 06 18 48 66 65 44 14 05", "00 60 28",
    "34 53 51 30 11 13 34 65 67 38 07 05 34", "62 50 20 02 14 44 62 58")


# chapters/gradients/data.md:93
def strokes(digit: int, u: np.ndarray) -> np.ndarray:
    """Corners (points, n, 2) of a digit, n times with a shaky hand.

    `u` (n, 32) are uniform numbers: six for slant, size and place, two
    for each corner.
    """
    corners = np.array([[int(at[0]) - 3, int(at[1]) - 4]
                        for at in STROKES[digit].split()], np.float32)
    shake = u[:, 6:6 + corners.size].reshape(-1, *corners.shape) - 0.5
    x, y = np.moveaxis(corners + shake, -1, 0)
    slant, turn, wide, high, right, down = u[:, :6, None].swapaxes(0, 1)
    left = (x * (1.7 + wide) - y * (slant - 0.4)) + (right * 5 + 11)
    top = (y * (1.7 + high * 0.7) + x * (turn - 0.5)) + (down * 5 + 11)
    return np.stack([left, top], -1).swapaxes(0, 1)


# chapters/gradients/data.md:125
def ink(corners: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Pictures (n, 28, 28) of the lines from corner to corner."""
    grid = np.arange(28, dtype=np.float32)
    nearest = np.full((corners.shape[1], 28, 28), np.inf, np.float32)
    for begin, end in zip(corners, corners[1:]):
        x, y = [(grid - b[:, None]) for b in begin.T]
        along = (end - begin)[..., None]
        u, v = along[:, 0], along[:, 1]
        run = (x * u)[:, None, :] + (y * v)[:, :, None]
        at = run / (u * u + v * v + 1e-6)[:, None]
        at = at.clip(0, 1)
        across = x[:, None, :] - at * u[:, None]
        below = y[:, :, None] - at * v[:, None]
        np.minimum(nearest, across * across + below * below, out=nearest)
    return (width[:, None, None] - np.sqrt(nearest)).clip(0, 1)


# chapters/gradients/data.md:144
def drawn_digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n pictures uint8 (n, 28, 28) of digits, and the digits, int64."""
    u = rand(n, 33, generator=Generator(seed)).numpy()
    images, labels = np.zeros((n, 28, 28), np.float32), np.arange(n) % 10
    for digit in range(10):
        rows = labels == digit
        images[rows] = ink(strokes(digit, u[rows]), u[rows, -1] + 1.2)
    noise = rand(n, 28, 28, generator=Generator(seed + 1)).numpy()
    return (images * 215 + noise * 40).astype(np.uint8), labels


# chapters/gradients/data.md:178
class Dataset(Protocol):
    """Anything with a length whose examples have numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Batch = tuple[Tensor, ...]
Transform = Callable[..., Batch]


# chapters/gradients/data.md:194
def collate(items: list[Any]) -> Batch:
    """Examples to a batch: a tuple with each column stacked."""
    rows = [i if isinstance(i, tuple) else (i,) for i in items]
    return tuple([column(parts) for parts in zip(*rows, strict=True)])


# chapters/gradients/data.md:200
def column(parts: tuple[Any, ...]) -> Tensor:
    shapes = {np.shape(part) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"collate: examples of shapes {sorted(shapes)} do not stack; "
            f"pad them, or give the loader a collate of your own")
    if isinstance(parts[0], (bool, int, float)):
        return Tensor(parts)
    return from_numpy(np.stack([np.asarray(part) for part in parts]))


# chapters/gradients/data.md:228
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


# chapters/gradients/data.md:240
@functools.singledispatch
def gather(dataset: Dataset, rows: np.ndarray) -> Batch:
    """A batch of the examples at `rows`; datasets register better ways."""
    return collate(items(dataset, rows))


# chapters/gradients/data.md:276
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
        rows = tuple([rows_of(c, index) for c in self.columns])
        return rows if self.transform is None else self.transform(*rows)


# chapters/gradients/data.md:305
def rows_of(column: Tensor, index: Any) -> Tensor:
    """`column[index]`; numbered rows take the short way to GATHER."""
    if isinstance(index, np.ndarray) and index.dtype == np.int64:
        return Tensor.apply(GATHER, column, from_numpy(index))
    return column[index]


# chapters/gradients/data.md:312
@gather.register
def gather_rows(dataset: Arrays, rows: np.ndarray) -> Batch:
    return dataset[rows]


# chapters/gradients/data.md:382
@dataclass(eq=False)
class DataLoader(Batches):
    """Batches of a dataset, in an order that (seed, epoch) decide.

    A `for` loop runs to the end of an epoch, the next one through the
    next epoch; `next(loader)` goes on without end. `epoch` and `index`
    say where the next batch begins, and `go_to` goes there.
    """

    dataset: Dataset
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
        least = max(self.batch_size if self.drop_last else 1, 1)
        if self.batch_size < 1 or len(self.dataset) < least:
            raise ValueError(
                f"DataLoader: {len(self.dataset)} examples make no batch "
                f"of {self.batch_size} (drop_last={self.drop_last})")
        self.go_to(0, 0)

    # chapters/gradients/data.md:421
    def __len__(self) -> int:
        """Batches in an epoch."""
        n = len(self.dataset) / self.batch_size
        return math.floor(n) if self.drop_last else math.ceil(n)

    def shuffled(self) -> np.ndarray:
        """The order of the current epoch."""
        n = len(self.dataset)
        if not self.shuffle:
            return np.arange(n)
        return randperm(n, Generator(self.seed * 1_000_003 + self.epoch)
                        ).numpy()

    def parts(self) -> list[np.ndarray]:
        """The rows of each batch that is left of the current epoch."""
        size, order = self.batch_size, self.shuffled()
        end = len(self) * size if self.drop_last else len(order)
        return [order[i:i + size] for i in range(self.index, end, size)]

    # chapters/gradients/data.md:456
    def go_to(self, epoch: int, index: int) -> None:
        """Continue with the example that is at `index` in `epoch`."""
        if epoch < 0 or not 0 <= index <= len(self.dataset):
            raise ValueError(
                f"go_to: expected an epoch from 0 and an index of 0 to "
                f"{len(self.dataset)}, got {epoch} and {index}")
        self.epoch, self.index = epoch, index
        self.begun = False
        self.running: Iterator[Batch] = iter(())

    def __iter__(self) -> Iterator[Batch]:
        if self.begun:
            self.go_to(self.epoch + 1, 0)
        self.begun = True
        return self.rest(self.epoch, self.index, self.parts())

    def rest(self, epoch: int, index: int, parts: list[np.ndarray]
             ) -> Iterator[Batch]:
        """The batches of `parts`; says where we are after each."""
        with contextlib.closing(self.fetched(epoch, parts)) as batches:
            for rows in parts:
                self.begun = False  # who asks again after an error
                batch = next(batches)
                self.begun, index = True, index + len(rows)
                self.epoch, self.index = epoch, index
                yield batch

    # chapters/gradients/data.md:490
    def __next__(self) -> Batch:
        while True:
            for batch in self.running:
                return batch
            self.running = iter(self)

    # chapters/gradients/data.md:831
    def fetched(self, epoch: int, parts: list[np.ndarray]) -> Any:
        """A generator of the batches of `parts`, from the workers."""
        fetch = functools.partial(self.fetch, epoch)
        if not self.workers:
            yield from map(fetch, parts)
            return
        pool = self.pool(self.workers, initializer=begin, initargs=(fetch,))
        try:
            yield from ahead(lambda rows: pool.submit(work, rows), parts,
                             self.workers * self.prefetch)
        finally:
            pool.shutdown(cancel_futures=True)

    # chapters/gradients/data.md:693
    def fetch(self, epoch: int, rows: np.ndarray) -> Batch:
        """The batch of the examples at `rows`, augmented."""
        if self.collate is None:
            batch = gather(self.dataset, rows)
        else:
            batch = self.collate(items(self.dataset, rows))
        if self.augment is None:
            return batch
        chance = Chance(self.seed, epoch, rows, len(self.dataset))
        return self.augment(chance, *batch)

    # chapters/gradients/data.md:844
    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"running": iter(())}


# chapters/gradients/data.md:540
@dataclass(frozen=True)
class Normalize:
    """Bytes to float32: (x / 255 - mean) / std; for `Arrays`.

    `mean` and `std` are numbers, or tuples with one for each channel of
    images (…, C, H, W).
    """

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __call__(self, x: Tensor, *rest: Tensor) -> Batch:
        mean, std = [Tensor(v).reshape(-1, 1, 1) if isinstance(v, tuple)
                     else Tensor(v) for v in (self.mean, self.std)]
        return x.to(float32) * (1 / (255 * std)) - mean / std, *rest


# chapters/gradients/data.md:595
@functools.lru_cache(maxsize=8)
def uniforms(n: int, k: int, seed: int, place: int) -> np.ndarray:
    """k uniform numbers for each of n examples."""
    draw = Generator(seed)
    draw.place = place
    return rand(n, k, generator=draw).numpy()


# chapters/gradients/data.md:605
class Chance:
    """Random numbers that belong to examples, whoever loads them.

    `chance(k)` is a float32 array (examples, k), uniform in [0, 1), and
    depends on seed, epoch and example; each call gives other numbers.
    """

    def __init__(self, seed: int, epoch: int, rows: np.ndarray, n: int):
        self.seed, self.rows, self.n = seed * 1_000_003 + epoch, rows, n
        self.calls = 0

    def __call__(self, k: int = 1) -> np.ndarray:
        self.calls += 1
        place = self.calls << 40
        return uniforms(self.n, k, self.seed, place)[self.rows]


# chapters/gradients/data.md:633
@dataclass(frozen=True)
class RandomShift:
    """Move each image (B, …, H, W) by up to `reach`; zeros come in."""

    reach: int

    def __call__(self, chance: Chance, x: Tensor,
                 *rest: Tensor) -> Batch:
        margin = [(0, 0)] * (x.ndim - 2) + [(self.reach, self.reach)] * 2
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x.numpy(), margin), x.shape[-2:], (-2, -1))
        down, right = (chance(2).T * (2 * self.reach + 1)).astype(int)
        moved = windows[np.arange(len(x)), ..., down, right, :, :]
        return from_numpy(moved), *rest


# chapters/gradients/data.md:649
@dataclass(frozen=True)
class RandomFlip:
    """Turn each image (B, …, W) left to right with probability `p`."""

    p: float = 0.5

    def __call__(self, chance: Chance, x: Tensor,
                 *rest: Tensor) -> Batch:
        turned = x.numpy().copy()
        chosen = chance()[:, 0] < self.p
        turned[chosen] = turned[chosen][..., ::-1]
        return from_numpy(turned), *rest


# chapters/gradients/data.md:673
class Compose:
    """One augmentation after the other."""

    def __init__(self, *steps: Transform):
        self.steps = steps

    def __call__(self, chance: Chance, *batch: Tensor
                 ) -> Batch:
        for step in self.steps:
            batch = step(chance, *batch)
        return batch


# chapters/gradients/data.md:779
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


# chapters/gradients/data.md:813
WORKER = threading.local()


# chapters/gradients/data.md:816
def begin(fetch: Callable[[np.ndarray], Any]) -> None:
    """What a worker, thread or process, does first: it learns its job."""
    WORKER.fetch = fetch


# chapters/gradients/data.md:821
def work(rows: np.ndarray) -> Any:
    """What it does then, again and again."""
    return WORKER.fetch(rows)


# chapters/gradients/data.md:1059
IDX = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


# chapters/gradients/data.md:1062
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


# chapters/gradients/data.md:1160
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
    "cifar-10/cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}

MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/",
              "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "tinyshakespeare": ("https://raw.githubusercontent.com/karpathy/"
                        "char-rnn/master/data/tinyshakespeare/",),
    "names": (
        "https://raw.githubusercontent.com/karpathy/makemore/master/",),
    "cifar-10": ("https://www.cs.toronto.edu/~kriz/",)}


# chapters/gradients/data.md:1195
class DataError(RuntimeError):
    """A dataset is not what it should be; the text says what to do."""


# chapters/gradients/data.md:1199
class Unreachable(DataError):
    """A dataset is not here, and no mirror answers."""


# chapters/gradients/data.md:1203
def verified(name: str, data: bytes) -> bytes:
    """The content of a file called `name`, unpacked if it is gzip."""
    if name.endswith(".gz") and not name.endswith(".tar.gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"no gzip file ({error}); it begins with "
                            f"{data[:16]!r}") from None
    wanted = CHECKSUMS[name]
    kind = "md5" if len(wanted) == 32 else "sha256"
    found = hashlib.new(kind, data, usedforsecurity=False).hexdigest()
    if found != wanted:
        raise DataError(f"its {kind} is {found[:8]}… and not {wanted[:8]}…; "
                        f"{len(data):,} bytes, first {data[:16]!r}")
    return data


# chapters/gradients/data.md:1229
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


# chapters/gradients/data.md:1257
def part_of(path: Path) -> Path:
    """Where a download is collected until it is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make {path.parent} ({error}): name a "
                        f"folder of yours in COMPANION_CACHE") from None
    return path.with_name(path.name + ".part")


# chapters/gradients/data.md:1267
def download(name: str, path: Path) -> bytes:
    """The file `name` from the first mirror that has it, now at `path`."""
    folder, _, file = name.partition("/")
    part = part_of(path)
    wrong, complaints = False, dict[str, Exception]()
    for url in [mirror + file for mirror in MIRRORS[folder]] * 2:
        try:
            receive(url, part)
            data = verified(name, part.read_bytes())
            part.replace(path)
            return data
        except DataError as error:
            part.unlink(missing_ok=True)
            wrong, complaints[url] = True, error
        except (OSError, HTTPException) as error:
            complaints[url] = error
    told = "; ".join(f"{url}: {error}" for url, error in complaints.items())
    raise (DataError if wrong else Unreachable)(
        f"cannot download {name}: {told}; connect, or put the file into a "
        f"folder and name that in COMPANION_DATA")


# chapters/gradients/data.md:1313
def own(name: str) -> Path | None:
    """Where a file of the user's is, by COMPANION_DATA; None without."""
    told = os.environ.get("COMPANION_DATA")
    if told and not Path(told).is_dir():
        raise DataError(f"COMPANION_DATA names {told}, which is no folder: "
                        f"make it, or unset the variable")
    return Path(told, name) if told and Path(told, name).exists() else None


# chapters/gradients/data.md:1322
def obtain(name: str) -> bytes:
    """The content of a file: the user's, the cache's, or a mirror's."""
    given, cached = own(name), cache() / "data" / name
    try:
        if given:
            return verified(name, given.read_bytes())
        if cached.exists():
            return verified(name, cached.read_bytes())
    except DataError as error:
        if given:
            raise DataError(f"{given} is damaged: {error}; mend it or "
                            f"remove it") from None
        tell(f"{cached} is damaged, fetching it again: {error}")
    return download(name, cached)


# chapters/gradients/data.md:1361
DRAWN = {"train": (4000, 1), "test": (1000, 3)}  # how many, and a seed


# chapters/gradients/data.md:1364
def check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")


# chapters/gradients/data.md:1369
def mnist(split: str = "train", transform: Transform | None = None
          ) -> Arrays:
    """Handwritten digits (LeCun and others, 1998), 60,000 and 10,000.

    Images uint8 (n, 28, 28) and labels int64 (n,). Where they are neither
    here nor to be had, 4,000 and 1,000 drawn digits; see `source`.
    """
    check_split(split)
    prefix = {"train": "train", "test": "t10k"}[split]
    try:
        images, labels = [
            read_idx(obtain(f"mnist/{prefix}-{part}-ubyte.gz"))
            for part in ("images-idx3", "labels-idx1")]
    except Unreachable as error:
        tell(f"drawn digits stand in for MNIST: {error}")
        images, labels = drawn_digits(*DRAWN[split])
        return Arrays(images, labels, transform=transform, source="drawn")
    return Arrays(images, labels.astype(np.int64), transform=transform,
                  source="MNIST")


# chapters/gradients/data.md:1415
CIFAR = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)],
         "test": ["test_batch.bin"]}


# chapters/gradients/data.md:1419
def cifar_files(split: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of CIFAR-10's files: unpacked, or in the tar."""
    folder = "cifar-10-batches-bin/"
    if own(folder):
        for file in CIFAR[split]:
            path = own(folder + file)
            if path is None:
                raise DataError(f"{own(folder)} has no {file}: add it, or "
                                f"remove the folder")
            yield str(path), path.read_bytes()
    else:
        packed = io.BytesIO(obtain("cifar-10/cifar-10-binary.tar.gz"))
        with tarfile.open(fileobj=packed) as archive:
            for file in CIFAR[split]:
                member = archive.extractfile(folder + file)
                assert member is not None
                yield file, member.read()


# chapters/gradients/data.md:1440
RECORD = 1 + 3 * 32 * 32  # a label, then planes of red, green and blue


# chapters/gradients/data.md:1443
def cifar_records(split: str) -> np.ndarray:
    """All records of one split, (n, 3073) bytes."""
    parts = []
    for name, data in cifar_files(split):
        if len(data) != 10_000 * RECORD or max(data[::RECORD]) > 9:
            raise DataError(f"{name}: expected 10,000 records of {RECORD} "
                            f"bytes with labels of 0 to 9, got {len(data):,} "
                            f"bytes; mend it or remove it")
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, RECORD))
    records = np.concatenate(parts)
    counts = np.bincount(records[:, 0], minlength=10)
    if (counts != len(records) // 10).any():
        raise DataError(f"CIFAR-10: expected as many of each class, got "
                        f"{counts.tolist()}; mend the files of {split}")
    return records


# chapters/gradients/data.md:1476
def coloured(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn digits (n, 3, 32, 32) in two colours each."""
    images, labels = drawn_digits(n, seed)
    ink = np.pad(images, [(0, 0), (2, 2), (2, 2)])[:, None] / np.float32(255)
    colours = rand(2, n, 3, 1, 1, generator=Generator(seed + 2)).numpy()
    mixed = ink * colours[0] + (1 - ink) * colours[1]
    return (mixed * 255).astype(np.uint8), labels


# chapters/gradients/data.md:1485
def cifar10(split: str = "train", transform: Transform | None = None
            ) -> Arrays:
    """Small photographs of ten things (Krizhevsky 2009), 50,000, 10,000.

    Images uint8 (n, 3, 32, 32) and labels int64 (n,). Where they are
    neither here nor to be had, coloured drawn digits; see `source`.
    """
    check_split(split)
    try:
        records = cifar_records(split)
    except Unreachable as error:
        tell(f"drawn digits stand in for CIFAR-10: {error}")
        images, labels = coloured(*DRAWN[split])
        return Arrays(images, labels, transform=transform, source="drawn")
    return Arrays(records[:, 1:].reshape(-1, 3, 32, 32).copy(),
                  records[:, 0].astype(np.int64),
                  transform=transform, source="CIFAR-10")


# chapters/gradients/data.md:1517
SPARE = {"tinyshakespeare/input.txt": """\
BERNARDO:
Who's there?

FRANCISCO:
Nay, answer me: stand, and unfold yourself.

BERNARDO:
Long live the king!

FRANCISCO:
Bernardo?

BERNARDO:
He.

FRANCISCO:
You come most carefully upon your hour.
""", "names/names.txt": """ada alan albert alonzo augusta barbara blaise
carl charles david donald edsger emmy frank george grace hedy ida isaac
jean john kathleen kurt leonhard lise marie mary maurice noam norbert
pierre rosalind sofia stephen thomas warren walter""".replace(" ", "\n")}


# chapters/gradients/data.md:1543
def text(name: str) -> str:
    """A text by its file's name, or a few lines to go on with."""
    try:
        return obtain(name).decode()
    except Unreachable as error:
        tell(f"a few lines stand in for {name}: {error}")
        return SPARE[name]


# chapters/gradients/data.md:1552
def shakespeare() -> str:
    """A megabyte of Shakespeare's plays (Karpathy 2015)."""
    return text("tinyshakespeare/input.txt")


# chapters/gradients/data.md:1557
def names() -> list[str]:
    """32,033 first names in lower case (Karpathy 2022)."""
    return text("names/names.txt").split()
