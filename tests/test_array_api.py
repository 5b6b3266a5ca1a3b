"""The array API standard, against NumPy, which has it, too.

A row is a line with `xp` as the package, evaluated for both.  x, y, z and
w are floats, n and k whole numbers, b and c bools, v a sorted row.
"""

import inspect
import math

import numpy as np
import pytest

import companion
from companion import Tensor, array_api
from companion.dtype import bfloat16, float32, float64, int32, int64, uint8

ROWS = """
xp.abs(x), xp.abs(n), xp.negative(n), xp.positive(x), xp.sign(x), xp.sign(n)
xp.acos(x / 9), xp.asin(x / 9), xp.atan(x), xp.acosh(x * x + 1), xp.asinh(x)
xp.atanh(x / 9), xp.cos(x), xp.sin(x), xp.tan(x), xp.cosh(x), xp.sinh(x)
xp.tanh(x), xp.exp(x), xp.expm1(x), xp.log(x * x), xp.log1p(x * x)
xp.log2(x * x), xp.log10(x * x), xp.sqrt(x * x), xp.square(n), xp.square(x)
xp.reciprocal(x), xp.round(x), xp.round(n), xp.ceil(x), xp.ceil(n)
xp.floor(x), xp.floor(n), xp.trunc(x), xp.trunc(n), xp.signbit(x)
xp.isfinite(x), xp.isfinite(n), xp.isinf(x), xp.isinf(n), xp.isnan(x)
xp.isnan(n), xp.logical_not(b), xp.bitwise_invert(n), xp.bitwise_invert(b)
xp.add(x, y), xp.add(n, k), xp.add(x, 2), xp.add(2, x), xp.subtract(1.5, x)
xp.multiply(x, y), xp.multiply(3, n), xp.divide(x, y), xp.divide(1, x)
xp.floor_divide(x, y), xp.floor_divide(n, 3), xp.floor_divide(n, -3)
xp.remainder(x, y), xp.remainder(n, 3), xp.remainder(n, -3)
xp.pow(x * x, y), xp.pow(k, 2), xp.pow(2.0, x), xp.pow(x, 2)
xp.atan2(x, y), xp.atan2(x, 2.0), xp.copysign(x, y), xp.copysign(1.0, x)
xp.hypot(x, y), xp.logaddexp(x, y), xp.maximum(x, y), xp.minimum(n, k)
xp.maximum(0, n), xp.minimum(x, 0.5), xp.clip(x, -0.5, 0.5), xp.clip(n, min=0)
xp.clip(x, max=0.1), xp.clip(x, y - 1, y + 1), xp.clip(n, -2, 2)
xp.equal(n, k), xp.not_equal(x, y), xp.less(x, y), xp.less_equal(n, 0)
xp.greater(0, x), xp.greater_equal(n, k), xp.equal(b, c), xp.equal(b, True)
xp.logical_and(b, c), xp.logical_or(b, True), xp.logical_xor(b, c)
xp.bitwise_and(n, k), xp.bitwise_or(n, 1), xp.bitwise_xor(b, c)
xp.bitwise_left_shift(k, 2), xp.bitwise_right_shift(n, 1)
xp.matmul(x, z), xp.matmul(n, xp.matrix_transpose(n)), xp.matmul(x, w)
xp.vecdot(x, y), xp.vecdot(n, k), xp.vecdot(x, w), xp.vecdot(x, y, axis=0)
xp.tensordot(x, z, axes=1), xp.tensordot(x, y, axes=2)
xp.tensordot(w, x, axes=0), xp.tensordot(q, q, axes=((0, 2), (0, 2)))
xp.tensordot(q, x, axes=([1], [0])), xp.matrix_transpose(q)
xp.broadcast_to(w, (2, 4)), xp.broadcast_arrays(w, x), xp.unstack(x)
xp.unstack(q, axis=1), xp.concat([x, y]), xp.concat((x, y), axis=1)
xp.concat([x, w], axis=None), xp.concat([n, xp.astype(b, xp.int32)])
xp.stack([x, y]), xp.stack([x, y], axis=-1), xp.expand_dims(x, 0)
xp.expand_dims(x, axis=-1), xp.expand_dims(x, axis=(0, 2))
xp.squeeze(x[:1], 0), xp.squeeze(x[:1, :1], (0, 1)), xp.flip(x)
xp.flip(q, axis=1), xp.flip(q, axis=(0, 2)), xp.moveaxis(q, 0, -1)
xp.moveaxis(q, (0, 1), (1, 0)), xp.permute_dims(q, (2, 0, 1))
xp.repeat(x, 2), xp.repeat(x, 2, axis=1), xp.repeat(w, k[0] * k[0], axis=0)
xp.reshape(x, (4, -1)), xp.reshape(x, (12,), copy=True), xp.tile(x, (2, 1))
xp.roll(x, 1), xp.roll(x, -2, axis=1), xp.roll(q, (1, 2), axis=(0, 2))
xp.tile(w, (2, 3)), xp.tile(q, (2,)), xp.tile(w, ())
xp.argmax(x), xp.argmax(x, axis=1), xp.argmin(n, axis=0, keepdims=True)
xp.count_nonzero(n), xp.count_nonzero(b, axis=1, keepdims=True)
xp.nonzero(n), xp.nonzero(b), xp.where(b, x, y), xp.where(b, x, 0.0)
xp.searchsorted(v, w), xp.searchsorted(v, v, side="right")
xp.searchsorted(xp.flip(v), w, sorter=xp.argsort(xp.flip(v)))
xp.unique_all(n), xp.unique_counts(n), xp.unique_inverse(k)
xp.unique_values(b), xp.unique_values(xp.asarray([1.0, 1.0, 0.5]))
xp.sort(x), xp.sort(x, axis=0), xp.sort(n, axis=-1)
xp.argsort(x), xp.argsort(n, axis=0, stable=True), xp.sort(b, axis=1)
xp.max(x), xp.min(n, axis=0), xp.max(q, axis=(0, 2), keepdims=True)
xp.mean(x), xp.mean(q, axis=(0, 1)), xp.mean(x, axis=1, keepdims=True)
xp.sum(x), xp.sum(n, axis=1), xp.sum(b), xp.sum(n, dtype=xp.float32)
xp.sum(x, axis=(), keepdims=True), xp.prod(x), xp.prod(n, axis=0)
xp.prod(n, axis=(0, 1), keepdims=True, dtype=xp.float64), xp.prod(x, axis=1)
xp.std(x), xp.std(x, axis=0), xp.var(q, axis=(1, 2), correction=1)
xp.var(x, axis=1, keepdims=True), xp.cumulative_sum(w)
xp.cumulative_sum(x, axis=1, include_initial=True)
xp.cumulative_sum(n, axis=0, dtype=xp.float64), xp.cumulative_prod(w)
xp.cumulative_prod(n, axis=1, include_initial=True)
xp.all(b), xp.any(n, axis=1), xp.all(x, axis=0, keepdims=True)
xp.diff(x), xp.diff(n, axis=0, n=2), xp.diff(w, prepend=w[:1], append=w)
xp.take(w, k[0] * 0 + 1), xp.take(x, xp.asarray([2, 0]), axis=0)
xp.take_along_axis(x, xp.argsort(x, axis=1))
xp.take(q, xp.asarray([1]), axis=-1)
xp.take_along_axis(x, xp.argsort(x, axis=0), axis=0)
xp.tril(x), xp.triu(x, k=1), xp.tril(q, k=-1)
xp.eye(3), xp.eye(2, 4, k=1), xp.eye(4, 2, k=-1, dtype=xp.int32)
xp.arange(5), xp.arange(1, 9, 3), xp.arange(5, 0, -2, dtype=xp.float32)
xp.linspace(0, 1, 5, dtype=xp.float32), xp.linspace(1, 0, 4, endpoint=False)
xp.full((2, 3), 7), xp.full(2, 0.5), xp.full((), True)
xp.full_like(n, 3), xp.full_like(x, 2, dtype=xp.int64), xp.zeros((2, 0))
xp.zeros(3, dtype=xp.int32), xp.ones((1, 2)), xp.zeros_like(n)
xp.ones_like(x, dtype=xp.bool), xp.empty((2, 0)), xp.empty_like(x[:0])
xp.meshgrid(w, v), xp.meshgrid(w, v, indexing="ij"), xp.meshgrid(w)
xp.astype(x, xp.int32), xp.astype(n, xp.float64), xp.astype(n, xp.bool)
xp.asarray([[1, 2], [3, 4]]), xp.asarray(2.5), xp.asarray([True, False])
xp.asarray([1, 2], dtype=xp.float32), xp.asarray(x, copy=True)
x[..., None], x[xp.newaxis, 1:, ::-1], x[b], n[n > 0], x[1, 2], q[:, 0, -1]
xp.max(x[:0], axis=1), xp.sum(x[:0]), xp.sort(x[:0], axis=1), xp.prod(x[:0])
"""
LINES = [line.strip() for line in ROWS.splitlines() if line]


