# Tangled from convolution, pictures: edit there, `make tangle`. sha256:7bd3dfb0b3d6  # noqa: E501
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from companion.convolution import conv2d
from companion.losses import cross_entropy
from companion.milestones.pictures import residual_net
from companion.native import set_threads
from companion.optim import SGD
from companion.tensor import Tensor
from companion.tensor.random import manual_seed, randint, randn
from companion.timing import MISSING, beside, compare, stamp

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
    """Layers, forwards and with back; and a step of a residual network."""
    line = {"bench": "conv", "threads": threads, "unit": "ms",
            **stamp("torch")}
    for name, layer in list(LAYERS.items())[::4 if quick else 1]:
        for back in (False, True):
            case = f"{name}, there{' and back' if back else ''}"
            yield {**line, "case": case, **race(layer, back, threads, quick)}
    yield {**line, "case": "a step on photographs", **beside(
        partial(photograph_step, threads),
        partial(torch_photograph_step, threads), quick, 1e-3,
        agree=partial(np.testing.assert_allclose, rtol=1e-4))}


def as_it_is(step: Callable[..., Any]) -> Callable[..., Any]:
    return step


def pictures() -> list[Tensor]:
    """A batch of noise, and what it is called."""
    return [randn(128, 3, 32, 32), randint(0, 10, (128,))]


def photograph_step(threads: int, device: str = "cpu",
                    wrap: Callable[..., Any] = as_it_is) -> Ready:
    """A step of the residual network on 128 pictures; gives the loss."""
    set_threads(threads)
    manual_seed(0)
    net = residual_net().to(device)
    x, y = [t.to(device) for t in pictures()]
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    @wrap
    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return loss.detach()
    return lambda: float(step(x, y).item())


def torch_residual_net(torch: Any, w: int) -> Any:
    """The same layers of PyTorch, under the same names."""
    nn = torch.nn
    added: Any = type("Residual", (nn.Module,), {
        "forward": lambda self, x: x + self.inside(x)})

    def residual(c: int) -> Any:
        whole = added()
        whole.inside = bent(c, c)
        return whole

    def bent(c: int, o: int, stride: int = 1) -> Any:
        return nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(
            c, o, 3, stride, padding=1, bias=False))
    return nn.Sequential(
        nn.Conv2d(3, w, 3, 2, padding=1, bias=False), residual(w),
        bent(w, 2 * w, 2), residual(2 * w),
        bent(2 * w, 4 * w, 2), residual(4 * w),
        nn.BatchNorm2d(4 * w), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4 * w, 10))


def torch_photograph_step(threads: int) -> Ready:
    """PyTorch's step, from the same weights, channels last."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    manual_seed(0)
    state = residual_net().state_dict()
    x, y = [torch.tensor(t.numpy()) for t in pictures()]
    net, last = torch_residual_net(torch, 16), torch.channels_last
    net.load_state_dict({name.replace("layers.", ""): torch.tensor(t.numpy())
                         for name, t in state.items()})
    net, x = net.to(memory_format=last), x.to(memory_format=last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9,
                                nesterov=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            net(x), y, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return float(loss.item())
    return step
