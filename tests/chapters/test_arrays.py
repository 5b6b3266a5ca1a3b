# Tangled from arrays: edit there, `make tangle`. sha256:3641817a3f11
from __future__ import annotations

import ast
import math
from copy import deepcopy
from itertools import product

import numpy as np
from hypothesis import given, settings, strategies as st

from companion.buffer import Buffer, adopt, format_array, from_dlpack
from companion.dtype import (
    DTYPES, bfloat16, bool_, float64, int8, int32, promote)
from companion.literate import message
from companion.view import View


def test_promotion_follows_the_standard():
    standard = [d for d in DTYPES.values() if d is not bfloat16]
    for a, b in product(standard, standard):
        if a.is_float == b.is_float and (a is bool_) == (b is bool_):
            expected = np.promote_types(a.numpy, b.numpy)
            if expected == np.int16:
                expected = int32.numpy
            assert promote(a, b).numpy == expected
        elif a.is_float and not b.is_float:
            assert promote(a, b) is a


def test_promotion_does_not_depend_on_order():
    for a, b, c in product(DTYPES.values(), repeat=3):
        assert promote(a, a) is a and promote(a, b) is promote(b, a)
        assert promote(promote(a, b), c) is promote(a, promote(b, c))


def permuted(draw, ours, theirs):
    order = tuple(draw(st.permutations(range(theirs.ndim))))
    return ours.permute(order), theirs.transpose(order)


def flipped(draw, ours, theirs):
    axes = tuple(i for i in range(theirs.ndim) if draw(st.booleans()))
    steps = [-1 if i in axes else 1 for i in range(theirs.ndim)]
    slices = [slice(None, None, step) for step in steps]
    return ours.flip(axes), theirs[(..., *slices)]


def shrunk(draw, ours, theirs):
    slices = tuple(
        draw(st.slices(n).filter(lambda s: (s.step or 1) > 0))
        for n in theirs.shape)
    ranges = [s.indices(n) for s, n in zip(slices, theirs.shape)]
    return ours.shrink(ranges), theirs[(..., *slices)]


def expanded(draw, ours, theirs):
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=1))) + tuple(
        draw(st.integers(0, 3)) if n == 1 else n for n in theirs.shape)
    return ours.expand(shape), np.broadcast_to(theirs, shape)


MOVES = (permuted, flipped, shrunk, expanded)
many = settings(max_examples=200, deadline=None, database=None,
                derandomize=True)


def moved(draw, move, ours, theirs):
    """One movement on both sides; the storage must stay the same."""
    view, theirs = move(draw, ours.view, theirs)
    result = ours.moved(view)
    assert result.storage is ours.storage
    assert result.shape == theirs.shape
    assert (result.array == theirs).all()
    return result, theirs


@st.composite
def pairs(draw):
    """A buffer after some movements, and NumPy's array after the same."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    dtype = draw(st.sampled_from([int8, int32, bfloat16, float64]))
    theirs = np.arange(math.prod(shape)).astype(dtype.numpy).reshape(shape)
    pair = adopt(theirs), theirs
    for move in draw(st.lists(st.sampled_from(MOVES), max_size=3)):
        pair = moved(draw, move, *pair)
    return pair


@many
@given(pairs(), st.data())
def test_movements_agree_and_copy_nothing(pair, data):
    for move in MOVES:
        moved(data.draw, move, *pair)


@many
@given(pairs(), st.data())
def test_reshape_copies_only_where_it_must(pair, data):
    ours, theirs = pair
    factors = [f for n in theirs.shape for f in ((2, 2) if n == 4 else (n,))]
    factors = data.draw(st.permutations([*factors, 1]))
    cut = data.draw(st.integers(1, len(factors)))
    shape = (math.prod(factors[:cut]), *factors[cut:])
    view = ours.view.reshape(shape)
    try:
        expected = theirs.reshape(shape, copy=False)
    except ValueError:
        assert view is None
        expected = theirs.reshape(shape)
        ours, view = ours.copy(), View.dense(shape)
    assert (ours.moved(view).array == expected).all()


@many
@given(pairs())
def test_memory_is_shared_where_it_can_be(pair):
    ours, theirs = pair
    adopted = adopt(theirs)
    assert (adopted.array == theirs).all()
    assert theirs.size == 0 or np.shares_memory(adopted.array, theirs)
    assert ours.view.is_dense == theirs.flags.c_contiguous
    assert (ours.dense() is ours) == ours.view.is_dense
    assert (ours.dense().array == theirs).all()
    cells = {ours.view.address(index) for index in np.ndindex(theirs.shape)}
    assert ours.view.repeats == (len(cells) < theirs.size)


def test_copies_are_buffers_like_others():
    for dtype in (bool_, int8, bfloat16):
        ours = adopt(np.ones((2, 3), dtype.numpy)[:, ::-1])
        ours.array[0, 0] = 0
        other = deepcopy(ours)
        other.array[...] = 0
        assert other.moved(other.view).array.sum() == 0
        assert ours.array.sum() == 5 and other.dtype is dtype


@many
@given(pairs().filter(lambda pair: pair[1].size))
def test_text_reads_back(pair):
    assert ast.literal_eval(format_array(pair[0])) == pair[1].tolist()


def test_text_of_every_kind():
    for array, expected in (
            (np.array(5, np.uint8), "5"),
            (np.array([True, False]), "[ True, False]"),
            (np.array([0.1], bfloat16.numpy), "[0.1001]"),
            (np.float32([0.1, np.inf, np.nan]), "[0.1, inf, nan]"),
            (np.array([1e-9, 1e9]), "[1.0000e-09, 1.0000e+09]"),
            (np.zeros((0, 2)), "[], shape=(0, 2)"),
            (np.arange(2000), "[   0,    1,    2, …, 1997, 1998, 1999]"),
            (np.zeros((2, 2, 1), int), "[[[0],\n  [0]],\n\n [[0],\n  [0]]]")):
        assert format_array(adopt(array)) == expected
    whole = format_array(adopt(np.arange(6)), threshold=1)
    assert whole == "[0, 1, 2, 3, 4, 5]"


def test_refusals():
    half = Buffer.empty((2,), bfloat16)
    backwards = adopt(np.arange(3)[::-1])
    outside = Buffer.empty((12,), int8).moved(View((3, 5), (5, 1)))
    fields = np.zeros(3, "i4, i1")["f0"]
    gpu = type("Gpu", (), {"__dlpack_device__": lambda self: (2, 0)})()
    assert "convert with .astype" in message(
        lambda: adopt(np.zeros(2, np.complex64)), TypeError)
    assert "pass a copy" in message(lambda: adopt(fields))
    assert "float32" in message(half.__dlpack__, BufferError)
    assert "dense copy" in message(backwards.__dlpack__, BufferError)
    assert "to the host" in message(lambda: from_dlpack(gpu), BufferError)
    assert "strides" in message(lambda: outside.array)
