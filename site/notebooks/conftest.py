"""nbval runs each notebook on the finished library, as Colab would.

With `--elsewhere`, as if on another machine, with an older processor and
without data: there they have to say what they said here.
"""

import functools
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
import venv
from collections import defaultdict
from importlib.metadata import distribution
from pathlib import Path

import pytest
from machines import elsewhere
from nbval.plugin import IPyNbCell, IPyNbFile

from companion.literate.execute import (
    Run,
    gpu_name,
    hashed,
    needed,
    tagged,
)
from companion.literate.source import read_book
from companion.literate.stage import replace_file

# To import this file, pytest has made a package of the folder `site`, in
# the place of Python's module of that name, which CuPy asks for folders.
del sys.modules["site"]
importlib.import_module("site")

PASSED = "_build/passed"  # of each notebook, what it was when it passed
COLAB = "numpy matplotlib ipykernel hypothesis".split()
done = defaultdict(set)


def pytest_addoption(parser):
    parser.addoption(
        "--changed",
        action="store_true",
        help="leave out the notebooks that have passed as they are now",
    )
    parser.addoption(
        "--elsewhere",
        action="store_true",
        help="run as on an older processor, without data",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    file = item.getparent(IPyNbFile)
    file.skip_compare = {*file.skip_compare, "image/svg+xml"}
    variables = place(item.config.rootpath, file.nb) | played(item.config)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return (yield)


def played(config):
    """The variables of the machine that is played, if one is."""
    return elsewhere() if config.option.elsewhere else {}


def place(root, notebook):
    """The variables by which a notebook's kernel finds the library."""
    if notebook.metadata["companion"].get("beside"):  # a tool's
        return {"PYTHONPATH": str(root)}
    return {"PYTHONPATH": "", "JUPYTER_PATH": as_on_colab(root).name}


@functools.cache
def as_on_colab(root):
    """A folder with a kernel that can import what Colab's can, no more.

    That is the library, out of the repository's sight, with what it
    needs, what else the first cell installs, and what Colab brings.
    """
    folder = tempfile.TemporaryDirectory()
    venv.create(folder.name)
    (packages,) = Path(folder.name).glob("lib/python*/site-packages")
    shutil.copytree(root / "companion", packages / "companion")
    for package, found in needed(colab_packages(root)).items():
        if found != package:  # else it is absent: another system's
            link(distribution(package), packages)
    python = f"{folder.name}/bin/python"
    command = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Colab", "language": "python"}
    kernel = Path(folder.name, "kernels", "python3")
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return folder


def colab_packages(root):
    """What Colab brings, and what a notebook's first cell installs."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    lines = project["dependencies"] + COLAB
    if gpu_name():  # which Colab's machines have with all it needs
        lines += project["optional-dependencies"]["gpu"]
    return {re.match(r"[\w.-]+", line)[0] for line in lines}


def link(package, folder):
    """Make a package importable from another folder too."""
    for name in {file.parts[0] for file in package.files}:
        target = folder / name
        if name not in ("..", "__pycache__") and not target.exists():
            target.symlink_to(package.locate_file(name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A notebook has passed when its last cell has, on this machine."""
    report = yield
    told = "COMPANION_MARCH" in os.environ  # to be another than this
    if not told and report.when == "call" and report.passed:
        cells = done[item.path]
        cells.add(item.name)
        if len(cells) == item.parent.expected:
            passed = item.config.rootpath / PASSED / item.path.stem
            replace_file(passed, key(item.config, item.path))
    return report


@functools.cache
def key(config, path):
    """What decides whether a notebook passes, as one hash."""
    run = Run(read_book(config.rootpath), path.stem, "final")
    text = path.read_text(encoding="utf-8")
    return hashed(f"{text}{run.key}{played(config)}")


def has_passed(config, path):
    """Whether a notebook has passed, and nothing has changed since."""
    passed = config.rootpath / PASSED / path.stem
    return passed.exists() and passed.read_text() == key(config, path)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leave out what has passed, and what needs a GPU that is not here."""
    cells = [item for item in items if isinstance(item, IPyNbCell)]
    gpu = bool(cells) and gpu_name()
    left = {i for i in cells if not gpu and tagged(i.cell, "gpu")}
    for item in cells:
        running = [i for i in cells if i.path == item.path and i not in left]
        item.parent.expected = len(running)
    if config.option.changed:
        left |= {i for i in cells if has_passed(config, i.path)}
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))
