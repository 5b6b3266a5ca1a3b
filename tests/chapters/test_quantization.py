# Tangled from quantization: edit there, `make tangle`. sha256:b3bd0eea4623
from __future__ import annotations

import copy
import math
import pickle
import tempfile
from pathlib import Path

import numpy as np

from companion.activations import relu
from companion.autograd import no_grad
from companion.convolution import Conv2d
from companion.data import Arrays, drawn_digits
from companion.dtype import float32
from companion.embedding import Embedding
from companion.layers import Linear, Sequential, he, parameter
from companion.literate import message
from companion.milestones.mnist import learner, read_right
from companion.quantize import (
    FEW, MOST, HalfWeight, IntegerWeight, QuantizedWeight, RoundedWeight,
    Scheme, covering, encoded, encoded_plainly, integer_product,
    load_quantized, minmax, quantized)
from companion.tensor import Tensor, from_numpy
from companion.tensor.random import Generator, manual_seed, randn
from companion.transformer import GPT, GPTConfig


def test_each_scheme_is_enough_for_what_broke_the_last():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((32, 256)).astype(np.float32)
    loud = x * np.where(np.arange(32) == 3, 50, 1)[:, None]
    spiked = x * np.where(np.arange(256) == 9, 50, 1)

    def error(w, scheme):
        q = QuantizedWeight(from_numpy(w.astype(np.float32)), scheme)
        off = np.square(q.values() - w).sum(1) / np.square(w).sum(1)
        return np.median(off) ** 0.5

    whole = covering(*minmax(loud.reshape(1, -1), Scheme(4)), Scheme(4))
    lost = np.abs(whole.values(whole.codes(loud)) - loud)
    assert np.median(lost / np.abs(loud)) == 1  # all became 0
    assert error(loud, Scheme(4)) < 0.2
    assert error(spiked, Scheme(4)) > 1.5 * error(spiked, Scheme(4, 64))
    alone = np.abs(x)
    assert error(alone, Scheme(4, 64)) > 1.5 * error(
        alone, Scheme(4, 64, affine=True))
    assert error(x, Scheme(3)) > error(x, Scheme(3, rule="mse"))


def bits_of(weight):
    """Bits of memory for each number, without the scales."""
    return 8 * weight.codes.buffer.storage.nbytes / math.prod(weight.shape)


def test_bytes_are_bytes():
    w = randn(64, 128, generator=Generator(0))
    assert bits_of(QuantizedWeight(w)) == bits_of(IntegerWeight(w)) == 8
    assert bits_of(QuantizedWeight(w, Scheme(4, 64))) == 4
    assert bits_of(HalfWeight(w)) == 16
    assert QuantizedWeight(w, Scheme(4, 64)).nbytes == 64 * (64 + 2 * 2)
    false = QuantizedWeight(w)
    false.codes = false.codes.cast(float32)  # whole numbers, and no bytes
    assert bits_of(false) == 32
    assert "cast to float32" in message(
        lambda: randn(1, 128) @ false.T, TypeError)


def test_products_are_exact():
    draw = np.random.default_rng(0)
    for m, n, k in ((1, 1, 1), (5, 7, 33), (70, 13, 130), (3, 64, 2),
                    (17, 6, 4), (0, 3, 5), (3, 0, 5), (3, 4, 0)):
        a = draw.integers(0, 256, (m, k)).astype(np.uint8)
        b = draw.integers(-128, 128, (n, k)).astype(np.int8)
        wanted = a.astype(np.int64) @ b.T.astype(np.int64)
        assert (integer_product(a, b) == wanted).all()
        assert (integer_product(a[:, ::-1], b[:, ::-1]) == wanted).all()
    high = np.full((2, MOST), 255, np.uint8)
    for code in (-128, 127):
        low = np.full((2, MOST), code, np.int8)
        assert (integer_product(high, low) == 255 * code * MOST).all()
    assert "at most" in message(lambda: integer_product(
        np.zeros((1, MOST + 1), np.uint8), np.zeros((1, MOST + 1), np.int8)))


