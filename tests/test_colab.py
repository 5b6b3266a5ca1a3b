"""The notebooks install what they need where there is only Colab's own.

Their first cell installs the library from its repository on the web; here
git is told to take the working tree instead, and nothing else is changed.
That cell is one for all chapters of the library, so one of them stands for
all, one that compiles; the tools' chapters install more. What a chapter
imports beyond that, nbval finds: it runs them all with Colab's packages.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml

from companion.literate.source import read_book

EXECUTE = "from nbclient.cli import main; main()"
COLAB = ("ipykernel", "nbclient", "numpy", "matplotlib")
ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "site" / "notebooks"
PAGES = [page for page in read_book(ROOT).chapters if page.cells]
NAMES = ["activations", *(page.name for page in PAGES if page.beside)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def colab(root, clone, bare, need):
    """What runs a notebook, and the variables it runs with."""
    need("network")
    config = yaml.safe_load((root / "_config.yml").read_text())
    python = bare(*COLAB)
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    variables = {
        **inherited,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PIP_NO_COMPILE": "1",  # what is imported is compiled then
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": config["repository"]["url"],
    }
    return [python, "-c", EXECUTE], variables


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name, colab, tmp_path):
    execute, variables = colab
    shutil.copy(NOTEBOOKS / f"{name}.ipynb", tmp_path)
    left_out = "skip-execution" if shutil.which("nvidia-smi") else "gpu"
    skip = f"--NbClientApp.skip_cells_with_tag={left_out}"
    run = subprocess.run(
        [*execute, "--timeout=600", skip, f"{name}.ipynb"],
        cwd=tmp_path, env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


def test_every_chapter_with_code_has_a_notebook():
    found = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert found == {page.name for page in PAGES}


def test_the_first_cell_is_one_for_all_but_the_tools():
    first = {page.name: first_cell(page.name) for page in PAGES}
    others = first.keys() - set(NAMES[1:])
    assert {first[name] for name in others} == {first["activations"]}


def first_cell(name):
    """The source of a notebook's first cell, which installs."""
    path = NOTEBOOKS / f"{name}.ipynb"
    return nbformat.read(path, as_version=4).cells[0].source
