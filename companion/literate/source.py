# Tangled from tangle: edit there, `make tangle`. sha256:1ac1fe53dba3
"""Chapters as data: front matter, code cells, the book in reading order."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath

import yaml


class SourceError(Exception):
    """Bad input: where it stands, what is wrong, how to mend it."""

    def __init__(self, path: str, line: int, message: str):
        super().__init__(path, line, message)
        self.path, self.line, self.message = path, line, message

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


CONTENT_TAGS = (
    "tangle", "test", "timing", "varies", "gpu", "exercise", "solution"
)  # fmt: skip
UNCOMPARED = frozenset({"timing", "varies"})

DISPLAY_TAGS = (
    "hide-input", "hide-output", "hide-cell",
    "remove-input", "remove-output", "remove-cell",
    "full-width", "margin", "raises-exception",
)  # fmt: skip

TAGS = CONTENT_TAGS + DISPLAY_TAGS
SUFFIXES = (".py", ".c", ".h", ".cu", ".cuh")


def compared(tags: Iterable[str]) -> bool:
    """Whether a cell of these tags prints the same on every machine."""
    return UNCOMPARED.isdisjoint(tags)


@dataclass(frozen=True)
class Cell:
    """One code cell; `line` is where its source begins in `path`."""

    chapter: str
    path: str
    index: int
    line: int
    source: str
    tags: tuple[str, ...] = ()
    language: str = "python"
    file: str | None = None
    replaces: tuple[str, ...] = ()
    options: dict = field(default_factory=dict, compare=False)

    @property
    def flags(self) -> list[str]:
        """What the magic of a C cell tells the compiler."""
        first = self.source.split("\n", 1)[0]
        return [] if self.language == "python" else first.split()[2:]

    @property
    def target(self) -> str | None:
        """The file this cell is tangled to, relative to the root."""
        inside = self.file is None or self.file.startswith("tests/")
        return self.file if inside else f"companion/{self.file}"

    def error(self, line: int, message: str) -> SourceError:
        """The error at the source's own line `line`, counted from 1."""
        return SourceError(self.path, self.line + line - 1, message)


@dataclass(frozen=True)
class Chapter:
    """One page: its front matter, its whole text, its code cells."""

    name: str
    path: str
    title: str = ""
    front: dict = field(default_factory=dict, compare=False)
    text: str = ""
    cells: tuple[Cell, ...] = ()

    @property
    def module(self) -> str | None:
        """The file of `tangle` cells that name none, below companion/."""
        return self.front.get("companion", {}).get("module")

    @property
    def beside(self) -> bool:
        """Whether the chapter is a tool's: tangled before all others."""
        return bool(self.front.get("companion", {}).get("beside"))

    @property
    def outcomes(self) -> dict[str, str]:
        """What a reader can do after it: the test or exercise of each."""
        return self.front.get("companion", {}).get("outcomes", {})


@dataclass(frozen=True)
class Book:
    """The pages in the order of `_toc.yml`."""

    root: Path
    chapters: tuple[Chapter, ...]
    numbers: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def tangle_order(self) -> tuple[Chapter, ...]:
        """The tools' chapters, then the others in reading order."""
        beside = [c for c in self.chapters if c.beside]
        return (*beside, *(c for c in self.chapters if not c.beside))

    def chapter(self, name: str) -> Chapter:
        """The chapter called `name`."""
        for chapter in self.chapters:
            if chapter.name == name:
                return chapter
        raise SourceError("_toc.yml", 1, f"no chapter called {name!r}")

    def before(self, name: str) -> "Book":
        """The book a reader of `name` has behind him, and the tools."""
        order = self.tangle_order
        at = order.index(self.chapter(name))
        kept = [c for n, c in enumerate(order) if c.beside or n < at]
        return replace(self, chapters=tuple(kept))

    def upto(self, name: str) -> "Book":
        """The same with the chapter `name` itself."""
        earlier = self.before(name).chapters
        own = (self.chapter(name),)
        new = own if own[0] not in earlier else ()
        return replace(self, chapters=earlier + new)


FENCE = re.compile(r"(`{3,}(?=[^`]*$)|~{3,}|:{3,})\s*(.*)")

NESTED = re.compile(r"[\s>*+-]*(`{3,}|~{3,}|:{3,})\s*\{code-cell\}")

LITERAL = re.compile(r"[^{]|$|\{(code-block|code|raw|math|literalinclude)\}")


def fences(path: str, lines: list[str]):
    """Yield (first, last, info) of every fence at the page's top level."""
    at = 0
    while at < len(lines):
        match = FENCE.match(lines[at])
        if match:
            end = closing(path, lines, at, match[1])
            check_body(path, lines, at, end, match)
            yield at, end, match[2]
            at = end
        elif NESTED.match(lines[at]):
            raise nested(path, at, "a list or a quotation")
        at += 1


