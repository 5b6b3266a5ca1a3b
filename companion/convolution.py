# Tangled from convolution: edit there, `make tangle`. sha256:33ba351a8b06
from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from companion.blas import ceil
from companion.device import CPU, Device
from companion.dtype import DType, float32, int64
from companion.layers import Dropout, Module, he, parameter
from companion.ops import CONV, SHRINK, Window
from companion.tensor import Tensor, unpack_ints
from companion.tensor.arithmetic import maximum_of
from companion.tensor.creation import ones, zeros
from companion.tensor.indexing import cat
from companion.tensor.operands import narrowed, same_dtype, where, widened
from companion.tensor.random import rand
from companion.tensor.reductions import detached

Pair = tuple[int, int]


def for_axes(name: str, value: Any, least: int, axes: int,
             ) -> tuple[int, ...]:
    """A whole number for each of `axes`; one alone is for all."""
    try:
        found = unpack_ints([value])
    except TypeError:
        found = ()  # refused below, by its name
    found = found * axes if len(found) == 1 else found
    if len(found) != axes or min(found) < least:
        wanted = ["one whole number", "one or two whole numbers"][axes - 1]
        raise ValueError(
            f"{name}: expected {wanted} >= {least}, got {value!r}")
    return found


def pair(name: str, value: Any, least: int) -> Pair:
    """(height, width) of one whole number for both, or of two."""
    height, width = for_axes(name, value, least, 2)
    return height, width


class Sweep(NamedTuple):
    """How a kernel goes over a picture: a (height, width) of each."""

    kernel: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)

    @property
    def reach(self) -> Pair:
        """Pixels from the first tap to the last, both included."""
        (kh, kw), _, (dh, dw) = self
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    def places(self, size: Pair) -> Pair:
        """Rows and columns of places on a picture of this size."""
        (h, w), (rh, rw), (sh, sw) = size, self.reach, self.stride
        if h < rh or w < rw:
            raise ValueError(
                f"convolution: a kernel that reaches over {self.reach} "
                f"pixels does not fit into {size}, padding included; pad "
                f"more, or take a smaller kernel")
        return (h - rh) // sh + 1, (w - rw) // sw + 1


Margins = tuple[Pair, Pair]


