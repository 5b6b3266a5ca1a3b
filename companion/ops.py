# Tangled from operations, convolution, attention, graphs: edit there, `make tangle`. sha256:3a0bdb8887d4  # noqa: E501
"""The primitives, and what each makes of shapes and dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from companion.dtype import DType, bool_, float32, float64, int64, promote
from companion.view import Shape


class Op:
    """One primitive: a name, and the number of tensors it reads."""

    __slots__ = ("name", "arity")

    def __init__(self, name: str, arity: int):
        self.name = name
        self.arity = arity

    def __repr__(self) -> str:
        return self.name

    __reduce__ = __repr__  # copied or pickled by name, as dtypes are


BUFFER, CONST, IOTA = Op("BUFFER", 0), Op("CONST", 0), Op("IOTA", 0)
RANDOM = Op("RANDOM", 1)
EXP, LOG, SIN = Op("EXP", 1), Op("LOG", 1), Op("SIN", 1)
SQRT, ERF, CAST = Op("SQRT", 1), Op("ERF", 1), Op("CAST", 1)
ADD, SUB, MUL, DIV = [Op(n, 2) for n in ("ADD", "SUB", "MUL", "DIV")]
MAXIMUM, LESS, EQUAL = Op("MAXIMUM", 2), Op("LESS", 2), Op("EQUAL", 2)
IDIV, MOD, WHERE = Op("IDIV", 2), Op("MOD", 2), Op("WHERE", 3)
POW, AND = Op("POW", 2), Op("AND", 2)
SUM, MAX = Op("SUM", 1), Op("MAX", 1)
RESHAPE, PERMUTE, EXPAND = Op("RESHAPE", 1), Op("PERMUTE", 1), Op("EXPAND", 1)
PAD, SHRINK, FLIP = Op("PAD", 1), Op("SHRINK", 1), Op("FLIP", 1)
MATMUL, GATHER, SCATTER = Op("MATMUL", 2), Op("GATHER", 2), Op("SCATTER", 2)
WRITE = Op("WRITE", 2)

FAMILIES = {
    "leaves": (BUFFER, CONST, IOTA, RANDOM),
    "elementwise": (EXP, LOG, SIN, SQRT, ERF, CAST,
                    ADD, SUB, MUL, DIV, POW, MAXIMUM, AND,
                    LESS, EQUAL, IDIV, MOD, WHERE),
    "reduce": (SUM, MAX),
    "movement": (RESHAPE, PERMUTE, EXPAND, PAD, SHRINK, FLIP),
    "contraction": (MATMUL,),
    "indexing": (GATHER, SCATTER),
    "effect": (WRITE,),
}


class Shaped(Protocol):
    """All that the rules of shapes ask of an operand."""

    @property
    def shape(self) -> Shape: ...


def same_shape(op: Op) -> Callable[..., Shape]:
    """The rule that all operands of `op` have one shape."""
    def shape(first: Any, *rest: Any) -> Shape:
        # The last one is the argument, and no operand.
        for other in rest[:-1]:
            if other.shape != first.shape:
                raise ValueError(
                    f"{op}: shapes {first.shape} and {other.shape} "
                    f"differ; a primitive needs equal shapes: broadcast "
                    f"or expand first")
        return first.shape
    return shape


SHAPE: dict[Op, Callable[..., Shape]] = {
    op: same_shape(op) for op in (*FAMILIES["elementwise"], WRITE)}


def reduced(x: Shaped, axes: tuple[int, ...]) -> Shape:
    return tuple([1 if i in axes else n for i, n in enumerate(x.shape)])


def reduced_by_max(x: Shaped, axes: tuple[int, ...]) -> Shape:
    if any(x.shape[i] == 0 for i in axes):
        raise ValueError(
            f"MAX: shape {x.shape} has length 0 along one of the axes "
            f"{axes}, and nothing has no largest element; check .size")
    return reduced(x, axes)


SHAPE[SUM], SHAPE[MAX] = reduced, reduced_by_max


def reshaped(x: Shaped, shape: Shape) -> Shape:
    have, want = math.prod(x.shape), math.prod(shape)
    if have != want or min(shape, default=0) < 0:
        raise ValueError(
            f"RESHAPE: {x.shape} holds {have} elements, which do not "
            f"fill {shape}; the product of the lengths must be {have}")
    return shape


def permuted(x: Shaped, order: tuple[int, ...]) -> Shape:
    if sorted(order) != list(range(len(x.shape))):
        raise ValueError(
            f"PERMUTE: {order} does not name each axis of {x.shape} once")
    return tuple([x.shape[i] for i in order])


def expanded(x: Shaped, shape: Shape) -> Shape:
    new = len(shape) - len(x.shape)
    if new < 0 or min(shape, default=0) < 0 or any(
            n != m and n != 1 for n, m in zip(x.shape, shape[new:])):
        raise ValueError(
            f"EXPAND: {x.shape} does not expand to {shape}; only axes of "
            f"length 1 can grow, and new ones stand in front")
    return shape


def shrunk(x: Shaped, ranges: tuple[tuple[int, int, int], ...]) -> Shape:
    """start, stop and step >= 1 for every axis, within its length."""
    if len(ranges) != len(x.shape) or any(
            not 0 <= start <= stop <= n or step < 1
            for n, (start, stop, step) in zip(x.shape, ranges)):
        raise ValueError(
            f"SHRINK: ranges {ranges} leave shape {x.shape}; expected "
            f"0 <= start <= stop <= length and step >= 1 for every axis")
    return tuple([len(range(*r)) for r in ranges])


def padded(x: Shaped, margins: tuple[tuple[int, int, int], ...]) -> Shape:
    """before + the elements, `step` apart + after, on every axis."""
    return tuple([
        # n elements take n - 1 steps and one place; none take neither.
        before + (max(n - 1, 0) * step + min(n, 1)) + after
        for n, (before, after, step) in zip(x.shape, margins)])


SHAPE[RESHAPE], SHAPE[PERMUTE], SHAPE[EXPAND] = reshaped, permuted, expanded
SHAPE[PAD], SHAPE[SHRINK] = padded, shrunk
SHAPE[FLIP] = lambda x, axes: x.shape


def product_shape(a: Shaped, b: Shaped, _: None) -> Shape:
    if min(len(a.shape), len(b.shape)) < 2 \
            or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"MATMUL: {a.shape} @ {b.shape}: expected (..., M, K) and "
            f"(..., K, N) with the same leading axes; reshape or expand")
    return (*a.shape[:-1], b.shape[-1])


def gathered(x: Shaped, index: Shaped, axis: int) -> Shape:
    if axis >= len(x.shape) or x.shape[:axis] != index.shape[:axis]:
        raise ValueError(
            f"GATHER: along axis {axis} of shape {x.shape} an index of "
            f"shape {index.shape}; expected the same axes before it")
    return index.shape + x.shape[axis + 1:]


def scattered(x: Shaped, index: Shaped, arg: tuple[int, int]) -> Shape:
    if x.shape[:len(index.shape)] != index.shape:
        raise ValueError(
            f"SCATTER: shape {x.shape} does not begin with the index's "
            f"shape {index.shape}; expected one value for each index")
    axis, n = arg
    return (*index.shape[:axis], n, *x.shape[len(index.shape):])


SHAPE[CONST] = lambda arg: arg[2]  # of (value, dtype, shape)
SHAPE[IOTA] = lambda n: (n,)
SHAPE[RANDOM] = lambda key, shape: shape
SHAPE[MATMUL] = product_shape
SHAPE[GATHER], SHAPE[SCATTER] = gathered, scattered

REMEDY = {"f": "a float dtype", "iuf": "a number's dtype",
          "iu": "an integer dtype", "b": "bool",
          "biu": "bool or an integer dtype"}


def check_kind(op: Op | str, dtype: DType, kinds: str) -> None:
    if dtype.kind not in kinds:
        raise TypeError(
            f"{op} has no meaning for {dtype}; expected "
            f"{REMEDY[kinds]}: cast or compare first")


class Typed(Protocol):
    """All that the rules of dtypes ask of an operand."""

    @property
    def dtype(self) -> DType: ...


def check_same_dtype(op: Op, first: Typed,
                     rest: Sequence[Typed]) -> DType:
    for other in rest:
        if other.dtype is not first.dtype:
            raise TypeError(
                f"{op}: dtypes {first.dtype} and {other.dtype} differ; "
                f"cast both to {promote(first.dtype, other.dtype)} first")
    return first.dtype


def kept(op: Op, kinds: str = "") -> Callable[..., DType]:
    """The rule that `op` keeps its operands' dtype, of one of `kinds`."""
    def dtype(first: Any, *rest: Any) -> DType:
        if kinds:
            check_kind(op, first.dtype, kinds)
        return check_same_dtype(op, first, rest[:-1])
    return dtype


