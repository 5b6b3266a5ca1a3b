# Tangled from tangle: edit there, `make tangle`. sha256:f07f84717ec1
"""Tangle: from the chapters' cells to the library's files."""

import argparse
import ast
import difflib
import gc
import hashlib
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from companion.literate.csource import CARD, c_piece, check_source
from companion.literate.floors import (
    Link, beside, check_cycles, check_floors, floors)
from companion.literate.imports import Import, import_block, imports_of
from companion.literate.names import KNOWN, Use, line_of, names_in
from companion.literate.origin import ORIGINS
from companion.literate.pieces import (
    Layout, Piece, alone, as_entry, check_python, decorated, is_entry,
    open_table, parse, pieces, table_entries, tables_of, without_decorator)
from companion.literate.source import (
    Book, Cell, Chapter, SourceError, clash, files_below, read_book,
    read_chapter)
from companion.literate.write import check, replace_file, with_header, write


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


@dataclass
class Library:
    """The tangled files, and every definition in the book's order.

    `floors` has the files of the house, and not the tools beside it;
    `origins` the places in the chapters where the runs of a file begin.
    """

    files: dict[str, str] = field(default_factory=dict)
    origins: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    definitions: list[Definition] = field(default_factory=list)
    floors: dict[str, int] = field(default_factory=dict)

    @property
    def written(self) -> dict[str, str]:
        """The files, and the one that says where their lines come from."""
        lines = [f"{file}:{line} {place}"
                 for file, runs in self.origins.items()
                 for line, place in runs]
        origins = with_header(ORIGINS, ["the chapters"], lines)
        return self.files | {ORIGINS: origins}


class Reason(NamedTuple):
    """Why a module imports a name: the page that needs it, and where."""

    chapter: str
    error: Callable[[str], SourceError]


@dataclass(eq=False)
class Module:
    """A file in the making."""

    file: str
    tool: bool
    doc: list[str] = field(default_factory=list)
    body: list[Piece] = field(default_factory=list)
    chapters: dict[str, None] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)  # imported at the end
    changed: set[str] = field(default_factory=set)  # tables, by statements

    @property
    def dotted(self) -> str:
        """The name that imports it."""
        name = self.file.removesuffix(".py").replace("/", ".")
        return name.removesuffix(".__init__")

    @property
    def library(self) -> bool:
        """Whether others may import it."""
        return self.file.startswith("companion/")

    def holds(self, found: Import) -> bool:
        """Whether it is a package's front, and reads one of its rooms."""
        front = self.file.endswith("/__init__.py")
        return front and found.module.startswith(f"{self.dotted}.")


@dataclass(eq=False)
class Entry:
    """A name in the index: its piece, and the body that holds it."""

    name: str
    module: Module
    body: list[Piece]
    piece: Piece
    definition: Definition


LAZY = "from __future__ import annotations\n"
KINDS = {
    ast.ClassDef: "class",
    ast.FunctionDef: "function",
    ast.AsyncFunctionDef: "function",
    type(None): "symbol",
}


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


class Reading:
    """A piece as the library will print it, and the names in it."""

    def __init__(self, piece: Piece):
        self.piece = piece
        self.layout = alone(piece)
        self.text = self.layout.text
        self.bound, self.uses = names_in(self.text)
        parts = [piece, *piece.body]
        self.mixed = len({part.cell.chapter for part in parts}) > 1

    def place(self, use: Use) -> tuple[Cell, int]:
        """The cell that uses a name, and the line in it."""
        part, line = self.layout.origins[line_of(use, self.text)]
        return part.cell, line

    def reason(self, use: Use) -> Reason:
        """The page that uses a name; its line, if there is an error."""
        cell = self.place(use)[0] if self.mixed else self.piece.cell
        return Reason(cell.chapter, partial(self.error, use))

    def error(self, use: Use, message: str) -> SourceError:
        """An error at the line where the name is used."""
        cell, line = self.place(use)
        return cell.error(line, message)


