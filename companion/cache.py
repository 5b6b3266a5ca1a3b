# Tangled from memoization, acceleration: edit there, `make tangle`. sha256:826dbcb1c296  # noqa: E501
from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from time import perf_counter
from typing import Any

import numpy as np

from companion.attention import scaled_dot_product_attention
from companion.autograd import no_grad
from companion.compiler.capture import jit
from companion.compiler.lazy import Lazy
from companion.device import CPU, Device
from companion.ops import RANDOM
from companion.sharing import once
from companion.tensor import Tensor, wrap
from companion.tensor.creation import arange, zeros
from companion.tensor.indexing import stack
from companion.tensor.operands import where
from companion.tensor.random import KEYS, Generator, own_key
from companion.training import evaluating
from companion.transformer import GPT, GPTConfig, choices, drawn
from companion.view import Shape

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def through(model: GPT, x: Tensor, attend: Attend) -> Tensor:
    """The stream x (…, T, C) after all blocks, normalized.

    `attend(layer, q, k, v)` answers for attention: queries
    (…, KV, G, T, D), keys and values (…, KV, 1, T, D) give as much as
    there are queries.
    """
    for layer, block in enumerate(model.h):
        y = attend(layer, *block.attn.heads(block.ln_1(x)))
        y = y.flatten(-4, -3).transpose(-3, -2).flatten(-2)
        x = x + block.attn.c_proj(y)
        x = x + block.mlp(block.ln_2(x))
    return model.ln_f(x)


def attend_past(q: Tensor, k: Tensor, v: Tensor, keys: Tensor,
                values: Tensor, seen: Tensor) -> Tensor:
    """Attention of one position to those before it, and to itself.

    Queries q (…, G, D), its own k and v (…, 1, D), and keys and values
    (…, T, D), of which those count that are `seen` (…, 1, T).
    """
    q = q * q.shape[-1] ** -0.5
    past = (keys @ q.mT).mT.masked_fill(~seen, -math.inf)
    own = (q * k).sum(-1, keepdim=True)
    top = past.max(-1, keepdim=True).maximum(own)
    past, own = (past - top).exp(), (own - top).exp()
    total = past.sum(-1, keepdim=True) + own
    return (past @ values + own * v) / total