DTYPE: dict[Op, Callable[..., DType]] = {
    op: kept(op) for ops in FAMILIES.values() for op in ops}
DTYPE |= {op: kept(op, "f")
          for op in (DIV, EXP, LOG, SIN, SQRT, ERF)}
DTYPE |= {op: kept(op, "iuf") for op in (SUB, IDIV, MOD, POW, SUM)}
DTYPE[AND] = kept(AND, "biu")


def compared(op: Op) -> Callable[..., DType]:
    def dtype(a: Typed, b: Typed, _: None) -> DType:
        check_same_dtype(op, a, [b])
        return bool_
    return dtype


def chosen(condition: Typed, a: Typed, b: Typed, _: None) -> DType:
    check_kind(WHERE, condition.dtype, "b")
    return check_same_dtype(WHERE, a, [b])


def indexed(op: Op) -> Callable[..., DType]:
    def dtype(x: Typed, index: Typed, _: Any) -> DType:
        check_kind(op, index.dtype, "iu")
        return x.dtype
    return dtype


def known(dtype: Any) -> DType:
    """`dtype`, where it is one of ours."""
    if not isinstance(dtype, DType):
        raise TypeError(f"dtype: expected one of companion's, such as "
                        f"companion.float32; got {dtype!r:.60}")
    return dtype


