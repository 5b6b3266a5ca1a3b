# Tangled from transformers: edit there, `make tangle`. sha256:ad46f69be786
from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from companion.activations import gelu
from companion.attention import MultiHeadAttention
from companion.data import Arrays
from companion.dtype import float64
from companion.embedding import Embedding
from companion.layers import Dropout, LayerNorm, Linear, Module
from companion.losses import cross_entropy
from companion.native import tell
from companion.tensor import Tensor
from companion.tensor.creation import arange
from companion.tensor.random import GENERATOR, Generator, rand, randn
from companion.training import evaluating, read_safetensors, write_atomically


def windows(ids: Any, length: int) -> Arrays:
    """Every stretch of `length` ids, beside the one an id further on.

    ids (N,) give N - length examples, which share the memory of `ids`.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) <= length:
        raise ValueError(f"windows: expected a row of more than {length} "
                         f"ids, got an array of shape {ids.shape}")
    rows = np.lib.stride_tricks.sliding_window_view(ids, length + 1)
    return Arrays(rows[:, :-1], rows[:, 1:])


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT, by nanoGPT's names (Karpathy, 2023).

    `bias`: whether linear layers and norms have one; `approximate`: how
    `gelu` is computed ("none", or GPT-2's "tanh").
    """

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    approximate: str = "none"

    def __post_init__(self) -> None:
        sizes = dict(list(vars(self).items())[:5])
        if any(not isinstance(n, int) or n < 1 for n in sizes.values()
               ) or self.n_embd % self.n_head:
            raise ValueError(f"GPTConfig: expected whole sizes of at least "
                             f"1, and an n_embd that n_head divides; got "
                             f"{sizes}")

    @property
    def parameters(self) -> int:
        """How many numbers training may change."""
        c, vectors = self.n_embd, 13 if self.bias else 2
        return ((self.vocab_size + self.block_size) * c
                + self.n_layer * (12 * c * c + vectors * c)
                + (2 if self.bias else 1) * c)

    def flops(self, length: int | None = None) -> int:
        """Operations to read a token, among `length` (block_size).

        A step of training takes three times as many: one for the result,
        two for the gradients of both sides of each product. Of attention
        all pairs count, also those that a causal mask hides.
        """
        c, length = self.n_embd, length or self.block_size
        matrices = self.n_layer * 12 * c * c + self.vocab_size * c
        return 2 * matrices + self.n_layer * 4 * length * c


class MLP(Module):
    """(…, C) -> (…, C), by a hidden layer four times as wide."""

    def __init__(self, config: GPTConfig):
        width = config.n_embd
        self.c_fc = Linear(width, 4 * width, bias=config.bias)
        self.c_proj = Linear(4 * width, width, bias=config.bias)
        self.approximate = config.approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x), self.approximate))


