"""A chapter's stage: the library as it stood before that chapter."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from companion.literate.source import SourceError, read_book
from companion.literate.tangle import tangle

STAGES = "_build/stage"
PART = ".part"  # a file being written


def stage(book, name, out=STAGES):
    """Write the library before chapter `name`; return its folder.

    The folder goes on PYTHONPATH. `name` None means after the last
    chapter: the whole library.
    """
    folder = book.root / out / (name or "final")
    sync(folder, package_files(book, name))
    return folder


def package_files(book, name=None):
    """The library's files before chapter `name`, without the tests."""
    files = tangle(book.before(name) if name else book).files
    return {
        path: text
        for path, text in files.items()
        if path.startswith("companion/")
    }


def sync(folder, files):
    """Make `folder` hold exactly `files`; touch only what differs."""
    for path, text in files.items():
        target = folder / path
        if not target.exists() or target.read_bytes() != text.encode():
            replace(target, text)
    for path in strangers(folder, files):
        path.unlink(missing_ok=True)


def strangers(folder, files):
    """Files of an earlier stage that this one does not have."""
    known = {folder / path for path in files}
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path not in known
        and path.suffix not in (".pyc", PART)
    ]


def replace(target, text):
    """Write a file whole or not at all, whoever else is writing it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(PART, dir=target.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main(argv):
    """Stage the named chapters (default: all) and print the folders."""
    parser = argparse.ArgumentParser(
        prog="companion stage", description=main.__doc__
    )
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER")
    parser.add_argument("--out", default=STAGES)
    options = parser.parse_args(argv)
    try:
        book = read_book()
        names = [book.chapter(name).name for name in options.chapters]
        for name in names or [chapter.name for chapter in book.chapters]:
            print(stage(book, name, options.out))
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
