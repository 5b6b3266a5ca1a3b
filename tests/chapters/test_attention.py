# Tangled from attention: edit there, `make tangle`. sha256:56493b3568a8
from __future__ import annotations

import importlib.util
import math
import tracemalloc
from functools import partial
from importlib import import_module

import numpy as np

from companion.attention import (
    MultiHeadAttention, attention_weights, causal_mask, kept_weights,
    scaled_dot_product_attention, stacked)
from companion.autograd import seen_by
from companion.buffer import Buffer
from companion.device import CPU, numpy_attention, numpy_attention_back
from companion.dtype import bfloat16, float16, float32, float64
from companion.layers import Dropout
from companion.native import POOL, set_threads
from companion.ops import ATTENTION, ATTENTION_GRADIENT
from companion.tensor import Tensor
from companion.tensor.creation import linspace
from companion.tensor.gradients import grad, gradcheck
from companion.tensor.indexing import allclose
from companion.tensor.random import Generator, manual_seed, rand, randn
from companion.timing import Timed


def plain(q, k, v):
    return attention_weights(q, k) @ v


def bytes_moved(f, length, width=32):
    """Of f and its gradients, on one head."""
    timed = Timed(CPU)
    q, k, v = [x.to(timed).requires_grad_() for x in randn(3, length, width)]
    f(q, k, v).sum().backward()
    return sum(moved for _, _, moved in timed.calls)


def exponent(lengths, costs):
    """p of the law cost = c · length^p that fits best."""
    return np.polyfit(np.log(lengths), np.log(costs), 1)[0]


def peak(f, length, width=32):
    """Bytes in use at the worst moment of f and its gradients."""
    q, k, v = [x.requires_grad_() for x in randn(3, length, width)]
    f(q, k, v).sum().backward()  # compiles what is to be compiled
    tracemalloc.start()
    f(q, k, v).sum().backward()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def dropped(q, k, v):
    """By the definition: all the weights, without some of them."""
    return Dropout(0.2)(attention_weights(q, k)) @ v


def babys_layer():
    """A step of one layer of the baby, forwards and backwards."""
    layer = MultiHeadAttention(384, 6, dropout=0.2, is_causal=True)
    x = randn(4, 256, 384)
    return layer, lambda: layer(x).sum().backward()


def thinly(q, k, v):
    return scaled_dot_product_attention(q, k, v, dropout_p=0.2)


def held(f, length, width=32):
    """Bytes that the gradient of f waits for."""
    q, k, v = [x.requires_grad_() for x in randn(3, length, width)]
    tracemalloc.start()
    waiting = f(q, k, v)
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del waiting
    return now


def by_definition(q, k, v, mask, causal):
    """Through all the weights."""
    if causal:
        before = causal_mask(q.shape[-2], k.shape[-2])
        mask = before if mask is None else mask & before
    return attention_weights(q, k, mask) @ v


def in_tiles(q, k, v, mask, causal):
    return scaled_dot_product_attention(q, k, v, mask, is_causal=causal)


def answers(f, q, k, v, mask, causal):
    """The value of f and its gradients, in an arbitrary direction."""
    direction = linspace(-1, 1, q.size, dtype=q.dtype).reshape(q.shape)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    y = f(*leaves, mask, causal)
    return y, *grad((y * direction).sum(), leaves)


def near(ours, wanted, most):
    """Whether arrays agree, relative to the largest number in them."""
    return all(np.abs(x.numpy() - y.numpy()).max(initial=0)
               <= most * (1 + np.abs(y.numpy()).max(initial=0))
               for x, y in zip(ours, wanted))


def examples(dtype, *sizes):
    """Random q, k, v, and masks: none, of all kinds, rows all hidden."""
    manual_seed(1)
    for stack, t, s, d in sizes:
        q, k, v = [randn(*stack, n, d, dtype=dtype) for n in (t, s, s)]
        mask = rand(*stack, t, s) < 0.7
        mask[..., ::3, :] = False
        for hidden in (None, mask, mask[..., :1, :], mask[..., :1]):
            for causal in (False, True):
                yield q, k, v, hidden, causal


SIZES = (((2, 3), 64, 64, 16), ((1,), 1, 1, 1), ((2,), 130, 71, 20),
         ((), 70, 200, 128), ((2,), 33, 129, 24), ((2,), 0, 5, 8),
         ((2,), 5, 0, 8), ((0,), 5, 5, 8), ((1,), 17, 40, 256))


def test_tiles_equal_the_definition():
    for dtype, most in ((float32, 1e-5), (float64, 1e-13)):
        for example in examples(dtype, *SIZES):
            assert near(answers(in_tiles, *example),
                        answers(by_definition, *example), most)


def test_tiles_walk_any_memory():
    manual_seed(2)
    x = randn(2, 40, 3, 4, 16).permute(2, 0, 3, 1, 4)  # as a layer's
    for q, k, v in (x, x.flip(3), x[..., ::2], x[..., ::3, :],
                    x.transpose(-1, -2)):
        k, v = k[:, :1].broadcast(q.shape), v.broadcast(q.shape)
        for mask in (None, randn(40, 40).T[:q.shape[-2], :q.shape[-2]] > 0):
            assert near(answers(in_tiles, q, k, v, mask, True),
                        answers(by_definition, q, k, v, mask, True), 1e-5)


