"""Milestone 1998: pictures on every device, and the command."""

import json
import signal

import numpy as np
import pytest

from companion import Arrays, Tensor, cross_entropy, from_numpy, manual_seed
from companion.data import (
    Chance,
    Compose,
    Cutout,
    DataLoader,
    RandomFlip,
    RandomShift,
)
from companion.device import CPU
from companion.dtype import float32
from companion.milestones import pictures, report
from companion.timing import Timed
from companion.training import Observer

CHANGES = {
    "shift": RandomShift(2),
    "mirror": RandomFlip(),
    "hole": Cutout(3),
    "all": Compose(RandomShift(1), RandomFlip(0.3), Cutout(2)),
}
TINY = pictures.Recipe(256, 1, 0.0)


def photographs(n=256, source="CIFAR-10"):
    """Noise in the form of CIFAR-10."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    return Arrays(images, np.arange(n) % 10, source=source)


def digits(n=256, source="MNIST"):
    """Noise in the form of MNIST."""
    images = photographs(n).columns[0].numpy()[:, 0, :28, :28]
    return Arrays(images.copy(), np.arange(n) % 10, source=source)


# ------------------------------------------------------------ augmentations


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_the_same_on_every_device(name, device):
    x = np.random.default_rng(1).random((5, 2, 6, 7), np.float32)
    examples = np.array([9, 2, 5, 0, 7])
    here, there = [
        CHANGES[name](Chance(1, 2, examples), Tensor(x, float32, where))[0]
        for where in ("cpu", device)
    ]
    assert there.device is Tensor(0.0, float32, device).device
    assert np.array_equal(here.numpy(), there.numpy())


class Far(Timed):
    """A device whose memory cannot be read."""

    def host(self, buffer):
        raise AssertionError("a picture came back to the host")


@pytest.mark.parametrize("name", CHANGES)
def test_pictures_stay_where_they_lie(name):
    x = Tensor(np.ones((4, 3, 8, 8)), float32).to(Far(CPU))
    y, t = CHANGES[name](Chance(0, 0, np.arange(4)), x, "t")
    assert y.device is x.device and y.shape == x.shape and t == "t"


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_belongs_to_the_example_and_the_epoch(name):
    x = np.random.default_rng(2).random((40, 1, 9, 9), np.float32)
    change, examples = CHANGES[name], np.arange(40)
    whole, again, later = [
        change(Chance(3, epoch, examples), from_numpy(x))[0].numpy()
        for epoch in (0, 0, 1)
    ]
    some = examples[[30, 4]]
    (two,) = change(Chance(3, 0, some), from_numpy(x[some]))
    assert np.array_equal(whole, again)
    assert np.array_equal(two.numpy(), whole[some])
    assert not np.array_equal(whole, later)


def test_a_hole_may_lie_partly_outside_and_reaches_every_pixel():
    x = np.ones((3000, 1, 6, 6), np.uint8)
    (y,) = Cutout(3)(Chance(0, 0, np.arange(3000)), from_numpy(x))
    gone = 36 - y.numpy().sum((1, 2, 3), dtype=np.int64)
    assert set(gone.tolist()) == {4, 6, 9}
    assert (y.numpy() == 0).any(0).all()


def test_a_picture_without_channels_is_changed_too():
    x = np.random.default_rng(4).random((6, 8, 8), np.float32)
    for change in CHANGES.values():
        flat, deep = [
            change(Chance(0, 0, np.arange(6)), from_numpy(form))[0].numpy()
            for form in (x, x[:, None])
        ]
        assert np.array_equal(flat, deep[:, 0])


def test_a_loader_in_the_middle_of_an_epoch_goes_on_as_it_would_have():
    def loader():
        return DataLoader(photographs(), 32, shuffle=True, seed=5,
                          augment=CHANGES["all"])

    whole = loader()
    batches = [next(whole) for _ in range(12)]
    goes_on = loader()
    goes_on.go_to(1, 64)
    for expected in batches[10:]:
        for one, other in zip(next(goes_on), expected):
            assert np.array_equal(one.numpy(), other.numpy())


# ----------------------------------------------------------------- networks


@pytest.mark.parametrize("make, shape", [
    (pictures.lenet5, (2, 1, 32, 32)),
    (lambda: pictures.residual_net(2), (2, 3, 16, 16))])
def test_networks_are_the_same_on_every_device(make, shape, device):
    x = np.random.default_rng(0).standard_normal(shape)
    found = []
    for where in ("cpu", device):
        manual_seed(0)
        net = make().to(where)
        loss = cross_entropy(net(Tensor(x, float32, where)),
                             Tensor([3, 1], device=where))
        loss.backward()
        found.append([loss.item(), *(p.grad.numpy().copy()
                                     for p in net.parameters())])
    for one, other in zip(*found, strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- milestone


@pytest.fixture
def small(monkeypatch):
    """Both datasets as noise, and recipes of a second."""
    monkeypatch.setattr(pictures, "mnist", lambda split: digits())
    monkeypatch.setattr(pictures, "cifar10", lambda split: photographs())
    for name in ("digits", "photographs"):
        monkeypatch.setitem(pictures.RECIPES, name, TINY)


@pytest.mark.usefixtures("small")
def test_the_report_has_a_row_for_each_task(tmp_path, capsys):
    assert report.main(["1998", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "1998.json").read_text())
    assert [row["task"] for row in found["rows"]] == [
        "digits", "photographs"]
    assert all(0 <= row["found"] <= 1 for row in found["rows"])
    shown = capsys.readouterr().out
    assert "photographs: 72,954 weights" in shown and "reached" in shown


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("missed", ["digits", "photographs"])
def test_both_tasks_are_needed(missed, tmp_path, monkeypatch, capsys):
    hard = pictures.Recipe(256, 1, 1.0)
    monkeypatch.setitem(pictures.RECIPES, missed, hard)
    assert report.main(["1998", "--out", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out
    found = json.loads((tmp_path / "1998.json").read_text())
    assert {row["task"]: row["done"] for row in found["rows"]} == {
        name: "no" if name == missed else "yes"
        for name in ("digits", "photographs")}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_stand_ins_earn_no_verdict(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, name,
                        lambda split: digits(source="drawn"))
    assert report.main(["1998", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "1998 NOT MEASURED" in shown and "COMPANION_DATA" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_ctrl_c_ends_a_milestone_in_one_line(tmp_path, monkeypatch, capsys):
    class Presses(Observer):
        def look(self, run, row):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pictures, "ProgressBar", Presses)
    # A shell that starts a job in the background has it ignore Ctrl-C.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert report.main(["1998", "--out", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGINT, usual)
    assert "1998 stopped: no report" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_the_milestone_asks_for():
    recipes = pictures.RECIPES
    assert recipes["digits"] == pictures.Recipe(60_000, 9, 0.99)
    assert recipes["photographs"].examples == 50_000
    assert recipes["photographs"].target == 0.75
