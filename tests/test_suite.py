"""Verdicts and results: clocks are planted, and so are lies."""

import ast
import json
import math
import os
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from companion import suite
from companion.__main__ import main as companion_main
from companion.data import SPARE, Arrays
from companion.milestones.report import Unmeasured
from companion.suite import (
    FIELDS,
    RUNS,
    TASKS,
    Refused,
    Task,
    attempt,
    board,
    coins,
    contest,
    in_turn,
    interval,
    perform,
    publish,
    quality,
    read_result,
    rehearsal,
    verdict,
    verify,
)


class Clock:
    """A clock on which every look takes a second more than the last."""

    def __init__(self, pace=1.0):
        self.now, self.pace = 0.0, pace

    def __call__(self):
        self.now += self.pace
        return self.now


@pytest.fixture(scope="module")
def short():
    """The rehearsal with few steps, and what two clocks said of it."""
    task = replace(TASKS["rehearsal"], target=0.4, steps=60, every=20)
    TASKS["tiny"] = task
    yield [perform("tiny", Clock(pace)) for pace in (1.0, 1.5)]
    del TASKS["tiny"]


@pytest.fixture
def path(short, tmp_path):
    """An honest result in a folder."""
    publish(tmp_path / "mine.json", *short[0])
    return tmp_path / "mine.json"


def test_an_honest_result_holds(path, capsys):
    found = verify(path)
    assert found["seconds"] == 1.0 and len(found["runs"]) == RUNS
    assert found.keys() == FIELDS.keys()
    assert companion_main(["suite", "verify", str(path)]) == 0
    assert "tiny holds" in capsys.readouterr().out


def test_every_file_is_told_of(path, capsys):
    publish(path.with_name("lie.json"), json.loads(path.read_text())
            | {"seconds": 0.5}, path.with_suffix(".safetensors").read_bytes())
    files = [str(path.with_name("lie.json")), str(path)]
    assert companion_main(["suite", "verify", *files]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"{files[0]}: refused: 0.5 s is not the median")
    assert out.startswith(f"{files[1]}: tiny holds")


def test_a_result_does_not_overwrite_its_arrays(short, tmp_path):
    with pytest.raises(Refused, match="ends in .json, got x.safetensors"):
        publish(tmp_path / "x.safetensors", *short[0])
    assert not list(tmp_path.iterdir())