def test_codes_are_numpys():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((9, 37)).astype(np.float32)
    x[1], x[2], x[3, 5], x[4, 6] = 0, np.abs(x[2]), np.nan, -np.inf
    x[5], x[6] = 1e-38, 3e38
    for fixed in (None, [0.01, 100]):
        found = encoded(x, fixed)
        step, zero = np.empty(9, np.float32), np.empty(9, np.int32)
        if fixed:
            step[:], zero[:] = fixed
        plain = encoded_plainly(x, np.empty_like(found[0]), step, zero,
                                bool(fixed))
        assert all(np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
                   for one, two in zip(found, plain))
    q, step, zero = encoded(x)
    assert np.isnan(step).tolist() == [i in (3, 4) for i in range(9)]
    values = (q.astype(np.float32) - zero[:, None]) * step[:, None]
    assert (np.abs(values - x)[[0, 1, 2, 7]] <= step[[0, 1, 2, 7], None]
            * 0.501).all()


def test_products_are_those_of_the_values():
    draw = Generator(0)
    for n, k in ((1, 1), (5, 7), (40, 130), (33, 64), (3, 0), (0, 3)):
        w = randn(n, k, generator=draw)
        kinds = [HalfWeight(w), QuantizedWeight(w), IntegerWeight(w), *[
            QuantizedWeight(w, Scheme(bits, group, affine))
            for bits in (2, 4, 8) for group in (None, 2, 64)
            for affine in (False, True)]]
        for q in kinds:
            near = 0.05 if isinstance(q, IntegerWeight) else 1e-4
            for rows in (0, 1, 3, FEW + 1):
                x = randn(2, rows, k, generator=draw)
                wanted = x.numpy() @ q.values().T
                assert np.allclose((x @ q.T).numpy(), wanted,
                                   atol=near * (1 + k ** 0.5), rtol=0)
            part = randn(k, 3, generator=draw).T
            assert np.allclose((part @ q.T).numpy(),
                               part.numpy() @ q.values().T,
                               atol=near * (1 + k ** 0.5), rtol=0)


def test_a_broken_row_stays_broken_and_alone():
    w = IntegerWeight(randn(4, 8, generator=Generator(0)))
    x = randn(3, 8, generator=Generator(1))
    good = (x @ w.T).numpy()
    bad = x.clone()
    bad[1, 2] = math.nan
    found = (bad @ w.T).numpy()
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[[0, 2]], good[[0, 2]])


def test_zeros_are_zeros():
    for scheme in (Scheme(), Scheme(4, 2), Scheme(8, affine=True)):
        w = np.zeros((2, 6), np.float32)
        w[1] = [5, 0, 0, 0, 1, 6]
        q = QuantizedWeight(from_numpy(w), scheme)
        assert (q.values()[w == 0] == 0).all()
    assert (Tensor([[0.0, 0.0]]) @ IntegerWeight(
        Tensor([[1.0, 2.0]])).T).tolist() == [[0]]


def small_gpt():
    manual_seed(0)
    return GPT(GPTConfig(8, 11, 2, 2, 16)).eval()


def test_a_model_is_quantized_saved_and_copied():
    net = small_gpt()
    ids = Tensor([1, 2, 3])
    for scheme, kind in ((Scheme(), QuantizedWeight),
                         (Scheme(), IntegerWeight),
                         (Scheme(4, 2, affine=True), QuantizedWeight),
                         (Scheme(), HalfWeight)):
        small = quantized(net, scheme, kind)
        assert small.wte.weight is not net.wte.weight
        with no_grad(), tempfile.TemporaryDirectory() as folder:
            said = small(ids).numpy()
            assert np.abs(said - net(ids).numpy()).max() < 0.1
            small.save(Path(folder, "a"))
            for twin in (load_quantized(Path(folder, "a"), scheme, kind),
                         copy.deepcopy(small),
                         pickle.loads(pickle.dumps(small))):
                assert np.array_equal(twin(ids).numpy(), said)
        assert net.h[0].mlp.c_fc.weight.dtype is float32


