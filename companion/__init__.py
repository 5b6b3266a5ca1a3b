"""Tensors, Tangled: a deep learning framework you can read."""

from importlib import import_module

from companion.literate.origin import install

__version__ = "0.1.0"

EXPORTS: dict[str, str] = {}


def __getattr__(name: str):
    """Import a public name when it is first asked for."""
    if name not in EXPORTS:
        raise AttributeError(f"companion has no {name}: {', '.join(EXPORTS)}")
    value = getattr(import_module(EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS])


install()
