# Tangled from arrays, activations: edit there, `make tangle`. sha256:2108a9652e84  # noqa: E501
"""Where each element lies: shape, strides and offset over flat storage."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

Shape = tuple[int, ...]


class View(NamedTuple):
    """A window on flat storage; strides and offset count elements.

    Element (i, j, …) lies at offset + i·strides[0] + j·strides[1] + …
    Arguments of the methods are trusted: the table SHAPE, which all
    devices share, checks them before a view is made.
    """

    shape: Shape
    strides: tuple[int, ...]
    offset: int = 0

    def address(self, index: tuple[int, ...]) -> int:
        return self.offset + sum(i * s for i, s in zip(index, self.strides))

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def dense(shape: Shape) -> View:
        return View(shape, row_major(shape), 0)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def permute(self, order: tuple[int, ...]) -> View:
        """The axes in another order."""
        shape, strides, offset = self
        return View(tuple([shape[i] for i in order]),
                    tuple([strides[i] for i in order]), offset)

    def flip(self, axes: tuple[int, ...]) -> View:
        """The named axes walked from their end."""
        # An axis without elements has no last one: its offset stays.
        last = tuple([
            max(n - 1, 0) if i in axes else 0
            for i, n in enumerate(self.shape)])
        strides = tuple([
            -s if i in axes else s for i, s in enumerate(self.strides)])
        return View(self.shape, strides, self.address(last))

    def shrink(self, ranges: tuple[tuple[int, int, int], ...]) -> View:
        """Keep start, start+step, … below stop on every axis; step ≥ 1."""
        starts = tuple([r[0] for r in ranges])
        shape = tuple([len(range(*r)) for r in ranges])
        strides = tuple([s * r[2] for s, r in zip(self.strides, ranges)])
        return View(shape, strides, self.address(starts))

    def expand(self, shape: Shape) -> View:
        """Axes of length 1 stretched to `shape`, and new ones in front."""
        new = len(shape) - len(self.shape)
        strides = tuple([
            s if n == m else 0
            for n, m, s in zip(self.shape, shape[new:], self.strides)])
        return View(shape, (0,) * new + strides, self.offset)

    @property
    def repeats(self) -> bool:
        """Whether one storage element may stand at several places."""
        # Exact for all that movements make. Of adopted memory a few layouts
        # whose axes mesh without meeting count as repeated, too.
        reach = 0
        for step, n in sorted([(abs(s), n) for n, s in
                               zip(self.shape, self.strides) if n > 1]):
            if step <= reach:
                return self.size > 0
            reach += (n - 1) * step
        return False

    def runs(self) -> list[tuple[int, int]]:
        """Axes merged where two neighbours walk memory as one would."""
        merged: list[tuple[int, int]] = []
        for n, stride in zip(self.shape, self.strides):
            # It takes no step: its stride may be anything.
            if n == 1:
                continue
            if merged and merged[-1][1] == n * stride:
                n *= merged.pop()[0]
            merged.append((n, stride))
        return merged

    @property
    def is_dense(self) -> bool:
        """Row-major with no gaps (offset aside): one run of memory."""
        return self.runs() in ([], [(self.size, 1)]) or self.size == 0

    def reshape(self, shape: Shape) -> View | None:
        """The same elements under `shape`, or None where only a copy can."""
        # Of no elements any strides will do; below, 0 would be a divisor.
        if self.size == 0:
            return View(shape, row_major(shape), self.offset)
        runs, strides = self.runs(), []
        left, stride = 1, 1
        for n in reversed(shape):
            # An axis of length 1 takes no run: there may be none left.
            if left == 1 and n > 1:
                left, stride = runs.pop()
            # The axis would have to jump on its way: no single stride does.
            if left % n:
                return None
            strides.append(stride)
            left, stride = left // n, stride * n
        return View(shape, tuple(reversed(strides)), self.offset)


def row_major(shape: Shape) -> tuple[int, ...]:
    """Strides, in elements, of a dense array whose last axis is nearest."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


Axis = tuple[int, ...]  # a length, and the step of each array along it


def coalesce(axes: Iterable[Axis]) -> list[Axis]:
    """Neighbours that every array walks as one axis, made one."""
    found: list[Axis] = []
    for n, *steps in axes:
        if n == 1:
            continue
        if found and all(far == n * near
                         for far, near in zip(found[-1][1:], steps)):
            n *= found.pop()[0]
        found.append((n, *steps))
    return found
