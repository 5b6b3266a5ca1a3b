# Tangled from operations: edit there, `make tangle`. sha256:1ca1859d9793
from __future__ import annotations

import functools
import math

import numpy as np
from hypothesis import given, settings, strategies as st

from companion.buffer import adopt
from companion.device import CPU, Device, threefry
from companion.literate import message
from companion.ops import (
    ADD, BUFFER, DIV, DTYPE, EQUAL, EXP, EXPAND, FAMILIES, FLIP, GATHER, IDIV,
    LESS, LOG, MATMUL, MAX, MAXIMUM, MOD, MUL, PERMUTE, POW, RESHAPE, SCATTER,
    SHAPE, SHRINK, SIN, SQRT, SUB, WRITE)


def test_threefry_known_answers():
    """Random123's kat_vectors: counter, key, result."""
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    for (c0, c1), key, answer in [
            ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
            ((ones, ones), (ones, ones), (0x1CB996FC, 0xBB002BE7)),
            (pi[:2], pi[2:], (0xC4923A9C, 0x483DF7A0))]:
        counter = np.array([c0], np.uint32), np.array([c1], np.uint32)
        words = threefry(key, *counter)
        assert (int(words[0][0]), int(words[1][0])) == answer


ONE = (EXP, LOG, SIN, SQRT)
TWO = (ADD, SUB, MUL, DIV, POW, MAXIMUM, LESS, EQUAL, IDIV, MOD)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.permutations((0, 1, 2)), st.sets(st.sampled_from((0, 1, 2))),
       st.integers(1, 3))
def test_words_do_not_see_strides(order, flipped, step):
    cube = adopt(np.linspace(0.1, 3, 120).reshape(4, 5, 6))
    view = cube.view.shrink(tuple((0, n, step) for n in cube.shape))
    x = cube.moved(view.permute(tuple(order)).flip(tuple(flipped)))
    y = CPU.run(FLIP, x, arg=(0, 1, 2))
    for op, src in [(op, (x,)) for op in ONE] + [(op, (x, y)) for op in TWO]:
        strided = CPU.run(op, *src)
        dense = CPU.run(op, *[s.copy() for s in src])
        assert strided.dtype is dense.dtype
        assert np.allclose(strided.array, dense.array, rtol=1e-12)


def test_the_vocabulary():
    words = [op for family in FAMILIES.values() for op in family]
    assert len(words) == len(set(words)) == 34
    # A later chapter may add a word made of these to the tables.
    assert set(DTYPE) >= set(words)
    assert set(SHAPE) >= set(words) - {BUFFER}


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.tuples(*[st.integers(0, 3)] * 4), st.integers(0, 2), st.data())
def test_an_index_in_the_place_of_any_axis(shape, axis, data):
    n, few = shape[axis], st.integers(-shape[axis], shape[axis] - 1)
    count = data.draw(st.integers(0, 4)) if n else 0
    tail = (count, 2)[:data.draw(st.integers(1, 2))]
    index = np.zeros((*shape[:axis], *tail), np.int64)
    for place in np.ndindex(index.shape):
        index[place] = data.draw(few) % n if axis else data.draw(few)
    x = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    found = CPU.run(GATHER, adopt(x), adopt(index), arg=axis)
    back = CPU.run(SCATTER, found, adopt(index), arg=(axis, n))
    rows, sums = np.empty(found.shape), np.zeros(shape)
    for place in np.ndindex(index.shape):
        one = (*place[:axis], index[place])
        rows[place] = x[one]
        sums[one] += x[one]
    assert np.array_equal(found.array, rows)
    assert np.array_equal(back.array, sums)


def test_words_refuse_what_they_cannot_mean():
    x, short = adopt(np.ones((2, 3))), adopt(np.ones(3))
    empty, whole = adopt(np.ones((0, 3))), adopt(np.arange(3))
    fixed = adopt(np.broadcast_to(np.ones(1), (1,)))
    for kind, words, op, src, arg in (
            (ValueError, "broadcast or", ADD, (x, short), None),
            (ValueError, "no largest", MAX, (empty,), (0,)),
            (ValueError, "must be 6", RESHAPE, (x,), (4, 2)),
            (ValueError, "each axis", PERMUTE, (x,), (0, 0)),
            (ValueError, "can grow", EXPAND, (x,), (2, 6)),
            (ValueError, "leave shape", SHRINK, (x,), ((0, 3, 1),) * 2),
            (TypeError, "a float dtype", EXP, (whole,), None),
            (TypeError, "cast both to float64", ADD, (short, whole), None),
            (IndexError, "index 3", GATHER, (short, adopt(np.array(3))), 0),
            (ValueError, "same axes before", GATHER, (x, whole), 1),
            (ValueError, "allows reading", WRITE, (fixed, fixed), None)):
        act = functools.partial(CPU.run, op, *src, arg=arg)
        assert words in message(act, kind), op
    assert "(..., K, N)" in message(lambda: SHAPE[MATMUL](x, x, None))
    bare = Device()
    bare.kernels = {}
    assert "EXP has no kernel on the device cpu" in message(
        lambda: bare.run(EXP, x), NotImplementedError)
