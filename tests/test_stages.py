"""Each chapter's tests pass with what its reader has built, no more.

They run as if on another machine: as it is, this one has run them already,
in the book and on the finished library.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from machines import elsewhere

from companion.literate.source import read_book
from companion.literate.tangle import tangle
from companion.literate.write import write

TESTS = Path(__file__).parent / "chapters"
NAMES = sorted(path.stem.removeprefix("test_") for path in TESTS.glob("*.py"))
PYTEST = "-m pytest -q".split()
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # it begins in half the time


@pytest.fixture(scope="session")
def book(root):
    """This book, read once."""
    return read_book(root)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_chapter_on_its_own_stage(name, book, tmp_path):
    names = {c.name.replace("-", "_"): c.name for c in book.chapters}
    write(tangle(book.upto(names[name])).files, tmp_path)
    tests = f"tests/chapters/test_{name}.py"
    run = subprocess.run(
        [sys.executable, *PYTEST, tests],
        cwd=tmp_path,
        env=os.environ | elsewhere() | ALONE,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
