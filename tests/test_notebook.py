"""The record: what is kept, what is dropped, when it is stale."""

import contextlib
import os
import subprocess
import sys

import nbformat
import pytest
from small_book import cell, page, small_book

from companion.literate.execute import (
    code_cells,
    hashed,
    recorded_cells,
)
from companion.literate.markdown import Page, addresses
from companion.literate.notebook import (
    main,
    record,
    stale,
    strays,
)
from companion.literate.source import SourceError, read_book

SITE = "https://someone.github.io/some-book"
REPOSITORY = "https://github.com/someone/some-book"

FIRST = page(
    "first",
    "The ratio is {glue}`ratio`, the time {glue}`time`.",
    cell("from companion.literate.runtime import glue, test"),
    cell("def one():\n    return 1", "tangle"),
    cell("one()"),
    cell("one()"),
    cell('glue("ratio", 2.5)'),
    cell('import time\nprint(time.time())\nglue("time", 3)', "timing"),
    cell("@test\ndef test_one():\n    assert one() == 1", "test"),
    cell("{}['key']", "raises-exception"),
    cell("import matplotlib.pyplot as plt\nplt.plot([1]); plt.show()"),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A small book and the record of its first chapter."""
    book = small_book(tmp_path_factory.mktemp("book"), first=FIRST)
    with contextlib.chdir(book.root):
        assert main(["first"]) == 0
    return book, book.root / "site/notebooks/first.ipynb"


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_outputs_are_text_and_timing_is_left_out(recorded):
    cells = code_cells(read(recorded[1]))
    install, use, define, one, again, glue, timing, test, error, plot = cells
    assert one.outputs[0].data == {"text/plain": "1"}
    assert test.outputs[0].text == "ok  test_one\n"
    assert error.outputs[0].traceback == ["KeyError: 'key'"]
    assert timing.outputs == [] and timing.execution_count is None
    counts = [c.execution_count for c in cells if c is not timing]
    assert counts == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert set(plot.outputs[0].data) == {"text/plain"}


def test_what_varies_runs_and_is_left_out(tmp_path):
    varies = cell("import os\nos.getpid()", "varies")
    book = small_book(tmp_path, first=page("first", varies, cell("1")))
    _, varying, same = code_cells(record(book, "first", addresses(book)))
    assert varying.outputs == [] and varying.execution_count is None
    assert same.outputs and same.execution_count == 3


def test_ids_are_unique_and_follow_the_content(recorded):
    cells = read(recorded[1]).cells
    one = hashed("codeone()")[:8]
    ids = [cell.id for cell in cells]
    assert ids[:2] == ["install", "note"] and len(set(ids)) == len(ids)
    assert {one, f"{one}-2"} <= set(ids)


def test_tangle_can_read_it_back(recorded):
    book, path = recorded
    notebook = read(path)
    assert notebook.metadata.companion == {
        "module": "layers.py",
        "outcomes": {},
    }
    tags = [c.metadata.get("tags") for c in code_cells(notebook)]
    assert ["tangle"] in tags and ["test"] in tags


def test_prose_quotes_what_stays_the_same(recorded):
    prose = read(recorded[1]).cells[2].source
    assert "The ratio is 2.5, the time `time`." in prose


def test_recording_twice_changes_nothing(recorded, capsys, monkeypatch):
    book, path = recorded
    before = path.read_bytes()
    monkeypatch.chdir(book.root)
    assert main(["first"]) == 0
    assert path.read_bytes() == before
    assert "first.ipynb unchanged" in capsys.readouterr().out
    assert main(["--check"]) == 0
    path.unlink()
    assert main(["--check"]) == 1
    assert "first.ipynb is missing" in capsys.readouterr().err
    path.write_bytes(before)


def nbval(path, pythonpath):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--nbval", "-c", os.devnull,
         "-p", "no:cacheprovider", "--rootdir", path.parent, path],
        cwd=path.parent, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(pythonpath)},
    )  # fmt: skip


@pytest.mark.slow
def test_nbval_passes_and_fails_on_a_changed_output(recorded, tmp_path):
    book, path = recorded
    stage = book.root / "_build/stage/first"
    ran = nbval(path, stage)
    assert ran.returncode == 0, ran.stdout
    changed = tmp_path / "first.ipynb"
    changed.write_text(path.read_text().replace("test_one\\n", "test_two\\n"))
    ran = nbval(changed, stage)
    assert ran.returncode == 1 and "Cell 7" in ran.stdout


def test_planted_staleness(recorded):
    book, path = recorded
    web = addresses(book)
    assert stale(book, "first", web) == ""
    for old, new, reason in [
        ("return 1", "return 2", "has other cells than the chapter"),
        ("The ratio", "A ratio", "has other cells than the chapter"),
    ]:
        text = FIRST.replace(old, new)
        changed = book.root / "chapters/first.md"
        changed.write_text(text)
        assert stale(read_book(book.root), "first", web) == reason
        changed.write_text(FIRST)
    saved = path.read_text()
    for old, new, number in [
        ("return 1", "return 3", 5),
        ('"timing"', '"test"', 9),  # nbval would compare the time
    ]:
        path.write_text(saved.replace(old, new))
        reason = f"differs from the chapter in cell {number}"
        assert stale(book, "first", web) == reason
    notebook = nbformat.reads(saved, as_version=4)
    notebook.cells[3].metadata["recorded"] = {"device": "a GPU"}
    path.write_text(nbformat.writes(notebook))
    assert stale(book, "first", web) == ""
    path.write_text(saved)


def test_a_damaged_record_is_not_taken_for_none(recorded):
    """A chapter that ran on a GPU elsewhere has its outputs only there."""
    book, path = recorded
    saved = path.read_text()
    for damage in ("", "<<<<<<< HEAD\n" + saved, "{}", "[]"):
        path.write_text(damage)
        with pytest.raises(SourceError, match="git restore site/notebooks/f"):
            stale(book, "first", addresses(book))
        with pytest.raises(SourceError, match="first.ipynb:1: no notebook"):
            recorded_cells(path)
    path.write_text(saved)


@pytest.mark.parametrize(
    "source, what",
    [
        ("print(object())", "a memory address"),
        ("import companion; print(companion.__path__)", "a path of this"),
    ],
)
@pytest.mark.slow
def test_outputs_that_cannot_stay_the_same(tmp_path, source, what):
    book = small_book(tmp_path, first=page("first", cell(source)))
    with pytest.raises(SourceError) as error:
        record(book, "first", addresses(book))
    assert str(error.value).startswith(
        f"chapters/first.md:9: the output shows {what}"
    )


def test_a_notebook_without_its_chapter(tmp_path, monkeypatch, capsys):
    small_book(tmp_path)
    stray = tmp_path / "site/notebooks/gone.ipynb"
    stray.parent.mkdir(parents=True)
    stray.write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 1
    assert "gone.ipynb has no chapter" in capsys.readouterr().err


# MyST to Markdown


@pytest.fixture(scope="module")
def rewrite(tmp_path_factory):
    """Rewrite the text of chapters/first.md."""
    second = "(later)=\n# The second\n\n```{glossary}\nstride\n  Steps.\n```\n"
    third = "# Sources\n\n```{bibliography}\n```\n"
    folder = tmp_path_factory.mktemp("book")
    book = small_book(folder, first=FIRST, second=second, third=third)
    return Page("chapters/first", addresses(book), {"ratio": "2.5"}).rewrite


@pytest.mark.parametrize(
    "myst, markdown",
    [
        ("{ref}`later`", f"[The second]({SITE}/chapters/second.html#later)"),
        ("{ref}`a\ntext <later>`",
         f"[a text]({SITE}/chapters/second.html#later)"),
        ("{doc}`second`", f"[The second]({SITE}/chapters/second.html)"),
        ("[](second.md)", f"[The second]({SITE}/chapters/second.html)"),
        ("[x](second.md#y)", f"[x]({SITE}/chapters/second.html#y)"),
        ("[x](#later)", f"[x]({SITE}/chapters/second.html#later)"),
        ("[x](https://example.org)", "[x](https://example.org)"),
        ("![alt](../a.svg)", f"![alt]({REPOSITORY}/raw/main/a.svg)"),
        ("{term}`strides <stride>`",
         f"[strides]({SITE}/chapters/second.html#term-stride)"),
        ("{cite}`knuth1992`", f"[Knuth 1992]({SITE}/chapters/third.html)"),
        ("{math}`x^2` and $y$", "$x^2$ and $y$"),
        ("{glue}`ratio`", "2.5"),
        ("{abbr}`BLAS (linear algebra)`", "BLAS"),
        ("`{ref}` is a role", "`{ref}` is a role"),
        ("A ` alone.\n\n{math}`x` and `y`.", "A ` alone.\n\n$x$ and `y`."),
        ("[`a` {math}`x`](second.md#y)",
         f"[`a` $x$]({SITE}/chapters/second.html#y)"),
        ("$$ x $$ (label)\nText", "$$\nx\n$$\n\nText"),
        ("(label)=\n## Title", "## Title"),
        ("% a comment\nText", "Text"),
        ("```{note}\nText\n```", "> **Note**\n>\n> Text"),
        (":::{admonition} *Title*\n:class: tip\nText\n:::",
         "> ***Title***\n>\n> Text"),
        ("```{margin}\nText\n```", "> Text"),
        ("````{tip}\n```{math}\nx\n```\n````",
         "> **Tip**\n>\n> $$\n> x\n> $$"),
        ("```{figure} /a.svg\n:alt: An A\nCaption\n```",
         f"![An A]({REPOSITORY}/raw/main/a.svg)\n\n> Caption"),
        ("```{code-block} c\nint x;\n```", "```c\nint x;\n```"),
        ("```sh\nls {ref}`x`\n```", "```sh\nls {ref}`x`\n```"),
        ("```{list-table} T\n* - a\n  - b\n* - c\n  - d\n```",
         "**T**\n\n| a | b |\n| --- | --- |\n| c | d |"),
        ("```{raw} html\n<b>\n```",
         "*[This part is interactive: see it on the page]"
         f"({SITE}/chapters/first.html).*"),
    ],
)  # fmt: skip
def test_myst_becomes_markdown(rewrite, myst, markdown):
    assert rewrite(myst) == markdown


def test_this_books_record_is_fresh(root):
    book = read_book(root)
    web = addresses(book)
    names = [c.name for c in book.chapters if c.cells]
    reasons = {name: stale(book, name, web) for name in names}
    old = {name: why for name, why in reasons.items() if why}
    assert not old and not strays(book), "run `make notebooks`"
