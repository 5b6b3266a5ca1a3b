# Tangled from convolution: edit there, `make tangle`. sha256:988e3daa0839
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.convolution import conv2d
from companion.native import set_threads
from companion.tensor import Tensor
from companion.timing import MISSING, compare, stamp

LAYERS = {  # batch, channels, size, channels out, kernel, stride, padding
    "LeNet, first": (64, 1, 28, 6, 5, 1, 2),
    "LeNet, second": (64, 6, 14, 16, 5, 1, 0),
    "ResNet, stem": (64, 3, 32, 16, 3, 1, 1),
    "ResNet, 16": (64, 16, 32, 16, 3, 1, 1),
    "ResNet, 32": (64, 32, 16, 32, 3, 1, 1),
    "ResNet, 64": (64, 64, 8, 64, 3, 1, 1),
    "ResNet, halving": (64, 32, 16, 64, 3, 2, 1),
    "ResNet, 1 x 1": (64, 32, 16, 64, 1, 2, 0),
}
Numbers = list[np.ndarray]
Ready = Callable[[], Any]


def numbers(layer: tuple[int, ...]) -> Numbers:
    """A picture, a weight and a message of a layer's shapes."""
    n, c, size, o, k, s, p = layer
    out, draw = (size + 2 * p - k) // s + 1, np.random.default_rng(0)
    return [draw.standard_normal(shape, dtype=np.float32) for shape in (
        (n, c, size, size), (o, c, k, k), (n, o, out, out))]


def ours(layer: tuple[int, ...], back: bool, threads: int) -> Ready:
    """Our layer, ready to run: its answer, or the weight's gradient."""
    set_threads(threads)
    x, weight, g = [Tensor(a) for a in numbers(layer)]
    first = layer[1] < 4  # a picture wants no gradient

    def run() -> np.ndarray:
        wanted = weight.detach().requires_grad_(back)
        y = conv2d(x.detach().requires_grad_(back and not first), wanted,
                   stride=layer[5], padding=layer[6])
        if not back:
            return y.numpy()
        y.backward(g)
        assert wanted.grad is not None
        return wanted.grad.numpy()
    return run


def torchs(layer: tuple[int, ...], back: bool, threads: int) -> Ready:
    """PyTorch's layer, ready to run."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    x, weight, g = [torch.from_numpy(a) for a in numbers(layer)]
    first = layer[1] < 4

    def run() -> np.ndarray:
        wanted = weight.detach().requires_grad_(back)
        y = torch.nn.functional.conv2d(
            x.detach().requires_grad_(back and not first), wanted,
            stride=layer[5], padding=layer[6])
        if not back:
            return y.numpy()
        y.backward(g)
        return wanted.grad.numpy()
    return run


def race(layer: tuple[int, ...], back: bool, threads: int,
         quick: bool) -> dict[str, Any]:
    """Milliseconds of ours and of PyTorch's, in turn."""
    if importlib.util.find_spec("torch") is None:
        return MISSING
    found = compare(partial(ours, layer, back, threads),
                    partial(torchs, layer, back, threads),
                    rounds=3 if quick else 9, tries=1 if quick else 3,
                    agree=partial(np.testing.assert_allclose, rtol=1e-3,
                                  atol=1e-2))
    return found.line(lambda s: 1e3 * s)


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Layers of LeNet and of a small ResNet, forwards, and with back."""
    line = {"bench": "conv", "threads": threads, "unit": "ms",
            **stamp("torch")}
    for name, layer in list(LAYERS.items())[::4 if quick else 1]:
        for back in (False, True):
            case = f"{name}, there{' and back' if back else ''}"
            yield {**line, "case": case, **race(layer, back, threads, quick)}
