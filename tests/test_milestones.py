"""Milestones from the command line: a report, and an exit status."""

import functools
import json
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest

from companion.literate.execute import code_cells, execute
from companion.literate.source import read_book
from companion.milestones import gpt_bench, mlp_bench, mnist, report
from companion.timing import BENCHES
from companion.transformer import CONFIGS

YEARS = list(report.MILESTONES)
KEYS = {"name", "metric", "value", "target", "rows", "seconds", "passed",
        "machine", "python", "date"}
LINE = {"bench", "case", "threads", "unit", "ours", "peer", "peer_name",
        "ratio", "spread", "limit_fraction", "machine", "versions", "date"}


def low(_year=None):
    return report.Report("any", "m", 0.5, 0.9, [{"seed": 0}], 1.0)


def high():
    return low()._replace(value=0.95)


def pretend(monkeypatch, **results):
    """Let the milestones of some years return, or raise, what is given."""
    for year in YEARS:
        found = results.get(f"y{year}", high)
        monkeypatch.setattr(f"{report.MILESTONES[year]}.milestone", found)


@pytest.mark.parametrize("year", ["1957", "1969"])
def test_the_command_writes_its_result(year, tmp_path, capsys):
    assert report.main([year, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"{year}.json").read_text())
    assert set(found) == KEYS
    assert found["passed"] and found["value"] >= found["target"]
    assert "reached" in capsys.readouterr().out


@pytest.mark.parametrize("year", YEARS)
def test_every_milestone_has_a_page_and_is_on_it(year, root):
    name = report.MILESTONES[year].rsplit(".", 1)[1]
    (page,) = root.glob(f"chapters/*/{name}.md")
    text = page.read_text()
    assert f"# Milestone {year}: " in text
    assert f"  module: milestones/{name}.py\n" in text
    assert page.relative_to(root).with_suffix("").as_posix() in (
        root / "_toc.yml").read_text()


