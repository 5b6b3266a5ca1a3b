# Tangled from weave: edit there, `make tangle`. sha256:fd3d93cb0fed
"""Weave: a Sphinx extension that shows each cell's place in the library."""

import ast
import difflib
import gc
import html
import re
import shutil
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import shorten

from docutils import nodes
from myst_nb.sphinx_ import (
    HideCodeCellNode, depart_HideCellInput, visit_HideCellInput)
from pygments.lexer import RegexLexer
from pygments.lexers import CLexer, CudaLexer
from pygments.token import Comment
from sphinx.errors import SphinxError

from companion.literate.execute import RECORD, execute
from companion.literate.loom import (
    LOOM, cell_id, code, link, page_of, paragraph, record_of, uri, where)
from companion.literate.pages import Identifiers, Modules, source_pages
from companion.literate.source import SourceError


def begin(app, config):
    """Load the book; tell MyST-NB which of the pages are chapters."""
    try:
        LOOM.load(app.srcdir)
    except SourceError as error:
        raise SphinxError(str(error)) from error
    config.nb_custom_formats = config.nb_custom_formats | {
        f"/{chapter.path}": [f"{__name__}.read", {"page": page}, False]
        for page, chapter in LOOM.chapters.items()
    }


def imports_only(source):
    """Whether a cell, in Python without magics, does nothing else."""
    kinds = ast.Import, ast.ImportFrom
    return "%" not in source and all(
        isinstance(node, kinds) for node in ast.parse(source).body)


def contents(cell, names):
    """The tests in a cell that defines these names; or else, what it has."""
    tests = [name[5:] for name in names if name.startswith("test_")]
    heads = [f"`{x}`" for x in names if x.rpartition(".")[0] not in names]
    for tag in {"exercise", "solution"} & set(cell.tags):
        return [], [f"the {tag}"]
    if tests or heads:
        return [test.replace("_", " ") for test in tests], heads * (not tests)
    if imports_only(cell.source):
        return [], ["the imports"]
    return [], ["the output" if "hide-output" in cell.tags else "the code"]


def listed(names, gap):
    """As many names as a line has room for."""
    return shorten(gap.join(names), 70, placeholder=" …")


def called(found):
    """What is behind a line, by the contents of the cells there."""
    tests = [test for some, _ in found for test in some]
    words = [*dict.fromkeys(word for _, some in found for word in some)]
    count = f"{len(tests)} tests" if tests[1:] else "a test"
    if not words:
        return f"{count}: {listed(tests, '; ')}"
    *words, last = words + [count] * bool(tests)
    return f"{listed(words, ', ')} and {last}" if words else last


LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}


def read(text, page):
    """The notebook of a chapter, executed (what MyST-NB calls a reader)."""
    try:
        notebook = execute(LOOM.book, LOOM.chapters[page].name)
    except SourceError as error:
        raise SphinxError(str(error)) from error
    notebook.metadata.language_info = LANGUAGE
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, source in zip(cells, LOOM.chapters[page].cells, strict=True):
        label = label_of([source])
        cell.metadata.index = source.index
        cell.metadata.setdefault("mystnb", {}).update(
            code_prompt_show=f"Show {label}", code_prompt_hide=f"Hide {label}")
    return notebook


def label_of(cells):
    """What is behind the line of these cells."""
    made = [[one.name for one in LOOM.made_by(cell)] for cell in cells]
    return called(list(map(contents, cells, made)))


def open_fold(translator, node):
    """The head of a fold, with the names in its label set as code."""
    begin = len(translator.body)
    visit_HideCellInput(translator, node)
    translator.body[begin:] = [
        re.sub("`(.+?)`", r"<code>\1</code>", part)
        for part in translator.body[begin:]
    ]


def is_folded(node):
    """Whether a page shows of a node the line of a fold, and no more."""
    return list(map(type, node.children)) == [HideCodeCellNode]


