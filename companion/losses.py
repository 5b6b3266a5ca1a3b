# Tangled from losses: edit there, `make tangle`. sha256:5f26de6451c7
from __future__ import annotations

from collections.abc import Callable

from companion.tensor import Tensor, arange, where


# chapters/tensors/losses.md:53
def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of all elements, or the elements themselves."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of "
                         f"{', '.join(REDUCTIONS)}, got {reduction!r}")
    return REDUCTIONS[reduction](loss)


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": Tensor.mean,
    "sum": Tensor.sum,
    "none": lambda loss: loss,
}


# chapters/tensors/losses.md:70
def check_shapes(name: str, x: Tensor, target: Tensor) -> None:
    if x.shape != target.shape:
        raise ValueError(
            f"{name}: input {x.shape} and target {target.shape} must have "
            f"the same shape; reshape one of them")


# chapters/tensors/losses.md:77
def mse_loss(x: Tensor, target: Tensor,
             reduction: str = "mean") -> Tensor:
    """(x - target)², averaged over all elements."""
    check_shapes("mse_loss", x, target)
    return reduce_loss((x - target).square(), reduction)


# chapters/tensors/losses.md:145
def bce_with_logits(x: Tensor, target: Tensor,
                    reduction: str = "mean") -> Tensor:
    """-t log σ(x) - (1 - t) log(1 - σ(x)), from the logits x.

    `target` holds 0, 1, or probabilities between, in x's shape.
    """
    check_shapes("bce_with_logits", x, target)
    small = (-x.abs()).exp()
    loss = x.relu() - x * target + (small + 1).log()
    return reduce_loss(loss, reduction)


# chapters/tensors/losses.md:232
def cross_entropy(x: Tensor, target: Tensor, ignore_index: int = -100,
                  label_smoothing: float = 0.0,
                  reduction: str = "mean") -> Tensor:
    """-log softmax(x)[target] for logits x (…, C) and integers (…).

    Rows whose target is `ignore_index` count for nothing, also in the
    mean. `label_smoothing` ε mixes in the uniform distribution.
    """
    check_target(x, target, ignore_index)
    classes = x.shape[-1]
    rows, flat = x.reshape(-1, classes), target.reshape(-1)
    counted = flat != ignore_index
    safe = where(counted, flat, 0)
    logs = rows.log_softmax(-1)
    loss = -logs[arange(len(flat), device=x.device), safe]
    if label_smoothing:
        even = -logs.mean(-1)
        loss = loss * (1 - label_smoothing) + even * label_smoothing
    loss = where(counted, loss, 0)
    if reduction == "mean":
        return loss.sum() / counted.sum()
    return reduce_loss(loss.reshape(target.shape), reduction)


# chapters/tensors/losses.md:258
def check_target(x: Tensor, target: Tensor, ignore_index: int) -> None:
    """One class for each row of logits, and a class that exists."""
    if target.dtype.is_float or x.shape[:-1] != target.shape:
        raise ValueError(
            f"cross_entropy: for logits {x.shape} expected integer "
            f"targets of shape {x.shape[:-1]}, got {target.dtype} "
            f"{target.shape}")
    bad = ((target < 0) | (target >= x.shape[-1]))
    bad = bad & (target != ignore_index)
    if bool(bad.any()):
        raise IndexError(
            f"cross_entropy: targets must lie in 0 … {x.shape[-1] - 1} "
            f"or be {ignore_index}; got {target[bad].tolist()[:5]}")
