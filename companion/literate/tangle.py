"""Tangle: from the chapters' cells to the library's files."""

import argparse
import ast
import difflib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from companion.literate.csource import c_pieces, check_c
from companion.literate.names import KNOWN, Use, bound, uses
from companion.literate.pieces import (
    Layout,
    Piece,
    decorated,
    entry_lines,
    parse,
    pieces,
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

FLOORS = (
    ("dtype", "ops", "view", "buffer"),
    ("kernels", "native", "blas", "device", "timing"),
    ("autograd", "tensor"),
    ("activations", "layers", "losses", "optim", "training", "data",
     "milestones"),
    ("gpu",),
    ("convolution", "tokenizer", "embedding", "sequence", "attention",
     "transformer"),
    ("compiler",),
    ("profile", "cache", "quantize", "compress", "accelerate",
     "distributed", "benchmark"),
)  # fmt: skip
BESIDE = ("literate", "__init__", "__main__")


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
    line: int = 0
    after: str = ""
    replaced: str = ""
    uses: set[str] = field(default_factory=set)


@dataclass
class Library:
    """The tangled files, and every definition in the book's order."""

    files: dict[str, str] = field(default_factory=dict)
    definitions: list[Definition] = field(default_factory=list)


@dataclass(eq=False)
class Module:
    """A file in the making."""

    file: str
    beside: bool
    doc: list[Piece] = field(default_factory=list)
    imports: dict[str, "Import"] = field(default_factory=dict)
    body: list[Piece] = field(default_factory=list)
    chapters: list[str] = field(default_factory=list)
    reasons: dict[str, SourceError] = field(default_factory=dict)

    @property
    def dotted(self) -> str:
        """The name that imports it."""
        name = self.file.removesuffix(".py").replace("/", ".")
        return name.removesuffix(".__init__")


@dataclass(frozen=True, order=True)
class Import:
    """`import module as alias`, or `from module import name as alias`."""

    module: str
    name: str = ""
    alias: str = ""

    @property
    def binds(self) -> str:
        return self.alias or self.name or self.module.split(".")[0]


def imports_of(node: ast.stmt) -> list[Import]:
    """The imports that a statement makes."""
    if isinstance(node, ast.Import):
        return [Import(n.name, "", n.asname or "") for n in node.names]
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        return [Import(module, n.name, n.asname or "") for n in node.names]
    return []


@dataclass(eq=False)
class Entry:
    """A name in the index: its piece, and the body that holds it."""

    name: str
    module: Module
    body: list[Piece]
    piece: Piece
    definition: Definition


KINDS = {
    ast.ClassDef: "class",
    ast.FunctionDef: "function",
    ast.AsyncFunctionDef: "function",
}


def definition(module, name, piece, action, replaced="") -> Definition:
    """The record of a name that a piece defines."""
    kind = KINDS.get(type(piece.node), "constant" if piece.node else "symbol")
    if "." in name:
        kind = "method" if kind == "function" else "attribute"
    elif "[" in name:
        kind = "entry"
    path, line = piece.place()
    cell = piece.cell
    return Definition(
        name,
        kind,
        module.file,
        cell.chapter,
        path,
        line,
        cell.index,
        action,
        replaced=replaced,
    )


def loosely(cell: Cell) -> list[ast.stmt]:
    """The statements of a page's own cell, its magics left out."""
    code = re.sub(r"(?m)^[ \t]*[%!].*$", "", cell.source)
    try:
        return [] if cell.language != "python" else ast.parse(code).body
    except SyntaxError:  # the page shows it, or the run will
        return []


# ------------------------------------------------------------- gathering


class Tangler:
    """Takes cells in the book's order; remembers who defines what."""

    def __init__(self):
        self.modules: dict[str, Module] = {}
        self.index: dict[tuple[str, str], Entry] = {}
        self.pages: dict[str, dict[str, Import]] = {}
        self.made: dict[tuple[str, str], Cell] = {}
        self.entries: list[Entry] = []

    def read(self, chapter: Chapter) -> None:
        """Take all the cells of a chapter."""
        self.pages[chapter.name] = {}
        for cell in chapter.cells:
            self.learn(cell)
            if cell.target and cell.language == "python":
                self.take_python(cell, chapter.beside)
            elif cell.target:
                self.take_c(cell, chapter.beside)

    def learn(self, cell: Cell) -> None:
        """Remember what an ordinary cell of the page imports and makes."""
        page = self.pages[cell.chapter]
        strict = cell.target and cell.language == "python"
        nodes = parse(cell) if strict else loosely(cell)
        for node in nodes:
            page |= {found.binds: found for found in imports_of(node)}
        for name in bound(nodes):
            self.made.setdefault((cell.chapter, name), cell)

    def module(self, file: str, beside: bool = False) -> Module:
        """The module in the making that becomes `file`."""
        inside = file.split("/")[1].removesuffix(".py") in BESIDE
        fresh = Module(file, inside or (beside and file[:5] == "tests"))
        return self.modules.setdefault(file, fresh)

    def take_python(self, cell: Cell, beside: bool) -> None:
        """Place a cell's statements."""
        module = self.module(cell.target or "", beside)
        found = pieces(cell)
        plain = [p for p in found if not imports_of(p.node)]
        moved = plain and all(decorated(p.node, "extend") for p in plain)
        for piece in found:
            if not imports_of(piece.node):
                self.place(module, piece)
            elif not moved:
                self.take_imports(module, piece)
        self.check_replaced(cell)

    def take_imports(self, module: Module, piece: Piece) -> None:
        """Add imports to those of the module."""
        self.sign(module, piece.cell)
        for new in imports_of(piece.node):
            old = module.imports.setdefault(new.binds, new)
            module.reasons[new.binds] = self.error(piece, "")
            if old != new:
                raise self.error(
                    piece,
                    f"{new.binds} is imported twice, from"
                    f" {old.module} and {new.module}",
                )

    def take_c(self, cell: Cell, beside: bool) -> None:
        """Place a cell of C: whole, or where what it replaces stood."""
        module = self.module(cell.target or "", beside)
        new = c_pieces(cell)
        found = [self.old(module, n, p) for p in new for n in p.names]
        old = [entry for entry in found if entry]
        spots = [module.body.index(entry.piece) for entry in old]
        at = min(spots, default=len(module.body))
        module.body[at:at] = new
        told = {e.name: "{}:{}".format(*e.piece.place()) for e in old}
        for entry in old:
            self.drop(entry, entry.piece)
        for piece in new:
            action = "replace" if set(piece.names) & set(told) else "define"
            self.register(
                module,
                module.body,
                piece,
                action,
                ", ".join(told.get(n, "") for n in piece.names),
            )
        self.check_replaced(cell)

    def place(self, module: Module, piece: Piece) -> None:
        """Put a statement where it belongs."""
        if decorated(piece.node, "extend"):
            self.extend(module, piece)
        elif piece.docstring and not (module.body or module.doc):
            self.sign(module, piece.cell)
            module.doc = [piece]
        else:
            if decorated(piece.node, "test"):
                piece = without_decorator(piece)
            self.put(module, module.body, piece)

    def extend(self, module: Module, piece: Piece) -> None:
        """Put members at the end of the class they extend."""
        name = piece.node.name
        entry = self.index.get(self.key(module, name, elsewhere=True))
        if not entry or not entry.piece.body:
            raise self.error(
                piece,
                f"@extend found no class {name}: define"
                " it in an earlier tangled cell",
            )
        if piece.node.bases or piece.node.keywords or piece.body[0].docstring:
            raise self.error(
                piece,
                f"@extend class {name} has bases or a"
                " docstring: write them where it is defined",
            )
        body = entry.piece.body
        if isinstance(body[0].node, ast.Pass):
            body.clear()
        for member in piece.body:
            self.put(entry.module, body, member, "extend")

    def put(self, module, body, piece, action="define") -> None:
        """Add a piece to a body, or let it take an older one's place."""
        found = [self.old(module, name, piece) for name in piece.names]
        old = [entry for entry in found if entry]
        spots = [body.index(e.piece) for e in old if e.body is body]
        body.insert(min(spots, default=len(body)), piece)
        for entry in old:
            self.drop(entry, piece)
        places = ["{}:{}".format(*entry.piece.place()) for entry in old]
        action = "replace" if old else action
        self.register(module, body, piece, action, ", ".join(places))

    def old(self, module, name, piece) -> "Entry | None":
        """What `name` meant before; an error unless it is replaced."""
        told = name in piece.cell.replaces
        entry = self.index.get(self.key(module, name, told))
        if entry and not told:
            path, line = entry.piece.place()
            raise self.error(
                piece,
                f"{name} is already defined at {path}:"
                f"{line}: rename one or say `:replaces: {name}`",
            )
        return entry

    def drop(self, entry: "Entry", new: Piece) -> None:
        """Remove a replaced piece, and the members it had."""
        old = entry.piece
        if entry.name in old.entries and entry.name not in old.names:
            self.cut_entry(entry, new)
            return
        rest = set(old.names) - set(new.names)
        if rest:
            raise self.error(
                new,
                f"{', '.join(sorted(rest))} would vanish:"
                " it is defined in the statement replaced",
            )
        if old in entry.body:
            entry.body.remove(old)
        for piece in [old, *old.body]:
            for name in [*piece.names, *piece.entries]:
                self.index.pop(self.key(entry.module, name), None)

    def cut_entry(self, entry: "Entry", new: Piece) -> None:
        """Remove the line of one entry from a table written as a whole."""
        lines = entry_lines(entry.piece, entry.name)
        if not lines:
            path, line = entry.piece.place()
            raise self.error(
                new,
                f"{entry.name} shares a line of the table"
                f" at {path}:{line}: give it its own line there",
            )
        for n in lines:
            entry.piece.text[n - entry.piece.first] = None
        del self.index[self.key(entry.module, entry.name)]

    def register(self, module, body, piece, action, replaced="") -> None:
        """Enter a piece's names, and those of a class's members."""
        self.sign(module, piece.cell)
        for name in [*piece.names, *piece.entries]:
            key = self.key(module, name)
            new = definition(module, name, piece, action, replaced)
            if key in self.index and piece.node:
                self.old(module, name, piece)
            self.index[key] = Entry(name, module, body, piece, new)
            if name in piece.names:
                self.entries.append(self.index[key])
        for member in piece.body:
            self.register(module, piece.body, member, action)

    def sign(self, module: Module, cell: Cell) -> None:
        """Note that a chapter writes in a module, in its own dialect."""
        if cell.chapter not in module.chapters:
            module.chapters.append(cell.chapter)
        future = self.pages[cell.chapter].get("annotations")
        if future and future.module == "__future__":
            module.imports["annotations"] = future

    def key(self, module, name, elsewhere=False) -> tuple[str, str]:
        """Under what the index knows a name that a cell of `module` uses."""
        base = re.split(r"[.\[]", name)[0]
        if (name == base and not elsewhere) or self.defines(module, base):
            return module.file, name
        others = self.definers(base, module)
        return (others[0] if len(others) == 1 else module).file, name

    def defines(self, module: Module, name: str) -> bool:
        return (module.file, name) in self.index

    def definers(self, name: str, module: Module) -> list[Module]:
        """The other modules on this side of the house that define it."""
        return [
            other
            for other in self.modules.values()
            if self.defines(other, name)
            and other is not module
            and other.beside == module.beside
            and other.file.startswith("companion/")
        ]

    def check_replaced(self, cell: Cell) -> None:
        """What a cell says it replaces is what it replaced."""
        own = (cell.chapter, cell.index)
        done = {
            e.name
            for e in self.entries
            if (e.piece.cell.chapter, e.piece.cell.index) == own
            and e.definition.action == "replace"
        }
        for name in sorted(set(cell.replaces) - done):
            message = f"replaces {name}: no earlier cell defines it"
            raise cell.error(1, message + ", or this one does not")

    def error(self, piece: Piece, message: str) -> SourceError:
        """An error at the line where a piece's statement begins."""
        return piece.cell.error(piece.line, message)

    # --------------------------------------------------------- resolving

    def resolve(self, module: Module, use: Use, piece: Piece) -> None:
        """Give the module the import that a free name needs."""
        module.reasons[use.name] = piece.cell.error(use.line, "")
        page = self.pages[piece.cell.chapter]
        said = page.get(use.name)
        if said and not of_companion(said):
            module.imports[use.name] = said
        elif said or use.name not in KNOWN:
            others = self.definers(use.name, module)
            if said and len(others) > 1:
                others = [m for m in others if m.dotted == said.module]
            found = [Import(other.dotted, use.name) for other in others]
            found += [said] if said and not found else []
            if len(found) != 1:
                raise self.unresolved(use, piece, others)
            module.imports[use.name] = found[0]

    def unresolved(self, use, piece, others) -> SourceError:
        """The error for a name that nothing, or too much, defines."""
        cell = self.made.get((piece.cell.chapter, use.name))
        if others:
            files = " and ".join(other.file for other in others)
            hint = f"is defined in {files}: import the one meant on the page"
        elif cell:
            hint = f"comes from the untagged cell at line {cell.line}: tag it"
        else:
            names = [name for _, name in self.index]
            near = difflib.get_close_matches(use.name, names, 1, 0.75)
            hint = "is defined nowhere: define or import it in an earlier cell"
            hint += f" (did you mean {near[0]}?)" if near else ""
        return piece.cell.error(use.line, f"{use.name} {hint}")

    # ----------------------------------------------------------- writing

    def finish(self, module: Module) -> str:
        """The text of a Python module."""
        module.body = in_order(module)
        layout = Layout()
        layout.add(module.body)
        tree = ast.parse("\n".join(layout.lines))
        lazy = "annotations" in module.imports
        found = uses(tree.body, lazy)
        own = bound(tree.body) | set(module.imports)
        for use in found:
            if use.name not in own:
                piece, line = layout.origins[use.line]
                self.resolve(module, use._replace(line=line), piece)
        head = top(module)
        self.note(module, layout, found, len(head))
        lines = head + layout.lines
        return with_header(module.file, module.chapters, lines)

    def note(self, module, layout, found, shift) -> None:
        """Complete the definitions with what the layout knows."""
        shift += 1  # the header
        for entry in self.entries:
            if entry.module is module and id(entry.piece) in layout.spans:
                first, last = layout.spans[id(entry.piece)]
                entry.definition.line = shift + first + 1
                entry.definition.uses |= {
                    use.name
                    for use in found
                    if first < use.line <= last
                    and self.of_the_book(module, use.name)
                }
        self.note_order(module.body)

    def note_order(self, body) -> None:
        """Tell each definition what it stands after."""
        names = {id(e.piece): e for e in self.entries}
        previous = ""
        for piece in body:
            if id(piece) in names:
                names[id(piece)].definition.after = previous
                previous = names[id(piece)].name
            self.note_order(piece.body)

    def of_the_book(self, module: Module, name: str) -> bool:
        """Whether a name of a module is one that a chapter defines."""
        said = module.imports.get(name)
        return self.defines(module, name) if not said else of_companion(said)

    def library(self) -> Library:
        """All the files, once they stand as they should."""
        library = Library()
        for module in self.modules.values():
            if module.chapters:
                python = module.file.endswith(".py")
                write = self.finish if python else self.finish_c
                library.files[module.file] = write(module)
        check_floors(self.modules)
        check_cycles(self.modules)
        library.definitions = [entry.definition for entry in self.entries]
        return library

    def finish_c(self, module: Module) -> str:
        """The text of a C or CUDA file."""
        layout = Layout('#line {line} "{path}"')
        layout.add(module.body)
        self.note(module, layout, [], 0)
        return with_header(module.file, module.chapters, layout.lines)


# ----------------------------------------------------------- the library


def tangle(book: Book, upto: str | None = None) -> Library:
    """The library of a book, or as it stands before chapter `upto`."""
    tangler = Tangler()
    for chapter in (book.before(upto) if upto else book).tangle_order:
        tangler.read(chapter)
    return tangler.library()


def of_companion(found: Import) -> bool:
    """Whether an import is of our own package."""
    return found.module.split(".")[0] == "companion"


def in_order(module: Module) -> list[Piece]:
    """The book's order, with what a piece needs at import before it."""
    made = {n: p for p in module.body for n in p.names if n.isidentifier()}
    found = {id(p): piece_uses(p) for p in module.body}
    ordered: list[Piece] = []
    seen: set[int] = set()

    def visit(piece):
        if id(piece) in seen:
            return
        seen.add(id(piece))
        for name in needs(piece, made, found):
            visit(made[name])
        ordered.append(piece)

    for piece in sorted(module.body, key=is_main):
        visit(piece)
    return ordered


def piece_uses(piece: Piece) -> list[Use]:
    """What a piece takes from outside, members given later included."""
    layout = Layout()
    layout.add([piece])
    return uses(ast.parse("\n".join(layout.lines)).body)


def needs(piece, made, found) -> list[str]:
    """The names that must exist when a piece runs, nearest first."""
    names = [u.name for u in found[id(piece)] if u.now and u.name in made]
    for name in names:
        inner = made[name]
        if KINDS.get(type(inner.node)) == "function":
            more = (u.name for u in found[id(inner)] if u.name in made)
            names += [n for n in more if n not in names]
    return names


def is_main(piece: Piece) -> bool:
    """Whether it is the block that runs a module as a program."""
    node = piece.node
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def top(module: Module) -> list[str]:
    """The docstring and the imports of a module."""
    groups: list[list[str]] = [[], [], [], []]
    for line, section in import_lines(module.imports.values()):
        groups[section] += line
    parts = [p.text for p in module.doc] + [g for g in groups if g]
    lines = [line for part in parts for line in ["", *part]][1:]
    ending = 2 if module.body and module.body[0].block else 1
    return lines + [""] * ending if lines else []


def import_lines(imports):
    """Yield each import statement's lines, and the section it is in."""
    merged: dict[tuple, list[str]] = {}
    for found in sorted(imports, key=import_order):
        alias = f" as {found.alias}" if found.alias else ""
        named = bool(found.name)
        key = (found.module, named, "" if named else alias)
        merged.setdefault(key, []).append((found.name or found.module) + alias)
    for (module, named, _), names in merged.items():
        start = f"from {module} import " if named else "import "
        line = start + ", ".join(dict.fromkeys(names))
        if len(line) > 79:
            rows = [f"    {name}," for name in names]
            yield [f"{start}(", *rows, ")"], section(module)
        else:
            yield [line], section(module)


def import_order(found: Import):
    """`import` before `from`; CONSTANTS, Classes, functions."""
    name = found.name
    rank = 0 if name.isupper() and len(name) > 1 else 1 + name[:1].islower()
    return bool(name), found.module.lower(), rank, name, found.alias


def section(module: str) -> int:
    """Future, standard library, others' packages, our own."""
    base = module.split(".")[0]
    if base == "__future__":
        return 0
    if base in sys.stdlib_module_names:
        return 1
    return 3 if base == "companion" else 2


# ------------------------------------------------------ floors and cycles


def imported_file(found: Import, modules) -> str:
    """The file of the package that an import reads."""
    for dotted in (f"{found.module}.{found.name}", found.module):
        path = dotted.replace(".", "/")
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in modules:
                return file
    return f"{path}.py"


def floor(file: str) -> int | None:
    """The floor a file stands on; None beside the house."""
    name = file.split("/")[1].removesuffix(".py")
    for number, names in enumerate(FLOORS):
        if name in names:
            return number
    if name not in BESIDE:
        raise LookupError(name)
    return None


def links(modules):
    """Yield (module, file it imports, the place that needs it)."""
    for module in modules.values():
        if module.file.startswith("companion/"):
            for name, found in module.imports.items():
                if of_companion(found):
                    file = imported_file(found, modules)
                    yield module, file, module.reasons[name]


def check_floors(modules) -> None:
    """Every module stands on a floor and imports only downwards."""
    for module in modules.values():
        if module.file.startswith("companion/") and module.body:
            check_place(module)
    for module, file, place in links(modules):
        own, other = floor(module.file), floor(file)
        if other is None or (own is not None and own >= other):
            continue
        stands = "beside the house" if own is None else f"on floor {own}"
        message = (
            f"{module.file} stands {stands} and cannot import {file},"
            f" floor {other}: move this up or that down"
        )
        raise SourceError(place.path, place.line, message)


def check_place(module: Module) -> None:
    """The table of floors names the module."""
    try:
        floor(module.file)
    except LookupError:
        path, line = module.body[0].place()
        message = f"{module.file} stands on no floor: name it in FLOORS"
        raise SourceError(path, line, message) from None


def check_cycles(modules) -> None:
    """No module imports itself by way of others."""
    graph: dict[str, dict[str, SourceError]] = {}
    for module, file, place in links(modules):
        graph.setdefault(module.file, {}).setdefault(file, place)

    def walk(file, path):
        if file in path:
            cycle = [*path[path.index(file) :], file]
            place = graph[cycle[-2]][file]
            message = f"import cycle {' → '.join(cycle)}: move what both need"
            raise SourceError(place.path, place.line, message + " down")
        if file not in done:
            for other in graph.get(file, ()):
                walk(other, [*path, file])
        done.add(file)

    done: set[str] = set()
    for file in list(graph):
        walk(file, [])


# ---------------------------------------------------------- the command


def main(argv: list[str]) -> int:
    """Write the library that the chapters define."""
    options = arguments().parse_args(argv)
    try:
        return run(options)
    except SourceError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(
            f"{error.filename or options.out}: {error.strerror}:"
            " make room and run it again",
            file=sys.stderr,
        )
    return 1


def arguments() -> argparse.ArgumentParser:
    """What may stand after `python -m companion tangle`."""
    parser = argparse.ArgumentParser(
        prog="python -m companion tangle", description=main.__doc__
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="chapters or notebooks instead of the book",
    )
    parser.add_argument(
        "--upto", metavar="CHAPTER", help="stop before this chapter"
    )
    parser.add_argument(
        "--out", metavar="DIR", default=".", help="write there instead of here"
    )
    parser.add_argument(
        "--check", action="store_true", help="say what differs, write nothing"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="overwrite files that were edited by hand",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Tangle, then compare or write."""
    book = book_of(options.sources, options.out)
    files = tangle(book, options.upto).files
    check_kernels(files, Path(options.out))
    if options.check:
        found = check(files, options.out)
        print("\n".join(found) or f"{len(files)} files as tangled")
        return 1 if found else 0
    changed = write(files, options.out, options.force)
    print(f"{len(files)} files tangled, {len(changed)} changed")
    return 0


def book_of(sources: list[str], out: str) -> Book:
    """The book here, or one of a reader's own chapters and the tools."""
    here = Path("_toc.yml").exists()
    if not sources:
        return read_book()
    if out == ".":
        raise SourceError(sources[0], 1, "say where it goes: --out DIR")
    tools = [c for c in read_book().chapters if c.beside] if here else []
    own = [read_chapter(source) for source in sources]
    names = {chapter.name for chapter in own}
    kept = [c for c in tools if c.name not in names]
    return Book(Path("."), (*kept, *own))


def check_kernels(files: dict[str, str], out: Path) -> None:
    """Let the compiler read the C files that changed."""
    for file, text in files.items():
        path = out / file
        old = path.read_text() if path.exists() else ""
        if file.endswith(".c") and text != old:
            check_c(text)
