"""All dtypes and their meetings, memory, creation, writing: against NumPy.

test_every_operation has every operation in float32 and float64.  Here one
draw serves a family of functions: hypothesis invents the shapes (zero-size
and 0-d ones included), a seed the values.
"""

import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from companion import (
    EXPORTS,
    Tensor,
    allclose,
    arange,
    cat,
    eye,
    from_numpy,
    full,
    linspace,
    one_hot,
    where,
    zeros,
)
from companion.dtype import DTYPES, bfloat16, bool_, float16, float32, float64

HALVES = [float16, bfloat16]
WHOLE = [d for d in DTYPES.values() if d.kind in "iu"]
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
SOLID = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
SEEDS = st.integers(0, 2**32 - 1)
UNIT = {float64: 1e-15, float32: 5e-7, float16: 4e-3, bfloat16: 3e-2}

many = settings(max_examples=200)


def values(shape, dtype, seed, special=True):
    """An array of `dtype`, extremes and special numbers among them."""
    rng = np.random.default_rng(seed)
    if dtype is bool_:
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.kind in "iu":
        info = np.iinfo(dtype.numpy)
        edges = [info.min, info.max, 0, 1, 2, 3]
        usual = rng.integers(max(info.min, -9), 9, shape)
        drawn = np.where(
            rng.random(shape) < 0.2, rng.choice(edges, shape), usual
        )
        return drawn.astype(dtype.numpy)
    drawn = rng.normal(size=shape)
    if special:
        drawn = np.where(
            rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), drawn
        )
    return np.asarray(drawn).astype(dtype.numpy)


def agree(ours, theirs, rtol=0.0, atol=0.0):
    """Same shape, same dtype, same numbers; NaN equals NaN."""
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype.numpy == theirs.dtype
    a, b = ours.numpy(), theirs
    if ours.dtype.is_float:
        a, b = a.astype(float), b.astype(float)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


@many
@given(SHAPES, SEEDS, st.sampled_from(HALVES))
def test_functions_of_one_half(shape, seed, dtype):
    a = values(shape, dtype, seed)
    x, unit = Tensor(a), UNIT[dtype]
    with np.errstate(all="ignore"):
        one = np.ones((), a.dtype)
        agree(-x, -a)
        agree(x.exp(), np.exp(a))
        agree(x.log(), np.log(a))
        agree(x.sin(), np.sin(a))
        agree(x.cos(), np.cos(a), atol=8 * unit)
        agree(x.sqrt(), np.sqrt(a))
        agree(x.rsqrt(), one / np.sqrt(a))
        agree(x.reciprocal(), one / a)
        agree(x.square(), a * a)
        agree(x.floor(), np.floor(a))
        agree(x.ceil(), np.ceil(a))
        agree(x.abs(), np.abs(a))
        agree(abs(x), np.abs(a))
        agree(x.sign(), np.sign(a))
        agree(x.isnan(), np.isnan(a))
        agree(x**0, np.ones_like(a))
        agree(x**3, a * a * a, rtol=unit)
        agree(x**-1, one / a)
        agree(x**0.5, np.power(a, a.dtype.type(0.5)))
    assert not np.signbit(abs(x).numpy()[a == 0]).any()


@many
@given(SHAPES, SEEDS, st.sampled_from([*WHOLE, bool_]))
def test_functions_of_one_integer(shape, seed, dtype):
    a = values(shape, dtype, seed)
    x = Tensor(a)
    agree(~x, ~a)
    agree(x.abs(), np.abs(a))
    agree(x.sign(), a if dtype is bool_ else np.sign(a))
    agree(x.floor(), a)
    agree(x.ceil(), a)
    with np.errstate(all="ignore"):
        wide = a.astype(np.float32)
        agree(x.exp(), np.exp(wide), rtol=UNIT[float32])
        agree(x.sqrt(), np.sqrt(a.astype(np.float32)))
    if dtype is not bool_:
        agree(-x, -a)
        agree(x**2, a * a)


