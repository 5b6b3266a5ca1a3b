# Tangled from tangle: edit there, `make tangle`. sha256:d6224d32f61e
"""From a line of the library to the line of the chapter it came from."""

import linecache
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

ORIGINS = "companion/origins.txt"


def origin(filename: str, line: int) -> str | None:
    """The chapter's `path:line` for a line of a generated file."""
    path = Path(filename)
    begun = [run for root in path.parents for run in runs_of(root, path)
             if run[0] <= line]
    if not begun:
        return None
    first, chapter, at = begun[-1]
    return f"{chapter}:{at + line - first}"


def runs_of(root: Path, path: Path) -> Iterator[tuple[int, str, int]]:
    """The runs of a file of the library that stands in a folder."""
    own = re.escape(path.relative_to(root).as_posix())
    for text in linecache.getlines(str(root / ORIGINS)):
        match = re.match(rf"{own}:(\d+) (.+):(\d+)$", text)
        if match:
            yield int(match[1]), match[2], int(match[3])


def annotate(error: BaseException) -> BaseException:
    """Note on an error the chapters' lines that its frames came from."""
    known = set(getattr(error, "__notes__", ()))
    for frame in traceback.extract_tb(error.__traceback__):
        place = origin(frame.filename, frame.lineno or 0)
        note = f"{frame.name} is written at {place}"
        if place and note not in known:
            error.add_note(note)
            known.add(note)
    return error


def install() -> None:
    """Let uncaught errors show the chapter's line, in IPython too."""
    previous = sys.excepthook

    def hook(kind, error, trace):
        previous(kind, annotate(error), trace)

    sys.excepthook = hook
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if shell:
            shell.set_custom_exc((Exception,), show)


def show(shell, kind, error, trace, tb_offset=None):
    """IPython's own traceback, with the chapters' lines noted."""
    annotate(error)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
