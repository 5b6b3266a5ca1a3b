# Tangled from record: edit there, `make tangle`. sha256:86b204de2bea
"""The record: each chapter as a notebook that Colab opens, nbval checks."""

import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import (
    new_code_cell, new_markdown_cell, new_notebook, new_output)

from companion.literate.execute import (
    RECORD, Run, as_notebook, code_cells, execute, needs_gpu, read_record,
    tagged, tags)
from companion.literate.markdown import Addresses, Page, addresses, page_of
from companion.literate.runtime import PREFIX
from companion.literate.source import Book, Chapter, compared, read_book
from companion.literate.stage import chapter_parser, chosen, reported
from companion.literate.write import replace_file

INSTALL = """\
# On Colab: install the library. Where it is installed, do nothing.
from importlib.util import find_spec

if not all(map(find_spec, "companion ml_dtypes hypothesis{tools}".split())):
    %pip install --quiet "companion{extra} @ git+{url}@{branch}" hypothesis"""
NOTE = """\
*This notebook is the chapter [{title}]({url}) as it ran. Where the page
quotes a time that was measured, the notebook has its `name`: yours will
be another.*"""


def assemble(book: Book, name: str, values, web: Addresses):
    """The chapter's notebook without outputs; `values` for its glue."""
    chapter = book.chapter(name)
    page = Page(page_of(chapter), web, values)
    source = as_notebook(chapter)
    for cell, line in zip(source.cells, source.metadata.source_map):
        if cell.cell_type == "markdown":
            cell.source = page.rewrite(cell.source, line + 2)
    extra, tools = ("[book]", " jupyter_book") if chapter.beside else ("", "")
    install = INSTALL.format(url=web.repository, branch=web.branch,
                             extra=extra, tools=tools)
    note = NOTE.format(title=chapter.title, url=web.page(page.name))
    head = [new_code_cell(install, id="install", execution_count=1),
            new_markdown_cell(note, id="note")]
    kept = [cell for cell in source.cells if cell.source]
    gpu = {"accelerator": "GPU"} if needs_gpu(chapter) else {}
    return new_notebook(cells=head + kept, metadata=about(chapter) | gpu)


def about(chapter: Chapter) -> dict:
    """The notebook's metadata: its kernel, and what tangle reads."""
    kernel = {"name": "python3", "display_name": "Python 3",
              "language": "python"}
    own = {k: v for k, v in chapter.front.items() if k == "companion"}
    return {"kernelspec": kernel, "language_info": {"name": "python"}, **own}


def kept_outputs(cell) -> list:
    """A cell's outputs as text; none of those that nothing compares."""
    if not compared(tags(cell)) and not tagged(cell, "gpu"):
        return []
    outputs = [as_text(output) for output in cell.outputs]
    return [output for output in outputs if output is not None]


def as_text(output):
    """An output without images; None if it is a recording's label."""
    if "data" not in output:
        return output
    if output.metadata.get("companion") == "label":
        return None
    kinds = ("text/", PREFIX + "text/")
    data = {k: v for k, v in output.data.items() if k.startswith(kinds)}
    names = {k: v for k, v in output.metadata.items() if k == "scrapbook"}
    result = output.output_type == "execute_result"
    extra = {"execution_count": None} if result else {}
    return new_output(output.output_type, data, metadata=names, **extra)


def glue_values(outputs: list[list]) -> dict[str, str]:
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


def check_outputs(cell, outputs: list, root: Path) -> None:
    """Refuse what could not be the same on another machine."""
    for output in outputs:
        data = output.get("data", {})
        text = "\n".join(map(str, [output.get("text", ""), *data.values()]))
        what = ""
        if address := ADDRESS.search(text):
            what = f"a memory address ({address[0]})"
        elif str(root.resolve()) in text or "/ipykernel_" in text:
            what = "a path of this machine"
        if what:
            raise cell.error(1, f"the output shows {what}: print something"
                                " that stays the same")


