"""nbval runs each notebook on a library of the reader's choice."""

import functools
import importlib
import os
import sys

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from companion.literate.execute import gpu_name, tagged
from companion.literate.source import read_book
from companion.literate.stage import stage

# To import this file, pytest has made a package of the folder `site`, in
# the place of Python's module of that name, which CuPy asks for folders.
del sys.modules["site"]
importlib.import_module("site")


def pytest_addoption(parser):
    parser.addoption(
        "--library",
        choices=["final", "stage"],
        default="final",
        help="run notebooks on the finished library, or on what the "
        "chapters before each one have built",
    )


@functools.cache
def library(root, choice, chapter):
    """The folder that holds the `companion` to import."""
    return root if choice == "final" else stage(read_book(root), chapter)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    file = item.getparent(IPyNbFile)
    file.skip_compare = {*file.skip_compare, "image/svg+xml"}
    notebook = file.path
    choice = item.config.option.library
    with pytest.MonkeyPatch.context() as patch:
        folder = library(item.config.rootpath, choice, notebook.stem)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        return (yield)


def pytest_collection_modifyitems(config, items):
    """Where there is no GPU, leave out the cells that need one."""
    on_gpu = [i for i in items if isinstance(i, IPyNbCell)
              and tagged(i.cell, "gpu")]  # fmt: skip
    if on_gpu and not gpu_name():
        items[:] = [item for item in items if item not in on_gpu]
        config.hook.pytest_deselected(items=on_gpu)
