# Tangled from indexing, activations: edit there, `make tangle`. sha256:0328e2d2199a  # noqa: E501
"""Axes folded: sums, maxima, variances, running sums."""

from __future__ import annotations

import math

from companion.ops import RESHAPE, Op
from companion.tensor import Axes, Tensor, axes_of, wrap
from companion.tensor.operands import widened


def reduce(op: Op, x: Tensor, axis: Axes, keepdim: bool) -> Tensor:
    axes = axes_of(x, axis)
    result = Tensor.apply(op, x, arg=axes)
    if keepdim:
        return result
    kept = tuple([n for i, n in enumerate(x.shape) if i not in axes])
    return Tensor.apply(RESHAPE, result, arg=kept)


def reduced_size(x: Tensor, axis: Axes) -> int:
    """How many elements one result of a reduction stands for."""
    return math.prod(x.shape[i] for i in axes_of(x, axis))


def variance(x: Tensor, axis: Axes, correction: int,
             keepdim: bool) -> Tensor:
    """The variance, before halves are narrowed to halves again."""
    wide = widened(x)
    # Not E[x²] - E[x]²: far from 0 both agree in all digits of float32.
    distance = wide - wide.mean(axis, keepdim=True)
    total = distance.square().sum(axis, keepdim)
    freedom = reduced_size(x, axis) - correction
    return total / (freedom if freedom > 0 else math.nan)


def shifted(x: Tensor, axis: int, steps: int) -> Tensor:
    """Moved towards the end of `axis`; zeros come in at the front."""
    margins = [(0, 0)] * x.ndim
    margins[axis] = (steps, 0)
    return x.pad(margins).narrow(axis, 0, x.shape[axis])


def merge_axes_last(x: Tensor, axis: Axes) -> Tensor:
    """The named axes merged into one that comes last."""
    axes = axes_of(x, axis)
    rest = [i for i in range(x.ndim) if i not in axes]
    moved_back = x.permute(rest + list(axes))
    lengths = [x.shape[i] for i in rest]
    return moved_back.reshape([*lengths, reduced_size(x, axis)])


def detached(x: Tensor) -> Tensor:
    """The same memory under a tensor without marks."""
    return wrap(x.buffer, x.device)


def constant_max(x: Tensor, axis: Axes) -> Tensor:
    """The largest along `axis`, as a constant; 0 where there is none."""
    # What is subtracted does not matter, so no gradient need go this way.
    y = detached(x)
    if not reduced_size(y, axis):
        return y.sum(axis, keepdim=True)
    return y.max(axis, keepdim=True)
