# Tangled from transformers: edit there, `make tangle`. sha256:967a267af0c9
from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import tempfile
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from companion.device import CPU
from companion.dtype import float64, int64
from companion.literate import message
from companion.milestones.gpt_bench import (
    REST, SPENT_ON, shares, torch_logits, torch_step, training_step)
from companion.native import POOL
from companion.ops import ATTENTION, ATTENTION_GRADIENT, MATMUL
from companion.tensor import Tensor
from companion.tensor.random import Generator, manual_seed, randint, randn
from companion.timing import Timed
from companion.transformer import (
    CONFIGS, GPT, GPTConfig, choices, drawn, next_token_loss, spoken, windows)


def products(out, *src):
    """Operations of a MATMUL: a product and a sum for each pair."""
    return 2 * math.prod(out.shape) * src[0].shape[-1]


def attends(pairs, q, k):
    """So many products of every query with every key."""
    return 2 * pairs * math.prod(q.shape) * k.shape[-2]


WORK = {
    MATMUL: products,
    ATTENTION: lambda out, q, k, *rest: attends(2, q, k),
    ATTENTION_GRADIENT: lambda out, g, y, q, k, *rest: attends(5, q, k)}


class Counting(Timed):
    """A device that counts the operations of all products."""

    flops = 0

    def run(self, op, *src, arg=None):
        out = super().run(op, *src, arg=arg)
        self.flops += WORK[op](out, *src) if op in WORK else 0
        return out


def counted(config, batch, length, back):
    """Operations for each token of a batch, as a device counts them."""
    device = Counting(CPU)
    net = GPT(config).to(device)
    x, y = [randint(0, config.vocab_size, (batch, length)).to(device)
            for _ in "xy"]
    device.flops = 0
    loss = next_token_loss(net, x, y)
    if back:
        loss.backward()
    return device.flops / (batch * length)


def conv1d_weights(draw, sizes, layers=2, width=12):
    """Random weights with GPT-2's names, matrices (in, out)."""
    shapes = {"wte.weight": (sizes[0], width), "wpe.weight": (sizes[1], width)}
    for i in range(layers):
        for name, outs in (("attn.c_attn", 3), ("attn.c_proj", 1),
                           ("mlp.c_fc", 4), ("mlp.c_proj", 1)):
            ins = 4 if name == "mlp.c_proj" else 1
            shapes[f"h.{i}.{name}.weight"] = (ins * width, outs * width)
            shapes[f"h.{i}.{name}.bias"] = (outs * width,)
    for name in ["ln_f"] + [f"h.{i}.ln_{k}" for i in range(layers)
                            for k in (1, 2)]:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {name: draw.standard_normal(shape).astype(np.float32) * 0.3
            for name, shape in shapes.items()}


SAID = {"model_type": "gpt2", "n_positions": 9, "vocab_size": 30,
        "n_layer": 2, "n_head": 3, "n_embd": 12, "resid_pdrop": 0.1,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}


def written_folder(folder, weights, **said):
    """A checkpoint in Hugging Face's layout."""
    (Path(folder) / "config.json").write_text(json.dumps(SAID | said))
    save_file(weights, Path(folder) / "model.safetensors")
    return folder


def by_hand(w, index, heads=3):
    """The logits in NumPy, with matrices (in, out), from the formulas."""
    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    t, x = len(index), w["wte.weight"][index] + w["wpe.weight"][:len(index)]
    for at in ("h.0", "h.1"):
        qkv = conv1d(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn")
        q, k, v = qkv.reshape(t, 3, heads, -1).transpose(1, 2, 0, 3)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        e = np.exp(np.where(np.tri(t, dtype=bool), scores, -np.inf))
        y = (e / e.sum(-1, keepdims=True) @ v).transpose(1, 0, 2)
        x = x + conv1d(y.reshape(t, -1), f"{at}.attn.c_proj")
        u = conv1d(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        tangent = np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u ** 3))
        x = x + conv1d(u * (1 + tangent) / 2, f"{at}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def test_a_checkpoint_in_gpt2s_layout():
    draw = np.random.default_rng(0)
    weights, index = conv1d_weights(draw, (30, 9)), draw.integers(0, 30, 9)
    wide = {name: w.astype(np.float64) for name, w in weights.items()}
    expected = by_hand(wide, index)
    full = {f"transformer.{name}": w for name, w in weights.items()} | {
        "transformer.h.0.attn.bias": np.tri(9, dtype=np.float32),
        "lm_head.weight": weights["wte.weight"].copy()}
    for file in (weights, full):
        with tempfile.TemporaryDirectory() as folder:
            gpt2 = GPT.from_huggingface(written_folder(folder, file))
        found = gpt2(Tensor(index)).numpy()
        assert np.abs(found - expected).max() < 1e-4


TINY = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8)


