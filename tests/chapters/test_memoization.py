# Tangled from memoization: edit there, `make tangle`. sha256:17e27a8c6262
from __future__ import annotations

import math

import numpy as np

from companion.attention import MultiHeadAttention
from companion.autograd import no_grad
from companion.cache import (
    Ahead, CachedGPT, KVCache, PagedCache, Request, Server, cache_bytes)
from companion.literate import message
from companion.tensor import Tensor
from companion.tensor.random import Generator, manual_seed, rand
from companion.transformer import GPT, GPTConfig


def farthest(cache, model, ids):
    """The largest distance of a step's logits from the model's own."""
    with no_grad():
        whole = model(Tensor(ids)).numpy()
    steps = [cache.step([token], [t])[0] for t, token in enumerate(ids)]
    return float(np.abs(np.array(steps) - whole).max())


def grouped(config, kv_heads):
    """A GPT whose queries share heads of keys."""
    net = GPT(config)
    for block in net.h:
        block.attn = MultiHeadAttention(
            config.n_embd, config.n_head, kv_heads, bias=config.bias,
            is_causal=True)
    return net.eval()


class Steps(Server):
    """A server whose clock counts its steps."""

    def __init__(self, cache):
        self.count, self.order = 0, []
        super().__init__(cache, lambda: self.count)

    def step(self):
        super().step()
        self.count += 1
        self.order.append([r.seed if r else None for r in self.slots])


def alone(request, model):
    """What the request gets from the model without a cache."""
    return list(model.generate(
        request.prompt, request.max_new_tokens, **request.options,
        generator=Generator(request.seed)))


SMALL = GPTConfig(8, 11, 2, 4, 16)


def drawn_model(config=SMALL, kv_heads=4, seed=0, scale=8):
    """A GPT with weights so large that positions matter."""
    manual_seed(seed)
    net = grouped(config, kv_heads)
    for p in net.parameters():
        p.detach().assign(p.detach() * (scale if p.ndim == 2 else 1))
    return net


def off_by(cache, net, ids=(3, 1, 4, 1, 5, 9, 2, 6)):
    return farthest(cache, net, list(ids))


def test_every_position_is_the_models():
    for kv_heads in (4, 2, 1):
        net = drawn_model(kv_heads=kv_heads)
        assert off_by(KVCache(net), net) < 1e-3
        reading = KVCache(net)
        for n in (8, 2, 5):  # a long text before a short one
            ids = [3, 1, 4, 1, 5, 9, 2, 6][:n]
            with no_grad():
                wanted = net(Tensor(ids)).numpy()[-1]
            assert np.allclose(reading.prefill(ids), wanted, atol=1e-3)


class OneLayer(KVCache):
    """Attends with the first layer's keys and values in all layers."""

    def walk(self, x, memory):
        return super().walk(x, [memory[0]] * len(memory))


class Late(KVCache):
    """Writes each row one place too late."""

    def put(self, new, here):
        super().put(new, here.roll(1, 2))


class Everything(KVCache):
    """Sees all that memory holds, and not what is before it."""

    def asked(self, ids, places):
        self.memory = [[x * 0 + 1 for x in pair] for pair in self.memory]
        return super().asked(ids, places)


def test_mistakes_are_found():
    net = drawn_model()
    assert off_by(KVCache(net), net) < 1e-3
    for wrong in (OneLayer, Late, Everything):
        assert off_by(wrong(net), net) > 1e-2, wrong