class Tangler:
    """Takes cells in the book's order; remembers who defines what."""

    def __init__(self):
        self.modules: dict[str, Module] = {}
        self.index: dict[str, dict[str, Entry]] = {}
        self.entries: list[Entry] = []
        self.made: dict[int, list[Entry]] = {}
        self.pages: dict[str, dict[str, Import]] = {}
        self.loose: dict[str, list[Cell]] = {}

    def read(self, chapter: Chapter) -> None:
        """Take all the cells of a chapter."""
        self.pages[chapter.name], self.loose[chapter.name] = {}, []
        for cell in chapter.cells:
            self.learn(cell)
            if cell.target:
                module = self.module(cell.target, chapter.beside)
                self.take(module, cell)
                self.check_replaced(module, cell)

    def module(self, file: str, tool: bool) -> Module:
        """The module in the making that becomes `file`."""
        inside = file.startswith("companion/")
        fresh = Module(file, beside(file) if inside else tool)
        return self.modules.setdefault(file, fresh)

    def learn(self, cell: Cell) -> None:
        """Remember what a cell imports, and the untagged cells."""
        if cell.language != "python":
            return
        own = cell if cell.target else readable(cell)
        if not cell.target:
            self.loose[cell.chapter].append(own)
        if "import" in own.source:  # most do not, and trees take long
            found = [i for node in parse(own) for i in imports_of(node)]
            self.pages[cell.chapter] |= {i.binds: i for i in found}

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
            reason = Reason(piece.cell.chapter, piece.error)
            module.reasons[new.binds] = reason
            if old != new:
                raise piece.error(f"{new.binds} is imported from {old.module} "
                                  f"and from {new.module}: rename one")

    def place(self, module: Module, piece: Piece) -> None:
        """Put a statement where it belongs."""
        table = self.table(module, piece)
        if decorated(piece, "extend"):
            self.extend(module, piece)
        elif piece.docstring and not (module.body or module.doc):
            self.sign(module, piece.cell)
            module.doc = piece.text
        elif decorated(piece, "test"):
            self.put(module, module.body, without_decorator(piece))
        elif table:
            self.put_entry(module, table, piece)
        else:
            module.changed |= tables_of(piece)
            self.put(module, module.body, piece)

    def extend(self, module: Module, piece: Piece) -> None:
        """Put members at the end of the class they extend."""
        node = piece.node
        entry = self.find(module, node.name, anywhere=True)
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

    def table(self, module: Module, piece: Piece) -> Piece | None:
        """The table of this module that an entry can be printed in."""
        if not is_entry(piece):
            return None
        (name,) = tables_of(piece)
        entry = self.index.get(name, {}).get(module.file)
        changed = name in module.changed
        if entry and not changed and open_table(entry.piece):
            return entry.piece
        return None

    def put_entry(self, module: Module, table: Piece, piece: Piece) -> None:
        """Print an entry in its table, and the table here."""
        module.body.remove(table)
        module.body.append(table)
        self.put(module, table.body, as_entry(piece))

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
        entry = self.find(module, name, told)
        if entry and not told:
            path, line = entry.piece.place()
            raise piece.error(
                f"{name} is already defined at {path}:{line}: "
                f"rename one of them or say `:replaces: {name}`")
        return entry

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
                home = self.home(entry.module, name)
                self.index[name].pop(home, None)

    def check_replaced(self, module: Module, cell: Cell) -> None:
        """What a cell says it replaces is what it replaced."""
        for name in cell.replaces:
            new = self.find(module, name, anywhere=True)
            known = new and (new.piece.cell, new.definition.action)
            if known != (cell, "replace"):
                raise cell.error(1, f"replaces {name}: no earlier cell "
                                    "defines it, or this one does not")

    def register(self, module, body, piece, action, replaced="") -> None:
        """Enter a piece's names, and those of a class's members."""
        self.sign(module, piece.cell)
        for name in [*piece.names, *table_entries(piece)]:
            self.old(module, name, piece)
            new = definition(module, name, piece, action, replaced)
            entry = Entry(name, module, body, piece, new)
            homes = self.index.setdefault(name, {})
            homes[self.home(module, name)] = entry
            if name in piece.names:
                self.entries.append(entry)
                self.made.setdefault(id(piece), []).append(entry)
        for member in piece.body:
            self.register(module, piece.body, member, action)

    def sign(self, module: Module, cell: Cell) -> None:
        """Note that a chapter writes in a module, in its own dialect."""
        module.chapters.setdefault(cell.chapter)
        future = self.pages[cell.chapter].get("annotations")
        if future and future.module == "__future__":
            module.imports["annotations"] = future

    def home(self, module, name, anywhere=False) -> str:
        """The file in which a name stands that a cell of `module` says."""
        base = re.split(r"[.\[]", name)[0]
        own = name == base and not anywhere
        if not own and module.file not in self.index.get(base, ()):
            others = self.definers(base, module)
            if len(others) == 1:
                return others[0].file
        return module.file

    def find(self, module, name, anywhere=False) -> Entry | None:
        """What the index has of a name that a cell of `module` says."""
        homes = self.index.get(name, {})
        return homes.get(self.home(module, name, anywhere)) if homes else None

    def definers(self, name: str, module: Module) -> list[Module]:
        """The other modules, on this side of the house, that define it."""
        others = [entry.module for entry in self.index.get(name, {}).values()]
        return [
            other
            for other in others
            if other.library
            and other.tool == module.tool
            and other is not module
        ]

    def resolve_all(self, module: Module, read: dict[int, Reading]) -> None:
        """Give the module the imports that its free names need."""
        own = set(module.imports)
        for piece in module.body:
            own |= set(piece.names) or read[id(piece)].bound
        front = module.file.endswith("/__init__.py")
        now = at_import(module, read) if front else set()
        for piece in module.body:
            reading = read[id(piece)]
            for use in reading.uses:
                if use.name in own:
                    continue
                reason = reading.reason(use)
                needed = self.resolve(module, use.name, *reason)
                if needed:
                    module.imports[use.name] = needed
                    module.reasons[use.name] = reason
                    own.add(use.name)
                    if module.holds(needed) and use.name not in now:
                        module.late.add(use.name)

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

    def nearest(self, name, chapter, others) -> list[Module]:
        """Those of several definers that the page itself has named."""
        said = self.pages[chapter].get(name)
        return [
            other
            for other in others
            if (said and said.module == other.dotted)
            or self.index[name][other.file].piece.cell.chapter == chapter
        ]

    def hint(self, name: str, chapter: str, others: list[Module]) -> str:
        """What to do about a name that nothing, or too much, defines."""
        loose = next((cell for cell in self.loose[chapter]
                      if name in names_in(cell.source).bound), None)
        if others:
            files = " and ".join(other.file for other in others)
            return f"is defined in {files}: import the one meant on the page"
        if loose:
            return f"comes from the untagged cell at line {loose.line}: tag it"
        near = difflib.get_close_matches(name, self.index, 1, 0.75)
        guess = f" (did you mean {near[0]}?)" if near else ""
        return f"is defined nowhere: define or import it{guess}"

    def library(self) -> Library:
        """All the files, once they stand as they should."""
        library = Library()
        modules = [m for m in self.modules.values() if m.chapters]
        for module in modules:
            self.finish(module, library)
        links = list(self.links(modules))
        check_cycles(links)
        library.floors = floors([m.file for m in modules if m.library], links)
        check_floors(library.floors, links)
        library.definitions = [entry.definition for entry in self.entries]
        return library

    def finish(self, module: Module, library: Library) -> None:
        """Add the text of a file, and where its lines come from."""
        if module.file.endswith(".py"):
            read = {id(piece): Reading(piece) for piece in module.body}
            module.body = Order(module, read).ordered
            self.resolve_all(module, read)
            layout, head, tail = Layout(), top(module), bottom(module)
        else:
            layout, read = Layout('#line {line} "{path}"'), {}
            head, tail = [], []
        layout.add(module.body)
        above = len(head) + 1
        self.note(module, layout, read, above)
        library.files[module.file] = with_header(
            module.file, module.chapters, head + layout.lines + tail)
        library.origins[module.file] = [
            (above + line, place) for line, place in layout.runs()]

    def note(self, module, layout, read, shift) -> None:
        """Complete the definitions with what the layout knows."""
        known = {n for piece in module.body for n in piece.names}
        known |= {n for n, i in module.imports.items() if i.ours}
        previous = ""
        for piece in module.body:
            uses = read[id(piece)].uses if read else ()
            used = known & {use.name for use in uses}
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

    def links(self, modules):
        """Yield each import of one module by another, as a Link."""
        order = {chapter: n for n, chapter in enumerate(self.pages)}
        first = {(entry.module.file, entry.name): entry.definition.chapter
                 for entry in reversed(self.entries)}
        for module in modules:
            for name, found in module.imports.items():
                if module.library and found.ours and name not in module.late:
                    other = found.file(self.modules)
                    used, error = module.reasons[name]
                    made = first.get((other, found.name), used)
                    yield Link(module.file, other, name, error,
                               order[used], order[made])