LIES = {
    "quality": (lambda r: r["runs"][3].update(quality=0.99), "claimed 0.99"),
    "missed": (lambda r: r["runs"][1].update(quality=0.39), "asked for 0.4"),
    "too good": (lambda r: r["runs"][1].update(quality=1.5), "1.5"),
    "nan": (lambda r: r["runs"][0].update(quality=math.nan), "no number"),
    "endless": (lambda r: r["runs"][0].update(seconds=math.inf), "no number"),
    "target": (lambda r: r.update(target=0.1), "the target of tiny"),
    "median": (lambda r: r.update(seconds=0.5), "not the median"),
    "instant": (lambda r: r["runs"][2].update(seconds=0.0), "above 0"),
    "before": (lambda r: r["runs"][2].update(seconds=-1.0), "above 0"),
    "steps": (lambda r: r["runs"][2].update(steps=0), "20, 40, … or 60"),
    "a late look": (lambda r: r["runs"][2].update(steps=80), "or 60 steps"),
    "no look": (lambda r: r["runs"][2].update(steps=21), "20, 40, … or 60"),
    "no threads": (lambda r: r.update(threads=-2), "numbers above 0"),
    "no memory": (lambda r: r.update(memory=0.0), "numbers above 0"),
    "seed": (lambda r: r["runs"][2].update(seed=7), "the seeds 0 to 5"),
    "fewer": (lambda r: r["runs"].pop(), "the seeds 0 to 5"),
    "none": (lambda r: r["runs"].clear(), "the seeds 0 to 5"),
    "data": (lambda r: r.update(data="0" * 64), "other data"),
    "arrays": (lambda r: r.update(arrays="0" * 64), "not those"),
    "task": (lambda r: r.update(task="chess"), "no task 'chess'"),
    "other task": (lambda r: r.update(task="rehearsal"), "the target of"),
    "unknown": (lambda r: r.update(note="x"), "'note' is not a field"),
    "missing": (lambda r: r.pop("date"), "'date' is missing"),
    "in a run": (lambda r: r["runs"][0].update(lr=1), "'lr' is not a field"),
    "a text": (lambda r: r.update(seconds="1.0"), "seconds is a str"),
    "a truth": (lambda r: r["runs"][0].update(seed=False), "seed is a bool"),
    "version": (lambda r: r.update(schema=2), "schema 2"),
    "no runs": (lambda r: r.update(runs=[1]), "expected an object"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_with_one_line(path, lie):
    change, words = LIES[lie]
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(Refused) as refused:
        verify(path)
    told = str(refused.value)
    assert words in told and "\n" not in told


def with_arrays(path, arrays):
    """The result with other arrays, and an honest hash of them."""
    from safetensors.numpy import save

    found = json.loads(path.read_text())
    data = arrays if isinstance(arrays, bytes) else save(arrays)
    found["arrays"] = suite.hashlib.sha256(data).hexdigest()
    publish(path, found, data)


def strange(header, data):
    """A safetensors file with a header of ours."""
    return len(header).to_bytes(8, "little") + header + data


def loaded(path):
    return suite.load_arrays(path.with_suffix(".safetensors").read_bytes())


@pytest.mark.parametrize(("change", "words"), [
    (lambda a: {**a, "2/layers.5.bias": a["2/layers.5.bias"][::-1].copy()
                * 50}, "seed 2: the weights give other answers"),
    (lambda a: {**a, "1/answers": (a["1/answers"] + 1) % 10}, "seed 1: the"),
    (lambda a: {**a, "1/answers": a["1/answers"][:9]}, "seed 1: the"),
    (lambda a: {**a, "1/answers": a["1/answers"][None]}, "seed 1: the"),
    (lambda a: {k: x for k, x in a.items() if k != "4/answers"}, "seed 4"),
    (lambda a: {k: x for k, x in a.items() if k[0] != "5"}, "seed 5"),
    (lambda a: {**a, "3/extra": np.zeros(3)}, "seed 3"),
    (lambda a: {**a, "9/answers": a["1/answers"]}, "belongs to no run"),
    (lambda a: {**a, "٣/answers": a["1/answers"]}, "belongs to no run"),
    (lambda a: {k: x * np.nan if x.dtype.kind == "f" else x
                for k, x in a.items()}, "seed 0: the weights"),
    (lambda a: {**a, "0/layers.0.weight": np.zeros((2, 2))}, "seed 0"),
    (lambda a: strange(b'{"0/answers":{"dtype":"BF16","shape":[1],'
                       b'"data_offsets":[0,2]}}', b"xx"), "seed 0|no whole"),
    (lambda a: strange(b'{"x":1}', b""), "no whole safetensors file"),
    (lambda a: (1 << 60).to_bytes(8, "little"), "no whole safetensors"),
    (lambda a: pickle.dumps(a), "no whole safetensors file"),
    (lambda a: b"", "no whole safetensors file"),
    (lambda a: a | {k.replace("0", "3", 1): x for k, x in a.items()
                    if k[0] == "0"}, "seed 3: of the answers|two runs show"),
])  # fmt: skip
def test_arrays_that_show_nothing_are_refused(path, change, words):
    with_arrays(path, change(loaded(path)))
    with pytest.raises(Refused, match=words) as refused:
        verify(path)
    assert "\n" not in str(refused.value)


def test_six_copies_of_one_run_are_refused(path):
    """Each of them holds alone: no seed but one was ever trained."""
    arrays = {k: x for k, x in loaded(path).items() if k[0] == "0"}
    found = json.loads(path.read_text())
    found["runs"] = [found["runs"][0] | {"seed": n} for n in range(RUNS)]
    path.write_text(json.dumps(found))
    with_arrays(path, {k.replace("0", str(n), 1): x for n in range(RUNS)
                       for k, x in arrays.items()})
    with pytest.raises(Refused, match="two runs show the same weights"):
        verify(path)


def test_a_field_that_is_there_twice_is_refused(path):
    text = path.read_text()
    for field in ('"seconds": 0.1', '"memory": 1e999'):
        path.write_text(text.replace("{", "{" + field + ",", 1))
        with pytest.raises(Refused, match="there twice"):
            verify(path)


def test_an_endless_memory_is_refused(path):
    """1e999 is a number to JSON, and infinite to Python."""
    found = json.loads(path.read_text()) | {"memory": 7.5}
    path.write_text(json.dumps(found).replace("7.5", "1e999"))
    with pytest.raises(Refused, match="numbers above 0"):
        verify(path)


def test_a_file_that_was_cut_off_is_refused(path):
    beside = path.with_suffix(".safetensors")
    beside.write_bytes(beside.read_bytes()[:-9])
    with pytest.raises(Refused, match="not those"):
        verify(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Refused, match="no result"):
        verify(path)


@pytest.mark.parametrize("text", [
    b"", b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b'"x"', b"1e999",
    b'{"schema": NaN}', b'{"schema": true}',
])  # fmt: skip
def test_what_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(Refused) as refused:
        read_result(tmp_path / "x.json")
    assert "\n" not in str(refused.value)


def test_places_that_hold_no_file_are_refused(path, tmp_path):
    for odd in (tmp_path, tmp_path / "gone.json"):
        with pytest.raises(Refused, match="expected a file"):
            read_result(odd)
    os.mkfifo(tmp_path / "pipe.json")  # reading it would wait for ever
    with pytest.raises(Refused, match="expected a file"):
        read_result(tmp_path / "pipe.json")
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(Refused, match="expected a file"):
        verify(path)


def test_a_name_that_cannot_be_opened_does_not_stop_the_others(path, capsys):
    odd = path.with_name(300 * "x" + ".json")
    assert companion_main(["suite", "verify", str(odd), str(path)]) == 1
    out, err = capsys.readouterr()
    assert "File name too long" in err and "tiny holds" in out
    assert [row.startswith("| tiny") for row in board([odd, path])][2]


def test_a_link_is_followed_and_its_content_judged(short, path, tmp_path):
    """A name decides nothing: a link to other weights has another hash."""
    (tmp_path / "link.json").symlink_to(path)
    beside = tmp_path / "link.safetensors"
    beside.symlink_to(path.with_suffix(".safetensors"))
    assert verify(tmp_path / "link.json")["task"] == "tiny"
    beside.unlink()
    (tmp_path / "other").write_bytes(b"weights of somebody else")
    beside.symlink_to(tmp_path / "other")
    with pytest.raises(Refused, match="not those"):
        verify(tmp_path / "link.json")


def test_an_answer_in_a_thousand_may_differ(path):
    arrays = loaded(path)
    given = arrays["0/answers"]
    assert len(given) * suite.DOUBT < 1  # so of these, not one
    rows = Arrays(np.zeros((4000, 28, 28), np.uint8),
                  np.zeros(4000, np.int64), transform=suite.grey)
    task = TASKS["tiny"]
    model = task.model()
    own = suite.answers(model, rows)
    rows.columns = rows.columns[0], suite.Tensor(own.astype(np.int64))
    state = {k: x.numpy() for k, x in model.state_dict().items()}
    for wrong, holds in ((4, True), (5, False)):
        near = own.copy()
        near[:wrong] = (near[:wrong] + 1) % 10
        run = {"seed": 0, "quality": quality(near, rows)}
        try:
            suite.check_run(task, rows, run, {**state, "answers": near})
            assert holds
        except Refused:
            assert not holds


def test_a_missed_target_leaves_no_file(tmp_path, monkeypatch, capsys):
    task = replace(TASKS["rehearsal"], target=0.99, steps=4, every=2)
    monkeypatch.setitem(TASKS, "digits", task)
    out = tmp_path / "x.json"
    assert companion_main(["suite", "run", "digits", "--out", str(out)]) == 1
    assert "asked for 0.99: no result" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "words"), [
    ("x.txt", "ends in .json"), ("folder.json", "ends in .json"),
    ("file/x.json", "file"),
])  # fmt: skip
def test_a_wrong_name_is_told_before_the_runs(
        tmp_path, monkeypatch, capsys, name, words):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(suite, "perform", lambda name: pytest.fail("ran"))
    out = str(tmp_path / name)
    assert companion_main(["suite", "run", "digits", "--out", out]) == 1
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_a_training_that_explodes_is_told(tmp_path, monkeypatch, capsys):
    task = replace(TASKS["rehearsal"], lr=1e38, steps=20, every=20)
    monkeypatch.setitem(TASKS, "digits", task)
    out = str(tmp_path / "x.json")
    assert companion_main(["suite", "run", "digits", "--out", out]) == 1
    assert capsys.readouterr().err.startswith("suite: ")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_file(tmp_path, monkeypatch, capsys):
    def pressed(model, rows):
        raise KeyboardInterrupt

    monkeypatch.setitem(TASKS, "digits", replace(
        TASKS["rehearsal"], steps=2, every=2))
    monkeypatch.setattr(suite, "answers", pressed)
    out = str(tmp_path / "x.json")
    assert companion_main(["suite", "run", "digits", "--out", out]) == 130
    assert "no result was written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_clock_is_read_twice_a_run():
    task = replace(TASKS["rehearsal"], target=0.0, steps=2, every=1)
    clock = Clock()
    row, _ = attempt(task, rehearsal(), 0, clock)
    assert clock.now == 2 and row["seconds"] == 1 and row["steps"] == 1


