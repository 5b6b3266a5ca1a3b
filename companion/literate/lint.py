"""Count what can be counted about the chapters; fail on the limits."""

import argparse
import ast
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import nbformat

from companion.literate.execute import EXECUTED, code_cells
from companion.literate.markdown import INLINE, Block, blocks
from companion.literate.source import SourceError, read_book
from companion.literate.tangle import tangle

CELL_LINES = 30
CELL_WIDTH = 79
FUNCTION_LINES = 30
FILLERS = re.compile(r"\b(simply|just|obviously)\b", re.I)
ASIDES = ("margin", "sidebar")
IMAGES = ("figure", "image")
VERBATIM = (
    "fence", "code-cell", "code", "code-block", "math", "raw",
    "bibliography", "list-table", "image",
)  # fmt: skip


@dataclass
class Measures:
    """What the table shows of one chapter."""

    name: str
    words: int = 0
    cells: list[int] = field(default_factory=list)  # lines of each
    width: int = 0
    library: int = 0
    pending: int = 0
    gap: int = 0
    figures: int = 0
    asides: int = 0
    seconds: float | None = None


# What the page is made of


def body(chapter):
    """The page's text below the front matter, and its first line."""
    lines = chapter.text.split("\n")
    if lines[0].rstrip() != "---":
        return chapter.text, 1
    end = next(n for n, x in enumerate(lines[1:], 1) if x.rstrip() == "---")
    return "\n".join(lines[end + 1 :]), end + 2


def page_blocks(chapter) -> Iterator[Block]:
    """Every block of the page, those inside directives included."""
    text, line = body(chapter)
    yield from inner_blocks(chapter.path, text, line)


def inner_blocks(path, text, line):
    for block in blocks(path, text, line):
        if not block.name or block.name in VERBATIM:
            yield block
        else:
            yield Block(block.name, block.line, "", block.argument,
                        block.options)  # fmt: skip
            yield from inner_blocks(path, block.body, block.line)


def prose(text):
    """Text as it is read: roles by their text, no code, no formulas."""
    return INLINE.sub(read_aloud, text)


def read_aloud(match):
    if match["role"]:
        return match["content"].split("<")[0]
    return match["text"] if match["target"] else ""


def words(text):
    return len(re.findall(r"[A-Za-z][\w'’-]*", prose(text)))


# Measures


def measure(book, chapter, library):
    """Count one chapter."""
    cells = [cell.source.split("\n") for cell in chapter.cells]
    found = Measures(chapter.name, cells=[len(lines) for lines in cells])
    found.width = max((len(x) for lines in cells for x in lines), default=0)
    found.library = sum(
        len(cell.source.split("\n"))
        for cell in chapter.cells
        if "tangle" in cell.tags
    )
    found.pending = longest_run(["tangle" in c.tags for c in chapter.cells])
    count_blocks(found, page_blocks(chapter))
    found.seconds = seconds(book, chapter)
    return found


def longest_run(flags):
    """The most flags in a row that are up."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def count_blocks(found, page):
    """Words, figures, asides, and the longest stretch of mere words."""
    stretch = 0
    for block in page:
        found.figures += block.name in IMAGES
        found.asides += block.name in ASIDES
        if block.name in VERBATIM or block.name in IMAGES:
            stretch = 0
        parts = re.split(r"\$\$.+?\$\$", block.body, flags=re.S)
        for number, part in enumerate(parts if not block.name else []):
            count = words(part)
            found.words += count
            stretch = count if number else stretch + count
            found.gap = max(found.gap, stretch)


def executed(book, chapter):
    """The cells as they last ran, or None."""
    path = book.root / EXECUTED / f"{chapter.name}-stage.ipynb"
    return nbformat.read(path, as_version=4) if path.exists() else None


def seconds(book, chapter):
    done = executed(book, chapter)
    return done.metadata["execution"]["seconds"] if done else None


# Limits


def problems(book, library) -> Iterator[SourceError]:
    """Every line of the book that breaks a limit."""
    for chapter in book.chapters:
        yield from cell_problems(chapter)
        yield from prose_problems(chapter)
        yield from reference_problems(book, chapter)
        yield from image_problems(book, chapter)
    yield from function_problems(library)


def cell_problems(chapter):
    for cell in chapter.cells:
        lines = cell.source.split("\n")
        if len(lines) > CELL_LINES:
            yield cell.error(
                1, f"a cell of {len(lines)} lines: at most {CELL_LINES}"
            )
        for number, line in enumerate(lines, 1):
            if len(line) > CELL_WIDTH:
                yield cell.error(
                    number, f"{len(line)} columns: at most {CELL_WIDTH}"
                )


def prose_problems(chapter):
    for block in page_blocks(chapter):
        if block.name:
            continue
        for number, line in enumerate(block.body.split("\n")):
            for found in FILLERS.findall(prose(line)):
                yield SourceError(
                    chapter.path,
                    block.line + number,
                    f"{found!r} tells the reader nothing: leave it out",
                )


def reference_problems(book, chapter):
    """Images without alternative text, and files that are not there."""
    for line, path, alt in references(chapter):
        if alt == "":
            yield SourceError(
                chapter.path, line, f"no alternative text for {path}"
            )
        if not exists(book.root, chapter.path, path):
            yield SourceError(chapter.path, line, f"{path} does not exist")


def references(chapter):
    """(line, path, alternative text or None) of images and links."""
    for block in page_blocks(chapter):
        if block.name in IMAGES:
            alt = str(block.options.get("alt") or "")
            yield block.line - 1 - len(block.options), block.argument, alt
        if block.name:
            continue
        for match in INLINE.finditer(block.body):
            if match["target"]:
                line = block.line + block.body.count("\n", 0, match.start())
                shown = match["text"] if match["bang"] else None
                yield line, match["target"], shown


def exists(root, page, target):
    """Whether a link's file is there; addresses and labels are not files."""
    path = target.partition("#")[0]
    if re.match(r"[a-z]+:", path) or not PurePosixPath(path).suffix:
        return True
    base = root if path.startswith("/") else Path(root, page).parent
    return (base / path.lstrip("/")).exists()


