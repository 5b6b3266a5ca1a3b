# Tangled from activations: edit there, `make tangle`. sha256:504a19f342a4
from __future__ import annotations

import math

import numpy as np

from companion.activations import gelu, leaky_relu, relu, silu
from companion.buffer import Buffer
from companion.device import CPU, erf
from companion.dtype import DTYPES, bfloat16, float16, float32, float64
from companion.native import POOL, set_threads
from companion.ops import FAMILIES, GATHER, WRITE
from companion.tensor import Tensor, from_numpy
from companion.tensor.creation import zeros
from companion.tensor.operands import where
from companion.tensor.random import manual_seed, randn
from companion.timing import Timed


def reference(f, values):
    return np.array([f(v) for v in values.astype(np.float64)])


def logistic(v):
    e = math.exp(-abs(v))
    return (e if v < 0 else 1) / (1 + e)


EXACT = {
    "sigmoid": (Tensor.sigmoid, logistic),
    "tanh": (Tensor.tanh, math.tanh),
    "erf": (Tensor.erf, math.erf),
    "gelu": (gelu, lambda v: v * (1 + math.erf(v / 2 ** .5)) / 2),
    "gelu by tanh": (lambda x: gelu(x, "tanh"), lambda v: v * logistic(
        math.sqrt(8 / math.pi) * (v + 0.044715 * v ** 3))),
    "silu": (silu, lambda v: v * logistic(v)),
    "relu": (relu, lambda v: max(v, 0.0)),
    "leaky_relu": (leaky_relu, lambda v: v if v > 0 else 0.01 * v),
}
POINTS = np.concatenate(
    [-np.logspace(-6, 1, 200), [0.0], np.logspace(-6, 1, 200)])


def test_values_are_right_to_the_last_digits():
    for name, (f, exact) in EXACT.items():
        for dtype, tolerance in ((float32, 4e-7), (float64, 1e-15)):
            x = Tensor(POINTS, dtype)
            truth = reference(exact, x.numpy())
            error = np.abs(f(x).numpy() - truth)
            assert (error <= tolerance * (np.abs(truth) + 1)).all(), name


def test_tanh_and_sigmoid_keep_their_relative_precision():
    x = np.concatenate([np.logspace(-8, 1, 300), -np.logspace(-8, 1, 300)])
    for f, exact in (EXACT["tanh"], EXACT["sigmoid"]):
        truth = reference(exact, x.astype(np.float32))
        error = np.abs(f(Tensor(x, float32)).numpy() / truth - 1)
        assert error.max() < 5e-7


def test_nan_passes_through_and_infinity_saturates():
    x = Tensor([math.nan, math.inf, -math.inf])
    assert np.isnan([f(x).numpy()[0] for f in (
        Tensor.sigmoid, Tensor.tanh, relu, silu, gelu)]).all()
    assert x.sigmoid().tolist()[1:] == [1.0, 0.0]
    assert x.tanh().tolist()[1:] == [1.0, -1.0]


def test_sigmoid_has_no_corner_at_zero():
    h = 1e-4
    left, middle, right = Tensor([-h, 0.0, h], float64).sigmoid().tolist()
    assert middle == 0.5
    assert abs((right - middle) / h - 0.25) < 1e-6
    assert abs((middle - left) / h - 0.25) < 1e-6


def test_shapes_without_elements_and_without_axes():
    for name, (f, _) in EXACT.items():
        assert f(zeros(0, 3)).shape == (0, 3), name
        assert f(Tensor(0.5)).shape == (), name
    assert zeros(0, 3).softmax(1).shape == (0, 3)


def test_gelu_by_tanh_keeps_its_left_tail():
    f, exact = EXACT["gelu by tanh"]
    x = -np.logspace(-3, 0.9, 200).astype(np.float32)
    error = np.abs(f(Tensor(x)).numpy() / reference(exact, x) - 1)
    assert error.max() < 3e-5  # the cubic's rounding, times 2u


def test_nothing_overflows_at_ten_thousand():
    x = Tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    for name, (f, _) in EXACT.items():
        assert np.isfinite(f(x).numpy()).all(), name
    for f in (x.softmax, x.log_softmax, x.logsumexp):
        assert np.isfinite(f(0).numpy()).all()
    assert x.softmax(0).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert x.log_softmax(0)[0].item() == -2e4


def test_strided_operands_give_the_same_values():
    x = randn(6, 4)
    for name, (f, _) in EXACT.items():
        assert f(x.T).tolist() == f(x.T.contiguous()).tolist(), name
    assert np.allclose(x.T.softmax(0).numpy(), x.softmax(1).T.numpy())


def test_rows_of_softmax_add_up_and_ignore_a_shift():
    x = randn(7, 5, dtype=float64)
    assert np.allclose(x.softmax(-1).sum(-1).numpy(), 1, atol=1e-15)
    assert np.allclose((x + 1000).softmax(0).numpy(), x.softmax(0).numpy())
    assert np.allclose(x.log_softmax(1).exp().numpy(), x.softmax(1).numpy())


