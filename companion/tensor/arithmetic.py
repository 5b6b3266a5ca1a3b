# Tangled from tensors, activations, vocabulary: edit there, `make tangle`. sha256:99e9165de66c  # noqa: E501
"""What the operators say in primitives: /, **, &, where, maximum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from companion.dtype import DType, bool_, float32, promote
from companion.ops import AND, DIV, MAXIMUM, check_kind
from companion.tensor import Tensor
from companion.tensor.operands import (
    align, as_float, as_operand, as_tensor, common_dtype_and_shape,
    dtype_and_shape, first_device, same_dtype, where)


def quotient(x: Any, y: Any) -> Tensor:
    """x / y, in the float dtype where both meet."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        x, y = as_operand(x, y), as_operand(y, x)
        if x is None or y is None:
            return NotImplemented
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        x, y = map(as_float, align(x, y))
        return Tensor.apply(DIV, x, y)
    dtype, shape = common_dtype_and_shape(*map(dtype_and_shape, (x, y)))
    dtype = dtype if dtype.is_float else float32
    # Beside a number halves become float32: x / 1e7 has an answer in
    # float16, though 1e7 does not fit.
    wide, device = promote(dtype, float32), first_device(x, y)
    x, y = [as_tensor(t, wide, device, shape) for t in (x, y)]
    return Tensor.apply(DIV, x, y).cast(dtype)


def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    """a and b: on bools, or bit by bit."""
    return Tensor.apply(AND, a, b)


def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    """a or b, on bools, or bit by bit."""
    if a.dtype is bool_:
        return Tensor.apply(MAXIMUM, a, b)
    # The sum counts a bit of both twice; if it wraps, the difference
    # wraps back.
    return a + b - bitwise_and(a, b)


def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """a or b and not both."""
    return a != b if a.dtype is bool_ else a + b - bitwise_and(a, b) * 2


def bitwise_op(rule: Callable[..., Tensor], x: Any, y: Any,
               kinds: str = "biu") -> Tensor:
    """`rule` on two operands of any shapes, as bools or integers."""
    x, y = as_operand(x, y), as_operand(y, x)
    if x is None or y is None:
        return NotImplemented
    x, y = align(x, y)
    check_kind("& | ^ << >>", x.dtype, kinds)
    return rule(x, y)


def maximum_of(a: Any, b: Any, tie: int | None = None) -> Tensor:
    """max(a, b); where they are equal, the slope is operand `tie`'s."""
    return Tensor.apply(MAXIMUM, *align(a, b), arg=tie)


def minimum_of(a: Any, b: Any, tie: int | None = None) -> Tensor:
    """min(a, b), by way of the reversed order."""
    # Before they are stretched: a number is reversed once.
    a, b = align(*map(order_reversed, same_dtype(a, b)))
    return order_reversed(Tensor.apply(MAXIMUM, a, b, arg=tie))


def order_reversed(x: Tensor) -> Tensor:
    """An order-reversing map that is its own inverse."""
    # ~ for integers: the negative of int8's -128 would be -128 again.
    return -x if x.dtype.is_float else ~x


PRODUCTS = range(1, 9)  # exponents that take at most four products


