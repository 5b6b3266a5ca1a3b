# Tangled from tangle: edit there, `make tangle`. sha256:9e7d221b832d
"""Tangle: from the chapters' cells to the library's files."""

import argparse
import ast
import difflib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from companion.literate.csource import c_piece, check_c
from companion.literate.floors import beside, check_cycles, check_floors
from companion.literate.imports import Import, import_block, imports_of
from companion.literate.names import KNOWN, Names, Use, line_of, names_in
from companion.literate.pieces import (
    Layout,
    Piece,
    alone,
    decorated,
    parse,
    pieces,
    table_entries,
    without_decorator,
)
from companion.literate.source import (
    Book,
    Cell,
    Chapter,
    SourceError,
    read_book,
    read_chapter,
)
from companion.literate.write import check, with_header, write


# chapters/appendix/tangle.md:1218
@dataclass(eq=False)
class Definition:
    """One thing a cell defines, and where it stands in the library.

    `action` is define, extend or replace; `replaced` is the place of the
    text it took the room of; `line` is 0 once it was replaced itself.
    """

    name: str
    kind: str
    file: str
    chapter: str
    path: str
    chapter_line: int
    cell_index: int
    action: str = "define"
    replaced: str = ""
    line: int = 0
    after: str = ""
    uses: set[str] = field(default_factory=set)


# chapters/appendix/tangle.md:1243
@dataclass
class Library:
    """The tangled files, and every definition in the book's order."""

    files: dict[str, str] = field(default_factory=dict)
    definitions: list[Definition] = field(default_factory=list)


# chapters/appendix/tangle.md:1310
@dataclass(eq=False)
class Module:
    """A file in the making."""

    file: str
    tool: bool
    doc: list[str] = field(default_factory=list)
    body: list[Piece] = field(default_factory=list)
    chapters: list[str] = field(default_factory=list)
    imports: dict[str, Import] = field(default_factory=dict)
    reasons: dict[str, Callable] = field(default_factory=dict)

    @property
    def dotted(self) -> str:
        """The name that imports it."""
        name = self.file.removesuffix(".py").replace("/", ".")
        return name.removesuffix(".__init__")

    @property
    def library(self) -> bool:
        """Whether others may import it."""
        return self.file.startswith("companion/")


# chapters/appendix/tangle.md:1389
@dataclass(eq=False)
class Entry:
    """A name in the index: its piece, and the body that holds it."""

    name: str
    module: Module
    body: list[Piece]
    piece: Piece
    definition: Definition


# chapters/appendix/tangle.md:1403
LAZY = "from __future__ import annotations\n"
KINDS = {
    ast.ClassDef: "class",
    ast.FunctionDef: "function",
    ast.AsyncFunctionDef: "function",
    type(None): "symbol",
}


# chapters/appendix/tangle.md:1412
def definition(module, name, piece, action, replaced) -> Definition:
    """The record of a name that a piece defines."""
    kind = KINDS.get(type(piece.node), "constant")
    if "." in name:
        kind = "method" if kind == "function" else "attribute"
    elif "[" in name:
        kind = "entry"
    cell = piece.cell
    path, line = piece.place()
    return Definition(name, kind, module.file, cell.chapter, path, line,
                      cell.index, action, replaced)


