"""The special values of the array API standard, as tables.

A row is a sentence of the standard (version 2024.12), with numbers in the
place of "a finite number greater than 0" and the like.  Zeros have signs.
Where we answer otherwise on purpose, `DIFFERENT` says so and the chapter
says why.
"""

import math
import operator

import numpy as np
import pytest

import companion
from companion import Tensor, full, where, zeros
from companion.dtype import (
    DTYPES,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int32,
    int64,
    uint8,
)

INF, NAN = math.inf, math.nan
HERE = ["cpu", "emulated"]
FLOATS = [float32, *[pytest.param(d, marks=pytest.mark.slow)
                     for d in (float64, float16, bfloat16)]]
WHOLE = [int32, *[pytest.param(d, marks=pytest.mark.slow)
                  for d in (int8, uint8, int64)]]

on_devices = pytest.mark.parametrize("device", HERE)
in_floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)
in_integers = pytest.mark.parametrize("dtype", WHOLE, ids=str)


def equal(found, expected, dtype):
    """The same numbers of a dtype, NaN and the signs of zeros included."""
    assert found.dtype is dtype
    found = found.numpy().astype(float)
    expected = np.asarray(expected).astype(dtype.numpy).astype(float)
    np.testing.assert_array_equal(found, expected)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(
        np.signbit(found[known]), np.signbit(expected[known]))


# ----------------------------------------------------------- of one operand

# fmt: off
SAME = [(v, v) for v in (NAN, INF, 0.0, -0.0)]
ODD = [*SAME, (-INF, -INF)]
ONE = {
    "abs": [(NAN, NAN), (INF, INF), (-INF, INF), (-0.0, 0.0), (-1.5, 1.5)],
    "ceil": [*ODD, (-2.0, -2.0), (1.5, 2.0), (-1.5, -1.0), (-0.5, -0.0)],
    "floor": [*ODD, (-2.0, -2.0), (1.5, 1.0), (-1.5, -2.0), (0.5, 0.0)],
    "exp": [(NAN, NAN), (INF, INF), (-INF, 0.0), (0.0, 1.0), (-0.0, 1.0)],
    "log": [(NAN, NAN), (-1.0, NAN), (-INF, NAN), (0.0, -INF), (-0.0, -INF),
            (1.0, 0.0), (INF, INF)],
    "sin": [(NAN, NAN), (INF, NAN), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0)],
    "cos": [(NAN, NAN), (INF, NAN), (-INF, NAN), (0.0, 1.0), (-0.0, 1.0)],
    "tanh": [(NAN, NAN), (INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0)],
    "sqrt": [(NAN, NAN), (-1.0, NAN), (-INF, NAN), (0.0, 0.0), (-0.0, -0.0),
             (INF, INF)],
    "square": [(NAN, NAN), (INF, INF), (-INF, INF), (0.0, 0.0), (-0.0, 0.0)],
    "reciprocal": [(NAN, NAN), (INF, 0.0), (-INF, -0.0), (0.0, INF),
                   (-0.0, -INF)],
    "sign": [(NAN, NAN), (INF, 1.0), (-INF, -1.0), (2.0, 1.0), (-2.0, -1.0),
             (0.0, 0.0)],
    "__neg__": [(NAN, NAN), (INF, -INF), (-INF, INF), (0.0, -0.0),
                (-0.0, 0.0)],
    "__pos__": ODD,
    # not in the standard, and odd functions like its tanh
    "erf": [(NAN, NAN), (INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0)],
    "relu": [(NAN, NAN), (INF, INF), (-INF, 0.0), (2.0, 2.0), (-2.0, 0.0)],
    "sigmoid": [(NAN, NAN), (INF, 1.0), (-INF, 0.0), (0.0, 0.5)],
}

# ---------------------------------------------------------- of two operands

