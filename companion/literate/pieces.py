"""A cell's statements, cut apart and laid out again, text verbatim."""

import ast
from dataclasses import dataclass, field
from typing import Any

from companion.literate.source import Cell

BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(eq=False)
class Piece:
    """A statement with the comments above it; lines count from 1.

    `text` begins at the cell's line `first`, the statement at `line`; a
    line that was cut out later is None.
    """

    cell: Cell
    node: Any  # the statement; None in C
    first: int
    line: int
    text: list[str | None]
    names: list[str]
    entries: list[str] = field(default_factory=list)
    body: list["Piece"] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The cell's last line that belongs to the piece."""
        end = self.first + len(self.text) - 1
        return max([end, *(piece.last for piece in self.body)])

    def place(self, shift: int = 0) -> tuple[str, int]:
        """Where its line `shift` stands in the chapter."""
        return self.cell.path, self.cell.line + self.first - 1 + shift

    @property
    def block(self) -> bool:
        """Whether it is a function or a class."""
        return isinstance(self.node, BLOCKS)

    @property
    def docstring(self) -> bool:
        value = getattr(self.node, "value", None)
        text = isinstance(getattr(value, "value", None), str)
        return isinstance(self.node, ast.Expr) and text


def parse(cell: Cell) -> list[ast.stmt]:
    """The statements of a cell."""
    try:
        return ast.parse(cell.source).body
    except SyntaxError as error:
        message = f"Python cannot read this: {error.msg}"
        raise cell.error(error.lineno or 1, message) from None


def pieces(cell: Cell) -> list[Piece]:
    """The statements of a cell, each with its text."""
    nodes = parse(cell)
    lines = cell.source.split("\n")
    return cut(cell, lines, nodes, 0, len(lines), "")


def cut(cell, lines, nodes, start, stop, owner) -> list[Piece]:
    """Cut lines[start:stop] into the pieces that `nodes` span."""
    found: list[Piece] = []
    for node in nodes:
        names = names_of(node, owner)
        if found and node.lineno <= found[-1].last:  # a = 1; b = 2
            found[-1].names += names
            continue
        while not lines[start].strip():
            start += 1
        text: list[str | None] = [*lines[start : node.end_lineno]]
        piece = Piece(cell, node, start + 1, node.lineno, text, names)
        piece.entries = entries_of(node)
        if isinstance(node, ast.ClassDef):
            open_class(piece, lines, owner)
        found.append(piece)
        start = node.end_lineno
    rest = lines[start:stop]
    if found and any(rest):
        deepest(found[-1]).text += rest
    return found


def deepest(piece: Piece) -> Piece:
    """The piece that ends the text of `piece`."""
    return deepest(piece.body[-1]) if piece.body else piece


def open_class(piece: Piece, lines, owner) -> None:
    """Separate the head of a class from its members."""
    node = piece.node
    head = header_end(node, lines)
    if head < node.body[0].lineno:
        own = f"{owner}{node.name}."
        piece.text = lines[piece.first - 1 : head]
        piece.body = cut(
            piece.cell, lines, node.body, head, node.end_lineno, own
        )


def header_end(node: ast.ClassDef, lines: list[str]) -> int:
    """The line on which the colon of a class statement stands."""
    values = [*node.bases, *(word.value for word in node.keywords)]
    ends = [value.end_lineno or 0 for value in values]
    at = max([node.lineno, *ends])
    while not lines[at - 1].split("#")[0].rstrip().endswith(":"):
        if at == node.body[0].lineno:
            break
        at += 1
    return at


def names_of(node: ast.stmt, owner: str = "") -> list[str]:
    """What a statement defines, members and table entries included."""
    if isinstance(node, BLOCKS):
        return [owner + name for name in function_names(node)]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return []
    flat = [leaf for target in targets for leaf in leaves(target)]
    return [owner + ast.unparse(leaf) for leaf in flat]


def entries_of(node: ast.stmt) -> list[str]:
    """The entries of a table that is written as a whole."""
    table = getattr(node, "value", None)
    if not isinstance(table, ast.Dict) or len(names_of(node)) != 1:
        return []
    name = names_of(node)[0]
    return [f"{name}[{ast.unparse(key)}]" for key in table.keys if key]


def entry_lines(piece: Piece, entry: str) -> range:
    """The lines of one entry of a table; empty if it shares them."""
    table = piece.node.value
    pairs = zip(table.keys, table.values, strict=True)
    spans = [(k.lineno, v.end_lineno) for k, v in pairs if k]
    first, last = spans[piece.entries.index(entry)]
    shared = [s for s in spans if s[0] <= last and first <= s[1]]
    if len(shared) > 1 or table.lineno == first or table.end_lineno == last:
        return range(0)
    return range(first, last + 1)


def leaves(target):
    """The single targets of an assignment."""
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


def decorated(node: ast.stmt, name: str) -> bool:
    """Whether a definition's first decorator is `@name`."""
    marks = getattr(node, "decorator_list", [])
    return bool(marks) and ast.unparse(marks[0]) == name


def without_decorator(piece: Piece) -> Piece:
    """The piece without the line of its first decorator."""
    at = piece.node.decorator_list[0].lineno - piece.first
    piece.text = piece.text[:at] + piece.text[at + 1 :]
    piece.first += 1
    return piece


class Layout:
    """Writes pieces one below the other and says where they came from."""

    def __init__(self, mark: str = "# {path}:{line}"):
        self.mark = mark
        self.lines: list[str] = []
        self.origins: dict[int, tuple[Piece, int]] = {}
        self.next: tuple[str, int] | None = None
        self.spans: dict[int, tuple[int, int]] = {}

    def emit(self, text: str) -> None:
        """One more line; the place in the chapter moves on by one."""
        self.lines.append(text)
        if self.next:
            self.next = (self.next[0], self.next[1] + 1)

    def sign(self, place: tuple[str, int], indent: str = "") -> None:
        """The comment that says where the next line came from."""
        self.emit(indent + self.mark.format(path=place[0], line=place[1]))
        self.next = place

    def add(self, body: list[Piece], depth: int = 0) -> None:
        """All the pieces of a module or of a class."""
        previous = None
        for piece in body:
            for _ in range(gap(previous, piece, depth)):
                self.emit("")
            self.add_piece(piece, depth)
            previous = piece

    def add_piece(self, piece: Piece, depth: int) -> None:
        """A piece; its origin above it where the text does not run on."""
        if piece.block and not depth:
            self.sign(piece.place())
        begin = len(self.lines)
        for n, text in enumerate(piece.text):
            if text is None:
                continue
            if self.next != piece.place(n):
                indent = text[: len(text) - len(text.lstrip())]
                self.sign(piece.place(n), indent)
                begin += n == 0
            self.emit(text)
            self.origins[len(self.lines)] = (piece, piece.first + n)
        self.add(piece.body, depth + 1)
        self.spans[id(piece)] = (begin, len(self.lines))


def gap(previous: Piece | None, piece: Piece, depth: int) -> int:
    """How many blank lines stand between two pieces."""
    if previous is None:
        return 0
    widest = 1 if depth else 2
    if previous.block or piece.block:
        return widest
    own = piece.first - previous.last - 1
    same = previous.cell is piece.cell and 0 <= own <= widest
    return max(own if same else 1, int(previous.docstring))
