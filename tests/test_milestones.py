"""Milestones from the command line: a report, and an exit status."""

import json

import pytest

from companion.milestones import report


def test_the_command_writes_its_result(tmp_path, capsys):
    assert report.main(["1957", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "1957.json").read_text())
    assert found["passed"] and found["value"] >= found["target"]
    assert "reached" in capsys.readouterr().out


def test_a_missed_target_is_an_exit_status(tmp_path, monkeypatch, capsys):
    low = report.Report("perceptron", "m", 0.5, 0.9, [{"seed": 0}], 1.0)
    monkeypatch.setattr("companion.milestones.perceptron.milestone",
                        lambda: low)
    assert report.main(["1957", "--out", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_an_unknown_year_names_those_there_are(capsys):
    with pytest.raises(SystemExit):
        report.main(["1900"])
    assert "1957" in capsys.readouterr().err
