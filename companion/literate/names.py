# Tangled from tangle: edit there, then `make tangle`. sha256:ed16151aac23
"""Which names a piece of Python binds, and which it takes from outside."""

import ast
import builtins
import symtable
from typing import NamedTuple

# chapters/appendix/tangle.md:1021
MODULE_NAMES = ("__name__", "__file__", "__doc__", "__package__", "__spec__")

KNOWN = {*dir(builtins), *MODULE_NAMES, "__class__", "__qualname__"}

AT_ONCE = ("listcomp", "setcomp", "dictcomp", "genexpr")


# chapters/appendix/tangle.md:1028
class Use(NamedTuple):
    """A name taken from outside; `now`: while the module is imported."""

    name: str
    line: int
    now: bool


# chapters/appendix/tangle.md:1040
def bound(text: str) -> set[str]:
    """The names that a text binds at its top level."""
    top = symtable.symtable(text, "cell", "exec")
    made = [s for s in top.get_symbols() if s.is_assigned() or s.is_imported()]
    return {symbol.get_name() for symbol in made}


# chapters/appendix/tangle.md:1047
def uses(text: str) -> list[Use]:
    """The names that a text takes from outside, builtins too."""
    lines: dict[str, list[int]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            lines.setdefault(node.id, []).append(node.lineno)
    top = symtable.symtable(text, "cell", "exec")
    found = [(name, 1, True) for name in outer(top)]
    found += [use for child in top.get_children() for use in below(child)]
    return sorted(
        Use(name, min([n for n in lines[name] if n >= start]), now)
        for name, start, now in found
        if name in lines
    )


# chapters/appendix/tangle.md:1067
def outer(scope: symtable.SymbolTable) -> set[str]:
    """The names of one scope that are looked up in the module."""
    found = scope.get_symbols()
    return {s.get_name() for s in found if s.is_global() and not s.is_local()}


# chapters/appendix/tangle.md:1073
def below(scope: symtable.SymbolTable, now: bool = True):
    """Yield (name, line its scope begins, now) for scopes in a scope."""
    at_once = scope.get_type() == "class" or scope.get_name() in AT_ONCE
    now = now and at_once
    for name in outer(scope):
        yield name, scope.get_lineno(), now
    for child in scope.get_children():
        yield from below(child, now)
