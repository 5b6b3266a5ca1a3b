"""nbval runs each notebook on the finished library."""

import functools
import importlib
import os
import sys
from collections import defaultdict

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from companion.literate.execute import Room, Run, gpu_name, hashed, tagged
from companion.literate.source import read_book
from companion.literate.stage import replace_file

# To import this file, pytest has made a package of the folder `site`, in
# the place of Python's module of that name, which CuPy asks for folders.
del sys.modules["site"]
importlib.import_module("site")

PASSED = "_build/passed"  # of each notebook, what it was when it passed
done = defaultdict(set)


def pytest_addoption(parser):
    parser.addoption(
        "--changed",
        action="store_true",
        help="leave out the notebooks that have passed as they are now",
    )
    parser.addoption(
        "--untimed",
        action="store_true",
        help="play another machine: no cell waits to be alone, and no"
        " notebook is noted as passed",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    file = item.getparent(IPyNbFile)
    file.skip_compare = {*file.skip_compare, "image/svg+xml"}
    with pytest.MonkeyPatch.context() as patch:
        root = str(item.config.rootpath)
        patch.setenv("PYTHONPATH", root, prepend=os.pathsep)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A cell that takes the time has no other notebook beside it."""
    if not isinstance(item, IPyNbCell):  # xdist asks for every test
        return (yield)
    with Room(item.config.rootpath) as room:
        timed = tagged(item.cell, "timing")
        room.enter(alone=timed and not item.config.option.untimed)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A notebook has passed when its last cell has."""
    report = yield
    noted = not item.config.option.untimed
    if noted and report.when == "call" and report.passed:
        cells = done[item.path]
        cells.add(item.name)
        if len(cells) == item.parent.expected:
            root = item.config.rootpath
            path = root / PASSED / item.path.stem
            replace_file(path, key(root, item.path))
    return report


@functools.cache
def key(root, path):
    """What decides whether a notebook passes, as one hash."""
    text = path.read_text(encoding="utf-8")
    return hashed(text + Run(read_book(root), path.stem, "final").key)


def has_passed(root, path):
    """Whether a notebook has passed, and nothing has changed since."""
    passed = root / PASSED / path.stem
    return passed.exists() and passed.read_text() == key(root, path)


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
        root = config.rootpath
        left |= {i for i in cells if has_passed(root, i.path)}
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=list(left))
