"""Every gate can fail: a fault is planted, and its one line expected."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_book import cell as cell_of, page
from test_links import Page, dead_links, unlabelled_images

from companion.__main__ import main

ARRAYS = "chapters/tensors/arrays.md"
ONE_PAGE = """\
format: jb-book
root: intro
chapters:
- file: chapters/tensors/arrays
"""
BUILD = "from jupyter_book.cli.main import main; main()"
SKIPPING = """
import pytest

@pytest.mark.needs("moon")
def test_moon():
    raise AssertionError("never runs")

def test_import():
    pytest.importorskip("a_module_that_nobody_has")
"""

SHARING = """
import os

def test_share():
    share = max(1, (os.cpu_count() or 1) // 2)
    assert os.environ["COMPANION_THREADS"] == str(share)
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7", "said by the user"
"""


@pytest.fixture
def book(clone, tmp_path, monkeypatch):
    """A copy of the repository to plant faults in, and to stand in."""
    monkeypatch.chdir(shutil.copytree(clone, tmp_path / "book"))
    return Path.cwd()


@pytest.fixture
def companion(book, capfd):
    """A command's (status, what it printed); what it has read is kept."""

    def command(*words):
        status = main([*words])
        return status, "".join(capfd.readouterr())

    return command


def run(book, *words, **options):
    """Run Python in the book's folder: (status, what it printed)."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=book, text=True, check=False, **options,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def first_cell(text):
    """The line at which a chapter's first code cell begins, from 0."""
    lines = text.split("\n")
    return next(n for n, x in enumerate(lines) if "{code-cell}" in x)


def plant(path, *lines, at=None):
    """Insert lines into a chapter, before its first code cell."""
    text = path.read_text().split("\n")
    at = first_cell(path.read_text()) if at is None else at
    text[at:at] = lines
    path.write_text("\n".join(text))
    return at + 1


def cell(*code, tags=""):
    """The lines of a code cell."""
    return "```{code-cell} python", f":tags: [{tags}]", "", *code, "```", ""


@pytest.mark.slow
def test_a_chapter_that_uses_a_later_name(book, companion):
    line = plant(book / ARRAYS, *cell("from companion.tensor import Tensor"))
    status, told = companion("execute", "arrays")
    assert status == 1
    forecast, _, told = told.partition("\n")
    assert forecast.startswith("1 of 1 chapters to execute")
    assert told.startswith(f"{ARRAYS}:{line + 3}: ModuleNotFoundError: ")


@pytest.mark.slow
def test_a_library_that_uses_a_name_of_nowhere(book, companion):
    code = ["def early():", "    return Tensorial"]
    line = plant(book / ARRAYS, *cell(*code, tags="tangle"))
    status, told = companion("tangle")
    assert status == 1
    assert told.startswith(f"{ARRAYS}:{line + 4}: ")
    assert "Tensorial" in told


@pytest.mark.slow
def test_a_library_that_was_edited_by_hand(book, companion):
    module = book / "companion" / "view.py"
    module.write_text(module.read_text() + "\nEDITED = True\n")
    line = len(module.read_text().splitlines())
    for words in (["--check"], []):
        status, told = companion("tangle", *words)
        assert status == 1
        assert f"companion/view.py:{line}" in told
    assert module.read_text().endswith("EDITED = True\n")


@pytest.mark.slow
def test_a_chapter_that_was_not_tangled(book, companion):
    plant(book / ARRAYS, *cell("LATE = True", tags="tangle"))
    status, told = companion("tangle", "--check")
    assert status == 1
    assert "companion/view.py" in told


@pytest.mark.slow
def test_a_record_that_is_stale(book, companion):
    plant(book / ARRAYS, *cell("print('new')"))
    status, told = companion("notebook", "--check")
    assert status == 1
    assert "site/notebooks/arrays.ipynb" in told


@pytest.mark.slow
def test_an_output_that_changed(book, root):
    path = book / "site" / "notebooks" / "arrays.ipynb"
    notebook = json.loads(path.read_text())
    spoil(notebook)
    path.write_text(json.dumps(notebook))
    for kept in ("bare", "executed"):
        shutil.copytree(root / "_build" / kept, book / "_build" / kept)
    words = ["tests/test_record.py", "-m", "", "-k", "run_said and arrays"]
    status, told = run(book, "-m", "pytest", "-q", *words)
    assert status == 1
    assert "what nobody prints" in told


def spoil(notebook):
    """Change the first text that a notebook prints."""
    for code in notebook["cells"]:
        for output in code.get("outputs", []):
            if output.get("name") == "stdout":
                output["text"] = ["what nobody prints\n"]
                return
    raise AssertionError("the notebook prints nothing")


@pytest.mark.slow
def test_an_image_without_words(book, companion):
    line = plant(book / ARRAYS, "![](strides.svg)", "")
    status, told = companion("lint")
    assert status == 1
    assert re.search(rf"^{ARRAYS}:{line}: .*alt", told, re.M)


@pytest.mark.slow
def test_a_reference_that_leads_nowhere(book):
    """A book of one page is built as ours is, and all that stands in it."""
    path = book / ARRAYS
    (book / "_toc.yml").write_text(ONE_PAGE)
    (book / "intro.md").write_text("# A book\n")
    for other in {*(book / "chapters").rglob("*.md")} - {path}:
        other.unlink()
    text = page("arrays", cell_of("def one(): ...", "tangle"))
    path.write_text(text.replace("---\n#", "---\n\n#"))  # as our chapters
    words = ["build", ".", "-W", "-n", "--keep-going"]
    status, told = run(book, "-c", BUILD, *words)
    assert status == 0, told
    line = plant(path, "See [this](#no-such-place).", "")
    status, told = run(book, "-c", BUILD, *words)
    assert status != 0
    assert re.search(rf"{ARRAYS}:{line}: .*no-such-place", told)


@pytest.mark.slow
def test_faults_in_the_built_site(site, tmp_path):
    copy = Path(shutil.copytree(site, tmp_path / "html")).resolve()
    page = copy / "chapters" / "tensors" / "arrays.html"
    fault = '<main id="planted"><a href="gone.html">x</a><img src="x.svg">'
    page.write_text(page.read_text().replace("<main", fault + "<main", 1))
    pages = {page: Page(page.read_text())}  # no other has changed
    dead, broken = dead_links(copy, pages)
    (unlabelled,) = unlabelled_images(copy, pages)
    assert dead.startswith("chapters/tensors/arrays.html:")
    assert dead.endswith(": gone.html")
    assert broken.endswith(": x.svg") and unlabelled.endswith(": x.svg")


@pytest.mark.parametrize(
    ("variables", "outcome"),
    [({"CI": "true"}, "1 failed, 1 error"), ({}, "2 skipped")],
)
def test_a_tool_that_is_missing(root, tmp_path, variables, outcome):
    text = (root / "tests" / "conftest.py").read_text()
    moon = 'TOOLS = {\n    "moon": (lambda: None, "look up"),'
    (tmp_path / "conftest.py").write_text(text.replace("TOOLS = {", moon))
    (tmp_path / "test_skips.py").write_text(SKIPPING)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers = needs(tool): x\n"
    )
    _, told = run(tmp_path, "-m", "pytest", "-rsf", env=variables)
    assert outcome in told
    assert "needs moon: look up" in told


@pytest.mark.slow
@pytest.mark.parametrize("tool", [["mypy"], ["ruff", "check"]])
def test_types_and_style(book, tool):
    faulty = "import os\n\n\ndef f(x: int) -> str:\n    return x\n"
    shutil.rmtree(book / "companion")  # which has passed, and takes long
    (book / "companion").mkdir()
    (book / "companion" / "faulty.py").write_text(faulty)
    status, told = run(book, "-m", *tool)
    assert status == 1
    assert "faulty.py" in told


def test_workers_share_the_processors(book):
    (book / "tests/test_share.py").write_text(SHARING)
    env = {k: v for k, v in os.environ.items() if k != "COMPANION_THREADS"}
    status, told = run(
        book, "-m", "pytest", "-q", "-n", "2", "tests/test_share.py",
        env=env | {"OPENBLAS_NUM_THREADS": "7"})  # fmt: skip
    assert status == 0, told