def integer_power(x: Tensor, n: int) -> Tensor:
    """x ** n in about log2(n) products, n >= 1."""
    if n == 1:
        return x
    half = integer_power(x, n // 2)
    return half * half * x if n % 2 else half * half


def shifted_left(x: Tensor, times: Tensor) -> Tensor:
    """x << times."""
    return x * 2 ** times


def shifted_right(x: Tensor, times: Tensor) -> Tensor:
    """x >> times: rounded down, 0 or -1 beyond the last bit."""
    # From here on 2 ** times does not fit the dtype and wraps around.
    bits = 8 * x.dtype.itemsize - (x.dtype.kind == "i")
    left = bitwise_and(times >= 0, times < bits)
    return where(left, x // 2 ** times, -(x < 0).cast(x.dtype))


TANH_NUMERATOR = (
    -9.64399179425052238628e-1, -9.92877231001918586564e1,
    -1.61468768441708447952e3)
TANH_DENOMINATOR = (
    1.0, 1.12811678491632931402e2, 2.23548839060100448583e3,
    4.84406305325125486048e3)


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Any:
    """Horner's rule, highest power first."""
    value: Any = coefficients[0]
    for coefficient in coefficients[1:]:
        value = x * value + coefficient
    return value


def odd(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An odd function, by way of its values at |x|."""
    negative = x < 0
    # Not x.abs(): its slope at 0 is 0, and f's is not.
    y = f(where(negative, -x, x))
    # At 0 each f has the slope 1; x itself keeps the sign of -0.
    return where(x == 0, x, where(negative, -y, y))


def arsinh(a: Tensor) -> Tensor:
    """log(a + sqrt(a² + 1)) for a >= 0 (fdlibm, 1993)."""
    # Not clamp, whose slope at NaN is 0: a broken run has to show.
    small = where(a > BEYOND, BEYOND, a)
    square = small * small
    near = (small + square / ((square + 1).sqrt() + 1)).log1p()
    return where(a > BEYOND, a.clamp(min=1).log() + math.log(2), near)


def artanh(a: Tensor) -> Tensor:
    return (a * 2 / (1 - a)).log1p() * 0.5


BEYOND = 1e10  # of a² + 1, the 1 is lost

ATAN_NUMERATOR = (
    -8.750608600031904122785e-1, -1.615753718733365076637e1,
    -7.500855792314704667340e1, -1.228866684490136173410e2,
    -6.485021904942025371773e1)
ATAN_DENOMINATOR = (
    1.0, 2.485846490142306297962e1, 1.650270098316988542046e2,
    4.328810604912902668951e2, 4.853903996359136964868e2,
    1.945506571482613964425e2)


def arctan(a: Tensor) -> Tensor:
    """For a >= 0: turned to at most 0.66, then Cephes' rational."""
    steep = a > 1 + math.sqrt(2)
    middle = (a > 0.66) & ~steep
    # Each branch sees numbers of its own only: no slope of another is NaN.
    turned, mid = -1 / where(steep, a, 1), where(middle, a, 1)
    near = where(steep | middle, 0, a)
    r = where(steep, turned, where(middle, (mid - 1) / (mid + 1), near))
    square = r * r
    bend = (polynomial(square, ATAN_NUMERATOR)
            / polynomial(square, ATAN_DENOMINATOR))
    eighths = steep.cast(a.dtype) * 2 + middle.cast(a.dtype)
    return eighths * (math.pi / 4) + (r + r * square * bend)


def has_minus(x: Tensor) -> Tensor:
    """Whether the sign is a minus; of -0 the reciprocal tells."""
    below = x < 0
    return below | (1 / x < 0) if x.dtype.is_float else below


def largest_number(dtype: DType) -> float:
    """The largest finite number of a float dtype."""
    found = np.nextafter(dtype.numpy.type(math.inf), dtype.numpy.type(0))
    return float(found)


def angle(y: Tensor, x: Tensor) -> Tensor:
    """The angle of points (x, y), from the half with x >= 0."""
    rise, run = y.abs(), x.abs()
    alike = (rise == run) & (rise.isinf() | (rise == 0))
    # Of two infinities, and of two zeros, the quotient is NaN.
    slope = (where(alike, 1, rise) / where(alike, 1, run)).atan()
    slope = where(alike & (rise == 0), 0, slope)
    whole = where(has_minus(x), math.pi - slope, slope)
    return where(has_minus(y), -whole, whole)


def divided(x: Any, y: Any, rounding_mode: str | None) -> Tensor:
    """x / y, rounded by one of three rules."""
    if rounding_mode is None:
        return quotient(x, y)
    if rounding_mode == "floor":
        return x // y
    if rounding_mode != "trunc":
        raise ValueError(f"div: expected rounding_mode None, 'floor' or "
                         f"'trunc', got {rounding_mode!r}")
    x, y = align(x, y)
    if x.dtype.is_float:
        return quotient(x, y).trunc()
    down = x // y
    return down + ((down < 0) & (down * y != x)).cast(x.dtype)