class Block(Module):
    """Attention and an MLP that add to the stream x (…, T, C)."""

    def __init__(self, config: GPTConfig):
        c = config
        self.ln_1 = LayerNorm(c.n_embd, bias=c.bias)
        self.attn = MultiHeadAttention(
            c.n_embd, c.n_head, bias=c.bias, dropout=c.dropout,
            is_causal=True)
        self.ln_2 = LayerNorm(c.n_embd, bias=c.bias)
        self.mlp = MLP(c)
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x)))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class GPT(Module):
    """A decoder-only transformer (Radford et al., 2019).

    Token ids (…, T) give logits (…, T, vocab_size): those at t belong
    to the token after t, and depend on those up to t. At most
    `block_size` ids. The last layer's weights are `wte`'s.
    """

    def __init__(self, config: GPTConfig):
        c = self.config = config
        self.wte = Embedding(c.vocab_size, c.n_embd)
        self.wpe = Embedding(c.block_size, c.n_embd)
        self.dropout = Dropout(c.dropout)
        self.h = [Block(c) for _ in range(c.n_layer)]
        self.ln_f = LayerNorm(c.n_embd, bias=c.bias)
        self.initialize()

    def hidden(self, index: Tensor) -> Tensor:
        """The residual stream at its end, normalized: (…, T, n_embd)."""
        most, length = self.config.block_size, (0, *index.shape)[-1]
        if not 0 < length <= most:
            raise ValueError(f"GPT: expected ids (…, T), T from 1 to the "
                             f"context of {most}, got {index.shape}; of a "
                             f"longer text take x[..., -{most}:]")
        places = self.wpe(arange(length, device=self.wpe.weight.device))
        x = self.dropout(self.wte(index) + places)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def logits(self, x: Tensor) -> Tensor:
        """How well each token fits the end of the stream."""
        return x @ self.wte.weight.T

    def forward(self, index: Tensor) -> Tensor:
        return self.logits(self.hidden(index))

    def initialize(self) -> None:
        """Matrices from N(0, 0.02²); what adds to the stream smaller.

        By 1 / sqrt(2 · n_layer), the root of the number of additions.
        """
        scale = (2 * self.config.n_layer) ** -0.5
        for name, p in self.named_parameters():
            if p.ndim == 2:
                adds = name.endswith("c_proj.weight")
                std = 0.02 * (scale if adds else 1)
                draw = randn(*p.shape, dtype=p.dtype, device=p.device)
                p.detach().assign(draw * std)

    def next_logits(self, ids: Sequence[int]) -> np.ndarray:
        """(vocab_size,) for the token after `ids`, without dropout.

        The model sees the last `block_size` of them.
        """
        index = Tensor(ids[-self.config.block_size:],
                       device=self.wte.weight.device)
        with evaluating(self):
            last = self.logits(self.hidden(index)[-1]).numpy()
        if not np.isfinite(last).all():
            raise ValueError("generate: the logits are not finite; the "
                             "weights of this model are broken")
        return last

    def generate(self, prompt: Iterable[int], max_new_tokens: int,
                 temperature: float = 1.0, top_k: int | None = None,
                 top_p: float | None = None,
                 stop: int | Collection[int] = (),
                 generator: Generator = GENERATOR) -> Iterator[int]:
        """New ids after those of `prompt`, each as soon as it is drawn.

        Ends after `max_new_tokens`, or before a token of `stop`. `choices`
        for the rest; list(…) collects them.
        """
        check_choice(temperature, top_k, top_p)
        text = [int(i) for i in prompt]
        check_lengths(len(text), max_new_tokens, self.config.block_size)
        stops = set(stop) if isinstance(stop, Collection) else {stop}

        def written() -> Iterator[int]:
            for _ in range(max_new_tokens):
                found = choices(self.next_logits(text),
                                temperature, top_k, top_p)
                new = drawn(*found, generator)
                if new in stops:
                    return
                text.append(new)
                yield new
        return written()

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to a safetensors file."""
        arrays = {name: np.asarray(tensor.numpy(), order="C")
                  for name, tensor in self.state_dict().items()}
        about = {"config": json.dumps(asdict(self.config))}
        write_atomically(Path(path), save(arrays, about))

    @classmethod
    def load(cls, path: str | Path) -> GPT:
        """What `save` wrote, in float32; else a ValueError says why."""
        try:
            arrays, about = read_safetensors(Path(path))
            model = cls(GPTConfig(**json.loads(about["config"])))
            model.load_state_dict(arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no GPT that `save` wrote "
                             f"({type(error).__name__}: {error})") from None
        return model

    @classmethod
    def from_huggingface(cls, folder: str | Path) -> GPT:
        """GPT-2 from a folder with config.json and model.safetensors.

        Weights in Hugging Face's layout, loaded in float32, without
        dropout. A ValueError says what does not fit.
        """
        config, weights = [Path(folder) / name for name in (
            "config.json", "model.safetensors")]
        try:
            model = cls(config_of(json.loads(config.read_text())))
            arrays, _ = read_safetensors(weights)
            model.load_state_dict(from_conv1d(arrays))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} holds no GPT-2 that we can read "
                             f"({type(error).__name__}: {error})") from None
        return model


def next_token_loss(model: Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of ids y (…, T), each after the x up to its place."""
    return cross_entropy(model(x), y)


