# Tangled from tangle: edit there, `make tangle`. sha256:e02ef64f4ac0
"""A cell's statements, cut apart and laid out again, text verbatim."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from companion.literate.source import Cell, SourceError

BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(eq=False)
class Piece:
    """A statement and the comments above it; `first` counts from 1."""

    cell: Cell
    node: Any  # the statement; None in C
    first: int
    text: list[str]
    names: list[str]
    body: list["Piece"] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)  # what closes the body

    @property
    def last(self) -> int:
        """The last of the cell's lines that belong to it."""
        end = self.first + len(self.text) + len(self.tail) - 1
        return max([end, *(piece.last for piece in self.body)])

    @property
    def block(self) -> bool:
        """Whether it is a function or a class."""
        return isinstance(self.node, BLOCKS)

    @property
    def docstring(self) -> bool:
        """Whether it is a string that stands alone."""
        value = getattr(self.node, "value", None)
        text = isinstance(getattr(value, "value", None), str)
        return isinstance(self.node, ast.Expr) and text

    def place(self, shift: int = 0) -> tuple[str, int]:
        """Where its line number `shift` stands in the chapter."""
        return self.cell.path, self.cell.line + self.first - 1 + shift

    def error(self, message: str) -> SourceError:
        """An error at the line where the statement begins."""
        line = getattr(self.node, "lineno", self.first)
        return self.cell.error(line, message)


@cache
def parse(cell: Cell) -> list[ast.stmt]:
    """The statements of a cell."""
    check_python(cell)
    return ast.parse(cell.source, cell.path).body