def test_two_files_are_compared_run_by_run(short, path, capsys):
    other = path.with_name("slow.json")
    publish(other, *short[1])
    found = contest(path, other)
    # By logarithms, whose last bit differs between instruction sets.
    assert found.word == "faster" and math.isclose(found.ratio, 1.5)
    assert companion_main(["suite", "compare", str(other), str(path)]) == 0
    assert capsys.readouterr().out.startswith("slower: ratio 0.667")
    found = json.loads(other.read_text())
    other.write_text(json.dumps(found | {"seconds": 0.1}))
    assert companion_main(["suite", "compare", str(other), str(path)]) == 1
    assert "not the median" in capsys.readouterr().err


def test_two_tasks_do_not_compare(short, path, monkeypatch):
    monkeypatch.setitem(TASKS, "same", TASKS["tiny"])
    found = json.loads(path.read_text()) | {"task": "same"}
    other = path.with_name("other.json")
    publish(other, found, path.with_suffix(".safetensors").read_bytes())
    with pytest.raises(Refused, match="two tasks, same and tiny"):
        contest(path, other)


def test_the_board_lists_what_holds_the_fastest_first(short, path, tmp_path):
    publish(tmp_path / "a.json", *short[1])
    publish(tmp_path / "lie.json", short[0][0] | {"seconds": 0.01}, b"")
    odd = short[0][0] | {"machine": "a | b <script>"}
    publish(tmp_path / "odd.json", odd, short[0][1])
    chess = short[0][0] | {"task": "<img src=x onerror=f()>"}
    publish(tmp_path / "chess.json", chess, short[0][1])
    table = board(tmp_path.glob("*.json"))
    rows = [row for row in table if row.startswith("| tiny")]
    assert ["| 1.00 |" in r for r in rows] == [True, True, False]
    assert {row.count("|") for row in rows} == {7}
    assert "<" not in "".join(table)
    assert table[-1].startswith("\n`lie.json` is not listed: 0.01 s is not")