def image_problems(book, chapter):
    """Pictures that cells draw need a text as well."""
    done = executed(book, chapter)
    cells = code_cells(done) if done else []
    if len(cells) != len(chapter.cells):
        return
    for cell, ran in zip(chapter.cells, cells, strict=True):
        kinds = [kind for o in ran.outputs for kind in o.get("data", {})]
        image = cell.options.get("mystnb", {}).get("image", {})
        if any(k.startswith("image/") for k in kinds) and not image.get("alt"):
            yield cell.error(
                1, "the picture has no alternative text: give the cell "
                "`mystnb: {image: {alt: …}}`"
            )  # fmt: skip


def function_problems(library):
    for path, line, name, length in functions(library):
        if length > FUNCTION_LINES:
            yield SourceError(
                path, line, f"{name} has {length} lines: at most "
                f"{FUNCTION_LINES}"
            )  # fmt: skip


def functions(library):
    """(file, line, name, lines) of every function of the library."""
    for path, text in library.files.items():
        if path.startswith("companion/") and path.endswith(".py"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    length = (node.end_lineno or 0) - node.lineno + 1
                    yield path, node.lineno, node.name, length


# The table

COLUMNS = {
    "words": "4000-7000",
    "cells": "25-45",
    "median": "8",
    "90 %": "20",
    "max": "30",
    "width": "79",
    "library": "100-260",
    "pending": "2",
    "gap": "450",
    "figures": "1/1000",
    "asides": "1/350",
    "seconds": "20",
}


def row(found):
    """A chapter's measures in the order of COLUMNS."""
    cells = sorted(found.cells)
    ran = "-" if found.seconds is None else f"{found.seconds:.1f}"
    return [
        found.words,
        len(cells),
        round(statistics.median(cells)) if cells else "-",
        cells[int(0.9 * (len(cells) - 1))] if cells else "-",
        max(cells, default="-"),
        found.width or "-",
        found.library,
        found.pending,
        found.gap,
        found.figures,
        found.asides,
        ran,
    ]


def table(rows):
    """Right-aligned columns under a heading and the aims."""
    head = [["chapter", *COLUMNS], ["aim", *COLUMNS.values()]]
    text = [[str(value) for value in line] for line in head + rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    return "\n".join(align(line, widths) for line in text)


def align(line, widths):
    """The name to the left, the numbers to the right."""
    name, *numbers = line
    cells = [x.rjust(w) for x, w in zip(numbers, widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *cells])


def summary(library):
    """One line about the lengths of the library's functions."""
    lengths = sorted(length for *_, length in functions(library))
    if not lengths:
        return "functions: none"
    middle = round(statistics.median(lengths))
    most = lengths[int(0.9 * (len(lengths) - 1))]
    return (
        f"functions: {len(lengths)}; lines: median {middle}, "
        f"90 % {most}, max {lengths[-1]}"
    )


def main(argv):
    """Print every chapter's measures; fail if a limit is broken."""
    parser = argparse.ArgumentParser(
        prog="companion lint", description=main.__doc__
    )
    parser.parse_args(argv)
    try:
        book = read_book()
        library = tangle(book)
        counted = [measure(book, c, library) for c in book.chapters]
        broken = list(problems(book, library))
    except SourceError as error:
        broken = [error]
    else:
        print(table([[m.name, *row(m)] for m in counted]))
        print(summary(library))
    for problem in broken:
        print(problem, file=sys.stderr)
    return 1 if broken else 0