def tiny(**changes):
    manual_seed(5)
    return GPT(replace(TINY, **changes))


def test_counted_is_what_the_formula_says():
    for bias in (True, False):
        c = replace(TINY, bias=bias, n_layer=3, n_embd=12)
        assert GPT(c).count() == c.parameters
        for length in (8, 5):
            assert counted(c, 2, length, False) == c.flops(length)
        products = c.flops(8) - 3 * 4 * 8 * 12
        assert counted(c, 2, 8, True) == 3 * products + 3 * 14 * 8 * 12
    assert CONFIGS["gpt2"].parameters == 124_439_808
    assert CONFIGS["gpt2-xl"].parameters == 1_557_611_200


def test_nothing_is_known_of_what_comes_later():
    net, index = tiny(), np.arange(8) % 11
    other = np.where(np.arange(8) < 5, index, 10 - index)
    a, b = [net(Tensor(i)).numpy() for i in (index, other)]
    assert np.allclose(a[:5], b[:5], atol=1e-6)
    assert not np.allclose(a[5:], b[5:], atol=1e-3)
    many = net(Tensor([[index, other]] * 3)).numpy()
    assert many.shape == (3, 2, 8, 11)
    assert np.allclose(many[2], [a, b], atol=1e-6)


def test_it_begins_with_what_was_promised():
    manual_seed(2)
    net = GPT(GPTConfig(64, 500, 8, 2, 128))
    for name, p in net.named_parameters():
        std = 0.005 if name.endswith("c_proj.weight") else 0.02
        if p.ndim == 2:
            assert abs(p.numpy().std() / std - 1) < 0.05, name
        else:
            value = float("ln" in name and name.endswith("weight"))
            assert (p.numpy() == value).all(), name
    x, y = randint(0, 500, (2, 2, 64))
    loss = next_token_loss(net, x, y).item()
    assert abs(loss - math.log(500)) < 0.2


def test_a_step_has_pytorchs_gradients():
    if importlib.util.find_spec("torch") is None:
        return
    torch = import_module("torch")
    for changes in ({}, {"bias": False}, {"approximate": "tanh"}):
        net = tiny(**changes)
        for p in net.parameters():
            p.detach().assign(p.detach() + randn(*p.shape) * 0.1)
        x, y = randint(0, 11, (2, 3, 8))
        loss = next_token_loss(net, x, y)
        loss.backward()
        state = {name: torch.tensor(p.numpy()).requires_grad_()
                 for name, p in net.state_dict().items()}
        theirs = torch.nn.functional.cross_entropy(
            torch_logits(state, net.config, torch.tensor(x.numpy()))
            .flatten(0, 1), torch.tensor(y.numpy()).flatten())
        theirs.backward()
        assert abs(loss.item() - theirs.item()) < 1e-5
        for name, p in net.named_parameters():
            expected = state[name].grad.numpy()
            distance = np.abs(p.grad.numpy() - expected).max()
            assert distance <= 1e-5 * np.abs(expected).max(), name


def test_the_rivals_take_the_same_steps():
    threads = POOL.threads
    spent = shares(TINY, threads, rounds=1)
    assert min(spent.values()) > 0
    assert spent.keys() == {*SPENT_ON.values(), REST, "Python"}
    if importlib.util.find_spec("torch"):
        ours, theirs = [make(TINY, 3, threads)
                        for make in (training_step, torch_step)]
        for _ in range(3):
            assert abs(ours() - theirs()) < 1e-4


