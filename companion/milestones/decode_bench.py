# Tangled from memoization: edit there, `make tangle`. sha256:1cef15d4612e
"""Tokens by a cache, one after the other, beside PyTorch's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.cache import KVCache, Request, Server
from companion.native import set_threads
from companion.tensor.random import manual_seed
from companion.timing import MISSING, compare, limits, stamp
from companion.transformer import CONFIGS, GPT, GPTConfig


def torch_decoder(net: GPT, threads: int) -> Callable[[int, int], Any]:
    """PyTorch's step with a cache: (token, place) to logits (V,)."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    c, f = net.config, torch.nn.functional
    state = {name: torch.tensor(tensor.numpy())
             for name, tensor in net.state_dict().items()}
    memory = torch.zeros(
        c.n_layer, 2, c.n_head, c.block_size, c.n_embd // c.n_head)

    def linear(name: str, x: Any) -> Any:
        return f.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Any) -> Any:
        return f.layer_norm(x, (c.n_embd,), state[f"{name}.weight"],
                            state.get(f"{name}.bias"))

    @torch.inference_mode()
    def step(token: int, t: int) -> Any:
        x = state["wte.weight"][token:token + 1] + state["wpe.weight"][t]
        for at, own in [(f"h.{i}", memory[i]) for i in range(c.n_layer)]:
            q, *new = linear(f"{at}.attn.c_attn", norm(f"{at}.ln_1", x)).view(
                3, c.n_head, 1, -1)
            own[0, :, t:t + 1], own[1, :, t:t + 1] = new
            y = f.scaled_dot_product_attention(
                q, own[0, :, :t + 1], own[1, :, :t + 1])
            x = x + linear(f"{at}.attn.c_proj", y.view(1, -1))
            x = x + linear(f"{at}.mlp.c_proj", f.gelu(linear(
                f"{at}.mlp.c_fc", norm(f"{at}.ln_2", x)),
                approximate=c.approximate))
        return linear("wte", norm("ln_f", x))[0]
    return step


def seeded(config: GPTConfig) -> GPT:
    manual_seed(0)
    return GPT(config)


def written(step: Callable[[int, int], Any],
            config: GPTConfig) -> Callable[[], list[int]]:
    """A text as long as the context, the likeliest token each time."""
    def run() -> list[int]:
        text = [0]
        for place in range(config.block_size - 1):
            text.append(int(step(text[-1], place).argmax()))
        return text
    return run


def our_text(config: GPTConfig, threads: int) -> Callable[[], list[int]]:
    set_threads(threads)
    net = seeded(config).to("lazy")
    cache = KVCache(net)
    return written(lambda token, t: cache.step([token], [t])[0], config)


def torch_text(config: GPTConfig, threads: int) -> Callable[[], list[int]]:
    return written(torch_decoder(seeded(config), threads), config)


CASES = {"cpu": "the CPU configuration", "baby": "baby GPT"}


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Microseconds a token, of ours and of PyTorch's, and the bound."""
    there = importlib.util.find_spec("torch")
    line = {"bench": "decode", "threads": threads, "unit": "µs",
            **stamp("torch")}
    for name, case in list(CASES.items())[:1 if quick else 2]:
        config = CONFIGS[name]
        tokens = config.block_size - 1
        found = compare(
            partial(our_text, config, threads),
            partial(torch_text, config, threads), rounds=5 if quick else 9,
            agree=np.testing.assert_array_equal) if there else None
        bound = least_seconds(config, limits(threads).bandwidth)
        yield {**line, "case": case, **(found.line(
            lambda s, n=tokens: 1e6 * s / n,
            bound * tokens / found.ours) if found else MISSING)}


def least_seconds(config: GPTConfig, bandwidth: float) -> float:
    """To read weights and cache once, at GB/s: the bound of a token."""
    cached = 2 * config.n_layer * config.block_size * config.n_embd
    return 4 * (config.parameters + cached) / bandwidth / 1e9


def served(config: GPTConfig, slots: int, threads: int, tokens: int = 24,
           requests: int = 0, gap: float = 0.0) -> dict[str, float]:
    """Tokens a second of a server, and percentiles of its latency in ms.

    `requests` (as many as slots) of `tokens` each, of which one arrives
    every `gap` seconds, at random.
    """
    set_threads(threads)
    server = Server(KVCache(seeded(config).to("lazy"), slots))
    draw = np.random.default_rng(0)

    def run(count: int) -> list[Request]:
        times = np.cumsum(draw.exponential(gap, count)) if gap else [0] * count
        asked = [Request(draw.integers(0, config.vocab_size, 8).tolist(),
                         tokens, i, times[i]) for i in range(count)]
        server.run(asked)
        return asked

    run(slots)  # compiles
    answers = run(requests or slots)
    end = max(r.times[-1] for r in answers)
    took = [1e3 * (r.times[-1] - r.arrival) for r in answers]
    first = [1e3 * (r.times[0] - r.arrival) for r in answers]
    return {"tokens/s": tokens * len(answers) / end,
            "p50": float(np.percentile(took, 50)),
            "p99": float(np.percentile(took, 99)),
            "first": float(np.percentile(first, 50))}
