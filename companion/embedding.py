# Tangled from embeddings: edit there, `make tangle`. sha256:aa50abd3b44f
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from companion.device import CPU, Device
from companion.dtype import DType, float32, float64
from companion.layers import Module, parameter
from companion.ops import GATHER
from companion.tensor import Tensor
from companion.tensor.creation import arange
from companion.tensor.indexing import cat, stack
from companion.tensor.operands import narrowed, where, widened
from companion.tensor.random import randn
from companion.tensor.reductions import detached


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """The rows of `table` (V, C) at `index` (…): (…, C).

    Integers from 0 to V - 1; an IndexError names any other.
    """
    # Behind an axis that it shares, an index may not count from the end.
    shared = table.unsqueeze(0), index.unsqueeze(0)
    try:
        return Tensor.apply(GATHER, *shared, arg=1).squeeze(0)
    except IndexError as error:
        raise IndexError(f"Embedding: expected indices from 0 to "
                         f"{len(table) - 1} ({error})") from None


class Embedding(Module):
    """Row i of `weight` for each index i: (…) -> (…, embedding_dim).

    Rows are drawn by `init(num_embeddings, embedding_dim, dtype=dtype,
    device=device)`, by default from N(0, 1). Row `padding_idx` starts
    at zero and gets no gradient. An index without a row, also one
    below 0, is an IndexError.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int,
                 padding_idx: int | None = None,
                 init: Callable[..., Tensor] = randn,
                 dtype: DType = float32, device: Device | str = CPU):
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = row_number(padding_idx, num_embeddings)
        at: dict[str, Any] = {"dtype": dtype, "device": device}
        weight = init(num_embeddings, embedding_dim, **at)
        if padding_idx is not None:
            place = arange(num_embeddings, device=device).unsqueeze(1)
            weight = where(place == self.padding_idx, 0, weight)
        self.weight = parameter(weight)

    def forward(self, index: Tensor) -> Tensor:
        if not isinstance(index, Tensor):
            raise TypeError(
                f"Embedding: expected a Tensor of integers, got a "
                f"{type(index).__name__}; wrap it in Tensor(…)")
        rows = look_up(self.weight, index)
        if self.padding_idx is None:
            return rows
        # The same values; what is detached passes no gradient on.
        padding = (index == self.padding_idx).unsqueeze(-1)
        return where(padding, detached(rows), rows)


def row_number(row: int | None, rows: int) -> int | None:
    """`row` counted from the start, if there is such a row."""
    if row is None:
        return None
    if not -rows <= row < rows:
        raise ValueError(f"Embedding: expected padding_idx from {-rows} to "
                         f"{rows - 1}, got {row}")
    return row % rows


def angles(positions: Tensor, dim: int, base: float) -> Tensor:
    """Positions (…) times the speeds base^(-2i / dim): (…, dim / 2)."""
    if not isinstance(positions, Tensor):
        raise TypeError(f"positions: expected a Tensor, got a "
                        f"{type(positions).__name__}; such as arange(T)")
    if dim % 2 or dim < 2:
        raise ValueError(f"positions: expected an even number of features, "
                         f"got {dim}; each angle needs two")
    i = arange(0, dim, 2, dtype=float64, device=positions.device)
    speeds = (i * (-math.log(base) / dim)).exp()
    # In float32 a large place times a speed has no digits left for the turn.
    return positions.cast(float64).unsqueeze(-1) * speeds


def sinusoidal(positions: Tensor, dim: int, base: float = 10000.0,
               dtype: DType = float32) -> Tensor:
    """sin and cos of each angle in turn (Vaswani, 2017): (…, dim)."""
    turn = angles(positions, dim, base)
    return stack([turn.sin(), turn.cos()], -1).flatten(-2).cast(dtype)


def rotary(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """x (…, D), each pair of features turned by its place (Su, 2021).

    Features i and i + D/2 are a pair, turned by position · base^(-2i/D).
    `positions` broadcasts to the axes of x before the last: (T,) for x
    of (B, H, T, D). (Su pairs neighbours, 2i and 2i + 1.)
    """
    check_places(x, positions)
    wide, half = widened(x), x.shape[-1] // 2
    turn = angles(positions, x.shape[-1], base)
    cos, sin = turn.cos().cast(wide.dtype), turn.sin().cast(wide.dtype)
    a, b = wide[..., :half], wide[..., half:]
    return narrowed(cat([a * cos - b * sin, b * cos + a * sin], -1), x)


def check_places(x: Tensor, positions: Tensor) -> None:
    """One place for each vector of x, or for several at once."""
    shape, before = np.shape(positions), x.shape[:-1]
    # More places than vectors would multiply the vectors in silence.
    if len(shape) > len(before) or any(
            n not in (1, m) for n, m in zip(shape[::-1], before[::-1])):
        raise ValueError(
            f"rotary: positions of shape {shape} for vectors of shape "
            f"{before}; expected a shape that broadcasts to it")