def closing(path: str, lines: list[str], at: int, fence: str) -> int:
    """The line that closes the fence opened at line `at`."""
    close = re.compile(rf"{fence[0]}{{{len(fence)},}}\s*$")
    for n in range(at + 1, len(lines)):
        if close.match(lines[n]):
            return n
    raise unclosed(path, at, fence)


def check_body(path, lines, first, last, opening) -> None:
    """Refuse a fence whose body holds a code cell that would not run."""
    fence, info = opening.groups()
    for n in range(first + 1, last):
        inner = NESTED.match(lines[n])
        if inner and info.startswith("{code-cell}"):
            if len(inner[1]) >= len(fence):
                raise unclosed(path, first, fence)
        elif inner and not LITERAL.match(info):
            raise nested(path, n, f"{info.split()[0]} of line {first + 1}")


def unclosed(path: str, at: int, fence: str) -> SourceError:
    message = f"this fence is never closed: end it with a line {fence}"
    return SourceError(path, at + 1, message)


def nested(path: str, at: int, place: str) -> SourceError:
    message = f"a code cell inside {place} is not run: put it at top level"
    return SourceError(path, at + 1, message)


MAGIC = re.compile(r"%%(c|cuda)\b[ \t]*(\S*)")

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def split_options(lines: list[str]) -> tuple[str, int]:
    """A cell's options as YAML, and how many lines they take."""
    found = [line.lstrip() for line in lines]
    taken = next((n for n, x in enumerate(found) if x[:1] != ":"), len(found))
    return "\n".join(line[1:] for line in found[:taken]), taken


def as_list(value) -> tuple[str, ...]:
    """`a, b` or `[a, b]` as a tuple of words."""
    words = value.split(",") if isinstance(value, str) else value or ()
    return tuple(str(word).strip() for word in words)


def check_options(path: str, body: list[str], first: int, taken: int) -> None:
    """Refuse options that YAML, or jupytext, would read otherwise."""
    for n, line in enumerate(body[:taken]):
        tight = re.match(r"\s*(:[\w-]+:)\S", line)
        if tight:
            message = "an option needs a space behind its colon:"
            raise SourceError(path, first + n, f"{message} `{tight[1]} …`")
    for n, line in enumerate(body[taken:], taken):
        if re.match(r"\s*:[\w-]+:|---\s*$", line):
            message = "options stand directly below the fence: `:key: value`"
            raise SourceError(path, first + n, message)
        if line.strip():
            break


def load_yaml(text: str, path: str, line: int, loader=LOADER) -> dict:
    """A mapping written in YAML that begins at `line`."""
    try:
        data = yaml.load(text, loader) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        last = line + text.count("\n")
        where = min(line + mark.line, last) if mark else line
        problem = getattr(error, "problem", None) or "cannot be read"
        raise SourceError(path, where, f"YAML: {problem}") from None
    if not isinstance(data, dict):
        raise SourceError(path, line, "YAML: expected `key: value` lines")
    return data


def make_cell(chapter: Chapter, path, index, line, source, options) -> Cell:
    """A checked cell; `line` is the source's first, in `path`."""
    magic = MAGIC.match(source)
    cell = Cell(
        chapter=chapter.name,
        path=path,
        index=index,
        line=line,
        source=source,
        tags=as_list(options.get("tags")),
        language=magic[1] if magic else "python",
        replaces=as_list(options.get("replaces")),
        options=options,
    )
    check_tags(cell)
    named = options.get("file") or (magic and magic[2]) or chapter.module
    return replace(cell, file=target_file(cell, named))


def check_tags(cell: Cell) -> None:
    """Every tag is known; a cell is tangled to one file."""
    if not isinstance(cell.options.get("tags", []), list):
        raise cell.error(1, "tags are a list: `:tags: [tangle]`")
    for tag in cell.tags:
        if tag not in TAGS:
            near = difflib.get_close_matches(tag, TAGS, 1, 0.75)
            hint = f"did you mean {near[0]}?" if near else ", ".join(TAGS)
            raise cell.error(1, f"unknown tag {tag!r}: {hint}")
    if {"tangle", "test"} <= set(cell.tags):
        raise cell.error(1, "a cell is `tangle` or `test`: split it in two")


def target_file(cell: Cell, named: str | None) -> str | None:
    """Where the cell's text goes, relative to companion/."""
    if "test" in cell.tags:
        return f"tests/chapters/test_{cell.chapter.replace('-', '_')}.py"
    if "tangle" not in cell.tags:
        return None
    if not named:
        raise cell.error(
            1,
            "no file to tangle to: give the cell `:file:` or"
            " the front matter `companion: {module: …}`",
        )
    file = PurePosixPath(str(named))
    if file.suffix not in SUFFIXES:
        known = " ".join(SUFFIXES)
        raise cell.error(1, f"unknown suffix in {named!r}: not in {known}")
    if file.is_absolute() or ".." in file.parts:
        raise cell.error(1, f"{named!r} is not a file below companion/")
    return str(file)


