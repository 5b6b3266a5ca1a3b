# Tangled from tangle, operations, blas: edit there, `make tangle`. sha256:e9aa6a7f45a5  # noqa: E501
"""Tensors, Tangled: a deep learning framework you can read."""

from __future__ import annotations

from importlib import import_module

from companion.literate.origin import install

# chapters/appendix/tangle.md:2638
__version__ = "0.1.0"
EXPORTS: dict[str, str] = {}


# chapters/appendix/tangle.md:2642
def __getattr__(name: str):
    """Import a public name when it is first asked for."""
    if name not in EXPORTS:
        raise AttributeError(f"companion has no {name}: {', '.join(EXPORTS)}")
    value = getattr(import_module(EXPORTS[name]), name)
    globals()[name] = value
    return value


# chapters/appendix/tangle.md:2651
def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS])


install()

# chapters/tensors/operations.md:2755
EXPORTS |= dict.fromkeys((
    "Tensor", "Generator", "allclose", "arange", "cat", "eye",
    "from_numpy", "full", "full_like", "linspace", "manual_seed",
    "one_hot", "ones", "ones_like", "rand", "randint", "randn", "stack",
    "where", "zeros", "zeros_like"), "companion.tensor")
EXPORTS |= dict.fromkeys((
    "bool_", "uint8", "int8", "int32", "int64", "float16", "bfloat16",
    "float32", "float64"), "companion.dtype")

# chapters/tensors/blas.md:1630
EXPORTS["set_threads"] = "companion.native"
