# Tangled from tangle: edit there, `make tangle`. sha256:06c48472edae
"""Chapters as data: front matter, code cells, the book in reading order."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePosixPath

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.attrs import attrs_block_plugin
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from mdit_py_plugins.myst_role import myst_role_plugin


class SourceError(Exception):
    """Bad input: where it stands, what is wrong, how to mend it."""

    def __init__(self, path: str, line: int, message: str):
        super().__init__(path, line, message)
        self.path, self.line, self.message = path, line, message

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


CONTENT_TAGS = (
    "tangle", "test", "timing", "varies", "gpu", "exercise", "solution",
    "raises-exception",
)  # fmt: skip
UNCOMPARED = frozenset({"timing", "varies"})

DISPLAY_TAGS = (
    "hide-input", "hide-output", "hide-cell",
    "remove-input", "remove-output", "remove-cell",
    "full-width", "margin",
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
    prose: tuple["Block", ...] = field(default=(), compare=False)
    blocks: tuple["Block", ...] = field(default=(), compare=False)

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
        """The book as read before `name`, and the tools."""
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


MYST = (
    MarkdownIt("commonmark", {"inline_definitions": True})
    .enable("table")
    .use(front_matter_plugin)
    .use(myst_block_plugin)
    .use(myst_role_plugin)
    .use(colon_fence_plugin)
    .use(dollarmath_plugin)
    .use(attrs_block_plugin)
    .disable(["newline", "emphasis", "entity", "autolink"])
)
# Blocks alone: what stands inside a line costs time, and is asked for later.
MYST.core.ruler.enableOnly(["normalize", "block"])


@dataclass(frozen=True)
class Block:
    """A piece of prose (no name), a plain `fence`, or a directive."""

    name: str
    first: int
    last: int
    line: int  # of the body's first line
    body: str
    argument: str = ""
    options: dict = field(default_factory=dict)


NO_FRONT = Block("front", 1, 0, 2, "")
FENCES = ("fence", "colon_fence")
BLOCK_NAMES = {
    "front_matter": "front", "myst_target": "target",
    "myst_line_comment": "unseen", "myst_block_break": "unseen",
    "attrs_block": "unseen", "math_block": "math", "math_block_label": "math",
}  # fmt: skip
LITERAL = {*BLOCK_NAMES.values(), "fence", "code-cell", "code-block", "code",
           "raw", "literalinclude"}


def blocks(path: str, text: str, line: int = 1) -> Iterator[Block]:
    """Cut a page's text, which begins at `line`, into its blocks."""
    lines = text.split("\n")
    for token in MYST.parse(text):
        first, last = token.map or (0, 0)
        if is_buried(token):
            raise nested(path, line + first, "a list or a quotation")
        if token.nesting >= 0 and not token.level:
            yield block_of(path, token, lines[first:last], line + first)


def block_of(path: str, token: Token, lines: list[str], line: int) -> Block:
    """The block that a token of level zero makes."""
    if token.type in FENCES:
        return fenced(path, token, lines, line)
    name = BLOCK_NAMES.get(token.type, "")
    body = token.content if name else "\n".join(lines)
    return Block(name, line, line + len(lines) - 1, line, body)


CELL = "{code-cell}"


def is_buried(token: Token) -> bool:
    """Whether a code cell stands where nothing runs it."""
    if token.type in FENCES:
        return bool(token.level) and token.info.startswith(CELL)
    return token.type in ("code_block", "html_block") and CELL in token.content


def check_fence(path: str, token: Token, end: str, line: int) -> None:
    """Refuse a fence that is never closed, or only by the next cell's."""
    fence, is_cell = token.markup, token.info.startswith(CELL)
    next_cell = rf"(?m)^\s*{fence}.*{re.escape(CELL)}"
    swallows = is_cell and re.search(next_cell, token.content)
    if swallows or len(end) < len(fence) or end.strip(fence[0]):
        raise unclosed(path, line, fence)
    if is_cell and token.type == "colon_fence":
        message = f"the fence of a code cell is {'`' * 3}, or longer"
        raise SourceError(path, line, message)


