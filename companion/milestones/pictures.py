# Tangled from pictures: edit there, `make tangle`. sha256:13f3b2e91985
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from companion.activations import relu
from companion.convolution import (
    AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Flatten, avg_pool2d, conv2d)
from companion.data import (
    Arrays, Batch, Compose, DataError, DataLoader, Normalize, RandomFlip,
    RandomShift, Transform, cifar10, mnist)
from companion.dtype import float32
from companion.layers import Linear, Module, Sequential, parameter, xavier
from companion.losses import cross_entropy
from companion.milestones.mnist import BATCH, loss_of, taught
from companion.milestones.report import Report, Unmeasured, judged, tasks_done
from companion.optim import SGD, Optimizer, decay_groups
from companion.tensor import Tensor
from companion.tensor.creation import ones, zeros
from companion.tensor.random import manual_seed
from companion.training import ProgressBar, Trainer, one_cycle


def squash(x: Tensor) -> Tensor:
    """1.7159 tanh(2x / 3), which takes 1 to 1 (LeCun, 1998)."""
    return (x * (2 / 3)).tanh() * 1.7159


class Subsampling(Module):
    """Means of 2 by 2 pixels, times a weight and plus a bias a channel."""

    def __init__(self, channels: int):
        self.weight = parameter(ones(channels, 1, 1))
        self.bias = parameter(zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, 2) * self.weight + self.bias


SEES = ("012 123 234 345 045 015 0123 1234 2345 0345 0145 0125 "
        "0134 1245 0235 012345").split()


class TableConv2d(Conv2d):
    """A convolution whose output channel i sees the inputs `sees[i]`."""

    def __init__(self, sees: Sequence[str], inputs: int, kernel_size: Any,
                 **options: Any):
        super().__init__(inputs, len(sees), kernel_size, **options)
        self.table = Tensor([[float(str(c) in row) for c in range(inputs)]
                             for row in sees]).reshape(-1, inputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight * self.table, self.bias)


def framed(x: Tensor, *rest: Tensor) -> Batch:
    """Bytes (B, 28, 28) as LeNet-5 sees them: floats (B, 1, 32, 32)."""
    pixels = x.unsqueeze(1).to(float32) * (1.275 / 255) - 0.1
    margins = [(0, 0), (0, 0), (2, 2), (2, 2)]
    return pixels.pad(margins, value=-0.1), *rest


def lenet5() -> Sequential:
    """The network of 1998, with ten logits in place of its last layer."""
    return Sequential(
        Conv2d(1, 6, 5, init=xavier), squash,
        Subsampling(6), squash,
        TableConv2d(SEES, 6, 5, init=xavier), squash,
        Subsampling(16), squash,
        Conv2d(16, 120, 5, init=xavier), squash, Flatten(),
        Linear(120, 84), squash, Linear(84, 10))


@dataclass(frozen=True)
class Recipe:
    """Examples to learn from, how often each is seen, what is asked."""

    examples: int
    epochs: int
    target: float


RECIPES = {
    "digits, short": Recipe(12_800, 1, 0.88),
    "digits": Recipe(60_000, 9, 0.99),
    "photographs, short": Recipe(12_800, 2, 0.4),
    "photographs": Recipe(50_000, 8, 0.75)}


def beginning(data: Arrays, n: int) -> Arrays:
    """The first n examples of a dataset."""
    return Arrays(*[column[:n] for column in data.columns],
                  transform=data.transform, source=data.source)


def run_of(model: Module, train: Arrays, recipe: Recipe,
           optimizer: Optimizer, loss: Callable[..., Tensor],
           augment: Transform, seed: int = 0) -> Trainer:
    """A run on augmented pictures, before its first step."""
    batches = DataLoader(beginning(train, recipe.examples), BATCH,
                         shuffle=True, seed=seed, drop_last=True,
                         augment=augment)
    return Trainer(model, optimizer, batches, loss,
                   rate=one_cycle(recipe.epochs * len(batches)))


