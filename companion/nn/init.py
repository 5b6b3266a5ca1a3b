# Tangled from vocabulary: edit there, `make tangle`. sha256:2b30cff403c7
"""First values of weights, written over what is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from companion.autograd import no_grad
from companion.tensor import Tensor
from companion.tensor.creation import eye
from companion.tensor.operands import where
from companion.tensor.random import rand, randn


def drawn(x: Tensor, values: Any) -> Tensor:
    """x, with `values` in its memory; unrecorded."""
    with no_grad():
        return x.copy_(values)


def constant_(x: Tensor, val: float) -> Tensor:
    return drawn(x, val)


def zeros_(x: Tensor) -> Tensor:
    return drawn(x, 0)


def ones_(x: Tensor) -> Tensor:
    return drawn(x, 1)


def eye_(x: Tensor) -> Tensor:
    n, m = x.shape
    return drawn(x, eye(n, m, device=x.device))


def uniform_(x: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform on [a, b)."""
    u = rand(*x.shape, dtype=x.dtype, device=x.device)
    return drawn(x, u * (b - a) + a)


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    u = randn(*x.shape, dtype=x.dtype, device=x.device)
    return drawn(x, u * std + mean)


def trunc_normal_(x: Tensor, mean: float = 0.0, std: float = 1.0,
                  a: float = -2.0, b: float = 2.0) -> Tensor:
    """Normal, drawn again where it is beyond a or b."""
    normal_(x, mean, std)
    while not bool(((x >= a) & (x <= b)).all()):
        again = randn(*x.shape, dtype=x.dtype, device=x.device) * std + mean
        drawn(x, where((x >= a) & (x <= b), x.detach(), again))
    return x


def fans(x: Tensor) -> tuple[int, int]:
    """Inputs and outputs of a unit, of a weight (out, in, …taps)."""
    if x.ndim < 2:
        raise ValueError(f"init: expected a weight of two axes or more, got "
                         f"shape {x.shape}; use normal_ or uniform_")
    taps = math.prod(x.shape[2:])
    return x.shape[1] * taps, x.shape[0] * taps


def xavier_uniform_(x: Tensor, gain: float = 1.0) -> Tensor:
    """Variance 2 / (inputs + outputs) (Glorot, 2010)."""
    bound = gain * math.sqrt(6 / sum(fans(x)))
    return uniform_(x, -bound, bound)


def xavier_normal_(x: Tensor, gain: float = 1.0) -> Tensor:
    return normal_(x, 0, gain * math.sqrt(2 / sum(fans(x))))


def he_deviation(x: Tensor, a: float, mode: str,
                 nonlinearity: str) -> float:
    """The deviation that keeps the variance (He, 2015)."""
    if mode not in ("fan_in", "fan_out") or nonlinearity not in GAINS:
        raise ValueError(f"kaiming: expected mode fan_in or fan_out and one "
                         f"of {', '.join(GAINS)}; got {mode!r}, "
                         f"{nonlinearity!r}")
    fan = fans(x)[mode == "fan_out"]
    return GAINS[nonlinearity](a) / math.sqrt(fan)


GAINS: dict[str, Callable[[float], float]] = {
    "relu": lambda a: math.sqrt(2), "linear": lambda a: 1.0,
    "leaky_relu": lambda a: math.sqrt(2 / (1 + a * a)),
    "tanh": lambda a: 5 / 3, "sigmoid": lambda a: 1.0}


def kaiming_normal_(x: Tensor, a: float = 0, mode: str = "fan_in",
                    nonlinearity: str = "leaky_relu") -> Tensor:
    return normal_(x, 0, he_deviation(x, a, mode, nonlinearity))


def kaiming_uniform_(x: Tensor, a: float = 0, mode: str = "fan_in",
                     nonlinearity: str = "leaky_relu") -> Tensor:
    bound = math.sqrt(3) * he_deviation(x, a, mode, nonlinearity)
    return uniform_(x, -bound, bound)