def test_data_that_is_not_here_is_no_result(monkeypatch):
    spare = SPARE["names/names.txt"].split()
    monkeypatch.setattr(suite, "names", lambda: spare)
    with pytest.raises(Unmeasured, match=r"expected 32,033 names"):
        TASKS["names"].data()


def test_every_full_task_has_a_short_form_with_a_lower_target():
    full = {"digits", "photographs", "text", "names"}
    assert full | {f"{n}-short" for n in full} | {"rehearsal"} <= set(TASKS)
    for name in full:
        assert TASKS[f"{name}-short"].target < TASKS[name].target
        assert sum(p.size for p in TASKS[name].model().parameters()) < 50_000


@pytest.mark.needs("datasets")
@pytest.mark.slow
def test_the_results_of_the_book_hold(root):
    paths = sorted((root / "site/results").glob("*.json"))
    assert paths
    for path in paths:
        assert verify(path)["task"] in TASKS
    # The largest is of 142,000 numbers: whoever clones the book gets them.
    models = (root / "site/results").glob("*.safetensors")
    assert sum(path.stat().st_size for path in models) < 1_200_000
    assert all("not listed" not in line for line in board(paths))


def test_files_of_the_book_have_the_form_of_results(root):
    for path in (root / "site/results").glob("*.json"):
        suite.check_claims(read_result(path))


@pytest.mark.parametrize("error", [math.nan, -0.1, 1, 5])
def test_an_error_that_is_no_rate_is_refused(error):
    """By NaN, equal times were told apart; so they were by 5 (percent)."""
    with pytest.raises(ValueError, match="such as 0.05, got"):
        verdict([1, 2], [2, 1], error)


@pytest.mark.parametrize("counts", [(0, 1), (4, -1), (-1, 5)])
def test_rounds_that_are_none_are_refused(counts):
    for act in (lambda: suite.times(int, *counts),
                lambda: in_turn(int, int, *counts)):
        with pytest.raises(ValueError, match="expected 1 round or more"):
            act()


@pytest.mark.parametrize("wrong", [
    {"level": 95}, {"level": math.nan}, {"level": 0}, {"draws": 0}])
def test_an_interval_of_no_level_is_refused(wrong):
    with pytest.raises(ValueError, match="a level between 0 and 1, and 1 dr"):
        interval([1.0, 2.0], **wrong)


def test_an_interval_of_many_times_fits_into_memory():
    t = np.random.default_rng(0).exponential(size=100_000)
    tracemalloc.start()
    low, high = interval(t, draws=100)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < np.median(t) < high
    assert most < 64e6  # all draws at once would be 80 MB, twice


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_too_few_pairs_tell_nothing(n):
    assert verdict(np.ones(n), np.full(n, 9.0)).word == "cannot tell"


