"""Reading chapters: every bad input is one clear line."""

import json

import pytest
from small_book import cell

from companion.literate.source import SourceError, read_book, read_chapter

FRONT = "---\ncompanion: {module: view.py}\n---\n# Views\n\n"  # 5 lines


def chapter(tmp_path, text, name="x.md"):
    """Read a chapter of this text."""
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    return read_chapter(name, tmp_path)


def book(tmp_path, toc, *names):
    """Read a book with this table of contents and these pages."""
    (tmp_path / "_toc.yml").write_text(f"format: jb-book\nroot: intro\n{toc}")
    for name in ("intro", *names):
        page = tmp_path / f"{name}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text("# Page\n")
    return read_book(tmp_path)


def message(call, *args):
    """What a call complains about."""
    with pytest.raises(SourceError) as error:
        call(*args)
    return str(error.value)


def test_a_cell_knows_its_place(tmp_path):
    text = FRONT + "Text.\n\n" + cell("a = 1\n\nb = 2", "tangle")
    page = chapter(tmp_path, text)
    (found,) = page.cells
    assert (page.title, page.module, found.line) == ("Views", "view.py", 10)
    assert text.split("\n")[found.line - 1] == "a = 1"
    assert found.target == "companion/view.py"
    assert found.source == "a = 1\n\nb = 2"


def test_options_name_file_and_replaced(tmp_path):
    source = cell("x = 1", "tangle", file="a/b.py", replaces="X.y, T[K]")
    (found,) = chapter(tmp_path, FRONT + source).cells
    assert found.target == "companion/a/b.py"
    assert found.replaces == ("X.y", "T[K]")


def test_magic_names_language_and_file(tmp_path):
    source = cell("%%cuda kernels/x.cu -O3\nint a;", "tangle")
    (found,) = chapter(tmp_path, FRONT + source).cells
    assert (found.language, found.file) == ("cuda", "kernels/x.cu")


def test_tests_go_to_the_chapters_own_file(tmp_path):
    (found,) = chapter(tmp_path, FRONT + cell("x = 1", "test")).cells
    assert found.target == "tests/chapters/test_x.py"


def test_a_longer_fence_may_hold_a_code_cell(tmp_path):
    inner = cell('t = """', "tangle") + '"""\n'
    outer = "````{code-cell} python\n" + inner + "````\n"
    shown = "````markdown\n" + cell("x", "anything") + "````\n"
    assert len(chapter(tmp_path, FRONT + outer + shown).cells) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    {
        cell("x", "tangel"): "x.md:8: unknown tag 'tangel':"
        " did you mean tangle?",
        cell("x", "skip-execution"): "x.md:8: unknown tag 'skip-execution':"
        " tangle, test, timing, varies, gpu, exercise, solution,"
        " raises-exception, hide-input, hide-output, hide-cell, remove-input,"
        " remove-output, remove-cell, full-width, margin",
        cell("x", "tangle", "test"): "x.md:8: a cell is `tangle` or `test`:"
        " split it in two",
        "```{code-cell} python\nx\n": "x.md:6: this fence is never closed:"
        " end it with a line ```",
        "```{code-cell} python\nx\n\n" + cell("y"): "x.md:6: this fence is"
        " never closed: end it with a line ```",
        ":::{code-cell} python\nx\n:::\n": "x.md:6: the fence of a code cell"
        " is ```, or longer",
        "```{code-cell} python\n:tags: tangle\nx\n```\n": "x.md:8: tags are"
        " a list: `:tags: [tangle]`",
        "```{code-cell} python\n:tags:\nx\n```\n": "x.md:8: tags are a list:"
        " `:tags: [tangle]`",
        ":::{note}\n" + cell("x") + ":::\n": "x.md:7: a code cell inside"
        " {note} of line 6 is not run: put it at top level",
        "- item\n\n  " + cell("x"): "x.md:8: a code cell inside a list or a"
        " quotation is not run: put it at top level",
        "Text.\n\n    " + cell("x"): "x.md:8: a code cell inside a list or a"
        " quotation is not run: put it at top level",
        "<!--\n" + cell("x") + "-->\n": "x.md:6: a code cell inside a list or"
        " a quotation is not run: put it at top level",
        cell("x", "tangle", file="x.rs"): "x.md:9: unknown suffix in 'x.rs':"
        " not in .py .c .h .cu .cuh",
        cell("x", "tangle", file="../x.py"): "x.md:9: '../x.py' is not a file"
        " below companion/",
        cell("x", "exercise"): "x.md:8: this exercise has no solution: add a"
        " cell tagged [solution, hide-cell] after it",
        "```{code-cell} python\n:tags: [a\n```\n": "x.md:7: YAML: did not"
        " find expected ',' or ']'",
    }.items(),
)
def test_bad_page(tmp_path, text, told):
    assert message(chapter, tmp_path, FRONT + text) == told


