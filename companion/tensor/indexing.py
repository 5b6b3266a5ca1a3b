# Tangled from indexing: edit there, `make tangle`. sha256:3b1b5338e1eb
"""x[i], x[1:5:2], x[rows], x[mask]: read, written, joined."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from companion.device import Device
from companion.dtype import bool_, int64
from companion.ops import FLIP, GATHER, RESHAPE, SHRINK
from companion.tensor import Tensor, axis_of, torch_names
from companion.tensor.operands import (
    as_operand, as_tensor, required_operand, same_dtype, where)
from companion.view import Shape

Range = tuple[int, int, int]


def range_and_flip(entry: Any, n: int) -> tuple[Range, bool]:
    """An int or slice as (start, stop, step > 0), and whether to flip."""
    if not isinstance(entry, slice):
        i = operator.index(entry)
        if not -n <= i < n:
            raise IndexError(f"index {i} is out of range for an axis of "
                             f"length {n}")
        return (i % n, i % n + 1, 1), False
    walk = range(*entry.indices(n))
    # As in x[5:2]: SHRINK refuses a stop before the start.
    if not walk:
        return (0, 0, 1), False
    if walk.step > 0:
        return (walk.start, walk.stop, walk.step), False
    # The same places from the lowest up; a FLIP turns them round.
    return (walk[-1], walk.start + 1, -walk.step), True


def basic_index(x: Tensor, entries: list[Any]) -> Tensor:
    """Ints, slices and None: SHRINK, FLIP, RESHAPE; no copy."""
    ranges: list[Range] = []
    flips, shape = [], []
    for entry in entries:
        if entry is None:
            shape.append(1)
            continue
        kept, flip = range_and_flip(entry, x.shape[len(ranges)])
        if flip:
            flips.append(len(ranges))
        if isinstance(entry, slice):
            shape.append(len(range(*kept)))
        ranges.append(kept)
    x = Tensor.apply(SHRINK, x, arg=tuple(ranges))
    if flips:
        x = Tensor.apply(FLIP, x, arg=tuple(flips))
    if tuple(shape) != x.shape:
        x = Tensor.apply(RESHAPE, x, arg=tuple(shape))
    return x


def ravel_multi_index(index: list[Tensor], lengths: Shape) -> Tensor:
    """Several indices as one into the flattened axes."""
    if len(index) == 1:
        return index[0]
    total, inside = index[0] * 0, index[0] == index[0]
    for i, n in zip(index, lengths):
        i = where(i < 0, i + n, i)
        inside = inside & (i >= 0) & (i < n)
        total = total * n + i
    # Past the end of one axis lies the next row; this is past all of them,
    # where GATHER sees it.
    return where(inside, total, math.prod(lengths))


def advanced_index(x: Tensor, entries: list[Any]) -> Tensor:
    """Indexing by tensors: NumPy's rules on top of GATHER."""
    # NumPy's rule: beside a tensor a whole number is an index as well.
    entries = [e if e is None or isinstance(e, (slice, Tensor))
               else Tensor(e, int64, x.device) for e in entries]
    at = [i for i, e in enumerate(entries) if isinstance(e, Tensor)]
    x = basic_index(x, [slice(None) if isinstance(e, Tensor) else e
                  for e in entries])
    rest = [i for i in range(x.ndim) if i not in at]
    x = x.permute(at + rest)
    lengths, others = x.shape[:len(at)], x.shape[len(at):]
    index = ravel_multi_index([entries[i].cast(int64) for i in at], lengths)
    flat = x.reshape((math.prod(lengths), *others))
    result = Tensor.apply(GATHER, flat, index, arg=0)
    # NumPy's rule: if the indices do not stand side by side, the new axes
    # come first.
    if at != list(range(at[0], at[-1] + 1)):
        return result
    front = list(range(index.ndim))
    tail = [index.ndim + i for i in range(len(rest))]
    return result.permute(tail[:at[0]] + front + tail[at[0]:])


def nonzero(mask: Tensor) -> list[Tensor]:
    """The places where `mask` holds, one index tensor an axis."""
    return [Tensor(p, int64, mask.device)
            for p in np.nonzero(mask.numpy())]


def axes_indexed(entry: Any) -> int:
    """How many axes one entry of an index speaks of."""
    if isinstance(entry, Tensor) and entry.dtype is bool_:
        return entry.ndim
    return int(entry is not None and entry is not Ellipsis)


def masks_to_indices(x: Tensor,
                     entries: list[Any]) -> tuple[Tensor, list[Any]]:
    """Masks replaced by the indices at which they hold.

    A mask without axes stands for a new axis of x, of length 1.
    """
    result: list[Any] = []
    shape: list[int] = []
    axis = 0
    for entry in entries:
        here = x.shape[axis:axis + axes_indexed(entry)]
        axis += axes_indexed(entry)
        if not isinstance(entry, Tensor) or entry.dtype is not bool_:
            result.append(entry)
            shape += here
            continue
        if entry.shape != here:
            raise IndexError(f"index: a mask of shape {entry.shape} "
                             f"stands before axes of shape {here}")
        result += nonzero(entry if here else entry.reshape(1))
        shape += here or (1,)
    return x.reshape(shape), result


