# Tangled from perceptron: edit there, `make tangle`. sha256:9eaa5b3a64e4
from __future__ import annotations

import time

from companion.dtype import float32
from companion.milestones.report import Report
from companion.tensor import Tensor
from companion.tensor.creation import zeros
from companion.tensor.operands import where
from companion.tensor.random import Generator, randint, randn

SIDE, SQUARE = 20, 4


def cards(n: int, draw: Generator) -> tuple[Tensor, Tensor]:
    """n pictures (n, 400) of a square, and its side: -1 left, 1 right."""
    right = randint(0, 2, (n,), generator=draw)
    room = SIDE // 2 - SQUARE + 1
    x = randint(0, room, (n,), generator=draw) + right * (SIDE // 2)
    y = randint(0, SIDE - SQUARE + 1, (n,), generator=draw)
    pictures = zeros(n, SIDE, SIDE)
    for picture, i, j in zip(pictures, y.tolist(), x.tolist()):
        picture[i:i + SQUARE, j:j + SQUARE] = 1
    return pictures.reshape(n, -1), right * 2 - 1


class Perceptron:
    """Signs of weighted sums, and Rosenblatt's rule (1958)."""

    def __init__(self, inputs: int):
        self.weight, self.bias = zeros(inputs), zeros(1)
        self.mistakes = 0

    def scores(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias

    def learn(self, x: Tensor, t: int) -> None:
        """Show one example (inputs,) with its answer t of -1 or 1."""
        if self.scores(x).item() * t <= 0:
            self.weight.assign(self.weight + x * t)
            self.bias.assign(self.bias + t)
            self.mistakes += 1

    def accuracy(self, x: Tensor, t: Tensor) -> float:
        right = (self.scores(x) * t) > 0
        return right.to(float32).mean().item()


def fifty_cards(seed: int) -> tuple[float, int]:
    """Accuracy on 1,000 new cards after 50, and the mistakes so far."""
    draw = Generator(seed)
    shown, answers = cards(50, draw)
    unseen, truth = cards(1000, draw)
    machine = Perceptron(SIDE * SIDE)
    for x, t in zip(shown, answers.tolist()):
        machine.learn(x, t)
    return machine.accuracy(unseen, truth), machine.mistakes


def separable(n: int, margin: float, draw: Generator,
              inputs: int = 10) -> tuple[Tensor, Tensor]:
    """n random points on the sphere, at least `margin` from a cut."""
    cut = randn(inputs, generator=draw)
    cut = cut / cut.square().sum().sqrt()
    x = randn(20 * n, inputs, generator=draw)
    x = x / x.square().sum(1, keepdim=True).sqrt()
    height = x @ cut
    x, height = [part[height.abs() > margin] for part in (x, height)]
    return x[:n], where(height[:n] > 0, 1, -1)


def until_right(x: Tensor, t: Tensor, passes: int = 100) -> Perceptron:
    """Show all examples again and again until none is wrong."""
    pupil = Perceptron(x.shape[1])
    answers = t.tolist()
    for _ in range(passes):
        before = pupil.mistakes
        for example, answer in zip(x, answers):
            pupil.learn(example, answer)
        if pupil.mistakes == before:
            break
    return pupil


def generalization(seed: int) -> float:
    """Accuracy on new points after learning 300 separable ones."""
    draw = Generator(seed)
    x, t = separable(1300, 0.1, draw)
    return until_right(x[:300], t[:300]).accuracy(x[300:], t[300:])


def milestone() -> Report:
    """Rosenblatt's rule on separable data, five seeds."""
    start = time.perf_counter()
    reached = [generalization(seed) for seed in range(5)]
    rows = [{"seed": seed, "accuracy": round(value, 4)}
            for seed, value in enumerate(reached)]
    return Report("perceptron", "lowest accuracy on unseen points",
                  min(reached), 0.95, rows, time.perf_counter() - start)
