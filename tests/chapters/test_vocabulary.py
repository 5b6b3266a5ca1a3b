# Tangled from vocabulary: edit there, `make tangle`. sha256:1df118ac5dc9
from __future__ import annotations

import math

import numpy as np

from companion.array_api import NAMES
from companion.autograd import no_grad
from companion.dtype import float32, float64
from companion.layers import parameter
from companion.literate import message
from companion.tensor import Tensor
from companion.tensor.contraction import einsum
from companion.tensor.creation import zeros
from companion.tensor.gradients import grad
from companion.tensor.random import Generator, randn


def test_small_numbers_keep_their_digits():
    x = np.append(np.logspace(-12, 0, 60), -np.logspace(-12, -0.1, 60))
    for dtype, digits in ((float32, 4e-7), (float64, 1e-15)):
        values = x.astype(dtype.numpy)
        exact = values.astype(np.longdouble)
        for name in ("log1p", "expm1", "sinh"):
            found = getattr(Tensor(values), name)().numpy()
            right = getattr(np, name)(exact)
            assert abs(found / right - 1).max() < digits, name


def test_slopes_are_those_of_the_textbook():
    x = Tensor(np.linspace(-0.9, 0.9, 19), float64).requires_grad_()
    slopes = {"log1p": 1 / (1 + x), "expm1": x.exp(), "sinh": x.cosh(),
              "cosh": x.sinh(), "tan": 1 + x.tan() * x.tan(),
              "asinh": (1 + x * x).rsqrt(), "atanh": 1 / (1 - x * x),
              "atan": 1 / (1 + x * x), "asin": (1 - x * x).rsqrt()}
    for name, slope in slopes.items():
        (g,) = grad(getattr(x, name)().sum(), [x])
        assert np.allclose(g.numpy(), slope.detach().numpy(), 1e-13), name


def test_rounding():
    x = Tensor([-2.5, -0.4, 0.5, 1.5, math.inf, math.nan])
    assert str(x.round().tolist()) == "[-2.0, -0.0, 0.0, 2.0, inf, nan]"
    assert str(x.trunc().tolist()) == "[-2.0, -0.0, 0.0, 1.0, inf, nan]"
    assert Tensor([3.0]).copysign(Tensor([-0.0])).tolist() == [-3.0]


def test_the_last_writer_wins():
    index = np.random.default_rng(0).integers(0, 9, (4, 33))
    expected, source = np.zeros((4, 9)), np.arange(132.0).reshape(4, 33)
    for j in range(33):
        np.put_along_axis(expected, index[:, j:j + 1],
                          source[:, j:j + 1], 1)
    found = zeros(4, 9, dtype=float64).scatter(
        1, Tensor(index), Tensor(source))
    assert np.array_equal(found.numpy(), expected)


def test_the_largest_few():
    x = randn(3, 4097, dtype=float64, generator=Generator(0))
    values, places = x.topk(50)
    assert values.tolist() == x.sort(descending=True).values[
        :, :50].tolist()
    assert x.gather(1, places).tolist() == values.tolist()
    assert "k from 0 to the 4097" in message(lambda: x.topk(5000))


def test_running_sums_of_blocks():
    draw = np.random.default_rng(0)
    for shape, axis in (((2, 999), 1), ((999, 2), 0), ((3, 300, 2), 1),
                        ((40,), 0), ((), 0), ((5000,), 0)):
        raw = draw.random(shape)
        for dtype, digits in ((float32, 1e-6), (float64, 1e-14)):
            found = Tensor(raw, dtype).cumsum(axis).numpy()
            right = raw.astype(dtype.numpy).cumsum(axis, np.float64)
            assert np.allclose(found, right.reshape(shape), digits, 0)
    x = Tensor(draw.random(500)).requires_grad_()
    (slope,) = grad((x.cumsum(0) * Tensor(raw[:500])).sum(), [x])
    assert np.allclose(slope.numpy(), np.cumsum(raw[499::-1])[::-1])


def test_what_is_not_finite_does_not_reach_what_is_before():
    for bad, later in ((math.inf, math.inf), (math.nan, math.nan)):
        x = np.ones((3, 400), np.float32)
        x[1, 200] = bad
        y = Tensor(x).cumsum(1).numpy()
        assert np.array_equal(y[1, :200], np.arange(1, 201))
        assert str(y[1, 200:].mean()) == str(later) and (y[2] > 0).all()


def test_letters():
    rng = np.random.default_rng(0)
    for text, *shapes in (("ij,jk->ik", (2, 3), (3, 4)), ("ij->ji", (2, 3)),
                          ("bij,bkj->bik", (2, 3, 4), (2, 5, 4)),
                          ("i,j->ij", (2,), (3,)), ("ii", (3, 3)),
                          ("...ij,jk->...ik", (2, 2, 3), (3, 4)),
                          ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2))):
        arrays = [rng.random(shape) for shape in shapes]
        found = einsum(text, *map(Tensor, arrays))
        assert np.allclose(found.numpy(), np.einsum(text, *arrays)), text
    assert "one length" in message(
        lambda: einsum("ij,jk->ik", zeros(2, 3), zeros(4, 5)))


def test_words_for_signs():
    x = Tensor([-7, 7])
    assert x.div(2, rounding_mode="trunc").tolist() == [-3, 3]
    assert x.div(2, rounding_mode="floor").tolist() == [-4, 3]
    assert "floor" in message(lambda: x.div(2, rounding_mode="up"))
    w = Tensor([1.0, 2.0]).requires_grad_()
    y = w * 3
    y.exp_()
    (g,) = grad(y.sum(), [w])
    assert np.allclose(g.numpy(), 3 * np.exp([3, 6]))
    assert "leaf" in message(lambda: w.add_(1), RuntimeError)


def test_a_generator_computes_unrecorded():
    w = parameter(zeros(1))

    @no_grad()
    def values():
        yield w * 2
        yield w * 3

    @no_grad
    def plain():
        return w * 2

    for y in values():
        assert not y.requires_grad and (w * 1).requires_grad
    assert not plain().requires_grad


def test_a_function_for_any_package():
    def standardized(x, mean, std):
        centred = x - mean(x, axis=0, keepdims=True)
        return centred / std(x, axis=0, keepdims=True)

    raw = np.random.default_rng(0).random((5, 3))
    found = standardized(Tensor(raw), NAMES["mean"], NAMES["std"])
    assert np.allclose(found.numpy(), standardized(raw, np.mean, np.std))