class KVCache:
    """Keys and values of `slots` texts, for all layers of a GPT.

    On a lazy device each of its two questions, `prefill` and `step`, is
    one program for all texts and positions. The weights must not change
    while it is in use.
    """

    def __init__(self, model: GPT, slots: int = 1):
        if slots < 1:
            raise ValueError(f"KVCache: expected 1 slot or more, got {slots}")
        device = model.wte.weight.device
        self.model, self.slots, self.device = model, slots, device
        self.length = model.config.block_size
        # Where values are; a lazy device has only promises of them.
        self.home = device.device if isinstance(device, Lazy) else device
        self.memory = self.rooms()

    def rooms(self) -> list[list[Tensor]]:
        """Each layer's own: keys and values, (slots, KV, length, D)."""
        return [[zeros(self.slots, block.attn.num_kv_heads, self.length,
                       block.attn.head_dim, device=self.device,
                       dtype=block.attn.c_attn.weight.dtype).clone()
                 for _ in "kv"] for block in self.model.h]

    def program(self, function: Callable[..., Any]) -> Any:
        """The function, on a lazy device captured."""
        if not isinstance(self.device, Lazy):
            return function
        # A function of its own knows the cache, an object, into which jit
        # does not look at every call.
        return jit(lambda *x: function(*x), self.device)

    def walk(self, x: Tensor, memory: Sequence[Sequence[Tensor]],
             ) -> tuple[Tensor, Rows]:
        """Of tokens at places, x (2, slots): logits (slots, V), and what
        is new of each layer, (slots, KV, 1, D)."""
        m, (ids, at) = self.model, x
        places = arange(self.length, device=self.device)
        seen = places < at.reshape(-1, 1, 1, 1)
        new: Rows = []

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = q.squeeze(-2), k.squeeze(-3), v.squeeze(-3)
            new.append((k, v))
            keys, values = memory[i]
            return attend_past(q, k, v, keys, values, seen).unsqueeze(-2)

        with evaluating(m):
            stream = (m.wte(ids) + m.wpe(at)).unsqueeze(1)
            return m.logits(through(m, stream, attend).squeeze(1)), new

    @once
    def decoded(self) -> Any:
        return self.program(self.decode)

    def decode(self, x: Tensor) -> Tensor:
        """Logits (slots, V); the new rows are written to the cache."""
        y, new = self.walk(x, self.memory)
        places = arange(self.length, device=self.device).unsqueeze(1)
        # At the end, when all has been read: they stay in their place.
        self.put(new, places == x[1].reshape(-1, 1, 1, 1))
        return y

    def put(self, new: Rows, here: Tensor) -> None:
        """Write keys and values of each layer where `here` holds."""
        with no_grad():
            for old, rows in zip(self.memory, new):
                for target, row in zip(old, rows):
                    target.assign(where(here, row, target))

    def step(self, ids: Sequence[int], places: Sequence[int]) -> np.ndarray:
        """Logits (slots, V) after a token in each slot, at its place.

        A text's places come one after the other. Of a slot that is idle,
        give place 0, and ignore the logits.
        """
        return self.decoded(self.asked(ids, places)).numpy()

    def asked(self, ids: Sequence[int], places: Sequence[int]) -> Tensor:
        """Tokens and places as one tensor (2, slots), if they fit."""
        if not len(ids) == len(places) == self.slots:
            raise ValueError(f"KVCache: expected a token and a place for "
                             f"each of {self.slots} slots, got {len(ids)} "
                             f"and {len(places)}")
        if not 0 <= min(places) <= max(places) < self.length:
            raise ValueError(
                f"KVCache: places {list(places)}, in a context of "
                f"{self.length}; the positions of this model are learned, "
                f"so a longer text has to be read again: prefill its end")
        both = np.array([ids, places], np.int64)
        return wrap(self.home.adopt(both), self.home)

    def whole(self, ids: Tensor, last: Tensor) -> tuple[Tensor, Rows]:
        """Of a text (T,): logits (1, V) after the token at `last` (1,),
        and keys and values of each layer, (KV, T, D)."""
        m, new = self.model, list[tuple[Tensor, Tensor]]()

        def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            new.append((k.squeeze(-3), v.squeeze(-3)))
            return scaled_dot_product_attention(q, k, v, is_causal=True)

        with evaluating(m):
            places = arange(self.length, device=self.device)
            x = through(m, m.wte(ids) + m.wpe(places), attend)
            return m.logits(x[last]), new

    def fill(self, ids: Tensor, at: Tensor) -> Tensor:
        """Read a text into a slot, at (2,): the slot, its last place."""
        y, new = self.whole(ids, at[1:])
        slots = arange(self.slots, device=self.device)
        self.put(new, slots.reshape(-1, 1, 1, 1) == at[0])
        return y

    def prefill(self, ids: Sequence[int], slot: int = 0) -> np.ndarray:
        """Read a text into a slot: the logits (V,) of what follows."""
        row, at = self.padded(ids, slot)
        return self.read(row, at).numpy()[0]

    @once
    def read(self) -> Any:
        return self.program(self.fill)

    def padded(self, ids: Sequence[int], slot: int) -> tuple[Tensor, Tensor]:
        """A text filled up to the context, and (slot, last place)."""
        if not 0 < len(ids) <= self.length or not 0 <= slot < self.slots:
            raise ValueError(
                f"KVCache: {len(ids)} tokens for slot {slot}; expected 1 to "
                f"{self.length} tokens, and a slot below {self.slots}")
        row = np.zeros(self.length, np.int64)
        row[:len(ids)] = ids
        at = np.array([slot, len(ids) - 1])
        return Tensor(row, device=self.home), Tensor(at, device=self.home)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that hold keys and values, as they lie there."""
        return sum([x.buffer.storage.nbytes
                    for layer in self.memory for x in layer])

    @property
    def capacity(self) -> int:
        """Tokens of the longest text that it can hold."""
        return self.length

    def reserve(self, slot: int, tokens: int) -> bool:
        """Make room for a text of so many tokens, if there is any."""
        return True

    def release(self, slot: int) -> None:
        """The text in the slot is over."""


Rows = list[tuple[Tensor, Tensor]]  # keys and values of each layer


class CachedGPT(GPT):
    """A GPT with `model`'s weights that remembers what it read last.

    `next_logits`, and so `generate`, read only what is new of a text.
    """

    def __init__(self, model: GPT):
        if not isinstance(model, GPT):
            raise TypeError(f"CachedGPT: expected a GPT, got a "
                            f"{type(model).__name__}: CachedGPT(GPT.load(…))")
        vars(self).update(vars(model))
        self.cache, self.kept = KVCache(model), list[int]()
        self.sources = [p.buffer.storage for p in model.parameters()]
        self.age = -1

    def next_logits(self, ids: Sequence[int]) -> np.ndarray:
        """As GPT's; the cache is brought up to the end of `ids`."""
        ids = list(ids[-self.config.block_size:])
        start, self.kept = self.common(ids), []  # till all has gone well
        if start == 0 or len(ids) - start > self.config.block_size // 8:
            last = self.cache.prefill(ids)
        else:
            for place in range(start, len(ids)):
                last = self.cache.step([ids[place]], [place])[0]
        if not np.isfinite(last).all():
            raise ValueError("generate: the logits are not finite; the "
                             "weights of this model are broken")
        self.kept = ids
        return last

    def common(self, ids: Sequence[int]) -> int:
        """How many tokens need not be read again; never all of them."""
        age = sum(source.version for source in self.sources)
        if age != self.age:  # other weights, other keys
            self.age, self.kept = age, []
        same = takewhile(lambda pair: pair[0] == pair[1],
                         zip(self.kept, ids[:-1]))
        return len(list(same))