def test_logsumexp_of_nothing_possible():
    assert Tensor([-math.inf] * 3).logsumexp(0).item() == -math.inf
    assert Tensor([0.0, -math.inf]).logsumexp(0).item() == 0.0


def test_halves_stay_halves():
    for dtype in (float16, bfloat16):
        x = Tensor([-3.0, 0.5, 3.0], dtype)
        for name, (f, exact) in EXACT.items():
            y = f(x)
            assert y.dtype is dtype, name
            truth = reference(exact, x.to(float64).numpy())
            assert np.abs(y.to(float64).numpy() - truth).max() < 0.05, name


def test_many_halves_share_one():
    even = zeros(70_000, dtype=float16)
    share = even.softmax(0)
    assert share.dtype is float16 and abs(share[7].item() * 7e4 - 1) < 0.01
    assert abs(even.log_softmax(0)[7].item() + math.log(7e4)) < 0.01
    assert abs(even.logsumexp(0).item() - math.log(7e4)) < 0.01


def test_a_leak_has_the_slope_it_was_given():
    assert leaky_relu(Tensor([-2.0, 3.0]), 0.5).tolist() == [-1.0, 3.0]


def last_places(found, exact, x):
    """The largest error of `found`, in units of the last place."""
    truth = np.array([exact(v) for v in x.astype(np.float64)])
    step = np.spacing(np.abs(truth).astype(x.dtype)).astype(np.float64)
    return (np.abs(found.astype(np.float64) - truth) / step).max()


def test_exp_and_erf_are_right_to_two_last_places():
    tiny = np.logspace(-44, -3, 300)
    for dtype, low, high in ((float32, -103, 88.7), (float64, -740, 709)):
        wide = np.concatenate([np.linspace(low, high, 20_001), tiny, -tiny])
        x = wide.astype(dtype.numpy)
        assert last_places(Tensor(x).exp().numpy(), math.exp, x) < 2
        x = np.concatenate([np.linspace(-6, 6, 20_001), tiny, -tiny])
        x = x.astype(dtype.numpy)
        assert last_places(Tensor(x).erf().numpy(), math.erf, x) < 2


def test_exp_and_erf_of_special_values():
    for dtype in (float16, bfloat16, float32, float64):
        x = Tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e4, -1e4],
                   dtype)
        e, f = x.exp().tolist(), x.erf().tolist()
        assert math.isnan(e[0]) and math.isnan(f[0])
        assert e[1:] == [math.inf, 0.0, 1.0, 1.0, math.inf, 0.0]
        assert f[1:] == [1.0, -1.0, 0.0, -0.0, 1.0, -1.0]
        assert math.copysign(1, f[4]) == -1
    assert Tensor(-103.5).exp().item() == 2.0 ** -149  # the least there is
    assert zeros(0, 3).exp().shape == zeros(3, 0).T.erf().shape == (0, 3)


def arranged(a):
    """An array of three axes, (8, 40, 32), under many views."""
    wide = np.broadcast_to
    return [a, a[::-1], a[:, ::-1], a[..., ::-2], a.swapaxes(0, 1),
            a.swapaxes(1, 2), wide(a[:1], a.shape), wide(a[:, :1], a.shape),
            wide(a[..., :1], a.shape), wide(a[0, 0, 0], a.shape),
            a[:, 3], a[..., 5], a[:, :, :1], a[:1, :1], a[:, :0]]


def test_loops_in_c_agree_with_numpy_on_every_view():
    draw = np.random.default_rng(4)
    for dtype in (np.float32, np.float64, np.int32):
        a = draw.integers(1, 9, (8, 40, 32)).astype(dtype)
        for left in arranged(a):
            x = from_numpy(left)
            if dtype is not np.int32:
                assert np.allclose(x.exp().numpy(), np.exp(left), 1e-6)
            for right in (v for v in arranged(a) if v.shape == left.shape):
                y = from_numpy(right)
                assert ((x + y).numpy() == left + right).all()
                assert ((x - y).numpy() == left - right).all()
                assert ((x * y).numpy() == left * right).all()
                most = np.maximum(left, right)
                assert (x.maximum(y).numpy() == most).all()


def test_where_agrees_with_numpy_on_every_view_and_moves_bits():
    draw = np.random.default_rng(5)
    for dtype in (np.float32, np.float64, np.int32, np.int64, np.float16):
        a = draw.integers(1, 9, (8, 40, 32)).astype(dtype)
        bits = f"u{a.itemsize}"
        a.view(bits)[0] |= ~np.array(0, bits) << 3  # NaNs with payloads
        mask = draw.random(a.shape) < 0.5
        for left, chosen in zip(arranged(a), arranged(mask)):
            for right in (v for v in arranged(a) if v.shape == left.shape):
                whole = mask if mask.shape == left.shape else chosen
                for m in whole, chosen:
                    found = where(from_numpy(m), from_numpy(left),
                                  from_numpy(right)).numpy()
                    expected = np.where(m, left, right)
                    assert found.tobytes() == expected.tobytes()


