# Tangled from capture: edit there, `make tangle`. sha256:353952c34c72
"""A captured training step of a GPT beside PyTorch's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from companion.compiler.capture import jit
from companion.device import named
from companion.milestones.gpt_bench import torch_step
from companion.native import set_threads
from companion.optim import AdamW
from companion.tensor import Tensor
from companion.tensor.random import manual_seed, randint
from companion.timing import MISSING, compare, stamp
from companion.transformer import CONFIGS, GPT, GPTConfig, next_token_loss


def captured_step(config: GPTConfig, batch: int = 12,
                  threads: int = 1) -> Callable[[], float]:
    """The step of `gpt_bench`, captured; gives its loss."""
    set_threads(threads)
    manual_seed(0)
    place = named("lazy")
    net = GPT(config).to(place)
    x, y = [randint(0, config.vocab_size, (batch, config.block_size))
            .to(place) for _ in "xy"]
    optimizer = AdamW(net.parameters(), lr=1e-3)

    @jit
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = next_token_loss(net, x, y)
        loss.backward()
        optimizer.step()
        return loss.detach()
    return lambda: float(step().item())


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Milliseconds of a captured step, and of PyTorch's."""
    config = CONFIGS["cpu"]
    for compiled in (False, True)[:1 if quick else 2]:
        found = compare(
            partial(captured_step, config, threads=threads),
            partial(torch_step, config, threads=threads, compiled=compiled),
            rounds=5 if quick else 15,
            agree=partial(np.testing.assert_allclose, rtol=1e-4)
        ) if importlib.util.find_spec("torch") else None
        yield {"bench": "capture", "threads": threads, "unit": "ms",
               "case": f"a step, {'compiled' if compiled else 'eager'}",
               **stamp("torch"),
               **(found.line(lambda s: 1e3 * s) if found else MISSING)}
