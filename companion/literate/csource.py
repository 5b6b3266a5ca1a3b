# Tangled from tangle: edit there, `make tangle`. sha256:4971641e4c3b
"""C and CUDA cells: what they define, and whether a compiler reads it."""

import os
import re
import shutil
import subprocess

from companion.literate.pieces import Piece
from companion.literate.source import Cell, SourceError

NOT_CODE = (
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    r"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*"
)

ATTRIBUTE = r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)"
BODY = "\N{REPLACEMENT CHARACTER}"  # stands for what braces held


def c_piece(cell: Cell) -> Piece:
    """A cell of C is one piece; its magic is the notebook's."""
    lines = cell.source.split("\n")[1:]
    return Piece(cell, None, 2, lines, symbols("\n".join(lines)))


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


CARD = "kernels/emulator.h"

READ = {"c": ("C", "-x", "c"),
        "cuda": ("C++", "-x", "c++", "-std=c++17", "-Wno-narrowing")}


def check_c(text: str, language: str = "c", flags=()) -> None:
    """Let the C compiler read a file; its error names the chapter."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))),
                    None)
    if compiler is None:
        return
    name, *options = READ[language]
    command = [compiler, "-fsyntax-only", "-w", *options, *flags, "-"]
    english = os.environ | {"LC_ALL": "", "LC_MESSAGES": "C", "LANGUAGE": ""}
    result = subprocess.run(
        command, input=text, text=True, capture_output=True, env=english)
    pattern = r"(?m)^([^:\n]+):(\d+):(?:\d+:)? (?:fatal )?error: (.*)$"
    error = re.search(pattern, result.stderr)
    if error:
        message = f"the {name} compiler cannot read this: {error[3]}"
        raise SourceError(error[1], int(error[2]), message)


def check_source(cells: list[Cell], text: str, card: str) -> None:
    """Let a compiler read the text of a C or CUDA file, made of cells."""
    flags = dict.fromkeys(flag for cell in cells for flag in cell.flags)
    language, file = cells[0].language, cells[0].file
    if language == "cuda" and file != CARD:
        if not card:
            return
        text = card + re.sub(r"(?m)^ *#include <(?:cuda_\w+|mma)\.h.*", "",
                             text)
    check_c(text, language, flags)