# chapters/appendix/tangle.md:1430
class Tangler:
    """Takes cells in the book's order; remembers who defines what."""

    def __init__(self):
        self.modules: dict[str, Module] = {}
        self.index: dict[tuple[str, str], Entry] = {}
        self.entries: list[Entry] = []
        self.made: dict[int, list[Entry]] = {}
        self.pages: dict[str, dict[str, Import]] = {}
        self.loose: dict[tuple[str, str], Cell] = {}

    def read(self, chapter: Chapter) -> None:
        """Take all the cells of a chapter."""
        self.pages[chapter.name] = {}
        for cell in chapter.cells:
            self.learn(cell)
            if cell.target:
                module = self.module(cell.target, chapter.beside)
                self.take(module, cell)
                self.check_replaced(cell)

    def module(self, file: str, tool: bool) -> Module:
        """The module in the making that becomes `file`."""
        inside = file.startswith("companion/")
        fresh = Module(file, beside(file) if inside else tool)
        return self.modules.setdefault(file, fresh)

    # chapters/appendix/tangle.md:1465
    def learn(self, cell: Cell) -> None:
        """Remember what a cell imports, and what an untagged one makes."""
        if cell.language != "python":
            return
        text = cell.source if cell.target else readable(cell)
        nodes = parse(replace(cell, source=text))
        page = self.pages[cell.chapter]
        page |= {i.binds: i for node in nodes for i in imports_of(node)}
        if not cell.target:
            for name in names_in(text).bound:
                self.loose.setdefault((cell.chapter, name), cell)

    # chapters/appendix/tangle.md:1500
    def take(self, module: Module, cell: Cell) -> None:
        """Place the statements of a tangled cell."""
        if cell.language != "python":
            self.put(module, module.body, c_piece(cell))
            return
        found = pieces(cell)
        plain = [p for p in found if not imports_of(p.node)]
        grows = plain and all(decorated(p, "extend") for p in plain)
        for piece in found:
            if piece in plain:
                self.place(module, piece)
            elif not grows:
                self.take_imports(module, piece)

    def take_imports(self, module: Module, piece: Piece) -> None:
        """Add imports to those of the module."""
        self.sign(module, piece.cell)
        for new in imports_of(piece.node):
            old = module.imports.setdefault(new.binds, new)
            module.reasons[new.binds] = piece.error
            if old != new:
                raise piece.error(f"{new.binds} is imported from {old.module} "
                                  f"and from {new.module}: rename one")

    # chapters/appendix/tangle.md:1530
    def place(self, module: Module, piece: Piece) -> None:
        """Put a statement where it belongs."""
        if decorated(piece, "extend"):
            self.extend(module, piece)
        elif piece.docstring and not (module.body or module.doc):
            self.sign(module, piece.cell)
            module.doc = piece.text
        elif decorated(piece, "test"):
            self.put(module, module.body, without_decorator(piece))
        else:
            self.put(module, module.body, piece)

    def extend(self, module: Module, piece: Piece) -> None:
        """Put members at the end of the class they extend."""
        node = piece.node
        entry = self.index.get(self.key(module, node.name, anywhere=True))
        if not entry or not entry.piece.body:
            raise piece.error(f"@extend found no class {node.name}: "
                              "define it in an earlier tangled cell")
        if node.bases or node.keywords or piece.body[0].docstring:
            raise piece.error(f"@extend class {node.name} has bases or a "
                              "docstring: write them where it is defined")
        body = entry.piece.body
        if isinstance(body[0].node, ast.Pass):
            body.clear()
        for member in piece.body:
            self.put(entry.module, body, member, "extend")

    # chapters/appendix/tangle.md:1568
    def put(self, module, body, piece, action="define") -> None:
        """Add a piece to a body, or let it take an older one's place."""
        found = [self.old(module, name, piece) for name in piece.names]
        old = [entry for entry in found if entry]
        spots = [body.index(e.piece) for e in old if e.body is body]
        body.insert(min(spots, default=len(body)), piece)
        for entry in old:
            self.drop(entry, piece)
        places = {"{}:{}".format(*e.piece.place()): e for e in old}
        action = "replace" if old else action
        self.register(module, body, piece, action, ", ".join(places))

    def old(self, module: Module, name: str, piece: Piece) -> Entry | None:
        """What `name` meant before; an error unless it is replaced."""
        told = name in piece.cell.replaces
        entry = self.index.get(self.key(module, name, told))
        if entry and not told:
            path, line = entry.piece.place()
            raise piece.error(
                f"{name} is already defined at {path}:{line}: "
                f"rename one of them or say `:replaces: {name}`")
        return entry

    # chapters/appendix/tangle.md:1597
    def drop(self, entry: Entry, new: Piece) -> None:
        """Remove a replaced piece, and the members it had."""
        old = entry.piece
        rest = set(old.names) - set(new.names)
        if rest:
            path, line = old.place()
            raise new.error(
                f"{entry.name} is one with {', '.join(sorted(rest))} at "
                f"{path}:{line}: replace that whole statement")
        if old in entry.body:
            entry.body.remove(old)
        for piece in [old, *old.body]:
            for name in [*piece.names, *table_entries(piece)]:
                self.index.pop(self.key(entry.module, name), None)

    def check_replaced(self, cell: Cell) -> None:
        """What a cell says it replaces is what it replaced."""
        for name in cell.replaces:
            done = [
                entry
                for entry in self.entries
                if entry.name == name
                and entry.piece.cell is cell
                and entry.definition.action == "replace"
            ]
            if not done:
                raise cell.error(1, f"replaces {name}: no earlier cell "
                                    "defines it, or this one does not")

    # chapters/appendix/tangle.md:1632
    def register(self, module, body, piece, action, replaced="") -> None:
        """Enter a piece's names, and those of a class's members."""
        self.sign(module, piece.cell)
        for name in [*piece.names, *table_entries(piece)]:
            self.old(module, name, piece)
            new = definition(module, name, piece, action, replaced)
            entry = Entry(name, module, body, piece, new)
            self.index[self.key(module, name)] = entry
            if name in piece.names:
                self.entries.append(entry)
                self.made.setdefault(id(piece), []).append(entry)
        for member in piece.body:
            self.register(module, piece.body, member, action)

    def sign(self, module: Module, cell: Cell) -> None:
        """Note that a chapter writes in a module, in its own dialect."""
        if cell.chapter not in module.chapters:
            module.chapters.append(cell.chapter)
        future = self.pages[cell.chapter].get("annotations")
        if future and future.module == "__future__":
            module.imports["annotations"] = future

    # chapters/appendix/tangle.md:1662
    def key(self, module, name, anywhere=False) -> tuple[str, str]:
        """Where the index keeps a name that a cell of `module` says."""
        base = re.split(r"[.\[]", name)[0]
        own = name == base and not anywhere
        if not own and (module.file, base) not in self.index:
            others = self.definers(base, module)
            if len(others) == 1:
                return others[0].file, name
        return module.file, name

    def definers(self, name: str, module: Module) -> list[Module]:
        """The other modules, on this side of the house, that define it."""
        return [
            other
            for other in self.modules.values()
            if (other.file, name) in self.index
            and other.library
            and other.tool == module.tool
            and other is not module
        ]

    # chapters/appendix/tangle.md:1791
    def resolve_all(self, module: Module, found: dict[int, Names]) -> None:
        """Give the module the imports that its free names need."""
        own = set(module.imports)
        for piece in module.body:
            own |= set(piece.names) or found[id(piece)].bound
        for piece in module.body:
            for use in found[id(piece)].uses:
                if use.name in own:
                    continue
                blame = partial(error_at, piece, use)
                chapter = user(piece, use).cell.chapter
                needed = self.resolve(module, use.name, chapter, blame)
                if needed:
                    module.imports[use.name] = needed
                    module.reasons[use.name] = blame
                    own.add(use.name)

    # chapters/appendix/tangle.md:1814
    def resolve(self, module, name, chapter, blame) -> Import | None:
        """The import that a free name needs; None for a builtin."""
        said = self.pages[chapter].get(name)
        if said and not said.ours:
            return said
        if not said and name in KNOWN:
            return None
        others = self.definers(name, module)
        if len(others) > 1:
            others = self.nearest(name, chapter, others) or others
        found = [Import(other.dotted, name) for other in others]
        if said and not found:
            return said
        if len(found) != 1:
            raise blame(f"{name} {self.hint(name, chapter, others)}")
        return found[0]

    # chapters/appendix/tangle.md:1837
    def nearest(self, name, chapter, others) -> list[Module]:
        """Those of several definers that the page itself has named."""
        said = self.pages[chapter].get(name)
        return [
            other
            for other in others
            if (said and said.module == other.dotted)
            or self.index[other.file, name].piece.cell.chapter == chapter
        ]

    def hint(self, name: str, chapter: str, others: list[Module]) -> str:
        """What to do about a name that nothing, or too much, defines."""
        loose = self.loose.get((chapter, name))
        if others:
            files = " and ".join(other.file for other in others)
            return f"is defined in {files}: import the one meant on the page"
        if loose:
            return f"comes from the untagged cell at line {loose.line}: tag it"
        names = [name for _, name in self.index]
        near = difflib.get_close_matches(name, names, 1, 0.75)
        guess = f" (did you mean {near[0]}?)" if near else ""
        return f"is defined nowhere: define or import it{guess}"

    # chapters/appendix/tangle.md:1935
    def library(self) -> Library:
        """All the files, once they stand as they should."""
        library = Library()
        modules = [m for m in self.modules.values() if m.chapters]
        for module in modules:
            library.files[module.file] = self.finish(module)
        links = list(self.links(modules))
        check_floors([m for m in modules if m.library and m.body], links)
        check_cycles(links)
        library.definitions = [entry.definition for entry in self.entries]
        return library

    def finish(self, module: Module) -> str:
        """The text of a file."""
        if module.file.endswith(".py"):
            found = {id(p): names_in(alone(p).text) for p in module.body}
            module.body = in_order(module, found)
            self.resolve_all(module, found)
            layout, head = Layout(), top(module)
        else:
            layout, head, found = Layout('#line {line} "{path}"'), [], {}
        layout.add(module.body)
        self.note(module, layout, found, len(head) + 1)
        return with_header(module.file, module.chapters, head + layout.lines)

    # chapters/appendix/tangle.md:1977
    def note(self, module, layout, found, shift) -> None:
        """Complete the definitions with what the layout knows."""
        known = {n for file, n in self.index if file == module.file}
        known |= {n for n, i in module.imports.items() if i.ours}
        previous = ""
        for piece in module.body:
            names = found.get(id(piece), Names(set(), []))
            used = known & {use.name for use in names.uses}
            previous = self.note_piece(piece, previous, used)
        for key, (first, _) in layout.spans.items():
            for entry in self.made.get(key, ()):
                entry.definition.line = shift + first

    def note_piece(self, piece: Piece, previous: str, used: set[str]) -> str:
        """What a piece stands after and uses; returns its last name."""
        words = set(re.findall(r"\w+", alone(piece).text))
        for entry in self.made.get(id(piece), ()):
            entry.definition.after = previous
            entry.definition.uses = used & words
            previous = entry.name
        inner = ""
        for member in piece.body:
            inner = self.note_piece(member, inner, used)
        return previous

    # chapters/appendix/tangle.md:2008
    def links(self, modules):
        """Yield (file, file it imports, how to blame the need)."""
        for module in modules:
            for name, found in module.imports.items():
                if module.library and found.ours:
                    other = found.file(self.modules)
                    yield module.file, other, module.reasons[name]


