"""Run the book's tests and notebooks as other processors would.

    python -m tests.machines [--all]

Another machine has other instructions and another number of threads, so
its sums are rounded otherwise. Here our kernels are built for an older
level, NumPy and its BLAS are told to keep to that level too, and the
tests of the chapters and the notebooks that compute must pass as ever.
The oldest level is played in the notebooks below; `--all` plays every
level below this processor's own, in all tests and all notebooks.
"""

import argparse
import os
import subprocess
import sys

from numpy._core import _multiarray_umath as numpy

from companion.native import ARM, instruction_sets

NOTEBOOKS = (
    "activations autograd gpu kernels layers losses mnist optimizers "
    "perceptron training xor"
).split()
BLAS = {"x86-64-v2": "Nehalem", "x86-64-v3": "Haswell"}
PYTEST = (
    "-m pytest -q --nbval --untimed -n auto --maxprocesses 4 --dist loadfile"
).split()


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


def passes(told, paths):
    """Whether the tests pass on the machine of these variables."""
    print(*(f"{name}={value!r}" for name, value in told.items()), flush=True)
    command = [sys.executable, *PYTEST, *paths]
    return not subprocess.run(command, env=os.environ | told).returncode


def main():
    """Play the machines; how many of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true")
    every = parser.parse_args().all
    some = [f"site/notebooks/{name}.ipynb" for name in NOTEBOOKS]
    paths = ["tests", "site/notebooks"] if every else ["tests/chapters", *some]
    played = levels() if every else levels()[:1]
    return sum(not passes(machine(level), paths) for level in played)


if __name__ == "__main__":
    sys.exit(main())
