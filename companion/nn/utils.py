# Tangled from vocabulary: edit there, `make tangle`. sha256:e256705b7905
"""PyTorch's nn.utils."""

from __future__ import annotations

from typing import Any

from companion.tensor import Tensor
from companion.vocabulary import at, found


def clip_grad_value_(parameters: Any, clip_value: float) -> None:
    """Each number of the gradients, held between -c and c."""
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if p.grad is not None:
            p.grad.clamp_(-clip_value, clip_value)


def __getattr__(name: str) -> Any:
    return found("nn.utils", at("companion.training", "clip_grad_norm_"),
                 name)
