# Tangled from tangle: edit there, `make tangle`. sha256:c80e2eb61226
"""Which names a piece of Python binds, and which it takes from outside."""

import ast
import builtins
import symtable
from bisect import bisect_left
from functools import cache
from typing import NamedTuple

MODULE_NAMES = ("__name__", "__file__", "__doc__", "__package__", "__spec__")

KNOWN = {*dir(builtins), *MODULE_NAMES, "__class__", "__qualname__"}

AT_ONCE = ("listcomp", "setcomp", "dictcomp", "genexpr")


class Use(NamedTuple):
    """A name taken from outside, in a scope that begins at `line`.

    `now` tells whether it is needed while the module is imported.
    """

    name: str
    line: int
    now: bool


class Names(NamedTuple):
    """What a text binds at its top level, and what it uses."""

    bound: set[str]
    uses: list[Use]


@cache
def names_in(text: str) -> Names:
    """The names of a text, builtins too."""
    top = symtable.symtable(text, "cell", "exec")
    made = [s for s in top.get_symbols() if s.is_assigned() or s.is_imported()]
    found = [Use(name, 1, True) for name in outer(top)]
    found += [use for child in top.get_children() for use in below(child)]
    return Names({symbol.get_name() for symbol in made}, sorted(found))


@cache
def lines_of(text: str) -> dict[str, list[int]]:
    """The lines on which each name of a text stands, in order."""
    lines: dict[str, list[int]] = {}
    names = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name))
    for node in sorted(names, key=lambda node: node.lineno):
        lines.setdefault(node.id, []).append(node.lineno)
    return lines


def line_of(use: Use, text: str) -> int:
    """The first line of a text on which a use of a name stands."""
    lines = lines_of(text).get(use.name, [])
    at = bisect_left(lines, use.line)
    return lines[at] if at < len(lines) else use.line


def outer(scope: symtable.SymbolTable) -> set[str]:
    """The names of one scope that are looked up in the module."""
    inner = {child.get_name() for child in scope.get_children()}
    names = set(scope.get_identifiers()) - (inner - set(AT_ONCE))
    found = map(scope.lookup, names)
    return {s.get_name() for s in found if s.is_global() and not s.is_local()}


def below(scope: symtable.SymbolTable, now: bool = True):
    """Yield the uses in a scope, and in the scopes inside it."""
    at_once = scope.get_type() == "class" or scope.get_name() in AT_ONCE
    now = now and at_once
    for name in outer(scope):
        yield Use(name, scope.get_lineno(), now)
    for child in scope.get_children():
        yield from below(child, now)
