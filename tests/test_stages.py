"""Each chapter's tests pass with what its reader has built, no more."""

import subprocess
import sys
from pathlib import Path

import pytest

from companion.literate.source import read_book
from companion.literate.tangle import tangle
from companion.literate.write import write

TESTS = Path(__file__).parent / "chapters"
NAMES = sorted(path.stem.removeprefix("test_") for path in TESTS.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_chapter_on_its_own_stage(name, root, tmp_path):
    book = read_book(root)
    names = {c.name.replace("-", "_"): c.name for c in book.chapters}
    write(tangle(book.upto(names[name])).files, tmp_path)
    tests = f"tests/chapters/test_{name}.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", tests],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
