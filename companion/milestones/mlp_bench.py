# Tangled from mnist: edit there, `make tangle`. sha256:5594ef2a837a
from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from datetime import date
from importlib import import_module

import numpy as np

from companion.activations import relu
from companion.data import Arrays
from companion.layers import Linear, Sequential
from companion.losses import cross_entropy
from companion.optim import SGD
from companion.tensor import from_numpy
from companion.timing import MISSING, compare, limits, machine, versions

Step = Callable[[np.ndarray], float]  # rows of the batch to its loss
RATE, BATCH, EPOCH = 0.1, 128, 60_000 // 128


def ours(x: np.ndarray, t: np.ndarray, weights: list[np.ndarray]) -> Step:
    """784-128-10 with this library, eager."""
    model = Sequential(Linear(784, 128), relu, Linear(128, 10))
    for p, value in zip(model.parameters(), weights, strict=True):
        p.detach().assign(from_numpy(value))
    optimizer, data = SGD(model.parameters(), lr=RATE), Arrays(x, t)

    def step(rows: np.ndarray) -> float:
        images, labels = data[from_numpy(rows)]
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())
    return step


def torchs(x: np.ndarray, t: np.ndarray,
           weights: list[np.ndarray]) -> Step:
    """The same with PyTorch, eager."""
    torch = import_module("torch")
    model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(),
                                torch.nn.Linear(128, 10))
    with torch.no_grad():
        for p, value in zip(model.parameters(), weights, strict=True):
            p.copy_(torch.from_numpy(value))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    images, labels = map(torch.from_numpy, (x, t))

    def step(rows: np.ndarray) -> float:
        at = torch.from_numpy(rows)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(images[at]), labels[at])
        loss.backward()
        optimizer.step()
        return float(loss.item())
    return step


def by_hand(x: np.ndarray, t: np.ndarray,
            weights: list[np.ndarray]) -> Step:
    """The same in NumPy, with the derivatives worked out on paper."""
    w1, b1, w2, b2 = [value.copy() for value in weights]

    def step(rows: np.ndarray) -> float:
        images, labels, every = x[rows], t[rows], np.arange(len(rows))
        hidden = np.maximum(images @ w1.T + b1, 0)
        logits = hidden @ w2.T + b2
        logits -= logits.max(1, keepdims=True)
        shares = np.exp(logits)
        total = shares.sum(1, keepdims=True)
        loss = (np.log(total[:, 0]) - logits[every, labels]).mean()
        shares /= total
        shares[every, labels] -= 1
        shares /= len(rows)
        back = (shares @ w2) * (hidden > 0)
        for p, g in ((w1, back.T @ images), (b1, back.sum(0)),
                     (w2, shares.T @ hidden), (b2, shares.sum(0))):
            p -= RATE * g
        return float(loss)
    return step


PEERS = {"torch": torchs, "numpy": by_hand}


def task(seed: int = 0) -> tuple[np.ndarray, np.ndarray,
                                 list[np.ndarray]]:
    """Random pictures, labels and first weights: time knows no other."""
    draw = np.random.default_rng(seed)
    x = draw.random((60_000, 784), dtype=np.float32)
    t = draw.integers(0, 10, 60_000)
    shapes = (128, 784), (128,), (10, 128), (10,)
    return x, t, [draw.standard_normal(s, dtype=np.float32) * 0.05
                  for s in shapes]


def epoch(step: Step, steps: int) -> Callable[[], list[float]]:
    """`steps` steps on shuffled rows, as a function to be timed."""
    order = np.random.default_rng(1).permutation(60_000)
    rows = order[:steps * BATCH].reshape(steps, BATCH)
    return lambda: [step(r) for r in rows]


def race(name: str, threads: int, quick: bool) -> dict[str, float | None]:
    """Milliseconds an epoch of ours and of one peer, in turn."""
    if name == "torch" and importlib.util.find_spec("torch") is None:
        return MISSING
    given, steps = task(), 10 if quick else 40
    found = compare(
        lambda: epoch(ours(*given), steps),
        lambda: epoch(PEERS[name](*given), steps),
        rounds=5 if quick else 15, tries=2 if quick else 5,
        agree=functools.partial(np.testing.assert_allclose, rtol=1e-3))
    scale = 1e3 * EPOCH / steps
    work = 2e-9 * BATCH * steps * (2 * 784 * 128 + 3 * 128 * 10)
    return found.line(lambda s: scale * s,
                      work / found.ours / limits(threads).peak)


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """An epoch of a small network, beside each peer."""
    for name in PEERS:
        yield {"bench": "mlp", "case": "784-128-10", "threads": threads,
               "unit": "ms/epoch", "peer_name": name,
               **race(name, threads, quick), "machine": machine(),
               "versions": versions(name),
               "date": date.today().isoformat()}
