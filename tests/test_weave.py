"""The site of a tiny book: captions, links both ways, indexes, gains."""

import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from string import ascii_lowercase
from unittest import mock
from urllib.parse import unquote, urldefrag

import pytest
from bs4 import BeautifulSoup
from small_book import small_book

from companion.literate.loom import LOOM
from companion.literate.pages import in_index, source_html
from companion.literate.source import Cell, read_book
from companion.literate.tangle import tangle
from companion.literate.weave import (
    CCell,
    Change,
    called,
    contents,
    fold,
    setup,
)

ROOT = Path(__file__).parent.parent
FRONT = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3}
companion: {module: MODULE}
---
"""
CONFIG = f"""\
title: Tiny
author: A
execute: {{execute_notebooks: "off"}}
repository: {{url: https://github.com/someone/tiny, branch: trunk}}
exclude_patterns: [".*", _build, companion, tests, site, "*.py"]
sphinx:
  extra_extensions: [sphinx_multitoc_numbering, companion.literate.weave]
  recursive_update: true
  config:
    html_static_path: ["{ROOT / "site/static"}"]
"""
TOC = """\
format: jb-book
root: intro
parts:
  - caption: One
    numbered: true
    chapters: [{file: chapters/pairs}, {file: chapters/sums}]
  - caption: Back
    chapters: [{file: chapters/library}, {file: chapters/identifiers}]
"""
PAIRS = """\
# Pairs

A pair holds two numbers.

```{code-cell} python
from IPython.core.magic import register_cell_magic
from myst_nb import glue


@register_cell_magic("c")
def compile_c(line, cell):
    print("compiled", line)


def extend(addition):
    globals()[addition.__name__].__repr__ = addition.__repr__
    return globals()[addition.__name__]


def test(function):
    function()
    print("ok ", function.__name__)
```

```{code-cell} python
:tags: [tangle]
:file: __init__.py
__version__ = "1"
```

```{code-cell} python
:tags: [tangle]
'''Pairs of numbers.'''


class Pair:
    def __init__(self, left, right):
        self.left, self.right = left, right
```

`Pair.__init__` keeps both.

## Members

```{code-cell} python
:tags: [tangle]
@extend
class Pair:
    def __repr__(self):
        return f"Pair({self.left}, {self.right})"
```

```{code-cell} python
:tags: [tangle]
def total(pair):
    return pair.left + pair.right
```

```{code-cell} python
:tags: [test]
@test
def test_total():
    assert total(Pair(1, 2)) == 3
```

```{code-cell} python
glue("sum", total(Pair(20, 22)), display=False)
```

They make {glue}`sum`.

```{code-cell} python
:tags: [tangle]
%%c kernels/add.c -O2
double add(double a, double b) { return a + b; }
```

```{code-cell} python
:tags: [exercise]
def swap(pair): ...
```

```{code-cell} python
:tags: [solution, hide-cell]
:mystnb: {image: {alt: A line that rises}}
import matplotlib.pyplot as plt


def swap(pair):
    return Pair(pair.right, pair.left)


plt.plot([1, 2])
plt.show()
```

```{code-cell} python
:tags: [gpu]
import cupy
```
"""
SUMS = """\
# Sums

```{code-cell} python
:tags: [hide-cell]
from companion.view import Pair, total
```

```{code-cell} python
:tags: [tangle]
:file: view.py
:replaces: total
def total(pair):
    return pair.right + pair.left
```

```{code-cell} python
:tags: [tangle, hide-input]
def twice(pair: Pair):
    return 2 * total(pair)
```

```{code-cell} python
twice(Pair(1, 2))
```

## Behind one line

```{code-cell} python
:tags: [hide-input]
total(Pair(3, 4))
```

```{code-cell} python
:tags: [hide-cell]
import math
import os
```

```{code-cell} python
:tags: [hide-cell]
print("in a fold")
```

And apart:

```{code-cell} python
:tags: [hide-cell]
1
```
"""
BOOK = {
    "_config.yml": CONFIG,
    "_toc.yml": TOC,
    "intro.md": "# Tiny\n\nA page without code. See `Pair.__repr__`.\n",
    "chapters/pairs.md": FRONT.replace("MODULE", "view.py") + PAIRS,
    "chapters/sums.md": FRONT.replace("MODULE", "buffer.py") + SUMS,
    "chapters/library.md": "# Library\n\n```{library}\n```\n",
    "chapters/identifiers.md": """\
# Identifiers

```{identifiers}
```

## With T

```{identifiers} t
```
""",
    "site/notebooks/pairs.ipynb": """\
{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
""",
}


def build(folder):
    """Build the book of a folder; warnings are errors."""
    tool = Path(sys.executable).with_name("jupyter-book")
    return subprocess.run(
        [tool, "build", ".", "-W", "-n", "--keep-going"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of the built book."""
    folder = tmp_path_factory.mktemp("book")
    for path, text in BOOK.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    first = build(folder)
    assert first.returncode == 0, first.stderr
    return folder


@pytest.fixture(scope="module")
def html(book):
    """The folder of the pages."""
    return book / "_build/html"


def runs(folder):
    """When each chapter last ran."""
    kept = (folder / "_build/executed").glob("*.ipynb")
    return {file.stem: file.stat().st_mtime_ns for file in kept}


def page(html, name):
    return BeautifulSoup((html / f"{name}.html").read_text(), "html.parser")


def words(node):
    return " ".join(node.get_text().split())


def captions(html, name):
    return [words(node) for node in page(html, name).select(".tt-place")]


def test_captions_name_the_file_and_the_place(html):
    assert captions(html, "chapters/pairs")[:6] == [
        "companion/__init__.py",
        "companion/view.py",
        "companion/view.py · class Pair, after __init__",
        "companion/view.py · replaced in §2",
        "test · tests/chapters/test_pairs.py",
        "companion/kernels/add.c",
    ]
    assert captions(html, "chapters/sums")[:2] == [
        "companion/view.py · replaces total, §1.1",
        "companion/buffer.py",
    ]


def test_every_link_inside_the_site_leads_somewhere(html):
    anchors = {}
    for file in html.rglob("*.html"):
        if "_static" not in file.parts:
            soup = BeautifulSoup(file.read_text(), "html.parser")
            anchors[file] = soup, {tag["id"] for tag in soup.select("[id]")}
    checked = 0
    for file, (soup, _) in anchors.items():
        for link in soup.select("article a[href]"):
            address, anchor = urldefrag(unquote(link["href"]))
            if "://" in address:
                continue
            target = (file.parent / address).resolve() if address else file
            assert target.exists(), f"{file}: {link}"
            if anchor:
                assert anchor in anchors[target][1], f"{file}: {link}"
            checked += 1
    assert checked > 50


def test_a_source_page_leads_back_to_each_definition(html):
    source = page(html, "source/companion/view")
    back = [link["href"] for link in source.select("a.origin")]
    assert back == [
        "../../chapters/pairs.html#cell-2",
        "../../chapters/pairs.html#cell-3",
        "../../chapters/sums.html#cell-1",
    ]
    total = source.find(id="total")
    assert total.next_sibling.get_text() == "def"
    assert source.find(id="Pair.__repr__")
    assert source.find(id="L1").get_text() == "1"


def test_a_c_file_leads_back_too(html):
    source = page(html, "source/companion/kernels/add.c")
    (link,) = source.select("a.origin")
    assert link["href"] == "../../../chapters/pairs.html#cell-7"


def test_a_caption_stands_above_its_cell(html):
    source = page(html, "chapters/pairs").select_one("#cell-2 .cell_input")
    above, below = source.find_all(recursive=False)
    assert "tt-place" in above["class"] and below.select("pre")


def test_the_tab_key_stops_at_origins_and_not_at_numbers(html):
    links = page(html, "source/companion/view").select(".tt-source a[href]")
    stops = [link for link in links if link.get("tabindex") != "-1"]
    assert stops and all("origin" in link["class"] for link in stops)


def test_c_is_highlighted_as_c(html):
    cell = page(html, "chapters/pairs").find(id="cell-7")
    assert cell.select_one(".cs").get_text() == "%%c kernels/add.c -O2"
    assert [kind.get_text() for kind in cell.select(".kt")] == ["double"] * 3
    assert cell.select_one(".nf").get_text() == "add"


def test_outputs_are_those_of_the_execution(html):
    assert "ok  test_total" in page(html, "chapters/pairs").get_text()
    assert words(page(html, "chapters/sums").find(id="cell-3"))[-1] == "6"


def test_glue_reaches_the_prose(html):
    assert "They make 42." in words(page(html, "chapters/pairs"))


def test_a_name_in_prose_leads_to_its_cell(html):
    link = page(html, "chapters/pairs").select_one("p > a[href='#cell-2']")
    assert link.get_text() == "Pair.__init__"


def test_solutions_are_folded(html):
    cell = page(html, "chapters/pairs").select_one(".tag_solution")
    assert "Show the solution" in words(cell.details.summary)
    assert "def swap" in words(cell.details)
    assert cell.img["alt"] == "A line that rises"


@pytest.mark.parametrize("source, tags, names, label", [
    ("import os\nfrom a import (\n    b)", ["hide-cell"], [], "the imports"),
    ("import os", ["solution", "hide-cell"], [], "the solution"),
    ("def f(): ...", ["solution", "hide-cell"], ["f"], "the solution"),
    ("def f(): ...", ["exercise", "hide-cell"], ["f"], "the exercise"),
    ("import os\nprint(1)", ["hide-input"], [], "the code"),
    ("%load x\nimport os", ["hide-input"], [], "the code"),
    ("print(1)", ["hide-output"], [], "the output"),
    ("def f(): ...", ["hide-input"], ["f"], "`f`"),
    ("", ["hide-input"], ["A", "A.b", "C.d"], "`A` and `C.d`"),
    ("", ["hide-input"], ["K[EXP]", "g", "h"], "`K[EXP]`, `g` and `h`"),
    ("", ["hide-cell"], ["test_ties_share"], "a test: ties share"),
    ("", ["hide-cell"], ["told", "test_a_b", "test_c"], "2 tests: a b; c"),
    ("", ["hide-cell"], ["test_" + 20 * c for c in "abcde"],
     f"5 tests: {20 * 'a'}; {20 * 'b'}; {20 * 'c'}; …"),
])  # fmt: skip
def test_what_is_folded_has_a_name(source, tags, names, label):
    cell = Cell("a", "a.md", 0, 1, source, tuple(tags))
    assert called([contents(cell, names)]) == label


@pytest.mark.parametrize("found, label", [
    ([(["a"], []), (["b", "c"], [])], "3 tests: a; b; c"),
    ([([], ["the imports"]), ([], ["`f`"])], "the imports and `f`"),
    ([([], ["`f`"]), (["a"], []), ([], ["`g`"])], "`f`, `g` and a test"),
    ([([], ["the code"]), (["a", "b"], []), ([], ["the code"])],
     "the code and 2 tests"),
    ([([], [f"`{10 * c}`"]) for c in "abcdefgh"],
     ", ".join(f"`{10 * c}`" for c in "abcd") + ", … and `hhhhhhhhhh`"),
])  # fmt: skip
def test_one_line_for_several_cells(found, label):
    assert called(found) == label


def test_a_fold_says_what_is_behind_it(html):
    folds = page(html, "chapters/sums").select("details.hide summary")
    assert [words(fold.select_one(".collapsed")) for fold in folds] == [
        "Show the imports", "Show twice", "Show the code",
        "Show 2 cells: the imports and the code",
        "Show the imports", "Show the code", "Show the code"]
    assert folds[1].p.code.get_text() == "twice"


def test_folds_side_by_side_stand_behind_one_line(html):
    section = page(html, "chapters/sums").find(id="behind-one-line")
    lines = section.find_all("details", recursive=False)
    outer = [cell.find("details", recursive=False)
             for cell in section.find_all(class_="cell", recursive=False)]
    assert lines == [] and len(outer) == 3
    shown, joined, alone = outer
    assert shown.find_next_sibling(class_="cell_output")
    inner = joined.find_all(class_="cell", recursive=False)
    assert [cell["id"] for cell in inner] == ["cell-5", "cell-6"]
    assert all(words(cell.details.summary) for cell in inner)
    assert "in a fold" in words(inner[1].details)
    assert joined.get("open") is None and not alone.select("details")


def test_a_gpu_cell_says_where_its_output_is_from(html):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine runs the cell")
    cell = page(html, "chapters/pairs").select_one(".tag_gpu")
    assert "needs an NVIDIA GPU" in words(cell)


def test_the_index_lists_definitions_replacements_and_uses(html):
    index = page(html, "chapters/identifiers")
    entries = [words(entry) for entry in index.select(".tt-index li")]
    assert entries == [
        "add · defined §1.1",
        "Pair · defined §1 · used §2",
        "Pair.__init__ · defined §1",
        "Pair.__repr__ · added §1.1",
        "total · defined §1.1 · replaced §2",
        "twice · defined §2",
        "__version__ · defined §1",
        *("total · defined §1.1 · replaced §2", "twice · defined §2"),
    ]


def test_the_pages_of_the_index_hold_every_letter_once(root):
    pages = (root / "chapters/front").glob("identifiers*.md")
    texts = "".join(path.read_text() for path in pages)
    letters = "".join(re.findall(r"{identifiers} (\w+)", texts))
    assert sorted(letters) == list(ascii_lowercase)
    made = tangle(read_book(root)).definitions
    assert {in_index(one)[0] for one in made} <= {*letters}


def test_the_library_is_listed_floor_by_floor(html):
    library = page(html, "chapters/library")
    floors = [words(rubric) for rubric in library.select("p.rubric")]
    assert floors == ["Floor 0", "Floor 1", "Beside"]
    view = words(library.select_one(".tt-index li"))
    assert re.fullmatch(
        r"companion/view.py · Pairs of numbers · \d+ lines"
        r" · from §1, §2 · Pair, total",
        view,
    )


def test_a_chapter_ends_with_what_the_library_gained(html):
    section = page(html, "chapters/sums").find(id="gained")
    folds = section.select("details.tt-gained")
    assert [words(fold.summary) for fold in folds] == [
        "companion/view.py +1 −1",
        "companion/buffer.py new, 5 lines",
    ]
    (lost,), (gained,) = folds[0].select(".gd"), folds[0].select(".gi")
    assert lost.get_text() == "-    return pair.left + pair.right"
    assert gained.get_text() == "+    return pair.right + pair.left"
    assert folds[1].a["href"] and not folds[1].select("pre")
    assert "chapters/" not in folds[0].select_one("pre").get_text()


def test_buttons_lead_to_colab_the_notebook_and_the_source(html):
    head = page(html, "chapters/pairs").select_one(".article-header-buttons")
    links = [link["href"] for link in head.select("a")]
    github = "github.com/someone/tiny"
    assert links == [
        "https://colab.research.google.com/github/someone/tiny/blob/trunk"
        "/site/notebooks/pairs.ipynb",
        "../notebooks/pairs.ipynb",
        "../_sources/chapters/pairs.md",
        f"https://{github}/edit/trunk/chapters/pairs.md",
    ]
    assert (html / "notebooks/pairs.ipynb").exists()
    assert (html / "_sources/chapters/pairs.md").exists()


def test_a_page_without_code_passes_through(html):
    assert "A page without code." in words(page(html, "intro"))
    assert not page(html, "intro").find(id="gained")


def test_an_unchanged_book_is_not_read_again(book):
    before = runs(book)
    again = build(book)
    assert again.returncode == 0, again.stderr
    assert "0 added, 0 changed, 0 removed" in again.stdout
    assert runs(book) == before
    assert len(before) == 2


@pytest.fixture
def copy(book, tmp_path):
    """A copy of the book, built once: Sphinx has noted the new folder."""
    folder = shutil.copytree(book, tmp_path / "book")
    assert build(folder).returncode == 0
    return folder


def change(folder, name, old, new):
    """Change a file of a book; build it; return the folder of its pages."""
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    built = build(folder)
    assert built.returncode == 0, built.stderr
    return folder / "_build/html"


@pytest.mark.slow
def test_a_changed_cell_reaches_the_chapters_after_it(copy):
    before = runs(copy)
    html = change(copy, "chapters/pairs.md", "pair.left +", "1 * pair.left +")
    ran = runs(copy).items() - before.items()
    assert {name for name, _ in ran} == {"pairs-stage", "sums-stage"}
    gained = page(html, "chapters/sums").find(id="gained")
    assert "-    return 1 * pair.left" in gained.get_text()


@pytest.mark.slow
def test_links_follow_what_they_lead_to(copy):
    """Neither page is changed: a cell and a section come before."""
    cell = "```{code-cell} python\n1\n```\n\n## Members"
    html = change(copy, "chapters/pairs.md", "## Members", cell)
    assert page(html, "intro").select("a[href='chapters/pairs.html#cell-4']")
    change(copy, "chapters/pairs.md", "# Pairs\n", "# Pairs\n\n## A\n")
    assert captions(html, "chapters/sums")[0].endswith("total, §1.2")
    change(copy, "chapters/pairs.md", "## Members", "### Members")
    assert captions(html, "chapters/sums")[0].endswith("total, §1.1.1")


@pytest.mark.slow
def test_a_page_of_source_is_written_when_it_has_changed(copy):
    def written():
        pages = copy.glob("_build/html/source/companion/*.html")
        return {page.stem: page.stat().st_mtime_ns for page in pages}

    rewriting = (
        "def setup(app):\n"
        "    def rewrite(app, page, template, context, doctree):\n"
        "        body = context.get('body', '')\n"
        "        context['body'] = body.replace('<span', '<span ')\n"
        "    app.connect('html-page-context', rewrite)\n"
    )
    (copy / "rewriting.py").write_text(rewriting)
    local = "sphinx:\n  local_extensions: {rewriting: .}"
    shutil.rmtree(copy / "_build/html/source")
    change(copy, "_config.yml", "sphinx:", local)
    before = written()
    change(copy, "chapters/sums.md", "return 2 *", "return 1 + 1 *")
    assert {page for page, _ in written().items() - before.items()} == {
        "buffer"
    }
    change(copy, "chapters/sums.md", "# Sums", "# Sums of pairs")
    assert len(written().items() - before.items()) == 3


@pytest.mark.slow
def test_a_page_without_a_title(book, tmp_path):
    copy = shutil.copytree(book, tmp_path / "book")
    sums = copy / "chapters/sums.md"
    sums.write_text(sums.read_text().replace("# Sums\n", ""))
    failed = build(copy)
    assert failed.returncode != 0
    assert "sums.md:9: no title above this cell" in failed.stderr
    assert "Extension error" not in failed.stderr


def test_names_of_files_are_text(tmp_path):
    LOOM.load(small_book(tmp_path, first="# First\n").root)
    shown = source_html(None, "source/x", "companion/a<b>.py", "x = 1\n")
    assert "<code>companion/a&lt;b&gt;.py</code>" in shown
    change = Change("companion/kernels/a<b>&c.py", ["1"], ["2"])
    opening = fold("chapters/pairs", change)[0].astext()
    assert opening.count("a&lt;b&gt;&amp;c") == 3
    assert "a<b>" not in opening


@pytest.mark.slow
def test_a_failing_cell_is_named_by_the_line_of_the_chapter(book, tmp_path):
    copy = shutil.copytree(book, tmp_path / "book")
    sums = copy / "chapters/sums.md"
    text = sums.read_text().replace("twice(Pair(1, 2))", "twice(Pair(1))")
    sums.write_text(text)
    line = text.splitlines().index("twice(Pair(1))") + 1
    failed = build(copy)
    assert failed.returncode != 0
    assert f"chapters/sums.md:{line}: TypeError" in failed.stderr


def test_tokens_stand_where_they_say():
    text = "%%c a.c\nint f(void) { return 1; }\n"
    for at, _, value in CCell().get_tokens_unprocessed(text):
        assert text.startswith(value, at)


def test_cells_of_cuda_leave_the_lexer_of_c_as_it_is(root):
    """Pygments merges the rules of parents into one another, in order."""
    code = ("from companion.literate.weave import CudaCell; CudaCell(); "
            "from pygments.lexers import CLexer; CLexer()")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_build_seldom_looks_for_garbage():
    usual = gc.get_threshold()
    try:
        setup(mock.Mock())
        begin = gc.get_stats()[0]["collections"]
        nodes = [[] for _ in range(50_000)]
        assert gc.get_stats()[0]["collections"] <= begin + 1, len(nodes)
    finally:
        gc.set_threshold(*usual)