def unix(text: str) -> str:
    """The text, each of its lines ended by a line feed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path, shown: str) -> str:
    """The text of a file that has to be UTF-8."""
    data = path.read_bytes()
    bad = data.find(0)
    try:
        if bad < 0:
            return unix(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        bad = error.start
    line = unix(data[:bad].decode("latin-1")).count("\n") + 1
    message = f"byte 0x{data[bad]:02x} is not UTF-8 text: save it as UTF-8"
    raise SourceError(shown, line, message)


def read_chapter(path: str | Path, root: str | Path = ".") -> Chapter:
    """Read a MyST chapter, or a reader's notebook (`.ipynb`)."""
    file = Path(root, path)
    shown = Path(path).as_posix()
    text = read_text(file, shown)
    read = read_notebook if file.suffix == ".ipynb" else read_myst
    chapter = read(file.stem, shown, text)
    check_exercises(chapter)
    return chapter


FRONT_KEYS = {
    "module": (str, "NAME.py"),
    "beside": (bool, "true"),
    "outcomes": (dict, "{what a reader can do: test_NAME}"),
}


def check_front(front: dict, path: str, text: str) -> None:
    """The front matter's own part has the keys that we know."""
    own = front.get("companion", {})
    if not isinstance(own, dict):
        raise SourceError(path, 1, f"`companion: {own}` in the front matter:"
                          " write `companion: {module: NAME.py}`")
    for key, value in own.items():
        fault = front_fault(str(key), value)
        if fault:
            raise SourceError(path, line_with(str(key), text), fault)


def front_fault(key: str, value) -> str:
    """What is wrong with an entry of the front matter, if anything is."""
    if key not in FRONT_KEYS:
        near = difflib.get_close_matches(key, FRONT_KEYS, 1, 0.75)
        hint = f"did you mean {near[0]}?" if near else ", ".join(FRONT_KEYS)
        return f"unknown key {key!r} below companion: {hint}"
    kind, example = FRONT_KEYS[key]
    fits = isinstance(value, kind)
    return "" if fits else f"`{key}: {value}`: write `{key}: {example}`"


def line_with(words: str, text: str) -> int:
    """The first line of a text on which words stand; else its first."""
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text)
    return text.count("\n", 0, found.start() if found else 0) + 1


@cache
def read_myst(name: str, path: str, text: str) -> Chapter:
    """A chapter from its MyST text."""
    lines = text.split("\n")
    start = 0
    if lines[0].rstrip() == "---":
        start = next(
            (n for n, x in enumerate(lines[1:], 1) if x.rstrip() == "---"), 0
        )
        if not start:
            raise unclosed(path, 0, "---")
    front = load_yaml("\n".join(lines[1:start]), path, 2)
    check_front(front, path, text)
    blank = [""] * start + ["" if start else lines[0]] + lines[start + 1 :]
    title = next((x[2:] for x in blank if x.startswith("# ")), name)
    chapter = Chapter(name, path, title.strip(), front, text)
    return replace(chapter, cells=tuple(myst_cells(chapter, blank)))


def myst_cells(chapter: Chapter, lines: list[str]):
    """The code cells among a chapter's fences."""
    index = 0
    for first, last, info in fences(chapter.path, lines):
        if not info.startswith("{code-cell}"):
            continue
        if lines[first].startswith(":"):
            message = f"the fence of a code cell is {'`' * 3}, or longer"
            raise SourceError(chapter.path, first + 1, message)
        body = lines[first + 1 : last]
        text, taken = split_options(body)
        check_options(chapter.path, body, first + 2, taken)
        options = load_yaml(text, chapter.path, first + 2)
        if body[taken : taken + 1] and not body[taken].strip():
            taken += 1
        source = "\n".join(body[taken:]).rstrip()
        line = first + 2 + taken
        yield make_cell(chapter, chapter.path, index, line, source, options)
        index += 1


def read_notebook(name: str, path: str, text: str) -> Chapter:
    """A chapter from a notebook; `path[3]:2` is line 2 of code cell 3."""
    try:
        notebook = json.loads(text)
        found = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    except json.JSONDecodeError as error:
        message = f"not a notebook: {error.msg}"
        raise SourceError(path, error.lineno, message) from None
    except (KeyError, TypeError):
        message = "not a notebook: its `cells` are missing"
        raise SourceError(path, 1, message) from None
    chapter = Chapter(name, path, name, notebook.get("metadata", {}), text)
    cells = (
        make_cell(
            chapter,
            f"{path}[{n}]",
            n - 1,
            1,
            unix("".join(cell["source"])).rstrip(),
            cell.get("metadata", {}),
        )
        for n, cell in enumerate(found, 1)
    )
    return replace(chapter, cells=tuple(cells))


