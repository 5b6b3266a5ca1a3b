# Tangled from attention: edit there, `make tangle`. sha256:e438db83f809
from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

from companion.device import CPU, Device
from companion.dtype import DType, bool_, float32
from companion.layers import Dropout, Linear, Module
from companion.native import set_threads
from companion.ops import ATTENTION
from companion.tensor import Tensor
from companion.tensor.creation import arange
from companion.tensor.gradients import grad
from companion.tensor.operands import (
    as_tensor, broadcast_shape, narrowed, widened)
from companion.tensor.random import GENERATOR, Generator, rand, randn
from companion.timing import MISSING, compare, stamp
from companion.view import Shape


def attention_weights(query: Tensor, key: Tensor,
                      attn_mask: Tensor | None = None,
                      scale: float | None = None) -> Tensor:
    """softmax(query keyᵀ · scale) over the keys that a query may see.

    (…, T, D) and (…, S, D) give (…, T, S). `attn_mask`: bools that
    broadcast to that; a query that may see nothing has zeros. `scale`:
    1 / sqrt(D) unless given (Vaswani et al., 2017).
    """
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.mT
    if attn_mask is None:
        return scores.softmax(-1)
    # Where all is hidden nothing is, until the softmax is over: it would
    # be 0 / 0, and the NaN would find its way into every gradient.
    none = ~attn_mask.any(-1, keepdim=True)
    scores = scores.masked_fill(~(attn_mask | none), -math.inf)
    return scores.softmax(-1).masked_fill(~attn_mask, 0)


def causal_mask(queries: int, keys: int,
                device: Device | str = CPU) -> Tensor:
    """(queries, keys): whether a query stands at its key, or behind it."""
    at = arange(queries, device=device).unsqueeze(1)
    return arange(keys, device=device) <= at