def as_index_entry(entry: Any, device: Device) -> Any:
    """One entry of an index; lists, arrays and bools become tensors."""
    # Not isinstance: to Python a bool is an int, here it is a mask.
    if type(entry) in (int, slice):
        return entry
    if isinstance(entry, (list, tuple, np.ndarray, bool, np.bool_)):
        # NumPy reads [] as floats, which are no index.
        empty = isinstance(entry, (list, tuple)) and not entry
        entry = Tensor(entry, int64 if empty else None, device)
    if not is_index_entry(entry):
        raise TypeError(
            f"index: expected integers, slices, None, ..., tensors of "
            f"integers or masks, got {entry!r:.60}")
    return entry


def is_index_entry(entry: Any) -> bool:
    """Whether `entry` may stand in the brackets."""
    if isinstance(entry, Tensor):
        return entry.dtype.kind in "biu"
    return (entry is None or entry is Ellipsis or isinstance(entry, slice)
            or hasattr(entry, "__index__"))


def complete_index(x: Tensor, index: Any) -> list[Any]:
    """An entry for each axis that is spoken of; the ellipsis filled in."""
    entries = [as_index_entry(e, x.device) for e in
               (index if isinstance(index, tuple) else (index,))]
    spoken = sum(map(axes_indexed, entries))
    dots = [i for i, e in enumerate(entries) if e is Ellipsis]
    if spoken > x.ndim or len(dots) > 1:
        raise IndexError(
            f"index: {spoken} entries and {len(dots)} ellipses, but "
            f"shape {x.shape} allows at most {x.ndim} and one")
    at = dots[0] if dots else len(entries)
    fill = [slice(None)] * (x.ndim - spoken)
    return entries[:at] + fill + entries[at + 1:]


def check_no_repeats(x: Tensor) -> None:
    """Refuse to write where one element stands at several places."""
    if x.buffer.view.repeats:
        raise ValueError(
            f"assign: several elements of this {x.shape} view "
            f"share memory; .clone() it first")


def as_source(value: Any, x: Tensor) -> Tensor:
    """`value` as a tensor that can be written over `x`."""
    found = as_operand(value, x)
    if found is None:
        found = Tensor(value, x.dtype, x.device)
    return as_tensor(found, x.dtype, x.device, x.shape)


def where_mask(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """x with `value` wherever `mask` holds over its leading axes."""
    value, rest = required_operand(value, x), x.ndim - mask.ndim
    ndim = value.ndim if isinstance(value, Tensor) else 0
    if mask.shape != x.shape[:mask.ndim] or ndim > rest:
        raise IndexError(
            f"x[mask] = value: x has shape {x.shape}, the mask "
            f"{mask.shape}; expected a mask of x's leading axes, and one "
            f"value for all its places (use where for one each)")
    return where(mask.reshape(mask.shape + (1,) * rest), value, x)


def coincide(x: Tensor, value: Any) -> bool:
    """Whether `value` is x itself, seen through the same view."""
    return (isinstance(value, Tensor) and value.dtype is x.dtype
            and value.buffer.storage is x.buffer.storage
            and value.buffer.view == x.buffer.view)


def cat_two(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Two disjoint paddings, added."""
    front, back = [(0, 0)] * a.ndim, [(0, 0)] * a.ndim
    front[axis] = (0, b.shape[axis])
    back[axis] = (a.shape[axis], 0)
    return a.pad(front) + b.pad(back)


@torch_names
def cat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after another along `axis`, joined two by two."""
    parts = list(tensors)
    if not parts or not all(isinstance(p, Tensor) for p in parts):
        raise ValueError(f"cat: expected at least one tensor, and tensors "
                         f"only; got {str(parts):.60}")
    at = axis_of(parts[0], axis)
    if len({(p.ndim, p.shape[:at], p.shape[at + 1:]) for p in parts}) > 1:
        raise ValueError(
            f"cat: shapes {', '.join(str(p.shape) for p in parts)} must "
            f"agree except along axis {at}")
    parts = same_dtype(*parts)
    while len(parts) > 1:
        # One after another would copy the first of n parts n times.
        pairs = [cat_two(a, b, at) for a, b in zip(parts[::2], parts[1::2])]
        parts = pairs + parts[len(pairs) * 2:]
    return parts[0]


@torch_names
def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis."""
    return cat([t.unsqueeze(axis) for t in tensors], axis)


def allclose(a: Tensor, b: Tensor, rtol: float = 1e-5,
             atol: float = 1e-8) -> bool:
    """Whether |a - b| <= atol + rtol·|b| everywhere, infinities equal."""
    near = (a - b).abs() <= b.abs() * rtol + atol
    # By rtol times infinity everything would be near it.
    return bool(((a == b) | near & ~(b.abs() == math.inf)).all())