def reader(train: Arrays, recipe: Recipe, seed: int = 0) -> Trainer:
    """A run of LeNet-5 on framed digits."""
    manual_seed(seed)
    model = lenet5()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return run_of(model, train, recipe, optimizer, loss_of, RandomShift(1),
                  seed)


def standard(images: Tensor) -> Normalize:
    """What brings each channel of bytes (N, C, H, W) to mean 0, spread 1.

    Judged by the first 10,000 pictures.
    """
    x = images[:10_000].to(float32) * (1 / 255)
    mean = x.mean((0, 2, 3), keepdim=True)
    spread = (x - mean).square().mean((0, 2, 3)).sqrt()
    return Normalize(tuple(mean.flatten().tolist()),
                     tuple(spread.tolist()))


def bent(inputs: int, outputs: int, stride: int = 1) -> Sequential:
    """A norm, a rectifier, and a convolution of 3 by 3."""
    return Sequential(
        BatchNorm2d(inputs), relu,
        Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))


class Residual(Module):
    """x + f(x), for a layer f that keeps the shape (He, 2015)."""

    def __init__(self, inside: Module):
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


def residual_net(width: int = 16, kinds: int = 10) -> Sequential:
    """Photographs (B, 3, 32, 32) to logits: three sizes, a block each."""
    w = width
    return Sequential(
        Conv2d(3, w, 3, 2, padding=1, bias=False), Residual(bent(w, w)),
        bent(w, 2 * w, 2), Residual(bent(2 * w, 2 * w)),
        bent(2 * w, 4 * w, 2), Residual(bent(4 * w, 4 * w)),
        BatchNorm2d(4 * w), relu, AdaptiveAvgPool2d(1), Flatten(),
        Linear(4 * w, kinds))


def smoothed_loss(model: Module, x: Tensor, t: Tensor) -> Tensor:
    return cross_entropy(model(x), t, label_smoothing=0.1)


def namer(train: Arrays, recipe: Recipe, seed: int = 0) -> Trainer:
    """A run of the residual network on photographs."""
    manual_seed(seed)
    model = residual_net()
    optimizer = SGD(decay_groups(model, 5e-4), lr=0.3, momentum=0.9,
                    nesterov=True)
    return run_of(model, train, recipe, optimizer, smoothed_loss,
                  Compose(RandomShift(2), RandomFlip()), seed)


def genuine(load: Callable[..., Arrays], name: str) -> list[Arrays]:
    """Both splits of a dataset; of a stand-in, Unmeasured."""
    try:
        sets = [load(split) for split in ("train", "test")]
    except DataError as error:
        raise Unmeasured(str(error)) from None
    if {data.source for data in sets} != {name}:
        raise Unmeasured(
            f"expected {name}, got {sets[0].source} digits; connect to a "
            f"network, or set COMPANION_DATA to a folder that has it")
    return sets


def seen_as(data: Arrays, transform: Callable[..., Batch]) -> Arrays:
    """The same examples through a transform."""
    return Arrays(*data.columns, transform=transform, source=data.source)


def attempt(task: str, run: Trainer, test: Arrays) -> dict[str, Any]:
    """Run a task by its recipe, and judge what it has reached."""
    print(f"{task}: {run.model.count():,} weights", flush=True)
    recipe, start = RECIPES[task], time.perf_counter()
    rows = taught(run, recipe.epochs, test, [ProgressBar()])
    return judged(task, rows[-1]["right"], "≥", recipe.target, start)


def milestone() -> Report:
    """LeNet-5 on all digits, a residual network on all photographs."""
    digits, photographs = genuine(mnist, "MNIST"), genuine(
        cifar10, "CIFAR-10")
    read, unread = [seen_as(data, framed) for data in digits]
    levels = standard(photographs[0].columns[0])
    named, unnamed = [seen_as(data, levels) for data in photographs]
    return tasks_done("pictures", [
        attempt("digits", reader(read, RECIPES["digits"]), unread),
        attempt("photographs", namer(named, RECIPES["photographs"]),
                unnamed)])
