# Tangled from weave: edit there, `make tangle`. sha256:bd09e196f57d
import copy
import tempfile
from pathlib import Path
from types import SimpleNamespace

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import docutils_namespace, patch_docutils

from companion.literate.loom import LOOM, page_of, record_of
from companion.literate.pages import Identifiers
from companion.literate.weave import (
    caption, changes, outdated, read, section_of, setup)


def cell(source, *options):
    fence = "`" * 3
    lines = [fence + "{code-cell} python", *options, source, fence]
    return "\n".join([*lines, "", ""])


def page(title, module, *parts):
    return f"""---
jupytext: {{text_representation: {{format_name: myst}}}}
kernelspec: {{name: python3, display_name: Python 3}}
companion: {{module: {module}}}
---
# {title}

""" + "".join(parts)


TOOLS = """\
def extend(addition):
    globals()[addition.__name__].__repr__ = addition.__repr__
    return globals()[addition.__name__]


def test(function):
    function()
    print("ok ", function.__name__)"""

PAIRS = page(
    "Pairs", "view.py",
    cell(TOOLS),
    cell('__version__ = "1"', ":tags: [tangle]", ":file: __init__.py"),
    cell("class Pair:\n"
         "    def __init__(self, left, right):\n"
         "        self.left, self.right = left, right", ":tags: [tangle]"),
    "## What a pair can do\n\n",
    cell("@extend\n"
         "class Pair:\n"
         "    def __repr__(self):\n"
         '        return f"Pair({self.left}, {self.right})"',
         ":tags: [tangle]"),
    cell("def total(pair):\n"
         "    return pair.left + pair.right", ":tags: [tangle]"),
    cell("@test\n"
         "def test_total():\n"
         "    assert total(Pair(1, 2)) == 3", ":tags: [test]"),
)

SUMS = page(
    "Sums", "buffer.py",
    cell("from companion.view import Pair, total"),
    cell("def total(pair):\n"
         "    return sum([pair.left, pair.right])",
         ":tags: [tangle]", ":file: view.py", ":replaces: total"),
    cell("def twice(pair):\n"
         "    return 2 * total(pair)", ":tags: [tangle]"),
    cell("twice(Pair(1, 2))"),
)
TOC = """\
format: jb-book
root: intro
parts:
  - numbered: true
    chapters: [{file: chapters/pairs}, {file: chapters/sums}]
  - chapters: [{file: chapters/identifiers}]
"""

NAMES = cell("").replace("{code-cell} python", "{identifiers}")
FILES = {
    "_toc.yml": TOC,
    "intro.md": "# A small book\n",
    "chapters/pairs.md": PAIRS,
    "chapters/sums.md": SUMS,
    "chapters/identifiers.md": "# Names\n\n" + NAMES,
}


ROOM = tempfile.TemporaryDirectory()  # gone when Python ends


def small_book(**changed):
    """A new folder with the small book in it."""
    folder = Path(tempfile.mkdtemp(dir=ROOM.name))
    for path, text in FILES.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(changed.get(Path(path).stem, text))
    return folder


small = small_book()


def on_the_loom(folder):
    """Load a book, and return its chapters."""
    LOOM.load(folder)
    return LOOM.chapters.values()


def test_read_numbers_the_cells():
    LOOM.load(small)
    notebook = read(PAIRS, "chapters/pairs")
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.metadata.index for c in cells] == list(range(6))
    assert cells[5].outputs[0].text == "ok  test_total\n"


def test_captions():
    pairs, sums = on_the_loom(small)

    def text(chapter, index):
        found = caption(page_of(chapter.path), chapter.cells[index])
        return "".join(line.astext() for line in found)

    assert text(pairs, 0) == ""
    assert text(pairs, 3).endswith("view.py · class Pair, after __init__")
    assert text(pairs, 4).endswith("view.py · replaced in ")
    assert text(pairs, 5) == "test · tests/chapters/test_pairs.py"
    assert text(sums, 1).endswith("view.py · replaces total, ")


def test_a_cell_stands_below_a_title():
    cell, *_ = next(iter(on_the_loom(small))).cells
    orphan = nodes.container()
    nodes.document(None, None).append(orphan)
    try:
        section_of(orphan, cell)
    except SphinxError as error:
        assert str(error) == (
            f"chapters/pairs.md:{cell.line}: "
            "no title above this cell: write `# …`"
        )
    else:
        raise AssertionError("it stands nowhere")


