# Tangled from tangle: edit there, `make tangle`. sha256:3d89401b0398
"""From a line of the library to the line of the chapter it came from."""

import linecache
import re
import sys
import traceback

# chapters/appendix/tangle.md:2891
ORIGIN = re.compile(r"\s*# (\S+\.(?:md|ipynb)\S*):(\d+)$")


# chapters/appendix/tangle.md:2894
def origin(filename: str, line: int) -> str | None:
    """The chapter's `path:line` for a line of a generated file."""
    lines = linecache.getlines(filename)[:line]
    if not lines or not lines[0].startswith("# Tangled from "):
        return None
    for above, text in enumerate(reversed(lines)):
        match = ORIGIN.match(text.rstrip())
        if match:
            return f"{match[1]}:{int(match[2]) + max(above - 1, 0)}"
    return None


# chapters/appendix/tangle.md:2912
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


# chapters/appendix/tangle.md:2928
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


# chapters/appendix/tangle.md:2942
def show(shell, kind, error, trace, tb_offset=None):
    """IPython's own traceback, with the chapters' lines noted."""
    annotate(error)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