def record(book: Book, name: str, web: Addresses):
    """The chapter's notebook with the outputs that are kept."""
    chapter, done = book.chapter(name), execute(book, name)
    outputs = [kept_outputs(cell) for cell in code_cells(done)]
    for cell, kept in zip(chapter.cells, outputs, strict=True):
        check_outputs(cell, kept, book.root)
    notebook = assemble(book, name, glue_values(outputs), web)
    cells = zip(code_cells(notebook)[1:], code_cells(done), outputs,
                strict=True)
    for count, (cell, ran, kept) in enumerate(cells, 2):
        same = ran.execution_count and compared(tags(cell))
        cell.execution_count = count if same else None
        cell.outputs = kept
        if "recorded" in ran.metadata:
            cell.metadata["recorded"] = ran.metadata["recorded"]
        for output in kept:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def notebook_path(book: Book, name: str) -> Path:
    """Where the record keeps a chapter."""
    return book.root / RECORD / f"{name}.ipynb"


def stale(book: Book, name: str, web: Addresses) -> str:
    """Why the record is not the chapter's; empty if it is."""
    path = notebook_path(book, name)
    if not path.exists():
        return "is missing"
    old = read_record(path)
    values = glue_values([cell.outputs for cell in code_cells(old)])
    new = assemble(book, name, values, web)
    if [cell.id for cell in old.cells] != [cell.id for cell in new.cells]:
        return "has other cells than the chapter"
    for number, cell in enumerate(old.cells):
        if said(cell) != said(new.cells[number]):
            return f"differs from the chapter in cell {number + 1}"
    return ""


def said(cell) -> tuple:
    """What a cell has from its chapter: its source, tags and options."""
    own = {k: v for k, v in cell.metadata.items() if k != "recorded"}
    return cell.source, own


def strays(book: Book) -> list[Path]:
    """Notebooks in the record that no chapter has."""
    known = {chapter.name for chapter in book.chapters if chapter.cells}
    found = sorted((book.root / RECORD).glob("*.ipynb"))
    return [path for path in found if path.stem not in known]


def write_notebook(book: Book, name: str, web: Addresses) -> bool:
    """Record one chapter; say whether the file changed."""
    path = notebook_path(book, name)
    new = record(book, name, web)
    new.metadata["seconds"] = settled(Run(book, name))
    text = nbformat.writes(new, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    replace_file(path, text)
    return True


def settled(run: Run) -> float:
    """The seconds of a run, rounded; the record's, if they are near."""
    new = round(run.last()["seconds"])
    path = notebook_path(run.book, run.chapter.name)
    old = read_record(path).metadata.get("seconds") if path.exists() else None
    return old if old and old / 2 <= new <= 2 * old else new


def write_record(options) -> None:
    """Record the chosen chapters; drop notebooks that none has."""
    book = read_book()
    web = addresses(book)
    for name in chosen(book, options):
        changed = write_notebook(book, name, web)
        state = "recorded" if changed else "unchanged"
        print(f"{RECORD}/{name}.ipynb {state}")
    for path in strays(book):
        path.unlink()
        print(f"{RECORD}/{path.name} removed: no chapter has it")


def check_record(options) -> int:
    """Print which notebooks are not fresh; 1 if there are any."""
    book = read_book()
    web = addresses(book)
    why = {name: stale(book, name, web) for name in chosen(book, options)}
    why |= {path.stem: "has no chapter" for path in strays(book)}
    old = {name: reason for name, reason in why.items() if reason}
    for name, reason in old.items():
        print(f"{RECORD}/{name}.ipynb {reason}: run `make notebooks`",
              file=sys.stderr)
    return min(len(old), 1)


def main(argv: list[str]) -> int:
    """Record chapters as notebooks in site/notebooks."""
    parser = chapter_parser("notebook", str(main.__doc__))
    parser.add_argument("--check", action="store_true",
                        help="write nothing; fail if one is not fresh")
    options = parser.parse_args(argv)
    work = check_record if options.check else write_record
    return reported(work, options)