def margins_of(padding: int | Sequence[int] | str, how: Sweep) -> Margins:
    """((top, bottom), (left, right)) of numbers, "same" or "valid"."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same" and how.stride == (1, 1):
        # Of an odd number the greater half goes behind, as in PyTorch.
        h, w = [(n - 1) // 2 for n in how.reach]
        return (h, how.reach[0] - 1 - h), (w, how.reach[1] - 1 - w)
    if isinstance(padding, str):
        raise ValueError(
            f'padding: expected numbers, "valid", or "same" with a stride '
            f'of 1, got "{padding}" with {how.stride}; give numbers')
    h, w = pair("padding", padding, 0)
    return (h, h), (w, w)


def padded_size(x: Tensor, margins: Margins) -> Pair:
    """Height and width of pictures between their margins."""
    h, w = [n + sum(m) for n, m in zip(x.shape[-2:], margins)]
    return h, w


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None,
                windows: tuple[Window, ...]) -> Tensor:
    """CONV of (N, G · C, H, W) and (G, O, C, kh, kw), as (N, G · O, …)."""
    (n, _, *size), (groups, o, c, *_) = x.shape, weight.shape
    x, weight = same_dtype(x, weight)
    y = Tensor.apply(CONV, x.reshape(n, groups, c, *size), weight,
                     arg=windows)
    y = y.reshape(n, groups * o, *y.shape[3:])
    return y if bias is None else y + bias.reshape(groups * o, 1, 1)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None,
           stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           groups: int = 1) -> Tensor:
    """y[n, o, p, q] = bias[o] + Σ x[n, c, p + i, q + j] weight[o, c, i, j].

    (N, C, H, W) and (O, C / groups, kh, kw) make (N, O, H', W'). Numbers
    are for both axes or one for each; padding also "same" or "valid".
    """
    check_operands("conv2d", 4, x, weight, bias)
    check_channels("conv2d", x, weight, bias, weight.shape[1::-1], groups)
    how = Sweep(pair("kernel", weight.shape[2:], 1),
                pair("stride", stride, 1), pair("dilation", dilation, 1))
    margins = margins_of(padding, how)
    how.places(padded_size(x, margins))
    o, *rest = weight.shape
    return convolution(x, weight.reshape(groups, o // groups, *rest), bias,
                       tuple([Window(s, d, 1, *m) for s, d, m in zip(
                           how.stride, how.dilation, margins)]))


def check_operands(name: str, axes: int, x: Any, weight: Any,
                   bias: Any) -> None:
    """Refuse what is no tensor, and a weight of other axes."""
    for role, value in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and (role, value) != ("bias", None):
            raise TypeError(f"{name}: expected a Tensor as {role}, got a "
                            f"{type(value).__name__}; wrap it in Tensor(…)")
    if weight.ndim != axes:
        raise ValueError(f"{name}: expected a weight of {axes} axes, the "
                         f"kernel's last, got {weight.shape}; unsqueeze it")


def check_channels(name: str, x: Tensor, weight: Tensor,
                   bias: Tensor | None, channels: tuple[int, ...],
                   groups: int) -> None:
    """Refuse what does not fit; `channels`: of x in a group, and of y."""
    for_axes("groups", groups, 1, 1)
    c, o = channels[0] * groups, channels[1]
    if x.ndim != weight.ndim or x.shape[1] != c:
        wanted = (f"pictures (N, {c}, H, W)" if weight.ndim == 4
                  else f"lines (N, {c}, L)")
        raise ValueError(
            f"{name}: a weight of shape {weight.shape} in {groups} groups "
            f"expects {wanted}, got {x.shape}; unsqueeze a lone one, or "
            f"permute the channels to axis 1")
    if o % groups:
        raise ValueError(f"{name}: {o} channels do not make {groups} equal "
                         f"groups; expected a divisor")
    if bias is not None and bias.shape != (o,):
        raise ValueError(f"{name}: expected a bias of shape ({o},), one for "
                         f"each channel, got {bias.shape}")


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None,
           stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           groups: int = 1) -> Tensor:
    """(N, C, L) and weight (O, C / groups, k) make (N, O, L')."""
    check_operands("conv1d", 3, x, weight, bias)
    check_channels("conv1d", x, weight, bias, weight.shape[1::-1], groups)
    edge: Any = padding
    if not isinstance(padding, str):
        edge = (0, *for_axes("padding", padding, 0, 1))
    return conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias,
                  (1, *for_axes("stride", stride, 1, 1)), edge,
                  (1, *for_axes("dilation", dilation, 1, 1)),
                  groups).squeeze(2)


def conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None = None,
                     stride: Any = 1, padding: Any = 0,
                     output_padding: Any = 0, groups: int = 1,
                     dilation: Any = 1) -> Tensor:
    """The gradient of conv2d by its picture, for the message x.

    (N, C, H, W) and (C, O / groups, kh, kw) make (N, O, H', W') with
    H' = (H - 1)·stride - 2·padding + reach + output_padding.
    """
    how, edge, more = spreading(x, weight, bias, stride, padding,
                                output_padding, groups, dilation)
    c, *rest = weight.shape
    turned = weight.reshape(groups, c // groups, *rest).transpose(
        1, 2).flip((3, 4))
    return convolution(x, turned, bias, tuple([
        Window(1, d, s, r - 1 - e, r - 1 - e + m)
        for (s, d), r, e, m in zip(zip(how.stride, how.dilation), how.reach,
                                   edge, more)]))