@pytest.mark.parametrize("year", YEARS)
def test_a_missed_target_is_an_exit_status(year, tmp_path, monkeypatch,
                                           capsys):
    pretend(monkeypatch, **{f"y{year}": low})
    assert report.main([year, "--out", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out
    assert not json.loads((tmp_path / f"{year}.json").read_text())["passed"]


def test_one_miss_among_all_is_a_miss_and_the_others_still_run(
        tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, y1957=low)
    assert report.main(["all", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("MISSED") == 1
    assert shown.count("reached") == len(YEARS) - 1
    assert {p.stem for p in tmp_path.iterdir()} == set(YEARS)
    pretend(monkeypatch)
    assert report.main(["all", "--out", str(tmp_path)]) == 0


def test_drawn_digits_earn_no_verdict(tmp_path, monkeypatch, capsys):
    def drawn(split="train"):
        return mnist.Arrays([0], source="drawn")

    monkeypatch.setattr(mnist, "mnist", drawn)
    assert report.main(["1986", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "NOT MEASURED" in shown and "COMPANION_DATA" in shown
    assert not list(tmp_path.iterdir())


def test_an_unknown_year_names_those_there_are(capsys):
    with pytest.raises(SystemExit):
        report.main(["1900"])
    shown = capsys.readouterr().err
    assert all(year in shown for year in YEARS)


def interrupted():
    raise KeyboardInterrupt


def test_an_interrupted_run_leaves_what_was_there(tmp_path, monkeypatch):
    pretend(monkeypatch)
    report.main(["1969", "--out", str(tmp_path)])
    before = (tmp_path / "1969.json").read_text()
    pretend(monkeypatch, y1969=interrupted)
    assert report.main(["1969", "--out", str(tmp_path)]) == 130
    assert (tmp_path / "1969.json").read_text() == before


@pytest.mark.parametrize("stop", ["fsync", "replace"])
def test_an_interrupted_write_leaves_what_was_there(stop, tmp_path,
                                                    monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    pretend(monkeypatch)
    report.main(["1969", "--out", str(tmp_path)])
    before = (tmp_path / "1969.json").read_text()
    pretend(monkeypatch, y1969=low)
    monkeypatch.setattr(os, stop, stopped)
    assert report.main(["1969", "--out", str(tmp_path)]) == 130
    assert (tmp_path / "1969.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["1969.json"]


@pytest.fixture
def real():
    """Skips where the digits would be drawn."""
    if mnist.mnist("test").source != "MNIST":
        pytest.skip("needs network: connect, or set COMPANION_DATA")


@pytest.mark.slow
def test_real_digits_are_read(real, tmp_path, monkeypatch):
    """An epoch of the three that the page has run."""
    short = functools.partial(mnist.study, epochs=1)
    monkeypatch.setattr(mnist, "study", short)
    status = report.main(["1986", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "1986.json").read_text())
    assert status == (found["value"] < found["target"])
    assert found["value"] > 0.9
    assert [row["epoch"] for row in found["rows"]] == [1]


@pytest.mark.slow
def test_real_digits_are_read_on_the_page(real, root):
    ran = code_cells(execute(read_book(root), "mnist"))
    (cell,) = [c for c in ran if "= study(x_train, x_test)" in c.source]
    rows = re.findall(r"(?m)^ +(\d) +0.\d+ +(0.\d+) ", cell.outputs[0].text)
    assert [int(epoch) for epoch, _ in rows] == [1, 2, 3]
    assert float(rows[-1][1]) >= 0.975


@pytest.mark.slow
def test_the_command_exits_with_the_status(root, tmp_path):
    code = ("import sys; import companion.milestones.perceptron as m; "
            "from companion.milestones import report; "
            "m.milestone = lambda: report.Report('x', 'm', 0.5, 0.9, "
            "[{'seed': 0}], 1.0); from companion.__main__ import main; "
            "sys.exit(main(['milestone', '1957', '--out', sys.argv[1]]))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)],
                          cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "MISSED" in done.stdout


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_all_three_networks_of_the_bench_are_the_same():
    given = mlp_bench.task()
    losses = [mlp_bench.epoch(make(*given), 20)() for make in (
        mlp_bench.ours, mlp_bench.torchs, mlp_bench.by_hand)]
    for other in losses[1:]:
        assert losses[0] == pytest.approx(other, rel=1e-4)


def test_the_bench_is_in_the_table_of_benches():
    assert import_module(BENCHES["mlp"]) is mlp_bench


@pytest.mark.slow
def test_a_line_of_the_bench_has_all_its_fields(monkeypatch):
    monkeypatch.setattr(mlp_bench, "PEERS", {"numpy": mlp_bench.by_hand})
    (found,) = mlp_bench.bench(threads=1, quick=True)
    assert set(found) == LINE
    assert found["ours"] > 0 and found["ratio"] > 0
    assert 0 < found["limit_fraction"] < 1
    assert json.loads(json.dumps(found)) == found


def test_a_missing_peer_is_named_and_not_guessed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = mlp_bench.race("torch", threads=1, quick=True)
    assert set(found.values()) == {None} and set(found) < LINE


def test_damaged_digits_earn_no_verdict(tmp_path, monkeypatch, capsys):
    (tmp_path / "mnist").mkdir()
    for name in mnist_files():
        (tmp_path / "mnist" / name).write_bytes(b"<html>")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    out = tmp_path / "out"
    assert report.main(["1986", "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "1986 NOT MEASURED" in shown and "no gzip file" in shown


def mnist_files():
    """The names under which MNIST's files are looked for."""
    return [
        f"{part}-{kind}-ubyte.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]


def test_the_verdict_of_1986_is_on_the_test_pictures(monkeypatch):
    sets = {s: mnist.Arrays([0], source=s) for s in ("train", "test")}
    monkeypatch.setattr(mnist, "mnist", sets.get)
    for name in ("genuine", "pixels"):
        monkeypatch.setattr(mnist, name, lambda data: data)
    asked = []

    def study(*data, **options):
        asked.extend([d.source for d in data])
        return None, [{"right": 0.97, "seconds": 1.0}]

    monkeypatch.setattr(mnist, "study", study)
    assert mnist.milestone().passed and asked == ["train", "test"]


def test_the_command_knows_every_bench_of_the_chapters(root):
    """In a process that has imported nothing else."""
    pages = "".join(
        page.read_text(encoding="utf-8")
        for page in sorted((root / "chapters").rglob("*.md"))
    )
    named = set(re.findall(r'^BENCHES\["(\w+)"\]', pages, re.M))
    code = "from companion.timing import BENCHES; print(*BENCHES)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"capture", "conv"} <= named <= set(run.stdout.split())


@pytest.mark.needs("torch")
def test_a_gpt_that_does_not_compile_is_said(monkeypatch):
    def nothing(*_, **__):
        raise RuntimeError("no compiler")
    monkeypatch.setattr(gpt_bench, "compare", nothing)
    found = gpt_bench.race(CONFIGS["cpu"], 1, True, True)
    assert found["ratio"] is None and "no compiler" in found["refused"]
    with pytest.raises(RuntimeError):
        gpt_bench.race(CONFIGS["cpu"], 1, True, False)


def test_a_race_without_a_peer_is_no_race(monkeypatch):
    monkeypatch.setattr(gpt_bench.importlib.util, "find_spec", lambda _: None)
    assert gpt_bench.race(CONFIGS["cpu"], 1, True, False)["ratio"] is None
