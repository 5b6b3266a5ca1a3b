# Tangled from vocabulary: edit there, `make tangle`. sha256:a79d664b4bd9
"""PyTorch's nn.utils."""

from __future__ import annotations

from typing import Any

from companion.vocabulary import at, found


def __getattr__(name: str) -> Any:
    return found("nn.utils", at("companion.training", "clip_grad_norm_"),
                 name)
