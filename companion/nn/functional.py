# Tangled from vocabulary: edit there, `make tangle`. sha256:5e643f81a4bd
"""PyTorch's nn.functional: what is not a method, under its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from companion.convolution import pair
from companion.dtype import float64, int64
from companion.layers import Dropout
from companion.losses import apply_reduction, matched
from companion.tensor import (
    Scalar, Tensor, as_int, axis_of, smooth, torch_names, unpack_ints)
from companion.tensor.along import pick
from companion.tensor.arithmetic import maximum_of, minimum_of
from companion.tensor.creation import arange, zeros_like
from companion.tensor.operands import narrowed, where, widened
from companion.vocabulary import at, found


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """Between two bounds, whose slope is 0."""
    return minimum_of(maximum_of(x, low, tie=1), high, tie=1)


def hardtanh(x: Tensor, min_val: float = -1.0,
             max_val: float = 1.0) -> Tensor:
    return bounded(x, min_val, max_val)


def relu6(x: Tensor) -> Tensor:
    return bounded(x, 0, 6)


def hardsigmoid(x: Tensor) -> Tensor:
    """A straight line from 0 at -3 to 1 at 3."""
    return bounded(x + 3, 0, 6) / 6


def hardswish(x: Tensor) -> Tensor:
    """x · hardsigmoid(x) (Howard et al., 2019)."""
    return x * hardsigmoid(x)


@smooth
def softplus(x: Tensor, beta: float = 1.0,
             threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta x)) / beta; x, where that is over `threshold`."""
    scaled = x * beta
    large = scaled > threshold
    small = where(large, threshold, scaled).exp().log1p() / beta
    return where(large, x, small)


@smooth
def logsigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)), without rounding sigmoid first."""
    negative = x < 0
    small = where(negative, x, -x).exp().log1p()
    return where(negative, x, 0) - small


@smooth
def mish(x: Tensor) -> Tensor:
    """x · tanh(softplus(x)) (Misra, 2019)."""
    return x * softplus(x).tanh()


@smooth
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha · (exp(x) - 1) (Clevert, 2015)."""
    positive = x > 0
    return where(positive, x, where(positive, 0, x).expm1() * alpha)


@smooth
def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """elu of x / alpha, times alpha: smooth at 0 (Barron, 2017)."""
    return elu(x / alpha) * alpha


@smooth
def selu(x: Tensor) -> Tensor:
    """elu whose values keep mean 0 and variance 1 (Klambauer, 2017)."""
    return elu(x, 1.6732632423543772) * 1.0507009873554805