def by_formula(net):
    """Set all weights to numbers that need no random generator."""
    for k, (_, p) in enumerate(net.named_parameters()):
        angle = np.arange(p.size) * 1.7 + k
        wave = np.sin(angle).reshape(p.shape) * 0.3
        p.detach().assign(Tensor(wave + (p.ndim == 1 and k % 2)))


GOLDEN = 2.442786281726
NORMS = (  # by PyTorch, in float64
    0.43916122665, 0.00676727311, 0.00041008933, 0.00012714231,
    0.00633154496, 0.00197699420, 0.03950280037, 0.01184540590,
    0.00117461765, 0.00063457076, 0.00948780765, 0.00257822449,
    0.06730302042, 0.01212925210, 0.00032332142, 0.00033873856,
    0.00679757249, 0.00200170447, 0.03975014590, 0.01214899025,
    0.00070044658, 0.00054525234, 0.00921084968, 0.00269289215,
    0.06698711690, 0.01223659399, 0.12338572620, 0.11956335904,
)


def test_a_recorded_step():
    """The loss, and the lengths of all gradients."""
    net = tiny().to(float64)
    by_formula(net)
    x = Tensor(np.arange(16).reshape(2, 8) * 7 % 11)
    loss = next_token_loss(net, x, (x * 3 + 1) % 11)
    loss.backward()
    assert abs(loss.item() - GOLDEN) < 1e-9
    for (name, p), expected in zip(net.named_parameters(), NORMS, strict=True):
        norm = p.grad.square().sum().item() ** 0.5
        assert abs(norm - expected) < 1e-6 * expected, name


def test_a_card_computes_the_same():
    nets = tiny(), tiny().to("emulated")
    x, y = randint(0, 11, (2, 2, 8))
    for net, place in zip(nets, ("cpu", "emulated")):
        next_token_loss(net, x.to(place), y.to(place)).backward()
        assert len(list(net.generate([1, 2], 8))) == 8
    for p, q in zip(*[net.parameters() for net in nets]):
        assert np.allclose(p.grad.numpy(), q.grad.numpy(), atol=1e-6)


def test_choices_follow_the_probabilities():
    p = np.array([0.1, 0.4, 0.1, 0.4])
    for options, ids, expected in (
            ({}, [1, 3, 0, 2], [0.4, 0.4, 0.1, 0.1]),
            ({"temperature": 0}, [1], [1]),
            ({"top_k": 3}, [1, 3, 0], [4 / 9, 4 / 9, 1 / 9]),
            ({"top_k": 9}, [1, 3, 0, 2], [0.4, 0.4, 0.1, 0.1]),
            ({"top_p": 0.3}, [1], [1]),
            ({"top_p": 0.75}, [1, 3], [0.5, 0.5]),
            ({"top_p": 1.0}, [1, 3, 0, 2], [0.4, 0.4, 0.1, 0.1]),
            ({"temperature": 0.5}, [1, 3, 0, 2],
             np.array([16, 16, 1, 1]) / 34),
            ({"top_k": 2, "top_p": 0.5}, [1], [1])):
        found, share = choices(np.log(p), **options)
        assert found.tolist() == ids, options
        assert np.allclose(share, expected), options
    hot, _ = choices(np.array([1e30, 0, -np.inf]), 1e-3)
    assert hot[0] == 0


def test_a_seed_gives_the_text_again():
    net = tiny().train()
    texts = [list(net.generate([1, 2], 30, generator=Generator(seed)))
             for seed in (4, 4, 5)]
    assert texts[0] == texts[1] != texts[2]
    assert net.training and net.h[0].dropout.training
    net.h[0].eval()
    list(net.generate([1], 1))
    assert net.training and not net.h[0].training
    draw, ids, p = Generator(7), np.array([6, 2, 4]), np.array([5, 3, 2]) / 10
    found = [drawn(ids, p, draw) for _ in range(1000)]
    assert np.abs(np.bincount(found)[ids] / 1000 - p).max() < 0.05


def test_a_stop_ends_the_text_before_it():
    net = tiny()
    text = list(net.generate([1], 20, generator=Generator(6)))
    stop = text[7]
    for given in (stop, {stop}, [stop, 10 - stop]):
        found = list(net.generate([1], 20, stop=given,
                                  generator=Generator(6)))
        also = {given} if given == stop else set(given)
        end = min(i for i, new in enumerate(text) if new in also)
        assert found == text[:end]
    assert list(net.generate([1], 0)) == []


