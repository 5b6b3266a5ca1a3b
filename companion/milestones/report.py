# Tangled from perceptron, xor, mnist, pictures, language, serving: edit there, `make tangle`. sha256:f068096dde57  # noqa: E501
from __future__ import annotations

import argparse
import json
import operator
import platform
import signal
import time
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from companion.timing import machine
from companion.training import write_atomically


class Report(NamedTuple):
    """What a milestone reached: `value` must not be below `target`."""

    name: str
    metric: str
    value: float
    target: float
    rows: list[dict[str, Any]]
    seconds: float

    @property
    def passed(self) -> bool:
        return self.value >= self.target

    def table(self) -> str:
        """The rows, and a last line with the verdict."""
        names = list(self.rows[0])
        lines = ["  ".join(f"{n:>10}" for n in names)]
        lines += ["  ".join(f"{row[n]:>10}" for n in names)
                  for row in self.rows]
        verdict = "reached" if self.passed else "MISSED"
        return "\n".join([*lines, f"{self.metric}: {self.value:.4f}, "
                          f"target {self.target}: {verdict} "
                          f"in {self.seconds:.1f} s"])


def run(year: str, folder: Path) -> Report:
    """Run one milestone and leave its report as JSON in `folder`."""
    report: Report = import_module(MILESTONES[year]).milestone()
    found = report._asdict() | {
        "passed": report.passed, "machine": machine(),
        "python": platform.python_version(),
        "date": date.today().isoformat()}
    write_atomically(folder / f"{year}.json",
                     (json.dumps(found, indent=1) + "\n").encode())
    return report


def main(argv: list[str]) -> int:
    """Run milestones; exit with 1 if any is below its target."""
    parser = argparse.ArgumentParser(prog="python -m companion milestone")
    parser.add_argument("year", choices=[*MILESTONES, "all"])
    parser.add_argument("--out", default="_build/milestones", type=Path)
    options = parser.parse_args(argv)
    years = list(MILESTONES) if options.year == "all" else [options.year]
    results = []
    for year in years:
        try:
            results.append(reached(year, options.out))
        except KeyboardInterrupt:
            print(f"\n{year} stopped: no report on it was written")
            return 128 + signal.SIGINT  # as every program that Ctrl-C ends
    return 0 if all(results) else 1


class Unmeasured(RuntimeError):
    """The data for a verdict is missing: says how to get it."""


def reached(year: str, folder: Path) -> bool:
    """Run a milestone and print what it says; whether it is reached."""
    try:
        report = run(year, folder)
    except Unmeasured as error:
        print(f"{year} NOT MEASURED: {error}")
        return False
    print(f"{year} {report.name}\n{report.table()}")
    return report.passed


HOLDS = {"≥": operator.ge, "≤": operator.le}


def judged(task: str, found: float, sign: str, asked: float,
           start: float) -> dict[str, Any]:
    """A row of a report: what was found, and whether it is enough."""
    return {"task": task, "found": round(found, 4),
            "asked": f"{sign} {asked}",
            "done": "yes" if HOLDS[sign](found, asked) else "no",
            "seconds": round(time.perf_counter() - start, 1)}


def tasks_done(name: str, rows: list[dict[str, Any]]) -> Report:
    """The report on several tasks: all of them have to be done."""
    done = [row["done"] == "yes" for row in rows]
    return Report(name, "share of tasks done", sum(done) / len(done), 1.0,
                  rows, sum(row["seconds"] for row in rows))


MILESTONES = {
    "1957": "companion.milestones.perceptron",
    "1969": "companion.milestones.xor",
    "1986": "companion.milestones.mnist",
    "1998": "companion.milestones.pictures",
    "2017": "companion.milestones.language",
    "2024": "companion.milestones.serving",
}
