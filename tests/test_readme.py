"""What README and CONTRIBUTING tell people to type is what works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

NEWCOMER = ["make book", "make test"]


def blocks(text, language):
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(text):
    """Every line of the `sh` blocks."""
    return "".join(blocks(text, "sh")).splitlines()


@pytest.fixture(scope="session")
def readme(root):
    return (root / "README.md").read_text(encoding="utf-8")


def test_newcomers_clone_and_type_two_commands(root, readme):
    config = yaml.safe_load((root / "_config.yml").read_text())
    url = config["repository"]["url"]
    folder = url.rsplit("/")[-1]
    first = [f"git clone {url}", f"cd {folder}", *NEWCOMER]
    assert commands(readme)[: len(first)] == first


def test_ci_types_what_the_readme_says(root):
    """`.ci/run` picks the commands out with sed: the same ones."""
    script = (root / ".ci" / "run").read_text()
    extract = re.search(r"< <\((.*)\)$", script, re.M)[1]
    run = subprocess.run(
        ["sh", "-c", extract], cwd=root, capture_output=True, text=True
    )
    assert run.stdout.splitlines() == NEWCOMER


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_has_every_verb_that_is_named(root, page):
    verbs = re.findall(r"\bmake ([a-z]+)", code(root / page))
    makefile = (root / "Makefile").read_text()
    known = re.findall(r"^([a-z]+):.*##", makefile, re.M)
    assert verbs
    assert set(verbs) <= set(known)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_command_line_has_every_command_that_is_named(root, page):
    from companion.__main__ import COMMANDS

    named = re.findall(r"python -m companion ([a-z]+)", code(root / page))
    assert named
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_is_named_exists(root, page):
    text = (root / page).read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!http|#)([^)]+)\)", text)
    folders = re.findall(r"`((?:[\w.-]+/)+|_\w+\.yml)`", text)
    missing = [x for x in linked + folders if not (root / x).exists()]
    assert linked + folders
    assert missing == []


def code(page):
    """What a page sets as code, in blocks or inside a line."""
    text = page.read_text(encoding="utf-8")
    fenced = r"^(`{3,})\w*\n(.*?)^\1$"
    blocks = [body for _, body in re.findall(fenced, text, re.M | re.S)]
    prose = re.sub(fenced, "", text, flags=re.M | re.S)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose)])


def test_the_examples_run(root, readme, tmp_path):
    said = []
    for example in blocks(readme, "python"):
        run = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(root)},
            capture_output=True,
        )
        assert (run.returncode, run.stderr) == (0, b"")
        said.append(run.stdout.decode().splitlines())
    values, losses, same = said
    assert values == ["Tensor([16.0, 36.0])"]
    assert same == ["True"]
    assert len(losses) == 5 and float(losses[-1]) < 1e-3 * float(losses[0])


@pytest.mark.slow
def test_the_library_installs_with_pip(readme, clone, bare, need):
    """In an environment of its own, out of the repository's sight."""
    need("network")
    (line,) = [x for x in commands(readme) if x.startswith("pip install")]
    assert line.startswith("pip install git+https://")
    python = bare()
    run = [python, "-m", "pip", "install", "-q", f"git+{clone.as_uri()}"]
    subprocess.run(run, check=True)
    for example in blocks(readme, "python"):
        subprocess.run([python, "-c", example], cwd=clone.parent, check=True)
    place = "import companion; print(companion.__file__)"
    found = subprocess.check_output(
        [python, "-c", place], cwd=clone.parent, text=True
    )
    kernels = Path(found.strip()).parent / "kernels"
    assert kernels.parent.parent.name == "site-packages"
    assert sorted(x.name for x in kernels.glob("*.c")) == sorted(
        x.name for x in (clone / "companion" / "kernels").glob("*.c")
    )
