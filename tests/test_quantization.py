"""Few bits: every form of the kernels, no compiler, models, the command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from companion import (
    GPT,
    CachedGPT,
    Conv2d,
    Embedding,
    Generator,
    GPTConfig,
    IntegerWeight,
    Linear,
    QuantizedWeight,
    RoundedWeight,
    Scheme,
    Sequential,
    Tensor,
    bfloat16,
    calibrate,
    manual_seed,
    no_grad,
    quantize as module,
    quantized,
    randn,
    relu,
    set_threads,
    timing,
)
from companion.data import SPARE
from companion.milestones import language, quantize_bench
from companion.native import POOL, load
from companion.tensor import from_numpy

NARROWER = ["__AVX512VNNI__", "__AVXVNNI__", "__AVX512BW__", "__AVX2__",
            "__SSE2__"]
LANES = ["__AVX512F__", "__AVX2__", "__SSE4_1__"]


def source(name):
    return (Path(module.__file__).parent / "kernels" / name).read_text()


@pytest.fixture(autouse=True)
def usual_threads():
    threads = POOL.threads
    yield
    set_threads(threads)


@pytest.mark.parametrize("without", range(len(NARROWER) + 1))
@pytest.mark.parametrize("threads", [1, 2])
def test_whole_numbers_are_equal_in_every_form(without, threads):
    flags = [f"-U{name}" for name in NARROWER[:without]]
    library = load(source("int8.c"), "-O1", *flags)
    draw = np.random.default_rng(without)
    for m, n, k in ((1, 1, 1), (70, 13, 131), (5, 31, 66), (130, 7, 20)):
        a = draw.integers(0, 256, (m, k)).astype(np.uint8)
        b = draw.integers(-128, 128, (n, k)).astype(np.int8)
        a[0], b[0] = 255, -128
        c = np.empty((m, n), np.int32)
        assert library.product8(m, n, k, a, b, c, 0, 0, 0, 0, 0, threads,
                                POOL.address)
        assert (c == a.astype(np.int64) @ b.T.astype(np.int64)).all()


@pytest.mark.parametrize("without", range(len(LANES) + 1))
def test_narrow_products_in_every_form(without, monkeypatch):
    library = load(source("narrow.c"), "-O1",
                   *[f"-U{name}" for name in LANES[:without]])
    monkeypatch.setattr(module, "narrow", lambda: library)
    draw = Generator(without)
    for n, k, group in ((40, 131, 64), (3, 64, None), (5, 1, 2)):
        w, x = randn(n, k, generator=draw), randn(3, k, generator=draw)
        for q in (QuantizedWeight(w, Scheme(4, group, affine=True)),
                  QuantizedWeight(w, Scheme(8, group, affine=True)),
                  QuantizedWeight(w), QuantizedWeight(w, Scheme(4)),
                  module.HalfWeight(w)):
            wanted = x.numpy() @ q.values().T
            assert np.allclose((x @ q.T).numpy(), wanted, atol=1e-4)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 90))


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 2 ** 31))
def test_any_product_is_numpys(size, seed):
    (m, n, k), draw = size, np.random.default_rng(seed)
    a = draw.integers(0, 256, (m, k)).astype(np.uint8)
    b = draw.integers(-128, 128, (n, k)).astype(np.int8)
    assert (module.integer_product(a, b)
            == a.astype(np.int64) @ b.T.astype(np.int64)).all()


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(2, 8), st.sampled_from([None, 2, 16]),
       st.booleans(), st.sampled_from([*module.RULES]),
       st.integers(0, 2 ** 31))
def test_errors_are_within_half_a_step(size, bits, group, affine, rule, seed):
    _, n, k = size
    w = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    q = QuantizedWeight(from_numpy(w), Scheme(bits, group, affine, rule))
    steps = q.scale.numpy().astype(np.float32)
    steps = np.repeat(steps, q.group, 1)[:, :k]
    off = np.abs(q.values() - w)
    if rule == "minmax":
        # The end of the ruler is off by what its scale was rounded by.
        assert (off <= steps * (0.501 + 2 ** bits / 256)).all()
    assert np.isfinite(off).all() and (off <= np.abs(w) + steps).all()


def test_without_a_compiler_all_is_the_same(monkeypatch):
    w, x = randn(9, 33, generator=Generator(0)), randn(
        4, 33, generator=Generator(1))
    kinds = [QuantizedWeight(w), QuantizedWeight(w, Scheme(4, 8)),
             IntegerWeight(w)]
    with_it = [(x @ q.T).numpy() for q in kinds]
    monkeypatch.setattr(module, "narrow", lambda: None)
    monkeypatch.setattr(module, "integers", lambda: None)
    for q, wanted in zip(kinds, with_it, strict=True):
        assert np.allclose((x @ q.T).numpy(), wanted, atol=1e-4)
    a = np.full((2, module.MOST), 255, np.uint8)
    b = np.full((3, module.MOST), -128, np.int8)
    assert (module.integer_product(a, b) == -128 * 255 * module.MOST).all()


def gpt(**sizes):
    manual_seed(0)
    options = {"block_size": 16, "vocab_size": 23, "n_layer": 2,
               "n_head": 2, "n_embd": 32} | sizes
    return GPT(GPTConfig(**options)).eval()


@pytest.mark.parametrize("kind", [QuantizedWeight, IntegerWeight])
def test_a_quantized_gpt_writes_the_same_through_the_cache(kind):
    small = quantized(gpt(), kind=kind)
    options = {"temperature": 0}
    plain, cached = [list(m.generate([1, 2], 12, **options))
                     for m in (small, CachedGPT(small))]
    assert plain == cached


def test_a_shared_weight_is_quantized_once():
    one, two = Linear(4, 4), Linear(4, 4)
    two.weight = one.weight
    small = quantized(Sequential(one, two))
    assert small[0].weight is small[1].weight
    assert isinstance(one.weight, Tensor)


def test_files_are_a_fourth_and_less_than_a_seventh(tmp_path):
    net, found = gpt(n_embd=256, vocab_size=512), {}
    for name, scheme in (("float", None), ("int8", Scheme()),
                         ("int4", Scheme(4, 64))):
        (quantized(net, scheme) if scheme else net).save(tmp_path / name)
        found[name] = (tmp_path / name).stat().st_size
    assert 3.9 < found["float"] / found["int8"] < 4
    assert 7.3 < found["float"] / found["int4"] < 7.53


def test_another_scheme_does_not_fit(tmp_path):
    quantized(gpt(), Scheme(4, 16)).save(tmp_path / "a")
    with pytest.raises(ValueError, match="does not fit"):
        module.load_quantized(tmp_path / "a", Scheme())


def test_steps_that_are_fixed_are_kept_and_saved():
    net = Sequential(Conv2d(1, 2, 3), Linear(4, 3))
    static = quantized(net, kind=IntegerWeight)
    x = randn(2, 1, 6, 6, generator=Generator(0))
    with no_grad():
        before = static(x).numpy()
        calibrate(static, [x])
        assert not math.isnan(static[1].weight.fixed.tolist()[0])
        after = static(x).numpy()
        twin = quantized(net, kind=IntegerWeight)
        twin.load_state_dict(static.state_dict())
        assert np.array_equal(twin(x).numpy(), after)
    assert 0 < np.abs(after - before).max() < 0.1


def test_training_mode_and_optimizers_find_nothing_to_train():
    small = quantized(Sequential(Linear(3, 3, bias=False)))
    assert small.parameters() == []
    y = small.train()(randn(2, 3))
    assert not y.requires_grad


@pytest.fixture(scope="module")
def reader():
    """A small GPT that has learned from the text in the library."""
    text = language.split(10 * SPARE["tinyshakespeare/input.txt"])
    recipe = replace(language.RECIPES["short"], steps=60, warmup=6,
                     config=GPTConfig(16, 65, 1, 2, 32, bias=False))
    model, run = language.learner(recipe, text)
    run.fit(recipe.steps)
    loss = language.held_loss(model, text.held)
    assert loss < math.log(text.tokenizer.n_vocab) - 0.5  # it has learned
    return model, text.held, loss


@pytest.mark.parametrize("kind", [QuantizedWeight, IntegerWeight])
def test_eight_bits_cost_a_trained_gpt_a_fiftieth_of_a_nat(reader, kind):
    model, held, loss = reader
    small = quantized(model, kind=kind)
    assert abs(language.held_loss(small, held) - loss) <= 0.02


def test_the_loss_sees_when_bits_are_too_few(reader):
    model, held, loss = reader
    assert language.held_loss(quantized(model, Scheme(2)), held) - loss > 0.1


def test_a_padding_row_gets_no_gradient():
    layer = quantized(Embedding(4, 3, padding_idx=0), Scheme(4),
                      RoundedWeight)
    layer(Tensor([0, 2])).sum().backward()
    assert layer.weight.weight.grad.tolist() == [
        [0] * 3, [0] * 3, [1] * 3, [0] * 3]


def test_a_rounded_weight_keeps_its_dtype():
    layer = quantized(Linear(3, 2, dtype=bfloat16), kind=RoundedWeight)
    assert layer(randn(2, 3).cast(bfloat16)).dtype is bfloat16


def test_the_largest_weights_stay_finite():
    for size in (9e37, 1e-27, 1e-38):
        for bits in (2, 3, 4, 8):
            for affine in (False, True):
                w = Tensor([[size, -size, size / 2, 0]])
                values = QuantizedWeight(w, Scheme(bits, None, affine))
                assert (np.abs(values.values() - w.numpy()) <= size).all()


@pytest.mark.parametrize(("index", "kind"), [
    (Tensor([1.0]), TypeError), (Tensor([True]), TypeError),
    ([1], TypeError), (Tensor([4]), IndexError), (Tensor([-1]), IndexError)])
def test_an_embedding_refuses_what_is_no_row(index, kind):
    with pytest.raises(kind, match="Embedding: expected"):
        quantized(Embedding(4, 3))(index)


@pytest.mark.parametrize(("shape", "words"), [
    ((3, 6, 6), "expected floats"), ((1, 3, 2, 6), "does not fit"),
    ((1, 2, 6, 6), "expected")])
def test_a_convolution_refuses_what_is_no_picture(shape, words):
    with pytest.raises(ValueError, match=words), no_grad():
        quantized(Conv2d(3, 4, 3))(randn(*shape))


@pytest.mark.parametrize(("options", "kind", "words"), [
    ({"skip": ["layer.0"]}, ValueError, "names from named_modules"),
    ({"skip": "layers.0"}, ValueError, "names from named_modules"),
    ({"scheme": 8}, TypeError, "expected a Scheme")])
def test_a_slip_is_told(options, kind, words):
    with pytest.raises(kind, match=words):
        quantized(Sequential(Linear(2, 2), relu), **options)


def test_calibration_of_nothing_is_told():
    net, x = Sequential(Linear(2, 2), relu), randn(3, 2)
    whole = quantized(net, kind=IntegerWeight)
    for model, batches in ((net, [x]), (quantized(net), [x]), (whole, [])):
        with pytest.raises(ValueError, match="calibrate: expected batches"):
            calibrate(model, batches)
    # Where one of two layers finds no range, both stay as they were.
    deep = quantized(Sequential(Linear(2, 2), lambda y: y * math.inf,
                                Linear(2, 2)), kind=IntegerWeight)
    with pytest.raises(ValueError, match="finite"):
        calibrate(deep, [x])
    assert all(math.isnan(deep[i].weight.fixed.tolist()[0])
               and deep[i].weight.seen is None for i in (0, 2))


def test_a_file_without_a_configuration_is_told(tmp_path):
    small = quantized(gpt())
    small.save(tmp_path / "a")
    bare = (tmp_path / "a").read_bytes().replace(b"config", b"nothin")
    (tmp_path / "b").write_bytes(bare)
    with pytest.raises(ValueError, match="no GPT that was saved"):
        module.load_quantized(tmp_path / "b")


@pytest.mark.slow
def test_the_bench_is_a_command(capsys):
    timing.main(["quantize", "--quick", "--threads", "1", "--json"])
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert {x["bench"] for x in lines} == {"quantize"}
    assert {x["peer_name"] for x in lines} == {"our float32", "torch int8"}
    assert len(lines) == 2 * len(quantize_bench.QUICK)