def operands(make):
    draw = np.random.default_rng(0)
    floats = {"x": (3, 4), "y": (3, 4), "z": (4, 5), "w": (4,),
              "q": (2, 3, 4)}
    found = {name: draw.standard_normal(shape).astype(np.float32)
             for name, shape in floats.items()}
    found["v"] = np.sort(draw.standard_normal(6).astype(np.float32))
    for name, low in (("n", -4), ("k", 0)):
        found[name] = draw.integers(low, 4, (3, 4)).astype(np.int32)
    for name in "bc":
        found[name] = draw.random((3, 4)) < 0.5
    return {name: make(array) for name, array in found.items()}


def parts(value):
    if isinstance(value, (tuple, list)):
        return [each for part in value for each in parts(part)]
    return [value]


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_what_it_is_in_numpy(line):
    ours = parts(eval(line, {"xp": array_api} | operands(Tensor)))
    theirs = parts(eval(line, {"xp": np} | operands(np.asarray)))
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, Tensor) and a.shape == np.shape(b), line
        kind = np.asarray(b).dtype
        # Python's floats are float32 here, float64 there.
        if str(a.dtype) != str(kind):
            assert (str(a.dtype), str(kind)) == ("float32", "float64"), line
        np.testing.assert_allclose(a.numpy(), b, 2e-5, 1e-6)


