# Tangled from losses: edit there, `make tangle`. sha256:cc5e49e43a2f
from __future__ import annotations

import math

import numpy as np

from companion.dtype import float64
from companion.losses import bce_with_logits, cross_entropy, mse_loss
from companion.tensor import Tensor, manual_seed, ones, randint, randn, zeros


# chapters/tensors/losses.md:435
def surprise(x, t):
    """Cross entropy by float64 NumPy, for logits (n, C)."""
    top = x.max(1, keepdims=True)
    logs = x - top - np.log(np.exp(x - top).sum(1, keepdims=True))
    return -logs[np.arange(len(t)), t], -logs.mean(1)


# chapters/tensors/losses.md:442
def message(call, kind=ValueError):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("expected an error")


# chapters/tensors/losses.md:451
def test_cross_entropy_against_numpy():
    manual_seed(0)
    x, t = randn(50, 7, dtype=float64) * 5, randint(0, 7, (50,))
    picked, even = surprise(x.numpy(), t.numpy())
    assert np.isclose(cross_entropy(x, t).item(), picked.mean())
    assert np.isclose(cross_entropy(x, t, reduction="sum").item(),
                      picked.sum())
    smooth = 0.9 * picked + 0.1 * even
    assert np.isclose(
        cross_entropy(x, t, label_smoothing=0.1).item(), smooth.mean())


# chapters/tensors/losses.md:466
def test_ignored_rows_count_for_nothing():
    x = randn(4, 3, dtype=float64)
    t = Tensor([0, -100, 2, -100])
    kept = cross_entropy(x[::2], Tensor([0, 2]))
    assert np.isclose(cross_entropy(x, t).item(), kept.item())
    assert cross_entropy(x, t, reduction="none").tolist()[1] == 0.0


# chapters/tensors/losses.md:475
def test_extremes_stay_finite_and_exact():
    x = Tensor([[1e4, -1e4], [-1e4, 1e4]])
    t = Tensor([1, 1])
    assert cross_entropy(x, t, reduction="none").tolist() == [2e4, 0.0]
    x = Tensor([1e4, -1e4, 0.0])
    got = bce_with_logits(x, zeros(3), "none").tolist()
    assert got[:2] == [1e4, 0.0] and abs(got[2] - math.log(2)) < 1e-6


# chapters/tensors/losses.md:487
def test_a_masked_class_is_no_nan():
    x = Tensor([[0.0, -math.inf, 1.0]])
    kept = cross_entropy(x[:, ::2], Tensor([1])).item()
    assert abs(cross_entropy(x, Tensor([2])).item() - kept) < 1e-7


# chapters/tensors/losses.md:494
def test_an_ignored_row_may_hold_anything():
    x = Tensor([[0.0, 1.0], [math.nan, math.inf]])
    alone = cross_entropy(x[:1], Tensor([1])).item()
    assert cross_entropy(x, Tensor([1, -100])).item() == alone
    assert cross_entropy(x, Tensor([1, 7]), ignore_index=7).item() == alone


# chapters/tensors/losses.md:502
def test_a_batch_without_targets_is_nan():
    loss = cross_entropy(zeros(2, 3), Tensor([-100, -100]))
    assert math.isnan(loss.item())


# chapters/tensors/losses.md:510
def test_two_classes_are_a_special_case():
    x = randn(20, dtype=float64) * 4
    t = randint(0, 2, (20,))
    pair = Tensor(np.stack([np.zeros(20), x.numpy()], 1))
    a = bce_with_logits(x, t.to(float64)).item()
    assert np.isclose(a, cross_entropy(pair, t).item())


# chapters/tensors/losses.md:519
def test_mse_and_reductions():
    x, t = Tensor([1.0, 2.0, 4.0]), Tensor([1.0, 0.0, 1.0])
    assert mse_loss(x, t, "none").tolist() == [0.0, 4.0, 9.0]
    assert mse_loss(x, t, "sum").item() == 13.0
    assert abs(mse_loss(x, t).item() - 13 / 3) < 1e-6


# chapters/tensors/losses.md:527
def test_bad_requests_say_what_to_do():
    assert "same shape" in message(lambda: mse_loss(ones(3, 1), ones(3)))
    assert "mean, sum, none" in message(
        lambda: mse_loss(ones(1), ones(1), "average"))
    assert "expected integer targets of shape (2,)" in message(
        lambda: cross_entropy(ones(2, 3), ones(2)))
    assert "got [7]" in message(
        lambda: cross_entropy(ones(2, 3), Tensor([1, 7])), IndexError)
