# Tangled from quantization, serving: edit there, `make tangle`. sha256:1b5031fb5bb9  # noqa: E501
from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from companion.autograd import RECORDING
from companion.blas import WORTH_SHARING
from companion.buffer import Buffer
from companion.convolution import (
    Conv2d, Sweep, check_pictures, margins_of, padded_size, pair, taps_along)
from companion.device import CPU, Device
from companion.dtype import DType, bfloat16, float32, int8, int32, uint8
from companion.embedding import Embedding, look_up
from companion.layers import Linear, Module, parameter
from companion.native import POOL, kernel_or_tell
from companion.tensor import Tensor, from_numpy, wrap
from companion.tensor.indexing import stack
from companion.tensor.operands import narrowed, where, widened
from companion.tensor.reductions import detached
from companion.training import evaluating, named_modules, read_safetensors
from companion.transformer import GPT, GPTConfig


@dataclass(frozen=True)
class Scheme:
    """How rows of numbers become whole numbers of 2 to 8 `bits`.

    A scale for each `group` of numbers in a row (None: for all of it);
    an `affine` one also chooses the code of 0, which otherwise is 0.
    `rule` names, in RULES, what range the codes have to cover.
    """

    bits: int = 8
    group: int | None = None
    affine: bool = False
    rule: str = "minmax"

    def __post_init__(self) -> None:
        group = 2 if self.group is None else self.group
        if not (isinstance(self.bits, (int, np.integer))
                and isinstance(group, (int, np.integer))) or (
                self.bits not in range(2, 9) or group < 2 or group % 2
                or self.rule not in [*RULES]):
            raise ValueError(
                f"Scheme: expected 2 to 8 bits, an even group of 2 or more "
                f"(or None), and a rule of {', '.join(RULES)}; got "
                f"{self.bits!r}, {self.group!r} and {self.rule!r}")

    @property
    def top(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1


class Grid(NamedTuple):
    """The numbers scale · (code - zero), for codes from low to top."""

    scale: np.ndarray
    zero: np.ndarray
    low: int
    top: int

    def codes(self, x: np.ndarray) -> np.ndarray:
        """The nearest code of each number, as floats."""
        return (np.rint(x / self.scale) + self.zero).clip(self.low, self.top)

    def values(self, codes: np.ndarray) -> np.ndarray:
        return (codes - self.zero) * self.scale


def grid(x: np.ndarray, scheme: Scheme) -> Grid:
    """A grid for each row of x (…, K), float32; scale and zero (…, 1)."""
    # From the lowest to the highest has to be a float, too.
    if not (np.abs(x) < 1e38).all():
        raise ValueError("quantized: expected finite numbers below 1e38, "
                         "got NaN, infinity or more; this model is broken, "
                         "or not trained")
    return covering(*RULES[scheme.rule](x, scheme), scheme)


def covering(low: np.ndarray, high: np.ndarray, scheme: Scheme) -> Grid:
    """Grids whose codes reach from low to high, and hold 0 exactly."""
    low, high, top = np.minimum(low, 0), np.maximum(high, 0), scheme.top
    if not scheme.affine:
        scale = rounded(np.maximum(-low, high) / top)
        return Grid(scale, np.zeros_like(scale), -top, top)
    scale = rounded((high - low) / (2 * top + 1))
    zero = (np.rint(-low / scale) - top - 1).clip(-top - 1, top)
    return Grid(scale, zero, -top - 1, top)


def rounded(scale: np.ndarray) -> np.ndarray:
    """Scales as bfloat16 has them; 1 where there is nothing but zeros."""
    # Rounded before the codes are chosen, so that they fit what is kept.
    kept = scale.astype(bfloat16.numpy).astype(np.float32)
    return np.where(kept < 1e-30, np.float32(1), kept)


def minmax(x: np.ndarray, _: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """From the least number of each row to the largest."""
    return (x.min(-1, keepdims=True, initial=0),
            x.max(-1, keepdims=True, initial=0))


RULES: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "minmax": minmax}


def percentile(x: np.ndarray, _: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """All but a thousandth of each row at either end."""
    low, high = np.quantile(x, (0.001, 0.999), axis=-1, keepdims=True)
    return low.astype(np.float32), high.astype(np.float32)


def least_squares(x: np.ndarray, scheme: Scheme,
                  ) -> tuple[np.ndarray, np.ndarray]:
    """The part of the whole range with the least square error."""
    low, high = minmax(x, scheme)
    part, least = np.ones_like(high), np.full(high.shape, np.inf)
    for factor in np.linspace(1, 0.2, 17, dtype=np.float32):
        g = covering(low * factor, high * factor, scheme)
        error = np.square(g.values(g.codes(x)) - x, dtype=np.float64)
        total = error.sum(-1, keepdims=True)
        part = np.where(total < least, factor, part)
        least = np.minimum(total, least)
    return low * part, high * part


RULES["percentile"] = percentile
RULES["mse"] = least_squares


def packed(codes: np.ndarray) -> np.ndarray:
    """Codes (N, K) from -8 to 7, two a byte: uint8 (N, ⌈K / 2⌉)."""
    n, k = codes.shape
    pairs = np.full((n, (k + 1) // 2, 2), 8, np.uint8)
    pairs.reshape(n, 2 * ((k + 1) // 2))[:, :k] = codes + 8
    return pairs[..., 0] | pairs[..., 1] << 4


def unpacked(pairs: np.ndarray, k: int) -> np.ndarray:
    """The first k codes of each row: float32 (N, k)."""
    both = np.stack([pairs & 15, pairs >> 4], -1)
    codes = both.reshape(len(pairs), 2 * pairs.shape[1])[:, :k]
    return codes.astype(np.float32) - 8


class QuantizedWeight(Module):
    """A matrix (N, K) in few bits: a layer's weight, for inference.

    `codes` are int8 (N, K), or of up to 4 bits uint8 (N, ⌈K / 2⌉), two a
    byte; `scale` is bfloat16 (N, groups), and `zero` int8, if affine.
    """

    dtype: DType = float32  # of its values
    scale: Any

    def __init__(self, weight: Tensor, scheme: Scheme = Scheme()):
        self.shape = n, k = matrix_shape(weight)
        self.bits = 8 if scheme.bits > 4 else 4
        self.group = min(scheme.group or k, k + k % 2) or 1
        parts = in_groups(weight.detach().cast(float32).numpy(), self.group)
        g = grid(parts, scheme)
        codes = g.codes(parts).reshape(n, math.prod(parts.shape[1:]))[:, :k]
        self.codes = from_numpy(packed(codes) if self.bits == 4
                                else codes.astype(np.int8))
        self.scale = from_numpy(g.scale[..., 0].astype(bfloat16.numpy))
        self.zero = (from_numpy(g.zero[..., 0].astype(np.int8))
                     if scheme.affine else None)

    @property
    def device(self) -> Device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of memory that hold it, scales included."""
        return sum([t.buffer.storage.nbytes
                    for _, t in self.named_tensors()])

    def values(self, rows: Any = slice(None)) -> np.ndarray:
        """What the codes of some rows stand for: float32 (rows, K)."""
        codes, k = self.codes.numpy()[rows], self.shape[1]
        x = in_groups(unpacked(codes, k) if self.bits == 4 else codes,
                      self.group)
        if self.zero is not None:
            x -= self.zero.numpy()[rows].astype(np.float32)[..., None]
        x *= self.scale.numpy()[rows].astype(np.float32)[..., None]
        return x.reshape(len(x), math.prod(x.shape[1:]))[:, :k]

    @property
    def T(self) -> Turned:
        return Turned(self)

    def product(self, x: Tensor) -> Tensor:
        """x (…, K) @ self.T, (…, N); a clear error where it cannot be."""
        check_product(self, x)
        (n, k), stack = self.shape, x.shape[:-1]
        rows = widened(x).cast(float32).reshape(math.prod(stack), k)
        return narrowed(self.multiply(rows).reshape(*stack, n), x)

    def multiply(self, rows: Tensor) -> Tensor:
        """The product with rows (M, K) of float32: (M, N)."""
        if 0 < len(rows) <= FEW and narrow():
            return times_few(rows, self)
        return rows @ from_numpy(self.values()).T

    def rows(self, index: Tensor) -> Tensor:
        """The rows at `index` (…), of integers: (…, K)."""
        if not isinstance(index, Tensor) or index.dtype.kind not in "iu":
            raise TypeError(f"Embedding: expected a Tensor of integers, got "
                            f"{index!r:.60}")
        at, n = index.numpy(), self.shape[0]
        if at.size and not 0 <= at.min() <= at.max() < n:
            raise IndexError(f"Embedding: expected indices from 0 to "
                             f"{n - 1}, got {at.min()} to {at.max()}")
        found = from_numpy(self.values(at.reshape(-1)))
        return found.reshape(*index.shape, self.shape[1])


def in_groups(w: np.ndarray, group: int) -> np.ndarray:
    """(N, K) as (N, groups, group); zeros fill up the last one."""
    n, k = w.shape
    whole = np.zeros((n, -(-k // group) * group), np.float32)
    whole[:, :k] = w
    return whole.reshape(n, whole.shape[1] // group, group)


def matrix_shape(weight: Any) -> tuple[int, int]:
    """The shape of a matrix of floats on the CPU; else an error."""
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not (
            weight.dtype.is_float):
        raise TypeError(f"quantized: expected a matrix of floats, got "
                        f"{weight!r:.60}; a model is quantized once")
    if weight.device is not CPU:
        raise ValueError(f"quantized: expected weights on the CPU, got "
                         f"{weight.device}; use model.to('cpu') first")
    n, k = weight.shape
    return n, k


class Turned:
    """w.T of a quantized w. All that it can do is to answer x @ w.T."""

    __array_ufunc__ = None  # so that NumPy's arrays ask it as well

    def __init__(self, weight: QuantizedWeight):
        self.shape, self.weight = weight.shape[::-1], weight

    def times(self, x: Tensor) -> Tensor:
        return self.weight.product(x)

    __rmatmul__ = times


def check_product(weight: QuantizedWeight, x: Any) -> None:
    """Refuse what a quantized product cannot do."""
    if not isinstance(x, Tensor):
        raise TypeError(f"quantized weight: expected a Tensor, got a "
                        f"{type(x).__name__}; wrap it in Tensor(…)")
    if not x.device is weight.device is CPU:
        raise ValueError(
            f"quantized weight: multiplies on the CPU, eagerly; got x on "
            f"{x.device} and codes on {weight.device}: use .to('cpu')")
    if x.requires_grad and RECORDING.get():
        raise TypeError("quantized weight: passes no gradient on; run it "
                        "under no_grad(), or train a RoundedWeight")
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"quantized weight: expected (…, "
                         f"{weight.shape[1]}), got {x.shape}")
    for name, kept in weight.named_tensors():
        if kept.dtype not in STORED[name]:
            raise TypeError(
                f"quantized weight: its {name} was cast to {kept.dtype}; "
                f"cast a model first, and quantize it afterwards")


STORED = {"codes": (int8, uint8, bfloat16), "scale": (bfloat16,),
          "zero": (int8,), "sums": (int32,), "fixed": (float32,)}

FEW = 8  # rows, up to which codes are read as they lie; measured


@functools.cache
def narrow() -> Any:
    """The compiled kernels/narrow.c; None without a compiler."""
    return kernel_or_tell("quantized products are NumPy's for now",
                          "kernels/narrow.c", "-O3")


def place(x: Tensor | None) -> int:
    return 0 if x is None else x.buffer.address


def times_few(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x (M, K) @ weight.T by the kernel, which has to be there."""
    (m, k), n, x = x.shape, weight.shape[0], x.contiguous()
    y = Buffer.empty((m, n), float32)
    # Both halves of x, and a vector of up to 16 lanes for each group.
    split = Buffer.empty((m * (k + 1 + 16 * -(-k // weight.group)),),
                         float32)
    narrow().narrow(
        m, n, k, weight.group, weight.bits, place(weight.codes),
        place(weight.scale), place(weight.zero), place(x), y.address,
        split.address, POOL.threads if n * k > WORTH_SHARING else 1,
        POOL.address)
    return wrap(y)


class HalfWeight(QuantizedWeight):
    """A matrix (N, K) of bfloat16, used like a quantized one."""

    def __init__(self, weight: Tensor, _: Scheme = Scheme()):
        self.shape = matrix_shape(weight)
        self.bits, self.group = 16, max(self.shape[1], 1)
        self.codes = weight.detach().cast(bfloat16).clone()
        self.scale = self.zero = None

    def values(self, rows: Any = slice(None)) -> np.ndarray:
        return self.codes.numpy()[rows].astype(np.float32)


MOST = (2 ** 31 - 1) // (255 * 128)  # products whose sum fits into int32


@functools.cache
def integers() -> Any:
    """The compiled kernels/int8.c; None without a compiler."""
    return kernel_or_tell("whole numbers are NumPy's for now",
                          "kernels/int8.c", "-O3", "-fno-trapping-math")


Codes = tuple[np.ndarray, np.ndarray, np.ndarray]


def encoded(x: np.ndarray, fixed: list[float] | None = None) -> Codes:
    """Rows (M, K) of float32 as uint8; their steps and zeros, (M,).

    Each row's own, or `fixed` for all. NaN where a row is not finite.
    """
    (m, k), q = x.shape, np.empty(x.shape, np.uint8)
    step, zero = np.empty(m, np.float32), np.empty(m, np.int32)
    if fixed:
        step[:], zero[:] = fixed
    library = integers()
    if not library:
        return encoded_plainly(x, q, step, zero, bool(fixed))
    library.encode8(m, k, np.ascontiguousarray(x), q, step, zero,
                    bool(fixed), threads_for(m * k * 16), POOL.address)
    return q, step, zero


def threads_for(work: int) -> int:
    return POOL.threads if work > WORTH_SHARING else 1


def encoded_plainly(x: np.ndarray, q: np.ndarray, step: np.ndarray,
                    zero: np.ndarray, fixed: bool) -> Codes:
    """`encoded` in NumPy, bit for bit."""
    finite = np.isfinite(x).all(1)
    if not fixed:
        with np.errstate(invalid="ignore", over="ignore"):
            bottom = (-x).max(1, initial=0)
            width = x.max(1, initial=0) / np.float32(255)
            width += bottom / np.float32(255)
            step[:] = np.where(width < 1e-30, 1, width)
            zero[:] = np.where(finite, np.rint(bottom / step), 0)
    step[~finite], zero[~finite] = np.nan, 0
    with np.errstate(invalid="ignore", over="ignore"):
        codes = np.rint(x * (1 / step)[:, None]) + zero[
            :, None].astype(np.float32)
    q[:] = np.where(codes > 0, np.minimum(codes, 255), 0)
    return q, step, zero


def integer_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (M, K) @ b (N, K).T, of uint8 and int8: int32, exactly."""
    check_bytes(a, b)
    (m, k), n, library = a.shape, len(b), integers()
    if not library:
        return (a.astype(float) @ b.T.astype(float)).astype(np.int32)
    c = np.empty((m, n), np.int32)
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if not library.product8(m, n, k, a, b, c, 0, 0, 0, 0, 0,
                            threads_for(m * n * k), POOL.address):
        raise MemoryError(f"integer_product: no memory for copies of "
                          f"{a.shape} and {b.shape}")
    return c


def check_bytes(a: np.ndarray, b: np.ndarray) -> None:
    if (a.dtype, b.dtype, a.ndim, b.ndim) != (np.uint8, np.int8, 2, 2) or (
            a.shape[1] != b.shape[1]):
        raise ValueError(f"integer_product: expected uint8 (M, K) and int8 "
                         f"(N, K), got {a.dtype} {a.shape} and {b.dtype} "
                         f"{b.shape}")
    if a.shape[1] > MOST:
        raise ValueError(f"integer_product: a sum of {a.shape[1]:,} products "
                         f"may not fit into int32; expected a K of at most "
                         f"{MOST:,}: cut it into parts")


class IntegerWeight(QuantizedWeight):
    """A QuantizedWeight of 8 bits whose products are of whole numbers.

    Rows of x become codes too, each by its own range, or by the `fixed`
    step and zero (2,) of `calibrate`.
    """

    def __init__(self, weight: Tensor, scheme: Scheme = Scheme()):
        if (scheme.bits, scheme.group, scheme.affine) != (8, None, False):
            raise ValueError(f"IntegerWeight: expected 8 bits and a scale "
                             f"for each row, got {scheme}")
        super().__init__(weight, scheme)
        if self.shape[1] > MOST:
            raise ValueError(f"IntegerWeight: rows of {self.shape[1]:,} may "
                             f"not fit into int32; expected {MOST:,} at most")
        sums = self.codes.numpy().sum(1, dtype=np.int32)
        self.sums = from_numpy(sums)
        self.fixed = Tensor([math.nan, 0])
        self.seen: list[np.ndarray] | None = None

    def multiply(self, rows: Tensor) -> Tensor:
        if not self.shape[1]:  # sums of nothing, and no scales to read
            return from_numpy(np.zeros((len(rows), self.shape[0]), "f4"))
        if self.seen is not None:
            self.seen.append(rows.numpy().copy())
        step_zero = self.fixed.tolist()
        fixed = None if math.isnan(step_zero[0]) else step_zero
        q, step, zero = encoded(rows.numpy(), fixed)
        (m, k), n, library = q.shape, self.shape[0], integers()
        if not library:
            return self.plainly(q, step, zero)
        y = Buffer.empty((m, n), float32)
        if not library.product8(
                m, n, k, q, place(self.codes), 0, y.address, step, zero,
                place(self.scale), place(self.sums),
                threads_for(m * n * k), POOL.address):
            raise MemoryError(f"IntegerWeight: no memory to copy {q.shape}")
        return wrap(y)

    def plainly(self, q: np.ndarray, step: np.ndarray,
                zero: np.ndarray) -> Tensor:
        """The product without a compiler."""
        total = integer_product(q, self.codes.numpy())
        total -= zero[:, None] * self.sums.numpy()
        scale = self.scale.numpy()[:, 0].astype(np.float32)
        return from_numpy(step[:, None] * scale * total.astype(np.float32))


class QuantizedEmbedding(Module):
    """An Embedding whose weight answers `rows`."""

    def __init__(self, layer: Any, weight: Any):
        self.weight, self.padding_idx = weight, layer.padding_idx

    def forward(self, index: Tensor) -> Tensor:
        rows = self.weight.rows(index)
        if self.padding_idx is None:
            return rows
        # As in Embedding: what is detached passes no gradient on.
        padding = (index == self.padding_idx).unsqueeze(-1)
        return where(padding, detached(rows), rows)


class QuantizedConv2d(Module):
    """A Conv2d, of one group, as a product with a row for each window."""

    def __init__(self, layer: Any, weight: Any):
        self.weight, self.bias = weight, copy.deepcopy(layer.bias)
        self.kernel_size = layer.kernel_size
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation = layer.dilation

    def forward(self, x: Tensor) -> Tensor:
        how = Sweep(pair("kernel_size", self.kernel_size, 1),
                    pair("stride", self.stride, 1),
                    pair("dilation", self.dilation, 1))
        margins = margins_of(self.padding, how)
        check_pictures("conv2d", x)
        how.places(padded_size(x, margins))  # refuses what is too small
        if any(map(any, margins)):
            x = x.pad([(0, 0), (0, 0), *margins])
        for side in (1, 0):
            kernel, step, apart = [each[side] for each in how]
            x = stack(taps_along(x, 3, kernel, step, apart), 2)
        # (N, C, kh, kw, H', W'): a window's numbers go to the end.
        windows = x.permute(0, 4, 5, 1, 2, 3).flatten(3)
        y = windows @ self.weight.T
        if self.bias is not None:
            y = y + self.bias
        return y.permute(0, 3, 1, 2)


LAYERS: dict[type, Callable[[Any, Any], Module] | None] = {
    Linear: None, Embedding: QuantizedEmbedding, Conv2d: QuantizedConv2d,
    QuantizedEmbedding: QuantizedEmbedding, QuantizedConv2d: QuantizedConv2d}


def quantized(model: Module, scheme: Scheme = Scheme(),
             kind: Callable[..., Any] = QuantizedWeight,
             skip: Collection[str] = ()) -> Any:
    """A copy of `model` whose layers' weights are `kind`s, by `scheme`.

    Of Linear, Embedding and Conv2d (of one group); other layers, those
    named in `skip`, and all biases stay as they are. Run the copy under
    no_grad(), as `generate` and `evaluate` do.
    """
    check_request(model, scheme, skip)
    memory: dict[int, Any] = {}
    for name, layer in named_modules(model):
        if type(layer) not in LAYERS or name in skip or getattr(
                layer, "groups", 1) != 1:
            continue
        swap, weight = LAYERS[type(layer)], vars(layer)["weight"]
        if id(weight) not in memory:
            try:
                memory[id(weight)] = kind(matrix_of(weight), scheme)
            except (TypeError, ValueError) as error:
                error.add_note(f"in {name}")
                raise
        if swap:
            memory[id(layer)] = swap(layer, memory[id(weight)])
    return copy.deepcopy(model, memory)


def check_request(model: Module, scheme: Any, skip: Collection[str]) -> None:
    """Refuse what is no scheme, and names of nothing to quantize."""
    if not isinstance(scheme, Scheme):
        raise TypeError(f"quantized: expected a Scheme, got {scheme!r}; "
                        f"Scheme(8) is one of eight bits")
    if unknown := set(skip).difference(dict(named_modules(model))):
        raise ValueError(f"quantized: expected a list of names from "
                         f"named_modules to skip, got {sorted(unknown)}")


def matrix_of(weight: Any) -> Any:
    """A row for each output; of a RoundedWeight what was trained."""
    weight = getattr(weight, "weight", weight)
    return weight.flatten(1) if isinstance(weight, Tensor) else weight


def load_quantized(path: str | Path, scheme: Scheme = Scheme(),
                   kind: Callable[..., Any] = QuantizedWeight) -> GPT:
    """A GPT that was saved quantized, by this scheme and kind."""
    try:
        arrays, about = read_safetensors(Path(path))
        model = quantized(GPT(GPTConfig(**json.loads(about["config"]))),
                          scheme, kind)
        model.load_state_dict(arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no GPT that was saved as {scheme} "
                         f"({type(error).__name__}: {error})") from None
    return model


def calibrate(model: Module, batches: Iterable[Tensor],
              rule: str = "minmax") -> None:
    """Fix the steps of all IntegerWeights, by what `batches` bring."""
    scheme = Scheme(affine=True, rule=rule)
    weights = [w for _, w in named_modules(model)
               if isinstance(w, IntegerWeight)]
    for weight in weights:
        weight.fixed, weight.seen = Tensor([math.nan, 0]), []
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
        grids = [grid(np.concatenate(weight.seen, axis=None)[None], scheme)
                 if weight.seen else None for weight in weights]
    finally:
        for weight in weights:
            weight.seen = None
    if not any(grids):
        raise ValueError("calibrate: expected batches, and a model with an "
                         "IntegerWeight that multiplies them, got none")
    for weight, found in zip(weights, grids, strict=True):
        if found:
            # Codes of activations go from 0 to 255.
            weight.fixed = Tensor([found.scale.item(),
                                   found.zero.item() + 128])


class RoundedWeight(Module):
    """A weight that is rounded whenever it is used, and learns anyway.

    For training: `quantized(model, scheme, RoundedWeight)`, and afterwards
    `quantized` again, for the codes of what was learned.
    """

    def __init__(self, weight: Tensor, scheme: Scheme = Scheme()):
        self.shape = matrix_shape(weight)
        self.weight, self.scheme = parameter(weight.detach().clone()), scheme

    def straight(self) -> Tensor:
        """The rounded values, with the gradient of the weight."""
        values = QuantizedWeight(self.weight, self.scheme).values()
        off = from_numpy(values) - self.weight.detach()
        return self.weight + off.cast(self.weight.dtype)

    @property
    def T(self) -> Tensor:
        return self.straight().T

    def rows(self, index: Tensor) -> Tensor:
        return look_up(self.straight(), index)


def lightened(model: GPT) -> GPT:
    """A copy for a small file: MLPs in 4 bits, all else in 8."""
    names = {name for name, _ in named_modules(model)}
    mlps = {name for name in names if ".mlp." in name}
    some = quantized(model, Scheme(4, 32, rule="mse"), skip=names - mlps)
    return quantized(some, skip=mlps)


def thawed(model: GPT) -> GPT:
    """The values of a quantized GPT's codes, as weights of float32."""
    values = dict(model.state_dict())
    for name, layer in named_modules(model):
        weight = getattr(layer, "weight", None)
        if isinstance(weight, QuantizedWeight):
            values[f"{name}.weight"] = Tensor(weight.values())
    plain = GPT(model.config)
    plain.load_state_dict({name: values[name]
                           for name in plain.state_dict()})
    return plain


def read_gpt(path: Path) -> GPT:
    """A GPT from a file of `save`, plain or lightened, in float32."""
    arrays, about = read_safetensors(path)
    if not any(name.endswith(".codes") for name in arrays):
        return GPT.load(path)
    try:
        model = lightened(GPT(GPTConfig(**json.loads(about["config"]))))
        model.load_state_dict(arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no GPT that `lightened` made "
                         f"({type(error).__name__}: {error})") from None
    return thawed(model)
