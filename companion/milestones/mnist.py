# Tangled from mnist: edit there, `make tangle`. sha256:7d08837a5068
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from companion.activations import relu
from companion.data import Arrays, DataError, DataLoader, mnist
from companion.dtype import float32
from companion.layers import Linear, Module, Sequential, he
from companion.losses import cross_entropy
from companion.milestones.report import Report, Unmeasured
from companion.optim import SGD
from companion.tensor import Tensor
from companion.tensor.random import manual_seed
from companion.training import (
    Observer, ProgressBar, Trainer, accuracy, evaluate, one_cycle)


def pixels(data: Arrays) -> Arrays:
    """Pictures as rows of 784 floats from 0 to 1, beside the labels."""
    images, labels = data.columns
    rows = images.reshape(len(images), -1).to(float32) * (1 / 255)
    return Arrays(rows, labels, source=data.source)


BATCH = 128


def loss_of(model: Module, x: Tensor, t: Tensor) -> Tensor:
    return cross_entropy(model(x), t)


def learner(model: Module, train: Arrays, epochs: int, lr: float = 0.2,
            momentum: float = 0.9, schedule: Callable = one_cycle,
            loss: Callable[..., Tensor] = loss_of,
            seed: int = 0) -> Trainer:
    """A run of training; `schedule` gets the number of steps."""
    batches = DataLoader(train, batch_size=BATCH, shuffle=True, seed=seed,
                         drop_last=True)
    optimizer = SGD(model.parameters(), lr=lr, momentum=momentum)
    return Trainer(model, optimizer, batches, loss,
                   rate=schedule(epochs * len(batches)))


def read_right(model: Module, data: Arrays) -> float:
    """The share of pictures that are read right."""
    return evaluate(model, accuracy, *data.columns)


def classifier(width: int = 256) -> Sequential:
    """784 pixels, a hidden layer of rectifiers, ten logits."""
    return Sequential(Linear(784, width, init=he), relu,
                      Linear(width, 10))


def taught(run: Trainer, epochs: int, test: Arrays,
           observers: Sequence[Observer] = ()) -> list[dict[str, Any]]:
    """Run for some epochs; after each, the share of `test` read right."""
    run.observers.extend(observers)
    # Transformed once, and not in every epoch again.
    seen, steps = Arrays(*test[:]), run.batches.examples // BATCH
    rows, start = [], time.perf_counter()
    for epoch in range(1, epochs + 1):
        run.fit(epoch * steps)
        losses = [row["loss"] for row in run.history[-steps:]]
        rows.append({"epoch": epoch, "loss": round(np.mean(losses), 4),
                     "right": round(read_right(run.model, seen), 4),
                     "seconds": round(time.perf_counter() - start, 1)})
    return rows


def study(train: Arrays, test: Arrays, epochs: int = 3, width: int = 256,
          seed: int = 0, observers: Sequence[Observer] = (),
          ) -> tuple[Trainer, list[dict[str, Any]]]:
    """Train, and look at the test pictures after every epoch."""
    manual_seed(seed)
    run = learner(classifier(width), train, epochs, seed=seed)
    return run, taught(run, epochs, test, observers)


def genuine(data: Arrays) -> Arrays:
    """The data, if it is MNIST; drawn digits earn no verdict."""
    if data.source != "MNIST":
        raise Unmeasured(
            f"expected MNIST, got {data.source} digits; connect to a "
            f"network, or set COMPANION_DATA to a folder with MNIST's "
            f"four .gz files in its subfolder mnist")
    return data


def verdict(rows: list[dict[str, Any]]) -> Report:
    """The report on a study; 95 % after the last epoch are asked for."""
    return Report("handwritten digits", "share of test digits read right",
                  rows[-1]["right"], 0.95, rows, rows[-1]["seconds"])


def milestone() -> Report:
    """All of MNIST: 60,000 to learn from, 10,000 to be judged by."""
    try:
        sets = [mnist(split) for split in ("train", "test")]
    except DataError as error:
        raise Unmeasured(str(error)) from None
    train, test = [pixels(genuine(data)) for data in sets]
    return verdict(study(train, test, observers=[ProgressBar()])[1])
