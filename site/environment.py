"""Make the book's own environment in .venv: what `make` runs first.

Any Python 3 can read this file, so that an old one can be told apart.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

OLDEST = (3, 11)
VENV = ".venv"
OFFLINE = r"Retrying \(|name resolution|establish a new connection|timed out"
PYTHON = os.path.join(VENV, "bin", "python")
PIP = ["--disable-pip-version-check", "--no-input", "--progress-bar=off",
       "--retries=2"]  # fmt: skip


def main():
    check_python()
    check_compiler()
    print(f"making {VENV} with Python {sys.version.split()[0]}", flush=True)
    make_venv()
    install()
    list_fonts()
    with open(os.path.join(VENV, "ready"), "w"):
        pass


def check_python():
    if sys.version_info < OLDEST:
        fail(
            f"Python 3.11 or newer is needed, and {sys.executable} is "
            f"{sys.version.split()[0]}: install a newer one, or name one you "
            "have (make book PYTHON=python3.12)"
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        fail(
            f"Python's venv module is needed, and {sys.executable} came "
            "without it: install it (Debian, Ubuntu: apt install python3-venv)"
        )


def check_compiler():
    named = os.environ.get("CC")
    names = [named] if named else ["cc", "gcc", "clang"]
    if not any(map(compiles, names)):
        fail(
            f"a compiler of C and C++ is needed, and {', '.join(names)} did "
            "not compile a program: install one (Debian, Ubuntu: apt install "
            "g++; macOS: xcode-select --install), or name yours "
            "(make book CC=clang)"
        )


def compiles(name):
    compiler = shlex.split(name)
    if not shutil.which(compiler[0]):
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "one.c")
        with open(source, "w") as file:
            file.write("#include <math.h>\nint main() { return 0; }\n")
        program = os.path.join(folder, "one")
        return all(
            subprocess.run(
                [*compiler, "-x", language, source, "-o", program],
                stderr=subprocess.DEVNULL,
            ).returncode
            == 0
            for language in ("c", "c++")
        )


def make_venv():
    this = tuple(sys.version_info[:2])
    same = f"import sys; sys.exit(sys.version_info[:2] != {this})"
    usable = shutil.which(PYTHON) and not subprocess.call([PYTHON, "-c", same])
    clear = [] if usable else ["--clear"]
    subprocess.check_call([sys.executable, "-m", "venv", *clear, VENV])


def install():
    """Let pip install them, one line a package, everything else in a log."""
    log = os.path.join(VENV, "pip.log")
    pip = subprocess.Popen(
        [PYTHON, "-m", "pip", "install", "-r", "requirements.txt", *PIP],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    with open(log, "w") as file:
        for line in pip.stdout:
            file.write(line)
            if line.startswith(("Collecting", "Installing")):
                print("  " + line.split(" (")[0].strip()[:72], flush=True)
    if pip.wait():
        explain(log)


def list_fonts():
    """Let Matplotlib list the fonts now, not beside the first figure."""
    subprocess.check_call([PYTHON, "-c", "import matplotlib.font_manager"])


def explain(log):
    with open(log) as file:
        text = file.read()
    if re.search(OFFLINE, text):
        fail(
            "a network is needed to install the packages, and the package "
            "index did not answer: connect, then run the command again "
            f"(pip's words: {log})"
        )
    errors = re.findall("^ERROR: (.*)", text, re.M) or ["see " + log]
    fail(f"pip installs requirements.txt, and it stopped: {errors[-1]}")


def fail(message):
    sys.exit("error: " + message)


if __name__ == "__main__":
    main()
