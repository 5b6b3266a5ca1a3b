# Tangled from tangle, operations, blas: edit there, `make tangle`. sha256:f61bedac7133  # noqa: E501
"""Tensors, Tangled: a deep learning framework you can read."""

from __future__ import annotations

from importlib import import_module

from companion.literate.origin import install

# chapters/appendix/tangle.md:2615
__version__ = "0.1.0"
EXPORTS: dict[str, str] = {}


# chapters/appendix/tangle.md:2619
def __getattr__(name: str):
    """Import a public name when it is first asked for."""
    if name not in EXPORTS:
        raise AttributeError(f"companion has no {name}: {', '.join(EXPORTS)}")
    value = getattr(import_module(EXPORTS[name]), name)
    globals()[name] = value
    return value


# chapters/appendix/tangle.md:2628
def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS])


install()

# chapters/tensors/operations.md:2637
EXPORTS |= dict.fromkeys((
    "Tensor", "Generator", "allclose", "arange", "cat", "eye",
    "from_numpy", "full", "full_like", "linspace", "manual_seed",
    "one_hot", "ones", "ones_like", "rand", "randint", "randn", "stack",
    "where", "zeros", "zeros_like"), "companion.tensor")

# chapters/tensors/blas.md:1621
EXPORTS["set_threads"] = "companion.native"
