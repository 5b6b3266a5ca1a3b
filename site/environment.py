"""Make the book's own environment in .venv: what `make` runs first.

Any Python 3 can read this file, so that an old one can be told apart.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

OLDEST = (3, 11)
VENV = ".venv"
OFFLINE = r"Retrying \(|name resolution|establish a new connection|timed out"
PIP = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]


def main():
    check_python()
    check_compiler()
    print("making", VENV, "with Python", sys.version.split()[0], flush=True)
    make_venv()
    install("-r", "requirements.txt", "--retries=2")
    install("-e", ".", "--no-deps", "--no-build-isolation")
    with open(os.path.join(VENV, "ready"), "w"):
        pass


def check_python():
    if sys.version_info < OLDEST:
        fail(
            "Python 3.11 or newer is needed, and %s is %s: install a newer "
            "one, or name one you have (make book PYTHON=python3.12)"
            % (sys.executable, sys.version.split()[0])
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        fail(
            "Python's venv module is needed, and %s came without it: "
            "install it (Debian, Ubuntu: apt install python3-venv)"
            % sys.executable
        )


def check_compiler():
    names = [os.environ["CC"]] if "CC" in os.environ else ["cc", "gcc", "clang"]
    found = [shutil.which(name) for name in names]
    if not any(map(compiles, filter(None, found))):
        fail(
            "a C compiler is needed, and %s did not compile a C program: "
            "install one (Debian, Ubuntu: apt install gcc libc6-dev; macOS: "
            "xcode-select --install), or name yours (make book CC=clang)"
            % ", ".join(names)
        )


def compiles(compiler):
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "one.c")
        with open(source, "w") as file:
            file.write("#include <math.h>\nint main(void) { return 0; }\n")
        command = [compiler, source, "-o", os.path.join(folder, "one")]
        return not subprocess.run(command, stderr=subprocess.DEVNULL).returncode


def make_venv():
    old = os.path.join(VENV, "bin", "python")
    this = "import sys; sys.exit(sys.version_info[:2] != %r)" % (
        sys.version_info[:2],
    )
    usable = shutil.which(old) and not subprocess.call([old, "-c", this])
    clear = [] if usable else ["--clear"]
    subprocess.check_call([sys.executable, "-m", "venv", *clear, VENV])


def install(*what):
    """Let pip install it, one line a package, everything else in a log."""
    log = os.path.join(VENV, "pip.log")
    python = os.path.join(VENV, "bin", "python")
    pip = subprocess.Popen(
        [python, "-m", "pip", "install", *PIP, *what],
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


def explain(log):
    with open(log) as file:
        text = file.read()
    if re.search(OFFLINE, text):
        fail(
            "a network is needed to install the packages, and the package "
            "index did not answer: connect, then run the command again "
            "(pip's words: %s)" % log
        )
    errors = re.findall("^ERROR: (.*)", text, re.M) or ["see " + log]
    fail("pip installs requirements.txt, and it stopped: %s" % errors[-1])


def fail(message):
    sys.exit("error: " + message)


if __name__ == "__main__":
    main()