def spreading(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any,
              padding: Any, output_padding: Any, groups: int, dilation: Any,
              ) -> tuple[Sweep, Pair, Pair]:
    """How conv_transpose2d sweeps, its margins and what it adds behind;
    checked."""
    name = "conv_transpose2d"
    check_operands(name, 4, x, weight, bias)
    for_axes("groups", groups, 1, 1)
    check_channels(name, x, weight, bias, (
        weight.shape[0] // groups, weight.shape[1] * groups), groups)
    how = Sweep(pair("kernel", weight.shape[2:], 1),
                pair("stride", stride, 1), pair("dilation", dilation, 1))
    edge = pair("padding", padding, 0)
    more = pair("output_padding", output_padding, 0)
    if any(m >= max(s, d) for m, s, d in zip(
            more, how.stride, how.dilation)):
        raise ValueError(
            f"{name}: expected an output_padding below the stride "
            f"{how.stride} or the dilation {how.dilation}, got {more}")
    h, w = [(n - 1) * s + r + m for n, s, r, m in zip(
        x.shape[2:], how.stride, how.reach, more)]
    if h <= 2 * edge[0] or w <= 2 * edge[1]:
        raise ValueError(f"{name}: a padding of {edge} on each side leaves "
                         f"nothing of {(h, w)} pixels; pad less")
    return how, edge, more


def taps_along(x: Tensor, axis: int, k: int, stride: int,
               dilation: int) -> list[Tensor]:
    """What each of k taps sees along an axis: views, all of one shape."""
    last = x.shape[axis] - 1 - dilation * (k - 1)
    kept = [(0, n, 1) for n in x.shape]
    found = []
    for at in range(0, k * dilation, dilation):
        kept[axis] = (at, at + last + 1, stride)
        found.append(Tensor.apply(SHRINK, x, arg=tuple(kept)))
    return found


def pooled(join: Callable[[Tensor, Tensor], Tensor], x: Tensor,
           margins: Margins, how: Sweep, edge: float = 0) -> Tensor:
    """Each window's pixels joined, two by two; margins hold `edge`."""
    how.places(padded_size(x, margins))
    if any(map(any, margins)):
        x = x.pad([(0, 0), (0, 0), *margins], value=edge)
    for axis in (3, 2):
        kernel, step, apart = [each[axis - 2] for each in how]
        x = functools.reduce(join, taps_along(x, axis, kernel, step, apart))
    return x


def max_pool2d(x: Tensor, kernel_size: Any, stride: Any = None,
               padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False) -> Tensor:
    """The largest number of each window; the stride is the kernel's
    unless given. Margins count as minus infinity."""
    how = pooling("max_pool2d", x, kernel_size, stride, padding, dilation)
    margins, _ = overhanging(x, padding, how, ceil_mode)
    return pooled(partial(maximum_of, tie=0), x, margins, how, -math.inf)


def pooling(name: str, x: Tensor, kernel_size: Any, stride: Any,
            padding: Any, dilation: Any = 1) -> Sweep:
    """How a window sweeps over pictures of floats; checked."""
    kernel = pair("kernel_size", kernel_size, 1)
    check_pictures(name, x)
    if any(2 * p > k for p, k in zip(pair("padding", padding, 0), kernel)):
        raise ValueError(f"{name}: expected a padding of at most half the "
                         f"kernel {kernel}, got {padding}; a window must "
                         f"not lie outside")
    return Sweep(kernel, pair("stride", kernel if stride is None else stride,
                              1), pair("dilation", dilation, 1))


def check_pictures(name: str, x: Tensor, axes: Sequence[int] = (4,),
                   ) -> None:
    """Refuse what is no batch of pictures, or no floats."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got a "
                        f"{type(x).__name__}; wrap it in Tensor(…)")
    if x.ndim not in axes or not x.dtype.is_float:
        wanted = "(N, C, H, W)" if 4 in axes else "(N, C) or (N, C, L)"
        raise ValueError(f"{name}: expected floats {wanted}, got {x.dtype} "
                         f"{x.shape}; cast, unsqueeze or reshape")


def overhanging(x: Tensor, padding: Any, how: Sweep, ceil_mode: bool,
                ) -> tuple[Margins, Margins]:
    """Margins with what windows hang over by, and that alone."""
    margins, more = margins_of(padding, how), [0, 0]
    for axis, (n, edge) in enumerate(zip(x.shape[2:], margins)):
        reach, stride = how.reach[axis], how.stride[axis]
        end = n + sum(edge)
        steps = ceil(end - reach, stride)
        steps -= steps * stride >= n + edge[0]  # it would see no pixel
        if ceil_mode:
            more[axis] = max(steps * stride + reach - end, 0)
    (top, bottom), (left, right) = margins
    return (((top, bottom + more[0]), (left, right + more[1])),
            ((0, more[0]), (0, more[1])))


def avg_pool2d(x: Tensor, kernel_size: Any, stride: Any = None,
               padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True) -> Tensor:
    """The mean of each window; of the picture's pixels only if margins
    are not to be counted. What hangs over never counts."""
    how = pooling("avg_pool2d", x, kernel_size, stride, padding)
    margins, over = overhanging(x, padding, how, ceil_mode)
    total = partial(pooled, operator.add, how=how)
    count: Tensor | int = math.prod(how.kernel)
    wide = widened(x)
    kept, size = margins, x.shape[2:]
    if count_include_pad:
        kept, size = over, padded_size(x, margins_of(padding, how))
    if not count_include_pad or any(map(any, over)):
        count = total(ones(1, 1, *size, dtype=wide.dtype, device=x.device),
                      margins=kept)
    return narrowed(total(wide, margins=margins) / count, x)


def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    """Means of windows that share the picture out, rounded outwards."""
    check_pictures("adaptive_avg_pool2d", x)
    (h, w), (rows, columns) = x.shape[2:], pair("output_size", output_size, 1)
    y = widened(x)
    if h % rows == w % columns == 0:
        blocks = rows, h // rows, columns, w // columns
        return narrowed(y.reshape(*x.shape[:2], *blocks).mean((3, 5)), x)
    for axis, n, m in ((2, h, rows), (3, w, columns)):
        edges = [(i * n // m, -((i + 1) * -n // m)) for i in range(m)]
        y = cat([y.narrow(axis, first, last - first).mean(axis, keepdim=True)
                 for first, last in edges], axis)
    return narrowed(y, x)


class BatchNorm(Module):
    """Channels of mean 0 and variance 1, over a batch (Ioffe, 2015).

    In training by the batch's own mean and variance; in eval by running
    ones, which each batch moves by `momentum` (None: their plain mean).
    `affine` asks for a weight and a bias for each channel.
    """

    axes: tuple[int, ...] = ()

    def __init__(self, num_features: int, eps: float = 1e-5,
                 momentum: float | None = 0.1, affine: bool = True,
                 dtype: DType = float32, device: Device | str = CPU):
        self.num_features, self.eps = num_features, eps
        self.momentum = momentum
        at: dict[str, Any] = {"dtype": dtype, "device": device}
        self.weight = parameter(ones(num_features, **at)) if affine else None
        self.bias = parameter(zeros(num_features, **at)) if affine else None
        self.running_mean = zeros(num_features, **at)
        self.running_var = ones(num_features, **at)
        self.num_batches_tracked = zeros((), dtype=int64, device=device)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        rows = widened(x).reshape(*x.shape[:2], math.prod(x.shape[2:]))
        mean = self.running_mean
        if self.training:
            # In two steps, along memory; all rows are equally long.
            mean = rows.mean(2).mean(0)
        centred = rows + -mean.reshape(-1, 1)
        variance = self.running_var
        if self.training:
            variance = centred.square().mean(2).mean(0)
            self.follow(mean, variance, x.size // self.num_features)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        y = centred * scale.reshape(-1, 1)
        if self.bias is not None:
            y = y + self.bias.reshape(-1, 1)
        return narrowed(y.reshape(x.shape), x)

    def follow(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics towards those of n numbers each."""
        self.num_batches_tracked.assign(self.num_batches_tracked + 1)
        part = (1 / self.num_batches_tracked.cast(float32)
                if self.momentum is None else self.momentum)
        for kept, new in ((self.running_mean, detached(mean)),
                          (self.running_var,
                           detached(variance) * (n / (n - 1)))):
            kept.assign(kept + (new - kept) * part)

    def check(self, x: Tensor) -> None:
        name, c = type(self).__name__, self.num_features
        check_pictures(name, x, self.axes)
        if x.shape[1] != c:
            raise ValueError(f"{name}: built for {c} channels on axis 1, "
                             f"got {x.shape}; permute the input, or build "
                             f"the layer for it")
        if self.training and x.size <= c:
            raise ValueError(f"{name}: one number a channel in {x.shape} has "
                             f"no variance; use a larger batch, or .eval()")


class BatchNorm1d(BatchNorm):
    """BatchNorm of (N, C) or (N, C, L)."""

    axes = (2, 3)


class BatchNorm2d(BatchNorm):
    """BatchNorm of (N, C, H, W)."""

    axes = (4,)


class Conv2d(Module):
    """conv2d with a weight (O, C / groups, kh, kw) and a bias (O,).

    Weights are drawn by `init(O, C / groups · kh · kw)`, by default
    He's; the bias starts at zero.
    """

    axes, function = 2, staticmethod(conv2d)

    def __init__(self, in_channels: int, out_channels: int,
                 kernel_size: Any, stride: Any = 1, padding: Any = 0,
                 dilation: Any = 1, groups: int = 1, bias: bool = True,
                 init: Callable[..., Tensor] = he, dtype: DType = float32,
                 device: Device | str = CPU):
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = for_axes("kernel_size", kernel_size, 1, self.axes)
        self.stride, self.padding = stride, padding
        self.dilation, self.groups = dilation, groups
        check_groups(self)
        at: dict[str, Any] = {"dtype": dtype, "device": device}
        shape = self.weight_shape()
        weight = init(shape[0], math.prod(shape[1:]), **at)
        self.weight = parameter(weight.reshape(shape))
        self.bias = parameter(zeros(out_channels, **at)) if bias else None

    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups,
                *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias, self.stride,
                             self.padding, self.dilation, self.groups)


class Conv1d(Conv2d):
    """conv1d with a weight (O, C / groups, k) and a bias (O,)."""

    axes, function = 1, staticmethod(conv1d)


class ConvTranspose2d(Conv2d):
    """conv_transpose2d, with a weight (C, O / groups, kh, kw)."""

    def __init__(self, in_channels: int, out_channels: int,
                 kernel_size: Any, stride: Any = 1, padding: Any = 0,
                 output_padding: Any = 0, groups: int = 1,
                 bias: bool = True, dilation: Any = 1, **options: Any):
        self.output_padding = output_padding
        super().__init__(in_channels, out_channels, kernel_size, stride,
                         padding, dilation, groups, bias, **options)

    def weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups,
                *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose2d(
            x, self.weight, self.bias, self.stride, self.padding,
            self.output_padding, self.groups, self.dilation)


def check_groups(layer: Conv2d) -> None:
    """Refuse channels that groups cannot share."""
    name = type(layer).__name__
    sizes = layer.in_channels, layer.out_channels
    if layer.groups < 1 or min(sizes) < 1 or any(
            n % layer.groups for n in sizes):
        raise ValueError(f"{name}: {sizes[0]} and {sizes[1]} channels do "
                         f"not make {layer.groups} equal groups; expected "
                         f"a divisor of both")


class Pool(Module):
    """What pools by `function` of the settings that it is made with."""

    function: Callable[..., Tensor]

    def __init__(self, kernel_size: Any, stride: Any = None,
                 padding: Any = 0, *rest: Any, **options: Any):
        self.kernel_size, self.stride = kernel_size, stride
        self.padding, self.rest, self.options = padding, rest, options

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.kernel_size, self.stride, self.padding,
                             *self.rest, **self.options)


class MaxPool2d(Pool):
    """max_pool2d; `options`: dilation, ceil_mode."""

    function = staticmethod(max_pool2d)


class AvgPool2d(Pool):
    """avg_pool2d; `options`: ceil_mode, count_include_pad."""

    function = staticmethod(avg_pool2d)


class AdaptiveAvgPool2d(Module):
    """Pictures of any size to means of `output_size`."""

    def __init__(self, output_size: Any):
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_avg_pool2d(x, self.output_size)


class Flatten(Module):
    """The axes from `start_dim` to `end_dim` as one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)


class Dropout2d(Dropout):
    """Dropout of whole channels of (N, C, H, W) (Tompson, 2015).

    Neighbours in a picture are alike: one pixel alone hides nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        check_pictures("Dropout2d", x)
        if not self.training or self.p == 0:
            return x
        draw = rand(*x.shape[:2], 1, 1, device=x.device,
                    generator=self.generator)
        return where(draw < self.p, 0, x * (1 / (1 - self.p)))