def test_a_convolution_is_that_of_its_values():
    draw = Generator(0)
    for options in ({}, {"stride": 2, "padding": 1},
                    {"padding": "same", "dilation": (2, 1), "bias": False}):
        conv = Conv2d(3, 4, (3, 2), **options)
        small = quantized(conv)
        x = randn(2, 3, 9, 8, generator=draw)
        near = Conv2d(3, 4, (3, 2), **options)
        near.load_state_dict({"weight": small.weight.values().reshape(
            4, 3, 3, 2)} | ({} if conv.bias is None else
                            {"bias": conv.bias.numpy()}))
        with no_grad():
            assert np.allclose(small(x).numpy(), near(x).numpy(), atol=1e-4)
    grouped = Conv2d(4, 4, 3, groups=2)
    assert type(quantized(grouped)) is Conv2d


def trained(bits):
    """A small classifier of drawn digits, and digits to judge it by."""
    images, labels = drawn_digits(1500)
    data = Arrays(images.reshape(-1, 784).astype(np.float32) / 255, labels)
    manual_seed(0)
    model = Sequential(Linear(784, 24, init=he), relu, Linear(24, 10))
    run = learner(model, Arrays(*data[:1000]), epochs=6, lr=0.05)
    run.fit(6 * 7)
    return model, data, Arrays(*data[1000:])


def test_training_knows_the_grid():
    model, data, held = trained(2)
    before = read_right(model, held)
    for kind in (QuantizedWeight, IntegerWeight):
        assert abs(read_right(quantized(model, kind=kind), held)
                   - before) <= 0.005
    two = Scheme(2)
    ruined = read_right(quantized(model, two), held)
    run = learner(quantized(model, two, RoundedWeight),
                  Arrays(*data[:1000]), epochs=6, lr=0.02)
    run.fit(6 * 7)
    mended = read_right(quantized(run.model, two), held)
    assert np.isclose(mended, read_right(run.model, held), atol=0.005)
    assert ruined < before - 0.05 and mended > ruined + 0.03


def test_what_cannot_be_is_refused():
    w = randn(4, 6, generator=Generator(0))
    q = QuantizedWeight(w)
    x = parameter(randn(2, 6))
    broken = Linear(2, 2)
    broken.weight.detach().assign(Tensor([[1.0, math.inf], [0.0, 0.0]]))
    for act, words, kind in (
            (lambda: x @ q.T, "under no_grad", TypeError),
            (lambda: randn(2, 5) @ q.T, "expected (…, 6)", ValueError),
            (lambda: randn(2, 6).to("lazy") @ q.T, "eagerly", ValueError),
            (lambda: quantized(broken), "finite", ValueError),
            (lambda: quantized(quantized(Linear(2, 2))), "once", TypeError),
            (lambda: quantized(Linear(2, 2).to("lazy")), "cpu", ValueError),
            (lambda: Scheme(9), "2 to 8 bits", ValueError),
            (lambda: Scheme(4, 3), "even group", ValueError),
            (lambda: Scheme(8.0), "2 to 8 bits", ValueError),
            (lambda: Scheme(4, "4"), "even group", ValueError),
            (lambda: Scheme(rule=["mse"]), "a rule of", ValueError),
            (lambda: QuantizedWeight(Tensor([[3e38, -3e38]])), "1e38",
             ValueError),
            (lambda: [[1.0] * 6] @ q.T, "expected a Tensor", TypeError),
            (lambda: np.ones((1, 6)) @ q.T, "expected a Tensor", TypeError),
            (lambda: Scheme(rule="best"), "a rule of", ValueError),
            (lambda: IntegerWeight(w, Scheme(4)), "8 bits", ValueError),
            (lambda: IntegerWeight(Tensor(np.zeros((1, MOST + 1), np.float32))
                                   ), "int32", ValueError),
            (lambda: quantized(Embedding(3, 2))(Tensor([3])), "0 to 2",
             IndexError)):
        assert words in message(act, kind), words
