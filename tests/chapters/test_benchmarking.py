# Tangled from benchmarking: edit there, `make tangle`. sha256:ba3a187573ec
from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from companion.literate import message
from companion.suite import (
    TASKS, Refused, attempt, check_run, coins, in_turn, interval, rehearsal,
    times, verdict)


def test_the_interval_covers():
    draw = np.random.default_rng(0)
    inside = [low <= 1 <= high for low, high in (
        interval(np.exp(draw.normal(0, 0.3, 25)), draws=300)
        for _ in range(400))]
    # 95 % give or take three standard deviations, and a little bias.
    assert 0.9 < np.mean(inside) < 0.985


def test_equal_programs_are_seldom_told_apart():
    draw = np.random.default_rng(0)
    for n in (1, 3, 6, 15):
        found = [verdict(*np.exp(draw.normal(0, 0.1, (2, n)))).word
                 for _ in range(400)]
        wrong = 1 - found.count("cannot tell") / 400
        assert wrong < 0.083  # 5 % and three standard deviations
        assert n >= 6 or wrong == 0


def test_a_result_that_was_changed_is_refused():
    task = replace(TASKS["rehearsal"], target=0.1, steps=20)
    rows = rehearsal()[-1]
    run, arrays = attempt(task, rehearsal(), 0)
    check_run(task, rows, run, dict(arrays))
    weights = {**arrays, "layers.5.bias": -arrays["layers.5.bias"] + 9}
    weights["layers.5.weight"] = -arrays["layers.5.weight"]
    given = {**arrays, "answers": (arrays["answers"] + 1) % 10}
    better = {**run, "quality": run["quality"] + 0.002}
    for claimed, shown, words in (
            (run, weights, "other answers"), (run, given, "other answers"),
            (better, arrays, "claimed"),
            (run, {"answers": given["answers"]}, "seed 0")):
        check = partial(check_run, task, rows, claimed, dict(shown))
        assert words in message(check, Refused)


def test_coins_are_counted_exactly():
    for n in range(1, 11):
        heads = np.array([bin(i).count("1") for i in range(2 ** n)])
        for k in range(n + 1):
            tail = min((heads <= k).mean(), (heads >= k).mean())
            assert math.isclose(coins(k, n - k), min(1, 2 * tail))
    assert coins(*np.array([100, 0])) == 2 / 2 ** 100
    assert coins(0, 0) == 1 and 0 < coins(0, 1000) < 1e-299


def test_a_coin_says_who_goes_first():
    order, ticks = [], iter(range(10_000))
    a, b = in_turn(partial(order.append, "a"), partial(order.append, "b"),
                   40, 2, lambda: next(ticks))
    firsts = order[::2]
    assert len(a) == len(b) == 40 and len(order) == 84
    assert 20 < firsts.count("a") < 64
    assert all(set(pair) == {"a", "b"} for pair in zip(firsts, order[1::2]))
    assert times(lambda: None, 3, 2, lambda: 0.0).tolist() == [0, 0, 0]


def test_times_that_are_none_are_refused():
    for act, words in (
            (lambda: verdict([], []), "finite numbers"),
            (lambda: verdict([1, math.nan], [1, 1]), "1 finite"),
            (lambda: verdict([1, 2], [1]), "got 2 and 1"),
            (lambda: verdict([1, 0.0], [1, 1]), "above 0"),
            (lambda: interval([1.0]), "2 values or more"),
            (lambda: interval([[1, 2]]), "finite numbers")):
        assert words in message(act), words
    same = verdict([1, 1, 1], [1, 1, 1])
    assert same == ("cannot tell", 1, 1, 1, 1)
    assert verdict([1.0], [2.0]).word == "cannot tell"
    six = np.ones(6)
    for one, other, word in ((1, 2, "faster"), (2, 1, "slower")):
        found = verdict(one * six, other * six)
        assert found.word == word
        assert math.isclose(found.ratio, other / one)
