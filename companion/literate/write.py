# Tangled from tangle: edit there, `make tangle`. sha256:6332c1ceb795
"""Files written all or none, and those that somebody edited."""

import difflib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from companion.literate.source import SUFFIXES, SourceError, files_below

FOLDERS = ("companion", "tests/chapters")

HEADER = "Tangled from {}: edit there, `make tangle`. {}"
SEAL = re.compile(r"(?:# |/\* )Tangled from (.*): edit.*(sha256:\w+)(?: .*)?$")

JOURNAL = ".tangle"


def with_header(file: str, chapters: Iterable[str], lines: list[str]) -> str:
    """A file's text below the line that says where to edit it."""
    text = "\n".join(lines).rstrip("\n") + "\n"
    header = HEADER.format(", ".join(chapters), digest(text))
    if not file.endswith((".py", ".txt")):
        return f"/* {header} */\n{text}"
    long = "  # noqa: E501" if len(header) > 77 else ""
    return f"# {header}{long}\n{text}"


def digest(text: str) -> str:
    """The seal of a generated text: a later edit by hand breaks it."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:12]


def header(text: str) -> tuple[str, str]:
    """The chapters and the seal in a generated file's first line."""
    match = SEAL.match(text.split("\n", 1)[0])
    return (match[1], match[2]) if match else ("", "")


def edited(text: str) -> bool:
    """Whether a text is not what tangle wrote."""
    return header(text)[1] != digest(text.partition("\n")[2])


def present(out: Path) -> dict[str, str]:
    """The library's files that stand in a folder."""
    found = (p for folder in FOLDERS for p in files_below(out / folder))
    return {
        path.relative_to(out).as_posix(): path.read_text("utf-8", "replace")
        for path in found
        if path.suffix in (*SUFFIXES, ".txt")
    }


def changes(files: dict[str, str], out: Path, force=False, remove=False):
    """What has to be written, and what has to go.

    Nothing that was written or edited by hand is touched, unless forced,
    and nothing is removed without a word.
    """
    now = present(out)
    new = {f: t for f, t in files.items() if now.get(f) != t}
    gone = [f for f, t in now.items() if f not in files and header(t)[1]]
    for file in [*new, *gone]:
        if file in now and edited(now[file]) and not force:
            text = files.get(file, "")
            raise hand_edited(file, now[file], text)
    if gone and not remove:
        raise lost(gone, now)
    return new, gone


def lost(gone: list[str], now: dict[str, str]) -> SourceError:
    """The error for files that no cell makes any more."""
    makers = [name for f in gone for name in header(now[f])[0].split(", ")]
    pages = ", ".join(dict.fromkeys(makers))
    return SourceError(
        gone[0], 1, f"no cell of {pages} makes {', '.join(gone)} any more: "
        "give the cells their tags back, or say `tangle --remove`")


def hand_edited(file: str, old: str, new: str) -> SourceError:
    """The error for a file that tangle would have to overwrite."""
    lines = different_lines(old, new)
    message = (
        f"edited by hand in line {lines}: move the edit to the chapter, "
        "or `tangle --force` to drop it")
    return SourceError(file, int(re.split("[-,]", lines)[0]), message)


def different_lines(old: str, new: str) -> str:
    """The lines of `old` that `new` does not have, as `3, 7-9`."""
    a, b = old.split("\n")[1:], new.split("\n")[1:]
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False)
    spans = [
        (i + 2, max(i, j - 1) + 2)
        for tag, i, j, _, _ in blocks.get_opcodes()
        if tag != "equal"
    ]
    words = [f"{i}" if i == j else f"{i}-{j}" for i, j in spans]
    return ", ".join(words) or "1"


def check(files: dict[str, str], out: str | Path = ".") -> list[str]:
    """What differs between a folder and `files`, one line each."""
    now = present(Path(out))
    every = sorted({*files, *now})
    return [line for f in every if (line := verdict(f, files, now))]


def verdict(file: str, files, now) -> str | None:
    """What is wrong with one file, if anything is."""
    if file not in now:
        return f"{file}: missing: run `make tangle`"
    if now[file] == files.get(file):
        return None
    if not header(now[file])[1]:
        return f"{file}:1: written by hand: move it into a chapter"
    if edited(now[file]):
        return str(hand_edited(file, now[file], files.get(file, "")))
    if file in files:
        return f"{file}: out of date: run `make tangle`"
    return f"{file}: no cell makes it any more: `tangle --remove` removes it"


def write(files: dict[str, str], out=".", force=False,
          remove=False) -> list[str]:
    """Bring a folder to the state `files`: wholly, or not at all.

    Returns the files it changed.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        finish(out)
        new, gone = changes(files, out, force, remove)
        if new or gone:
            prepare(out, new, gone)
            finish(out)
        return [*new, *gone]


@contextmanager
def only_one(out: Path):
    """Let one process at a time write in a folder."""
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def prepare(out: Path, new: dict[str, str], gone: list[str]) -> None:
    """Write all new texts beside the old; the last step decides."""
    waiting = out / f"{JOURNAL}-new"
    try:
        for file, text in new.items():
            save(waiting / file, text)
        save(waiting / "files.json", json.dumps([list(new), gone]))
    except OSError:
        shutil.rmtree(waiting, ignore_errors=True)
        raise
    os.replace(waiting, out / JOURNAL)


def save(path: Path, text: str) -> None:
    """Write a file and see that it reaches the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def finish(out: Path) -> None:
    """Clear what was not decided; do what was, where it stopped."""
    journal, waiting = out / JOURNAL, out / f"{JOURNAL}-new"
    if waiting.exists():
        shutil.rmtree(waiting)
    if not journal.exists():
        return
    new, gone = json.loads((journal / "files.json").read_text())
    for file in new:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        if (journal / file).exists():
            os.replace(journal / file, out / file)
    for file in gone:
        (out / file).unlink(missing_ok=True)
    os.replace(journal, waiting)
    shutil.rmtree(waiting)


PART = ".part"  # the suffix of a file being written


def replace_file(target: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, even if others write it too."""
    data = content if isinstance(content, bytes) else content.encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(PART, dir=target.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(target)
        raise
