# Tangled from indexing: edit there, `make tangle`. sha256:5631c6b6b7a6
from __future__ import annotations

import math
import operator
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from companion.device import Device
from companion.dtype import (
    bfloat16, bool_, float16, float32, float64, int8, int64, uint8)
from companion.literate import message
from companion.ops import RANDOM, SCATTER
from companion.tensor import Tensor, from_numpy
from companion.tensor.creation import arange, eye, full, one_hot, ones, zeros
from companion.tensor.indexing import cat
from companion.tensor.operands import align, same_dtype, where
from companion.tensor.random import GENERATOR, Generator, rand, randint, randn


def test_basic_indexing_shares_storage():
    x = arange(24).reshape(2, 3, 4)
    for view in (x[1], x[:, ::-2], x[..., None, 1], x[-1, 0:0], x[()]):
        assert view.buffer.storage is x.buffer.storage
    assert x[[1]].buffer.storage is not x.buffer.storage


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.data())
def test_basic_indexing(shape, data):
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    array = np.arange(math.prod(shape)).reshape(shape)
    x = Tensor(array)
    assert np.array_equal(x[index].numpy(), array[index])
    x[index], array[index] = -1, -1
    assert np.array_equal(x.numpy(), array)


@settings(max_examples=100, deadline=None)
@given(hnp.array_shapes(max_dims=4, max_side=4), st.data())
def test_indexing_by_tensors(shape, data):
    array = np.arange(math.prod(shape)).reshape(shape)
    index = data.draw(hnp.integer_array_indices(shape))
    ours = tuple([Tensor(i) for i in index])
    assert np.array_equal(Tensor(array)[ours].numpy(), array[index])
    mask = array % 3 == 0
    assert np.array_equal(Tensor(array)[Tensor(mask)].numpy(), array[mask])


def test_random_numbers_do_not_depend_on_order():
    whole = Tensor.apply(RANDOM, Tensor([5, 0]), arg=(100,)).numpy()
    late = Tensor.apply(RANDOM, Tensor([5, 20]), arg=(60,)).numpy()
    assert np.array_equal(whole[40:], late)
    assert whole.min() >= 0 and whole.max() < 1


def test_a_refused_shape_takes_no_numbers():
    draw = Generator(1)
    for shape in ((-2, 3), (-3,), (-2, -3)):
        try:
            rand(*shape, generator=draw)
        except ValueError:
            assert draw.place == 0
        else:
            raise AssertionError("expected an error")


def test_a_seed_repeats_and_a_stream_does_not():
    a, b = Generator(3), Generator(3)
    first, second = rand(9, generator=a), rand(9, generator=a)
    assert (rand(9, generator=b) == first).all()
    assert not (first == second).any()
    assert rand(1000, dtype=bfloat16, generator=a).max() < 1


def test_threads_draw_numbers_of_their_own():
    def twenty(draw):
        return [rand(40, generator=draw).tolist() for _ in range(20)]

    draw, alone = Generator(3), Generator(3)
    pause = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as crowd:
            found = [numbers for drawn in crowd.map(twenty, [draw] * 8)
                     for numbers in drawn]
    finally:
        sys.setswitchinterval(pause)
    assert sorted(found) == sorted(twenty(alone) + [
        numbers for _ in range(7) for numbers in twenty(alone)])