IPYTHON = re.compile(r"(\s*)(?:[%!?,;/]|>>>|\.\.\.|.*=\s*[%!]|.*\?\s*$)")


@cache
def readable(cell: Cell) -> Cell:
    """A page's own cell, without the lines that only IPython reads."""
    source = textwrap.dedent(cell.source)
    lenient = source.startswith("%%") or "raises-exception" in cell.tags
    lines = [*source.split("\n"), ""]
    while True:
        own = replace(cell, source="\n".join(lines))
        try:
            check_python(own)
            return own
        except SourceError as error:
            at = error.line - cell.line
            theirs = IPYTHON.match(lines[at])
            if not theirs:
                if lenient:
                    return replace(cell, source="")
                raise
        leave_out(lines, at, theirs[1])


def leave_out(lines: list[str], at: int, indent: str) -> None:
    """Put `pass` for a line, and for those that continue it."""
    while lines[at].endswith("\\"):
        lines[at] = ""
        at += 1
    lines[at] = f"{indent}pass"


def at_import(module: Module, read: dict[int, Reading]) -> set[str]:
    """The names that a module uses while it is imported."""
    lazy = LAZY if "annotations" in module.imports else ""
    return {use.name for piece in module.body
            for use in names_in(lazy + read[id(piece)].text).uses if use.now}