def unclosed(path: str, line: int, fence: str) -> SourceError:
    message = f"this fence is never closed: end it with a line {fence}"
    return SourceError(path, line, message)


def nested(path: str, line: int, place: str) -> SourceError:
    message = f"a code cell inside {place} is not run: put it at top level"
    return SourceError(path, line, message)


DIRECTIVE = re.compile(r"\{([^}]+)\}\s*(.*)")


def fenced(path: str, token: Token, lines: list[str], line: int) -> Block:
    """The block that a fence and its body make."""
    check_fence(path, token, "".join(lines[1:][-1:]).strip(), line)
    last = line + len(lines) - 1
    head = DIRECTIVE.match(token.info.strip())
    if not head:
        return Block("fence", line, last, line, "\n".join(lines))
    inside = token.content.split("\n")[:-1]
    text, taken = split_options(inside)
    if head[1] == "code-cell":
        check_options(path, inside, line + 1, taken)
    options = load_yaml(text, path, line + 1)
    taken += inside[taken:] > [] and not inside[taken].strip()
    body = "\n".join(inside[taken:])
    return Block(head[1], line, last, line + 1 + taken, body, head[2], options)


def split_options(lines: list[str]) -> tuple[str, int]:
    """A directive's options as YAML, and how many lines they take."""
    found = [line.lstrip() for line in lines]
    options = list(takewhile(re.compile(":(?!::)").match, found))
    return "\n".join(line[1:] for line in options), len(options)


def check_options(path: str, body: list[str], first: int, taken: int) -> None:
    """Refuse options that YAML, or MyST, would read otherwise."""
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


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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


def all_blocks(path: str, text: str, line: int = 1) -> Iterator[Block]:
    """The blocks of a text, and those inside them."""
    for block in blocks(path, text, line):
        yield block
        if not block.name or block.name in LITERAL:
            continue
        for inner in all_blocks(path, block.body, block.line):
            if inner.name == "code-cell":
                place = f"{{{block.name}}} of line {block.first}"
                raise nested(path, inner.first, place)
            yield inner


MAGIC = re.compile(r"%%(c|cuda)\b[ \t]*(\S*)")


def as_list(value) -> tuple[str, ...]:
    """`a, b` or `[a, b]` as a tuple of words."""
    words = value.split(",") if isinstance(value, str) else value or ()
    return tuple(str(word).strip() for word in words)


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
    found = tuple(all_blocks(path, text))
    front = next((b for b in found[:1] if b.name == "front"), NO_FRONT)
    if front is NO_FRONT and text.startswith("---\n"):
        raise unclosed(path, 1, "---")
    data = load_yaml(front.body, path, 2)
    check_front(data, path, text)
    titles = (block.body[2:].strip() for block in found
              if not block.name and block.body.startswith("# "))
    cells = [block for block in found if block.name == "code-cell"]
    prose = tuple(prose_around(text.split("\n"), [front, *cells]))
    page = Chapter(
        name, path, next(titles, name), data, text, (), prose, found)
    made = (make_cell(page, path, n, b.line, b.body.rstrip(), b.options)
            for n, b in enumerate(cells))
    return replace(page, cells=tuple(made))


def prose_around(lines: list[str], found: list[Block]):
    """Yield what stands behind each of these blocks, if anything does."""
    stops = [*(block.first - 1 for block in found[1:]), len(lines)]
    for block, last in zip(found, stops):
        text = "\n".join(lines[block.last : last]).rstrip()
        first = block.last + 1 + len(text) - len(text.lstrip("\n"))
        if text:
            yield Block("", first, last, first, text.lstrip("\n"))


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
    cells = []
    for n, cell in enumerate(found):
        source = unix("".join(cell["source"])).rstrip()
        options, place = cell.get("metadata", {}), f"{path}[{n + 1}]"
        cells.append(make_cell(chapter, place, n, 1, source, options))
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
