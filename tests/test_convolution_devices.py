"""Convolutions are the same on every device, and inside a program."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from companion import (
    SGD,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Dropout2d,
    Flatten,
    Linear,
    MaxPool2d,
    Sequential,
    Tensor,
    conv2d,
    cross_entropy,
    jit,
    manual_seed,
    no_grad,
    ones,
    relu,
    zeros,
)
from companion.device import (
    CONVOLUTION,
    FRAME,
    SET,
    convolution_job,
    convolver,
)
from companion.dtype import bool_, float16, float32, float64, int32
from companion.literate import message
from companion.ops import CONV, Window
from companion.view import View

LAYERS = {
    "margins": (lambda: Conv2d(2, 3, 3, padding=1), (2, 2, 5, 6)),
    "strides": (lambda: Conv2d(8, 4, 3, stride=2, padding=1), (2, 8, 5, 6)),
    "groups": (lambda: Conv2d(16, 4, 2, dilation=2, groups=2),
               (1, 16, 5, 5)),
    "depthwise": (lambda: Conv2d(4, 4, 3, padding="same", groups=4),
                  (2, 4, 4, 5)),
    "a line": (lambda: Conv1d(3, 2, 3, padding=1), (2, 3, 7)),
    "transposed": (lambda: ConvTranspose2d(4, 2, 3, 2, 1, 1), (2, 4, 3, 3)),
    "transposed, dilated": (lambda: ConvTranspose2d(
        4, 6, 2, 3, 0, 2, groups=2, dilation=2), (2, 4, 3, 2)),
    "largest": (lambda: MaxPool2d(3, 2, 1), (2, 2, 7, 6)),
    "mean": (lambda: AvgPool2d(2), (2, 2, 6, 4)),
    "adaptive": (lambda: AdaptiveAvgPool2d((2, 3)), (2, 2, 5, 7)),
    "batch norm": (lambda: BatchNorm2d(3), (4, 3, 3, 3)),
}


def run(make, shape, device):
    """The answer, and the gradients of the input and of the weights."""
    manual_seed(0)
    layer, rng = make().to(device), np.random.default_rng(0)
    x = Tensor(rng.standard_normal(shape), float32, device).requires_grad_()
    y = layer(x)
    assert y.device is x.device
    y.backward(Tensor(rng.standard_normal(y.shape), float32, device))
    gradients = [p.grad for p in layer.parameters()]
    state = layer.state_dict().values()
    return [t.numpy().copy() for t in (y, x.grad, *gradients, *state)]


@pytest.mark.parametrize("name", LAYERS)
def test_layers(device, name):
    make, shape = LAYERS[name]
    for found, expected in zip(run(make, shape, device),
                               run(make, shape, "cpu"), strict=True):
        np.testing.assert_allclose(found, expected, 1e-4, 1e-5)


@pytest.mark.parametrize("dtype", [float16, float64, int32, bool_], ids=str)
def test_every_dtype(device, dtype):
    """Whole numbers, so that every device has the same answer."""
    rng = np.random.default_rng(0)
    x, weight = [Tensor(rng.integers(0, 2, s), dtype, device) for s in (
        (2, 4, 6, 5), (6, 2, 3, 2))]
    y = conv2d(x, weight, None, 2, 1, (1, 2), 2)
    wide = conv2d(*[t.to("cpu").cast(float64) for t in (x, weight)], None, 2,
                  1, (1, 2), 2)
    assert y.dtype is dtype
    assert (y.numpy() == wide.cast(dtype).numpy()).all()


def network():
    manual_seed(0)
    return Sequential(Conv2d(1, 4, 3, padding=1), BatchNorm2d(4), relu,
                      MaxPool2d(2), Dropout2d(0.25), Conv2d(4, 8, 3),
                      relu, Conv2d(8, 8, 2, stride=2), relu,
                      AvgPool2d(2), Flatten(), Linear(8, 3))


def losses(device, wrap):
    """Six steps of training; the random numbers are those of `device`."""
    model = network().to(device)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)

    @wrap
    def step(x, labels):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    rng, found = np.random.default_rng(0), []
    manual_seed(1)
    for _ in range(6):
        x = Tensor(rng.standard_normal((5, 1, 12, 12)), float32, device)
        labels = Tensor(rng.integers(0, 3, 5), device=device)
        found.append(step(x, labels).item())
    model.eval()
    x = Tensor(rng.standard_normal((2, 1, 12, 12)), float32, device)
    with no_grad():
        return found, model(x).numpy().copy()


@pytest.mark.parametrize("device, wrap", [
    ("lazy", lambda f: f), ("lazy", jit),
    pytest.param("lazy emulated", lambda f: jit(f, "lazy emulated"),
                 marks=pytest.mark.slow)], ids=["steps", "jit", "launches"])
def test_a_network_learns_the_same_on_the_compiler(device, wrap):
    """Batch norm's running statistics are writes inside the program."""
    found, scores = losses(device, wrap)
    expected, expected_scores = losses("cpu", lambda f: f)
    np.testing.assert_allclose(found, expected, 1e-3)
    np.testing.assert_allclose(scores, expected_scores, 1e-2, 1e-3)


def seen(x, w, *windows):
    return Tensor.apply(CONV, x, w, arg=windows)


