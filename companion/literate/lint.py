# Tangled from record: edit there, `make tangle`. sha256:27ccd6197766
"""Count what can be counted about the chapters; fail on the limits."""

import argparse
import ast
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import starmap
from operator import mul
from pathlib import Path, PurePosixPath

from markdown_it.token import Token

from companion.literate.execute import EXECUTED, cached, code_cells
from companion.literate.markdown import LINKS, link_parts, spans
from companion.literate.names import names_in
from companion.literate.source import (
    Block, Book, Cell, Chapter, SourceError, compared, line_with, read_book)
from companion.literate.stage import reported
from companion.literate.tangle import Library, readable, tangle

IMAGES = ("figure", "image")
BREAKS = (*IMAGES, "fence", "code-cell", "code", "code-block", "math", "raw",
          "list-table")


def aloud(text: str) -> str:
    """Prose as it is read: roles by their text, no code, no formulas."""
    return "".join(starmap(read_aloud, spans(text)))


def read_aloud(source: str, token: Token) -> str:
    """What a reader says for a span."""
    if token.type == "myst_role":
        return token.content.split("<")[0]
    if token.type in LINKS:
        return aloud(link_parts(source)[1])
    return "" if token.type in ("code_inline", "math_inline") else source


def words(text: str) -> int:
    """How many words a reader reads."""
    return len(re.findall(r"[A-Za-z][\w'’-]*", aloud(text)))


@dataclass
class Measures:
    """What the table shows of one chapter."""

    name: str
    cells: list[int]  # lines of each that is in sight
    folded: int
    width: int
    library: int
    pending: int
    drawn: int  # pictures that cells make
    seconds: float | None
    lines: int = 0  # of folds: neighbours share one
    words: int = 0
    gap: int = 0
    figures: int = 0
    asides: int = 0
    exercises: int = 0

    @property
    def screens(self) -> float:
        """About how many windows of 1440 × 900 the page fills."""
        shown = sum(self.cells), len(self.cells), self.lines, self.words
        pictures = self.figures + self.drawn
        return sum(map(mul, HEIGHTS, [*shown, pictures])) / 900


HEIGHTS = 15, 90, 48, 3.3, 340  # a line, a cell, a fold, a word, a picture
FOLDED = {"hide-cell", "hide-input"}
REMOVED = {"remove-cell", "remove-input"}


def in_sight(cell: Cell) -> bool:
    """Whether a page shows a cell's code without being asked."""
    return (FOLDED | REMOVED).isdisjoint(cell.tags)


def height(cell: Cell) -> int:
    """How many lines a cell has."""
    return cell.source.count("\n") + 1


def told(cell, *keys: str) -> bool:
    """Whether a cell's options have something under these keys."""
    found = cell.options
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return bool(found)


def fold_lines(page: Iterable[Block]) -> int:
    """How many lines the folds take: those that show nothing share one."""
    count, shared = 0, False
    for block in page:
        tags = set(block.options.get("tags", []))
        if "remove-cell" not in tags:
            folded = bool(tags & FOLDED)
            silent = folded and bool(tags & {"hide-cell", "tangle"})
            count += folded and not (silent and shared)
            shared = silent
    return count


def measure(book: Book, chapter: Chapter) -> Measures:
    """Count one chapter."""
    lines = [line for c in chapter.cells for line in c.source.split("\n")]
    tangled = [cell for cell in chapter.cells if "tangle" in cell.tags]
    seen = list(filter(in_sight, chapter.cells))
    done = last_run(book, chapter)
    found = Measures(
        chapter.name, [height(cell) for cell in seen],
        folded=sum(not FOLDED.isdisjoint(c.tags) for c in chapter.cells),
        width=max(map(len, lines), default=0),
        library=sum(map(height, tangled)),
        pending=longest_run(["tangle" in cell.tags for cell in seen]),
        drawn=sum(told(c, "mystnb", "image") for c in chapter.cells),
        seconds=done.metadata["execution"]["seconds"] if done else None,
    )
    found.lines = fold_lines(chapter.blocks)
    count_blocks(found, chapter.blocks)
    return found


def longest_run(flags: list[bool]) -> int:
    """The most flags in a row that are up."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


EXERCISE = re.compile(r"^\*\*\d+\. [^*]+\*\* ●{1,3}\. ", re.M)


def count_blocks(found: Measures, page: Iterable[Block]) -> None:
    """Words, figures, exercises, and the longest stretch of mere words."""
    stretch = 0
    for block in page:
        found.figures += block.name in IMAGES
        found.asides += block.name in ("margin", "sidebar")
        if block.name in BREAKS:
            stretch = 0
        if not block.name:
            found.exercises += len(EXERCISE.findall(block.body))
            count = words(block.body)
            found.words += count
            stretch += count
            found.gap = max(found.gap, stretch)


def last_run(book: Book, chapter: Chapter):
    """The notebook of the chapter's last execution, if any."""
    return cached(book.root / EXECUTED / f"{chapter.name}-stage.ipynb")