def check_exercises(chapter: Chapter) -> None:
    """Each exercise is followed by its solution."""
    asked: Cell | None = None
    for cell in (*chapter.cells, None):
        if asked and (cell is None or "exercise" in cell.tags):
            raise asked.error(
                1,
                "this exercise has no solution: add a cell"
                " tagged [solution, hide-cell] after it",
            )
        if cell and {"exercise", "solution"} & set(cell.tags):
            asked = cell if "exercise" in cell.tags else None


class Marked(str):
    """A text of the table of contents, with its line there."""

    line = 1


class TocLoader(LOADER):  # type: ignore[misc, valid-type]
    """Reads YAML and marks its texts."""

    def construct_scalar(self, node):
        text = Marked(super().construct_scalar(node))
        text.line = node.start_mark.line + 1
        return text


def toc_files(node) -> list[Marked]:
    """Every page that a table of contents names, in reading order."""
    if isinstance(node, list):
        return [file for item in node for file in toc_files(item)]
    if not isinstance(node, dict):
        raise toc_error(node, f"expected `- file: PAGE`, found {node}")
    own = []
    for key in node:
        if key in ("root", "file"):
            own.append(node[key])
            if not isinstance(own[-1], Marked):
                raise toc_error(key, f"`{key}:` names no page")
    below = ("parts", "chapters", "sections")
    return own + [f for key in below for f in toc_files(node.get(key) or [])]


def toc_error(text, message: str) -> SourceError:
    """An error at the line of a text of the table of contents."""
    return SourceError("_toc.yml", getattr(text, "line", 1), message)


def hidden(path: Path) -> bool:
    """Whether a file, or its folder, is what an editor keeps aside."""
    return any(part[0] in ".#~" or part[-1] == "~" for part in path.parts)


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and its folders, less the hidden ones."""
    found = sorted(folder.rglob("*"))
    return [path for path in found if path.is_file()
            and not hidden(path.relative_to(folder))]


def check_toc(root: Path, entries: list[Marked], files: list[str]) -> None:
    """The table of contents and the folder name the same pages, once."""
    known: dict[str, str] = {}
    for entry, file in zip(entries, files):
        if not (root / file).exists():
            message = f"{file} does not exist: write it or drop this entry"
            raise toc_error(entry, message)
        twice = clash(file, known)
        if twice:
            raise toc_error(entry, twice)
    for page in files_below(root / "chapters"):
        shown = page.relative_to(root).as_posix()
        if page.suffix == ".md" and shown not in files:
            message = "is not in _toc.yml: add it there or delete the file"
            raise SourceError(shown, 1, message)


def clash(file: str, known: dict[str, str]) -> str:
    """What is wrong where a page of this name is known, if one is."""
    other = known.get(Path(file).stem)
    known[Path(file).stem] = file
    if other == file:
        return f"{file} stands here twice: drop one of the two"
    return f"{file} and {other} share a name: rename one" if other else ""


def read_book(root: str | Path = ".") -> Book:
    """Read every page of the book whose `_toc.yml` stands in `root`."""
    root = Path(root)
    if not (root / "_toc.yml").exists():
        raise SourceError(
            "_toc.yml",
            1,
            f"not found in {root}: run this in the folder of the book",
        )
    text = read_text(root / "_toc.yml", "_toc.yml")
    toc = load_yaml(text, "_toc.yml", 1, TocLoader)
    entries = toc_files(toc)
    files = [page_file(entry) for entry in entries]
    check_toc(root, entries, files)
    chapters = tuple(read_chapter(file, root) for file in files)
    return Book(root, chapters, toc_numbers(toc))


def toc_numbers(toc: dict) -> dict[str, str]:
    """Chapter numbers as Jupyter Book gives them: over all parts."""
    numbers: dict[str, str] = {}
    count = 0
    for part in toc.get("parts", [toc]):
        if not {**toc.get("defaults", {}), **part}.get("numbered"):
            continue
        for item in pages_in(part, "chapters"):
            count += 1
            numbers[Path(page_file(item["file"])).stem] = str(count)
            for n, section in enumerate(pages_in(item, "sections"), 1):
                name = Path(page_file(section["file"])).stem
                numbers[name] = f"{count}.{n}"
    return numbers


def page_file(entry: str) -> str:
    """The file of an entry, which may end in .md or not."""
    return str(PurePosixPath(entry.removesuffix(".md") + ".md"))


def pages_in(node: dict, key: str) -> list[dict]:
    """The entries below `key` that are pages, and no links elsewhere."""
    return [item for item in node.get(key) or [] if "file" in item]
