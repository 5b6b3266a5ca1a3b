# Tangled from pictures: edit there, `make tangle`. sha256:6ec9be0dd41d
from __future__ import annotations

import tempfile

import numpy as np

from companion.data import (
    Arrays, Chance, Compose, Cutout, RandomFlip, RandomShift, taken)
from companion.dtype import float32
from companion.literate import message
from companion.milestones.mnist import taught
from companion.milestones.pictures import (
    Recipe, Residual, Subsampling, TableConv2d, beginning, bent, framed,
    genuine, lenet5, namer, residual_net, squash, standard)
from companion.milestones.report import Unmeasured, judged, tasks_done
from companion.tensor import Tensor, from_numpy
from companion.tensor.creation import arange, zeros
from companion.tensor.indexing import cat
from companion.tensor.random import manual_seed, randn


def by_hand(x, chance, reach, side):
    """Shift, mirror and cut out, one picture after the other."""
    moves, turns, middles = chance(2), chance(), chance(2)
    found = []
    for image, move, turn, middle in zip(x, moves, turns, middles):
        *_, h, w = image.shape
        i, j = (move * (2 * reach + 1)).astype(int)
        wide = np.pad(image, [(0, 0), (reach, reach), (reach, reach)])
        image = wide[:, i:i + h, j:j + w]
        image = (image[:, :, ::-1] if turn[0] < 0.5 else image).copy()
        i, j = (middle * (h, w)).astype(int) - side // 2
        image[:, max(i, 0):max(i + side, 0), max(j, 0):max(j + side, 0)] = 0
        found.append(image)
    return np.stack(found)


def test_pictures_are_changed_as_by_hand():
    pixels = np.arange(40 * 3 * 7 * 9).reshape(40, 3, 7, 9) % 251 + 1
    examples = np.arange(40) * 3
    change = Compose(RandomShift(2), RandomFlip(), Cutout(4))
    for dtype in (np.uint8, np.float32):
        x = pixels.astype(dtype)
        got, = change(Chance(5, 1, examples), from_numpy(x))
        expected = by_hand(x, Chance(5, 1, examples), 2, 4)
        assert got.numpy().dtype == dtype
        assert np.array_equal(got.numpy(), expected)


def small_run(seed=0):
    draw = np.random.default_rng(0)
    data = Arrays(draw.random((512, 3, 32, 32), np.float32),
                  draw.integers(0, 10, 512))
    return namer(data, Recipe(512, 2, 0.0), seed)


def test_a_run_goes_on_with_the_same_pictures():
    whole, begun, goes_on = [small_run() for _ in range(3)]
    whole.fit(6)
    begun.fit(2)
    with tempfile.TemporaryDirectory() as folder:
        begun.save(f"{folder}/run.safetensors")
        assert goes_on.resume(f"{folder}/run.safetensors")
    goes_on.fit(6)
    losses = [[row["loss"] for row in run.history]
              for run in (whole, goes_on)]
    assert losses[0] == losses[1] and len(set(losses[0])) == 6


def test_lenet5_has_the_sizes_of_the_paper():
    net = lenet5()
    x, _ = framed(from_numpy(np.zeros((2, 28, 28), np.uint8)), Tensor([1]))
    shapes = []
    for layer in net:
        x = layer(x)
        shapes.append(x.shape[1:])
    assert [shapes[i] for i in (0, 2, 4, 6, 8, 11)] == [
        (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1),
        (84,)]
    assert net[4].table.sum().item() == 60
    counts = [net[i].count() for i in (0, 2, 4, 6, 8, 11)]
    assert counts == [156, 12, 1516 + 36 * 25, 32, 48_120, 10_164]
    assert sum(counts) - 900 == 60_000


def test_what_a_channel_does_not_see_moves_nothing():
    manual_seed(0)
    layer, x = TableConv2d(["02", "1"], 3, 3), randn(1, 3, 5, 5)
    y = layer(x).numpy()
    other = layer(cat([x[:, :1], x[:, 1:2] + 1, x[:, 2:]], 1)).numpy()
    assert np.array_equal(y[:, 0], other[:, 0])
    assert not np.allclose(y[:, 1], other[:, 1])
    layer(x).sum().backward()
    there = layer.weight.grad.numpy().any((2, 3))
    assert there.tolist() == [[True, False, True], [False, True, False]]


def test_a_squashed_one_is_one():
    assert np.allclose(squash(Tensor([-1.0, 0.0, 1.0])).numpy(),
                       [-1, 0, 1], atol=1e-4)
    layer = Subsampling(2)
    x = arange(32).reshape(1, 2, 4, 4).to(float32)
    means = x.numpy().reshape(1, 2, 2, 2, 2, 2).mean((3, 5))
    assert np.allclose(layer(x).numpy(), means)


def test_a_residual_block_begins_with_its_input():
    manual_seed(1)
    inside = bent(4, 4)
    x = randn(3, 4, 6, 6)
    inside[2].weight.detach().assign(zeros(4, 4, 3, 3))
    assert np.array_equal(Residual(inside)(x).numpy(), x.numpy())
    x = x.requires_grad_()
    Residual(inside)(x).sum().backward()
    assert np.array_equal(x.grad.numpy(), np.ones(x.shape))
    net = residual_net(4, 7)
    assert net(zeros(2, 3, 32, 32)).shape == (2, 7)
    assert net(zeros(2, 3, 48, 40)).shape == (2, 7)


def test_channels_are_brought_to_one_level():
    draw = np.random.default_rng(2)
    x = from_numpy((draw.random((50, 3, 8, 8)) * [[[90]], [[160]], [[250]]]
                    ).astype(np.uint8))
    y, = standard(x)(x)
    assert np.allclose(y.numpy().mean((0, 2, 3)), 0, atol=1e-3)
    assert np.allclose(y.numpy().std((0, 2, 3)), 1, atol=1e-3)


def test_each_example_has_its_own_places():
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for axis, n in ((1, 3), (2, 4)):
        places = np.array([[0, n - 1], [1, 1]])
        got = taken(Tensor(x), axis, Tensor(places)).numpy()
        for row, own, found in zip(x, places, got):
            assert np.array_equal(row.take(own, axis - 1), found)


def coloured_digits(source, n=256):
    draw = np.random.default_rng(3)
    return lambda split: Arrays(
        (draw.random((n, 3, 32, 32)) * 255).astype(np.uint8),
        np.arange(n) % 10, source=source)


def test_a_stand_in_earns_no_verdict():
    assert len(genuine(coloured_digits("CIFAR-10"), "CIFAR-10")) == 2
    text = message(lambda: genuine(coloured_digits("drawn"), "CIFAR-10"),
                   Unmeasured)
    assert "expected CIFAR-10, got drawn digits" in text


def test_all_tasks_have_to_be_done():
    good = judged("a", 0.5, "≥", 0.5, 0.0)
    bad = judged("b", 0.5, "≤", 0.4, 0.0)
    assert tasks_done("x", [good, good]).passed
    assert not tasks_done("x", [good, bad]).passed
    assert "≥ 0.5" in tasks_done("x", [good]).table()


def test_a_run_is_judged_after_every_epoch():
    run, data = small_run(), Arrays(
        zeros(20, 3, 32, 32), arange(20) % 10)
    rows = taught(run, 2, data)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert len(run.history) == 8 and 0 <= rows[-1]["right"] <= 1
    assert len(beginning(data, 7)) == 7
