"""The pages no chapter writes: the library's sources, and its indexes."""

import html
import re
from itertools import groupby
from pathlib import Path

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx.util.docutils import SphinxDirective

from companion.literate.loom import (
    LOOM,
    cell_id,
    cell_link,
    code,
    digest,
    link,
    page_of,
    paragraph,
    uri,
)
from companion.literate.tangle import FLOORS

ORIGIN = re.compile(
    r"\s*(?:# (?P<path>chapters/\S+\.md):(?P<line>\d+)"
    r'|#line (?P<c_line>\d+) "(?P<c_path>chapters/\S+\.md)")$'
)


def source_pages(app):
    """The pages of the library's files, those that are not up to date."""
    for file, text in LOOM.library.files.items():
        page = page_of(file)
        body = source_html(app, page, file, text)
        frame = app.builder.build_info.config_hash
        body += f"<!-- {digest(frame, body)} -->"
        built = Path(app.builder.get_outfilename(page))
        if not built.exists() or body not in built.read_text():
            yield page, {"title": file, "body": body}, "page.html"


SOURCE = """\
<h1><code>{file}</code></h1>
<p>Tangled from {chapters}. The comments that name a chapter lead to the
paragraph there.</p>
<div class="highlight tt-source"><pre>{rows}</pre></div>
"""


def source_html(app, page, file, text):
    """A file of the library, highlighted, with ways back to the book."""
    lexer = get_lexer_for_filename(file, stripnl=False)
    colored = highlight(text, lexer, HtmlFormatter(nowrap=True)).split("\n")
    names = {made.line: made.name for made in LOOM.standing(file)}
    rows = [
        row(n, back(page, line, colored[n - 1]), names.get(n))
        for n, line in enumerate(text.splitlines(), 1)
    ]
    chapters = ", ".join(
        chapter_html(app, page, cell) for cell in LOOM.first_cells(file)
    )
    return SOURCE.format(file=file, chapters=chapters, rows="".join(rows))


def chapter_html(app, page, cell):
    """A link to a chapter's cell, by the chapter's title."""
    target = page_of(cell.path)
    title = html.escape(app.env.titles[target].astext())
    return f'<a href="{uri(page, target, cell_id(cell.index))}">{title}</a>'


def row(n, colored, name):
    """One line of a source page: number, anchor, text."""
    anchor = f'<a id="{html.escape(name)}"></a>' if name else ""
    return (
        f'<a class="tt-line" id="L{n}" href="#L{n}">{n}</a>{anchor}{colored}\n'
    )


def back(page, line, colored):
    """A highlighted line; a link to the chapter if it names its origin."""
    origin = ORIGIN.match(line)
    if origin is None:
        return colored
    path = origin["path"] or origin["c_path"]
    at = int(origin["line"] or origin["c_line"])
    cells = LOOM.chapters[page_of(path)].cells
    index = max(cell.index for cell in cells if cell.line <= at)
    address = uri(page, page_of(path), cell_id(index))
    return f'<a class="origin" href="{address}">{colored}</a>'


class Index(SphinxDirective):
    """A directive whose page follows the library as it grows."""

    def run(self):
        page = self.env.docname
        self.env.metadata[page]["woven"] = LOOM.state(page), {}
        return list(self.lists(page))


class Identifiers(Index):
    """`{identifiers}`: where each name is defined, changed and used."""

    def lists(self, page):
        standing = [
            made for file in LOOM.files() for made in LOOM.standing(file)
        ]
        standing.sort(key=lambda made: made.name.lower())
        for letter, group in groupby(standing, initial):
            yield nodes.rubric("", letter)
            yield items(identifier(page, made) for made in group)


def initial(made):
    """The letter under which the index lists a definition."""
    return made.name.lstrip("_")[0].upper()


def items(paragraphs):
    """A list, for the index pages."""
    found = nodes.bullet_list(classes=["tt-index"])
    found += [nodes.list_item("", line) for line in paragraphs]
    return found


VERBS = {"define": "defined", "extend": "added", "replace": "replaced"}


def identifier(page, made):
    """An entry of the index: the source, then the cells that matter."""
    words = [link(page, page_of(made.file), made.name, code(made.name))]
    for version in LOOM.versions(made):
        words += [f" · {VERBS[version.action]} ", at(page, version)]
    for n, user in enumerate(LOOM.users(made.name)):
        words += [", " if n else " · used ", at(page, user)]
    return paragraph(*words)


def at(page, made):
    """A link to the cell that made a definition."""
    return cell_link(page, made.path, made.cell_index)


class Modules(Index):
    """`{library}`: the files of the library, floor by floor."""

    def lists(self, page):
        floors = sorted(LOOM.files(), key=floor)
        for level, files in groupby(floors, floor):
            beside = level == len(FLOORS)
            yield nodes.rubric("", "Beside" if beside else f"Floor {level}")
            yield items(module(page, file) for file in files)


def floor(file):
    """The floor on which a file lives; the tools come after the last."""
    name = re.split(r"[/.]", file)[1]
    found = [n for n, names in enumerate(FLOORS) if name in names]
    return found[0] if found else len(FLOORS)


def module(page, file):
    """An entry of the list of modules: size, chapters, what it defines."""
    count = LOOM.library.files[file].count("\n")
    words = [link(page, page_of(file), "", code(file)), f" · {count} lines"]
    for n, cell in enumerate(LOOM.first_cells(file)):
        where = cell_link(page, cell.path, cell.index)
        words += [", " if n else " · from ", where]
    names = [d.name for d in LOOM.standing(file) if "." not in d.name]
    for n, name in enumerate(names):
        place = link(page, page_of(file), name, code(name))
        words += [", " if n else " · ", place]
    return paragraph(*words)
