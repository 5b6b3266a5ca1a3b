# Tangled from tensors: edit there, `make tangle`. sha256:264ebf79eb5d
from __future__ import annotations

import math
import pickle
from copy import deepcopy

import numpy as np
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from companion.dtype import (
    bfloat16, bool_, float16, float32, float64, int8, int32, int64, uint8)
from companion.literate import message
from companion.tensor import Tensor
from companion.tensor.operands import where


def test_movement_shares_storage():
    x = Tensor(np.arange(24.0).reshape(2, 3, 4))
    moves = [x.reshape(6, 4), x.view(-1), x.permute(2, 0, 1), x.T, x.mT,
             x.flip(), x.unsqueeze(1), x.flatten(1), x.T.flip(0).squeeze()]
    assert all(m.buffer.storage is x.buffer.storage for m in moves)
    assert x.T.reshape(-1).buffer.storage is not x.buffer.storage


@settings(max_examples=100, deadline=None)
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, min_side=0))
def test_broadcasting(found):
    a, b, c = [np.random.default_rng(i).normal(size=shape)
               for i, shape in enumerate(found.input_shapes)]
    result = where(Tensor(a) < Tensor(b), Tensor(b), Tensor(c))
    assert result.shape == found.result_shape
    assert np.array_equal(result.numpy(), np.where(a < b, b, c))


def test_dtypes_of_results():
    small, flag = Tensor([1, 2], uint8), Tensor([True, False])
    assert (small + flag).dtype is uint8 and (small / 2).dtype is float32
    assert (small + 1).dtype is uint8 and (small + 1.0).dtype is float32
    assert (small - Tensor([1, 1], int8)).tolist() == [0, 1]
    assert (small < 2).dtype is bool_


def test_where_moves_bits():
    flag = Tensor([True, False, True, False, True])
    odd = [-0.0, 0.0, math.nan, math.inf, -1.5]
    for dtype in (float16, bfloat16, float32, float64):
        a, b = Tensor(odd, dtype), Tensor(odd[::-1], dtype)
        chosen = where(flag, a, b).numpy()
        mixed = np.stack([a.numpy(), b.numpy()])[[0, 1, 0, 1, 0], range(5)]
        assert chosen.tobytes() == mixed.tobytes()
    for dtype in (bool_, uint8, int8, int32, int64):
        ends = where(Tensor([True, False]), Tensor([1, 1], dtype),
                     Tensor(0, dtype))
        assert ends.tolist() == [1, 0] and ends.dtype is dtype
    assert where(Tensor(True), 1, 2.5).item() == 1.0


def test_copies_share_nothing():
    x = Tensor(np.arange(6).reshape(2, 3)).flip(1)
    for y in (deepcopy(x), pickle.loads(pickle.dumps(x)), x.clone()):
        y.numpy()[...] = 7
        assert (x + y).tolist() == [[9, 8, 7], [12, 11, 10]]


def test_refusals():
    x = Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for kind, words, act in (
            (ValueError, "(2, 3) and (2,)", lambda: x + Tensor([1, 2])),
            (ValueError, "use .reshape", lambda: x.T.view(6)),
            (ValueError, "swap", lambda: x.flatten(1, 0)),
            (ValueError, "do not fill", lambda: x.reshape(4, -1)),
            (IndexError, "axis 2", lambda: x.flip(2)),
            (TypeError, "compare first", lambda: x & x),
            (TypeError, "bools", lambda: where(x, 1, 0)),
            (TypeError, "number", lambda: x.maximum("2")),
            (TypeError, "float32", lambda: x.cast(np.float32)),
            (TypeError, "float32", lambda: Tensor([1], "int8")),
            (ValueError, "not one number", lambda: x.item()),
            (ValueError, "powers", lambda: Tensor([2]) ** -1),
            (ValueError, "one of cpu", lambda: x.to("tpu"))):
        assert words in message(act, kind)


def test_a_vector_has_no_matrix_to_transpose():
    assert "expected two axes or more, got shape (2,)" in message(
        lambda: Tensor([1, 1]).mT)
