"""nbval runs each notebook on a library of the reader's choice."""

import functools
import os

import pytest
from nbval.plugin import IPyNbFile

from companion.literate.source import read_book
from companion.literate.stage import stage


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
    notebook = item.getparent(IPyNbFile).path
    choice = item.config.option.library
    with pytest.MonkeyPatch.context() as patch:
        folder = library(item.config.rootpath, choice, notebook.stem)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        return (yield)