DTYPE[CONST] = lambda arg: known(arg[1])
DTYPE[IOTA] = lambda n: int64
DTYPE[RANDOM] = lambda key, shape: float32
DTYPE[CAST] = lambda x, dtype: known(dtype)
DTYPE[LESS], DTYPE[EQUAL] = compared(LESS), compared(EQUAL)
DTYPE[WHERE] = chosen
DTYPE[GATHER], DTYPE[SCATTER] = indexed(GATHER), indexed(SCATTER)


class Window(NamedTuple):
    """How a kernel sees one axis of a picture.

    Elements lie `spread` apart, with zeros between them. `before` and
    `after` count zeros at the two ends; below 0, elements to cut off.
    The kernel's taps lie `dilation` apart, and it moves by `stride`.
    """

    stride: int = 1
    dilation: int = 1
    spread: int = 1
    before: int = 0
    after: int = 0

    def places(self, n: int, taps: int) -> int:
        """How many places so many taps have on n elements."""
        length = max((n - 1) * self.spread + 1, 0) + self.before + self.after
        return (length - self.dilation * (taps - 1) - 1) // self.stride + 1


CONV = Op("CONV", 2)


def convolved(x: Shaped, w: Shaped, windows: Sequence[Window]) -> Shape:
    """(N, G, C, H, W) and (G, O, C, kh, kw) make (N, G, O, H', W')."""
    alike = len(x.shape) == len(w.shape) == 5 and len(windows) == 2 and (
        x.shape[1:3] == (w.shape[0], w.shape[2])) and (
        min([min(each[:3]) for each in windows]) >= 1)
    places = [each.places(n, k) for each, n, k in zip(
        windows, x.shape[3:], w.shape[3:])] if alike else []
    if min(places, default=0) < 1 or min(w.shape[3:]) < 1:
        raise ValueError(
            f"CONV: pictures {x.shape} and kernels {w.shape} through "
            f"{windows}; expected (N, G, C, H, W) and (G, O, C, kh, kw), and "
            f"two windows of steps >= 1 in which the kernel has a place")
    return (x.shape[0], *w.shape[:2], *places)


SHAPE[CONV], DTYPE[CONV] = convolved, kept(CONV)

ATTENTION = Op("ATTENTION", 5)
ATTENTION_GRADIENT = Op("ATTENTION_GRADIENT", 7)


def attended(q: Any, k: Any, v: Any, mask: Any, kept: Any, _: Any) -> Shape:
    """A row for each query: d sums, and the logarithm of the weights."""
    *stack, n, d = q.shape
    keys = (*stack, k.shape[-2], d)
    if not (k.shape == v.shape == keys
            and mask.shape == kept.shape == (*stack, n, k.shape[-2])):
        raise ValueError(
            f"ATTENTION: queries {q.shape}, keys {k.shape}, values "
            f"{v.shape}, mask {mask.shape} and kept {kept.shape} do not fit; "
            f"expected (..., T, D), twice (..., S, D), twice (..., T, S)")
    return (*stack, n, d + 1)


def gradients_of_attended(g: Any, y: Any, q: Any, k: Any, *rest: Any) -> Shape:
    """The gradients of q, k and v, their rows below each other."""
    *stack, n, d = q.shape
    return (*stack, n + 2 * k.shape[-2], d)


SHAPE[ATTENTION] = attended
SHAPE[ATTENTION_GRADIENT] = gradients_of_attended


def attends(op: Op) -> Callable[..., DType]:
    """The rule of float32 or float64 throughout, and of bools at the end."""
    def dtype(first: Any, *rest: Any) -> DType:
        *others, mask, kept, _ = rest
        check_kind(op, mask.dtype, "b")
        check_kind(op, kept.dtype, "b")
        if first.dtype not in (float32, float64):
            raise TypeError(f"{op}: expected float32 or float64, got "
                            f"{first.dtype}; cast first")
        return check_same_dtype(op, first, others)
    return dtype


DTYPE |= {op: attends(op) for op in (ATTENTION, ATTENTION_GRADIENT)}

SHAPE[BUFFER] = lambda buffer: buffer.shape
DTYPE[BUFFER] = lambda buffer: buffer.dtype
