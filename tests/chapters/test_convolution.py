# Tangled from convolution: edit there, `make tangle`. sha256:fc49e11ccd7c
from __future__ import annotations

import math

import numpy as np

from companion.convolution import (
    AdaptiveAvgPool2d, AvgPool2d, BatchNorm1d, BatchNorm2d, Conv1d, Conv2d,
    ConvTranspose2d, Dropout2d, Flatten, MaxPool2d, adaptive_avg_pool2d,
    avg_pool2d, conv1d, conv2d, conv_transpose2d, max_pool2d)
from companion.device import CPU, convolve_by_columns
from companion.dtype import float16, float32, float64
from companion.literate import message
from companion.native import POOL, set_threads
from companion.ops import CONV, Window
from companion.tensor import Tensor
from companion.tensor.creation import ones, zeros
from companion.tensor.gradients import grad, gradcheck
from companion.tensor.random import manual_seed, rand, randn
from companion.tensor.reductions import detached


def reference(x, weight, bias, stride, padding, dilation, groups):
    """The definition, a place and a group at a time, in NumPy."""
    (sh, sw), (ph, pw), (dh, dw) = [
        np.broadcast_to(v, 2) for v in (stride, padding, dilation)]
    x = np.pad(x, [(0, 0), (0, 0), (ph, ph), (pw, pw)])
    o, c, kh, kw = weight.shape
    down = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    right = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), o, down, right)) + bias[:, None, None]
    for k, p, q in np.ndindex(o, down, right):
        g = k // (o // groups) * c
        window = x[:, g:g + c, p * sh:p * sh + dh * kh:dh,
                   q * sw:q * sw + dw * kw:dw][:, :, :kh, :kw]
        y[:, k, p, q] += (window * weight[k]).sum((1, 2, 3))
    return y


