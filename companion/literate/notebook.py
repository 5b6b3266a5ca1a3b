"""The record: each chapter as a notebook that Colab opens, nbval checks."""

import argparse
import re
import sys

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

from companion.literate.execute import (
    RECORD,
    code_cells,
    execute,
    read_notebook,
    tagged,
)
from companion.literate.markdown import Page, addresses, page_of
from companion.literate.runtime import PREFIX
from companion.literate.source import SourceError, read_book
from companion.literate.stage import replace

INSTALL = """\
# On Colab: install the library. Where it is installed, do nothing.
from importlib.util import find_spec

if not all(map(find_spec, ["companion", "ml_dtypes", "hypothesis"])):
    %pip install --quiet "companion @ git+{url}@{branch}" hypothesis"""


def assemble(book, name, values, web=None):
    """The chapter's notebook without outputs; `values` for its glue."""
    chapter = book.chapter(name)
    web = web or addresses(book)
    page = Page(page_of(chapter), web, values)
    source = read_notebook(chapter)
    for cell in source.cells:
        if cell.cell_type == "markdown":
            cell.source = page.rewrite(cell.source)
    install = INSTALL.format(url=web.repository, branch=web.branch)
    first = new_code_cell(install, id="install", execution_count=1)
    kept = [c for c in source.cells if c.source]
    return new_notebook(cells=[first, *kept], metadata=about(source))


def about(source):
    """The notebook's metadata: its kernel, and what tangle reads."""
    kernel = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    language = {"name": "python"}
    metadata: dict = {"kernelspec": kernel, "language_info": language}
    if "companion" in source.metadata:
        metadata["companion"] = source.metadata["companion"]
    if any(tagged(cell, "gpu") for cell in code_cells(source)):
        metadata["accelerator"] = "GPU"
    return metadata


def record(book, name, web=None):
    """The chapter's notebook with its outputs, as text."""
    chapter, done = book.chapter(name), execute(book, name)
    outputs = [kept_outputs(cell) for cell in code_cells(done)]
    for cell, kept in zip(chapter.cells, outputs, strict=True):
        check_outputs(cell, kept, book.root)
    notebook = assemble(book, name, glue_values(outputs), web)
    cells = zip(
        code_cells(notebook)[1:], code_cells(done), outputs, strict=True
    )
    for count, (cell, ran, kept) in enumerate(cells, 2):
        compared = ran.execution_count and not tagged(cell, "timing")
        cell.execution_count = count if compared else None
        cell.outputs = kept
        if "recorded" in ran.metadata:
            cell.metadata["recorded"] = ran.metadata["recorded"]
        for output in kept:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def kept_outputs(cell):
    """A cell's outputs as text; none of a cell that tells the time."""
    if tagged(cell, "timing") and not tagged(cell, "gpu"):
        return []
    outputs = [as_text(output) for output in cell.outputs]
    return [output for output in outputs if output is not None]


def as_text(output):
    """An output without images; None if it is the label of a recording."""
    if "data" not in output:
        return output
    if output.metadata.get("companion") == "label":
        return None
    data = {
        kind: text
        for kind, text in output.data.items()
        if kind.startswith(("text/", PREFIX + "text/"))
    }
    names = {k: v for k, v in output.metadata.items() if k == "scrapbook"}
    extra = {"execution_count": None}
    if output.output_type != "execute_result":
        extra = {}
    return new_output(output.output_type, data, metadata=names, **extra)


def glue_values(outputs):
    """What the cells glued, by name."""
    return {
        output.metadata["scrapbook"]["name"]: text
        for kept in outputs
        for output in kept
        if "scrapbook" in output.get("metadata", {})
        for kind, text in output.data.items()
        if kind.endswith("text/plain")
    }


ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{8,}\b")


def check_outputs(cell, outputs, root):
    """Refuse what could not be the same on another machine."""
    for output in outputs:
        data = output.get("data", {})
        text = "\n".join(map(str, [output.get("text", ""), *data.values()]))
        address = ADDRESS.search(text)
        if address:
            raise cell.error(
                1,
                f"the output shows a memory address ({address[0]}): "
                "print something that stays the same",
            )
        if str(root.resolve()) in text or "/ipykernel_" in text:
            raise cell.error(
                1,
                "the output shows a path of this machine: "
                "print something that stays the same",
            )


def has_notebook(chapter):
    return bool(chapter.cells)


def notebook_path(book, name):
    return book.root / RECORD / f"{name}.ipynb"


def stale(book, name, web=None):
    """Why the record is not the chapter's, or None if it is."""
    path = notebook_path(book, name)
    if not path.exists():
        return "is missing"
    old = nbformat.read(path, as_version=4)
    values = glue_values([cell.outputs for cell in code_cells(old)])
    new = assemble(book, name, values, web)
    if [cell.id for cell in old.cells] != [cell.id for cell in new.cells]:
        return "has other cells than the chapter"
    for number, pair in enumerate(zip(old.cells, new.cells, strict=True), 1):
        if pair[0].source != pair[1].source:
            return f"differs from the chapter in cell {number}"
    return None


def write_notebook(book, name, web):
    """Record one chapter; say whether the file changed."""
    path = notebook_path(book, name)
    text = nbformat.writes(record(book, name, web), indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    replace(path, text)
    return True


def strays(book):
    """Notebooks in the record that no chapter has."""
    names = {c.name for c in book.chapters if has_notebook(c)}
    found = sorted((book.root / RECORD).glob("*.ipynb"))
    return [path for path in found if path.stem not in names]


def check(book, names):
    """Print what is not fresh; return how many."""
    web, count = addresses(book), 0
    reasons = {name: stale(book, name, web) for name in names}
    reasons |= {path.stem: "has no chapter" for path in strays(book)}
    for name, reason in reasons.items():
        if reason:
            count += 1
            print(
                f"{RECORD}/{name}.ipynb {reason}: run `make notebooks`",
                file=sys.stderr,
            )
    return count


def write(book, names):
    """Record the chapters; drop notebooks that no chapter has."""
    web = addresses(book)
    for name in names:
        changed = write_notebook(book, name, web)
        print(f"{RECORD}/{name}.ipynb", "" if changed else "(unchanged)")
    for path in strays(book):
        path.unlink()
        print(f"{RECORD}/{path.name} removed: no chapter has it")


def main(argv):
    """Record the named chapters (default: all) in site/notebooks."""
    parser = argparse.ArgumentParser(
        prog="companion notebook", description=main.__doc__
    )
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail if the record is not fresh",
    )
    options = parser.parse_args(argv)
    try:
        book = read_book()
        every = [c.name for c in book.chapters if has_notebook(c)]
        names = [book.chapter(n).name for n in options.chapters] or every
        if options.check:
            return 1 if check(book, names) else 0
        write(book, names)
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