class Order:
    """The book's order, with what a piece needs at import before it."""

    def __init__(self, module: Module, read: dict[int, Reading]):
        self.read = read
        self.made = {name: piece for piece in module.body
                     for name in piece.names if name.isidentifier()}
        self.lazy = "annotations" in module.imports
        self.begun: set[int] = set()
        self.settled: set[str] = set()
        self.ordered: list[Piece] = []
        for piece in sorted(module.body, key=is_main):
            self.visit(piece)

    def visit(self, piece: Piece) -> None:
        """Place a piece, after what it needs and is not placed yet."""
        if id(piece) in self.begun:
            return
        self.begun.add(id(piece))
        needed = self.needs(self.read[id(piece)])
        for name in needed:
            self.visit(self.made[name])
        self.settled.update(needed)
        self.ordered.append(piece)

    def needs(self, reading: Reading) -> list[str]:
        """The names that must exist when a piece runs, nearest first."""
        names = list(dict.fromkeys(filter(self.open, self.at_once(reading))))
        known = set(names)
        for name in names:
            piece = self.made[name]
            if KINDS.get(type(piece.node)) == "function":
                inner = {use.name: 0 for use in self.read[id(piece)].uses}
                names += [n for n in inner if self.open(n) and n not in known]
                known.update(inner)
        return names

    def open(self, name: str) -> bool:
        """Whether the module makes a name that is not settled yet."""
        return name in self.made and name not in self.settled

    def at_once(self, reading: Reading) -> list[str]:
        """The names used at import; an annotation may not be among them."""
        now = [use.name for use in reading.uses if use.now]
        pieces = [self.made[name] for name in now if name in self.made]
        if self.lazy and any(id(p) not in self.begun for p in pieces):
            lazy = names_in(LAZY + reading.text).uses
            now = [use.name for use in lazy if use.now]
        return now


def is_main(piece: Piece) -> bool:
    """Whether it is the block that runs a module as a program."""
    node = piece.node
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def top(module: Module) -> list[str]:
    """The docstring and the imports of a module."""
    early = [i for n, i in module.imports.items() if n not in module.late]
    parts = [module.doc, import_block(early)]
    lines = [line for part in parts if part for line in ["", *part]][1:]
    ending = 2 if module.body and module.body[0].block else 1
    return lines + [""] * ending if lines else []


def bottom(module: Module) -> list[str]:
    """The imports of a package's front from its rooms."""
    late = [module.imports[name] for name in module.late]
    why = "# The rooms import what stands above: they are read last."
    return ["", "", why, *import_block(late)] if late else []


def tangle(book: Book, upto: str | None = None) -> Library:
    """The library of a book, or as it stands before chapter `upto`."""
    tangler = Tangler()
    with uncollected():
        for chapter in (book.before(upto) if upto else book).tangle_order:
            tangler.read(chapter)
        return tangler.library()


@contextmanager
def uncollected() -> Iterator[None]:
    """Do not look for garbage among what is being made."""
    at_work = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if at_work:
            gc.enable()


def main(argv: list[str]) -> int:
    """Write the library that the chapters define."""
    options = arguments().parse_args(argv)
    try:
        status = run(options)
        gc.freeze()  # no search for garbage before all of it goes
        if status is None:
            command = [sys.executable, "-m", "companion", "tangle", *argv]
            status = subprocess.run(command).returncode
        return status
    except SourceError as error:
        print(error, file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError as error:
        name = error.filename or options.out or "."
        print(f"{name}: {error.strerror}: nothing was changed; mend that "
              "and run it again", file=sys.stderr)
    return 1


def run(options: argparse.Namespace) -> int | None:
    """Tangle, then compare or write; None if it is to be done again."""
    out = options.out or "."
    if options.sources and not options.out:
        message = "is not the whole book: say `--out DIR`"
        raise SourceError(options.sources[0], 1, message)
    if options.sources or options.upto:
        book = book_of(options.sources)
        library = tangle(book, options.upto)
    else:
        book, library = tangled()
    files = library.written
    check_kernels(book, files, Path(out))
    if options.check:
        found = check(files, out)
        print("\n".join(found) or f"{len(files)} files as tangled")
        return 1 if found else 0
    changed = write(files, out, options.force, options.remove)
    print(f"{len(files)} files tangled, {len(changed)} changed")
    mine = Path(out, "companion/literate").resolve() == Path(__file__).parent
    return None if mine and any("literate/" in f for f in changed) else 0


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
        ("--remove", "remove files that no cell makes any more"),
    ):
        parser.add_argument(flag, action="store_true", help=purpose)
    return parser