def test_every_window_becomes_a_row():
    """Against the sum of the definition, through all settings."""
    rng = np.random.default_rng(0)
    for c, stride, padding, dilation, groups in (
            (2, 1, 0, 1, 1), (4, 2, 1, 1, 2), (16, (1, 2), (2, 1), 2, 2),
            (8, 3, 2, (2, 1), 1), (3, 1, 1, 1, 3), (9, 2, 0, 1, 1)):
        x = rng.standard_normal((2, c, 7, 8))
        weight = rng.standard_normal((6, c // groups, 3, 2))
        bias = rng.standard_normal(6)
        found = conv2d(*map(Tensor, (x, weight, bias)), stride, padding,
                       dilation, groups)
        expected = reference(x, weight, bias, stride, padding, dilation,
                             groups)
        assert found.shape == expected.shape
        assert np.allclose(found.numpy(), expected)


def test_the_transposed_one_is_its_gradient():
    """<conv(x), g> = <x, transposed(g)>, for every x and g."""
    manual_seed(0)
    for stride, padding, dilation, groups, more in (
            (1, 0, 1, 1, 0), (2, 1, 1, 2, 0), (3, 2, 2, 1, 1),
            (2, 0, 3, 4, 2)):
        kernel = randn(8, 4 // groups, 3, 3, dtype=float64)
        g = randn(2, 8, 4, 5, dtype=float64)
        back = conv_transpose2d(g, kernel, None, stride, padding, more,
                                groups, dilation)
        x = randn(*back.shape, dtype=float64)
        y = conv2d(x, kernel, None, stride, padding, dilation, groups)
        y = y[:, :, :4, :5]  # what `more` has room for
        assert np.isclose((y * g[:, :, :y.shape[2], :y.shape[3]]).sum()
                          .item(), (x * back).sum().item())


def test_a_large_mean_costs_no_digits():
    rows = np.random.default_rng(0).standard_normal((64, 2, 3, 3)) / 10
    for far in (0.0, 1e3):
        x = Tensor(rows + far, float32)
        y = BatchNorm2d(2)(x).numpy()
        assert abs(y.mean((0, 2, 3))).max() < 1e-2
        assert abs(y.var((0, 2, 3)) - 1).max() < 1e-2


def test_padding_has_words():
    x = randn(1, 2, 6, 7)
    for kernel in ((1, 1), (2, 2), (3, 4), (5, 3)):
        weight = randn(3, 2, *kernel)
        for dilation in (1, 2):
            same = conv2d(x, weight, padding="same", dilation=dilation)
            assert same.shape == (1, 3, 6, 7)
        small = conv2d(x, weight, padding="valid")
        assert small.shape == (1, 3, 7 - kernel[0], 8 - kernel[1])
    even = conv1d(ones(1, 1, 3), ones(1, 1, 2), padding="same")
    assert even.tolist() == [[[2.0, 2.0, 1.0]]]
    weight = randn(3, 2, 3, 3)
    assert 'stride of 1, got "same" with (2, 2)' in message(
        lambda: conv2d(x, weight, stride=2, padding="same"))
    assert 'got "full"' in message(lambda: conv2d(x, weight, padding="full"))
    assert "padding: expected one or two whole numbers >= 0, got -1" in \
        message(lambda: conv2d(x, weight, padding=-1))
    assert "stride: expected" in message(lambda: conv2d(x, weight, stride=0))
    assert "got (1, 2, 3)" in message(
        lambda: conv2d(x, weight, dilation=(1, 2, 3)))


def test_second_derivatives():
    """The gradient of a squared gradient, by differences."""
    manual_seed(3)
    for c in (2, 8):
        x, kernel = [randn(*s, dtype=float64).requires_grad_()
                     for s in ((1, c, 4, 4), (2, c, 2, 2))]

        def slopes(x, kernel):
            y = (conv2d(x, kernel, stride=2, padding=1).tanh()).sum()
            gx, gk = grad(y, [x, kernel], create_graph=True)
            return gx.square().sum() + gk.square().sum()
        gradcheck(slopes, x, kernel)
    x = randn(1, 2, 3, 3, dtype=float64).requires_grad_()
    kernel = randn(2, 1, 2, 2, dtype=float64).requires_grad_()
    gradcheck(lambda x, w: conv_transpose2d(x, w, stride=2), x, kernel)


def test_all_other_layers_have_their_gradients():
    manual_seed(4)
    x = randn(2, 3, 5, 6, dtype=float64).requires_grad_()
    norm = BatchNorm2d(3, dtype=float64)
    detached(norm.weight).assign([0.5, 2.0, -1.0])
    for f in (lambda x: max_pool2d(x, 2), norm,
              lambda x: max_pool2d(x, 3, 2, 1),
              lambda x: avg_pool2d(x, (2, 3), 1, 1),
              lambda x: avg_pool2d(x, 2, padding=1, count_include_pad=False),
              lambda x: adaptive_avg_pool2d(x, (2, 4))):
        gradcheck(f, x)
    weight, bias = norm.weight, norm.bias

    def normalized(weight, bias):
        return norm(x.detach())
    gradcheck(normalized, weight, bias)


def seen(x, w, windows):
    """CONV by its definition, in NumPy: spread, framed, tap by tap."""
    (n, groups, c, *size), (_, o, _, kh, kw) = x.shape, w.shape
    wide = np.zeros((n, groups, c, *[
        max((m - 1) * a.spread + 1, 0) for m, a in zip(size, windows)]))
    wide[..., ::windows[0].spread, ::windows[1].spread] = x
    for axis, a in zip((3, 4), windows):
        wide = np.pad(wide, [(0, 0)] * axis + [
            (max(a.before, 0), max(a.after, 0))] + [(0, 0)] * (4 - axis))
        wide = np.moveaxis(np.moveaxis(wide, axis, 0)[
            max(-a.before, 0):len(np.moveaxis(wide, axis, 0))
            - max(-a.after, 0)], 0, axis)
    places = [a.places(m, k) for a, m, k in zip(windows, size, (kh, kw))]
    y = np.zeros((n, groups, o, *places))
    for i, j in np.ndindex(kh, kw):
        down, right = [slice(k * a.dilation, k * a.dilation
                             + (m - 1) * a.stride + 1, a.stride)
                       for k, m, a in zip((i, j), places, windows)]
        y += np.einsum("ngcpq,goc->ngopq", wide[..., down, right],
                       w[..., i, j])
    return y


def windows_drawn(rng):
    """A picture, kernels and windows in which they have a place."""
    while True:
        found = tuple([Window(*map(int, (
            *rng.integers(1, 4, 3), *rng.integers(-2, 4, 2))))
            for _ in range(2)])
        n, groups, c, o, *sizes = map(int, rng.integers(1, 6, 8))
        taps = [(k - 1) % 3 + 1 for k in sizes[2:]]
        if all(a.places(m, k) > 0 for a, m, k in zip(found, sizes, taps)):
            return ((n, groups, c, *sizes[:2]), (groups, o, c, *taps), found)


def test_every_window_sees_what_it_should():
    rng = np.random.default_rng(11)
    for dtype in (np.float64, np.float32, np.int64, np.int32):
        for _ in range(40):
            *shapes, windows = windows_drawn(rng)
            x, w = [rng.integers(-9, 9, s).astype(dtype) for s in shapes]
            y = Tensor.apply(CONV, Tensor(x), Tensor(w), arg=windows)
            assert y.dtype.numpy == dtype
            assert (y.numpy() == seen(x, w, windows)).all(), windows
            columns = Tensor(np.zeros(y.shape, dtype)).buffer
            convolve_by_columns(CPU, columns, Tensor(x).buffer,
                                Tensor(w).buffer, windows)
            assert (columns.array == y.numpy()).all(), windows


def test_gradients_of_every_window_are_windows():
    """<CONV(x, w), g> is linear in both: against each other, exactly."""
    rng = np.random.default_rng(12)
    for _ in range(60):
        *shapes, windows = windows_drawn(rng)
        x, w = [Tensor(rng.integers(-9, 9, s), float64).requires_grad_()
                for s in shapes]
        y = Tensor.apply(CONV, x, w, arg=windows)
        g = Tensor(rng.integers(-9, 9, y.shape), float64).requires_grad_()
        found = grad(y, [x, w], g, create_graph=True)
        for leaf, slope in zip((x, w), found):
            assert slope.shape == leaf.shape
            assert (slope * leaf).sum().item() == (y * g).sum().item()
        other = Tensor(rng.integers(-9, 9, x.shape), float64)
        mixed = grad(found[0], [g, w], other)
        seen_so = Tensor.apply(CONV, other, w, arg=windows)
        assert (mixed[0].numpy() == seen_so.detach().numpy()).all()
        assert (mixed[1] * w).sum().item() == (seen_so * g).sum().item()


def test_views_and_threads_change_no_answer():
    rng = np.random.default_rng(13)
    x, w = [Tensor(rng.integers(-9, 9, s), float32) for s in (
        (40, 30, 31, 8), (5, 5, 8, 70))]
    a, b = x.permute(0, 3, 1, 2), w.flip((0, 1)).permute(3, 2, 0, 1)
    threads, answers = POOL.threads, []
    for count in (1, 2):
        set_threads(count)
        leaves = [(t / 7).requires_grad_() for t in (a, b)]
        y = conv2d(*leaves, stride=2, padding=(2, 1))
        y.square().sum().backward()
        answers.append([y.detach(), *[t.grad for t in leaves]])
    set_threads(threads)
    for one, two in zip(*answers):
        assert (one.numpy() == two.numpy()).all()
    one = ones(1, 1, 1, 1).expand(3, 8, 9, 9)
    y = conv2d(one, ones(1, 1, 1, 1).expand(2, 8, 3, 3))
    assert y.tolist() == [[[[72.0] * 7] * 7] * 2] * 3
    assert (conv2d(a, b).numpy() == conv2d(
        a.contiguous(), b.contiguous()).numpy()).all()


def test_batches_may_be_empty():
    x, kernel = zeros(0, 8, 5, 5).requires_grad_(), randn(2, 8, 3, 3)
    y = conv2d(x, kernel.requires_grad_())
    assert y.shape == (0, 2, 3, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape and kernel.grad.square().sum().item() == 0


def test_pools_have_the_values_of_their_windows():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 3, 7, 8))
    for k, s, p in ((2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)):
        edges = [(0, 0), (0, 0), (p, p), (p, p)]
        low = np.pad(x, edges, constant_values=-np.inf)
        zero, inside = np.pad(x, edges), np.pad(np.ones_like(x), edges)
        y = [f(Tensor(x), k, s, p).numpy() for f in (max_pool2d, avg_pool2d)]
        bare = avg_pool2d(Tensor(x), k, s, p,
                          count_include_pad=False).numpy()
        for i, j in np.ndindex(*y[0].shape[2:]):
            at = (..., slice(i * s, i * s + k), slice(j * s, j * s + k))
            assert (y[0][..., i, j] == low[at].max((2, 3))).all()
            assert np.allclose(y[1][..., i, j], zero[at].mean((2, 3)))
            assert np.allclose(bare[..., i, j], zero[at].sum((2, 3))
                               / inside[at].sum((2, 3)))
    y = adaptive_avg_pool2d(Tensor(x), (3, 5)).numpy()
    for i, j in np.ndindex(3, 5):
        window = x[..., i * 7 // 3:-(-(i + 1) * 7 // 3),
                   j * 8 // 5:-(-(j + 1) * 8 // 5)]
        assert np.allclose(y[..., i, j], window.mean((2, 3)))


def test_one_more_window_may_hang_over():
    """It begins on a pixel, or it is none; it counts what is there."""
    x = Tensor([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 1, 1, 5)
    for kernel, stride, padding, largest, means in (
            (2, 2, 0, [2, 4, 5], [1.5, 3.5, 5]),
            (3, 3, 0, [3, 5], [2, 4.5]),
            (3, 3, 1, [2, 5], [1, 4]), (2, 3, 1, [1, 4], [0.5, 3.5]),
            (1, 3, 0, [1, 4], [1, 4]), (6, 2, 0, [5], [3])):
        how = (1, kernel), (1, stride), (0, padding)
        found = [f(x, *how, ceil_mode=True).flatten().tolist()
                 for f in (max_pool2d, avg_pool2d)]
        assert found == [largest, means], (how, found)
    x = rand(1, 2, 5, 6, dtype=float64).requires_grad_()
    for f in (MaxPool2d(2, ceil_mode=True), AvgPool2d(
            (2, 4), padding=(1, 2), ceil_mode=True, count_include_pad=False),
            AvgPool2d(2, 3, 1, ceil_mode=True)):
        gradcheck(f, x)


def test_what_is_not_finite_stays_in_its_windows():
    for bad in (math.inf, math.nan):
        x = np.ones((1, 1, 4, 4))
        x[0, 0, 3, 3] = bad
        for f in (avg_pool2d, max_pool2d, adaptive_avg_pool2d):
            y = f(Tensor(x), 2).numpy()
            assert y[0, 0, :1].tolist() == [[1.0, 1.0]]
            assert y[0, 0, 1, 0] == 1 and not np.isfinite(y[0, 0, 1, 1])


def test_a_tie_has_one_receiver():
    for x in (zeros(1, 1, 4, 4), -ones(1, 1, 4, 4)):
        x.requires_grad_()
        max_pool2d(x, 2).sum().backward()
        assert x.grad.tolist() == [[[[1.0, 0.0] * 2, [0.0] * 4] * 2]]
    lost = zeros(1, 1, 2, 2) * math.nan
    assert np.isnan(max_pool2d(lost, 2).item())


def test_running_statistics_are_those_of_the_batches():
    rng = np.random.default_rng(7)
    batches = rng.standard_normal((3, 5, 2, 4)) * 3 + 1
    for momentum in (0.1, 0.3, None):
        norm = BatchNorm1d(2, momentum=momentum, dtype=float64)
        mean, var = np.zeros(2), np.ones(2)
        for i, batch in enumerate(batches):
            norm(Tensor(batch))
            part = 1 / (i + 1) if momentum is None else momentum
            mean += part * (batch.mean((0, 2)) - mean)
            var += part * (batch.var((0, 2), ddof=1) - var)
        assert np.allclose(norm.running_mean.numpy(), mean)
        assert np.allclose(norm.running_var.numpy(), var)
        assert norm.num_batches_tracked.item() == 3
        one = norm.eval()(Tensor(batches[0, :1])).numpy()
        assert np.allclose(one, (batches[0, :1] - mean[:, None])
                           / np.sqrt(var[:, None] + 1e-5))
        assert norm.num_batches_tracked.item() == 3
    plain = BatchNorm1d(2, affine=False, dtype=float64)
    assert plain.parameters() == [] and len(plain.state_dict()) == 3
    assert np.allclose(plain(Tensor(batch)).numpy().std((0, 2)), 1, 1e-4)
    rows = BatchNorm1d(2, dtype=float64)(Tensor(batches[0, :, :, 0]))
    assert np.allclose(rows.numpy().mean(0), 0)


def test_states_have_pytorchs_names():
    assert [p.shape for p in Conv2d(4, 6, 3, groups=2).parameters()] == [
        (6, 2, 3, 3), (6,)]
    assert Conv1d(4, 6, 3, bias=False).state_dict()["weight"].shape == (
        6, 4, 3)
    shape = ConvTranspose2d(4, 6, (2, 3), groups=2).weight.shape
    assert shape == (4, 3, 2, 3)
    assert list(Conv2d(1, 1, 1).state_dict()) == ["weight", "bias"]
    norm = BatchNorm2d(3)
    assert list(norm.state_dict()) == [
        "weight", "bias", "running_mean", "running_var",
        "num_batches_tracked"]
    assert len(norm.parameters()) == 2
    twin = BatchNorm2d(3)
    norm(randn(2, 3, 4, 4))
    twin.load_state_dict(norm.state_dict())
    assert twin.num_batches_tracked.item() == 1
    assert twin.running_mean.tolist() == norm.running_mean.tolist()
    manual_seed(1)
    weight = Conv2d(64, 100, 3).weight
    assert abs(weight.var().item() * 64 * 9 / 2 - 1) < 0.05


def test_halves_come_back_as_halves():
    manual_seed(8)
    x = rand(2, 8, 6, 6)
    for layer in (Conv2d(8, 4, 3, dtype=float16), MaxPool2d(2),
                  BatchNorm2d(8, dtype=float16), AvgPool2d(2),
                  AdaptiveAvgPool2d(2)):
        half = layer(x.cast(float16))
        layer.to(float32)
        assert half.dtype is float16
        assert np.allclose(half.numpy(), layer(x).numpy(), atol=0.05)


def test_channels_are_dropped_whole():
    manual_seed(9)
    layer = Dropout2d(0.5)
    y = layer(ones(50, 20, 3, 3)).numpy()
    assert set(np.unique(y)) == {0.0, 2.0}
    assert (y == y[:, :, :1, :1]).all()
    assert 0.4 < (y == 0).mean() < 0.6
    assert layer.eval()(ones(1, 1, 2, 2)).tolist() == [[[[1.0] * 2] * 2]]
    assert Flatten()(ones(2, 3, 4)).shape == (2, 12)


def test_what_does_not_fit_is_one_line():
    x, kernel = randn(2, 3, 8, 8), randn(4, 3, 3, 3)
    for call, words in (
            (lambda: conv2d(x[0], kernel), "pictures (N, 3, H, W), got (3,"),
            (lambda: conv2d(x, kernel, groups=2), "(N, 6, H, W), got"),
            (lambda: conv2d(x, kernel[:, :1], groups=3), "4 channels do not"),
            (lambda: conv2d(x, kernel[0]), "of 4 axes"),
            (lambda: conv2d(x, kernel, ones(3)), "bias of shape (4,)"),
            (lambda: conv2d(x[..., :2], kernel), "does not fit into (8, 2)"),
            (lambda: conv1d(x, kernel), "weight of 3 axes"),
            (lambda: conv_transpose2d(x, kernel), "(N, 4, H, W), got"),
            (lambda: conv_transpose2d(x, kernel[:3], output_padding=1),
             "output_padding below the stride (1, 1)"),
            (lambda: conv1d(x[0], kernel[0]), "lines (N, 3, L), got (3,"),
            (lambda: conv1d(x[:, :, 0], kernel[..., 0], stride=0),
             "stride: expected one whole number >= 1"),
            (lambda: conv2d(x, kernel, groups=0), "groups: expected one"),
            (lambda: conv2d(x, kernel, stride=1.5), "stride: expected"),
            (lambda: conv_transpose2d(x, kernel.permute(1, 0, 2, 3),
                                      padding=5), "leaves nothing of (10,")):
        text = message(call)
        assert words in text and "\n" not in text, text
    for call in (lambda: conv2d([1], kernel), lambda: conv2d(x, [1]),
                 lambda: conv2d(x, kernel, [0.0] * 4), lambda: conv1d([1], x),
                 lambda: conv_transpose2d(x, kernel.numpy())):
        assert "wrap it" in message(call, TypeError)


def test_what_no_layer_takes_is_one_line():
    x = randn(2, 3, 8, 8)
    for call, words in (
            (lambda: max_pool2d(x, 3, padding="same"), "padding: expected"),
            (lambda: max_pool2d(x, 3, padding=2), "at most half"),
            (lambda: max_pool2d(x[0], 3), "floats (N, C, H, W)"),
            (lambda: avg_pool2d(x, 9), "does not fit"),
            (lambda: adaptive_avg_pool2d(x, 0), "output_size: expected"),
            (lambda: BatchNorm2d(4)(x), "built for 4 channels on axis 1"),
            (lambda: BatchNorm1d(3)(x), "(N, C) or (N, C, L)"),
            (lambda: BatchNorm2d(3)(x[0]), "floats (N, C, H, W)"),
            (lambda: BatchNorm1d(3)(ones(1, 3)), "larger batch, or .eval()"),
            (lambda: Conv2d(3, 4, 3, groups=2), "3 and 4 channels"),
            (lambda: Conv2d(3, 4, ()), "kernel_size: expected"),
            (lambda: Conv2d(3, 4, (3, 3, 3)), "kernel_size: expected"),
            (lambda: Conv1d(3, 4, (3, 3)), "kernel_size: expected one")):
        text = message(call)
        assert words in text and "\n" not in text, text
    assert "wrap it" in message(lambda: max_pool2d([1], 2), TypeError)