def test_no_file_to_tangle_to(tmp_path):
    assert message(chapter, tmp_path, cell("x", "tangle")) == (
        "x.md:3: no file to tangle to: give the cell `:file:` or the front"
        " matter `companion: {module: …}`"
    )


def test_a_file_that_is_not_utf8(tmp_path):
    text = b"# Title\n\nna\xefve\n"
    assert message(chapter, tmp_path, text) == (
        "x.md:3: byte 0xef is not UTF-8 text: save it as UTF-8"
    )
    text = b"# Title\r\rx\0"
    assert message(chapter, tmp_path, text) == (
        "x.md:3: byte 0x00 is not UTF-8 text: save it as UTF-8"
    )


@pytest.mark.parametrize("end", ["\r", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_of_every_kind(tmp_path, end, mark):
    text = FRONT + "Text.\n\n" + cell("a = 1\n\nb = 2", "tangle")
    usual = chapter(tmp_path, text)
    assert chapter(tmp_path, mark + text.replace("\n", end)) == usual
    assert usual.cells[0].line == 10


def test_line_ends_in_a_notebook(tmp_path):
    code = {"cell_type": "code", "metadata": {"tags": ["tangle"]}}
    cells = [{**code, "source": ["a = 1\r\n", "b = 2\r", "c = 3"]}]
    front = {"companion": {"module": "view.py"}}
    text = json.dumps({"cells": cells, "metadata": front})
    (found,) = chapter(tmp_path, text, "x.ipynb").cells
    assert found.source == "a = 1\nb = 2\nc = 3"


@pytest.mark.parametrize("indent", ["\t", "  ", ""])
@pytest.mark.parametrize("end", ["\t", ""])
def test_options_may_be_indented_as_in_jupytext(tmp_path, indent, end):
    text = cell("x = 1", "tangle").replace(":tags:", indent + ":tags:")
    text = FRONT + text.replace("[tangle]", "[tangle]" + end)
    (found,) = chapter(tmp_path, text).cells
    assert (found.tags, found.source, found.line) == (("tangle",), "x = 1", 8)


@pytest.mark.parametrize(("options", "told"), [
    (":tags:[tangle]", "12: an option needs a space behind its colon:"
     " `:tags: …`"),
    ("\t:tags:[tangle]", "12: an option needs a space behind its colon:"
     " `:tags: …`"),
    (":file: x.py\n\t:tags:[tangle]", "13: an option needs a space behind"
     " its colon: `:tags: …`"),
    ("\n:tags: [tangle]", "13: options stand directly below the fence:"
     " `:key: value`"),
    ("---\ntags: [tangle]\n---", "12: options stand directly below the"
     " fence: `:key: value`"),
    (":tags [tangle]", "12: YAML: expected `key: value` lines"),
])
def test_options_that_are_none(tmp_path, options, told):
    text = cell("y = 1", "tangle") + cell("x = 1").replace(
        "python\n", f"python\n{options}\n")
    assert message(chapter, tmp_path, FRONT + text) == f"x.md:{told}"


def test_a_solved_exercise(tmp_path):
    text = cell("x", "exercise") + "Hint.\n\n" + cell("y", "solution")
    assert len(chapter(tmp_path, FRONT + text).cells) == 2


def test_a_notebook_is_a_chapter(tmp_path):
    code = {"cell_type": "code", "metadata": {"tags": ["tangle"]}}
    cells = [{"cell_type": "markdown", "source": ["# T"]}]
    cells += [{**code, "source": ["a = 1\n", "b = 2\n"]}]
    front = {"companion": {"module": "view.py"}}
    text = json.dumps({"cells": cells, "metadata": front})
    (found,) = chapter(tmp_path, text, "x.ipynb").cells
    assert (found.path, found.line) == ("x.ipynb[1]", 1)
    assert (found.source, found.file) == ("a = 1\nb = 2", "view.py")


def test_a_notebook_that_is_none(tmp_path):
    told = message(chapter, tmp_path, '{"cells":\n', "x.ipynb")
    assert told == "x.ipynb:2: not a notebook: Expecting value"
    for text in ("{}", "[]"):
        told = message(chapter, tmp_path, text, "x.ipynb")
        assert told == "x.ipynb:1: not a notebook: its `cells` are missing"


TOC = "parts:\n- caption: A\n  numbered: true\n  chapters:\n"


def test_order_and_numbers_come_from_the_toc(tmp_path):
    toc = TOC + "  - file: chapters/b\n    sections:\n    - file: chapters/c\n"
    toc += "- caption: B\n  chapters:\n  - file: chapters/a\n"
    found = book(tmp_path, toc, "chapters/a", "chapters/b", "chapters/c")
    assert [c.name for c in found.chapters] == ["intro", "b", "c", "a"]
    assert found.numbers == {"b": "1", "c": "1.1"}


def test_tools_come_before_all_others(tmp_path):
    toc = TOC + "  - file: chapters/a\n  - file: chapters/b\n"
    toc += "  - file: chapters/t\n"
    book(tmp_path, toc, "chapters/a", "chapters/b", "chapters/t")
    front = "---\ncompanion: {module: literate/t.py, beside: true}\n---\n"
    (tmp_path / "chapters/t.md").write_text(front)
    found = read_book(tmp_path)
    names = [[c.name for c in b.chapters]
             for b in (found.before("b"), found.upto("b"), found.before("t"))]
    assert names == [["t", "intro", "a"], ["t", "intro", "a", "b"], ["t"]]


@pytest.mark.parametrize(
    ("toc", "pages", "told"),
    [
        (TOC + "  - file: chapters/a\n", (),
         "_toc.yml:7: chapters/a.md does not exist: write it or drop this"
         " entry"),
        (TOC + "  - file: chapters/a\n", ("chapters/a", "chapters/b"),
         "chapters/b.md:1: is not in _toc.yml: add it there or delete the"
         " file"),
        (TOC + "  - file: a/x\n  - file: b/x\n", ("a/x", "b/x"),
         "_toc.yml:8: b/x.md and a/x.md share a name: rename one"),
        (TOC + "  - file: chapters/a\n  - file: chapters/a\n",
         ("chapters/a",),
         "_toc.yml:8: chapters/a.md stands here twice: drop one of the two"),
        (TOC + "  - file: chapters/a\n  - file: chapters/a.md\n",
         ("chapters/a",),
         "_toc.yml:8: chapters/a.md stands here twice: drop one of the two"),
        (TOC + "  - file: intro\n", (),
         "_toc.yml:7: intro.md stands here twice: drop one of the two"),
        (TOC + "  - file: chapters/ab\n  - file: chapters/a\n",
         ("chapters/ab",),
         "_toc.yml:8: chapters/a.md does not exist: write it or drop this"
         " entry"),
        (TOC + "  - chapters/a\n", (),
         "_toc.yml:7: expected `- file: PAGE`, found chapters/a"),
        (TOC + "  - file:\n", (), "_toc.yml:7: `file:` names no page"),
        (TOC + "  - file: [a]\n", (), "_toc.yml:7: `file:` names no page"),
    ],
)
def test_bad_table_of_contents(tmp_path, toc, pages, told):
    for name in pages:
        (tmp_path / name).parent.mkdir(exist_ok=True)
    assert message(book, tmp_path, toc, *pages) == told


@pytest.mark.parametrize("name", [
    ".ipynb_checkpoints/a-checkpoint.md", ".#a.md", "._a.md", "#a.md",
    "~$a.md", ".a.md", "part/.#b.md", ".trash/c.md"])
def test_what_editors_leave_is_no_page(tmp_path, name):
    left = tmp_path / "chapters" / name
    left.parent.mkdir(parents=True)
    left.write_bytes(b"\0\xff")
    found = book(tmp_path, TOC + "  - file: chapters/a\n", "chapters/a")
    assert [page.name for page in found.chapters] == ["intro", "a"]


def test_an_editors_lock_and_a_folder_are_no_pages(tmp_path):
    (tmp_path / "chapters/b.md").mkdir(parents=True)
    (tmp_path / "chapters/.#a.md").symlink_to("someone@somewhere.1")
    found = book(tmp_path, TOC + "  - file: chapters/a\n", "chapters/a")
    assert [page.name for page in found.chapters] == ["intro", "a"]


def test_a_link_and_a_name_with_a_dot_in_the_toc(tmp_path):
    toc = TOC + "  - file: chapters/v1.5\n  - url: https://example.org\n"
    found = book(tmp_path, toc, "chapters/v1.5")
    assert found.numbers == {"v1.5": "1"}
    assert found.chapters[1].path == "chapters/v1.5.md"


def test_no_book_here(tmp_path):
    told = message(read_book, tmp_path)
    assert told == (f"_toc.yml:1: not found in {tmp_path}:"
                    " run this in the folder of the book")


def test_an_unknown_chapter(tmp_path):
    found = book(tmp_path, TOC + "  - file: chapters/a\n", "chapters/a")
    told = message(found.chapter, "b")
    assert told == "_toc.yml:1: no chapter called 'b'"


def test_front_matter_that_names_a_module_bare(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("---\ncompanion: view.py\n---\n# A\n")
    with pytest.raises(SourceError) as error:
        read_chapter("a.md", tmp_path)
    assert str(error.value) == (
        "a.md:1: `companion: view.py` in the front matter: "
        "write `companion: {module: NAME.py}`"
    )


def test_a_file_that_is_no_name(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "# A\n```{code-cell} python\n:tags: [tangle]\n:file: 3\nx = 1\n```\n"
    )
    with pytest.raises(SourceError, match="unknown suffix in 3"):
        read_chapter("a.md", tmp_path)


@pytest.mark.parametrize("own, message", [
    ("outcome: {}", "3: unknown key 'outcome' below companion: "
     "did you mean outcomes?"),
    ("3: {}", "3: unknown key '3' below companion: module, beside, outcomes"),
    ("outcomes: [a]", "3: `outcomes: ['a']`: write "
     "`outcomes: {what a reader can do: test_NAME}`"),
    ("module:", "3: `module: None`: write `module: NAME.py`"),
    ("beside: 1", "3: `beside: 1`: write `beside: true`"),
])  # fmt: skip
def test_the_keys_of_the_front_matter(tmp_path, own, message):
    page = tmp_path / "a.md"
    page.write_text(f"---\ncompanion:\n  {own}\n---\n# A\n")
    with pytest.raises(SourceError) as caught:
        read_chapter("a.md", tmp_path)
    assert str(caught.value) == f"a.md:{message}"


def test_outcomes_are_read(tmp_path):
    own = "{module: view.py, outcomes: {read it: test_it}}"
    (tmp_path / "a.md").write_text(f"---\ncompanion: {own}\n---\n# A\n")
    assert read_chapter("a.md", tmp_path).outcomes == {"read it": "test_it"}
    (tmp_path / "b.md").write_text("# B\n")
    assert read_chapter("b.md", tmp_path).outcomes == {}