@pytest.mark.parametrize("error", [0.2, 0.05, 0.01])
@pytest.mark.parametrize("n", [6, 9, 20, 51])
def test_equal_programs_are_told_apart_as_seldom_as_said(n, error):
    """The exact rate: all outcomes of n coins, weighted by their number."""
    rate = sum(math.comb(n, k) for k in range(n + 1)
               if coins(k, n - k) <= error) / 2 ** n
    assert rate <= error
    assert coins(n, 0) == coins(0, n) == 2 / 2 ** n


def test_a_drift_tells_no_programs_apart():
    """A clock that becomes slower: by the coin, each is first at times."""
    rates = []
    for seed in range(200):
        ticks = iter(np.cumsum(np.cumsum(np.full(200, 1e-3)) + 1))
        pair = in_turn(lambda: None, lambda: None, 20, 0,
                       lambda ticks=ticks: next(ticks), seed)
        rates.append(verdict(*pair).word != "cannot tell")
    assert np.mean(rates) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_an_interval_is_the_same_again_and_follows_its_unit():
    t = np.random.default_rng(0).exponential(size=30)
    assert interval(t) == interval(t) == interval(list(t))
    assert np.allclose(interval(1000 * t), np.multiply(1000, interval(t)))
    low, high = interval(t)
    wide = interval(t, level=0.99)
    assert wide[0] <= low <= np.median(t) <= high <= wide[1]
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


METRICS = {"quality", "seconds", "value", "found", "right", "loss", "ours",
           "peer", "ratio", "spread", "share", "accuracy"}
VARIABLES = {"quality", "seconds", "ratio", "spread", "accuracy", "loss"}
DICE = {"random", "rand", "randn", "normal", "uniform", "default_rng",
        "randint", "choice", "integers", "exponential"}


def named_values(node):
    """(name, expression) of what a node gives a name or a key to."""
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        yield from ((k.value, v) for k, v in pairs
                    if isinstance(k, ast.Constant))
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        # Of other calls a keyword may be a limit, or what to pad with.
        if name in {"dict", "update", "replace", "_replace"} or (
                name[:1].isupper()):
            yield from ((k.arg, k.value) for k in node.keywords)
        if name in {"get", "setdefault", "pop"}:
            key, *default = node.args or [None]
            if isinstance(key, ast.Constant):
                yield from ((key.value, value) for value in default)
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id in VARIABLES:
                yield target.id, node.value
            if isinstance(target, ast.Subscript) and isinstance(
                    target.slice, ast.Constant):
                yield target.slice.value, node.value


def faults(source):
    """Metrics that are written down, or drawn, and not measured."""
    for node in ast.walk(ast.parse(source)):
        for name, value in named_values(node):
            if name not in METRICS:
                continue
            number = value.operand if isinstance(
                value, ast.UnaryOp) else value
            if isinstance(number, ast.Constant) and isinstance(
                    number.value, (int, float)):
                yield f"line {node.lineno}: {name} is written down"
            drawn = {getattr(n.func, "attr", getattr(n.func, "id", ""))
                     for n in ast.walk(value) if isinstance(n, ast.Call)}
            if drawn & DICE:
                yield f"line {node.lineno}: {name} is drawn"


RESULTS = ("suite.py", "timing.py", "benchmark.py", "profiler.py",
           "training.py", "milestones/*.py")


def test_no_metric_is_written_down_or_drawn(root):
    paths = [p for form in RESULTS for p in (root / "companion").glob(form)]
    assert len(paths) > 12
    found = [f"{p.name}: {fault}" for p in paths
             for fault in faults(p.read_text())]
    assert not found, found


@pytest.mark.parametrize("planted", [
    "row = {'quality': 0.97}", "row = dict(seconds=3)", "loss = -1.5",
    "row.update(quality=0.9)", "row = report.Report(name, value=0.9)",
    "value = row.get('value', 0.9)", "row['ratio'] = 1.2",
    "quality = 0.9 + 0.01 * np.random.rand()",
    "row = {'quality': draw.normal(0.97, 0.01)}",
])  # fmt: skip
def test_a_metric_that_is_planted_is_found(planted):
    assert list(faults(planted))


def test_a_limit_is_no_metric():
    assert not list(faults("launch(2, seconds=600); np.pad(x, 1, value=0)"))


def test_a_task_is_a_row_that_can_be_changed():
    task = Task(rehearsal, TASKS["rehearsal"].model, 0.5, 10, 5)
    assert replace(task, target=0.6) != task
    with pytest.raises(AttributeError):
        task.target = 0.6
