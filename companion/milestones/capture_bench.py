# Tangled from capture: edit there, `make tangle`. sha256:45b58963fddf
"""Captured steps beside PyTorch's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.compiler.capture import jit
from companion.milestones.gpt_bench import torch_step
from companion.native import set_threads
from companion.optim import AdamW
from companion.tensor import Tensor
from companion.tensor.random import manual_seed, randint, randn
from companion.timing import MISSING, compare, stamp
from companion.transformer import CONFIGS, GPT, GPTConfig, next_token_loss


def small_chain(threads: int = 1) -> Callable[[], Any]:
    """A product of 32 by 32, a bias, relu, sum; forward and backward."""
    set_threads(threads)
    manual_seed(0)
    x, w, b = [randn(*shape, device="lazy")
               for shape in ((32, 32), (32, 32), (32,))]
    w.requires_grad_(), b.requires_grad_()

    @jit
    def chain() -> None:
        w.grad = b.grad = None
        (x @ w + b).relu().sum().backward()
    for _ in range(3):
        chain()
    return chain


def torch_chain(threads: int = 1) -> Callable[[], None]:
    """The same by PyTorch, which builds its records anew each time."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    x, w, b = [torch.randn(shape) for shape in ((32, 32), (32, 32), 32)]
    w.requires_grad_(), b.requires_grad_()

    def chain() -> None:
        w.grad = b.grad = None
        (x @ w + b).relu().sum().backward()
    return chain


def captured_step(config: GPTConfig, batch: int = 12,
                  threads: int = 1) -> Callable[[], float]:
    """The step of `gpt_bench`, captured; gives its loss."""
    set_threads(threads)
    manual_seed(0)
    net = GPT(config).to("lazy")
    x, y = [randint(0, config.vocab_size, (batch, config.block_size))
            for _ in "xy"]
    optimizer = AdamW(net.parameters(), lr=1e-3)

    @jit
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = next_token_loss(net, x, y)
        loss.backward()
        optimizer.step()
        return loss.detach()
    return lambda: float(step(x, y).item())


def beside(ours: Any, peer: Any, quick: bool, unit: float,
           **agree: Any) -> dict[str, Any]:
    """A measurement of both, in seconds divided by `unit`."""
    if importlib.util.find_spec("torch") is None:
        return MISSING
    found = compare(ours, peer, rounds=3 if quick else 15, **agree)
    return found.line(lambda s: s / unit)


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Captured steps and a captured chain, and PyTorch's."""
    line = {"bench": "capture", "threads": threads, **stamp("torch")}
    for compiled in (False, True)[:1 if quick else 2]:
        yield {**line, "unit": "ms",
               "case": f"a step, {'compiled' if compiled else 'eager'}",
               **beside(partial(captured_step, CONFIGS["cpu"],
                                threads=threads),
                        partial(torch_step, CONFIGS["cpu"], threads=threads,
                                compiled=compiled), quick, 1e-3,
                        agree=partial(np.testing.assert_allclose,
                                      rtol=1e-4))}
    yield {**line, "unit": "µs", "case": "a small chain", **beside(
        partial(small_chain, threads), partial(torch_chain, threads),
        quick, 1e-6)}
    if not quick:
        # With dropout each draws its own numbers: no losses agree.
        baby = CONFIGS["baby"], 4, threads
        yield {**line, "unit": "ms",
               "case": "a step of the baby, batch 4, eager",
               **beside(partial(captured_step, *baby),
                        partial(torch_step, *baby), quick, 1e-3)}
