# Tangled from activations: edit there, `make tangle`. sha256:5428ae09c066
from __future__ import annotations

import math

from companion.tensor import Tensor
from companion.tensor.operands import narrowed, where, widened


def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    """x where x > 0, else slope · x (Maas et al., 2013)."""
    return where(x > 0, x, x * slope)


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return x.relu()


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x · Phi(x), Phi the normal distribution (Hendrycks & Gimpel, 2016).

    `approximate="tanh"` replaces Phi by a tangent: off by at most 5e-4.
    """
    if approximate == "none":
        # Below -5 the sum cancels. The values are under 1e-6 there, and the
        # repair, ERFC, would be one more primitive for every device.
        return x * ((x * math.sqrt(0.5)).erf() + 1) * 0.5
    if approximate == "tanh":
        wide = widened(x)  # a half overflows already in its square
        twice = (wide + wide * wide * wide * 0.044715) * math.sqrt(8 / math.pi)
        return narrowed(wide * twice.sigmoid(), x)  # (1 + tanh u) / 2
    raise ValueError(f"gelu: expected approximate='none' or 'tanh', "
                     f"got {approximate!r}")


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), also called swish (Ramachandran et al., 2017)."""
    return x * x.sigmoid()
