# Tangled from tangle, record, blas, perceptron, language, benchmarking, serving: edit there, `make tangle`. sha256:833704a9dff4  # noqa: E501
"""The command line: `python -m companion COMMAND …`."""

from __future__ import annotations

import difflib
import os
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from companion import __version__


def main(argv: list[str]) -> int:
    """Run a command, for as long as somebody reads what it prints."""
    try:
        status = obey(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as every program that SIGPIPE ends


def obey(argv: list[str]) -> int:
    """Run the command that the first word names."""
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    word, *rest = argv or [""]
    if word in ANSWERS:
        print(ANSWERS[word]())
        return 0
    if word not in COMMANDS:
        print(unknown(word) + usage(), file=sys.stderr)
        return 2
    return import_module(COMMANDS[word]).main(rest)


def unknown(word: str) -> str:
    """What to say of a word that is no command; nothing of no word."""
    near = difflib.get_close_matches(word, [*COMMANDS, *ANSWERS], 1, 0.5)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"no command {word!r}{hint}\n" if word else ""


def usage() -> str:
    """The table of commands."""
    lines = ["usage: python -m companion COMMAND …", ""]
    lines += [f"  {n:10} {purpose(m)}" for n, m in COMMANDS.items()]
    return "\n".join([*lines, "", "COMMAND --help says more."])


def version() -> str:
    """What is installed."""
    return f"companion {__version__}"


COMMANDS = {
    "tangle": "companion.literate.tangle",
    "stage": "companion.literate.stage",
    "notebook": "companion.literate.notebook",
    "lint": "companion.literate.lint",
    "execute": "companion.literate.execute",
    "serve": "companion.literate.serve",
    "bench": "companion.timing",
    "milestone": "companion.milestones.report",
    "train": "companion.milestones.train",
    "generate": "companion.milestones.generate",
    "suite": "companion.suite",
    "host": "companion.serve",
}


def purpose(module: str) -> str:
    """What a command does, read from its source and not imported."""
    found = find_spec(module)
    text = Path(found.origin).read_text() if found and found.origin else ""
    match = re.search(r'def main\(.*\n    """(.*?)("""|\n)', text)
    return match[1] if match else ""


ANSWERS = {"-h": usage, "--help": usage, "--version": version}

if __name__ == "__main__" and __package__:
    raise SystemExit(main(sys.argv[1:]))
