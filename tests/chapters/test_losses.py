# Tangled from losses: edit there, `make tangle`. sha256:f6b9a22108d8
from __future__ import annotations

import math

import numpy as np

from companion.dtype import float16, float64, int32, int64, uint8
from companion.literate import message
from companion.losses import bce_with_logits, cross_entropy, mse_loss
from companion.tensor import Tensor
from companion.tensor.creation import one_hot, ones, zeros
from companion.tensor.random import manual_seed, randint, randn


def surprise(x, t):
    """Cross entropy by float64 NumPy, for logits (n, C)."""
    top = x.max(1, keepdims=True)
    logs = x - top - np.log(np.exp(x - top).sum(1, keepdims=True))
    return -logs[np.arange(len(t)), t], -logs.mean(1)


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


def test_ignored_rows_count_for_nothing():
    x = randn(4, 3, dtype=float64)
    t = Tensor([0, -100, 2, -100])
    kept = cross_entropy(x[::2], Tensor([0, 2]))
    assert np.isclose(cross_entropy(x, t).item(), kept.item())
    assert cross_entropy(x, t, reduction="none").tolist()[1] == 0.0
    kept = cross_entropy(x[1:], Tensor([2, 1, 2]))
    padded = cross_entropy(x, Tensor([0, 2, 1, 2]), ignore_index=0)
    assert np.isclose(padded.item(), kept.item())


def test_extremes_stay_finite_and_exact():
    x = Tensor([[1e4, -1e4], [-1e4, 1e4]])
    t = Tensor([1, 1])
    assert cross_entropy(x, t, reduction="none").tolist() == [2e4, 0.0]
    x = Tensor([1e4, -1e4, 0.0])
    got = bce_with_logits(x, zeros(3), "none").tolist()
    assert got[:2] == [1e4, 0.0] and abs(got[2] - math.log(2)) < 1e-6


def test_a_lifted_row_has_the_same_loss():
    x, t = Tensor([[1.0, 0.5, 0.0]]), Tensor([0])
    for e in (0.0, 0.1):
        low = cross_entropy(x, t, label_smoothing=e).item()
        high = cross_entropy(x + 1e6, t, label_smoothing=e).item()
        assert abs(high - low) < 1e-6


def test_labels_of_every_integer_dtype():
    x = randn(4, 3)
    wide = cross_entropy(x, Tensor([0, 2, 1, 1])).item()
    for dtype in (uint8, int32, int64):
        t = Tensor([0, 2, 1, 1], dtype)
        assert cross_entropy(x, t).item() == wide, dtype
    hole = Tensor([0, 255, 1, 1], uint8)
    kept = cross_entropy(x[[0, 2, 3]], Tensor([0, 1, 1])).item()
    assert abs(cross_entropy(x, hole, ignore_index=255).item() - kept) < 1e-6


def test_shares_agree_with_labels_and_with_smoothing():
    x, t = randn(5, 4, dtype=float64), randint(0, 4, (5,))
    hot = one_hot(t, 4).to(float64)
    for e in (0.0, 0.2):
        hard = cross_entropy(x, t, label_smoothing=e, reduction="none")
        soft = cross_entropy(x, hot, label_smoothing=e, reduction="none")
        even = cross_entropy(x, hot * (1 - e) + e / 4, reduction="none")
        assert np.allclose(hard.numpy(), soft.numpy())
        assert np.allclose(hard.numpy(), even.numpy())
    masked = Tensor([[0.0, -math.inf]])
    assert cross_entropy(masked, Tensor([[1.0, 0.0]])).item() == 0.0


def test_a_masked_class_is_no_nan():
    x = Tensor([[0.0, -math.inf, 1.0]])
    kept = cross_entropy(x[:, ::2], Tensor([1])).item()
    assert abs(cross_entropy(x, Tensor([2])).item() - kept) < 1e-7


def test_an_ignored_row_may_hold_anything():
    x = Tensor([[0.0, 1.0], [math.nan, math.inf]])
    alone = cross_entropy(x[:1], Tensor([1])).item()
    assert cross_entropy(x, Tensor([1, -100])).item() == alone
    assert cross_entropy(x, Tensor([1, 7]), ignore_index=7).item() == alone


def test_a_batch_without_targets_is_nan():
    none = Tensor([-100, -100])
    assert math.isnan(cross_entropy(zeros(2, 3), none).item())
    assert cross_entropy(zeros(2, 3), none, reduction="sum").item() == 0
    empty = zeros(0, dtype=int64)
    assert math.isnan(cross_entropy(zeros(0, 3), empty).item())
    assert cross_entropy(zeros(0, 3), empty, reduction="none").shape == (0,)
    assert math.isnan(mse_loss(zeros(0), zeros(0)).item())


def test_two_classes_are_a_special_case():
    x = randn(20, dtype=float64) * 4
    t = randint(0, 2, (20,))
    pair = Tensor(np.stack([np.zeros(20), x.numpy()], 1))
    a = bce_with_logits(x, t).item()
    assert np.isclose(a, cross_entropy(pair, t).item())
    assert np.isclose(a, bce_with_logits(x, t == 1).item())


def test_mse_and_reductions():
    x, t = Tensor([1.0, 2.0, 4.0]), Tensor([1.0, 0.0, 1.0])
    assert mse_loss(x, t, "none").tolist() == [0.0, 4.0, 9.0]
    assert mse_loss(x, t, "sum").item() == 13.0
    assert abs(mse_loss(x, t).item() - 13 / 3) < 1e-6


def test_bytes_and_halves():
    bytes_ = Tensor([3, 255], uint8)
    assert mse_loss(bytes_, bytes_.flip(0)).item() == 252 ** 2
    x = Tensor([300.0] + [0.0] * 9, float16)
    assert mse_loss(x, x * 0).item() == 9000.0
    rows, t = zeros(20_000, 40, dtype=float16), zeros(20_000, dtype=int64)
    loss = cross_entropy(rows, t)
    assert loss.dtype is float16
    assert abs(loss.item() - math.log(40)) < 2e-3


def test_bad_requests_say_what_to_do():
    assert "same shape" in message(lambda: mse_loss(ones(3, 1), ones(3)))
    assert "mean, sum, none" in message(
        lambda: mse_loss(ones(1), ones(1), "average"))
    for x, t in ((ones(2, 3), ones(2)), (ones(2, 3), Tensor([1, 2, 1])),
                 (ones(()), Tensor(0)), (ones(2, 3), ones(2, 4)),
                 (ones(2, 0), Tensor([0, 0])), (ones(()), ones(()))):
        text = message(lambda x=x, t=t: cross_entropy(x, t))
        assert "expected classes (…) as integers or shares" in text
    assert "0 … 2 or be ignore_index (GATHER: the index 7" in message(
        lambda: cross_entropy(ones(2, 3), Tensor([1, 7])), IndexError)
    assert "0 to 1, got 1.5" in message(lambda: cross_entropy(
        ones(2, 3), Tensor([1, 1]), label_smoothing=1.5))
    assert "leave it out" in message(
        lambda: cross_entropy(ones(2, 3), ones(2, 3), ignore_index=0))
    for loss in mse_loss, bce_with_logits, cross_entropy:
        assert "as target, got a ndarray" in message(
            lambda loss=loss: loss(ones(2), np.ones(2)), TypeError)
        assert "as input, got a list" in message(
            lambda loss=loss: loss([1.0], ones(1)), TypeError)
