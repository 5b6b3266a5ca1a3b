# Tangled from perceptron: edit there, `make tangle`. sha256:475f2212012d
from __future__ import annotations

from companion.milestones.perceptron import (
    Perceptron, fifty_cards, milestone, separable, until_right)
from companion.milestones.report import Report
from companion.tensor import Tensor
from companion.tensor.random import Generator, randn


def test_the_milestone_is_reached():
    assert milestone().passed


def test_fifty_cards_are_enough_on_average():
    reached = [fifty_cards(seed)[0] for seed in range(5)]
    assert sum(reached) / 5 > 0.9


def test_mistakes_stay_below_novikoffs_bound():
    for seed in range(3):
        x, t = separable(100, 0.2, Generator(seed))
        pupil = until_right(x, t)
        assert pupil.mistakes <= 2 / 0.2 ** 2
        assert pupil.accuracy(x, t) == 1.0


def test_a_lesson_changes_only_what_was_wrong():
    pupil, x = Perceptron(2), Tensor([3.0, 1.0])
    pupil.learn(x, -1)
    assert pupil.weight.tolist() == [-3.0, -1.0]
    pupil.learn(x, -1)
    assert pupil.bias.tolist() == [-1.0] and pupil.mistakes == 1


def test_no_weights_solve_exclusive_or():
    corners = Tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    answers, best, draw = Tensor([-1, 1, 1, -1]), 0.0, Generator(0)
    for _ in range(500):
        pupil = Perceptron(2)
        pupil.weight = randn(2, generator=draw)
        pupil.bias = randn(1, generator=draw)
        best = max(best, pupil.accuracy(corners, answers))
    assert best == 0.75


def test_separable_points_keep_their_distance():
    x, t = separable(100, 0.2, Generator(0))
    assert x.shape == (100, 10) and set(t.tolist()) == {-1, 1}
    lengths = x.square().sum(1)
    assert (lengths - 1).abs().max().item() < 1e-5


def test_a_report_below_its_target_fails():
    report = Report("x", "m", 0.5, 0.9, [{"seed": 0}], 1.0)
    assert not report.passed and "MISSED" in report.table()