def test_every_function_is_in_a_line():
    spoken = {word.partition("(")[0] for line in LINES
              for word in line.split("xp.")[1:]}
    functions = {name for names in array_api.STANDARD.values()
                 for name in names.split()
                 if inspect.isfunction(array_api.NAMES.get(name))}
    elsewhere = {"can_cast", "finfo", "iinfo", "isdtype", "result_type",
                 "from_dlpack"}
    assert functions - spoken == elsewhere


@pytest.mark.parametrize("descending", [False, True])
def test_order_from_the_largest_down(descending):
    x = Tensor([[1.0, 3.0, 1.0], [2.0, math.nan, 5.0]])
    found = array_api.argsort(x, descending=descending).tolist()
    assert found[0] == ([1, 0, 2] if descending else [0, 2, 1])
    sorted_x = array_api.sort(x, axis=0, descending=descending)
    assert sorted_x[0, 0].item() == (2 if descending else 1)


def test_a_tensor_knows_its_namespace():
    x = companion.ones(2)
    xp = x.__array_namespace__(api_version="2024.12")
    assert xp is array_api and xp.where is not companion.where
    assert {"where", "concat", "e"} <= {*dir(xp)} and "np" not in dir(xp)
    with pytest.raises(AttributeError):
        _ = xp.nextafter
    info = xp.__array_namespace_info__()
    assert info.default_dtypes()["real floating"] is float32
    assert {*info.dtypes(kind="unsigned integer")} == {"uint8"}
    assert info.default_device() in info.devices()
    assert info.capabilities()["boolean indexing"] is True


