# Tangled from language: edit there, `make tangle`. sha256:9a14ea33dc7d
from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import numpy as np

from companion.milestones.language import (
    MARK, RECIPES, Alone, Recipe, held_loss, letters_loss, reversal, reverser,
    split, turned_right)
from companion.milestones.train import CHECKPOINT, Job, duration, prepared
from companion.tensor import Tensor
from companion.training import Observer
from companion.transformer import GPT, Block, GPTConfig


class Presses(Observer):
    """Presses Ctrl-C after some step."""

    def __init__(self, step):
        self.step = step

    def look(self, run, row):
        if run.steps == self.step:
            signal.raise_signal(signal.SIGINT)


def losses_of(folder, *stops):
    """The losses of a small run that is stopped, and goes on each time."""
    job = Job(Path(folder), "tiny")
    RECIPES["tiny"] = Recipe(GPTConfig(8, 9, 1, 2, 8, dropout=0.1),
                             4, 8, 1e-2, 2, 9.0)
    try:
        for stop in (*stops, None):
            run = prepared(job, split("to be or not to be " * 20)).run
            run.observers[1] = Presses(stop)  # and no bar
            run.fit(8, job.file(CHECKPOINT))
            assert run.steps == (stop or 8)
    finally:
        del RECIPES["tiny"]
    return [row["loss"] for row in run.history]


def test_a_stopped_run_goes_on():
    with tempfile.TemporaryDirectory() as folder:
        whole = losses_of(f"{folder}/whole")
        parts = losses_of(f"{folder}/parts", 3, 4)
    assert whole == parts and len(whole) == 8


def test_attention_turns_rows_round():
    train, held = reversal(3_000, 200, seed=1)
    sees, blind = [reverser(train, block, steps).model
                   for block, steps in ((Block, 80), (Alone, 20))]
    assert turned_right(sees, held) >= 0.95
    assert turned_right(blind, held) == 0


def test_every_held_letter_is_asked_once():
    model = GPT(GPTConfig(8, 11, 1, 2, 8))
    ids = np.arange(61) * 7 % 11
    asked = [letters_loss(model, Tensor(ids[i:i + 8]),
                          Tensor(ids[i + 1:i + 9])).item()
             for i in range(0, 56, 8)]
    assert np.isclose(held_loss(model, ids), np.mean(asked), rtol=1e-5)
    assert np.isclose(held_loss(model, ids, every=3),
                      np.mean(asked[::3]), rtol=1e-5)


def test_rows_are_turned_in_the_answer():
    train, held = reversal(500, 50)
    for x, y in (train.columns, held.columns):
        x, y = np.asarray(x), np.asarray(y)
        assert (x[:, :8] == y[:, ::-1]).all() and (x[:, 8] == MARK).all()
        assert (x[:, 9:] == y[:, :-1]).all()
    rows = [tuple(row) for data in (train, held)
            for row in np.asarray(data.columns[1]).tolist()]
    assert len(set(rows)) == len(rows) and len(held) == 50


def test_durations_are_said_in_a_fitting_unit():
    assert [duration(s) for s in (3, 119, 120, 7199, 7200)] == [
        "3 seconds", "119 seconds", "2 minutes", "120 minutes", "2 hours"]
