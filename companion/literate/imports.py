# Tangled from tangle: edit there, `make tangle`. sha256:b85d2ae231a0
"""Import statements: taken apart, merged, sorted, written."""

import ast
import re
import sys
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Import:
    """`import module as alias`, or `from module import name as alias`."""

    module: str
    name: str = ""
    alias: str = ""

    @property
    def binds(self) -> str:
        """The name that the statement makes."""
        return self.alias or self.name or self.module.split(".")[0]

    @property
    def ours(self) -> bool:
        """Whether it reads our own package."""
        return self.module.split(".")[0] == "companion"

    def file(self, files) -> str:
        """The file among `files` that it reads."""
        for dotted in (f"{self.module}.{self.name}", self.module):
            path = dotted.replace(".", "/")
            for file in (f"{path}.py", f"{path}/__init__.py"):
                if file in files:
                    return file
        return f"{path}.py"


def imports_of(node: ast.stmt) -> list[Import]:
    """The imports that a statement makes."""
    if isinstance(node, ast.Import):
        return [Import(n.name, "", n.asname or "") for n in node.names]
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        return [Import(module, n.name, n.asname or "") for n in node.names]
    return []


def import_block(imports) -> list[str]:
    """The lines of a module's import statements, in four sections."""
    merged: dict[tuple, list[str]] = {}
    for found in sorted(imports, key=order):
        alias = f" as {found.alias}" if found.alias else ""
        key = (found.module, "" if found.name else alias, bool(found.name))
        merged.setdefault(key, []).append((found.name or found.module) + alias)
    lines: list[str] = []
    before = None
    for (module, _, named), names in merged.items():
        if before not in (None, section(module)):
            lines.append("")
        start = f"from {module} import " if named else "import "
        lines += statement(start, names)
        before = section(module)
    return lines


def statement(start: str, names: list[str]) -> list[str]:
    """One import statement, over several lines where one is too short."""
    line = start + ", ".join(names)
    if len(line) <= 79:
        return [line]
    indent = " " * 4
    return [f"{start}(", *textwrap.wrap(
        ", ".join(names) + ")", 79, initial_indent=indent,
        subsequent_indent=indent)]


def order(found: Import):
    """Sections; `import` before `from`; CONSTANTS, Classes, functions."""
    name = found.name
    rank = 0 if name.isupper() and len(name) > 1 else 1 + name[:1].islower()
    module = found.module
    return (section(module), bool(name), natural(module), rank,
            natural(name), found.alias)


def natural(name: str) -> list:
    """The order in which int8 stands before int32."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdigit() else part for part in parts]


def section(module: str) -> int:
    """Future, standard library, others' packages, our own."""
    base = module.split(".")[0]
    if base == "__future__":
        return 0
    if base in sys.stdlib_module_names:
        return 1
    return 3 if base == "companion" else 2
