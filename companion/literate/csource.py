# Tangled from tangle: edit there, `make tangle`. sha256:0c3572a23404
"""C and CUDA cells: what they define, and whether a compiler reads it."""

import re
import shutil
import subprocess

from companion.literate.pieces import Piece
from companion.literate.source import Cell, SourceError

# chapters/appendix/tangle.md:2608
NOT_CODE = (
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    r"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*"
)

ATTRIBUTE = r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)"
BODY = "\N{REPLACEMENT CHARACTER}"  # stands for what braces held


# chapters/appendix/tangle.md:2617
def c_piece(cell: Cell) -> Piece:
    """A cell of C is one piece; its magic is the notebook's."""
    lines = cell.source.split("\n")[1:]
    return Piece(cell, None, 2, lines, symbols("\n".join(lines)))


# chapters/appendix/tangle.md:2623
def symbols(code: str) -> list[str]:
    """The functions, types and variables that C text defines."""
    code = re.sub(NOT_CODE, " ", code, flags=re.S | re.M)
    code = re.sub(ATTRIBUTE, " ", code)
    while re.search(r"\{[^{}]*\}", code):  # the innermost bodies first
        code = re.sub(r"\{[^{}]*\}", BODY, code)
    found = re.findall(rf"(\w+)\s*\([^;={BODY}]*\)\s*{BODY}", code)
    rest = re.sub(rf"\)\s*{BODY}", ");", code).split(";")
    found += [name for text in rest for name in symbol(text.strip())]
    return list(dict.fromkeys(found))


# chapters/appendix/tangle.md:2639
def symbol(declaration: str) -> list[str]:
    """The type or the variable that a declaration makes, if any."""
    if declaration.startswith("extern") or declaration.endswith(")"):
        return []
    tag = re.match(rf"((?:struct|union|enum)\s+\w+)\s*{BODY}", declaration)
    if tag:
        return [tag[1]]
    head = re.sub(rf"=.*|\[.*|{BODY}", " ", declaration, flags=re.S)
    words = re.findall(r"\w+", head)
    return words[-1:] if len(words) > 1 else []


# chapters/appendix/tangle.md:2668
def check_c(text: str) -> None:
    """Let the C compiler read a file; its error names the chapter."""
    compiler = shutil.which("cc")
    if compiler is None:
        return
    command = [compiler, "-fsyntax-only", "-w", "-x", "c", "-"]
    result = subprocess.run(
        command, input=text, text=True, capture_output=True)
    pattern = r"(?m)^([^:\n]+):(\d+):(?:\d+:)? (?:fatal )?error: (.*)$"
    error = re.search(pattern, result.stderr)
    if error:
        message = f"the C compiler cannot read this: {error[3]}"
        raise SourceError(error[1], int(error[2]), message)
