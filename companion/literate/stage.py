# Tangled from record: edit there, `make tangle`. sha256:2c4a47f308ec
"""A chapter's stage: the library as it stood before that chapter."""

import argparse
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from companion.literate.source import Book, SourceError, read_book
from companion.literate.tangle import tangle
from companion.literate.write import PART, replace_file

STAGES = "_build/stage"


def package_files(book: Book, name: str | None = None) -> dict[str, str]:
    """The library's files before chapter `name`, or all of them."""
    files = tangle(book.before(name) if name else book).written
    own = {p: t for p, t in files.items() if p.startswith("companion/")}
    return own if "companion/literate/__init__.py" in own else lent() | own


def lent() -> dict[str, str]:
    """The tools at work here, for a book that has none of its own."""
    found = Path(inspect.getfile(tangle)).parent.glob("*.py")
    texts = {path.name: path.read_text("utf-8") for path in sorted(found)}
    files = {f"companion/literate/{name}": texts[name] for name in texts}
    return {"companion/__init__.py": "", **files}


def stage(book: Book, name: str | None, out: str = STAGES) -> Path:
    """Write the library before chapter `name`; return its folder.

    The folder goes on PYTHONPATH. `name` None means after the last
    chapter: the whole library.
    """
    folder = book.root / out / (name or "final")
    sync(folder, package_files(book, name))
    return folder


def sync(folder: Path, files: dict[str, str]) -> None:
    """Make `folder` hold exactly `files`; touch only what differs."""
    for path, text in files.items():
        target = folder / path
        if not target.exists() or target.read_bytes() != text.encode():
            replace_file(target, text)
    for stranger in strangers(folder, files):
        stranger.unlink(missing_ok=True)


def strangers(folder: Path, files: dict[str, str]) -> list[Path]:
    """Files of an earlier stage that this one does not have."""
    known = {folder / path for path in files}
    passing = (".pyc", PART)
    return [path for path in folder.rglob("*") if path.is_file()
            and path not in known and path.suffix not in passing]


def chapter_parser(command: str, purpose: str) -> argparse.ArgumentParser:
    """A parser for commands that work on named chapters, or all."""
    parser = argparse.ArgumentParser(
        prog=f"python -m companion {command}", description=purpose)
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER",
                        help="names of chapters (default: all)")
    return parser


def chosen(book: Book, options) -> list[str]:
    """The chapters that were named, or all; those with cells."""
    given = [book.chapter(name) for name in options.chapters]
    return [c.name for c in given or book.chapters if c.cells]


def reported(work: Callable, *arguments) -> int:
    """Run a command's work; what stops it is one line and status 1."""
    try:
        return work(*arguments) or 0
    except SourceError as error:
        print(error, file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"{error.filename or '.'}: {error.strerror}: mend that, and run"
              " it again", file=sys.stderr)
    except KeyboardInterrupt:
        return 130  # as every program that Ctrl+C ends
    return 1


def print_stages(options) -> None:
    """Stage the chosen chapters; print their folders."""
    book = read_book()
    for name in chosen(book, options):
        print(stage(book, name, options.out))


def main(argv: list[str]) -> int:
    """Write the library as it stood before each chapter."""
    parser = chapter_parser("stage", str(main.__doc__))
    parser.add_argument("--out", default=STAGES, metavar="DIR")
    return reported(print_stages, parser.parse_args(argv))