def test_the_larger_of_two_is_nan_where_either_is():
    x = np.linspace(-3, 3, 5000, dtype=np.float32)
    bad = x.copy()
    bad[::7] = math.nan
    for a, b in ((x, bad), (bad, x), (bad, bad), (-x, x)):
        found = from_numpy(a).maximum(from_numpy(b)).numpy()
        np.testing.assert_array_equal(found, np.maximum(a, b))
    clamped = from_numpy(bad).clamp(-1, 1).numpy()
    np.testing.assert_array_equal(clamped, np.clip(bad, -1, 1))


def test_folds_agree_with_numpy_on_every_view():
    draw = np.random.default_rng(5)
    for dtype in (np.float32, np.float64):
        a = draw.integers(-9, 9, (8, 40, 32)).astype(dtype)
        for view in arranged(a):
            x, axes = Tensor(view), range(view.ndim)
            for axis in [*axes, (0, 1), tuple(axes), (0, view.ndim - 1)]:
                total = x.sum(axis).numpy()
                assert (total == view.sum(axis)).all()
                if view.size:
                    most = x.max(axis).numpy()
                    assert (most == view.max(axis)).all()
    bad = np.zeros((40, 100), np.float32)
    bad[7, 61] = math.nan
    for axis in (0, 1, (0, 1)):
        assert np.isnan(Tensor(bad).max(axis).numpy()).sum() == 1


def test_loops_give_the_same_bits_on_any_number_of_threads():
    manual_seed(6)
    x, before, found = randn(3, 70_001), POOL.threads, set()
    for threads in (1, 2, 5):
        set_threads(threads)
        parts = (x.sum(), x.sum(0), x.max(1), x.exp(), x - x[:, :1], x.erf(),
                 x.maximum(0.5), where(x > 0, x, 1.0))
        found.add(b"".join(y.numpy().tobytes() for y in parts))
    set_threads(before)
    assert len(found) == 1


def test_without_a_compiler_erf_is_the_same():
    x, out = randn(6, 5).T, Buffer.empty((5, 6), float32)
    erf(out, x.buffer, None)
    assert np.allclose(out.array, x.erf().numpy(), atol=1e-7)
    halves, short = x.to(bfloat16), Buffer.empty((5, 6), bfloat16)
    erf(short, halves.buffer, None)
    assert (short.array == halves.erf().numpy()).all()


def test_where_chooses_in_every_dtype_and_layout():
    draw = np.random.default_rng(1)
    for dtype in DTYPES.values():
        a, b = draw.integers(0, 2, (2, 6, 5)).astype(dtype.numpy)
        mask, x, y = draw.random((6, 5)) < 0.5, Tensor(a), Tensor(b)
        condition = Tensor(mask)
        for found, expected in (
                (where(condition, x, y), np.where(mask, a, b)),
                (where(condition.T, x.T, y.T), np.where(mask, a, b).T),
                (where(condition[::2], x[::-2], y[0]),
                 np.where(mask[::2], a[::-2], b[0])),
                (where(condition[:, :1], x, y[:1]),
                 np.where(mask[:, :1], a, b[:1])),
                (where(condition[:0], x[:0], y[:0]), a[:0])):
            assert found.dtype is dtype
            assert (found.numpy() == expected).all()
    assert math.isnan(where(Tensor(False), 1.0, math.nan).item())


def test_a_timed_device_gives_the_same_values():
    x = randn(4, 6)
    timed = Timed(CPU)
    watched = x.to(timed).softmax(1)
    assert watched.tolist() == x.softmax(1).tolist()
    ops = [str(op) for op, _, _ in timed.calls]
    assert ops.count("EXP") == 1 and ops.count("SUM") == 1
    assert all(moved == 0 for op, _, moved in timed.calls
               if op in FAMILIES["movement"])
    x.to(timed).assign(zeros(4, 6).to(timed))
    assert timed.calls[-1][0] is WRITE and timed.calls[-1][2] == 2 * 4 * 24
    at = Tensor([2, 0]).to(timed)
    assert x.to(timed)[at].shape == (2, 6)
    assert timed.calls[-1][0] is GATHER
    assert timed.calls[-1][2] == 2 * 2 * 6 * 4 + 2 * 8


def test_bad_requests_say_what_to_do():
    try:
        gelu(Tensor([1.0]), "sigmoid")
    except ValueError as error:
        assert "'none' or 'tanh'" in str(error)
    else:
        raise AssertionError("expected an error")
