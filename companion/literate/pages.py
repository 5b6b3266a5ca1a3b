# Tangled from weave: edit there, `make tangle`. sha256:3b1d431512bd
"""The pages no chapter writes: the library's sources, and its indexes."""

import ast
import html
from itertools import groupby
from pathlib import Path

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx.util.docutils import SphinxDirective

from companion.literate.floors import FLOORS
from companion.literate.loom import (
    LOOM, anchor_of, cell_id, cell_link, code, grouped, hash_of, link, page_of,
    paragraph, uri, where)


def ways_back(page, standing):
    """A link to each cell, by the line where what it made begins."""
    cells = groupby(standing, lambda made: (made.path, made.cell_index))
    for (path, index), (first, *_) in cells:
        address = uri(page, page_of(path), cell_id(index))
        yield first.line, (f'  <a class="origin" href="{address}">'
                           f"{first.chapter}</a>")


def row(n, colored, made=(), back=""):
    """One line of a source page: number, anchors, text, a way back."""
    ids = "".join(f'<a id="{anchor_of(m.name)}"></a>' for m in made)
    number = f'<a class="tt-line" tabindex="-1" id="L{n}" href="#L{n}">{n}</a>'
    return f"{number}{ids}{colored}{back}\n"


SOURCE = """\
<h1><code>{file}</code></h1>
<p>Tangled from {chapters}. Behind a definition stands the chapter that
made it, with a link to the paragraph there.</p>
<div class="highlight tt-source"><pre>{rows}</pre></div>
"""


def source_html(app, page, file, text):
    """A file of the library, highlighted, with ways back to the book."""
    lexer = get_lexer_for_filename(file, stripnl=False)
    colored = highlight(text, lexer, HtmlFormatter(nowrap=True)).split("\n")
    standing = sorted(LOOM.standing(file), key=lambda made: made.line)
    made = grouped(standing, lambda made: made.line)
    back = dict(ways_back(page, standing))
    rows = [
        row(n, line, made.get(n, ()), back.get(n, ""))
        for n, line in enumerate(colored[:text.count("\n")], 1)
    ]
    chapters = ", ".join(
        chapter_html(app, page, cell) for cell in LOOM.first_cells(file)
    )
    shown = html.escape(file)
    return SOURCE.format(file=shown, chapters=chapters, rows="".join(rows))


def chapter_html(app, page, cell):
    """A link to a chapter's cell, by the chapter's title."""
    target = page_of(cell.path)
    title = html.escape(app.env.titles[target].astext())
    return f'<a href="{uri(page, target, cell_id(cell.index))}">{title}</a>'


def frame(app):
    """A hash of what stands around each page of source."""
    config, titles = app.config, app.env.titles
    folders = [*config.html_static_path, *config.templates_path]
    files = [f for x in folders for f in Path(app.srcdir, x).rglob("*")]
    return hash_of(
        app.builder.build_info.config_hash,
        LOOM.book.numbers,
        sorted((page, title.astext()) for page, title in titles.items()),
        max((file.stat().st_mtime for file in files), default=0),
    )


def source_pages(app):
    """The pages of the library's files, those that are not up to date."""
    around = frame(app)
    for file, text in LOOM.library.files.items():
        page = page_of(file)
        cells = [(d.path, d.cell_index) for d in LOOM.standing(file)]
        mark = f"<!-- {hash_of(around, text, cells)} -->"
        built = Path(app.builder.get_outfilename(page))
        if not built.exists() or mark not in built.read_text("utf-8"):
            body = source_html(app, page, file, text) + mark
            yield page, {"title": file, "body": body}, "page.html"


class Index(SphinxDirective):
    """A directive whose page follows the library as it grows."""

    def run(self):
        page = self.env.docname
        self.env.metadata[page]["woven"] = LOOM.state(page), {}
        return list(self.lists(page, *self.arguments))


def items(paragraphs):
    """A list, for the index pages."""
    found = nodes.bullet_list(classes=["tt-index"])
    found += [nodes.list_item("", line) for line in paragraphs]
    return found


VERBS = {"define": "defined", "extend": "added", "replace": "replaced"}


def identifier(page, made):
    """An entry of the index: the source, then the cells that matter."""
    source = page_of(made.file), anchor_of(made.name)
    words = [link(page, *source, code(made.name))]
    versions = LOOM.versions(made)
    for version in versions:
        words += [f" · {VERBS[version.action]} ", where(page, version)]
    makers = {version.path for version in versions}
    users = [u for u in LOOM.users(made.name) if u.path not in makers]
    for n, user in enumerate(users):
        words += [", " if n else " · used ", where(page, user)]
    return paragraph(*words)


class Identifiers(Index):
    """`{identifiers}`: where each name is defined, changed and used.

    With an argument, only names that begin with one of its letters.
    """

    optional_arguments = 1

    def lists(self, page, letters=""):
        standing = [
            made for file in LOOM.files() for made in LOOM.standing(file)
        ]
        standing.sort(key=in_index)
        for letter, group in groupby(standing, lambda d: in_index(d)[0]):
            if letter in (letters or letter):
                yield nodes.rubric("", letter.upper())
                yield items(identifier(page, made) for made in group)


def in_index(made):
    """Under what the index lists a definition: `__add__` under `a`."""
    return made.name.strip("_").lower()


class Modules(Index):
    """`{library}`: the files of the library, floor by floor."""

    def lists(self, page):
        files = sorted(LOOM.files(), key=level)
        for height, group in groupby(files, level):
            beside = height == len(FLOORS)
            yield nodes.rubric("", "Beside" if beside else f"Floor {height}")
            yield items(module(page, file) for file in group)


def level(file):
    """The floor on which a file lives; the tools come after the last."""
    return LOOM.library.floors.get(file, len(FLOORS))


def subject(file, text):
    """What a module says of itself in its first line, if anything."""
    said = ast.get_docstring(ast.parse(text)) if file[-3:] == ".py" else ""
    return f" · {said.splitlines()[0].rstrip('.')}" if said else ""


def module(page, file):
    """An entry of the list of modules: size, chapters, what it defines."""
    text = LOOM.library.files[file]
    count = text.count("\n")
    size = f"{subject(file, text)} · {count} lines"
    words = [link(page, page_of(file), "", code(file)), size]
    for n, cell in enumerate(LOOM.first_cells(file)):
        section = cell_link(page, cell.path, cell.index)
        words += [", " if n else " · from ", section]
    names = [d.name for d in LOOM.standing(file) if d.name.isidentifier()]
    for n, name in enumerate(names):
        # Not set as code: two thousand times, that is half of the page.
        definition = link(page, page_of(file), name, nodes.Text(name))
        words += [", " if n else " · ", definition]
    return paragraph(*words)