class MultiHeadAttention(Module):
    """Heads that look at x of shape (…, T, embed_dim), each its own way.

    `num_kv_heads`: so many heads of keys and values, each shared by a
    group of queries' heads (Ainslie et al., 2023); by default as many.
    `dropout`: the part of the weights that is dropped while training.
    """

    def __init__(self, embed_dim: int, num_heads: int,
                 num_kv_heads: int | None = None, bias: bool = True,
                 dropout: float = 0.0, is_causal: bool = False,
                 dtype: DType = float32, device: Device | str = CPU):
        kv = num_kv_heads or num_heads
        if embed_dim % num_heads or num_heads % kv:
            raise ValueError(
                f"MultiHeadAttention: {embed_dim} numbers, {num_heads} heads "
                f"and {kv} of keys do not fit; expected each to be a "
                f"multiple of the next")
        self.num_heads, self.num_kv_heads = num_heads, kv
        self.head_dim, self.is_causal = embed_dim // num_heads, is_causal
        at: dict[str, Any] = {"bias": bias, "dtype": dtype, "device": device}
        width = (num_heads + 2 * kv) * self.head_dim
        self.c_attn = Linear(embed_dim, width, **at)
        self.c_proj = Linear(embed_dim, embed_dim, **at)
        self.dropout = Dropout(dropout)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (…, KV, G, T, D), keys and values (…, KV, 1, T, D)."""
        *stack, length, _ = x.shape
        h, kv, d = self.num_heads, self.num_kv_heads, self.head_dim
        each = self.c_attn(x).reshape(*stack, length, h + 2 * kv, d)
        q, k, v = each.transpose(-3, -2).split((h, kv, kv), -3)
        return (q.reshape(*stack, kv, h // kv, length, d),
                k.unsqueeze(-3), v.unsqueeze(-3))

    def grouped(self, mask: Tensor | None) -> Tensor | None:
        """A mask for (…, heads, T, T) as one for heads in groups."""
        if mask is None or mask.ndim < 3:
            return mask
        *stack, heads, t, s = mask.shape
        kv = min(heads, self.num_kv_heads)  # a lone one serves all heads
        return mask.reshape(*stack, kv, heads // kv, t, s)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x)
        drop = self.dropout
        y = scaled_dot_product_attention(
            q, k, v, self.grouped(attn_mask), is_causal=self.is_causal,
            dropout_p=drop.p if drop.training else 0.0,
            generator=drop.generator)
        return self.c_proj(y.flatten(-4, -3).transpose(-3, -2).flatten(-2))

    def weigh(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        if self.is_causal:
            before = causal_mask(q.shape[-2], k.shape[-2], q.device)
            mask = before if mask is None else mask & before
        return attention_weights(q, k, mask)

    def weights(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """What every head looks at: (…, heads, T, T)."""
        q, k, _ = self.heads(x)
        return self.weigh(q, k, self.grouped(attn_mask)).flatten(-4, -3)


def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor,
        attn_mask: Tensor | None = None, *, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None,
        generator: Generator = GENERATOR) -> Tensor:
    """dropout(attention_weights(query, key, …)) @ value, without weights.

    (…, T, D), (…, S, D) and (…, S, D) give (…, T, D); the axes before
    them broadcast. With `is_causal` query t sees the keys up to t.
    Of the weights a part `dropout_p`, drawn from `generator`, counts 0,
    and the others are divided by 1 - dropout_p, whenever it is not 0.
    Memory grows with T, also in the gradient, and dropout keeps a byte
    for each of T · S; a second derivative makes all the weights.
    (Dao et al., 2022)
    """
    q, k, v, mask = stacked(query, key, value, attn_mask)
    kept = kept_weights(mask.shape, dropout_p, q.device, generator)
    y = Tensor.apply(ATTENTION, q, k, v, mask, kept, arg=(
        scale or q.shape[-1] ** -0.5, is_causal, 1 - dropout_p))
    return narrowed(y[..., :-1], query)


def stacked(query: Tensor, key: Tensor, value: Tensor,
            attn_mask: Tensor | None) -> tuple[Tensor, ...]:
    """Queries, keys, values and a mask, with equal axes before T and S."""
    q, k, v = [widened(x) for x in (query, key, value)]
    mask = (as_tensor(True, bool_, q.device, (1, 1)) if attn_mask is None
            else attn_mask)
    stack = broadcast_shape(*[x.shape[:-2] for x in (q, k, v, mask)])
    return (*[x.broadcast((*stack, *x.shape[-2:])) for x in (q, k, v)],
            mask.broadcast((*stack, q.shape[-2], k.shape[-2])))


SHAPES_OF_HEADS = {"12 x 4 heads, 64 x 32": (12, 4, 64, 32),
                   "8 x 6 heads, 256 x 64": (8, 6, 256, 64),
                   "64 x 6 heads, 256 x 64": (64, 6, 256, 64)}
DIRECTIONS = {"forward": False, "forward and backward": True}


def ours(shape: tuple[int, ...], threads: int,
         back: bool) -> Callable[[], Any]:
    """Our attention on random heads, ready to run."""
    set_threads(threads)
    q, k, v, g = randn(4, *shape)
    for x in (q, k, v):
        x.requires_grad = back

    def run() -> None:
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        if back:
            grad(y, [q, k, v], g)
    return run


def torchs(shape: tuple[int, ...], threads: int,
           back: bool) -> Callable[[], Any]:
    """PyTorch's, likewise."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    q, k, v, g = torch.randn(4, *shape).requires_grad_(back).unbind()
    attention = torch.nn.functional.scaled_dot_product_attention
    leaves = [x.detach().requires_grad_(back) for x in (q, k, v)]

    def run() -> None:
        y = attention(*leaves, is_causal=True)
        if back:
            torch.autograd.grad(y, leaves, g.detach())
    return run


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Milliseconds of attention and of PyTorch's, forward and backward."""
    there = importlib.util.find_spec("torch")
    about = stamp("torch")  # loads it, once for all that are forked below
    shapes = list(SHAPES_OF_HEADS.items())[:2 if quick else 3]
    for (name, shape), (way, back) in product(shapes, DIRECTIONS.items()):
        found = compare(partial(ours, shape, threads, back),
                        partial(torchs, shape, threads, back),
                        rounds=7 if quick else 15) if there else None
        yield {"bench": "attention", "case": f"{name}, {way}",
               "threads": threads, "unit": "ms", **about,
               **(found.line(lambda s: 1e3 * s) if found else MISSING)}


def kept_weights(shape: Shape, dropout_p: float, device: Device,
                 generator: Generator) -> Tensor:
    """Which of the weights (…, T, S) stay; a single True if all do."""
    if not 0 <= dropout_p < 1:
        raise ValueError(f"attention: expected 0 <= dropout_p < 1, got "
                         f"{dropout_p}; it is the part that is dropped")
    if dropout_p == 0:
        return as_tensor(True, bool_, device, (1, 1)).broadcast(shape)
    *stack, t, s = shape
    # Queries side by side, as in the kernel's tile: a register at a time.
    draw = rand(*stack, s, t, device=device, generator=generator)
    return (draw < 1 - dropout_p).mT
