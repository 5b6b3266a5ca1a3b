# Tangled from language, capture: edit there, `make tangle`. sha256:7d3c229850da  # noqa: E501
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from companion.autograd import no_grad
from companion.data import SPARE, Arrays, DataLoader, shakespeare
from companion.device import named
from companion.layers import Module
from companion.losses import cross_entropy
from companion.milestones.report import Report, Unmeasured, judged, tasks_done
from companion.optim import AdamW, decay_groups
from companion.tensor import Tensor
from companion.tensor.indexing import cat
from companion.tensor.random import Generator, manual_seed, randint
from companion.tokenizer import CharTokenizer
from companion.training import (
    Observer, ProgressBar, Trainer, evaluate, warmup_cosine)
from companion.transformer import (
    CONFIGS, GPT, Block, GPTConfig, next_token_loss, windows)

LENGTH, MARK = 8, 10  # digits in a row; the token behind them


def reversal(rows: int = 5_000, held: int = 1_000,
             seed: int = 0) -> tuple[Arrays, Arrays]:
    """Rows of digits to turn round: to learn from, and held back.

    x is a row, a mark, and the answer but for its last digit: (N, 16);
    y the answer, (N, 8). No row of digits occurs twice.
    """
    drawn = randint(0, 10, (rows, LENGTH), generator=Generator(seed))
    first = np.unique(drawn.numpy(), axis=0, return_index=True)[1]
    digits = drawn.numpy()[np.sort(first)]
    answer = np.ascontiguousarray(digits[:, ::-1])
    mark = np.full((len(digits), 1), MARK)
    x = np.concatenate([digits, mark, answer[:, :-1]], 1)
    return (Arrays(x[:-held], answer[:-held]),
            Arrays(x[-held:], answer[-held:]))


REVERSER = GPTConfig(2 * LENGTH, MARK + 1, n_layer=2, n_head=2, n_embd=64,
                     bias=False)


def runner(model: Module, batches: DataLoader, loss: Callable[..., Tensor],
           steps: int, lr: float, warmup: int) -> Trainer:
    """A run with nanoGPT's settings, ready for its first step."""
    optimizer = AdamW(decay_groups(model, 0.1), lr=lr, betas=(0.9, 0.99))
    return Trainer(model, optimizer, batches, loss, clip=1.0,
                   rate=warmup_cosine(steps, warmup, floor=0.1))


def answer_loss(model: Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of the answer's digits alone."""
    return cross_entropy(model(x)[:, LENGTH:], y)


class Alone(Block):
    """A block without attention: no place learns of another."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_2(x))


def reverser(train: Arrays, block: type[Block],
             steps: int = 100) -> Trainer:
    """A small GPT that has learned to turn rows round, or has tried."""
    manual_seed(0)
    model = GPT(REVERSER)
    model.h = [block(REVERSER) for _ in model.h]
    model.initialize()
    batches = DataLoader(train, batch_size=32, shuffle=True)
    run = runner(model, batches, answer_loss, steps, lr=3e-3, warmup=20)
    run.fit(steps)
    return run


def answered(model: Module, questions: Tensor) -> Tensor:
    """The likeliest digits after rows and marks (N, 9): (N, 8)."""
    ids = questions
    with no_grad():
        for _ in range(LENGTH):
            new = model(ids)[:, -1:].argmax(-1)
            ids = cat([ids, new], 1)
    return ids[:, LENGTH + 1:]


def turned_right(model: Module, data: Arrays) -> float:
    """The share of rows whose answer is right in every digit."""
    x, y = [Tensor(column) for column in data.columns]
    right = answered(model, x[:, :LENGTH + 1]) == y
    return float(right.numpy().all(1).mean())


@dataclass(frozen=True)
class Recipe:
    """A GPT, the numbers of its training, and what is asked of it.

    `target`: the loss for a letter, on letters held back, to be reached.
    """

    config: GPTConfig
    batch: int
    steps: int
    lr: float
    warmup: int
    target: float


RECIPES = {
    "short": Recipe(GPTConfig(32, 65, 2, 4, 64, bias=False),
                    16, 240, 5e-3, 20, 2.5),
    "cpu": Recipe(CONFIGS["cpu"], 12, 2000, 1e-3, 100, 1.92),
    "baby": Recipe(CONFIGS["baby"], 64, 5000, 1e-3, 100, 1.48)}


class Text(NamedTuple):
    """Letters as ids: nine tenths to learn from, the last tenth held."""

    tokenizer: CharTokenizer
    read: np.ndarray
    held: np.ndarray


def split(text: str) -> Text:
    """A text with its own letters as tokens."""
    tokenizer = CharTokenizer.train(text)
    ids = np.array(tokenizer.encode(text))
    cut = len(ids) * 9 // 10
    return Text(tokenizer, ids[:cut], ids[cut:])


def plays() -> Text:
    """All of tiny Shakespeare; its stand-in raises Unmeasured."""
    text = shakespeare()
    if text == SPARE["tinyshakespeare/input.txt"]:
        raise Unmeasured(
            "expected tiny Shakespeare, got a few lines; connect to a "
            "network, or set COMPANION_DATA to a folder with "
            "tinyshakespeare/input.txt")
    return split(text)


def letters_loss(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """`next_token_loss` of ids from anywhere, where the model is."""
    at = model.wte.weight.device
    return next_token_loss(model, x.to(at), y.to(at))


def held_loss(model: GPT, held: np.ndarray, every: int = 1) -> float:
    """The loss for a letter, on windows one behind the other.

    Each letter is asked once, but for the first and the last few; of
    the windows, `every` n-th.
    """
    size = model.config.block_size
    starts = np.arange(0, len(held) - size, size * every)
    return evaluate(model, letters_loss, *windows(held, size)[starts],
                    size=32)


def learner(recipe: Recipe, text: Text, seed: int = 0,
            device: str = "cpu") -> tuple[GPT, Trainer]:
    """A model and its run on windows of the text, before step one."""
    manual_seed(seed)
    config = replace(recipe.config, vocab_size=text.tokenizer.n_vocab)
    batches = DataLoader(windows(text.read, config.block_size),
                         batch_size=recipe.batch, shuffle=True, seed=seed)
    model = GPT(config)
    model.to(named(device))
    run = runner(model, batches, letters_loss, recipe.steps, recipe.lr,
                 recipe.warmup)
    if device in COMPILERS:
        import_module(COMPILERS[device]).compiled(run)
    return model, run


def turning() -> list[dict[str, Any]]:
    """Turning rows round, with attention and without it."""
    train, held = reversal()
    rows = []
    for task, block, sign, asked in (("attention", Block, "≥", 0.99),
                                     ("without", Alone, "≤", 0.01)):
        start = time.perf_counter()
        share = turned_right(reverser(train, block).model, held)
        rows.append(judged(task, share, sign, asked, start))
    return rows


def reading(recipe: Recipe, text: Text,
            observers: Sequence[Observer] = ()) -> dict[str, Any]:
    """Reading plays, judged by the tenth that was held back."""
    start = time.perf_counter()
    model, run = learner(recipe, text)
    run.observers.extend(observers)
    run.fit(recipe.steps)
    return judged("plays", held_loss(model, text.held), "≤",
                  recipe.target, start)


def milestone() -> Report:
    """Rows turned round, and 2,000 steps on tiny Shakespeare."""
    text = plays()
    return tasks_done("language", [
        *turning(), reading(RECIPES["cpu"], text, [ProgressBar()])])


COMPILERS: dict[str, str] = {
    "lazy": "companion.compiler.capture",
}