class Ahead(Generator):
    """A Generator whose single numbers are made many at a time."""

    def go_to(self, seed: int, place: int) -> None:
        super().go_to(seed, place)
        self.start, self.stock = place, np.zeros(0, np.float32)

    def uniform(self, shape: Shape, device: Device | str = CPU) -> Tensor:
        if (math.prod(shape) != 1 or device is not CPU
                or KEYS.get() is not own_key):
            return Generator.uniform(self, shape, device)
        seed, place = self.advance(1)
        if not 0 <= place - self.start < len(self.stock):
            key = Tensor(np.array([seed, place]))
            # RANDOM makes two numbers of each place; the first is ours.
            self.stock = Tensor.apply(RANDOM, key, arg=(512,)).numpy()[::2]
            self.start = place
        at = place - self.start
        return Tensor(self.stock[at:at + 1].reshape(shape))


def cache_bytes(config: GPTConfig, slots: int = 1, length: int | None = None,
                kv_heads: int | None = None, itemsize: int = 4) -> int:
    """Keys and values of so many texts of `length` (block_size)."""
    head = config.n_embd // config.n_head
    return (2 * config.n_layer * slots * (length or config.block_size)
            * (kv_heads or config.n_head) * head * itemsize)


@dataclass(eq=False)
class Request:
    """A text to be continued from `arrival` on, by `options` of `choices`:
    `new` holds what was written, and `times` when, in seconds."""

    prompt: Sequence[int]
    max_new_tokens: int
    seed: int = 0
    arrival: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    new: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = Ahead(self.seed)
        choices(np.zeros(1), **self.options)  # refuses what it cannot do

    @property
    def room(self) -> int:
        """Places of the whole text."""
        return len(self.prompt) + self.max_new_tokens

    def take(self, logits: np.ndarray, now: float) -> bool:
        """Draw a token; whether it was the last."""
        ids, p = choices(logits, **self.options)
        self.new.append(drawn(ids, p, self.generator))
        self.times.append(now)
        return len(self.new) == self.max_new_tokens


class Server:
    """Requests that share the slots of a cache, and join between steps."""

    def __init__(self, cache: KVCache,
                 clock: Callable[[], float] = perf_counter):
        self.cache, self.clock = cache, clock
        self.slots: list[Request | None] = [None] * cache.slots
        self.waiting = deque[Request]()

    def submit(self, request: Request) -> None:
        """Let it wait for a slot. ValueError: it could never be served."""
        most, ids = self.cache.capacity, request.prompt
        vocabulary = self.cache.model.config.vocab_size
        if not (len(ids) and request.max_new_tokens > 0
                and request.room <= most):
            raise ValueError(
                f"Server: a prompt of {len(ids)} and "
                f"{request.max_new_tokens} new tokens; expected 1 or more "
                f"of each, and together at most {most}")
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise ValueError(f"Server: tokens from {min(ids)} to {max(ids)} "
                             f"in a prompt; expected 0 to {vocabulary - 1}")
        self.waiting.append(request)

    def admit(self) -> None:
        """Read the prompts of those for whom there is room."""
        for slot, there in enumerate(self.slots):
            if there is None and self.waiting and self.cache.reserve(
                    slot, self.waiting[0].room):
                self.slots[slot] = request = self.waiting.popleft()
                self.hand(slot, self.cache.prefill(request.prompt, slot))

    def hand(self, slot: int, logits: np.ndarray) -> None:
        """Give a slot's request its next token; the last one frees it."""
        request = self.slots[slot]
        if request is not None and request.take(logits, self.clock()):
            self.slots[slot] = None
            self.cache.release(slot)

    def step(self) -> None:
        """A token for each request that has a slot."""
        self.admit()
        ids, places = [0] * len(self.slots), [0] * len(self.slots)
        busy = [(i, r) for i, r in enumerate(self.slots) if r is not None]
        for slot, request in busy:
            ids[slot] = request.new[-1]
            places[slot] = len(request.prompt) + len(request.new) - 1
        if busy:
            logits = self.cache.step(ids, places)
            for slot, _ in busy:
                self.hand(slot, logits[slot])

    def run(self, requests: Sequence[Request]) -> None:
        """Serve all, each from its arrival on; times count from now."""
        start, clock = self.clock(), self.clock
        coming = deque(sorted(requests, key=lambda r: r.arrival))
        self.clock = lambda: clock() - start
        try:
            while coming or self.waiting or any(self.slots):
                while coming and coming[0].arrival <= self.clock():
                    self.submit(coming.popleft())
                self.step()
        finally:
            self.clock = clock