def test_it_sees_its_context_and_says_so():
    net, told = tiny(block_size=6), io.StringIO()
    long = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    with contextlib.redirect_stderr(told):
        list(net.generate([1, 2], 4))
        assert not told.getvalue()
        text = net.generate(long, 5)
        assert "9 + 5 tokens are more than the context of 6" \
            in told.getvalue()
        assert len(list(text)) == 5
    assert np.array_equal(net.next_logits(long), net.next_logits(long[-6:]))
    assert "got 2 and -1" in message(partial(net.generate, [1, 2], -1))
    for wrong in (Tensor([0] * 7), Tensor(0), Tensor([[]], dtype=int64)):
        assert f"context of 6, got {wrong.shape}" in message(
            partial(net, wrong))


def test_dropout_is_for_training():
    net, index = tiny(dropout=0.5), Tensor([1, 2, 3])
    assert not np.array_equal(net(index).numpy(), net(index).numpy())
    assert np.allclose(net.next_logits([1, 2, 3]),
                       net.eval()(index).numpy()[-1], atol=1e-6)


class Halves:
    """A tokenizer of bytes."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


def test_letters_are_spoken_whole():
    ids = list("aé€!".encode())
    assert list(spoken(Halves(), ids)) == ["a", "é", "€", "!"]
    assert list(spoken(Halves(), ids[:-2])) == ["a", "é", "\ufffd"]


def test_windows_are_views():
    ids = np.arange(10)
    x, y = windows(ids, 4)[np.array([0, 5])]
    assert x.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert y.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert len(windows(ids, 9)) == 1
    for wrong in (ids[:4], ids.reshape(2, 5)):
        assert "a row of more than 4" in message(
            partial(windows, wrong, 4))


def test_what_is_no_gpt_is_refused():
    net = tiny()
    for options, words in (
            ({"temperature": -1}, "temperature of 0"),
            ({"temperature": math.nan}, "temperature of 0"),
            ({"top_k": 0}, "top_k of 1"), ({"top_p": 0}, "top_p above 0"),
            ({"top_p": 1.5}, "top_p above 0")):
        assert words in message(partial(net.generate, [1], 5, **options))
        assert words in message(partial(choices, np.zeros(3), **options))
    assert "a prompt" in message(lambda: net.generate([], 5))
    for changes in ({"n_embd": 9}, {"n_layer": 0}, {"vocab_size": 9.0}):
        assert "sizes" in message(partial(replace, TINY, **changes))
    net.ln_f.weight.detach().assign(net.ln_f.weight.detach() * math.nan)
    assert "not finite" in message(lambda: list(net.generate([1], 5)))


def test_files_that_do_not_fit_are_refused():
    weights = conv1d_weights(np.random.default_rng(1), (30, 9))
    lost = {k: w for k, w in weights.items() if k != "ln_f.bias"}
    head = weights | {"lm_head.weight": weights["wte.weight"] + 1}
    with tempfile.TemporaryDirectory() as folder:
        def refused(file, **said):
            written_folder(folder, file, **said)
            return message(lambda: GPT.from_huggingface(folder))

        assert "missing: ln_f.bias" in refused(lost)
        assert "one table for both" in refused(head)
        assert "another network" in refused(weights, n_inner=99)
        assert "'relu'" in refused(weights, activation_function="relu")
        assert "expected (30, 12)" in refused(
            weights | {"wte.weight": np.zeros((31, 12), np.float32)})
        path = Path(folder) / "x.safetensors"
        net = tiny(bias=False, dropout=0.1)
        net.save(path)
        again = GPT.load(path)
        assert again.config == net.config and all(
            np.array_equal(p.numpy(), q.numpy())
            for p, q in zip(net.parameters(), again.parameters()))
        assert "is no GPT" in message(
            lambda: GPT.load(Path(folder) / "model.safetensors"))
        path.write_bytes(path.read_bytes()[:-5])
        assert "no whole safetensors" in message(lambda: GPT.load(path))
