"""Run the book's tests and notebooks as other processors would.

    python -m tests.machines

Another machine has other instructions and another number of threads, so
its sums are rounded otherwise. Here our kernels are built for an older
level, NumPy and its BLAS are told to keep to that level too, and all
tests and notebooks must pass as ever. This plays every level that the
processor has, its own last. `make test` plays the oldest, and one without
data, where it runs again what has run on this machine as it is: the
notebooks, which the book has executed, and the chapters' tests.
"""

import os
import subprocess
import sys
from pathlib import Path

from numpy._core import _multiarray_umath as numpy

from companion.native import ARM, instruction_sets

BLAS = {"x86-64-v2": "Nehalem", "x86-64-v3": "Haswell"}
ROOT = Path(__file__).parents[1]
WITHOUT_DATA = {  # neither files, nor a way into the network
    "COMPANION_DATA": "",
    "COMPANION_CACHE": f"{ROOT}/_build/elsewhere",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "127.0.0.1,localhost",
}
PYTEST = "-m pytest -q --nbval -n auto --maxprocesses 4".split()


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


def elsewhere():
    """The variables of the oldest machine, one that has no data."""
    return machine(levels()[0]) | WITHOUT_DATA


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


def passes(told):
    """Whether every test passes on the machine of these variables."""
    print(*(f"{name}={value!r}" for name, value in told.items()), flush=True)
    command = [sys.executable, *PYTEST, "tests", "site/notebooks"]
    return not subprocess.run(command, env=os.environ | told).returncode


def main():
    """Play every machine; how many of them failed."""
    every = dict.fromkeys([*levels(), "native"])
    return sum(not passes(machine(level)) for level in every)


if __name__ == "__main__":
    sys.exit(main())
