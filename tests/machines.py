"""Run the book's tests and notebooks as other processors would.

    python -m tests.machines

Another machine has other instructions and another number of threads, so
its sums are rounded otherwise. Here our kernels are built for an older
level, NumPy and its BLAS are told to keep to that level too, and all
tests and notebooks must pass as ever. This plays every level below the
processor's own. `make test` plays the oldest, in `PARTS`: the tests of
the chapters and the notebooks that compute; a tool's computes nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

from numpy._core import _multiarray_umath as numpy

from companion.literate.source import read_book
from companion.native import ARM, instruction_sets

NOTEBOOKS = (
    "mnist autograd training xor kernels optimizers layers perceptron "
    "losses activations gpu"
).split()
PARTS = [
    "tests/chapters",
    *(f"site/notebooks/{name}.ipynb" for name in NOTEBOOKS),
]
CHAPTERS = read_book(Path(__file__).parents[1]).chapters
NO_TOOLS = [
    f"--ignore=tests/chapters/test_{chapter.name}.py"
    for chapter in CHAPTERS
    if chapter.beside
]
BLAS = {"x86-64-v2": "Nehalem", "x86-64-v3": "Haswell"}
PYTEST = "-m pytest -q --nbval".split()
SIDE_BY_SIDE = "-n auto --maxprocesses 4".split()


def levels():
    """What this processor can play, oldest first, without its own level."""
    older = instruction_sets()[1:]
    return (older if ARM else older[:-1]) or ["native"]


def beyond(level):
    """The features of this processor that NumPy would use above `level`."""
    has = numpy.__cpu_features__
    found = [name for name in numpy.__cpu_dispatch__ if has[name]]
    if level == "x86-64-v3":
        return [name for name in found if "V4" in name or "AVX512" in name]
    return found


def machine(level):
    """The variables that make this machine one of that level."""
    threads = "2" if level == "x86-64-v3" else "1"
    told = {
        "COMPANION_MARCH": level,
        "COMPANION_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "NPY_DISABLE_CPU_FEATURES": " ".join(beyond(level)),
    }
    if level in BLAS:
        told["OPENBLAS_CORETYPE"] = BLAS[level]
    return told


def passes(told, words):
    """Whether pytest passes on the machine of these variables."""
    print(*(f"{name}={value!r}" for name, value in told.items()), flush=True)
    command = [sys.executable, *PYTEST, *words]
    return not subprocess.run(command, env=os.environ | told).returncode


def main():
    """Play every machine; how many of them failed."""
    every = [*SIDE_BY_SIDE, "tests", "site/notebooks"]
    return sum(not passes(machine(level), every) for level in levels())


if __name__ == "__main__":
    sys.exit(main())