def meet(draw_dtypes, shapes, seed):
    """Two arrays, their tensors, and the arrays in their common dtype."""
    a, b = [
        values(shape, dtype, seed + i)
        for i, (shape, dtype) in enumerate(
            zip(shapes, draw_dtypes, strict=True)
        )
    ]
    x, y = Tensor(a), Tensor(b)
    common = (x + y).dtype.numpy
    return x, y, a.astype(common), b.astype(common)


PAIRS = st.tuples(*[st.sampled_from(list(DTYPES.values()))] * 2)
SHAPE_PAIRS = hnp.mutually_broadcastable_shapes(
    num_shapes=2, min_side=0, max_side=4, max_dims=4
)


@many
@given(SHAPE_PAIRS, SEEDS, PAIRS)
def test_two_operands_of_any_shapes_and_dtypes(shapes, seed, dtypes):
    with np.errstate(all="ignore"):
        x, y, a, b = meet(dtypes, shapes.input_shapes, seed)
        agree(x + y, a + b)
        agree(x * y, a * b)
        agree(x == y, a == b)
        agree(x != y, a != b)
        agree(x < y, a < b)
        agree(x <= y, a <= b)
        agree(x > y, a > b)
        agree(x >= y, a >= b)
        agree(x.maximum(y), np.maximum(a, b))
        agree(x.minimum(y), np.minimum(a, b))
        agree(where(x < y, x, y), np.where(a < b, a, b))
        agree(x.where(x == y, y), np.where(a == b, a, b))
        if (x + y).dtype is not bool_:
            agree(x - y, a - b)
            agree(x // y, a // b)
            agree(x % y, a % b)


@many
@given(SHAPE_PAIRS, SEEDS, PAIRS)
def test_division_is_floating(shapes, seed, dtypes):
    with np.errstate(all="ignore"):
        x, y, a, b = meet(dtypes, shapes.input_shapes, seed)
        result = x / y
        common = (x + y).dtype
        assert result.dtype is (common if common.is_float else float32)
        wide = a.astype(float) / b.astype(float)
        tiny = np.broadcast_to(np.abs(b.astype(float)) > 1e4, wide.shape)
        ours = result.numpy().astype(float)
        unit = 4 * UNIT[result.dtype]
        np.testing.assert_allclose(
            ours[~tiny], wide[~tiny], rtol=unit, equal_nan=True
        )


@many
@given(SHAPE_PAIRS, SEEDS)
def test_powers_by_tensors(shapes, seed):
    a, b = [
        values(s, float64, seed + i)
        for i, s in enumerate(shapes.input_shapes)
    ]
    b = np.where(np.abs(b) < 2, np.round(b * 4) / 2, b)
    with np.errstate(all="ignore"):
        power = Tensor(a) ** Tensor(b)
        # Of a repeated 0.5 NumPy takes the root, and -inf has none.
        expected = np.power(a, np.broadcast_to(b, power.shape).copy())
        agree(power, expected, rtol=1e-13)


@many
@given(SHAPES, SEEDS, st.sampled_from(list(DTYPES.values())))
def test_numbers_beside_tensors(shape, seed, dtype):
    a = values(shape, dtype, seed)
    x = Tensor(a)
    whole = a.astype(np.int64) if dtype is bool_ else a
    real = a if dtype.is_float else a.astype(np.float32)
    half = real.dtype.type(0.5)
    with np.errstate(all="ignore"):
        agree(x + 3, whole + whole.dtype.type(3))
        agree(3 - x, whole.dtype.type(3) - whole)
        agree(x - 3, whole - whole.dtype.type(3))
        agree(x * 0.5, real * half)
        agree(0.5 - x, half - real)
        agree(x - 0.5, real - half)
        agree(x % 2, whole % whole.dtype.type(2))
        agree(x // 2, whole // whole.dtype.type(2))
        agree(x < 0.5, real < half)
        agree(operator.gt(2, x), whole < 2)
        agree(x == 1, whole == 1)
        agree(x != 1, whole != 1)
        agree(x.clamp(0, 1), np.clip(whole, 0, 1).astype(whole.dtype))
        seven = np.where(a == 0, 7, a).astype(a.dtype)
        agree(x.masked_fill(x == 0, 7), seven)


@many
@given(SHAPES, SEEDS)
def test_numpy_operands_on_either_side(shape, seed):
    a, b = values(shape, float32, seed), values(shape, float32, seed + 1)
    x = Tensor(b)
    with np.errstate(all="ignore"):
        agree(a + x, a + b)
        agree(x - a, b - a)
        agree(a - x, a - b)
        agree(np.float32(2) * x, 2 * b)
        agree(a < x, a < b)
        agree(a.astype(float) / x, a.astype(float) / b)
        agree(x / a, b / a)
        assert (a.astype(float) ** x).dtype is float64
    assert isinstance(np.float64(1) / x, Tensor)


@st.composite
def folded(draw):
    """A shape, axes to fold (None for all), and whether to keep them."""
    shape = draw(SHAPES)
    axes = st.none()
    if shape:
        axis = st.integers(-len(shape), len(shape) - 1)
        axes = axes | axis | hnp.valid_tuple_axes(len(shape), min_size=1)
    return shape, draw(axes), draw(st.booleans())


def has_elements(shape, axis):
    """Whether the axes that are folded hold at least one element."""
    axes = range(len(shape)) if axis is None else np.atleast_1d(axis)
    return all(shape[i] for i in axes)


@many
@given(folded(), SEEDS, st.sampled_from(list(DTYPES.values())))
def test_reductions(fold, seed, dtype):
    shape, axis, keep = fold
    a = values(shape, dtype, seed, special=False)
    x, wide = Tensor(a), a if dtype.is_float else a.astype(np.int64)
    unit = 40 * UNIT.get(dtype, 0.0)
    real = wide.astype(float)
    with np.errstate(all="ignore"):
        agree(
            x.sum(axis, keep),
            _as(real.sum(axis, keepdims=keep), wide)
            if dtype.is_float
            else wide.sum(axis, keepdims=keep),
            unit,
            unit,
        )
        agree(
            x.prod(axis, keep),
            _as(real.prod(axis, keepdims=keep), wide)
            if dtype.is_float
            else wide.prod(axis, keepdims=keep),
            unit,
            unit,
        )
        agree(
            x.any(axis, keepdim=keep), a.astype(bool).any(axis, keepdims=keep)
        )
        agree(
            x.all(axis, keepdims=keep), a.astype(bool).all(axis, keepdims=keep)
        )
        if has_elements(shape, axis):
            agree(x.max(axis, keep), a.max(axis, keepdims=keep))
            agree(x.min(axis, keep), a.min(axis, keepdims=keep))
        else:
            for refused in (x.max, x.min):
                with pytest.raises(ValueError, match="nothing has no largest"):
                    refused(axis)


def _as(result, like):
    return np.asarray(result).astype(like.dtype)


@many
@given(SOLID, SEEDS, st.sampled_from(list(DTYPES.values())), st.data())
def test_places_and_running_sums(shape, seed, dtype, data):
    a = values(shape, dtype, seed)
    x, axis = Tensor(a), data.draw(st.integers(-a.ndim, a.ndim - 1))
    searched = a.astype(float) if dtype.is_float else a
    agree(x.argmax(), searched.argmax())
    agree(x.argmin(), searched.argmin())
    agree(x.argmax(axis), searched.argmax(axis))
    agree(
        x.argmin(dim=axis, keepdim=True), searched.argmin(axis, keepdims=True)
    )
    b = values(shape, dtype, seed, special=False)
    if dtype.is_float:
        unit = 20 * UNIT[dtype]
        sums = _as(b.astype(float).cumsum(axis), b)
        agree(Tensor(b).cumsum(axis), sums, unit, unit)
    else:
        agree(Tensor(b).cumsum(axis), b.cumsum(axis, dtype=np.int64))


@many
@given(SHAPES, st.data())
def test_movement_is_numpys_and_copies_nothing(shape, data):
    a = np.arange(math.prod(shape)).reshape(shape)
    x, ndim = Tensor(a), len(shape)
    order = data.draw(st.permutations(range(ndim)))
    axes = tuple(
        data.draw(st.sets(st.sampled_from(range(ndim)))) if ndim else ()
    )
    new = data.draw(st.integers(-ndim - 1, ndim))
    moved = {
        "permute": (x.permute(*order), a.transpose(order)),
        "T": (x.T, a.T),
        "flip": (x.flip(axes), np.flip(a, axes)),
        "flatten": (x.flatten(), a.reshape(-1)),
        "unsqueeze": (x.unsqueeze(new), np.expand_dims(a, new)),
        "squeeze": (x.squeeze(), a.squeeze()),
        "expand": (x.expand(2, *shape), np.broadcast_to(a, (2, *shape))),
        "broadcast": (
            x.broadcast((3, *shape)),
            np.broadcast_to(a, (3, *shape)),
        ),
    }
    if ndim > 1:
        moved["mT"] = (x.mT, a.swapaxes(-1, -2))
        moved["transpose"] = (x.transpose(0, -1), a.swapaxes(0, -1))
        moved["split"] = (x.split(2)[0], a[:2])
        moved["start"] = (
            x.flatten(1),
            a.reshape(shape[0], math.prod(shape[1:])),
        )
    for ours, theirs in moved.values():
        agree(ours, theirs)
        assert ours.buffer.storage is x.buffer.storage
    turned, theirs = moved["permute"]
    agree(turned.reshape(math.prod(shape)), theirs.reshape(-1))
    agree(turned.contiguous(), theirs)
    assert turned.clone().buffer.storage is not x.buffer.storage


@many
@given(SHAPES, SEEDS, st.data())
def test_masks_and_writing(shape, seed, data):
    a, mask = (
        np.arange(math.prod(shape)).reshape(shape),
        values(shape, bool_, seed),
    )
    x = Tensor(a)
    if shape:
        agree(x[Tensor(mask)], a[mask])
        rows, columns = [
            values((n,), bool_, seed) for n in (shape[0], shape[-1])
        ]
        agree(x[Tensor(rows)], a[rows])
        agree(x[..., columns], a[..., columns])
        x[Tensor(rows)], a[rows] = -2, -2
    x[Tensor(mask)], a[mask] = -1, -1
    if shape:
        x[mask], a[mask] = 5, 5
    agree(x, a)
    index = data.draw(hnp.basic_indices(shape))
    piece = a[index] * 2
    x[index], a[index] = Tensor(piece), piece
    agree(x, a)


@many
@given(st.integers(2, 9), st.integers(1, 9))
def test_overlapping_writes(n, shift):
    a = np.arange(n)
    x, cut = Tensor(a), min(shift, n - 1)
    x[cut:], a[cut:] = x[:-cut], a[:-cut].copy()
    agree(x, a)
    x[::-1], a[::-1] = x, a.copy()
    agree(x, a)


@many
@given(
    st.integers(-9, 9), st.integers(-9, 9), st.integers(-4, 4).filter(bool),
    st.integers(0, 6), st.integers(0, 6), st.integers(-3, 3),
)  # fmt: skip
def test_creation(start, stop, step, n, m, k):
    agree(arange(start, stop, step), np.arange(start, stop, step))
    floats = np.arange(start, stop + 0.0, step / 4).astype(np.float32)
    agree(arange(start, stop + 0.0, step / 4), floats)
    agree(
        linspace(start, stop, n), np.linspace(start, stop, n, dtype=np.float32)
    )
    agree(eye(n, m), np.eye(n, m, dtype=np.float32))
    agree(full((n, m), k), np.full((n, m), k))
    agree(zeros(n, m), np.zeros((n, m), np.float32))
    a = np.arange(n * m * 2).reshape(2, n, m)
    agree(Tensor(a).tril(k), np.tril(a, k))
    agree(Tensor(a).triu(k), np.triu(a, k))
    labels = np.arange(n) % max(m, 1)
    agree(
        one_hot(Tensor(labels), m),
        np.eye(m, dtype=np.int64)[labels] if m else np.zeros((n, 0), np.int64),
    )


@many
@given(SHAPES, SEEDS, PAIRS)
def test_casts_and_borders(shape, seed, dtypes):
    source, target = dtypes
    a = values(shape, source, seed, special=target.is_float)
    with np.errstate(all="ignore"):
        agree(Tensor(a).to(target), a.astype(target.numpy))
    shared = from_numpy(a)
    assert np.shares_memory(shared.numpy(), a) or a.size == 0
    assert (
        Tensor(a.tolist(), source).tolist() == shared.tolist()
        or (a != a).any()
    )
    if source is not bfloat16 and a.size:
        again = Tensor.from_dlpack(shared)
        assert again.buffer.address == shared.buffer.address
    assert np.array_equal(np.asarray(shared), a, equal_nan=source.is_float)


@many
@given(SHAPES, SEEDS)
def test_allclose(shape, seed):
    a = values(shape, float64, seed)
    b = a * (1 + 1e-6)
    assert allclose(Tensor(a), Tensor(b)) == np.allclose(a, b)
    assert allclose(Tensor(a), Tensor(a)) == np.allclose(a, a)


# The promotion table of the array API standard, for the dtypes it has.
# https://data-apis.org/array-api/latest/API_specification/type_promotion.html
STANDARD = {
    ("int8", "int8"): "int8", ("int8", "int32"): "int32",
    ("int8", "int64"): "int64", ("int8", "uint8"): "int16",
    ("uint8", "uint8"): "uint8", ("uint8", "int32"): "int32",
    ("uint8", "int64"): "int64", ("int32", "int32"): "int32",
    ("int32", "int64"): "int64", ("int64", "int64"): "int64",
    ("float32", "float32"): "float32", ("float32", "float64"): "float64",
    ("float64", "float64"): "float64", ("bool", "bool"): "bool",
}  # fmt: skip


@pytest.mark.parametrize("pair", STANDARD, ids="-".join)
def test_promotion_equals_the_standard(pair):
    """We carry no int16: the next dtype that holds both stands in."""
    expected = STANDARD[pair].replace("int16", "int32")
    a, b = [zeros(2, dtype=DTYPES[name]) for name in pair]
    for both in ((a, b), (b, a)):
        assert (both[0] + both[1]).dtype.name == expected
        assert cat(both).dtype.name == expected
        assert where(a == b, *both).dtype.name == expected


@pytest.mark.parametrize("dtype", [float16, bfloat16], ids=str)
def test_sums_of_halves_accumulate_in_float32(dtype):
    assert (
        full((5000,), 1.0, dtype).sum().item() == 5000.0 or dtype is bfloat16
    )
    assert abs(full((5000,), 1.0, dtype).sum().item() - 5000) <= 16
    mean = full((70000,), 1.0, dtype).mean()
    assert mean.dtype is dtype and mean.item() == 1


def test_long_axes():
    n = 3_000_001
    x = arange(n)
    assert x.sum().item() == n * (n - 1) // 2
    assert x.cumsum(0)[-1].item() == n * (n - 1) // 2
    assert x.argmax().item() == n - 1
    assert x.flip().argmin().item() == n - 1
    assert x[::-7][-1].item() == (n - 1) % 7
    assert full((n,), 1.0).prod().item() == 1.0


OURS_ALONE = {
    "apply", "assign", "broadcast", "cast", "from_dlpack", "pad", "record",
    "bitcast", "std_mean", "take_along_axis", "var_mean", "to_device",
    "answered",
}


@pytest.mark.needs("torch")
def test_names_are_pytorchs():
    """Those of torch.autograd and torch.nn.functional included."""
    import torch
    from torch.nn import functional

    methods = {name for name in dir(Tensor) if not name.startswith("_")}
    assert methods - set(dir(torch.Tensor)) <= OURS_ALONE
    functions = {name for name, module in EXPORTS.items()
                 if module.startswith("companion.tensor")}
    theirs = {*dir(torch), *dir(torch.autograd), *dir(functional)}
    assert functions and functions <= theirs


def test_windows_that_overlap_are_not_written():
    """Memory of others may repeat elements without a stride of 0."""
    strip = np.zeros(5)
    windows = np.lib.stride_tricks.as_strided(strip, (3, 3), (8, 8))
    x = from_numpy(windows)
    for write in (
        lambda: x.__iadd__(1),
        lambda: x.__setitem__(slice(None), 1.0),
        lambda: x.assign(windows + 1),
    ):
        with pytest.raises(ValueError, match="share memory"):
            write()
    assert not strip.any()
    comb = np.lib.stride_tricks.as_strided(np.zeros(12), (3, 2), (32, 16))
    from_numpy(comb).__iadd__(1)
    assert (comb == 1).all()
