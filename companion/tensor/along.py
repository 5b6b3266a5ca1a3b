# Tangled from vocabulary: edit there, `make tangle`. sha256:0673cc0e6a43
"""Words that work along one axis: gather, sort, running folds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from companion.dtype import DType, int64
from companion.ops import GATHER, SCATTER, check_kind
from companion.tensor import Scalar, Tensor, axis_of
from companion.tensor.creation import arange, ones
from companion.tensor.indexing import cat
from companion.tensor.operands import dtype_or_type, where, widened
from companion.tensor.reductions import detached
from companion.view import Shape


def as_rows(x: Tensor) -> Tensor:
    """All axes but the last merged into one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Of each row of x the elements that its row of `index` names."""
    found = Tensor.apply(GATHER, as_rows(x), as_rows(index), arg=1)
    return found.reshape(index.shape)


def put(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Rows of n zeros, to which values are added where `index` says."""
    found = Tensor.apply(SCATTER, as_rows(values), as_rows(index),
                         arg=(1, n))
    return found.reshape(*index.shape[:-1], n)


def fitted(name: str, x: Tensor, index: Tensor, axis: int) -> Tensor:
    """x, cut to the lengths of `index` on all axes but one."""
    check_kind(name, index.dtype, "iu")
    if index.ndim != x.ndim or any(
            m > n for i, (m, n) in enumerate(zip(index.shape, x.shape))
            if i != axis):
        raise ValueError(
            f"{name}: an index of shape {index.shape} along axis {axis} of "
            f"shape {x.shape}; expected as many axes, the others no longer")
    for i, m in enumerate(index.shape):
        x = x if i == axis or m == x.shape[i] else x.narrow(i, 0, m)
    return x


def check_vector(name: str, index: Tensor) -> None:
    """An index of slices is a vector of integers, and no mask."""
    check_kind(name, index.dtype, "iu")
    if index.ndim != 1:
        raise ValueError(f"{name}: expected a vector of indices, got shape "
                         f"{index.shape}; use gather, or x[index]")