def join(app, doctree, page):
    """Put the folds that stand side by side behind one line."""
    for section in list(doctree.findall(nodes.section)):
        found = []
        for folded, run in groupby(list(section.children), is_folded):
            side = list(run)
            found += [behind_one(page, side)] if folded and side[1:] else side
        section.children = []
        section += found


def behind_one(page, folds):
    """One fold around several."""
    chapter = LOOM.chapters[page]
    cells = [chapter.cells[n["cell_metadata"]["index"]] for n in folds]
    label = f"{len(folds)} cells: {label_of(cells)}"
    line = HideCodeCellNode(
        "", *folds, classes=["above-input"],
        prompt_show=f"Show {label}", prompt_hide=f"Hide {label}")
    return nodes.container("", line, classes=["cell", "tt-folds"])


def place(page, made):
    """Where in its file a definition went, in phrases."""
    versions = LOOM.versions(made)
    turn = versions.index(made)
    owner = made.name.rpartition(".")[0]
    after = made.after.removeprefix(f"{owner}.")
    if made.action == "replace":
        old = where(page, versions[turn - 1])
        yield ["replaces ", code(made.name), ", ", old]
    elif owner and after:
        yield ["class ", code(owner), ", after ", code(after)]
    elif after:
        yield ["after ", code(after)]
    for later in versions[turn + 1 :]:
        yield ["replaced in ", where(page, later)]


def caption(page, cell):
    """The line above a cell: its file, and its place in the file."""
    file = LOOM.file_of(cell)
    if file is None:
        return []
    words = [link(page, page_of(file), "", code(file))]
    made = LOOM.made_by(cell)
    if "test" in cell.tags:
        words.insert(0, "test · ")
    elif made:
        for phrase in place(page, made[0]):
            words += [" · ", *phrase]
    return [paragraph(*words, style="tt-place")]


class AfterMagic(RegexLexer):
    """A lexer that begins behind a cell magic in the first line."""

    def get_tokens_unprocessed(self, text, stack=("root",)):
        magic = text[: text.find("\n") + 1] if text[:2] == "%%" else ""
        yield 0, Comment.Special, magic
        rest = super().get_tokens_unprocessed(text[len(magic) :], stack)
        for start, token, value in rest:
            yield start + len(magic), token, value


class CCell(AfterMagic, CLexer):
    """C that may begin with the cell magic `%%c`."""

    name, aliases = "C cell", ["c-cell"]


class CudaCell(AfterMagic, CudaLexer):
    """CUDA that may begin with the cell magic `%%cuda`."""

    name, aliases = "CUDA cell", ["cuda-cell"]


def elements(tree, kind):
    """The containers of one kind that MyST-NB put into a tree."""
    found = tree.findall(nodes.container)
    return [node for node in found if node.get("nb_element") == kind]


def set_language(source, cell):
    """Have the cells in C and CUDA highlighted as such."""
    if cell.language != "python":
        for block in source.findall(nodes.literal_block):
            block["language"] = f"{cell.language}-cell"


def section_of(node, cell):
    """The anchor of the section around a cell, as Sphinx numbers it."""
    while not isinstance(node, nodes.section):
        if node.parent is None:
            error = cell.error(1, "no title above this cell: write `# …`")
            raise SphinxError(str(error))
        node = node.parent
    top = isinstance(node.parent, nodes.document)
    return "" if top else "#" + node["ids"][0]


def dress(app, doctree):
    """Give the cells of a chapter their names, languages and captions."""
    page = app.env.docname
    chapter = LOOM.chapters.get(page)
    if chapter is None:
        return
    sections = {}
    for node in elements(doctree, "cell_code"):
        cell = chapter.cells[node["cell_metadata"]["index"]]
        node["ids"].append(cell_id(cell.index))
        sections[cell.index] = section_of(node, cell)
        for source in elements(node, "cell_code_source"):
            set_language(source, cell)
            source[:0] = caption(page, cell)
    app.env.metadata[page]["woven"] = LOOM.state(page), sections
    doctree.next_node(nodes.section).extend(gained(page, chapter))