def book_of(sources: list[str]) -> Book:
    """The book here; or a reader's own chapters, and the tools."""
    if not sources:
        return read_book()
    known: dict[str, str] = {}
    own = [reader_page(Path(source).as_posix(), known) for source in sources]
    names = {chapter.name for chapter in own}
    here = Path("_toc.yml").exists()
    pages = read_book().chapters if here else (installed(),)
    tools = [c for c in pages if c.beside and c.name not in names]
    return Book(Path("."), (*tools, *own))


def reader_page(source: str, known: dict[str, str]) -> Chapter:
    """A chapter that a reader named, once, and that makes something."""
    twice = clash(source, known)
    if twice:
        raise SourceError(source, 1, twice)
    page = read_chapter(source)
    if not any(cell.target for cell in page.cells):
        raise SourceError(source, 1, "no cell is tagged `tangle`: tag those "
                          "that belong to the library")
    return page


def installed() -> Chapter:
    """The tools as they are installed, for a reader without the book."""
    package = Path(__file__).parents[1]
    files = [*package.glob("__*__.py"), *package.glob("literate/*.py")]
    front = {"companion": {"beside": True}}
    cells = []
    for n, path in enumerate(sorted(files)):
        file = path.relative_to(package).as_posix()
        text = re.sub(r'(?m)^# Tangled .*\n|^    "\w+": "companion\.'
                      r'(?!literate).*\n', "", path.read_text())
        cells.append(Cell("tools", f"companion/{file}", n, 1, text,
                          ("tangle",), file=file))
    return Chapter("tools", "companion", "", front, "", tuple(cells))


def check_kernels(book: Book, files: dict[str, str], out: Path) -> None:
    """Let the compiler read the C and CUDA files that changed."""
    cells = (cell for page in book.chapters for cell in page.cells)
    spoken: dict[str | None, list[Cell]] = {}
    for cell in cells:
        if cell.language != "python":
            spoken.setdefault(cell.target, []).append(cell)
    for file, text in files.items():
        path = out / file
        old = path.read_text() if path.exists() else ""
        if file in spoken and text != old:
            check_source(spoken[file], text, card(files))


def card(files: dict[str, str]) -> str:
    """The header of the emulated card: the book's, or the installed."""
    ours = Path(__file__).parents[1] / CARD
    there = ours.read_text() if ours.exists() else ""
    return files.get(f"companion/{CARD}", there)


KEPT = "_build/tangled"


def tangled(root: str | Path = ".") -> tuple[Book, Library]:
    """The book in `root` and its library, kept from run to run."""
    path, key = Path(root, KEPT), state_of(Path(root))
    old = path.read_bytes() if path.exists() else b""
    # Nothing is unpickled that this function has not written, and whole.
    if old[:128] == (key + hashlib.sha256(old[128:]).hexdigest()).encode():
        book, library = pickle.loads(old[128:])
        return replace(book, root=Path(root)), library
    book = read_book(root)
    library = tangle(book)
    body = pickle.dumps((book, library), pickle.HIGHEST_PROTOCOL)
    # In a folder that may only be read, every run begins anew.
    with suppress(OSError):
        head = key + hashlib.sha256(body).hexdigest()
        replace_file(path, head.encode() + body)
    return book, library


def state_of(root: Path) -> str:
    """A hash of all that a tangled book depends on."""
    pages = [*root.glob("*.*"), *files_below(root / "chapters")]
    files = {p.relative_to(root): p for p in pages
             if p.suffix in (".md", ".yml", ".ipynb")}
    files |= {Path(p.name): p for p in Path(__file__).parent.glob("*.py")}
    found = hashlib.sha256(sys.version.encode())
    for name, path in sorted(files.items()):
        data = path.read_bytes()
        found.update(f"{name} {len(data)}\n".encode() + data)
    return found.hexdigest()