CONFIGS = {
    "cpu": GPTConfig(64, 65, 4, 4, 128, bias=False),
    "baby": GPTConfig(256, 65, 6, 6, 384, dropout=0.2, bias=False),
    **{name: GPTConfig(1024, 50257, layers, heads, width,
                       approximate="tanh")
       for name, layers, heads, width in (
           ("gpt2", 12, 12, 768), ("gpt2-medium", 24, 16, 1024),
           ("gpt2-large", 36, 20, 1280), ("gpt2-xl", 48, 25, 1600))}}


def check_choice(temperature: float, top_k: int | None,
                 top_p: float | None) -> None:
    """What can be asked of `choices`."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"choices: expected a temperature of 0 or more, "
                         f"got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"choices: expected a top_k of 1 or more, or "
                         f"None for all; got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"choices: expected a top_p above 0 and up to 1, "
                         f"or None; got {top_p}")


def choices(logits: np.ndarray, temperature: float = 1.0,
            top_k: int | None = None, top_p: float | None = None,
            ) -> tuple[np.ndarray, np.ndarray]:
    """The ids to draw from, the likeliest first, and their probabilities.

    `logits` (V,); first the temperature, then `top_k`, then `top_p` of
    what is left. Of two that are equal the lower id comes first.
    """
    check_choice(temperature, top_k, top_p)
    x = np.asarray(logits, np.float64)
    ids = np.argsort(-x, kind="stable")[:top_k]
    if temperature == 0:
        return ids[:1], np.ones(1)
    p = np.exp((x[ids] - x[ids[0]]) / temperature)
    p /= p.sum()
    if top_p is not None:
        # Up to and with the one that reaches it.
        p = p[:np.searchsorted(p.cumsum(), top_p) + 1]
    return ids[:len(p)], p / p.sum()


def drawn(ids: np.ndarray, p: np.ndarray, generator: Generator) -> int:
    """One of `ids`, by their probabilities."""
    line = p.cumsum()
    dart = rand(1, dtype=float64, generator=generator).item()
    # Times the end, which rounding has moved away from 1.
    return int(ids[np.searchsorted(line, dart * line[-1], "right")])


def check_lengths(prompt: int, new: int, context: int) -> None:
    """Refuse an empty prompt; tell of a text that outgrows the context."""
    if prompt < 1 or new < 0:
        raise ValueError(f"generate: expected a prompt of one token or more "
                         f"(a line break, say), and 0 or more new ones; got "
                         f"{prompt} and {new}")
    if prompt + new > context:
        tell(f"generate: {prompt} + {new} tokens are more than the context "
             f"of {context}; the model sees the last {context} of them")


def spoken(tokenizer: Any, ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` in pieces, each as soon as its letters are whole."""
    waiting: list[int] = []
    for new in ids:
        waiting.append(new)
        text = tokenizer.decode(waiting)
        if not text.endswith("\ufffd"):  # half of a letter
            yield text
            waiting = []
    if waiting:
        yield tokenizer.decode(waiting)


TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight",
          "mlp.c_proj.weight")
MASKS = (".attn.bias", ".attn.masked_bias")


def from_conv1d(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights by our names and in our layout, from GPT-2's."""
    found = {name.removeprefix("transformer."): array
             for name, array in arrays.items() if not name.endswith(MASKS)}
    last = found.pop("lm_head.weight", None)
    if last is not None and not np.array_equal(last, found["wte.weight"]):
        raise ValueError("lm_head.weight is not wte.weight: expected a GPT "
                         "with one table for both")
    return {name: array.T if name.endswith(TURNED) else array
            for name, array in found.items()}


GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}


def config_of(said: dict[str, Any]) -> GPTConfig:
    """The sizes in a config.json of GPT-2's kind, if it is such a GPT."""
    allowed = {
        "activation_function": tuple(GELUS),
        "n_inner": (None, 4 * said["n_embd"]),
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "tie_word_embeddings": (True,)}
    for name, values in allowed.items():
        # What is not said is as in GPT-2.
        if said.get(name, values[0]) not in values:
            raise ValueError(f"{name} is {said[name]!r}, expected one of "
                             f"{list(values)}: this is another network")
    gelu_name = said.get("activation_function", "gelu_new")
    return GPTConfig(said["n_positions"], said["vocab_size"],
                     said["n_layer"], said["n_head"], said["n_embd"],
                     approximate=GELUS[gelu_name])
