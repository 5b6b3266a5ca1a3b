"""Dropped weights: the kernels of every device beside the definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from companion import (
    MultiHeadAttention,
    Tensor,
    attention_weights,
    bfloat16,
    causal_mask,
    float16,
    float32,
    float64,
    grad,
    manual_seed,
    rand,
    randn,
    scaled_dot_product_attention,
)
from companion.attention import stacked
from companion.compiler.capture import jit
from companion.compiler.program import compile_graph
from companion.ops import ATTENTION, ATTENTION_GRADIENT, RANDOM
from companion.tensor.random import Generator

CLOSE = {float32: 2e-5, float64: 1e-12}
# How the bools of all pairs lie in memory: (…, T, S) of a drawn array.
LAYOUTS = {
    "queries side by side": lambda x: x.mT.contiguous().mT,
    "keys side by side": lambda x: x,
    "from behind": lambda x: x.flip(-2),
    "every query alike": lambda x: x[..., :1, :],
    "every key alike": lambda x: x[..., :1],
    "of one head": lambda x: x[(0,) * (x.ndim - 2)],
    "nothing": lambda x: Tensor([[False]]),
    "everything": lambda x: Tensor([[True]]),
}
MASKS = {
    "none": lambda x: None,
    "of all pairs": lambda x: x,
    "of keys": lambda x: x[..., :1, :],
    "rows without a key": lambda x: x[..., :1],
}
LENGTHS = st.sampled_from([1, 2, 7, 16, 33, 64, 65, 100])


def by_kernels(q, k, v, mask, kept, keep, causal):
    *operands, mask = stacked(q, k, v, mask)
    arg = q.shape[-1] ** -0.5, causal, keep
    y = Tensor.apply(
        ATTENTION, *operands, mask, kept.broadcast(mask.shape), arg=arg
    )
    return y[..., :-1]


def by_definition(q, k, v, mask, kept, keep, causal):
    if causal:
        before = causal_mask(q.shape[-2], k.shape[-2], q.device)
        mask = before if mask is None else mask & before
    return (attention_weights(q, k, mask) * kept.to(q.dtype) / keep) @ v


def moved(x, device):
    return x if x is None else x.to(device)


def tensors(f, q, k, v, mask, kept, *rest, device="cpu"):
    """The value and the gradients, in an arbitrary direction."""
    leaves = [x.to(device).detach().requires_grad_() for x in (q, k, v)]
    y = f(*leaves, moved(mask, device), moved(kept, device), *rest)
    towards = Tensor(np.linspace(-1, 1, y.size), y.dtype).reshape(y.shape)
    return y.detach(), *grad((y * towards.to(device)).sum(), leaves)


def answers(*case, device="cpu"):
    return [x.to("cpu").numpy() for x in tensors(*case, device=device)]


def assert_near(found, expected, most):
    for x, y in zip(found, expected, strict=True):
        bound = most * (1 + np.abs(y).max(initial=0))
        np.testing.assert_allclose(x, y, 0, bound)


def examples(draw, lengths=LENGTHS, widths=(1, 3, 8, 20)):
    """Queries, keys, values, a mask, bools, the part kept, causal or not."""
    stack = draw(st.sampled_from([(), (2,), (2, 3)]))
    t, s, d = draw(lengths), draw(lengths), draw(st.sampled_from(widths))
    dtype = draw(st.sampled_from([float32, float64]))
    manual_seed(draw(st.integers(0, 2**31)))
    q, k, v = [randn(*stack, n, d, dtype=dtype) for n in (t, s, s)]
    keep = draw(st.sampled_from([0.3, 0.8, 1.0]))
    mask = MASKS[draw(st.sampled_from(sorted(MASKS)))](
        rand(*stack, t, s) < 0.7
    )
    kept = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](
        rand(*stack, t, s) < keep
    )
    return q, k, v, mask, kept, keep, draw(st.booleans())


CASES = st.composite(examples)
FEW_CASES = CASES(lengths=st.sampled_from([1, 3, 33, 40]), widths=(5, 33))


@settings(max_examples=150)
@given(CASES())
def test_the_cpu(case):
    wanted = answers(by_definition, *case)
    assert_near(answers(by_kernels, *case), wanted, CLOSE[case[0].dtype])


@settings(max_examples=25)
@given(FEW_CASES)
def test_a_card(case):
    found = answers(by_kernels, *case, device="emulated")
    assert_near(found, answers(by_definition, *case), CLOSE[case[0].dtype])


@settings(max_examples=15)
@given(FEW_CASES)
def test_a_compiled_graph(case):
    """One program of C; and the interpreter, in the test that follows."""
    made = tensors(by_kernels, *case, device="lazy")
    program = compile_graph([x.buffer.node for x in made])
    program()
    assert_near([x.array for x in program.results],
                answers(by_definition, *case), CLOSE[case[0].dtype])


@settings(max_examples=25)
@given(FEW_CASES)
def test_an_interpreted_graph(case):
    found = answers(by_kernels, *case, device="lazy")
    assert_near(found, answers(by_definition, *case), CLOSE[case[0].dtype])


@pytest.mark.parametrize("device", ["cpu", "emulated", "lazy"])
@pytest.mark.parametrize("layout", ["queries side by side", "nothing"])
def test_second_derivatives(layout, device):
    manual_seed(3)
    leaves = [randn(2, n, 4, dtype=float64) for n in (6, 5, 5)]
    kept = LAYOUTS[layout](rand(2, 6, 5) < 0.7)
    found = []
    for f, where in ((by_kernels, device), (by_definition, "cpu")):
        q, k, v = [x.to(where).detach().requires_grad_() for x in leaves]
        y = f(q, k, v, None, kept.to(where), 0.7, True)
        first = grad(y.square().sum(), [q, k, v], create_graph=True)
        penalty = sum([x.square().sum() for x in first[1:]],
                      first[0].square().sum())
        found.append([
            x.to("cpu").numpy() for x in grad(penalty, [q, k, v])])
    assert_near(*found, 1e-10)


@pytest.mark.parametrize("dtype", [float16, bfloat16], ids=str)
def test_halves(dtype):
    """Drawn and summed as float32, rounded at the end."""
    manual_seed(1)
    x = randn(3, 2, 40, 16).to(dtype)
    half, wide = [
        scaled_dot_product_attention(
            *values, dropout_p=0.3, is_causal=True, generator=Generator(5)
        )
        for values in (x, x.to(float32))
    ]
    assert half.dtype is dtype
    close = 2e-3 if dtype is float16 else 2e-2
    assert_near([half.to(float32).numpy()], [wide.numpy()], close)


def layer_on(device, dropout=0.4):
    manual_seed(2)
    layer = MultiHeadAttention(16, 4, 2, dropout=dropout, is_causal=True)
    return layer.to(device), Tensor(
        np.random.default_rng(0).normal(size=(2, 9, 16)), float32, device
    )


def steps(device, wrap):
    """Five answers and gradients of a layer in training, one seed."""
    layer, x = layer_on(device)
    mask = Tensor(np.random.default_rng(1).random((2, 1, 9, 9)) < 0.8,
                  device=device)

    @wrap
    def step(x, mask):
        for p in layer.parameters():
            p.grad = None
        y = layer(x, mask)
        y.square().sum().backward()
        return y.detach(), [p.grad for p in layer.parameters()]
    manual_seed(7)
    found = []
    for _ in range(5):
        y, slopes = step(x, mask)
        found.append([t.numpy().copy() for t in (y, *slopes)])
    return found


@pytest.mark.parametrize("device, wrap", [
    ("lazy", jit), ("lazy", lambda f: f), ("emulated", lambda f: f),
], ids="jit lazy emulated".split())
def test_one_seed_one_sequence_of_draws(device, wrap):
    """Each call draws other numbers, on every device the same ones."""
    expected, found = steps("cpu", lambda f: f), steps(device, wrap)
    for ours, wanted in zip(found, expected, strict=True):
        assert_near(ours, wanted, 2e-5)
    for one, other in zip(found, found[1:], strict=False):
        assert np.abs(one[0] - other[0]).max() > 1e-3


def program_of_a_step():
    layer, x = layer_on("lazy")
    layer(x).square().sum().backward()
    return compile_graph([p.grad.buffer.node for p in layer.parameters()])


def test_a_compiled_step_makes_no_weights():
    """Of the size of all pairs: the draw, and a bool for each."""
    stored = [node for step in program_of_a_step().steps
              for node in step.stores if node.shape[-2:] == (9, 9)]
    assert {node.dtype.name for node in stored} == {"float32", "bool"}
    assert [node.op for node in stored if node.dtype is float32] == [RANDOM]
    assert sum(node.dtype is not float32 for node in stored) == 1


def test_a_compiled_step_reads_bools_as_they_were_drawn():
    """Queries side by side, whoever reads them; no kernel turns them."""
    calls = [step for step in program_of_a_step().steps
             if getattr(step, "node", None) is not None
             and step.node.op in (ATTENTION, ATTENTION_GRADIENT)]
    assert len(calls) == 2
    assert {call.operands[-1].view.strides[-2:] for call in calls} == {(1, 9)}


def test_dropout_rests_in_eval():
    layer, x = layer_on("cpu")
    still, _ = layer_on("cpu", dropout=0.0)
    layer.eval()
    for p, q in zip(layer.parameters(), still.parameters(), strict=True):
        q.detach().assign(p.detach())
    assert np.array_equal(layer(x).numpy(), still(x).numpy())
    assert not np.array_equal(layer.train()(x).numpy(), still(x).numpy())


@pytest.mark.parametrize("p", [-0.1, 1.0, 1, math.nan, math.inf])
def test_what_cannot_be_dropped_is_refused(p):
    x = randn(4, 4)
    with pytest.raises(ValueError, match=r"expected 0 <= dropout_p < 1"):
        scaled_dot_product_attention(x, x, x, dropout_p=p)


def test_bools_that_do_not_fit_are_refused():
    q, mask = randn(3, 4), rand(3, 3) < 0.5
    for kept, kind, words in (
        (rand(3, 2) < 0.5, ValueError, r"kept \(3, 2\) do not fit"),
        (rand(3, 3), TypeError, "expected bool"),
    ):
        with pytest.raises(kind, match=words):
            Tensor.apply(ATTENTION, q, q, q, mask, kept, arg=(1.0, False, 0.5))
