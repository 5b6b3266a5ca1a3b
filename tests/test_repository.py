"""The repository says each thing once, or says it everywhere alike."""

import builtins
import re
import subprocess
import sys
import tokenize
import tomllib

import pytest
import yaml

import companion
from companion import EXPORTS
from companion.literate.source import read_book
from companion.literate.weave import imports_only

GENERATED = ("companion/tensor/__init__.py", "companion/literate/tangle.py",
             "companion/kernels/sgemm.c", "tests/chapters/test_arrays.py",
             "site/notebooks/arrays.ipynb")  # fmt: skip
WRITTEN = ("chapters/tensors/arrays.md", "tests/conftest.py", "Makefile")


@pytest.fixture(scope="session")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="session")
def config(root):
    return yaml.safe_load((root / "_config.yml").read_text())


@pytest.fixture(scope="session")
def pins(root):
    """Every requirement as (name, version, marker)."""
    text = (root / "requirements.txt").read_text()
    lines = [x for x in text.splitlines() if x and not x.startswith("#")]
    form = r"([\w.-]+)==([\w.]+)(?:; (.+))?"
    return [re.fullmatch(form, line).groups() for line in lines]


def same(name):
    return re.sub("[-_.]+", "-", name.lower())


def test_every_requirement_is_pinned_once(pins):
    names = [same(name) for name, _, _ in pins]
    assert len(names) == len(set(names))


def test_everything_the_package_asks_for_is_pinned(project, pins):
    pinned = {same(name) for name, _, _ in pins}
    extras = project["optional-dependencies"].values()
    asked = sum(extras, project["dependencies"])
    names = {same(re.match(r"[\w.-]+", line)[0]) for line in asked}
    assert names <= pinned


def test_cuda_is_only_for_machines_that_can_have_it(pins):
    markers = {same(name): marker for name, _, marker in pins}
    assert markers["cupy-cuda12x"] == (
        'platform_system == "Linux" and platform_machine == "x86_64"'
    )


def test_one_version(root, project):
    import companion

    cited = yaml.safe_load((root / "CITATION.cff").read_text())
    assert companion.__version__ == project["version"] == cited["version"]


def test_one_address(root, config):
    cited = yaml.safe_load((root / "CITATION.cff").read_text())
    url = config["repository"]["url"]
    assert cited["repository-code"] == url
    hosted = r"https://github\.com/[\w-]+/[\w-]+"
    for page in ("README.md", "CONTRIBUTING.md", "pyproject.toml"):
        found = set(re.findall(hosted, (root / page).read_text()))
        assert found <= {url}, page


def test_generated_files_are_marked(root):
    marked = attribute(root, "linguist-generated", *GENERATED, *WRITTEN)
    assert marked == ["true"] * len(GENERATED) + ["unspecified"] * len(WRITTEN)


def attribute(root, name, *paths):
    out = subprocess.check_output(
        ["git", "check-attr", name, *paths], cwd=root, text=True
    )
    return [line.rsplit(": ", 1)[1] for line in out.splitlines()]


@pytest.mark.parametrize("folder", ["companion", "tests/chapters"])
def test_generated_files_say_so(root, folder):
    files = sorted((root / folder).rglob("*"))
    sources = [x for x in files if x.suffix in {".py", ".c", ".cu", ".h"}]
    assert sources
    for file in sources:
        first = file.read_text(encoding="utf-8").split("\n", 1)[0]
        assert "make tangle" in first, file


def test_make_lists_the_verbs(root):
    out = subprocess.check_output(["make"], cwd=root, text=True)
    listed = re.findall(r"^  make (\w+) +\S", out, re.M)
    makefile = (root / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)", makefile, re.M)[1].split()
    assert listed == phony


def test_workflows_run_the_same_commands(root):
    steps = {
        path.stem: [
            step.get("run")
            for job in yaml.safe_load(path.read_text())["jobs"].values()
            for step in job["steps"]
        ]
        for path in (root / ".github" / "workflows").glob("*.yml")
    }
    assert "bash .ci/run" in steps["ci"]
    assert "make book" in steps["pages"]


CHECKS = ["mypy"], ["ruff", "check"], ["companion", "lint"]


@pytest.mark.parametrize("tool", CHECKS)
def test_types_and_style(root, tool):
    run = subprocess.run(
        [sys.executable, "-m", *tool], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_star_brings_every_public_name_that_python_lacks():
    names: dict[str, object] = {}
    exec("from companion import *; total = sum([1, 2])", names)
    assert EXPORTS and names["total"] == 3
    assert set(EXPORTS) - set(names) <= set(dir(builtins))


def test_a_slip_is_answered_by_the_nearest_words():
    with pytest.raises(AttributeError, match="no LayrNorm.*: LayerNorm"):
        companion.LayrNorm  # noqa: B018
    with pytest.raises(AttributeError, match="no qqq.*: Tensor"):
        companion.qqq  # noqa: B018


def test_no_compiled_code_changes_the_process(root):
    """Code linked with these flags flushes small numbers, in all threads."""
    flag = re.compile(r"-(ffast-math|Ofast|funsafe-math-optimizations)\b")
    for page in (root / "chapters").rglob("*.md"):
        magics = re.findall(r"(?m)^%%(?:c|cuda) .*", page.read_text())
        assert not list(filter(flag.search, magics)), page
    for module in (root / "companion").rglob("*.py"):
        with module.open("rb") as file:
            tokens = list(tokenize.tokenize(file.readline))
        for token in tokens:
            said = token.type != tokenize.COMMENT and flag.search(token.string)
            assert not said, f"{module}:{token.start[0]}"


def test_import_lists_are_folded(root):
    """A reader came for the first idea, and not for forty names."""
    lists = [cell for chapter in read_book(root).chapters
             for cell in chapter.cells
             if cell.language == "python"
             and cell.source.count("\n") > 3 and imports_only(cell.source)]
    folded = {"hide-cell", "remove-cell"}
    assert len(lists) > 20
    assert [(c.path, c.line) for c in lists if not folded & {*c.tags}] == []