def leaky_rectifier(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope · x."""
    return where(x > 0, x, x * negative_slope)


def softsign(x: Tensor) -> Tensor:
    return x / (x.abs() + 1)


def tanhshrink(x: Tensor) -> Tensor:
    return x - x.tanh()


def softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """Drawn towards 0 by `lambd`, and no farther."""
    return x - x.clamp(-lambd, lambd)


def hardshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """x, or 0 within `lambd` of it."""
    return x.masked_fill(x.abs() <= lambd, 0)


def threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    """x where it is above the threshold, else `value`."""
    return where((x > threshold) | x.isnan(), x, value)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """leaky_relu with a slope that is learned, one or one a channel."""
    if weight.size > 1:
        weight = weight.reshape(-1, *(1,) * (x.ndim - 2))
    return where(x > 0, x, x * weight)


@torch_names
def glu(x: Tensor, axis: int = -1) -> Tensor:
    """The first half of an axis, gated by the second."""
    half, odd = divmod(x.shape[axis_of(x, axis)], 2)
    if odd:
        raise ValueError(f"glu: axis {axis} of shape {x.shape} has no "
                         f"halves; expected an even length")
    return x.narrow(axis, 0, half) * x.narrow(axis, half, half).sigmoid()


@torch_names
def softmin(x: Tensor, axis: int) -> Tensor:
    return (-x).softmax(axis)


# Where along an axis of n the places beyond its ends look.
EDGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "replicate": lambda i, n: i.clamp(0, n - 1),
    "circular": lambda i, n: i % n,
    "reflect": lambda i, n: n - 1 - (i % (2 * n - 2) - (n - 1)).abs(),
}
FARTHEST = {"replicate": math.inf, "circular": 0, "reflect": -1}


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant",
        value: Scalar = 0) -> Tensor:
    """(before, after) of the last axis, of the one before it, and so on.

    Numbers below 0 cut off. Beside "constant" there are "reflect",
    "replicate" and "circular".
    """
    if len(pad) % 2 or len(pad) > 2 * x.ndim or (
            mode != "constant" and mode not in EDGES):
        raise ValueError(f"pad: expected pairs for at most the {x.ndim} axes "
                         f"of shape {x.shape}, and as mode constant or one "
                         f"of {', '.join(EDGES)}; got {pad} and {mode!r}")
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2]), 1):
        x = padded_axis(x, x.ndim - i, before, after, mode, value)
    return x


def padded_axis(x: Tensor, axis: int, before: int, after: int, mode: str,
                value: Scalar) -> Tensor:
    """One axis with more at its ends, or less."""
    n = x.shape[axis]
    if mode == "constant":
        margins = [(0, 0)] * x.ndim
        margins[axis] = (max(before, 0), max(after, 0))
        cut = max(-before, 0)
        left = x.narrow(axis, cut, n - cut - max(-after, 0))
        return left.pad(margins, value)
    if max(before, after) > n + FARTHEST[mode] or not n:
        raise ValueError(f"pad: {mode} of an axis of length {n} goes no "
                         f"farther than {n + FARTHEST[mode]} places, got "
                         f"{before} and {after}")
    places = arange(-before, n + after, device=x.device)
    return x.index_select(axis, EDGES[mode](places, n)) if (
        before or after) else x


def nearest(x: Tensor, axis: int, m: int, scale: float, _: bool) -> Tensor:
    """Each of m places takes the value at or before it."""
    places = (arange(m, dtype=float64, device=x.device) * scale).floor()
    return x.index_select(axis, places.cast(int64).clamp(
        0, x.shape[axis] - 1))


def linear_between(x: Tensor, axis: int, m: int, scale: float,
                   align_corners: bool) -> Tensor:
    """Each of m places mixes its two neighbours."""
    n, places = x.shape[axis], arange(m, dtype=float64, device=x.device)
    if align_corners:
        places = places * ((n - 1) / max(m - 1, 1))
    else:
        places = ((places + 0.5) * scale - 0.5).clamp(min=0)
    low = places.floor().clamp(max=n - 1)
    way = (places - low).cast(x.dtype).reshape(
        [m if i == axis % x.ndim else 1 for i in range(x.ndim)])
    near = x.index_select(axis, low.cast(int64))
    far = x.index_select(axis, (low + 1).clamp(max=n - 1).cast(int64))
    return near + (far - near) * way


def cubic(distance: Tensor) -> Tensor:
    """Keys' weights of neighbours (1981), with -0.75 as PyTorch has it."""
    near = (distance * 1.25 - 2.25) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * -0.75 + 3
    return where(distance <= 1, near, far)


@smooth
def cubic_between(x: Tensor, axis: int, m: int, scale: float,
                  align_corners: bool) -> Tensor:
    """Each of m places mixes its four neighbours; edges are repeated."""
    n, places = x.shape[axis], arange(m, dtype=float64, device=x.device)
    places = (places * ((n - 1) / max(m - 1, 1)) if align_corners
              else (places + 0.5) * scale - 0.5)
    low, total = places.floor(), zeros_like(x.narrow(axis, 0, 1))
    for step in (-1, 0, 1, 2):
        weight = cubic((places - low - step).abs()).cast(x.dtype).reshape(
            [m if i == axis % x.ndim else 1 for i in range(x.ndim)])
        place = (low + step).clamp(0, n - 1).cast(int64)
        total = total + x.index_select(axis, place) * weight
    return total


BETWEEN = {"nearest": nearest, "bicubic": cubic_between, **dict.fromkeys(
    ("linear", "bilinear", "trilinear"), linear_between)}


def unfold(x: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0,
           stride: Any = 1) -> Tensor:
    """Patches of pictures (N, C, H, W) as columns: (N, C·kh·kw, places)."""
    if x.ndim != 4:
        raise ValueError(f"unfold: expected pictures (N, C, H, W), got shape "
                         f"{x.shape}; x.unfold(axis, size, step) is for one "
                         f"axis")
    (kh, kw), (dh, dw), (sh, sw) = [pair("unfold", value, 1) for value in (
        kernel_size, dilation, stride)]
    high, wide = pair("unfold", padding, 0)
    x = pad(x, (wide, wide, high, high))
    x = x.unfold(2, dh * (kh - 1) + 1, sh).unfold(3, dw * (kw - 1) + 1, sw)
    x = x[..., ::dh, ::dw].permute(0, 1, 4, 5, 2, 3)
    return x.reshape(x.shape[0], x.shape[1] * kh * kw, -1)


def interpolate(x: Tensor, size: Any = None, scale_factor: Any = None,
                mode: str = "nearest",
                align_corners: bool = False) -> Tensor:
    """Pictures (N, C, …) of another size, one axis after another."""
    axes = range(2, x.ndim)
    if mode not in BETWEEN or (size is None) == (scale_factor is None):
        raise ValueError(f"interpolate: expected one of size and "
                         f"scale_factor, and as mode one of "
                         f"{', '.join(BETWEEN)}; got mode={mode!r}")
    given = scale_factor if size is None else size
    each = list(given) if isinstance(given, Sequence) else [given] * len(axes)
    if len(each) != len(axes) or min(each, default=1) <= 0:
        raise ValueError(f"interpolate: expected a number above 0 for each "
                         f"of the {len(axes)} last axes of shape {x.shape}, "
                         f"got {given}")
    for axis, wanted in zip(axes, each):
        n = x.shape[axis]
        m = as_int(wanted) if size is not None else int(n * wanted)
        scale = n / m if size is not None else 1 / wanted
        x = BETWEEN[mode](x, axis, m, scale, align_corners)
    return x


def classes_last(x: Tensor) -> Tensor:
    """(N, C, …) with the classes where our losses have them."""
    return x.movedim(1, -1) if x.ndim > 2 else x


def weighted(loss: Tensor, target: Tensor, weight: Tensor | None,
             ignore_index: int, reduction: str) -> Tensor:
    """Losses of rows, weighed by their class; the mean by the weights."""
    ignored = target == ignore_index
    places = target.masked_fill(ignored, 0)
    each = (where(ignored, 0.0, 1.0).cast(loss.dtype) if weight is None else
            weight[places].masked_fill(ignored, 0))
    return apply_reduction(loss.masked_fill(ignored, 0) * each, reduction,
                           loss.dtype, each.sum())


def second_axis_cross_entropy(
        x: Tensor, target: Tensor, weight: Tensor | None = None,
        ignore_index: int = -100, reduction: str = "mean",
        label_smoothing: float = 0.0) -> Tensor:
    """cross_entropy whose classes, as in PyTorch, are (N, C, …)'s C."""
    if target.dtype.is_float:
        target = classes_last(target)
    options: dict[str, Any] = {"label_smoothing": label_smoothing}
    if weight is None:
        if not target.dtype.is_float:
            options["ignore_index"] = ignore_index
        # Not by its name, which in this module means the one above.
        ours = import_module("companion.losses").cross_entropy
        return ours(classes_last(x), target, reduction=reduction, **options)
    if label_smoothing or target.dtype.is_float:
        raise ValueError("cross_entropy: weight= is for classes without "
                         "label_smoothing; weigh the losses of "
                         "reduction='none' yourself")
    return nll_loss(x.log_softmax(1 if x.ndim > 1 else 0), target, weight,
                    ignore_index, reduction)


def nll_loss(x: Tensor, target: Tensor, weight: Tensor | None = None,
             ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """-x[target], for logarithms of probabilities (N, C, …)."""
    rows = classes_last(x)
    safe = target.masked_fill(target == ignore_index, 0)
    loss = -pick(rows, safe.unsqueeze(-1)).squeeze(-1)
    return weighted(loss, target, weight, ignore_index, reduction)


def l1_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|x - target|."""
    x, target = matched("l1_loss", x, target)
    return apply_reduction((x - target).abs(), reduction, x.dtype)


def huber_loss(x: Tensor, target: Tensor, reduction: str = "mean",
               delta: float = 1.0) -> Tensor:
    """A parabola that goes on as its tangents (Huber, 1964)."""
    x, target = matched("huber_loss", x, target)
    far = (x - target).abs()
    loss = where(far <= delta, far * far * 0.5, (far - delta / 2) * delta)
    return apply_reduction(loss, reduction, x.dtype)


def smooth_l1_loss(x: Tensor, target: Tensor, reduction: str = "mean",
                   beta: float = 1.0) -> Tensor:
    """huber_loss, divided by its delta."""
    if beta == 0:
        return l1_loss(x, target, reduction)
    return huber_loss(x, target, reduction, beta) / beta


def binary_cross_entropy(x: Tensor, target: Tensor,
                         reduction: str = "mean") -> Tensor:
    """Of probabilities; logarithms end at -100, as PyTorch's do."""
    x, target = matched("binary_cross_entropy", x, target)
    # At the ends log has no slope, and 0 times that would be NaN.
    least, most = x == 0, x == 1
    yes = where(least, 1, x).log().masked_fill(least, -100).clamp(min=-100)
    no = (-where(most, 0, x)).log1p().masked_fill(
        most, -100).clamp(min=-100)
    loss = -(target * yes + (1 - target) * no)
    return apply_reduction(loss, reduction, x.dtype)


def kl_div(x: Tensor, target: Tensor, reduction: str = "mean",
           log_target: bool = False) -> Tensor:
    """target · (log target - x), for x a logarithm; 0 log 0 is 0."""
    x, target = matched("kl_div", x, target)
    if log_target:
        loss = target.exp() * (target - x)
    else:
        empty = target == 0
        loss = target * (where(empty, 1, target).log() - x)
    if reduction == "batchmean":
        return loss.sum() / x.shape[0]
    return apply_reduction(loss, reduction, x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b."""
    y = x @ weight.T
    return y if bias is None else y + bias


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    return Dropout(p).train(training)(x)


def layer_norm(x: Tensor, normalized_shape: Sequence[int],
               weight: Tensor | None = None, bias: Tensor | None = None,
               eps: float = 1e-5) -> Tensor:
    """Mean 0 and variance 1 over the last axes, then weight and bias."""
    shape = unpack_ints([normalized_shape])
    if x.shape[x.ndim - len(shape):] != shape:
        raise ValueError(f"layer_norm: expected last axes of {shape}, got "
                         f"shape {x.shape}")
    axes, wide = range(-len(shape), 0), widened(x)
    centred = wide - wide.mean(axes, keepdim=True)
    y = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return narrowed(y if bias is None else y + bias, x)


@torch_names
def normalize(x: Tensor, p: float = 2.0, axis: int = 1,
              eps: float = 1e-12) -> Tensor:
    """x / max(norm, eps) along an axis."""
    return x / x.norm(p, axis, keepdim=True).clamp(min=eps)


@torch_names
def cosine_similarity(x: Tensor, y: Tensor, axis: int = 1,
                      eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between x and y along an axis."""
    return (x / x.norm(2, axis, keepdim=True).clamp(min=eps)
            * (y / y.norm(2, axis, keepdim=True).clamp(min=eps))).sum(axis)


def __getattr__(name: str) -> Any:
    """What another chapter has built, under PyTorch's name."""
    return found("nn.functional", ELSEWHERE, name)


ELSEWHERE = {
    **at("companion.nn.functional", cross_entropy="second_axis_cross_entropy",
         leaky_relu="leaky_rectifier"),
    **at("companion.activations", "relu gelu silu"),
    **at("companion.vocabulary", "sigmoid tanh softmax log_softmax"),
    **at("companion.losses", "mse_loss",
         binary_cross_entropy_with_logits="bce_with_logits"),
    **at("companion.convolution", "conv1d conv2d conv_transpose2d max_pool2d "
         "avg_pool2d adaptive_avg_pool2d"),
    **at("companion.attention", "scaled_dot_product_attention"),
    **at("companion.tensor.creation", "one_hot"),
}