def check_python(cell: Cell) -> None:
    """Refuse a cell that Python would refuse."""
    flags = 0 if cell.target else ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        compile(cell.source, cell.path, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        what, line = getattr(error, "msg", error), getattr(error, "lineno", 1)
        message = f"Python cannot read this: {what}"
        raise cell.error(line or 1, message) from None


def pieces(cell: Cell) -> list[Piece]:
    """The statements of a cell, each with its text."""
    lines = cell.source.split("\n")
    return cut(cell, lines, parse(cell), 0, len(lines), "")


def cut(cell, lines, nodes, start, stop, owner) -> list[Piece]:
    """Cut lines[start:stop] into the pieces that `nodes` span."""
    found: list[Piece] = []
    for node in nodes:
        if found and node.lineno <= found[-1].last:  # a = 1; b = 2
            found[-1].names += names_of(node, owner)
            continue
        while not lines[start].strip():
            start += 1
        text = lines[start : node.end_lineno]
        piece = Piece(cell, node, start + 1, text, names_of(node, owner))
        if isinstance(node, ast.ClassDef):
            open_class(piece, lines, owner)
        found.append(piece)
        start = node.end_lineno
    if found and any(lines[start:stop]):
        deepest(found[-1]).text += lines[start:stop]
    return found


def deepest(piece: Piece) -> Piece:
    """The piece that ends the text of `piece`."""
    return deepest(piece.body[-1]) if piece.body else piece


def open_class(piece: Piece, lines: list[str], owner: str) -> None:
    """Separate the head of a class from its members."""
    node = piece.node
    head = header_end(node, lines)
    if head < node.body[0].lineno:
        piece.text = lines[piece.first - 1 : head]
        inside = f"{owner}{node.name}."
        piece.body = cut(piece.cell, lines, node.body, head,
                         node.end_lineno, inside)


def header_end(node: ast.ClassDef, lines: list[str]) -> int:
    """The line on which the colon of a class statement stands."""
    values = [*node.bases, *(word.value for word in node.keywords)]
    at = max([node.lineno, *(value.end_lineno or 0 for value in values)])
    while not lines[at - 1].split("#")[0].rstrip().endswith(":"):
        if at == node.body[0].lineno:
            break
        at += 1
    return at


def names_of(node: ast.stmt, owner: str = "") -> list[str]:
    """What a statement defines, members and table entries included."""
    if isinstance(node, BLOCKS):
        return [owner + name for name in function_names(node)]
    if isinstance(node, ast.Assign):
        targets = [leaf for t in node.targets for leaf in leaves(t)]
    else:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else []
    return [owner + ast.unparse(target) for target in targets]


def leaves(target: ast.expr) -> list[ast.expr]:
    """The single targets of an assignment."""
    if isinstance(target, ast.Starred):
        return leaves(target.value)
    if isinstance(target, (ast.Tuple, ast.List)):
        return [leaf for part in target.elts for leaf in leaves(part)]
    return [target]


def function_names(node) -> list[str]:
    """A function's name; none for what Python expects to be repeated."""
    for decorator in node.decorator_list:
        text = ast.unparse(decorator)
        if text.endswith((".setter", ".deleter", ".getter")):
            return [text]
        if text.endswith("overload"):
            return []
    return [] if node.name == "_" else [node.name]


def table_entries(piece: Piece) -> list[str]:
    """The entries of a table that is written as a whole."""
    table = getattr(piece.node, "value", None)
    if not isinstance(table, ast.Dict) or len(piece.names) != 1:
        return []
    keys = [ast.unparse(key) for key in table.keys if key]
    return [f"{piece.names[0]}[{key}]" for key in keys]


def decorated(piece: Piece, name: str) -> bool:
    """Whether a definition's first decorator is `@name`."""
    marks = getattr(piece.node, "decorator_list", [])
    return bool(marks) and ast.unparse(marks[0]) == name


def without_decorator(piece: Piece) -> Piece:
    """The piece without the line of its first decorator."""
    at = piece.node.decorator_list[0].lineno - piece.first
    piece.text = piece.text[:at] + piece.text[at + 1 :]
    piece.first += 1
    return piece


def open_table(piece: Piece) -> bool:
    """Make room before a table's last brace; whether there is any."""
    *head, end = piece.text
    if isinstance(getattr(piece.node, "value", None), ast.Dict):
        if end == "}" and head[-1].endswith(","):
            piece.text, piece.tail = head, [end]
        elif end.endswith(" = {}"):
            piece.text, piece.tail = [*head, end[:-1]], ["}"]
    return bool(piece.tail)


def tables_of(piece: Piece) -> set[str]:
    """The tables that a statement adds to."""
    if isinstance(piece.node, ast.AugAssign):
        return {ast.unparse(piece.node.target)}
    parts = (name.partition("[") for name in piece.names)
    return {table for table, bracket, _ in parts if bracket}


def is_entry(piece: Piece) -> bool:
    """Whether a statement adds to one table, and may be moved into it."""
    node, tables = piece.node, tables_of(piece)
    shared = isinstance(node, ast.AugAssign)
    if len(piece.names) != 1 - shared or not tables:
        return False
    if shared and not ast.unparse(node.value).startswith("dict.fromkeys("):
        return False
    found = [*ast.walk(node.value)]
    reads = {x.id for x in found if isinstance(x, ast.Name)}
    return reads.isdisjoint(tables) and all(
        x.lineno == x.end_lineno for x in found if isinstance(x, ast.Constant))


def as_entry(piece: Piece) -> Piece:
    """`TABLE[key] = value` as `key: value,`, a line of the table's."""
    node, lines = piece.node, [*piece.text]
    at, end = node.lineno - piece.first, node.end_lineno - piece.first
    stop = column(lines[end], node.end_col_offset)
    lines[end] = lines[end][:stop] + "," + lines[end][stop:]
    key, equals = entry_key(piece)
    value = lines[at][equals:]
    hangs = value.endswith(("(", "[", "{"))
    by = 4 if hangs else len(f"    {key}") - equals
    lines = [shifted(line, by if at < n <= end else 4)
             for n, line in enumerate(lines)]
    lines[at] = f"    {key}{value}"
    return replace(piece, text=lines)


def entry_key(piece: Piece) -> tuple[str, int]:
    """What stands before an entry's value, and where that begins now."""
    node, line = piece.node, piece.text[piece.node.lineno - piece.first]
    if isinstance(node, ast.AugAssign):
        return "**", line.index(" |= ") + len(" |= ")
    target = node.targets[0]
    key = ast.get_source_segment(piece.cell.source, target.slice)
    return f"{key}: ", column(line, target.end_col_offset) + len(" = ")


def column(line: str, offset: int) -> int:
    """Python's parser counts bytes, a text has characters."""
    return len(line.encode()[:offset].decode())


def shifted(line: str, by: int) -> str:
    """A line, moved to the right or to the left."""
    return (" " * by + line if by > 0 else line[-by:]).rstrip()


class Layout:
    """Writes pieces one below the other and says where they came from."""

    def __init__(self, mark: str = ""):
        self.mark = mark
        self.lines: list[str] = []
        self.origins: dict[int, tuple[Piece, int]] = {}
        self.spans: dict[int, tuple[int, int]] = {}

    @property
    def text(self) -> str:
        """All the lines so far."""
        return "\n".join(self.lines)

    def runs(self) -> Iterator[tuple[int, str]]:
        """The lines that do not go on where the last one left off."""
        last = None
        for line, (piece, own) in self.origins.items():
            at = piece.cell.line + own - 1
            if last != (piece.cell.path, at - line):
                yield line, f"{piece.cell.path}:{at}"
            last = piece.cell.path, at - line

    def add(self, body: list[Piece], depth: int = 0) -> "Layout":
        """All the pieces of a module or of a class."""
        previous = None
        for piece in body:
            self.lines += [""] * gap(previous, piece, depth)
            self.add_piece(piece, depth)
            previous = piece
        return self

    def add_piece(self, piece: Piece, depth: int) -> None:
        """A piece, below the mark that a compiler reads, if any."""
        if self.mark:
            path, line = piece.place()
            self.lines.append(self.mark.format(path=path, line=line))
        begin = len(self.lines) + 1
        for n, text in enumerate(piece.text):
            self.lines.append(text)
            self.origins[len(self.lines)] = (piece, piece.first + n)
        self.add(piece.body, depth + 1)
        for text in piece.tail:
            self.lines.append(text)
            self.origins[len(self.lines)] = (piece, piece.node.end_lineno)
        self.spans[id(piece)] = (begin, len(self.lines))


def gap(previous: Piece | None, piece: Piece, depth: int) -> int:
    """How many blank lines stand between two pieces."""
    if previous is None or (depth and is_entry(piece)):
        return 0
    widest = 1 if depth else 2
    if previous.block or piece.block:
        return widest
    own = piece.first - previous.last - 1
    same = previous.cell is piece.cell and 0 <= own <= widest
    return max(own if same else 1, int(previous.docstring))


def alone(piece: Piece) -> Layout:
    """The layout of one piece of a module."""
    return Layout().add([piece])
