# Tangled from indexing, data, acceleration, vocabulary: edit there, `make tangle`. sha256:1f0f80fbb02c  # noqa: E501
"""Tensors drawn by chance, from a place in a stream."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import proxy

import numpy as np

from companion.device import CPU, Device, named
from companion.dtype import DType, bfloat16, float16, float32, float64, int64
from companion.ops import RANDOM, check_kind
from companion.sharing import forkable
from companion.tensor import Tensor, from_numpy, unpack_ints, wrap
from companion.tensor.operands import widened
from companion.view import Shape


def feed(numbers: Callable[[], dict[str, np.ndarray]],
         device: Device | str = CPU) -> dict[str, Tensor]:
    """Numbers of this moment as tensors: see `Device.feed`."""
    place = named(device)
    return {name: wrap(buffer, place)
            for name, buffer in place.feed(numbers).items()}


DRAWING = forkable(threading.Lock())


class Generator:
    """Counter-based random numbers: a seed, and a place in its stream.

    The number at a place depends on the seed and the place alone, so it
    is the same on every device and in any order of evaluation.
    """

    def __init__(self, seed: int = 0):
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Begin anew with this seed; the generator itself."""
        if not 0 <= seed < 2 ** 63:
            raise ValueError(f"seed: expected 0 to 2**63 - 1, got {seed}")
        self.go_to(seed, 0)
        return self

    def go_to(self, seed: int, place: int) -> None:
        """Continue with the number at `place` of the stream of `seed`."""
        with DRAWING:
            self.seed, self.place = seed, place

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The common one by its name: it is not multiplied by copies."""
        if self is GENERATOR:
            return "GENERATOR"
        return super().__reduce_ex__(protocol)

    def advance(self, numbers: int) -> list[int]:
        """The key of so many numbers, which are nobody else's now."""
        with DRAWING:
            key = [self.seed, self.place]
            # RANDOM makes two numbers of each place.
            self.place += (numbers + 1) // 2
        return key

    def uniform(self, shape: Shape,
                device: Device | str = CPU) -> Tensor:
        """float32 in [0, 1), multiples of 2**-24."""
        numbers = math.prod([max(n, 0) for n in shape])  # -2 is refused

        mine = proxy(self)

        # Fed, so that a device that replays a program draws new numbers.
        def draw() -> Tensor:
            return feed(lambda: {"key": np.array(mine.advance(numbers))},
                        device)["key"]
        return Tensor.apply(RANDOM, KEYS.get()(draw), arg=shape)


GENERATOR = Generator()
manual_seed = GENERATOR.manual_seed

GRAIN = {float16: 11, bfloat16: 8}  # bits of the significand


def rand(*shape: Any, dtype: DType = float32, device: Device | str = CPU,
         generator: Generator = GENERATOR) -> Tensor:
    """Uniform in [0, 1): as many random bits as `dtype` can hold."""
    if not dtype.is_float:
        raise TypeError(f"rand: expected a float dtype, got {dtype}; "
                        f"randint draws integers")
    size = unpack_ints(shape)
    high = generator.uniform(size, device)
    if dtype in GRAIN:
        steps = 2 ** GRAIN[dtype]
        # Bits cut off: rounding up would reach 1.
        return ((high * steps).floor() / steps).cast(dtype)
    if dtype is not float64:
        return high
    low = generator.uniform(size, device).cast(float64)
    return high.cast(float64) + low * 2.0 ** -24


def randn(*shape: Any, dtype: DType = float32, device: Device | str = CPU,
          generator: Generator = GENERATOR) -> Tensor:
    """Standard normal, by Box and Muller (1958)."""
    check_kind(RANDOM, dtype, "f")
    wide = float64 if dtype is float64 else float32
    u, v = [rand(*shape, dtype=wide, device=device, generator=generator)
            for _ in range(2)]
    # u may be 0, of which there is no logarithm; 1 - u may not.
    radius = ((1 - u).log() * -2).sqrt()
    return (radius * (v * (2 * math.pi)).sin()).cast(dtype)


def randint(low: int, high: Any = None, shape: Any = None,
            dtype: DType = int64, device: Device | str = CPU,
            generator: Generator = GENERATOR, size: Any = None) -> Tensor:
    """Integers from low up to, and without, high.

    randint(high, shape) begins at 0; `size` is PyTorch's name of shape.
    """
    shape = shape if size is None else size
    if shape is None or high is None:
        low, high, shape = 0, low, high if shape is None else shape
    # The float64 drawn below has 48 random bits.
    if not 0 < high - low <= 2 ** 48:
        raise ValueError(f"randint: expected low < high at most 2**48 "
                         f"apart, got {low} and {high}")
    u = rand(*unpack_ints([shape]), dtype=float64, device=device,
             generator=generator)
    return ((u * (high - low)).floor().cast(int64) + low).cast(dtype)


def randperm(n: int, generator: Generator = GENERATOR) -> Tensor:
    """The numbers 0 to n - 1 in random order: sorted by random keys."""
    keys = rand(n, dtype=float64, generator=generator)
    return from_numpy(np.argsort(keys.numpy(), kind="stable"))


Key = Callable[[], Tensor]


def own_key(draw: Key) -> Tensor:
    """The answer of a generator for which nobody else answers."""
    return draw()


# Who answers when a generator is asked for its next key.
KEYS: ContextVar[Callable[[Key], Tensor]] = ContextVar(
    "keys", default=own_key)


@contextmanager
def keys_from(answer: Callable[[Key], Tensor]) -> Iterator[None]:
    """Inside the block `answer(draw)` gives the keys, for all generators."""
    token = KEYS.set(answer)
    try:
        yield
    finally:
        KEYS.reset(token)


def check_weights(weights: Tensor, n: int, replacement: bool) -> None:
    """Weights of 0 and more, of which enough are above 0."""
    found = weights.numpy()
    fits = found.ndim in (1, 2) and np.isfinite(found).all() and (
        found >= 0).all()
    positive = (found > 0).sum(-1).min(initial=found.shape[-1] if fits else 0)
    if not fits or not 0 < (n if not replacement else min(n, 1)) <= positive:
        raise ValueError(
            f"multinomial: expected one or two axes of finite weights >= 0, "
            f"and enough above 0 to draw {n} (replacement={replacement})")


def multinomial(weights: Tensor, num_samples: int, replacement: bool = False,
                generator: Generator = GENERATOR) -> Tensor:
    """Places (…, num_samples) drawn with `weights` along the last axis.

    By Gumbel's noise; without replacement the largest few of one draw
    (Vieira, 2014).
    """
    check_weights(weights, num_samples, replacement)
    logs = widened(weights).log()
    shape = logs.shape if not replacement else (
        *logs.shape[:-1], num_samples, logs.shape[-1])
    u = rand(*shape, device=weights.device, generator=generator)
    noise = -(-u.log()).log()
    if replacement:
        return (logs.unsqueeze(-2) + noise).argmax(-1)
    return (logs + noise).topk(num_samples).indices


def rand_like(x: Tensor) -> Tensor:
    return rand(*x.shape, dtype=x.dtype, device=x.device)


def randn_like(x: Tensor) -> Tensor:
    return randn(*x.shape, dtype=x.dtype, device=x.device)


def bernoulli(p: Tensor) -> Tensor:
    """1 with the probability that x says, else 0."""
    return (rand_like(p) < p).cast(p.dtype)
