"""What a newcomer's machine may lack is said in one line."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.font_manager import FontManager, json_dump

NEEDED = ("Makefile", "requirements.txt", "site/environment.py")
OLD_PYTHON = """#!/bin/sh
exec {python} -c '
import runpy, sys
sys.version, sys.version_info = "3.9.2", (3, 9, 2)
runpy.run_path(sys.argv[1], run_name="__main__")' "$@"
"""


@pytest.fixture
def machine(tmp_path, root):
    """`machine(*tools)` runs `make` where PATH holds no other tools."""
    for name in NEEDED:
        target = tmp_path / "book" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    bin = tmp_path / "bin"
    bin.mkdir()
    python = Path(sys._base_executable)
    places = {"python3": python, "make": shutil.which("make")}

    def run(*tools, **variables):
        for tool in ("make", "sh", *tools):
            (bin / tool).symlink_to(places.get(tool) or shutil.which(tool))
        return subprocess.run(
            ["make", ".venv/ready"],
            cwd=tmp_path / "book",
            env={"PATH": str(bin), "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
        )

    run.bin, run.python = bin, python
    return run


def only_error(run):
    """The one line the user reads, besides make's own."""
    assert run.returncode
    lines = [x for x in run.stderr.splitlines() if not x.startswith("make")]
    assert len(lines) == 1, run.stderr
    return lines[0]


def test_no_python(machine):
    assert only_error(machine("cc")) == (
        "error: Python 3.11 or newer is needed, and there is no python3: "
        "install it, or name one you have (make book PYTHON=python3.12)"
    )


def test_old_python(machine):
    script = machine.bin / "python3"
    script.write_text(OLD_PYTHON.format(python=machine.python))
    script.chmod(0o755)
    line = only_error(machine("cc"))
    assert line.startswith("error: Python 3.11 or newer is needed, and ")
    assert " is 3.9.2: install a newer one" in line


def test_old_pythons_can_read_the_script(root):
    text = (root / "site" / "environment.py").read_text()
    ast.parse(text, feature_version=(3, 6))


def test_no_compiler(machine):
    assert only_error(machine("python3")) == (
        "error: a compiler of C and C++ is needed, and cc, gcc, clang did "
        "not compile a program: install one (Debian, Ubuntu: apt install "
        "g++; macOS: xcode-select --install), or name yours "
        "(make book CC=clang)"
    )


def test_a_compiler_that_does_not_work(machine):
    run = machine("python3", "cc", "false", CC="false")
    assert "and false did not compile a program" in only_error(run)


def test_a_compiler_without_its_other_half(machine):
    """Debian's gcc reads no C++ before g++ is installed."""
    half = machine.bin / "gcc"
    half.write_text(f"""#!/bin/sh
case "$*" in *c++*) exit 1;; esac
exec {shutil.which("cc")} "$@"
""")
    half.chmod(0o755)
    line = only_error(machine("python3", "as", "ld", CC="gcc"))
    assert "a compiler of C and C++ is needed, and gcc did not" in line


@pytest.mark.slow
def test_no_network(machine):
    nowhere = {
        "CC": shutil.which("cc"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_NO_CACHE_DIR": "1",
    }
    assert only_error(machine("python3", "cc", "as", "ld", **nowhere)) == (
        "error: a network is needed to install the packages, and the "
        "package index did not answer: connect, then run the command again "
        "(pip's words: .venv/pip.log)"
    )


def test_a_damaged_list_of_fonts_is_not_used(root, tmp_path):
    """The reader's own list may lead to fonts that are gone."""
    damage = tmp_path / "damage.mk"
    damage.write_text(
        "fonts: export MPLCONFIGDIR := $(or $(OWN),$(MPLCONFIGDIR))\n"
        "fonts:\n\t@$(PY) -c 'from matplotlib import font_manager as f; "
        'f.fontManager.findfont("DejaVu Sans")\'\n'
    )
    name = f"fontlist-v{FontManager.__version__}.json"
    fonts = FontManager()
    fonts.ttflist = []
    (tmp_path / "reader").mkdir()
    json_dump(fonts, tmp_path / "reader" / name)

    def draw(**own):
        make = ["make", "-s", "-f", "Makefile", "-f", damage, "fonts"]
        run = subprocess.run(
            [*make, *(f"{k}={v}" for k, v in own.items())],
            cwd=root,
            env=os.environ | {"MPLCONFIGDIR": str(tmp_path / "reader")},
            capture_output=True,
            text=True,
        )
        return run.stderr

    assert "not found" in draw(OWN=tmp_path / "reader")
    assert draw() == ""