def test_each_request_gets_what_it_gets_alone():
    net = drawn_model()
    for cache in (KVCache(net, 3), PagedCache(net, 3, pages=7, page=2)):
        asked = [Request([i % 11, 3][:1 + i % 2], 2 + i % 5, seed=i,
                         arrival=i // 2, options={"temperature": 0.7})
                 for i in range(9)]
        server = Steps(cache)
        server.run(asked)
        assert [r.new for r in asked] == [alone(r, net) for r in asked]
        assert not any(server.slots) and not server.waiting


def test_texts_of_different_lengths_share_a_step():
    net, cache = drawn_model(), KVCache(drawn_model(), 3)
    texts = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    for slot, ids in enumerate(texts):
        cache.prefill(ids, slot)
    for new in range(3):
        found = cache.step([new] * 3, [len(ids) for ids in texts])
        for ids, logits in zip(texts, found):
            ids.append(new)
            with no_grad():
                wanted = net(Tensor(ids)).numpy()[-1]
            assert np.allclose(logits, wanted, atol=1e-3)


def test_one_program_serves_all_positions():
    net = drawn_model()
    twin = drawn_model()
    twin.to("lazy")
    for cache in (KVCache(twin, 2), PagedCache(twin, 2, 8, 4)):
        for slot in range(2):
            assert cache.reserve(slot, 8)
        for n in (1, 4, 2, 8):
            with no_grad():
                wanted = net(Tensor(list(range(n)))).numpy()[-1]
            assert np.allclose(cache.prefill(list(range(n)), 1), wanted,
                               atol=1e-3)
        with no_grad():
            wanted = net(Tensor(list(range(8)))).numpy()
        for t in range(8):
            found = cache.step([0, t], [0, t])[1]
            assert np.allclose(found, wanted[t], atol=1e-3)
        assert len(cache.decoded.programs) == len(cache.read.programs) == 1


def test_bytes_are_what_the_formula_says():
    for kv_heads, slots in ((4, 1), (2, 3), (1, 5)):
        cache = KVCache(drawn_model(kv_heads=kv_heads), slots)
        rows = 2 * 2 * slots * 8 * kv_heads
        assert cache.nbytes == rows * 4 * 4 == cache_bytes(
            SMALL, slots, kv_heads=kv_heads)
    assert cache_bytes(SMALL, 2, length=3, itemsize=2) == 12 * 64


def test_pages_come_back():
    cache = PagedCache(drawn_model(), 3, pages=4, page=4)
    assert cache.reserve(0, 5) and cache.reserve(1, 8)
    assert not cache.reserve(2, 1) and (cache.table[2] == 4).all()
    held = {*cache.table[0], *cache.table[1]}
    assert held == {0, 1, 2, 3}  # nobody shares one
    cache.release(0)
    assert cache.reserve(2, 7) and not cache.free
    assert "reserve it first" in message(lambda: cache.prefill([1], 0))
    assert "do not fill" in message(
        lambda: PagedCache(drawn_model(), 1, 4, 3))


def test_a_page_is_written_in_its_place():
    net = drawn_model()
    cache = PagedCache(net, 2, pages=4, page=4)
    assert cache.reserve(1, 4) and cache.reserve(0, 8)
    before = cache.memory[0][0].numpy().copy()
    cache.step([3, 0], [0, 0])
    changed = cache.memory[0][0].numpy() != before
    pages = {*cache.table[0, :1], cache.table[1, 0]}
    assert {*np.nonzero(changed)[0]} <= pages
    assert {*np.nonzero(changed)[3]} == {0}


def test_the_same_seed_writes_the_same_text():
    net = drawn_model()
    for options in ({}, {"temperature": 0}, {"top_k": 3, "top_p": 0.9}):
        for prompt in ([1], [1, 2, 3, 4, 5, 6, 7], list(range(10))):
            one, two = [list(m.generate(prompt, 12, generator=g(5), **options))
                        for m, g in ((net, Generator),
                                     (CachedGPT(net), Ahead))]
            assert one == two


def test_the_longest_beginning_is_kept():
    net, cached = drawn_model(), CachedGPT(drawn_model())
    seen = []
    step, prefill = cached.cache.step, cached.cache.prefill
    cached.cache.step = lambda ids, at: (seen.append(at[0]), step(ids, at))[1]
    cached.cache.prefill = lambda ids: (seen.append("all"), prefill(ids))[1]
    for ids, read in (([1, 2, 3], ["all"]), ([1, 2, 3, 4], [3]),
                      ([1, 2, 3, 5], [3]), ([1, 2, 3, 5], [3]),
                      ([1, 2, 3, 5, 6, 7], ["all"]), ([9], ["all"]),
                      (list(range(10)), ["all"])):
        seen.clear()
        found = cached.next_logits(ids)
        assert seen == read, (ids, seen)
        assert np.allclose(found, net.next_logits(ids), atol=1e-3)


def test_other_weights_are_noticed():
    net = drawn_model()
    cached = CachedGPT(net)
    cached.next_logits([1, 2, 3])
    p = net.h[0].attn.c_attn.weight.detach()
    p.assign(p * 0.5)
    assert np.allclose(cached.next_logits([1, 2, 3, 4]),
                       net.next_logits([1, 2, 3, 4]), atol=1e-3)


def test_numbers_made_ahead_are_the_same():
    plain, ahead = Generator(7), Ahead(7)
    for count in (1, 3, 1, 600, 2):
        for shape in ((1,), (2, 2)):
            one, two = [[rand(*shape, generator=g).tolist()
                         for _ in range(count)] for g in (plain, ahead)]
            assert one == two and plain.place == ahead.place
    ahead.go_to(9, 4)
    plain.go_to(9, 4)
    assert rand(1, generator=ahead).item() == rand(1, generator=plain).item()


def test_what_does_not_fit_is_refused():
    cache = KVCache(drawn_model(), 2)
    for act, words in (
            (lambda: cache.step([1], [0]), "each of 2 slots, got 1 and 1"),
            (lambda: cache.step([1, 1], [0, 8]), "in a context of 8"),
            (lambda: cache.step([1, 1], [0, -1]), "in a context of 8"),
            (lambda: cache.prefill([]), "expected 1 to 8 tokens"),
            (lambda: cache.prefill([1] * 9), "expected 1 to 8 tokens"),
            (lambda: cache.prefill([1], 2), "a slot below 2"),
            (lambda: KVCache(drawn_model(), 0), "1 slot or more"),
            (lambda: Request([1], 1, options={"top_k": 0}), "top_k of 1"),
            (lambda: Server(cache).submit(Request([1] * 5, 4)), "at most 8"),
            (lambda: Server(cache).submit(Request([11], 4)), "0 to 10"),
            (lambda: Server(PagedCache(drawn_model(), 1, 1, 4)).submit(
                Request([1] * 3, 2)), "at most 4"),
            (lambda: Server(cache).submit(Request([], 4)), "1 or more")):
        assert words in message(act), words
    broken = drawn_model()
    broken.ln_f.weight.detach().assign(broken.ln_f.weight.detach() * math.nan)
    assert "not finite" in message(lambda: CachedGPT(broken).next_logits([1]))
