# Tangled from tensors, activations: edit there, `make tangle`. sha256:b2cc5baf4bc5  # noqa: E501
"""What the operators say in primitives: /, **, &, where, maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from companion.dtype import bool_, float32, promote
from companion.ops import AND, DIV, MAXIMUM, check_kind
from companion.tensor import Tensor
from companion.tensor.operands import (
    align,
    as_operand,
    as_tensor,
    common_dtype_and_shape,
    dtype_and_shape,
    first_device,
    ready,
    where,
)


def quotient(x: Any, y: Any) -> Tensor:
    """x / y, in the float dtype where both meet."""
    if ready(x, y) and x.dtype.is_float:
        return Tensor.apply(DIV, x, y)
    x, y = as_operand(x, y), as_operand(y, x)
    if x is None or y is None:
        return NotImplemented
    dtype, shape = common_dtype_and_shape(*map(dtype_and_shape, (x, y)))
    dtype = dtype if dtype.is_float else float32
    # Beside a number halves become float32: x / 1e7 has an answer in
    # float16, though 1e7 does not fit.
    numbers = not (isinstance(x, Tensor) and isinstance(y, Tensor))
    wide = promote(dtype, float32) if numbers else dtype
    device = first_device(x, y)
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
    x, y = (x, y) if ready(x, y) else align(x, y)
    check_kind("& | ^ << >>", x.dtype, kinds)
    return rule(x, y)


def maximum_of(a: Any, b: Any, tie: int | None = None) -> Tensor:
    """max(a, b); where they are equal, the slope is operand `tie`'s."""
    return Tensor.apply(MAXIMUM, *align(a, b), arg=tie)


def minimum_of(a: Any, b: Any, tie: int | None = None) -> Tensor:
    """min(a, b), by way of the reversed order."""
    a, b = [order_reversed(x) for x in align(a, b)]
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