def kept_to(kept, keep):
    """By the kernels and by the definition, with given weights kept."""
    def kernels(q, k, v, mask, causal):
        *operands, mask = stacked(q, k, v, mask)
        y = Tensor.apply(
            ATTENTION, *operands, mask, kept.to(q.device).broadcast(
                mask.shape), arg=(q.shape[-1] ** -0.5, causal, keep))
        return y[..., :-1]

    def definition(q, k, v, mask, causal):
        if causal:
            before = causal_mask(q.shape[-2], k.shape[-2])
            mask = before if mask is None else mask & before
        weights = attention_weights(q, k, mask)
        return (weights * kept.to(q.dtype) / keep) @ v
    return kernels, definition


def stays(q, k):
    """Bools for the weights of q and k, in memory of all kinds."""
    (*stack, t, _), s = q.shape, k.shape[-2]
    drawn = rand(*stack, t, s) < 0.7
    return (drawn, drawn.mT.contiguous().mT, drawn.flip(-1), drawn[..., :1],
            drawn[..., :1, :], Tensor(False).expand(1, 1))


def test_dropped_weights_equal_the_definition():
    for dtype, most in ((float32, 1e-5), (float64, 1e-13)):
        for i, (q, k, *rest) in enumerate(examples(dtype, *SIZES)):
            every = stays(q, k)  # each with some of the masks
            for kept in (every[i % len(every)], every[1]):
                ours, wanted = kept_to(kept, 0.7)
                assert near(answers(ours, q, k, *rest),
                            answers(wanted, q, k, *rest), most)


def test_dropout_draws_with_its_generator():
    manual_seed(8)
    q, k, v = randn(3, 2, 30, 8)
    attend = partial(scaled_dot_product_attention, q, k, v, dropout_p=0.25)
    found = [attend(generator=Generator(seed)) for seed in (1, 1, 2)]
    kept = kept_weights((2, 30, 30), 0.25, CPU, Generator(1))
    _, wanted = kept_to(kept, 0.75)
    assert near(found[:2], [wanted(q, k, v, None, False)] * 2, 1e-5)
    assert not allclose(found[0], found[2])
    assert abs(kept.to(float32).mean().item() - 0.75) < 0.06
    for p in (-0.1, 1.0, math.nan):
        try:
            scaled_dot_product_attention(q, k, v, dropout_p=p)
        except ValueError as error:
            assert "0 <= dropout_p < 1" in str(error)
        else:
            raise AssertionError(p)


def test_dropout_holds_a_byte_for_a_pair():
    for length in (512, 1024):
        rest = held(scaled_dot_product_attention, length)
        assert held(thinly, length) - rest < 1.2 * length ** 2


def test_a_query_that_sees_nothing_has_zeros():
    q, k, v = randn(3, 3, 70, 8)
    mask = Tensor([[True], [False], [True]]).unsqueeze(2).expand(3, 70, 70)
    for f in (in_tiles, by_definition):
        y, *gradients = answers(f, q, k, v, mask, True)
        assert (y[1] == 0).all() and all((g[1] == 0).all()
                                         for g in gradients)
        assert not any(np.isnan(x.numpy()).any() for x in (y, *gradients))
    q[0, 3, 0] = math.nan
    y = in_tiles(q, k, v, mask, True).numpy()
    assert np.isnan(y[0, 3]).all() and not np.isnan(y[0, 2]).any()


def test_no_compiler_is_needed():
    for q, k, v, mask, causal in examples(float64, ((2,), 9, 7, 5)):
        mask = Tensor(True) if mask is None else mask
        src = q, k, v, mask.expand(2, 9, 7), rand(2, 9, 7) < 0.6
        buffers, arg = [x.buffer for x in src], (0.3, causal, 0.6)
        y = CPU.run(ATTENTION, *buffers, arg=arg)
        again = Buffer.empty(y.shape, float64)
        g = randn(*y.shape, dtype=float64).buffer
        back = CPU.run(ATTENTION_GRADIENT, g, y, *buffers, arg=arg)
        slow = Buffer.empty(back.shape, float64)
        with np.errstate(divide="ignore"):  # log(0), as inside CPU.run
            numpy_attention(again, *buffers, arg)
            numpy_attention_back(slow, g, y, *buffers, arg)
        assert np.allclose(y.array, again.array, 1e-12)
        assert np.allclose(back.array, slow.array, 1e-10, 1e-12)


def test_both_rules_agree_with_differences():
    for q, k, v, mask, causal in examples(float64, ((2,), 4, 3, 2)):
        mask = (Tensor(True) if mask is None else mask).expand(2, 4, 3)
        kept, keep = ((Tensor(True), 1.0) if causal
                      else (rand(2, 4, 3) < 0.6, 0.6))
        bools, arg = (mask, kept.expand(2, 4, 3)), (0.7, causal, keep)
        # Where all is hidden the logarithm is -inf, and has no slope.
        seen = seen_by(mask, causal).any(-1, keepdim=True)

        def whole(q, k, v, bools=bools, arg=arg, seen=seen):
            y = Tensor.apply(ATTENTION, q, k, v, *bools, arg=arg)
            return y.where(seen, 0)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        gradcheck(whole, *leaves)

        def slope_of(q, k, v, whole=whole):
            y = whole(q, k, v)
            found = grad((y * y).sum(), [q, k, v], create_graph=True)
            return sum([(g * g).sum() for g in found], Tensor(0.0, float64))
        gradcheck(slope_of, *leaves, tolerance=1e-4)


