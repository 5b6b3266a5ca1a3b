"""A cache of keys says what the model says: random shapes, all devices."""

import argparse
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from companion import (
    CachedGPT,
    Generator,
    KVCache,
    MultiHeadAttention,
    PagedCache,
    Request,
    Server,
    Tensor,
    manual_seed,
    no_grad,
    stack,
    timing,
)
from companion.cache import cache_bytes
from companion.milestones import decode_bench, generate
from companion.transformer import GPT, GPTConfig


def model_of(layers=2, heads=4, kv_heads=2, length=8, seed=0, width=4,
             bias=True):
    """A GPT whose weights are so large that every position matters."""
    manual_seed(seed)
    config = GPTConfig(length, 13, layers, heads, heads * width, bias=bias)
    net = GPT(config)
    for block in net.h:
        block.attn = MultiHeadAttention(
            config.n_embd, heads, kv_heads, bias=bias, is_causal=True)
    for p in net.parameters():
        if p.ndim == 2:
            p.detach().assign(p.detach() * 6)
    return net.eval()


def logits_of(net, ids):
    with no_grad():
        return net(Tensor(ids, device=net.wte.weight.device)).numpy()


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


shapes = st.tuples(
    st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3)]),
    st.sampled_from([2, 4, 8, 12]), st.integers(1, 4), st.booleans())


@settings(max_examples=25, deadline=None)
@given(shapes, st.randoms(use_true_random=False), st.booleans())
def test_any_order_of_reading_and_going_on(shape, draw, by_pages):
    """Slots read, go on and are left at random; all agree at every step."""
    layers, (heads, kv_heads), length, slots, bias = shape
    net = model_of(layers, heads, kv_heads, length, draw.randrange(99),
                   bias=bias)
    cache = (PagedCache(net, slots, slots * length // 2, 2) if by_pages
             else KVCache(net, slots))
    texts = [[] for _ in range(slots)]
    for _ in range(6):
        for slot in range(slots):
            full = len(texts[slot]) == length
            if not texts[slot] or full or draw.random() < 0.2:
                cache.release(slot)
                assert cache.reserve(slot, length)
                texts[slot] = [draw.randrange(13) for _ in range(
                    draw.randint(1, length))]
                close(cache.prefill(texts[slot], slot),
                      logits_of(net, texts[slot])[-1])
        going = [ids for ids in texts if len(ids) < length]
        if len(going) < slots:
            continue
        for ids in texts:
            ids.append(draw.randrange(13))
        found = cache.step([ids[-1] for ids in texts],
                           [len(ids) - 1 for ids in texts])
        for ids, row in zip(texts, found):
            close(row, logits_of(net, ids)[-1])


@pytest.mark.parametrize("name", ["cpu", "emulated", "lazy",
                                  "lazy emulated"])
@pytest.mark.parametrize("paged", [False, True])
def test_devices_agree(name, paged):
    plain, net = model_of(), model_of()
    net.to(name)
    cache = PagedCache(net, 2, 4, 4) if paged else KVCache(net, 2)
    ids = [3, 1, 4, 1, 5, 9]
    assert cache.reserve(0, 8) and cache.reserve(1, 8)
    wanted = logits_of(plain, ids)
    close(cache.prefill(ids[:3], 1), wanted[2])
    close(cache.prefill(ids[:2], 0), wanted[1])
    for t in range(3, 6):
        found = cache.step([ids[t - 1], ids[t]], [t - 1, t])
        close(found, wanted[[t - 1, t]])


class OnePlace(KVCache):
    """Believes that all slots are where the first one is."""

    def asked(self, ids, places):
        return super().asked(ids, [places[0]] * len(places))


class OneText(KVCache):
    """Reads a prompt into all slots."""

    def padded(self, ids, slot):
        row, at = super().padded(ids, slot)
        return row, at * Tensor([0, 1])


@pytest.mark.parametrize("kind, right", [
    (KVCache, True), (OnePlace, False), (OneText, False)])
def test_slots_that_are_mixed_up_are_found(kind, right):
    net = model_of()
    cache, texts = kind(net, 2), [[1, 2, 3, 4, 5], [6, 7]]
    for slot, ids in enumerate(texts):
        cache.prefill(ids, slot)
    found = cache.step([8, 8], [5, 2])
    wanted = [logits_of(net, [*ids, 8])[-1] for ids in texts]
    assert np.allclose(found, wanted, atol=1e-3) == right


def test_a_place_that_is_a_number_of_python_is_another_program():
    """What the cache avoids: each place would be compiled for itself."""
    net = model_of()
    net.to("lazy")
    cache = KVCache(net)
    frozen = cache.program(lambda ids, place: cache.decode(
        stack([ids, ids * 0 + place])))
    for place in (0, 1):
        for _ in range(3):
            frozen(Tensor([1]), place)
    assert len(frozen.programs) == 2


def test_a_program_is_made_once_while_requests_come_and_go():
    net = model_of()
    net.to("lazy")
    server = Server(KVCache(net, 2))
    asked = [Request([i], 3 + i % 4, seed=i, arrival=1e-4 * i)
             for i in range(7)]
    server.run(asked)
    twin = model_of()
    for request in asked:
        assert request.new == list(twin.generate(
            request.prompt, request.max_new_tokens,
            generator=Generator(request.seed)))
        assert len(request.times) == len(request.new)
        assert request.times == sorted(request.times)
        assert request.times[0] >= request.arrival
    assert len(server.cache.decoded.programs) == 1
    assert len(server.cache.read.programs) == 1


def test_who_finds_no_pages_waits_for_them():
    net = model_of()
    server = Server(PagedCache(net, 3, pages=2, page=4))
    asked = [Request([1, 2], 4, seed=i) for i in range(3)]
    server.run(asked)
    assert max(asked[0].times) <= min(asked[1].times)
    assert len(server.cache.free) == 2


def test_a_bad_token_is_refused_and_the_cache_goes_on():
    for name in ("cpu", "lazy"):
        net = model_of()
        net.to(name)
        cache = KVCache(net)
        for t in range(3):
            cache.step([1], [t])
        with pytest.raises(IndexError, match="13"):
            cache.step([13], [3])
        close(cache.step([1], [3])[0], logits_of(model_of(), [1] * 4)[-1])


def test_what_was_interrupted_is_read_again():
    net, cached = model_of(), CachedGPT(model_of())
    cached.next_logits([1, 2])
    step = cached.cache.step

    def stopped(ids, places):
        step([7], places)  # another token is in its place by now
        raise KeyboardInterrupt

    cached.cache.step = stopped
    with pytest.raises(KeyboardInterrupt):
        cached.next_logits([1, 2, 3])
    cached.cache.step = step
    close(cached.next_logits([1, 2, 3]), net.next_logits([1, 2, 3]))


def test_a_trained_model_forgets():
    net = model_of()
    net.to("lazy")
    cached = CachedGPT(net)
    for n in range(1, 5):
        cached.next_logits([1, 2, 3, 4][:n])
    p = net.wte.weight.detach()
    p.assign(p * -1)
    close(cached.next_logits([1, 2, 3, 4, 5]),
          logits_of(net, [1, 2, 3, 4, 5])[-1])


def test_a_cached_gpt_is_made_of_a_gpt(tmp_path):
    with pytest.raises(TypeError, match="expected a GPT, got a GPTConfig"):
        CachedGPT(GPTConfig(8, 13, 1, 1, 4))
    model_of(kv_heads=4).save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="CachedGPT.GPT.load"):
        CachedGPT.load(tmp_path / "x.safetensors")