def test_pages_of_an_index_share_its_letters():
    every, few, rest = (
        [node.astext() for node in Identifiers.lists(None, "intro", letters)]
        for letters in ("", "pq", "abcdefghijklmnorstuvwxyz")
    )
    assert few[0] == "P" and rest and few + rest == every


def test_changes():
    pairs, sums = on_the_loom(small)
    changed, added = changes(sums)
    assert (changed.count("+"), changed.count("-")) == (1, 1)
    assert not added.before and added.file == "companion/buffer.py"
    assert not any("chapters/" in line for line in changed.diff)


def states(old="", new=""):
    """What the loom says of each page, after a change of chapter 1."""
    LOOM.load(small_book(pairs=PAIRS.replace(old, new)))
    pages = "chapters/pairs", "chapters/sums", "chapters/identifiers"
    return [LOOM.state(page) for page in pages]


def test_a_page_depends_on_the_code_before_it():
    asis = states()
    assert states("What a pair can do", "What pairs do") == asis
    altered = states("Pair({self", "P({self")
    same = [a == b for a, b in zip(asis, altered, strict=True)]
    assert same == [True, False, False]


def test_a_page_depends_on_numbers_and_replacements():
    asis = states()[0]
    unnumbered = TOC.replace("numbered: true", "numbered: false")
    alone = page("Sums", "buffer.py", cell("1"))
    for changed in ({"_toc": unnumbered}, {"sums": alone}):
        LOOM.load(small_book(**changed))
        assert LOOM.state("chapters/pairs") != asis


def test_a_page_depends_on_its_outputs():
    LOOM.load(small_book())
    woven = {p: {"woven": (LOOM.state(p), {})} for p in LOOM.chapters}
    env = SimpleNamespace(metadata=woven, found_docs=set(woven))
    assert outdated(None, env, [], [], []) == []
    record = record_of("chapters/sums")
    record.parent.mkdir(parents=True)
    record.write_text("recorded on another machine")
    assert outdated(None, env, [], [], []) == ["chapters/sums"]


THEME = {
    "repository_url": "https://github.com/someone/small",
    "repository_branch": "main",
}

CONFIG = {
    "extensions": ["myst_nb", "sphinx_external_toc", setup.__module__],
    "html_theme": "sphinx_book_theme",
    "html_theme_options": THEME,
    "external_toc_path": "_toc.yml",
    "exclude_patterns": ["_build"],
    "nb_execution_mode": "off",
    "templates_path": [],
}


def weave(folder):
    """Build the site of a book; return the folder of its pages."""
    out = folder / "_build/html"
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            folder, None, out, folder / "_build/trees", "html",
            copy.deepcopy(CONFIG), status=None, warningiserror=True,
        )
        app.build()
    return out


def select(name, selector):
    """The parts of a page of the small book that a selector finds."""
    text = (weave(small) / f"{name}.html").read_text()
    return BeautifulSoup(text, "html.parser").select(selector)


def test_links_lead_both_ways():
    captions = select("chapters/sums", ".tt-place a")
    assert [node["href"] for node in captions][:2] == [
        "../source/companion/view.html",
        "pairs.html#cell-4",
    ]
    origins = select("source/companion/view", "a.origin")
    assert origins[-1]["href"] == "../../chapters/sums.html#cell-1"


def test_a_number_follows_its_section():
    old, new = "## What a", "## Before\n\nWords.\n\n## What a"
    for text, number in [(PAIRS.replace(old, new), "§1.2"), (PAIRS, "§1.1")]:
        (small / "chapters/pairs.md").write_text(text)
        replaced = select("chapters/sums", ".tt-place")[0].get_text()
        assert replaced.endswith(f"replaces total, {number}")


def knuth(name):
    cells = [c for page in LOOM.chapters.values() for c in page.cells]
    places = {(c.path, c.index): n for n, c in enumerate(cells, 1)}
    found = {}
    for made in LOOM.library.definitions:
        n = places[made.path, made.cell_index]
        if name in made.uses:
            found.setdefault(n, str(n))
        if made.name == name:
            found[n] = f"[{n}]"
    return f"{name}: {', '.join(found[n] for n in sorted(found))}."


def test_an_index_as_in_1984():
    LOOM.load(small)
    assert knuth("total") == "total: [5], 6, [8], 9."
    assert knuth("Pair") == "Pair: [3], 6."