def test_dtypes_and_how_they_meet():
    xp = array_api
    assert xp.isdtype(int32, "signed integer") and xp.isdtype(
        bfloat16, ("bool", "real floating"))
    assert not xp.isdtype(uint8, ("bool", float32)) and xp.isdtype(
        uint8, uint8) and not xp.isdtype(float32, "complex floating")
    assert xp.result_type(int32, xp.ones(2, dtype=int64)) is int64
    assert xp.result_type(float32, 2, 1.5) is float32
    assert xp.result_type(int32, 1) is int32
    assert xp.can_cast(int32, int64) and not xp.can_cast(float64, float32)
    assert xp.can_cast(xp.ones(1), float64)
    for dtype, name in ((float32, "float32"), (float64, "float64")):
        ours, theirs = xp.finfo(dtype), np.finfo(name)
        for field in ("bits", "max", "min", "eps", "smallest_normal"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert xp.finfo(xp.ones(1, dtype=dtype)).dtype is dtype
    assert xp.iinfo(int32)[:3] == (32, 2**31 - 1, -2**31)


def test_copies_are_made_when_asked_for():
    xp, x = array_api, companion.ones(3)
    assert xp.asarray(x) is x and xp.astype(x, float32, copy=False) is x
    for y in (xp.asarray(x, copy=True), xp.astype(x, float32),
              xp.reshape(x, (3,), copy=True)):
        y[0] = 5
        assert x[0].item() == 1
    with pytest.raises(ValueError, match="takes a copy"):
        xp.asarray([1.0], copy=False)
    raw = np.arange(3.0)
    assert xp.from_dlpack(raw).tolist() == raw.tolist()
    assert x.to_device("cpu") is x


REFUSED = {
    "xp.squeeze(x, 0)": "not of length 1",
    "xp.cumulative_sum(x)": "expected an axis",
    "xp.broadcast_to(x, (3, 5))": "", "xp.reshape(x, (5,))": "",
    "xp.expand_dims(x, axis=5)": "", "xp.concat([x, z])": "",
    "xp.sum(x, axis=2)": "", "xp.matmul(x, y)": "",
    "xp.take(x, b, axis=0)": "integer dtype",
}


@pytest.mark.parametrize("line", REFUSED)
def test_wrong_use_is_refused(line):
    with pytest.raises((ValueError, TypeError, IndexError),
                       match=REFUSED[line]):
        eval(line, {"xp": array_api} | operands(Tensor))


def test_nan_is_unique_every_time():
    x = Tensor([math.nan, 1.0, math.nan, 1.0, -0.0, 0.0])
    found = array_api.unique_all(x)
    assert found.counts.tolist() == [2, 2, 1, 1]
    assert math.isnan(found.values.tolist()[3])
    assert found.values[found.inverse_indices][1].item() == 1
    half = array_api.unique_counts(x.cast(bfloat16))
    assert half.values.dtype is bfloat16 and half.counts.shape == (4,)


@pytest.mark.parametrize("line", LINES[::3])
def test_the_standard_holds_on_every_device(line, device):
    """What a line gives there is what it gives here."""
    if "xp.asarray(" in line or "xp.arange" in line:
        return  # made on the CPU, unless told
    here = parts(eval(line, {"xp": array_api} | operands(Tensor)))
    there = parts(eval(line, {"xp": array_api} | operands(
        lambda a: Tensor(a, device=device))))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), 1e-5, 1e-5)


def test_log1p_keeps_the_sign_of_zero():
    for dtype in (float32, float64):
        y = array_api.log1p(Tensor([-0.0, 0.0, -1.0, math.nan], dtype))
        assert y.dtype is dtype
        assert np.signbit(y.numpy()[:3]).tolist() == [True, False, True]
        assert y[2] == -math.inf and math.isnan(y[3])
