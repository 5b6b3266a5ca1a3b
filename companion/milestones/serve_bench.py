# Tangled from serving: edit there, `make tangle`. sha256:651e3267f6b3
"""Waiting for tokens over HTTP: a small compiled GPT, and an eager one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from companion.data import shakespeare
from companion.milestones.decode_bench import most_tokens
from companion.milestones.language import Text, split
from companion.milestones.serving import (
    heard, hosted, keep, questions, started)
from companion.quantize import lightened
from companion.tensor.random import manual_seed
from companion.timing import MISSING, Comparison, limits, stamp, turns
from companion.transformer import CONFIGS, GPT, GPTConfig

Heard = tuple[float, np.ndarray]  # what `heard` returns


def waits(rounds: Sequence[Heard]) -> dict[str, float]:
    """Seconds for a token, of all clients together; of one until the
    first letter, and from a letter to the next: half of them are under
    p50, and nearly all under p99."""
    times = np.concatenate([t for _, t in rounds])
    found = {"tokens": sum(s for s, _ in rounds) / times.size}
    for name, some in (("first", times[:, 0]), ("next", np.diff(times))):
        found |= {f"{name} p{q}": float(np.percentile(some, q))
                  for q in (50, 99)}
    return found


def race(urls: Sequence[str], clients: int, asked: list[dict[str, Any]],
         count: int) -> dict[str, Comparison]:
    """Two services in turn, `count` times; each of `waits` compared."""
    rounds = [[heard(url, clients, asked) for url in urls]
              for _ in range(count + 1)]
    each = [[waits([one]) for one in pair] for pair in rounds]
    # Percentiles of all that was heard, but for the round that warms up.
    ours, peer = [waits(one) for one in zip(*rounds[1:])]
    return {name: turns(
        iter([pair[0][name] for pair in each]).__next__,
        iter([pair[1][name] for pair in each]).__next__, count)._replace(
            ours=ours[name], peer=peer[name]) for name in ours}


@contextmanager
def services(text: Text, config: GPTConfig, slots: int,
             ) -> Iterator[tuple[str, str]]:
    """Addresses of a model of few bits, compiled, and of it as it was."""
    manual_seed(0)
    model = GPT(config)
    with tempfile.TemporaryDirectory() as home:
        small, plain = [
            keep(one, text.tokenizer, Path(home, name)) for name, one in (
                ("small", lightened(model)), ("plain", model))]
        ways = [[*hosted(folder), "--slots", str(slots), "--device", device]
                for folder, device in ((small, "lazy"), (plain, "cpu"))]
        with started(ways[0]) as ours, started(ways[1]) as peer:
            yield ours, peer


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Tokens a second over HTTP, and how long one waits for the next."""
    counts, rounds = ((1, 8), 3) if quick else ((1, 2, 4, 8, 16, 32), 9)
    lines = shakespeare()  # a few, where the plays are missing
    text = split(lines * max(1, 20_000 // len(lines)))
    config = replace(CONFIGS["cpu"], vocab_size=text.tokenizer.n_vocab)
    line = {"bench": "serve", "threads": threads, **stamp("numpy"),
            "peer_name": "eager float32"}
    bandwidth = limits(threads).bandwidth
    with services(text, config, max(counts)) as urls:
        for n in counts:
            asked = questions(text, config.block_size, n)
            who = f"{n} client{'s' * (n > 1)}"
            for name, found in race(urls, n, asked, rounds).items():
                rate = name == "tokens"
                yield {**line, "case": f"{who}, {name}",
                       "unit": "tokens/s" if rate else "ms",
                       **found.line(lambda s: 1 / s if rate  # noqa: B023
                                    else 1e3 * s)}
            yield {**line, **MISSING, "case": f"{who}: the bound",
                   "unit": "tokens/s", "peer_name": None,
                   "ours": most_tokens(config, n, bandwidth)}
