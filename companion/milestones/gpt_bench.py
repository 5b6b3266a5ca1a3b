# Tangled from transformers: edit there, `make tangle`. sha256:dbbe68a28c5a
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.device import CPU
from companion.native import set_threads
from companion.ops import ATTENTION, ATTENTION_GRADIENT, FAMILIES, MATMUL
from companion.optim import AdamW
from companion.tensor.random import manual_seed, randint
from companion.timing import MISSING, Timed, best, compare, stamp
from companion.transformer import CONFIGS, GPT, GPTConfig, next_token_loss

SPENT_ON = dict.fromkeys(FAMILIES["elementwise"], "elementwise") | {
    MATMUL: "matrix products", ATTENTION: "attention",
    ATTENTION_GRADIENT: "attention"}
REST = "all other operations"


def training_step(config: GPTConfig, batch: int = 12, threads: int = 1,
                  device: Any = CPU) -> Callable[[], float]:
    """A step of AdamW on random windows, ready to run; gives its loss."""
    set_threads(threads)
    manual_seed(0)
    net = GPT(config).to(device)
    x, y = [randint(0, config.vocab_size, (batch, config.block_size))
            .to(device) for _ in "xy"]
    optimizer = AdamW(net.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = next_token_loss(net, x, y)
        loss.backward()
        optimizer.step()
        return float(loss.item())
    return step


def shares(config: GPTConfig, threads: int = 1,
           rounds: int = 3) -> dict[str, float]:
    """Seconds of the quickest step, by what they were spent on.

    Python is what the operations leave of the clock's time.
    """
    device, found = Timed(CPU), []
    step = training_step(config, threads=threads, device=device)
    for _ in range(rounds):
        device.calls.clear()
        total = best(step, 1)
        spent = dict.fromkeys(
            ("matrix products", "attention", "elementwise", REST), 0.0)
        for op, seconds, _ in device.calls:
            spent[SPENT_ON.get(op, REST)] += seconds
        found.append(spent | {"Python": total - sum(spent.values())})
    return min(found, key=lambda spent: sum(spent.values()))


def torch_logits(state: dict[str, Any], config: GPTConfig,
                 index: Any) -> Any:
    """What a GPT of PyTorch in training makes of `index`, with weights of
    ours; `config.dropout` acts where ours does, on other random numbers."""
    f = import_module("torch").nn.functional
    drop = partial(f.dropout, p=config.dropout)

    def linear(name: str, x: Any) -> Any:
        return f.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Any) -> Any:
        return f.layer_norm(x, (config.n_embd,), state[f"{name}.weight"],
                            state.get(f"{name}.bias"))

    places = state["wpe.weight"][:index.shape[-1]]
    x = drop(f.embedding(index, state["wte.weight"]) + places)
    for at in [f"h.{i}" for i in range(config.n_layer)]:
        parts = linear(f"{at}.attn.c_attn", norm(f"{at}.ln_1", x))
        q, k, v = [part.unflatten(-1, (config.n_head, -1)).transpose(-3, -2)
                   for part in parts.chunk(3, -1)]
        y = f.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=config.dropout)
        y = y.transpose(-3, -2).flatten(-2)
        x = x + drop(linear(f"{at}.attn.c_proj", y))
        hidden = f.gelu(linear(f"{at}.mlp.c_fc", norm(f"{at}.ln_2", x)),
                        approximate=config.approximate)
        x = x + drop(linear(f"{at}.mlp.c_proj", hidden))
    return f.linear(norm("ln_f", x), state["wte.weight"])


def torch_step(config: GPTConfig, batch: int = 12, threads: int = 1,
               compiled: bool = False) -> Callable[[], float]:
    """PyTorch's step, from the same weights on the same windows."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    manual_seed(0)
    net = GPT(config)
    state = {name: torch.tensor(p.numpy()).requires_grad_()
             for name, p in net.state_dict().items()}
    x, y = [torch.tensor(randint(
        0, config.vocab_size, (batch, config.block_size)).numpy())
        for _ in "xy"]
    # At its best: compiled, and the update of all weights in one sweep.
    optimizer = torch.optim.AdamW(state.values(), lr=1e-3,
                                  fused=compiled or None)
    model = torch.compile(torch_logits) if compiled else torch_logits

    def step() -> float:
        optimizer.zero_grad()
        logits = model(state, config, x)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        return float(loss.item())
    return step


def race(config: GPTConfig, threads: int, quick: bool,
         compiled: bool) -> dict[str, Any]:
    """Milliseconds a step of ours and of PyTorch's, in turn."""
    if importlib.util.find_spec("torch") is None:
        return MISSING
    try:
        found = compare(
            partial(training_step, config, threads=threads),
            partial(torch_step, config, threads=threads, compiled=compiled),
            rounds=3 if quick else 15,
            agree=partial(np.testing.assert_allclose, rtol=1e-4))
    except RuntimeError as error:
        if not compiled:
            raise
        return MISSING | {"refused": f"it does not compile here ({error})"}
    return found.line(lambda s: 1e3 * s)


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """A training step beside PyTorch's, and where the time of ours goes."""
    config, compiled = CONFIGS["cpu"], (False, True)
    # The stamp loads PyTorch, once for all that are forked below.
    line = {"bench": "gpt", "threads": threads, "unit": "ms",
            **stamp("torch")}
    for how in compiled[:1 if quick else 2]:
        yield {**line, "case": f"a step, {'compiled' if how else 'eager'}",
               **race(config, threads, quick, how)}
    for name, seconds in shares(config, threads).items():
        yield {**line, "case": name, **MISSING,
               "ours": seconds * 1e3, "peer_name": None}
