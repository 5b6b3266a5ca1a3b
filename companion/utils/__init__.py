# Tangled from vocabulary: edit there, `make tangle`. sha256:e361ded874bb
"""PyTorch's utils."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from companion.vocabulary import found


def __getattr__(name: str) -> Any:
    if name not in ("checkpoint", "data"):
        return found("utils", {}, name)
    return import_module(f"companion.utils.{name}")