def test_what_does_not_fit_is_one_line(device):
    x, w = [zeros(*s, device=device) for s in (
        (2, 1, 3, 4, 4), (1, 5, 3, 3, 3))]
    plain = Window(), Window()
    for call in (lambda: seen(x, w[:, :, :2], *plain),
                 lambda: seen(x[0], w, *plain), lambda: seen(x, w[0], *plain),
                 lambda: seen(x, w, Window()),
                 lambda: seen(x, w, Window(after=-2), Window()),
                 lambda: seen(x, w, Window(stride=0), Window()),
                 lambda: seen(x, w, Window(), Window(dilation=-1)),
                 lambda: seen(x, w, Window(), Window(spread=0)),
                 lambda: seen(x[..., :0], w, *plain)):
        text = message(call)
        assert "expected (N, G, C, H, W)" in text and "\n" not in text, text
    text = message(lambda: seen(x, w.cast(float64), *plain), TypeError)
    assert "cast both to float64" in text and "\n" not in text


@pytest.mark.parametrize("edge", [2**30 - 1, 2**31 - 4, 2**40])
@pytest.mark.skipif(convolver(float32, False) is None,
                    reason="columns have all of their zeros")
def test_a_margin_without_end_costs_no_memory(edge):
    """Of so wide a frame the bytes may be 2**64, and 0 to the machine."""
    far = {"stride": 2 * edge + 1, "padding": edge}
    assert conv2d(ones(1, 1, 2, 2), ones(1, 1, 1, 1), **far).tolist() == [
        [[[0.0] * 2] * 2]]
    assert conv2d(ones(1, 1, 2, 2), ones(1, 1, 2, 2), dilation=edge,
                  **far).tolist() == [[[[1.0]]]]


def work(n, c, size, o):
    """Products that a kernel of 3 × 3 with its margin makes, and frames."""
    x, w = View.dense((n, 1, c, size, size)), View.dense((1, o, c, 3, 3))
    job = convolution_job(x, w, (Window(before=1, after=1),) * 2, 1)
    sets = SET.iter_unpack(job[FRAME.size + CONVOLUTION.size:])
    return (sum(math.prod(each[3:21:3]) for each in sets) * o,
            FRAME.unpack(job[:FRAME.size])[10] > 0)


def test_no_product_has_a_zero_of_the_margin():
    """Along an axis 4 places meet 2, 3, 3 and 2 of 3 taps; of so few
    pictures that registers would stay empty, a margin is made."""
    assert work(16, 5, 4, 7) == (16 * 5 * 7 * (2 + 3 + 3 + 2) ** 2, False)
    assert work(1, 5, 4, 7) == (5 * 7 * (4 * 3) ** 2, True)


def test_places_that_meet_no_tap_are_no_work():
    """Four pixels of each 224 × 224 get a message, so there are four
    sets of places, and all others are cleared together."""
    windows = (Window(spread=224, before=1, after=222),) * 2
    x, w = View.dense((1, 1, 1, 2, 2)), View.dense((1, 1, 1, 2, 2))
    job = convolution_job(x, w, windows, 1)
    assert len(job) == FRAME.size + CONVOLUTION.size + 4 * SET.size
    y = seen(ones(*x.shape), ones(*w.shape), *windows).numpy()[0, 0, 0]
    assert y.shape == (447, 447) and y.sum() == 16
    assert y[:2, :2].all() and y[224:226, 224:226].all()
    # In a gap there is nothing at all.
    gap = Window(stride=3, spread=3, before=-1, after=1)
    assert not seen(ones(1, 1, 1, 3, 3), ones(1, 1, 1, 1, 1), gap,
                    Window()).numpy().any()


def test_a_lone_place_goes_nowhere():
    """However long its next step would be; so does a lone tap."""
    x, w = [ones(*s).requires_grad_() for s in ((1, 1, 2, 3), (1, 1, 1, 1))]
    y = conv2d(x, w, stride=2**63, dilation=2**64)
    y.backward()
    assert y.tolist() == [[[[1.0]]]] and w.grad.item() == 1
    assert x.grad.tolist() == [[[[1.0, 0.0, 0.0], [0.0] * 3]]]


def test_nothing_to_add_up_is_zero(device):
    for pictures, kernels in (((2, 1, 0, 4, 4), (1, 5, 0, 3, 3)),
                              ((0, 2, 3, 4, 4), (2, 5, 3, 3, 3)),
                              ((2, 2, 3, 4, 4), (2, 0, 3, 3, 3))):
        y = seen(zeros(*pictures, device=device),
                 zeros(*kernels, device=device), Window(1, 1, 2, 1, 1),
                 Window())
        assert y.shape == (pictures[0], *kernels[:2], 7, 2)
        assert not y.numpy().any()
    # Only zeros of the margin are under the taps.
    one = ones(1, 1, 1, 1, 1, device=device)
    y = seen(one, one, Window(1, 1, 1, 3, 0), Window(1, 1, 1, -1, 4))
    assert y.tolist() == [[[[[0.0] * 4] * 4]]]


def test_what_is_no_number_stays_where_it_is_seen(device):
    """Neither margins nor unused rows and columns of a block carry it."""
    for dtype, o in ((float32, 3), (float64, 17)):
        pixels = np.zeros((1, 2, 5, 7))
        pixels[0, 1, 0, 0], pixels[0, 0, 4, 6] = np.nan, np.nan
        y = conv2d(Tensor(pixels, dtype, device),
                   ones(o, 2, 3, 3, dtype=dtype, device=device), padding=1)
        lost = np.zeros((5, 7), bool)
        lost[:2, :2] = lost[3:, 5:] = True
        assert (np.isnan(y.numpy()) == lost).all()


def test_many_callers_at_once():
    """The room for a panel belongs to a thread."""
    x, w = ones(2, 16, 12, 12), ones(20, 16, 3, 3)
    expected = conv2d(x, w, padding=1).numpy().copy()
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda n: conv2d(x * n, w, padding=1).numpy(),
                         range(24))
    assert all((y == n * expected).all() for n, y in enumerate(found))
