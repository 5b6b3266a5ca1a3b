# Tangled from perceptron: edit there, `make tangle`. sha256:5b46df1b1dec
from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from companion.timing import machine


# chapters/tensors/perceptron.md:294
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


# chapters/tensors/perceptron.md:323
MILESTONES = {"1957": "companion.milestones.perceptron"}


# chapters/tensors/perceptron.md:326
def run(year: str, folder: Path) -> Report:
    """Run one milestone and leave its report as JSON in `folder`."""
    report: Report = import_module(MILESTONES[year]).milestone()
    found = report._asdict() | {
        "passed": report.passed, "machine": machine(),
        "python": platform.python_version(),
        "date": date.today().isoformat()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{year}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return report


# chapters/tensors/perceptron.md:339
def main(argv: list[str]) -> int:
    """Run milestones; exit with 1 if any is below its target."""
    parser = argparse.ArgumentParser(prog="companion milestone")
    parser.add_argument("year", choices=[*MILESTONES, "all"])
    parser.add_argument("--out", default="_build/milestones", type=Path)
    options = parser.parse_args(argv)
    years = list(MILESTONES) if options.year == "all" else [options.year]
    missed = 0
    for year in years:
        report = run(year, options.out)
        print(f"{year} {report.name}\n{report.table()}")
        missed += not report.passed
    return 1 if missed else 0