class PagedCache(KVCache):
    """A KVCache whose texts take pages of `page` places as they need.

    Memory is (pages, 2 L, KV, page, D), beneath a lazy device, so that
    one row of it can be written. `table` (slots, length / page) says
    which page holds a slot's places; the last page is nobody's.
    """

    def __init__(self, model: GPT, slots: int, pages: int, page: int = 16):
        if model.config.block_size % page:
            raise ValueError(f"PagedCache: pages of {page} places do not "
                             f"fill a context of {model.config.block_size}")
        self.pages, self.page = pages, page
        super().__init__(model, slots)
        self.free = list(range(pages))
        self.table = np.full((slots, self.length // page), pages)

    def rooms(self) -> list[list[Tensor]]:
        attn = self.model.h[0].attn
        shape = (self.pages + 1, 2 * len(self.model.h), attn.num_kv_heads,
                 self.page, attn.head_dim)
        return [[zeros(shape, dtype=attn.c_attn.weight.dtype,
                       device=self.home)]]

    @property
    def capacity(self) -> int:
        return min(self.length, self.pages * self.page)

    def reserve(self, slot: int, tokens: int) -> bool:
        count = -(-tokens // self.page)
        if len(self.free) < count:
            return False
        self.table[slot, :count] = [self.free.pop() for _ in range(count)]
        return True

    def release(self, slot: int) -> None:
        own = self.table[slot]
        self.free += own[own < self.pages].tolist()
        own[:] = self.pages

    def gathered(self, table: Tensor, memory: Tensor) -> list[list[Tensor]]:
        """Keys and values of each layer, (slots, KV, length, D)."""
        _, layers, heads, page, d = memory.shape
        parts = arange(layers * heads, device=self.device)
        rows = (table.unsqueeze(1) * (layers * heads)
                + parts.reshape(layers, 1, heads, 1))
        found = memory.reshape(-1, page * d)[rows].reshape(
            layers, self.slots, heads, self.length, d)
        return [[found[i], found[i + 1]] for i in range(0, layers, 2)]

    def decode(self, x: Tensor, *paged: Tensor) -> Any:
        """Logits, and the new rows (slots, 2 L, KV, 1, D)."""
        y, new = self.walk(x, self.gathered(*paged))
        return y, stack([part for pair in new for part in pair], 1)

    def fill(self, ids: Tensor, at: Tensor) -> Any:
        """Logits, and the text's rows (2 L, KV, length, D)."""
        y, new = self.whole(ids, at[1:])
        return y, stack([part for pair in new for part in pair])

    def step(self, ids: Sequence[int], places: Sequence[int]) -> np.ndarray:
        x, (memory,) = self.asked(ids, places), self.memory[0]
        table = Tensor(self.table, device=self.home)
        y, rows = self.decoded(x, table, memory)
        rows = rows.to(memory.device)
        for slot, place in enumerate(places):
            number = self.table[slot, place // self.page]
            if number < self.pages:
                memory[int(number), :, :, place % self.page].assign(
                    rows[slot, :, :, 0])
        return y.numpy()

    def prefill(self, ids: Sequence[int], slot: int = 0) -> np.ndarray:
        padded, (memory,) = self.padded(ids, slot), self.memory[0]
        own = self.table[slot, :-(-len(ids) // self.page)]
        if (own == self.pages).any():
            raise ValueError(f"PagedCache: slot {slot} has no room for "
                             f"{len(ids)} tokens; reserve it first")
        y, rows = self.read(*padded)
        rows = rows.to(memory.device)
        for i, number in enumerate(own):
            part = rows[:, :, i * self.page:(i + 1) * self.page]
            memory[int(number)].assign(part)
        return y.numpy()[0]
