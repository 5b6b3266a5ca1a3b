# Tangled from memoization: edit there, `make tangle`. sha256:f5eb7d371c3e
"""Tokens by a cache, one after the other, beside PyTorch's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.cache import KVCache, Request, Server, cache_bytes
from companion.native import set_threads
from companion.tensor.random import manual_seed
from companion.timing import MISSING, compare, limits, stamp
from companion.transformer import CONFIGS, GPT, GPTConfig


def torch_layers(state: dict[str, Any], width: int) -> Any:
    """PyTorch's linear layers and norms, by the names of their weights."""
    f = import_module("torch").nn.functional

    def linear(name: str, x: Any) -> Any:
        return f.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Any) -> Any:
        return f.layer_norm(x, (width,), state[f"{name}.weight"],
                            state.get(f"{name}.bias"))
    return linear, norm


def torch_decoder(net: GPT, threads: int) -> Callable[[int, int], Any]:
    """PyTorch's step with a cache: (token, place) to logits (V,)."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    c, f = net.config, torch.nn.functional
    state = {name: torch.tensor(tensor.numpy())
             for name, tensor in net.state_dict().items()}
    memory = torch.zeros(
        c.n_layer, 2, c.n_head, c.block_size, c.n_embd // c.n_head)

    linear, norm = torch_layers(state, c.n_embd)

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


def seeded(config: GPTConfig, device: str = "cpu") -> GPT:
    manual_seed(0)
    net = GPT(config)
    net.to(device)
    return net


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
    cache = KVCache(seeded(config, "lazy"))
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
        yield {**line, "case": case, **(found.line(
            lambda s: 1e6 * s / tokens,  # noqa: B023
        ) if found else MISSING)}
        bound = least_seconds(config, limits(threads).bandwidth)
        yield {**line, **MISSING, "case": f"{case}: the bound",
               "ours": 1e6 * bound, "peer_name": None}
    yield from serving(line, threads, quick)


def least_seconds(config: GPTConfig, bandwidth: float,
                  slots: int = 1) -> float:
    """To read weights and caches once, at GB/s: the bound of a step."""
    moved = 4 * config.parameters + cache_bytes(config, slots)
    return moved / bandwidth / 1e9


def most_tokens(config: GPTConfig, slots: int, bandwidth: float) -> float:
    """Tokens a second if weights and caches were read at so many GB/s."""
    return slots / least_seconds(config, bandwidth, slots)


def asked_for(config: GPTConfig, count: int, tokens: int,
              gap: float) -> list[Request]:
    """Requests of random prompts; one arrives every `gap` seconds."""
    draw = np.random.default_rng(0)
    times = np.cumsum(draw.exponential(gap, count) if gap else [0.0] * count)
    return [Request(draw.integers(0, config.vocab_size, 8).tolist(), tokens,
                    seed=i, arrival=times[i]) for i in range(count)]


def served(config: GPTConfig, slots: int, threads: int, tokens: int = 48,
           requests: int = 0, gap: float = 0.0) -> dict[str, float]:
    """Tokens a second of a server, and percentiles of its latency in ms.

    So many `requests` (as many as slots) of `tokens` each.
    """
    set_threads(threads)
    server = Server(KVCache(seeded(config, "lazy"), slots))
    # The third call is the first of a program.
    server.run(asked_for(config, max(slots, 3), 3, 0))
    answers = asked_for(config, requests or slots, tokens, gap)
    server.run(answers)
    end = max(r.times[-1] for r in answers)
    took = [1e3 * (r.times[-1] - r.arrival) for r in answers]
    first = [1e3 * (r.times[0] - r.arrival) for r in answers]
    return {"tokens/s": tokens * len(answers) / end,
            "p50": float(np.percentile(took, 50)),
            "p99": float(np.percentile(took, 99)),
            "first": float(np.percentile(first, 50))}


def serving(line: dict[str, Any], threads: int, quick: bool,
            ) -> Iterator[dict]:
    """Tokens a second for 1 to 32 requests, their latency, the bound."""
    bandwidth, config = limits(threads).bandwidth, CONFIGS["cpu"]
    for n in (1, 8) if quick else (1, 2, 4, 8, 16, 32):
        found = served(config, n, threads)
        rate = found.pop("tokens/s")
        yield {**line, **MISSING, "case": f"{n} requests", "ours": rate,
               "unit": "tokens/s", "peer_name": None, "latency_ms": found,
               "limit_fraction": rate / most_tokens(config, n, bandwidth)}
