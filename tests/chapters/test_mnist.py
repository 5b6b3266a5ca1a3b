# Tangled from mnist: edit there, `make tangle`. sha256:1f2c6cdc1778
from __future__ import annotations

import numpy as np

from companion.data import Arrays, drawn_digits
from companion.milestones.mlp_bench import by_hand, epoch, ours, task
from companion.milestones.mnist import genuine, loss_of, pixels, study, verdict
from companion.milestones.report import Unmeasured
from companion.optim import SGD


def first_checks(model, x, t, steps=100):
    """The loss before training, and after learning one batch by heart."""
    optimizer, losses = SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, x, t)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def drawn(n, seed):
    return pixels(Arrays(*drawn_digits(n, seed), source="drawn"))


def refused(data):
    try:
        genuine(data)
    except Unmeasured as error:
        return str(error)
    raise AssertionError("expected an error")


def test_pixels_are_rows_from_zero_to_one():
    rows = drawn(50, 0)
    x, t = rows.columns
    assert x.shape == (50, 784) and t.shape == (50,)
    images, _ = drawn_digits(50, 0)
    assert np.allclose(x.numpy(), images.reshape(50, 784) / 255, atol=1e-6)
    assert rows.source == "drawn"


def test_drawn_digits_are_learned_and_earn_no_verdict():
    run, rows = study(drawn(2000, 1), drawn(500, 3), epochs=4, width=32)
    assert rows[0]["right"] < rows[-1]["right"] > 0.9
    assert verdict(rows).passed == (rows[-1]["right"] >= 0.95)
    assert "set COMPANION_DATA" in refused(drawn(20, 0))


def test_the_same_seed_gives_the_same_run():
    train, test = drawn(400, 1), drawn(100, 3)
    runs = [study(train, test, epochs=1, width=16, seed=s)[0]
            for s in (4, 4, 5)]
    losses = [[row["loss"] for row in run.history] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    weights = [run.model[2].bias.tolist() for run in runs]
    assert weights[0] == weights[1] != weights[2]


def test_hand_written_derivatives_agree():
    x, t, weights = task(3)
    steps = [make(x, t, weights) for make in (ours, by_hand)]
    mine, theirs = [epoch(step, 8)() for step in steps]
    assert np.allclose(mine, theirs, rtol=1e-4)
    assert len(set(mine)) == 8