NANS = [(NAN, 1, NAN), (1, NAN, NAN), (NAN, NAN, NAN)]
POW = [
    (2, NAN, NAN), (NAN, 0.0, 1), (NAN, -0.0, 1), (NAN, 2, NAN), (NAN, 3, NAN),
    (2, INF, INF), (-2, INF, INF), (2, -INF, 0.0), (-2, -INF, 0.0),
    (1, INF, 1), (-1, INF, 1), (1, -INF, 1), (-1, -INF, 1), (1, 7.5, 1),
    (1, -3, 1), (0.5, INF, 0.0), (-0.5, INF, 0.0), (0.5, -INF, INF),
    (-0.5, -INF, INF), (0.0, INF, 0.0), (0.0, -INF, INF),
    (INF, 0.5, INF), (INF, 3, INF), (INF, -0.5, 0.0), (INF, -3, 0.0),
    (-INF, 3, -INF), (-INF, 2, INF), (-INF, 1.5, INF), (-INF, 0.5, INF),
    (-INF, INF, INF), (-INF, -3, -0.0), (-INF, -2, 0.0), (-INF, -1.5, 0.0),
    (0.0, 2, 0.0), (0.0, 0.5, 0.0), (0.0, -1, INF), (0.0, -0.5, INF),
    (-0.0, 3, -0.0), (-0.0, 2, 0.0), (-0.0, 0.5, 0.0), (-0.0, -1, -INF),
    (-0.0, -3, -INF), (-0.0, -2, INF), (-0.0, -0.5, INF),
    (-2, 0.5, NAN), (-2, -1.5, NAN), (INF, 0.0, 1), (-INF, -0.0, 1),
    (0.0, 0.0, 1), (-0.0, 0.0, 1), (-2, 3, -8), (-2, 2, 4),
]
FLOOR_DIVIDE = [
    *NANS, (INF, INF, NAN), (INF, -INF, NAN), (0.0, 0.0, NAN),
    (0.0, -0.0, NAN),
    (0.0, 2, 0.0), (-0.0, 2, -0.0), (0.0, -2, -0.0), (-0.0, -2, 0.0),
    (2, 0.0, INF), (2, -0.0, -INF), (-2, 0.0, -INF), (-2, -0.0, INF),
    (2, INF, 0.0), (2, -INF, -1), (-2, INF, -1), (-2, -INF, 0.0),
    (7, 2, 3), (-7, 2, -4), (7, -2, -4), (-7, -2, 3),
    (0.0, INF, 0.0), (-0.0, INF, -0.0),
]
REMAINDER = [
    *NANS, (INF, INF, NAN), (0.0, 0.0, NAN), (2, 0.0, NAN), (-2, -0.0, NAN),
    (0.0, 2, 0.0), (-0.0, 2, 0.0), (0.0, -2, -0.0), (-0.0, -2, -0.0),
    (INF, 2, NAN), (-INF, 2, NAN), (INF, -2, NAN), (2, INF, 2),
    (2, -INF, -INF), (-2, INF, INF), (-2, -INF, -2),
    (7, 2, 1), (-7, 2, 1), (7, -2, -1), (-7, -2, -1), (4, -2, -0.0),
]
ADD = [
    *NANS, (INF, -INF, NAN), (-INF, INF, NAN), (INF, INF, INF),
    (-INF, -INF, -INF), (INF, 2, INF), (2, -INF, -INF), (0.0, 0.0, 0.0),
    (-0.0, -0.0, -0.0), (-0.0, 0.0, 0.0), (0.0, -0.0, 0.0), (-0.0, 2, 2),
    (2, -2, 0.0),
]
SUBTRACT = [(a, -b, c) for a, b, c in ADD]
MULTIPLY = [
    *NANS, (INF, 0.0, NAN), (-0.0, INF, NAN), (INF, -INF, -INF),
    (-INF, -INF, INF), (INF, -2, -INF), (0.0, -2, -0.0), (-0.0, -2, 0.0),
]
DIVIDE = [
    *NANS, (INF, INF, NAN), (INF, -INF, NAN), (0.0, 0.0, NAN),
    (0.0, 2, 0.0), (-0.0, 2, -0.0), (0.0, -2, -0.0), (2, 0.0, INF),
    (2, -0.0, -INF), (-2, 0.0, -INF), (INF, 2, INF), (INF, -2, -INF),
    (2, INF, 0.0), (2, -INF, -0.0), (-2, INF, -0.0), (-2, -INF, 0.0),
]
MAXIMUM = [*NANS, (INF, 2, INF), (-INF, 2, 2), (2, INF, INF)]
TWO = {
    "__pow__": POW, "__floordiv__": FLOOR_DIVIDE, "__mod__": REMAINDER,
    "__add__": ADD, "__sub__": SUBTRACT, "__mul__": MULTIPLY,
    "__truediv__": DIVIDE, "maximum": MAXIMUM,
    "minimum": [(-a, -b, -c) for a, b, c in MAXIMUM],
    "clamp": [*NANS, (INF, 2, INF), (-INF, 2, 2)],
}
TRUTHS = {
    "__eq__": [(NAN, NAN, 0), (0.0, -0.0, 1), (INF, INF, 1), (INF, -INF, 0)],
    "__ne__": [(NAN, NAN, 1), (NAN, 1, 1), (0.0, -0.0, 0)],
    "__lt__": [(NAN, 1, 0), (1, NAN, 0), (-0.0, 0.0, 0), (-INF, INF, 1)],
    "__le__": [(NAN, NAN, 0), (1, NAN, 0), (0.0, -0.0, 1), (INF, INF, 1)],
    "__gt__": [(NAN, 1, 0), (1, NAN, 0), (0.0, -0.0, 0), (INF, -INF, 1)],
    "__ge__": [(NAN, NAN, 0), (NAN, 1, 0), (-0.0, 0.0, 1), (INF, INF, 1)],
}
# The standard wants infinities; Python, NumPy and PyTorch answer NaN.
DIFFERENT = [(INF, 2, NAN), (INF, -2, NAN), (-INF, 2, NAN), (-INF, -2, NAN)]
# fmt: on