# chapters/appendix/tangle.md:1481
def readable(cell: Cell) -> str:
    """What Python can read of a page's own cell: magics left out."""
    text = re.sub(r"(?m)^[ \t]*[%!].*$", "", cell.source)
    try:
        ast.parse(text)
    except SyntaxError:  # the page shows it, or the run will
        return ""
    return text


# chapters/appendix/tangle.md:1770
def user(piece: Piece, use: Use) -> Piece:
    """The piece itself, or the member given later, that uses a name."""
    chapters = {part.cell.chapter for part in [piece, *piece.body]}
    if len(chapters) == 1:
        return piece
    layout = alone(piece)
    return layout.origins[line_of(use, layout.text)][0]


# chapters/appendix/tangle.md:1779
def error_at(piece: Piece, use: Use, message: str) -> SourceError:
    """An error at the line where a piece uses a name."""
    layout = alone(piece)
    part, line = layout.origins[line_of(use, layout.text)]
    return part.cell.error(line, message)


# chapters/appendix/tangle.md:1879
def in_order(module: Module, found: dict[int, Names]) -> list[Piece]:
    """The book's order, with what a piece needs at import before it."""
    made = {n: p for p in module.body for n in p.names if n.isidentifier()}
    lazy = "annotations" in module.imports
    ordered: list[Piece] = []
    begun: set[int] = set()

    def visit(piece):
        if id(piece) in begun:
            return
        begun.add(id(piece))
        later = {n: p for n, p in made.items() if id(p) not in begun}
        for name in needs(piece, made, found, later, lazy):
            visit(made[name])
        ordered.append(piece)

    for piece in sorted(module.body, key=is_main):
        visit(piece)
    return ordered