def test_threads_and_halves():
    manual_seed(4)
    x, before, found = randn(3, 6, 100, 16), POOL.threads, set()
    for threads in (1, 2, 5):
        set_threads(threads)
        found.add(b"".join(y.numpy().tobytes() for y in answers(
            in_tiles, *x, None, True)))
    set_threads(before)
    assert len(found) == 1
    for dtype, most in ((float16, 2e-3), (bfloat16, 2e-2)):
        y = in_tiles(*x.to(dtype), None, True)
        assert y.dtype is dtype
        assert near([y.to(float32)], [in_tiles(*x, None, True)], most)


def on_card(q, k, v, mask, causal, f=in_tiles):
    there = [x if x is None else x.to("emulated") for x in (q, k, v, mask)]
    return f(*there, causal).to("cpu")


def test_a_card_gives_the_same():
    for dtype, most, size in ((float32, 1e-5, ((2,), 37, 40, 33)),
                              (float64, 1e-13, ((1, 2), 3, 70, 16))):
        for i, (q, k, *rest) in enumerate(examples(dtype, size)):
            assert near(answers(on_card, q, k, *rest),
                        answers(in_tiles, q, k, *rest), most)
            ours, wanted = kept_to(stays(q, k)[i % 6], 0.7)
            there = partial(on_card, f=ours)
            assert near(answers(there, q, k, *rest),
                        answers(wanted, q, k, *rest), most)


def test_what_does_not_fit_is_refused():
    x = randn(2, 3, 4)
    for kind, words, act in (
            (ValueError, "do not fit", lambda: in_tiles(
                x, x[..., :2], x, None, False)),
            (TypeError, "expected bool", lambda: in_tiles(
                x, x, x, x @ x.mT, False)),
            (ValueError, "multiple", lambda: MultiHeadAttention(10, 3)),
            (ValueError, "multiple", lambda: MultiHeadAttention(12, 4, 3))):
        try:
            act()
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


def test_heads_of_every_grouping():
    manual_seed(6)
    x, there = randn(2, 5, 12), Tensor([[True] * 3 + [False] * 2, [True] * 5])
    for heads, kv in ((1, 1), (4, 4), (4, 2), (6, 1)):
        layer = MultiHeadAttention(12, heads, kv, is_causal=True)
        for mask in (None, there[:, None, None], rand(2, heads, 5, 5) < 0.8):
            _, _, v = layer.heads(x)
            v = v.expand(2, kv, heads // kv, 5, -1).flatten(1, 2)
            y = (layer.weights(x, mask) @ v).transpose(1, 2).flatten(2)
            assert near([layer(x, mask)], [layer.c_proj(y)], 1e-5)
    assert sorted(layer.state_dict()) == [
        "c_attn.bias", "c_attn.weight", "c_proj.bias", "c_proj.weight"]


def test_dropped_weights_are_right_on_average():
    manual_seed(7)
    x, layer = randn(1, 6, 8), MultiHeadAttention(8, 2, dropout=0.25)
    many = x.expand(4000, 6, 8)
    mean = layer(many).mean(0, keepdim=True)
    assert not allclose(layer(x), layer(x))
    assert np.abs((mean - layer.eval()(x)).numpy()).max() < 0.1


def test_memory_grows_with_the_length():
    def growth(f, measure):
        costs = [measure(f, length) for length in (512, 1024, 2048)]
        return exponent((512, 1024, 2048), costs)

    for measure in (bytes_moved, peak):
        assert abs(growth(plain, measure) - 2) < 0.15
        assert abs(growth(scaled_dot_product_attention, measure) - 1) < 0.15


def test_pytorch_agrees():
    if importlib.util.find_spec("torch") is None:
        return
    torch = import_module("torch")
    theirs = torch.nn.functional.scaled_dot_product_attention
    for q, k, v, mask, causal in examples(
            float32, ((2, 3), 64, 64, 32), ((2,), 70, 33, 20)):
        if mask is not None and (causal or mask.shape[-1] == 1
                                 or not mask.any(-1).all()):
            continue  # it takes one of both, and answers nan for nothing
        x = [torch.tensor(t.numpy(), requires_grad=True) for t in (q, k, v)]
        hidden = None if mask is None else torch.tensor(mask.numpy())
        y = theirs(*x, attn_mask=hidden, is_causal=causal)
        y.sum().backward()
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        mine = in_tiles(*leaves, mask, causal)
        mine.sum().backward()
        assert near([mine, *[t.grad for t in leaves]],
                    [Tensor(t.detach().numpy())
                     for t in (y, *[t.grad for t in x])], 1e-5)