@on_devices
@in_floats
@pytest.mark.parametrize("name", ONE)
def test_functions_of_one(name, dtype, device):
    asked, answers = zip(*ONE[name])
    found = getattr(Tensor(asked, dtype, device), name)()
    equal(found, answers, dtype)


@on_devices
@in_floats
@pytest.mark.parametrize("name", [*TWO, *TRUTHS])
def test_functions_of_two(name, dtype, device):
    a, b, answers = zip(*(TWO | TRUTHS)[name])
    x, y = Tensor(a, dtype, device), Tensor(b, dtype, device)
    kind = bool_ if name in TRUTHS else dtype
    equal(getattr(x, name)(y), answers, kind)
    for left, right, answer in zip(a, b, answers):
        one = full((), left, dtype, device)
        equal(getattr(one, name)(float(right)), answer, kind)
        wide = getattr(one.expand(2, 3), name)(float(right))
        equal(wide, np.full((2, 3), answer), kind)


@on_devices
def test_infinity_has_no_whole_quotient(device):
    for a, b, answer in DIFFERENT:
        x = Tensor(float(a), device=device)
        equal(x // b, answer, float32)
        equal(x % b, NAN, float32)
        assert math.isnan(a // b)


# -------------------------------------------------------------- reductions


@on_devices
@in_floats
def test_folds_of_nothing(dtype, device):
    x = zeros(0, 3, dtype=dtype, device=device)
    for fold, answer in (("sum", 0), ("prod", 1), ("mean", NAN),
                         ("var", NAN), ("std", NAN)):
        equal(getattr(x, fold)(), answer, dtype)
        equal(getattr(x, fold)(0), [answer] * 3, dtype)
        assert getattr(x, fold)(1).shape == (0,)
    assert x.all().item() and not x.any().item()


@on_devices
@in_floats
def test_folds_of_special_numbers(dtype, device):
    x = Tensor([[1, NAN], [INF, 2], [INF, -INF]], dtype, device)
    equal(x.max(1), [NAN, INF, INF], dtype)
    equal(x.min(1), [NAN, 2, -INF], dtype)
    equal(x.sum(1), [NAN, INF, NAN], dtype)
    equal(x.prod(1), [NAN, INF, -INF], dtype)
    assert x.argmax(1).tolist() == [1, 0, 0]
    assert x.any().item() and x.all().item()


@on_devices
def test_a_spread_needs_more_elements_than_its_correction(device):
    x = Tensor([1.0, 2.0], device=device)
    for correction in (2, 3):
        for spread in (x.var, x.std):
            assert math.isnan(spread(correction=correction).item())
    assert x.var(correction=0).item() == 0.25


@on_devices
@in_floats
def test_rows_of_nothing(dtype, device):
    x = zeros(3, 0, dtype=dtype, device=device)
    for f in (x.softmax, x.log_softmax):
        assert f(1).shape == (3, 0) and f(0).shape == (3, 0)
    equal(x.logsumexp(1), [-INF] * 3, dtype)
    equal(x.logsumexp(1, keepdim=True), [[-INF]] * 3, dtype)
    equal(x.logsumexp((0, 1)), -INF, dtype)
    assert x.logsumexp(0).shape == (0,)
    x = zeros(2, 0, device=device).requires_grad_()
    x.logsumexp(1).sum().backward()
    assert x.grad.shape == (2, 0)


FOLDS = ("sum max min any all mean var std prod argmax argmin softmax "
         "log_softmax logsumexp squeeze cumsum flip").split()


@on_devices
@pytest.mark.parametrize("name", FOLDS)
def test_a_number_has_one_axis_to_fold(name, device):
    x = Tensor(2.0, device=device)
    row = getattr(x.reshape(1), name)(0)
    for axis in (0, -1):
        found = getattr(x, name)(axis)
        assert found.shape == () and found.dtype is row.dtype
        np.testing.assert_array_equal(found.numpy(), row.numpy().reshape(()))
        with pytest.raises(IndexError, match="axis"):
            getattr(x, name)(axis * 3 + 1)


# --------------------------------------------------------------- integers


def edges(dtype):
    """Every pair of some numbers, the ends of the dtype among them."""
    info = np.iinfo(dtype.numpy)
    some = {info.min, info.max, 0, 1, 2, 5, 100, max(info.min, -7),
            max(info.min, -1), info.bits - 1, info.bits - 2}
    line = np.array(sorted(some), dtype.numpy)
    return [g.ravel() for g in np.meshgrid(line, line)]


@on_devices
@in_integers
@pytest.mark.parametrize("name", "and or xor lshift rshift".split())
def test_bits(name, dtype, device):
    a, b = edges(dtype)
    if "shift" in name:
        b = np.abs(b)
    x, y = [Tensor(v, device=device) for v in (a, b)]
    sign = getattr(operator, f"__{name}__")
    found = sign(x, y)
    assert found.dtype is dtype
    np.testing.assert_array_equal(found.numpy(), sign(a, b))
    three = dtype.numpy.type(3)
    np.testing.assert_array_equal(sign(x, 3).numpy(), sign(a, three))
    np.testing.assert_array_equal(sign(3, y).numpy(), sign(three, b))
    np.testing.assert_array_equal((~x).numpy(), ~a)


@on_devices
def test_shifting_back_leaves_nothing(device):
    x = Tensor([5, -5], device=device)
    assert (x << -1).tolist() == [0, 0] and (x >> -1).tolist() == [0, -1]


def test_bits_of_mixed_kinds():
    flag, byte = Tensor([True, False]), Tensor([3, 5], uint8)
    assert (flag & byte).dtype is uint8 and (flag & byte).tolist() == [1, 0]
    assert (byte | Tensor([-1, 1], int8)).dtype is int32
    assert (flag << 1).tolist() == [2, 0] and (flag ^ 1).tolist() == [0, 1]
    assert (flag ^ np.array([True, True])).tolist() == [False, True]
    for wrong in (lambda: byte & 1.5, lambda: flag << flag,
                  lambda: zeros(2) >> 1, lambda: ~zeros(2)):
        with pytest.raises(TypeError, match="cast or compare first"):
            wrong()
    with pytest.raises(TypeError, match="unsupported operand"):
        byte & "1"


@on_devices
@in_integers
def test_powers_of_integers_are_integers(dtype, device):
    a, b = edges(dtype)
    x, y = [Tensor(v, device=device) for v in (a, b)]
    found = x ** y
    assert found.dtype is dtype
    bits = 8 * dtype.itemsize
    for base, exponent, answer in zip(a.tolist(), b.tolist(), found.tolist()):
        if exponent >= 0:
            exact = pow(base, exponent, 1 << bits)
        else:
            exact = base ** (exponent & 1) if base in (1, -1) else 0
        assert (answer - exact) % (1 << bits) == 0
    for n in (0, 1, 2, 7, 8, 9, 30):
        assert (x ** n).dtype is dtype
        np.testing.assert_array_equal((x ** n).numpy(), a ** n)
    assert (x ** 2.0).dtype is float32 and (2 ** y).dtype is dtype


def test_powers_that_an_integer_does_not_hold():
    assert (Tensor([3]) ** Tensor([30])).item() == 3 ** 30
    with pytest.raises(ValueError, match="cast to a float"):
        Tensor([2]) ** -1
    assert (Tensor([2]) ** -1.0).item() == 0.5
    assert (Tensor([True]) ** 2).dtype is int64
    with pytest.raises(OverflowError, match="wider"):
        Tensor([2], uint8) ** 300


# ------------------------------------------- what others accept, and refuse


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_triangles_and_fillings_keep_their_dtype(dtype):
    x = Tensor(np.ones((3, 3)).astype(dtype.numpy))
    keep = Tensor([True, False, True])
    for y in (x.tril(), x.triu(1), x.masked_fill(keep, 0),
              x.pad([(1, 0), (0, 1)], 1), x.clamp(keep, keep)):
        assert y.dtype is dtype
    assert x.tril().sum().item() == 6 and x.pad([(1, 1)] * 2, 1).all()


def test_the_usual_causal_mask():
    scores = zeros(3, 3)
    seen = (scores == 0).tril()
    rows = where(seen, scores, -INF).softmax(1)
    assert rows.tolist()[1] == [0.5, 0.5, 0.0]


def test_indices_made_of_tensors_and_flags():
    a = np.arange(24).reshape(2, 3, 4)
    x, i, j = Tensor(a), np.array([0, 1]), np.array([2, 0])
    ti, tj = Tensor(i), Tensor(j)
    for ours, theirs in [
            ((ti, tj), (i, j)), ([ti, ti], [i, i]), ((0, (1, 2)),) * 2,
            ((0, [tj[0], tj[1]]), (0, [2, 0])), (((0, 1), 2),) * 2,
            (([0, 1], (2, 0), slice(1, 3)),) * 2,
            (Tensor(True), np.True_), (True, True), (False, False),
            ((0, True), (0, True)), ((..., Tensor(False)), (..., False)),
            ((True, ti), (True, i)), ((None, True, 1), (None, True, 1)),
            ((0, slice(None), tj), (0, slice(None), j))]:
        assert np.array_equal(x[ours].numpy(), a[theirs]), ours
        assert x[ours].shape == a[theirs].shape
    assert Tensor(5.0)[True].tolist() == [5.0]
    assert Tensor(5.0)[Tensor(False)].shape == (0,)
    assert x[0, :, tj].shape == (2, 3)  # NumPy's; PyTorch's is (3, 2)
    x[Tensor(False)] = 7
    assert np.array_equal(x.numpy(), a)
    x[True] = 7
    assert (x == 7).all()


REFUSED = {
    "eye(-3)": (ValueError, "length >= 0"),
    "eye(2, -1)": (ValueError, "length >= 0"),
    "eye(2.5)": (TypeError, "whole numbers"),
    "linspace(0, 1, -1)": (ValueError, "length >= 0"),
    "linspace(0, 1, 2.5)": (TypeError, "whole numbers"),
    "one_hot(x.cast(int64), -1)": (ValueError, "length >= 0"),
    "x.clamp()": (ValueError, "min, max or both"),
    "x.clamp(None, None)": (ValueError, "min, max or both"),
    "~x": (TypeError, "integer dtype"),
    "+(x == x)": (TypeError, "number's dtype"),
    "zeros(-1)": (ValueError, "(-1,)"),
}
NOTHING = """reshape view permute expand repeat flip sum max prod mean squeeze
    unsqueeze softmax cumsum argmax transpose flatten split chunk""".split()


@pytest.mark.parametrize("text", REFUSED)
def test_refusals(text):
    kind, words = REFUSED[text]
    names = vars(companion) | {n: getattr(companion, n)
                               for n in companion.EXPORTS}
    with pytest.raises(kind) as found:
        eval(text, names | {"x": zeros(2, 3)})
    assert words in str(found.value)


@pytest.mark.parametrize("value", ["a", 1.5, {"a": 1}, [None]], ids=str)
@pytest.mark.parametrize("name", NOTHING)
def test_arguments_that_are_no_numbers_get_one_line(name, value):
    with pytest.raises(TypeError, match="expected whole numbers, got") as e:
        getattr(zeros(2, 3), name)(value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", "reshape view permute expand repeat "
                         "unsqueeze cumsum transpose".split())
def test_none_is_no_number(name):
    with pytest.raises(TypeError, match="expected whole numbers, got None"):
        getattr(zeros(2, 3), name)(None)