def test_what_was_not_a_number_leaves_no_trace():
    net = model_of()
    cached, p = CachedGPT(net), net.wte.weight.detach()
    sound = p.numpy().copy()
    p.assign(p * math.nan)
    with pytest.raises(ValueError, match="not finite"):
        cached.next_logits([1, 2, 3])
    p.assign(Tensor(sound))
    for n in (1, 2, 3):
        close(cached.next_logits([4, 5, 6][:n]),
              logits_of(net, [4, 5, 6][:n])[-1])


def test_dropout_is_off_and_comes_back():
    manual_seed(0)
    net = GPT(GPTConfig(8, 13, 2, 2, 8, dropout=0.5)).train()
    cached = CachedGPT(net)
    rows = [cached.next_logits([1, 2, 3]) for _ in range(3)]
    assert np.array_equal(rows[1], rows[2])
    assert all(m.training for m in (net, net.h[0].dropout))
    close(rows[0], net.next_logits([1, 2, 3]))


def test_bytes_at_every_size():
    for layers, kv_heads, slots, length in ((1, 1, 1, 2), (3, 2, 4, 12)):
        net = model_of(layers, 4, kv_heads, length)
        cache = KVCache(net, slots)
        assert cache.nbytes == cache_bytes(
            net.config, slots, kv_heads=kv_heads)
        pages = PagedCache(net, slots, 5, 2)
        assert pages.nbytes == cache_bytes(
            net.config, 6, length=2, kv_heads=kv_heads)


def test_the_command_remembers(monkeypatch, capsys):
    made = []

    class Watched(CachedGPT):
        def __init__(self, model):
            made.append(model)
            super().__init__(model)

    class Letters:
        def encode(self, text):
            return [ord(c) % 13 for c in text]

        def decode(self, ids):
            return "".join(chr(97 + i) for i in ids)

    monkeypatch.setattr(generate, "CachedGPT", Watched)
    net = model_of()
    options = argparse.Namespace(prompt="to", tokens=12, temperature=0.8,
                                 top_k=None, top_p=None, seed=4)
    generate.write(net, Letters(), options)
    wanted = net.generate(Letters().encode("to"), 12, 0.8,
                          generator=Generator(4))
    assert capsys.readouterr().out == "to" + Letters().decode(wanted) + "\n"
    assert made == [net]


@pytest.mark.needs("torch")
def test_the_peer_says_what_we_say():
    import torch

    before = torch.get_num_threads()
    try:
        net = GPT(GPTConfig(8, 13, 2, 2, 8))
        step = decode_bench.torch_decoder(net, 1)
        ids = [3, 1, 4, 1, 5, 9, 2, 6]
        wanted = logits_of(net, ids)
        for t, token in enumerate(ids):
            close(step(token, t).numpy(), wanted[t])
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_the_bench_is_a_command(capsys):
    assert timing.main(["decode", "--json", "--quick", "--threads", "1"]) == 0
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert {x["bench"] for x in lines} == {"decode"}
    assert lines[0]["peer_name"] == "torch" and lines[0]["unit"] == "µs"
    bound = [x["ours"] for x in lines if "bound" in x["case"]]
    assert len(bound) == 1 and bound[0] > 0
    served = [x for x in lines if x["unit"] == "tokens/s"]
    assert served and all(math.isfinite(x["ours"]) for x in served)
