# Tangled from losses: edit there, `make tangle`. sha256:15ddbcd0d556
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from companion.dtype import DType, int64
from companion.ops import GATHER
from companion.tensor import Tensor
from companion.tensor.operands import as_float, same_dtype, where, widened
from companion.tensor.reductions import detached


def check_tensors(name: str, x: Any, target: Any) -> None:
    """A list has neither shape nor dtype."""
    for place, value in (("input", x), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name}: expected a Tensor as {place}, got a "
                f"{type(value).__name__}; wrap it in Tensor(…)")


def matched(name: str, x: Tensor, target: Tensor) -> list[Tensor]:
    """Both in one float dtype, if they have one shape."""
    check_tensors(name, x, target)
    if x.shape != target.shape:
        raise ValueError(
            f"{name}: input {x.shape} and target {target.shape} must have "
            f"the same shape; reshape one of them")
    # Floats before the difference: in bytes, 3 - 255 is 4.
    return same_dtype(as_float(x), target)


REDUCTIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "mean": lambda loss, n: loss.sum() / n,
    "sum": lambda loss, n: loss.sum(),
    "none": lambda loss, n: loss,
}


def apply_reduction(loss: Tensor, reduction: str, dtype: DType,
                    n: Any = None) -> Tensor:
    """The mean (over n) or the sum of the elements, or all of them."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of "
                         f"{', '.join(REDUCTIONS)}, got {reduction!r}")
    n = loss.size if n is None else n
    return REDUCTIONS[reduction](loss, n).to(dtype)


def mse_loss(x: Tensor, target: Tensor,
             reduction: str = "mean") -> Tensor:
    """(x - target)², averaged over all elements (Legendre, 1805)."""
    x, target = matched("mse_loss", x, target)
    difference = widened(x) - widened(target)
    return apply_reduction(difference.square(), reduction, x.dtype)


def bce_with_logits(x: Tensor, target: Tensor,
                    reduction: str = "mean") -> Tensor:
    """-t log σ(x) - (1 - t) log(1 - σ(x)), from the logits x.

    `target` holds 0, 1, or probabilities between, in x's shape.
    (PyTorch: binary_cross_entropy_with_logits.)
    """
    like, target = matched("bce_with_logits", x, target)
    x, target = widened(like), widened(target)
    # By the sign, not by |x| and max: they have corners at 0, where the
    # loss has none.
    negative = x < 0
    small = where(negative, x, -x).exp()
    loss = where(negative, 0, x) - x * target + (small + 1).log()
    return apply_reduction(loss, reduction, like.dtype)


def shifted_logsumexp(x: Tensor) -> tuple[Tensor, Tensor]:
    """x less the largest of its row, and the log-sum-exp of that."""
    # What is taken off cancels, so its own slope need not be followed.
    shifted = x - detached(x.max(-1, keepdim=True))
    return shifted, shifted.exp().sum(-1).log()


def pick_classes(x: Tensor, target: Tensor) -> Tensor:
    """The element of each row of x (…, C) that target (…) names."""
    rows = x.reshape(-1, x.shape[-1])
    try:
        found = Tensor.apply(GATHER, rows, target.reshape(-1), arg=1)
    except IndexError as error:
        raise IndexError(
            f"cross_entropy: targets must lie in 0 … {x.shape[-1] - 1} or "
            f"be ignore_index ({error})") from None
    return found.reshape(target.shape)


def label_loss(x: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """The surprise (…) of logits x (…, C) at the classes (…)."""
    shifted, log_sum = shifted_logsumexp(x)
    score = pick_classes(shifted, target)
    if smoothing:
        mean = shifted.mean(-1)
        score = score * (1 - smoothing) + mean * smoothing
    return log_sum - score


def share_loss(x: Tensor, share: Tensor, smoothing: float) -> Tensor:
    """-Σ share · log softmax(x) over the last axis; a 0 counts as 0."""
    x, share = same_dtype(x, share)
    shifted, log_sum = shifted_logsumexp(x)
    if smoothing:
        share = share * (1 - smoothing) + smoothing / x.shape[-1]
    logs = shifted - log_sum.unsqueeze(-1)
    # A masked class of share 0 would give 0 * infinity.
    absent = (share == 0) & (logs == -math.inf)
    return -(where(absent, 0, logs) * share).sum(-1)


def holds_shares(x: Tensor, target: Tensor) -> bool:
    """Whether targets are shares or classes; an error if neither."""
    shares = target.dtype.is_float
    wanted = x.shape if shares else x.shape[:-1]
    if target.shape != wanted or x.shape[-1:] in ((), (0,)):
        raise ValueError(
            f"cross_entropy: for logits (…, C) expected classes (…) as "
            f"integers or shares (…, C) as floats; got {x.shape} and "
            f"{target.dtype} {target.shape}")
    return shares


def cross_entropy(x: Tensor, target: Tensor, ignore_index: int = -100,
                  label_smoothing: float = 0.0,
                  reduction: str = "mean") -> Tensor:
    """-log softmax(x)[target] for logits x (…, C), classes last.

    `target` holds classes (…) as integers, or shares (…, C) as floats.
    Rows whose class is `ignore_index` count for nothing, also in the
    mean. `label_smoothing` ε mixes in the uniform distribution.
    """
    check_tensors("cross_entropy", x, target)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected 0 to 1, got "
                         f"{label_smoothing}")
    wide, dtype = widened(x), as_float(x).dtype
    if holds_shares(x, target):
        if ignore_index != -100:
            raise ValueError("ignore_index: targets are shares, and none "
                             "of them is a class; leave it out")
        loss = share_loss(wide, widened(target), label_smoothing)
        return apply_reduction(loss, reduction, dtype)
    # Wide before it is compared: -100 is not a byte.
    target = target.to(int64)
    ignored = target == ignore_index
    labels = target.masked_fill(ignored, 0)
    loss = label_loss(wide, labels, label_smoothing).masked_fill(ignored, 0)
    counted = where(ignored, 0.0, 1.0).sum()
    return apply_reduction(loss, reduction, dtype, counted)