# chapters/appendix/tangle.md:1903
def needs(piece: Piece, made, found, later, lazy) -> list[str]:
    """The names that must exist when a piece runs, nearest first."""
    uses = found[id(piece)].uses
    if lazy and any(use.now and use.name in later for use in uses):
        uses = names_in(LAZY + alone(piece).text).uses
    names = [use.name for use in uses if use.now and use.name in made]
    for name in names:
        if KINDS.get(type(made[name].node)) == "function":
            inner = found[id(made[name])].uses
            more = [use.name for use in inner if use.name in made]
            names += [n for n in more if n not in names]
    return names


# chapters/appendix/tangle.md:1920
def is_main(piece: Piece) -> bool:
    """Whether it is the block that runs a module as a program."""
    node = piece.node
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


# chapters/appendix/tangle.md:1964
def top(module: Module) -> list[str]:
    """The docstring and the imports of a module."""
    parts = [module.doc, import_block(module.imports.values())]
    lines = [line for part in parts if part for line in ["", *part]][1:]
    ending = 2 if module.body and module.body[0].block else 1
    return lines + [""] * ending if lines else []


# chapters/appendix/tangle.md:2022
def tangle(book: Book, upto: str | None = None) -> Library:
    """The library of a book, or as it stands before chapter `upto`."""
    tangler = Tangler()
    for chapter in (book.before(upto) if upto else book).tangle_order:
        tangler.read(chapter)
    return tangler.library()


