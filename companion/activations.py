# Tangled from activations: edit there, `make tangle`. sha256:2d1740ee5ae2
from __future__ import annotations

import math

from companion.tensor import Tensor, where


# chapters/tensors/activations.md:139
def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    """x where x > 0, else slope · x (Maas et al., 2013)."""
    return where(x > 0, x, x * slope)


# chapters/tensors/activations.md:144
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return x.relu()


# chapters/tensors/activations.md:566
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x · Phi(x), Phi the normal distribution (Hendrycks & Gimpel, 2016).

    `approximate="tanh"` replaces Phi by a tangent: off by at most 5e-4.
    """
    if approximate == "none":
        return x * ((x * math.sqrt(0.5)).erf() + 1) * 0.5
    if approximate == "tanh":
        twice = (x + x * x * x * 0.044715) * math.sqrt(8 / math.pi)
        return x * twice.sigmoid()  # (1 + tanh u) / 2 = sigmoid(2u)
    raise ValueError(f"gelu: expected approximate='none' or 'tanh', "
                     f"got {approximate!r}")


# chapters/tensors/activations.md:580
def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), also called swish (Ramachandran et al., 2017)."""
    return x * x.sigmoid()
