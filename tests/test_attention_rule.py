"""Attention as it stands in books becomes one call of the kernel."""

import itertools
import math

import numpy as np
import pytest

from companion import Tensor, arange, float32, float64, no_grad, where
from companion.attention import attention_weights, causal_mask
from companion.compiler.graph import interpret
from companion.compiler.program import compile_graph
from companion.compiler.schedule import Call, prepared, schedule
from companion.device import CPU
from companion.ops import ATTENTION, MATMUL
from companion.tensor import Tensor as T

SCALES = {"none": lambda s: s, "times": lambda s: s * 0.5,
          "divided": lambda s: s / math.sqrt(5), "queries": None}
MASKS = {"none": lambda s, m: s,
         "filled": lambda s, m: s.masked_fill(~m, -math.inf),
         "chosen": lambda s, m: where(m, s, -math.inf)}


def heads(shape, keys, dtype=float32, seed=0):
    rng = np.random.default_rng(seed)
    *stack, n, d = shape
    return [Tensor(rng.normal(size=(*stack, length, d)), dtype, "lazy")
            for length in (n, keys, keys)]


def plain(q, k, v, mask, scale="times", how="filled"):
    scores = ((q * 0.5) @ k.mT if scale == "queries"
              else SCALES[scale](q @ k.mT))
    return MASKS[how](scores, mask).softmax(-1) @ v


def calls(*tensors):
    order, roots = prepared([t.buffer.node for t in tensors])
    return [step.node.op for step in schedule(order, roots)
            if isinstance(step, Call)]


def check(*tensors, rtol=2e-5):
    """The program's values are those of the operations one by one."""
    roots = [t.buffer.node for t in tensors]
    wanted = [np.array(x.array) for x in interpret(roots, CPU)]
    for found, want in zip(compile_graph(roots)(), wanted):
        np.testing.assert_allclose(found.array, want, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize(("scale", "how"), [
    *itertools.product(SCALES, MASKS)])
def test_ways_to_write_it(scale, how, dtype):
    q, k, v = heads((2, 3, 7, 5), 7, dtype)
    y = plain(q, k, v, causal_mask(7, 7, "lazy"), scale, how)
    assert calls(y) == [ATTENTION]
    check(y)


@pytest.mark.parametrize(("shape", "keys"), [
    ((5, 4), 9), ((3, 1, 4), 6), ((2, 1, 2, 1, 70, 8), 65), ((1, 1), 1),
    ((2, 0, 4), 3), ((0, 2, 4), 3)])
def test_shapes(shape, keys):
    q, k, v = heads(shape, keys)
    y = plain(q, k, v, None, how="none")
    check(y)


def test_masks_of_every_kind():
    """Data, part of the batch, and rows that may see nothing: NaN."""
    q, k, v = heads((2, 3, 6, 4), 6)
    rng = np.random.default_rng(1)
    for bits in (rng.random((6, 6)) < .5, rng.random((2, 1, 6, 6)) < .5,
                 np.zeros((6, 6), bool), np.tri(6, 6, 1, dtype=bool)):
        y = plain(q, k, v, Tensor(bits, device="lazy"))
        assert calls(y) == [ATTENTION]
        check(y)


def test_a_causal_mask_is_said_as_a_word():
    q, k, v = heads((2, 6, 4), 6)
    order, _ = prepared([plain(q, k, v, causal_mask(6, 6, "lazy"))
                         .buffer.node])
    (call,) = [x for x in order if x.op is ATTENTION]
    assert call.arg[1] is True
    order, _ = prepared([plain(q, k, v, causal_mask(6, 6, "lazy").mT)
                         .buffer.node])
    (call,) = [x for x in order if x.op is ATTENTION]
    assert call.arg[1] is False


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1)])
def test_a_row_or_column_for_all_is_not_causal(shape):
    """Where it is the first of a causal mask, it hides what it says."""
    q, k, v = heads((2, 6, 4), 6)
    mask = arange(shape[1], device="lazy").reshape((1, shape[1])) <= arange(
        shape[0], device="lazy").reshape((shape[0], 1))
    y = plain(q, k, v, mask)
    assert calls(y) == [ATTENTION]
    check(y)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e30])
def test_numbers_that_are_none(number):
    q, k, v = heads((2, 6, 4), 6)
    for x in (q, k, v):
        x[0, 2, 1] = number
        check(plain(q, k, v, causal_mask(6, 6, "lazy")))


def test_what_it_may_not_replace():
    q, k, v = heads((2, 6, 4), 6)
    weights = (q @ k.mT).softmax(-1)
    # Somebody wants the weights, or the values are of another width.
    assert ATTENTION not in calls(weights @ v, weights)
    assert ATTENTION not in calls(weights @ v[..., :3])
    assert ATTENTION not in calls((q @ k.mT / 0.0).softmax(-1) @ v)
    assert ATTENTION not in calls((q @ k.mT).softmax(-2) @ v)
    check(weights @ v, weights)
    q.requires_grad = True
    y = (q @ k.mT).softmax(-1) @ v
    y.sum().backward()
    assert calls(y.detach(), q.grad).count(MATMUL) == 4
    with no_grad():
        assert calls((q @ k.mT).softmax(-1) @ v) == [ATTENTION]


def test_the_chapter_s_weights_without_a_mask():
    q, k, v = heads((2, 6, 4), 6)
    y = attention_weights(q, k) @ v
    assert isinstance(y, T) and calls(y) == [ATTENTION]
    check(y)