# chapters/appendix/tangle.md:2675
def main(argv: list[str]) -> int:
    """Write the library that the chapters define."""
    options = arguments().parse_args(argv)
    try:
        status = run(options)
        if status is None:
            command = [sys.executable, "-m", "companion", "tangle", *argv]
            status = subprocess.run(command).returncode
        return status
    except SourceError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        name = error.filename or options.out or "."
        print(f"{name}: {error.strerror}: nothing was changed; mend that "
              "and run it again", file=sys.stderr)
    return 1


# chapters/appendix/tangle.md:2696
def run(options: argparse.Namespace) -> int | None:
    """Tangle, then compare or write; None if it is to be done again."""
    out = options.out or "."
    if options.sources and not options.out:
        message = "is not the whole book: say `--out DIR`"
        raise SourceError(options.sources[0], 1, message)
    book = book_of(options.sources)
    files = tangle(book, options.upto).files
    check_kernels(files, Path(out))
    if options.check:
        found = check(files, out)
        print("\n".join(found) or f"{len(files)} files as tangled")
        return 1 if found else 0
    changed = write(files, out, options.force)
    print(f"{len(files)} files tangled, {len(changed)} changed")
    mine = Path(out, "companion/literate").resolve() == Path(__file__).parent
    return None if mine and any("literate/" in f for f in changed) else 0


# chapters/appendix/tangle.md:2720
def arguments() -> argparse.ArgumentParser:
    """What may stand after `python -m companion tangle`."""
    parser = argparse.ArgumentParser(
        prog="python -m companion tangle", description=main.__doc__)
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE",
        help="chapters or notebooks instead of the book")
    for flag, metavar, purpose in (
        ("--upto", "CHAPTER", "stop before this chapter"),
        ("--out", "DIR", "write there instead of here"),
    ):
        parser.add_argument(flag, metavar=metavar, help=purpose)
    for flag, purpose in (
        ("--check", "say what differs, write nothing"),
        ("--force", "overwrite what was edited by hand"),
    ):
        parser.add_argument(flag, action="store_true", help=purpose)
    return parser


# chapters/appendix/tangle.md:2743
def book_of(sources: list[str]) -> Book:
    """The book here; or a reader's own chapters, and the tools."""
    if not sources:
        return read_book()
    own = [read_chapter(source) for source in sources]
    names = {chapter.name for chapter in own}
    here = Path("_toc.yml").exists()
    pages = read_book().chapters if here else (installed(),)
    tools = [c for c in pages if c.beside and c.name not in names]
    return Book(Path("."), (*tools, *own))


# chapters/appendix/tangle.md:2755
def installed() -> Chapter:
    """The tools as they are installed, for a reader without the book."""
    package = Path(__file__).parents[1]
    files = [*package.glob("__*__.py"), *package.glob("literate/*.py")]
    front = {"companion": {"beside": True}}
    cells = []
    for n, path in enumerate(sorted(files)):
        file = path.relative_to(package).as_posix()
        text = re.sub(r"(?m)^ *# .*\n|^\w+\[.*\] = .*\n", "",
                      path.read_text())
        cells.append(Cell("tools", f"companion/{file}", n, 1, text,
                          ("tangle",), file=file))
    return Chapter("tools", "companion", "", front, "", tuple(cells))


# chapters/appendix/tangle.md:2773
def check_kernels(files: dict[str, str], out: Path) -> None:
    """Let the compiler read the C files that changed."""
    for file, text in files.items():
        path = out / file
        old = path.read_text() if path.exists() else ""
        if file.endswith(".c") and text != old:
            check_c(text)
