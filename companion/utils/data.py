# Tangled from vocabulary: edit there, `make tangle`. sha256:965eb6d275fb
"""PyTorch's utils.data."""

from __future__ import annotations

from typing import Any

from companion.vocabulary import at, found


def __getattr__(name: str) -> Any:
    return found("utils.data", at(
        "companion.data",
        "DataLoader Dataset Subset TensorDataset random_split"), name)
