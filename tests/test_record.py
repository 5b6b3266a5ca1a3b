"""What each chapter's run said is what its record says, to nbval."""

import pytest
from nbval.plugin import IPyNbFile, coalesce_streams
from small_book import cell, page, small_book

from companion.literate.execute import RECORD, code_cells, execute
from companion.literate.markdown import addresses
from companion.literate.notebook import kept_outputs, write_notebook
from companion.literate.source import read_book

NAMES = [chapter.name for chapter in read_book().chapters if chapter.cells]


def differences(session, book, name):
    """nbval's words for each cell that said something else."""
    path = book.root / RECORD / f"{name}.ipynb"
    _, *items = IPyNbFile.from_parent(session, path=path).collect()
    ran = code_cells(execute(book, name))
    for item, now in zip(items, ran, strict=True):
        then = item.cell
        outputs = [kept_outputs(now), then.outputs]
        same = item.compare_outputs(*map(coalesce_streams, outputs))
        if then.execution_count and not same:
            yield "\n".join([then.source, *item.comparison_traceback])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_record_says_what_the_run_said(name, request, root):
    """The run is that of `make book`, on the chapter's own stage."""
    found = list(differences(request.session, read_book(root), name))
    assert not found, "\n\n".join(found)


def test_an_output_that_changed_is_found(tmp_path, request):
    first = page(
        "first",
        cell("print('said')"),
        cell("1 / 0", "raises-exception"),
        cell("import time\nprint(time.time())", "timing"),
    )
    book = small_book(tmp_path, first=first)
    write_notebook(book, "first", addresses(book))
    assert not list(differences(request.session, book, "first"))
    record = tmp_path / RECORD / "first.ipynb"
    for old in ("said\\n", "division by zero"):
        text = record.read_text()
        record.write_text(text.replace(f'"{old}', '"what nobody said'))
        (found,) = differences(request.session, book, "first")
        assert "what nobody said" in found
        record.write_text(text)
