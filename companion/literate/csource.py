"""C and CUDA cells: what they define, and whether a compiler reads it."""

import re
import shutil
import subprocess

from companion.literate.pieces import Piece
from companion.literate.source import Cell, SourceError

NOT_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S
)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.M)
ATTRIBUTE = re.compile(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)")
BODY = re.compile(r"\{.*\}", re.S)


def blank(match: re.Match) -> str:
    """As much white space as the match took."""
    return re.sub(r"[^\n]", " ", match[0])


def c_pieces(cell: Cell) -> list[Piece]:
    """The declarations and the runs of directives of a C cell."""
    code = NOT_CODE.sub(blank, cell.source)
    plain = DIRECTIVE.sub(blank, code).split("\n")
    code_lines = code.split("\n")
    lines = cell.source.split("\n")
    found: list[Piece] = []
    start = 1  # below the magic
    for end in range(2, len(lines) + 1):
        unit = "\n".join(plain[start:end])
        directive = code_lines[end - 1].strip() and not unit.strip()
        if complete(unit) or directive or end == len(lines):
            found += c_piece(cell, lines, start, end, unit)
            start = end
    return found


def c_piece(cell, lines, start, end, unit) -> list[Piece]:
    """The piece of lines[start:end], if they hold anything."""
    while start < end and not lines[start].strip():
        start += 1
    if start == end:
        return []
    text: list[str | None] = [*lines[start:end]]
    line = start + 1
    return [Piece(cell, None, line, line, text, symbols(unit))]


def complete(unit: str) -> bool:
    """Whether a declaration ends where this text ends."""
    text = unit.strip()
    if text.count("(") != text.count(")"):
        return False
    if not text or text.count("{") != text.count("}"):
        return False
    return text.endswith(";") or (text.endswith("}") and is_function(text))


def is_function(unit: str) -> bool:
    """Whether a declaration with a body is a function's."""
    head = ATTRIBUTE.sub(" ", unit).split("{")[0]
    return head.rstrip().endswith(")") and "=" not in head


def symbols(unit: str) -> list[str]:
    """What a declaration defines; nothing for a prototype."""
    text = ATTRIBUTE.sub(" ", unit).strip()
    head = text.split("{")[0]
    if "{" in text and is_function(text):
        return re.findall(r"(\w+)\s*\(", head)[:1]
    tag = re.match(r"(?:struct|union|enum)\s+\w+(?=\s*\{)", text)
    if tag:
        return [tag[0]]
    flat = BODY.sub(" ", text.split("=")[0]).rstrip("; \n")
    pointer = re.search(r"\(\s*\*\s*(\w+)\s*\)\s*\(", flat)
    if flat.startswith("extern") or (flat.endswith(")") and not pointer):
        return []
    last = pointer or re.search(r"(\w+)\s*(?:\[[^\]]*\]\s*)*$", flat)
    return [last[1]] if last else []


def check_c(text: str) -> None:
    """Let the C compiler read a file; its error names the chapter."""
    compiler = shutil.which("cc")
    if compiler is None:
        return
    command = [compiler, "-fsyntax-only", "-w", "-x", "c", "-"]
    result = subprocess.run(
        command, input=text, text=True, capture_output=True
    )
    pattern = r"(?m)^([^:\n]+):(\d+):(?:\d+:)? (?:fatal )?error: (.*)$"
    error = re.search(pattern, result.stderr)
    if error:
        message = f"the C compiler cannot read this: {error[3]}"
        raise SourceError(error[1], int(error[2]), message)
