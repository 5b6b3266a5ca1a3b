# Tangled from xor: edit there, `make tangle`. sha256:2090a85e7182
from __future__ import annotations

import time

from companion.autograd import no_grad
from companion.dtype import float32
from companion.layers import Linear, Module, Sequential
from companion.losses import bce_with_logits
from companion.milestones.report import Report
from companion.optim import SGD
from companion.tensor import Tensor
from companion.tensor.creation import arange
from companion.tensor.random import manual_seed
from companion.training import Batches, Trainer


def bits(n: int) -> Tensor:
    """All rows of n bits, (2ⁿ, n), counted up from zero."""
    places = Tensor([2 ** i for i in range(n)])
    return (arange(2 ** n).unsqueeze(1) // places % 2).to(float32)


def parity(x: Tensor) -> Tensor:
    """1 for each row with an odd number of ones, else 0: (rows, 1)."""
    return x.sum(1, keepdim=True) % 2


def loss_of(model: Module, x: Tensor, t: Tensor) -> Tensor:
    return bce_with_logits(model(x), t)


def taught(model: Module, x: Tensor, t: Tensor, steps: int) -> Trainer:
    """A run of training on all rows at once."""
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    run = Trainer(model, optimizer, Batches(x, t, size=len(x)), loss_of)
    run.fit(steps)
    return run


def right(model: Module, x: Tensor, t: Tensor) -> int:
    """How many rows are on the right side of zero."""
    with no_grad():
        return int(((model(x) > 0) == (t > 0.5)).sum())


def network(inputs: int, width: int) -> Sequential:
    """One hidden layer of tanh units, and one logit."""
    return Sequential(Linear(inputs, width), Tensor.tanh,
                      Linear(width, 1))


def attempt(seed: int, width: int = 4, steps: int = 100) -> dict:
    """One run on exclusive or: loss, rows right, seconds."""
    manual_seed(seed)
    x, t = bits(2), parity(bits(2))
    start = time.perf_counter()
    run = taught(network(2, width), x, t, steps)
    return {"seed": seed, "loss": round(run.history[-1]["loss"], 4),
            "right": right(run.model, x, t),
            "seconds": round(time.perf_counter() - start, 2)}


def milestone() -> Report:
    """Exclusive or from ten seeds; at least nine must have it whole."""
    start = time.perf_counter()
    rows = [attempt(seed) for seed in range(10)]
    solved = [row for row in rows if row["right"] == 4]
    return Report("exclusive or", "share of seeds with four of four",
                  len(solved) / len(rows), 0.9, rows,
                  time.perf_counter() - start)