def number(app, doctree, page):
    """Write into each link to a cell the number of the cell's section."""
    for reference in doctree.findall(nodes.reference):
        if "cell" in reference:
            reference += nodes.Text(section_number(app, *reference["cell"]))


def section_number(app, page, index):
    """The number of the section that holds a cell, or the page's title."""
    _, sections = app.env.metadata[page]["woven"]
    section = sections.get(index, "")
    numbers = app.env.toc_secnumbers.get(page, {}).get(section)
    if numbers is None:
        return app.env.titles[page].astext()
    return "§" + ".".join(map(str, numbers))


def link_names(app, doctree):
    """Let names like `Tensor.apply` in prose lead to their definition."""
    page, named = app.env.docname, {}
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext()
        if "." in name and isinstance(literal.parent, nodes.paragraph):
            place = named[name] = LOOM.place_of(name)
            if place:
                target, index = place
                anchor = cell_id(index)
                words = literal.deepcopy()
                literal.replace_self(link(page, target, anchor, words))
    app.env.metadata[page]["named"] = named


@dataclass(frozen=True)
class Change:
    """What a chapter did to one file: its lines before and after."""

    file: str
    before: list[str]
    after: list[str]

    @property
    def diff(self):
        """The lines lost and gained, with two lines around each."""
        diff = difflib.unified_diff(self.before, self.after, n=2, lineterm="")
        return list(diff)[2:]

    def count(self, sign):
        """How many lines were gained (`+`) or lost (`-`)."""
        return sum(line.startswith(sign) for line in self.diff)


def changes(chapter):
    """What a chapter does to the files of the library, and its tests."""
    turn = LOOM.book.tangle_order.index(chapter)
    before, after = LOOM.files_after(turn), LOOM.files_after(turn + 1)
    found = [
        Change(file, before.get(file, []), lines)
        for file, lines in after.items()
    ]
    return [change for change in found if change.before != change.after]


def gained(page, chapter):
    """The section that closes a chapter: what it gave the library."""
    found = sorted(changes(chapter), key=is_test)
    if not found:
        return []
    section = nodes.section(ids=["gained"], names=["gained"])
    section += nodes.title("", "What the library gained")
    section += paragraph(total_of(found))
    for change in found:
        section += fold(page, change)
    return [section]


def is_test(change):
    """Whether a change is one of the tests, which are listed last."""
    return change.file.startswith("tests/")


def total_of(found):
    """The chapter's gains in a sentence."""
    library = [change for change in found if not is_test(change)]
    tests = [change for change in found if is_test(change)]
    files = "1 file" if len(library) == 1 else f"{len(library)} files"
    parts = [f"{growth(library)} lines in {files}"] * bool(library)
    parts += [f"{growth(tests)} lines of tests"] * bool(tests)
    return " and ".join(parts) + "."


def growth(found):
    """How many lines longer the files became."""
    return sum(len(change.after) - len(change.before) for change in found)


FOLD = """\
<details class="tt-gained"><summary><code>{file}</code> {count}</summary>
<p><a href="{uri}">{file}, as the book leaves it</a></p>
"""


def fold(page, change):
    """A file's change, folded: a link, and what differs from before."""
    new = not change.before
    count = f"+{change.count('+')} −{change.count('-')}"
    opening = FOLD.format(
        file=html.escape(change.file),
        uri=html.escape(uri(page, page_of(change.file))),
        count=f"new, {len(change.after)} lines" if new else count,
    )
    if new:
        return [nodes.raw("", opening + "</details>", format="html")]
    text = "\n".join(change.diff)
    block = nodes.literal_block(text, text, language="diff")
    closing = nodes.raw("", "</details>", format="html")
    return [nodes.raw("", opening, format="html"), block, closing]


def outdated(app, env, added, changed, removed):
    """The pages to read again, because the book around them changed."""
    return [
        page
        for page, kept in env.metadata.items()
        if page in env.found_docs and not is_current(page, kept)
    ]


