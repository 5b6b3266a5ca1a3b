# Tangled from vocabulary: edit there, `make tangle`. sha256:9e44f3eb9a4c
"""PyTorch's utils.checkpoint."""

from __future__ import annotations

from typing import Any

from companion.vocabulary import at, found


def __getattr__(name: str) -> Any:
    return found("utils.checkpoint", at("companion.accelerate", "checkpoint"),
                 name)