def last_writer(index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Who writes to each of n places last, and whether anybody does.

    The largest of the numbers that meet at a place, found by its
    binary digits, the highest first: all who have a 1, if one has.
    """
    m = index.shape[-1]
    number = arange(m, device=index.device).broadcast(index.shape)
    left = number >= 0
    taken = put(left.cast(int64), index, n) > 0
    last = taken.cast(int64) * 0
    for bit in reversed(range(max(m - 1, 0).bit_length())):
        digit = number // 2 ** bit % 2
        one = (put(left.cast(int64) * digit, index, n) > 0).cast(int64)
        left, last = left & (digit == pick(one, index)), last * 2 + one
    return last, taken


def grown(x: Tensor, shape: Shape) -> Tensor:
    """x in the first corner of a tensor of zeros."""
    return x.pad([(0, n - m) for m, n in zip(x.shape, shape)])


def source(name: str, x: Tensor, index: Tensor, src: Tensor) -> Tensor:
    """What is written through an index: `src`, cut to its shape."""
    kind = dtype_or_type(src)
    if kind is not x.dtype:
        raise TypeError(f"{name}: x is {x.dtype}, what is written {kind}; "
                        f"expected a tensor of one dtype with x")
    if src.ndim != index.ndim or any(
            m > n for m, n in zip(index.shape, src.shape)):
        raise ValueError(f"{name}: index {index.shape} is larger than what "
                         f"is written, {src.shape}; cut the index")
    for i, m in enumerate(index.shape):
        src = src.narrow(i, 0, m)
    return src


class Sorted(NamedTuple):
    """Values, and where along the axis they came from (int64)."""

    values: Tensor
    indices: Tensor


def order(x: Tensor, axis: int, descending: bool) -> np.ndarray:
    """The places along `axis` in sorted order; NaN counts as largest."""
    keys = order_keys(x)
    if not descending:
        return np.argsort(keys, axis, kind="stable")
    # Turned round twice: equals keep their order, and NaN comes first.
    backwards = np.argsort(np.flip(keys, axis), axis, kind="stable")
    return keys.shape[axis] - 1 - np.flip(backwards, axis)


def order_keys(x: Tensor) -> np.ndarray:
    """The values on the host, in a dtype that NumPy sorts quickly."""
    keys = detached(x)
    return (widened(keys) if x.dtype.is_float else keys).numpy()


def parted(keys: np.ndarray, k: int, largest: bool) -> np.ndarray:
    """Where the k largest of each row are, or the smallest; unordered."""
    n = keys.shape[-1]
    if k in (0, n):
        return np.argsort(keys)[..., :k]
    found = np.argpartition(keys, n - k if largest else k - 1)
    return found[..., n - k:] if largest else found[..., :k]


def chosen(keys: np.ndarray, k: int, largest: bool) -> np.ndarray:
    """parted, by way of a tournament where rows are long.

    The k largest of a row are in the k blocks with the largest maxima.
    """
    n = keys.shape[-1]
    width = math.isqrt(n // max(k, 1))
    if width < 8:
        return parted(keys, k, largest)
    blocks = keys[..., :n // width * width].reshape(
        *keys.shape[:-1], n // width, width)
    # NaN is the largest: it wins a block, and never spoils a minimum.
    best = (np.maximum if largest else np.fmin).reduce(blocks, -1)
    winners = parted(best, min(k, n // width), largest)
    places = (winners[..., None] * width + np.arange(width)).reshape(
        *keys.shape[:-1], -1)
    rest = np.arange(n // width * width, n)
    places = np.concatenate([places, np.broadcast_to(
        rest, (*keys.shape[:-1], len(rest)))], -1)
    final = parted(np.take_along_axis(keys, places, -1), k, largest)
    return np.take_along_axis(places, final, -1)


def delayed(x: Tensor, axis: int, steps: int, fill: Scalar) -> Tensor:
    """Moved towards the end of `axis`; `fill` comes in at the front."""
    margins = [(0, 0)] * x.ndim
    margins[axis] = (steps, 0)
    return x.narrow(axis, 0, x.shape[axis] - steps).pad(margins, fill)


def scan(join: Callable[[Tensor, Tensor], Tensor], x: Tensor, axis: int,
         fill: Scalar) -> Tensor:
    """Everything up to each place joined, by doubling (Hillis, 1986).

    `join` is associative, and `fill` joined with a value is that value.
    """
    at, step = axis_of(x, axis, x.ndim or 1), 1
    while x.ndim and step < x.shape[at]:
        x, step = join(delayed(x, at, step, fill), x), step * 2
    return x


def last_largest(x: Tensor, axis: int) -> Tensor:
    """The place of the largest value up to each place; of two, the last."""
    values, step = detached(x), 1
    n = x.shape[axis]
    places = arange(n, device=x.device).reshape(
        [n if i == axis else 1 for i in range(x.ndim)]).broadcast(x.shape)
    while step < n:
        # Once more among those that were there is no harm to a maximum.
        old, were = [cat([t.narrow(axis, 0, step), t.narrow(
            axis, 0, n - step)], axis) for t in (values, places)]
        wins = (values >= old) & ~old.isnan() | values.isnan()
        values, places = where(wins, values, old), where(wins, places, were)
        step *= 2
    return places


BLOCK = 16  # as many columns as a product's kernel has at once


def running_sums(x: Tensor) -> Tensor:
    """Running sums down the middle axis of floats (outer, n, inner).

    By products with triangles. They multiply what comes later by 0, so
    x has to be finite.
    """
    outer, n, inner = x.shape
    width = n if n <= 8 * BLOCK else BLOCK
    count = -(-n // width)
    x = x if n == count * width else x.pad(
        [(0, 0), (0, count * width - n), (0, 0)])
    triangle = upper_ones(width, x.dtype)
    y = (x.reshape(-1, width) @ triangle if inner == 1
         else triangle.T @ x.reshape(outer * count, width, inner))
    y = y.reshape(outer, count, width, inner)
    if count > 1:
        before = running_sums(y[:, :-1, -1]).pad([(0, 0), (1, 0), (0, 0)])
        y = y + before.unsqueeze(2)
    return y.reshape(outer, count * width, inner).narrow(1, 0, n)


@functools.cache
def upper_ones(n: int, dtype: DType) -> Tensor:
    return ones(n, n, dtype=dtype).triu()