def is_current(page, kept):
    """Whether the book would give to a page what it gave last time."""
    if "woven" in kept and kept["woven"][0] != LOOM.state(page):
        return False
    named = kept.get("named", {})
    return all(LOOM.place_of(name) == place for name, place in named.items())


def note_cited(app, doctree):
    """Keep in the environment to which cells a page links."""
    links = doctree.findall(nodes.reference)
    cited = [link["cell"] for link in links if "cell" in link]
    app.env.metadata[app.env.docname]["cited"] = cited


def renumbered(app, env):
    """The pages that quote a section's number, if it has changed."""
    known = getattr(env, "quoted", {})
    env.quoted = {
        page: [section_number(app, *cell) for cell in kept["cited"]]
        for page, kept in env.metadata.items()
        if "cited" in kept
    }
    return [p for p, said in env.quoted.items() if said != known.get(p)]


def button(text, icon, url, tooltip):
    """A link as the theme's templates want it."""
    return {
        "type": "link",
        "text": text,
        "icon": f"fas fa-{icon}",
        "url": url,
        "tooltip": tooltip,
    }


PRINT = {
    "type": "javascript",
    "text": "Print",
    "icon": "fas fa-file-pdf",
    "javascript": "window.print()",
    "tooltip": "Print, or save as PDF",
}


def group(text, icon, buttons):
    """Buttons that unfold."""
    kind = {"type": "group", "icon": f"fas fa-{icon}"}
    return kind | {"tooltip": text, "buttons": buttons}


COLAB = "https://colab.research.google.com/github"


def buttons(app, page, template, context, doctree):
    """Put the book's own buttons in a page's head, for the theme's."""
    if doctree is None:
        return
    pathto, theme = context["pathto"], app.config.html_theme_options
    url, branch = theme["repository_url"], theme["repository_branch"]
    text = pathto(f"_sources/{context['sourcename']}", 1)
    downloads = [button(".md", "file", text, "The page's source"), PRINT]
    edit = f"{url}/edit/{branch}/{page}.md"
    shown = [
        group("Download this page", "download", downloads),
        button("", "pencil-alt", edit, "Edit this page"),
    ]
    record = record_of(page)
    if record.exists():
        address = pathto(f"notebooks/{record.name}", 1)
        downloads.insert(0, button(".ipynb", "code", address, "The notebook"))
        github = url.replace("https://github.com", COLAB)
        address = f"{github}/blob/{branch}/{RECORD}/{record.name}"
        shown.insert(0, button("Colab", "play", address, "Run it on Colab"))
    context["header_buttons"][:] = shown


def copy_notebooks(app, exception):
    """Lay the notebooks beside the pages, for the download button."""
    folder = Path(app.outdir, "notebooks")
    for page in LOOM.chapters:
        if exception is None and record_of(page).exists():
            folder.mkdir(exist_ok=True)
            shutil.copy2(record_of(page), folder)


def setup(app):
    """What Sphinx calls first: where weave takes part in a build."""
    gc.set_threshold(100_000)
    app.add_css_file("weave.css")
    app.add_lexer("c-cell", CCell)
    app.add_lexer("cuda-cell", CudaCell)
    ends = open_fold, depart_HideCellInput
    app.add_node(HideCodeCellNode, override=True, html=ends)
    app.add_directive("identifiers", Identifiers)
    app.add_directive("library", Modules)
    app.connect("config-inited", begin, priority=900)
    app.connect("env-get-outdated", outdated)
    app.connect("doctree-read", dress, priority=400)
    app.connect("doctree-read", link_names)
    app.connect("doctree-read", note_cited)
    app.connect("env-get-updated", renumbered, priority=900)
    app.connect("doctree-resolved", number)
    app.connect("doctree-resolved", join)
    app.connect("html-collect-pages", source_pages)
    app.connect("html-page-context", buttons, priority=502)
    app.connect("build-finished", copy_notebooks)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