def test_generators_are_copied_and_the_common_one_is_not():
    draw = Generator(5)
    rand(7, generator=draw)
    for copied in (deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        twin, again, common = copied([draw, draw, GENERATOR])
        assert twin is again is not draw and common is GENERATOR
        assert (twin.seed, twin.place) == (5, 4)


def test_moments_of_the_distributions():
    g = Generator(8)
    u, z = rand(200_000, generator=g), randn(200_000, generator=g)
    dice = randint(1, 7, (60_000,), generator=g)
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    assert abs((z ** 4).mean() - 3) < 0.1
    assert (abs(one_hot(dice, 7).sum(0)[1:] - 10_000) < 400).all()


def test_halves_keep_their_range():
    for half, many in ((float16, 70_000), (bfloat16, 1024)):
        x = full((many,), 3.0, half)
        assert x.mean().item() == 3 and x.var().item() == 0
        spots = zeros(many, dtype=int64)
        total = Tensor.apply(SCATTER, full((1000,), 1.0, half),
                             spots[:1000], arg=(0, 1))
        assert total.item() == 1000 and total.dtype is half
    wide = Tensor([-300.0, 300.0], float16)
    assert wide.std(correction=0).item() == 300
    assert (Tensor([60000.0], float16) / 1e7).item() == np.float16(0.006)


def test_sums_are_right_along_every_axis():
    for dtype, bound in ((float32, 1e-6), (float16, 1e-3), (bfloat16, 4e-3)):
        row = Tensor([300.1, -0.7], dtype)
        truth = row.to(float64).numpy()
        for x, axis in ((row.expand(1 << 18, 2), 0),
                        (row.expand(1 << 18, 2).contiguous(), 0),
                        (row.expand(3, 1 << 16, 2), 1),
                        (row.expand(1 << 9, 1 << 9, 2), (0, 1)),
                        (row.expand(1 << 18, 2).T, 1)):
            found = x.mean(axis)
            assert found.dtype is dtype
            assert np.abs(found.to(float64).numpy() / truth - 1).max() < bound
    alike = Tensor([300.1, -0.7]).expand(1 << 20, 2)
    assert alike.std(0).tolist() == [0.0, 0.0]


def test_a_place_named_very_often_has_the_whole_sum():
    for dtype, bound in ((float32, 1e-6), (bfloat16, 4e-3)):
        x = Tensor([300.1, -0.7], dtype).expand(1 << 18, 2)
        place = zeros(1 << 18, dtype=int64)
        sums = Tensor.apply(SCATTER, x, place, arg=(0, 2))
        truth = x[0].to(float64).numpy() * 2 ** 18
        found = sums.to(float64).numpy()
        assert np.abs(found[0] / truth - 1).max() < bound
        assert not found[1].any()


def test_dtypes_of_reductions():
    small, flag = Tensor([1, 2], uint8), Tensor([True, False])
    assert small.sum().dtype is int64 and flag.mean().dtype is float32
    assert small.argmax().dtype is int64 and flag.any().dtype is bool_
    assert small.max().dtype is uint8 and flag.cumsum(0).dtype is int64


def test_copies_work_like_their_originals():
    x = arange(6).reshape(2, 3)[:, ::-1]
    x.numpy()
    for y in (deepcopy(x), pickle.loads(pickle.dumps(x))):
        y.assign(7)
        assert (x + y[:, 1:2]).tolist() == [[9, 8, 7], [12, 11, 10]]


def test_in_place_operators_write_where_the_tensor_lies():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    name, row, turned = x, x[1], x.T
    x += 1
    x -= np.ones(2)
    x *= x
    row /= 2
    turned[0] **= 2
    assert name is x and x.tolist() == [[1.0, 4.0], [20.25, 8.0]]
    n = Tensor([12, 7], int8)
    n //= 2
    n %= 4
    n <<= 3
    n |= 1
    n ^= 2
    n &= 0x7B
    n >>= 1
    assert n.tolist() == [9, 13] and n.dtype is int8
    half = Tensor([1.0], float16)
    half += Tensor([0.5], float64)
    assert half.dtype is float16 and half.item() == 1.5
    m = eye(2)
    m += m.T
    assert m.tolist() == [[2, 0], [0, 2]]


def test_refusals_of_sentences():
    x, empty = ones(2, 3), zeros(0, 3)
    for kind, words, act in (
            (ValueError, "nothing has no", lambda: empty.max(0)),
            (ValueError, "nothing has no", lambda: empty.argmin()),
            (ValueError, "at least one", lambda: cat([])),
            (ValueError, "only", lambda: cat([x, 1.0])),
            (ValueError, "add up", lambda: x.split([1, 2])),
            (ValueError, "pairs", lambda: x.pad([(1, 1)])),
            (ValueError, "other than 0", lambda: arange(0, 3, 0)),
            (ValueError, ">= 0", lambda: eye(-1)),
            (TypeError, "float32", lambda: zeros(2, dtype=float)),
            (TypeError, "a float", lambda: randn(2, dtype=int64)),
            (TypeError, "a float", lambda: rand(2, dtype=int64))):
        assert words in message(act, kind)


def test_in_place_operators_refuse_what_does_not_fit():
    n, x, wide = arange(3), ones(3), ones(1).expand(3)
    for act in (lambda: operator.itruediv(n, 2), lambda: operator.iadd(n, .5),
                lambda: operator.iand(x > 0, 1),
                lambda: operator.iadd(x, ones(2, 3))):
        assert "does not fit into" in message(act)
    assert "clone" in message(lambda: operator.iadd(wide, 1))
    wide[0] += 4  # an element has one place in itself
    assert wide.tolist() == [5, 5, 5]
    assert "clone" in message(lambda: wide.__setitem__(0, 1))
    message(lambda: operator.iadd(x, "1"), TypeError)
    assert n.tolist() == [0, 1, 2] and x.tolist() == [1, 1, 1]


def test_arrays_join_the_tensor_on_its_device():
    far, beside = Device(), np.array([1.0, 2.0])
    far.name = "far"
    x = Tensor([3.0, 4.0], device=far)
    results = [x + beside, beside - x, x / beside, x ** beside, beside < x,
               x.maximum(beside), x.clamp(beside), where(x > 3, beside, x),
               where(beside > 1, x, 0.0), x.assign(beside)]
    assert all(y.device is far for y in results)
    x += beside
    x[x > 2] = np.float64(0)
    assert x.tolist() == [2, 0]


def test_constants_are_shared_and_cannot_be_overwritten():
    x = ones(2, 3)
    (_, zero), (_, again), (_, minus) = [align(x, v) for v in (0., 0., -0.)]
    assert zero.buffer is again.buffer
    assert (1 / zero).tolist() != (1 / minus).tolist()
    number, = [t for t in same_dtype(x, 7.0) if not t.shape]
    assert "clone" in message(lambda: number.assign(8))
    number.clone().assign(8)
    full((2, 3), 0.0).assign(9)
    assert (x * 7.0 + 0.0).sum().item() == 42


def test_refusals_of_indices_and_writes():
    x, wide = arange(6).reshape(2, 3), ones(1).expand(3)
    assert "index 2" in message(lambda: x[2], IndexError)
    assert "index 5" in message(lambda: x[[0, 5]], IndexError)
    assert "together" in message(lambda: x[[0], [3]], IndexError)
    assert "none" in message(lambda: zeros(0)[[0]], IndexError)
    assert "a mask" in message(lambda: x[Tensor([True])], IndexError)
    assert "got 1.5" in message(lambda: x[1.5], TypeError)
    assert "clone" in message(lambda: wide.assign(0))
    for index in 0, slice(1, 2), slice(None), wide > 0:
        assert "clone" in message(lambda i=index: wide.__setitem__(i, 5))
    assert wide.tolist() == [1, 1, 1]
    assert "wider" in message(lambda: x.to(int8) + 200, OverflowError)
    assert "wider" in message(lambda: Tensor([256], uint8), OverflowError)
    assert "wider" in message(lambda: Tensor([3e2], uint8), OverflowError)
    assert "or masks" in message(lambda: x[Tensor(1.5)], TypeError)
    fixed = from_numpy(np.broadcast_to(np.ones(1), (1,)))
    assert "clone" in message(lambda: fixed.assign(0))
    assert "rows of equal" in message(lambda: Tensor([[1], 2]))
    assert "cannot meet" in message(lambda: x + Tensor([1], device=Device()))
    assert "one of cpu" in message(lambda: x.to("tpu"))
