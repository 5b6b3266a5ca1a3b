# Tangled from capture: edit there, `make tangle`. sha256:1c5900f05a95
"""Captured steps beside PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import starmap
from typing import Any

import numpy as np

from companion.activations import gelu, relu
from companion.compiler.capture import jit
from companion.layers import LayerNorm, Linear, Sequential
from companion.losses import cross_entropy
from companion.milestones.conv_bench import (
    photograph_step, torch_photograph_step)
from companion.milestones.gpt_bench import torch_step
from companion.native import set_threads
from companion.optim import SGD, AdamW
from companion.tensor import Tensor
from companion.tensor.random import manual_seed, rand, randint, randn
from companion.timing import beside, stamp
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


def captured_rows(name: str, rows: int, threads: int) -> Callable[[], None]:
    """A function of rows of 128, or a step that has them as weights."""
    set_threads(threads)
    x, norm = randn(rows, 128, device="lazy"), LayerNorm(128).to("lazy")
    weight = x.clone().requires_grad_()
    weight.grad, optimizer = x * 0.5, AdamW([weight])
    functions: dict[str, Callable[[Tensor], Any]] = {
        "gelu": gelu, "softmax": lambda x: x.softmax(-1),
        "layer norm": norm, "AdamW": lambda _: optimizer.step()}
    for p in norm.parameters():
        p.requires_grad_(False)
    run = jit(functions[name])
    return lambda: discard(run(x))


def torch_rows(name: str, rows: int, threads: int) -> Callable[[], None]:
    """The same by PyTorch."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    x, norm = torch.randn(rows, 128), torch.nn.LayerNorm(128)
    weight = x.clone().requires_grad_()
    weight.grad, optimizer = x * 0.5, torch.optim.AdamW([weight])
    functions = {
        "gelu": torch.nn.functional.gelu, "softmax": lambda x: x.softmax(-1),
        "layer norm": norm, "AdamW": lambda _: optimizer.step()}
    norm.requires_grad_(False)
    return lambda: discard(functions[name](x))


def discard(_: Any) -> None:
    """No result: 32 MB would take longer to send than to compute."""


def captured_epoch(threads: int) -> Callable[[], Any]:
    """An epoch of 784-128-10 on as many pictures as MNIST has."""
    set_threads(threads)
    net = Sequential(Linear(784, 128), relu, Linear(128, 10)).to("lazy")
    by = SGD(net.parameters(), lr=0.1)
    batches = [(rand(128, 784, device="lazy"),
                randint(0, 10, (128,), device="lazy")) for _ in range(469)]

    @jit
    def step(x: Tensor, y: Tensor) -> None:
        by.zero_grad()
        cross_entropy(net(x), y).backward()
        by.step()
    return lambda: discard(list(starmap(step, batches)))


def torch_epoch(threads: int) -> Callable[[], Any]:
    """The same by PyTorch."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    net = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(),
                              torch.nn.Linear(128, 10))
    by = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = [(torch.rand(128, 784), torch.randint(10, (128,)))
               for _ in range(469)]

    def step(x: Any, y: Any) -> None:
        by.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        by.step()
    return lambda: discard(list(starmap(step, batches)))


def smaller(threads: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows in and beyond the cache, an optimizer, and an epoch."""
    for i, name in enumerate(["gelu", "softmax", "layer norm", "AdamW"] * 2):
        rows = 768 if i < 4 else 65536  # in the cache, and beyond it
        job = name, rows, threads
        yield {"unit": "µs", "case": f"{name}, {rows} x 128", **beside(
            partial(captured_rows, *job), partial(torch_rows, *job),
            quick, 1e-6)}
    yield {"unit": "ms", "case": "an epoch of 784-128-10", **beside(
        partial(captured_epoch, threads), partial(torch_epoch, threads),
        quick, 1e-3)}
    yield {"unit": "ms", "case": "a step on photographs", **beside(
        partial(photograph_step, threads, "lazy", jit),
        partial(torch_photograph_step, threads), quick, 1e-3)}


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
    yield from [line | found for found in smaller(threads, quick)]
    if not quick:
        # With dropout each draws its own numbers: no losses agree.
        baby = CONFIGS["baby"], 4, threads
        yield {**line, "unit": "ms",
               "case": "a step of the baby, batch 4, eager",
               **beside(partial(captured_step, *baby),
                        partial(torch_step, *baby), quick, 1e-3)}