COLUMNS = {
    "words": "4000-7000", "cells": "25-45", "screens": "25", "folded": "-",
    "median": "8", "90 %": "20",
    "max": "30", "width": "79", "library": "100-260", "pending": "2",
    "gap": "450", "figures": "1/1000", "asides": "1/350",
    "exercises": "5", "seconds": "20",
}


def row(found: Measures) -> list:
    """A chapter's name and its measures in the order of COLUMNS."""
    sizes = sorted(found.cells) or [0]
    return [
        found.name, found.words, len(found.cells), round(found.screens),
        found.folded, round(statistics.median(sizes)),
        sizes[round(0.9 * (len(sizes) - 1))], sizes[-1], found.width,
        found.library, found.pending, found.gap, found.figures, found.asides,
        found.exercises,
        "-" if found.seconds is None else f"{found.seconds:.1f}",
    ]


def table(rows: list[list]) -> str:
    """The name to the left, the numbers to the right, aims on top."""
    head = [["chapter", *COLUMNS], ["aim", *COLUMNS.values()]]
    text = [[str(value) for value in line] for line in head + rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    return "\n".join("  ".join(
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
    ) for line in text)


CELL_LINES, CELL_WIDTH, FUNCTION_LINES = 30, 79, 30
FILLERS = re.compile(r"\b(simply|just|obviously)\b(?!-)", re.I)


def cell_problems(chapter: Chapter) -> Iterator[SourceError]:
    """Cells too long or wide, not shown, or that end in a semicolon."""
    for cell in chapter.cells:
        lines = cell.source.split("\n")
        if len(lines) > CELL_LINES:
            size = f"a cell of {len(lines)} lines"
            yield cell.error(1, f"{size}: at most {CELL_LINES}")
        for number, line in enumerate(lines, 1):
            if len(line) > CELL_WIDTH:
                width = f"{len(line)} columns"
                yield cell.error(number, f"{width}: at most {CELL_WIDTH}")
        if cell.target and REMOVED & set(cell.tags):
            yield cell.error(1, f"the page hides what goes to {cell.target}:"
                                " fold it, with hide-input")
        seen = cell.language == "python" and compared(cell.tags)
        if seen and lines[-1].endswith(";"):
            yield cell.error(len(lines), "nbval shows what a semicolon hides:"
                                         " end the cell with plt.show()")


def prose_problems(chapter: Chapter) -> Iterator[SourceError]:
    """Words that claim that something is easy."""
    for block in chapter.blocks:
        lines = [] if block.name else block.body.split("\n")
        for number, line in enumerate(lines, block.line):
            for found in FILLERS.findall(aloud(line)):
                message = f"{found!r} tells the reader nothing: leave it out"
                yield SourceError(chapter.path, number, message)


def references(chapter: Chapter) -> Iterator[tuple]:
    """(line, target, alternative text or None) of images and links."""
    for block in chapter.blocks:
        if block.name in IMAGES:
            alt = str(block.options.get("alt") or "")
            yield block.first, block.argument, alt
        line = block.line
        for source, token in spans("" if block.name else block.body):
            if token.type in LINKS:
                bang, text, target = link_parts(source)
                yield line, target, text if bang else None
            line += source.count("\n")


def reference_problems(book: Book, chapter) -> Iterator[SourceError]:
    """Images without a text, and files that are not there."""
    for line, target, alt in references(chapter):
        if alt == "":
            message = f"no alternative text for {target}"
            yield SourceError(chapter.path, line, message)
        if not is_there(book.root, chapter.path, target):
            message = f"{target} does not exist"
            yield SourceError(chapter.path, line, message)


def is_there(root: Path, page: str, target: str) -> bool:
    """Whether a link's file exists; addresses and labels are no files."""
    path = target.partition("#")[0]
    if re.match(r"[a-z]+:", path) or not PurePosixPath(path).suffix:
        return True
    base = root if path.startswith("/") else Path(root, page).parent
    return (base / path.lstrip("/")).exists()


PROVING = {"test", "exercise", "solution"}


def proofs(chapter: Chapter) -> dict[str, Cell]:
    """What tests, exercises and solutions define: the first cell of each."""
    found: dict[str, Cell] = {}
    for cell in chapter.cells:
        if PROVING & set(cell.tags) and cell.language == "python":
            own = cell if cell.target else readable(cell)
            for name in names_in(own.source).bound:
                found.setdefault(name, cell)
    return found


def outcome_problems(chapter: Chapter) -> Iterator[SourceError]:
    """Outcomes that are not given, or that nothing on the page shows."""
    if chapter.cells and "outcomes" not in chapter.front.get("companion", {}):
        yield SourceError(
            chapter.path, line_with("companion", chapter.text),
            "what can a reader do after it? Add `companion: {outcomes: "
            "{do this: test_NAME, and that: NAME_OF_AN_EXERCISE}}`")
    found = proofs(chapter) if chapter.outcomes else ()
    for outcome, name in chapter.outcomes.items():
        if str(name) not in found:
            yield SourceError(
                chapter.path, line_with(str(outcome), chapter.text),
                f"{outcome!r} is shown by {name}, which no test and no "
                "exercise of the page defines")


PICTURE = {"alternative text": ("mystnb", "image", "alt"),
           "caption": ("mystnb", "figure", "caption")}


def image_problems(book: Book, chapter) -> Iterator[SourceError]:
    """Pictures that cells draw need a text and a caption as well."""
    done = last_run(book, chapter)
    cells = code_cells(done) if done else []
    drawing = {ran.source.rstrip() for ran in cells if draws(ran)}
    for cell in chapter.cells:
        for what, keys in PICTURE.items():
            if cell.source in drawing and not told(cell, *keys):
                part, key = keys[1:]
                yield cell.error(1, f"the picture has no {what}: give the "
                                    f"cell `mystnb: {{{part}: {{{key}: …}}}}`")


def draws(ran) -> bool:
    """Whether a cell that ran has left a picture."""
    kinds = [kind for o in ran.outputs for kind in o.get("data", {})]
    return any(kind.startswith("image/") for kind in kinds)


def functions(library: Library) -> Iterator[tuple]:
    """(file, line, name, lines) of every function of the library."""
    for path, text in library.files.items():
        if path.startswith("companion/") and path.endswith(".py"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    length = (node.end_lineno or 0) - node.lineno + 1
                    yield path, node.lineno, node.name, length


def function_problems(library: Library) -> Iterator[SourceError]:
    """Functions too long to be read at a glance."""
    for path, line, name, length in functions(library):
        if length > FUNCTION_LINES:
            message = f"{name} has {length} lines: at most {FUNCTION_LINES}"
            yield SourceError(path, line, message)


LONGEST = {"cells": 45, "screens": 27}  # in sight, on one page


def length_problems(found: Measures,
                    chapter: Chapter) -> Iterator[SourceError]:
    """A page that is too long; those on the tools may be longer."""
    has = {"cells": len(found.cells), "screens": round(found.screens)}
    for what, most in LONGEST.items():
        if has[what] > most and not chapter.beside:
            yield SourceError(
                chapter.path, 1, f"the page shows {has[what]} {what}, and "
                f"the most is {most}: fold cells that a reader can believe "
                f"(`hide-input`), or make it two pages")


def summary(library: Library) -> str:
    """One line about the lengths of the library's functions."""
    lengths = sorted(length for *_, length in functions(library)) or [0]
    middle = round(statistics.median(lengths))
    most = lengths[round(0.9 * (len(lengths) - 1))]
    return (f"{len(lengths)} functions; lines: median {middle}, "
            f"90 % {most}, max {lengths[-1]}")


def problems(book: Book, library: Library) -> Iterator[SourceError]:
    """Every line of the book that breaks a limit."""
    for chapter in book.chapters:
        yield from cell_problems(chapter)
        yield from prose_problems(chapter)
        yield from outcome_problems(chapter)
        yield from reference_problems(book, chapter)
        yield from image_problems(book, chapter)
        yield from length_problems(measure(book, chapter), chapter)
    yield from function_problems(library)


def lint(options) -> int:
    """Print the table, then what is wrong; 1 if anything is."""
    book = read_book()
    library = tangle(book)
    print(table([row(measure(book, c)) for c in book.chapters]))
    print(summary(library))
    broken = list(problems(book, library))
    for problem in broken:
        print(problem, file=sys.stderr)
    return min(len(broken), 1)


def main(argv: list[str]) -> int:
    """Print every chapter's measures; fail if a limit is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m companion lint", description=main.__doc__)
    return reported(lint, parser.parse_args(argv))
