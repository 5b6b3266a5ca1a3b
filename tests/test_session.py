"""A session of all tests: its order, its workers, its kernels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import LONG, haste
from machines import levels, machine
from nbformat.v4 import new_code_cell, new_notebook, writes

KERNEL = {"name": "python3", "display_name": "Python 3"}
HOOKS = ("site/notebooks/conftest.py", "tests/conftest.py",
         "tests/machines.py")  # fmt: skip
WORDS = "-q --nbval --elsewhere -n 2 tests site/notebooks".split()
WHERE = """\
from pathlib import Path
import companion, numpy, matplotlib, hypothesis, ml_dtypes
assert Path(companion.__file__).parents[1].name == "site-packages"
"""
PLAYED = f"""\
import os
assert not {machine(levels()[0])}.items() - os.environ.items()
assert not os.environ["COMPANION_DATA"]
"""


@pytest.fixture
def passes(tmp_path, root):
    """Whether nbval passes a notebook of these cells, as `make test`."""
    shutil.copytree(root / "companion", tmp_path / "companion")
    for name in ("pyproject.toml", *HOOKS):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)

    def passes(*sources, **about):
        cells = [new_code_cell(text, execution_count=1) for text in sources]
        about = {"companion": about, "kernelspec": KERNEL}
        notebook = new_notebook(cells=cells, metadata=about)
        path = tmp_path / "site/notebooks/a.ipynb"
        path.write_text(writes(notebook))
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *WORDS],
            cwd=tmp_path,
            env={**os.environ, "COMPANION_MARCH": "native"},  # not noted
            capture_output=True,
            text=True,
        )
        assert run.returncode in (0, 1), run.stdout + run.stderr
        return not run.returncode

    return passes


@pytest.mark.slow
def test_a_chapter_of_the_library_imports_what_colab_has(passes):
    assert passes(WHERE, PLAYED)
    assert not passes("import pytest")


@pytest.mark.slow
def test_a_chapter_of_the_tools_imports_what_the_book_has(passes):
    assert passes("import jupyter_book, pytest", beside=True)


@pytest.mark.slow
def test_a_notebook_stays_with_one_worker(passes):
    assert passes("n = 1", *["n += 1\nassert n > 1"] * 8)


def test_what_takes_long_begins_first(root):
    places = [root / part for part in LONG if "/" in part]
    places += [root / "tests" / part for part in LONG if "/" not in part]
    assert all(place.exists() for place in places)
    short = root / "tests/test_tangle.py"
    items = [SimpleNamespace(path=Path(p)) for p in [short, *places[::-1]]]
    begin = sorted(items, key=haste)
    order = [begin[0].path.name, begin[-1].path.name]
    assert order == ["test_colab.py", "test_tangle.py"]
