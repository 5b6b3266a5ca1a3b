# Tangled from weave: edit there, `make tangle`. sha256:bab6b6327088
"""What a build of the site knows of the book and its library."""

import hashlib
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from docutils import nodes
from sphinx.util.osutil import relative_uri

from companion.literate.execute import EXECUTED, RECORD, bare, bare_files
from companion.literate.tangle import tangled


class Loom:
    """The book of the build under way, and the library it tangles to."""

    def load(self, root):
        """Read the book that stands in `root`, and tangle it."""
        self.book, self.library = tangled(root)
        self.chapters = {
            page_of(c.path): c for c in self.book.chapters if c.cells}
        found = self.library.definitions
        self.by_cell = grouped(found, lambda d: (d.path, d.cell_index))
        self.by_name = grouped(found, lambda d: (d.file, d.name))
        self.by_file = grouped(found, lambda d: d.file)
        self.members = {d.name: d for d in reversed(found) if "." in d.name}
        uses = [(name, d) for d in found for name in d.uses]
        self.by_use = grouped(uses, lambda use: use[0])
        self.given = {c.name: given(c) for c in self.chapters.values()}

    def made_by(self, cell):
        """What one cell defines."""
        return self.by_cell.get((cell.path, cell.index), [])

    def versions(self, made):
        """All that the book ever defines by a definition's name."""
        return self.by_name[made.file, made.name]

    def standing(self, file):
        """A file's definitions as the book leaves them, in its order."""
        found = [made for made in self.by_file.get(file, []) if made.line]
        return sorted(found, key=lambda made: made.line)

    def files(self):
        """The files of the library, its tests left out."""
        return [f for f in self.library.files if f.startswith("companion/")]

    def file_of(self, cell):
        """Where a cell's text went: an `@extend` follows its class."""
        made = self.made_by(cell)
        return made[0].file if made else cell.target

    def first_cells(self, file):
        """Of each chapter that writes in a file, the first such cell."""
        found: dict = {}
        for chapter in self.book.tangle_order:
            for cell in chapter.cells:
                if self.file_of(cell) == file:
                    found.setdefault(cell.path, cell)
        return found.values()

    def users(self, name):
        """Of each chapter whose library code uses a name, the first."""
        found: dict = {}
        for _, made in self.by_use.get(name, ()):
            if made.file.startswith("companion/"):
                found.setdefault(made.path, made)
        return found.values()

    def place_of(self, name):
        """The page and the cell that first define a member, if any do."""
        made = self.members.get(name)
        return made and (page_of(made.path), made.cell_index)

    def files_after(self, count):
        """The bare files, tests included, that the first chapters make."""
        chapters = self.book.tangle_order[:count]
        return bare_files(replace(self.book, chapters=chapters))

    def state(self, page):
        """A hash of all that the rest of the book gives to a page."""
        if page not in self.chapters:
            return hash_of(self.book.numbers, self.outline())
        order = self.book.tangle_order
        before = order[: order.index(self.chapters[page])]
        earlier = [self.given.get(chapter.name) for chapter in before]
        replacing = [
            (made.name, made.path, made.cell_index)
            for made in self.library.definitions
            if made.action == "replace"
        ]
        outputs = outputs_of(page)
        return hash_of(self.book.numbers, earlier, replacing, outputs)

    def outline(self):
        """What an index says: bare files, and who defines what where."""
        made = [(d.file, d.name, d.action, d.path, d.cell_index,
                 sorted(d.uses)) for d in self.library.definitions]
        return made, [bare(text) for text in self.library.files.values()]


def grouped(things, key):
    """Lists of the things that share a key, by that key."""
    found = defaultdict(list)
    for thing in things:
        found[key(thing)].append(thing)
    return found


def page_of(path):
    """The page that shows a chapter, or a file of the library."""
    stem = re.sub(r"\.(md|py)$", "", path)
    return stem if path.endswith(".md") else f"source/{stem}"


def hash_of(*parts):
    """A hash of what a page is made from."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def given(chapter):
    """A hash of what a chapter gives to those after it."""
    cells = [cell for cell in chapter.cells if cell.target]
    return hash_of([(c.path, c.index, c.target, c.source) for c in cells])


LOOM = Loom()


def uri(page, target, anchor=""):
    """The address of a page, or a place in it, as seen from `page`."""
    address = relative_uri(f"{page}.html", f"{target}.html")
    return f"{address}#{anchor}" if anchor else address


def link(page, target, anchor, *words):
    """A link from one page to a place in another, as a node."""
    address = uri(page, target, anchor)
    return nodes.reference("", "", *words, refuri=address, internal=True)


def cell_id(index):
    """The anchor of a chapter's cell."""
    return f"cell-{index}"


def anchor_of(name):
    """The anchor of a definition; `KERNELS[MATMUL]` has to lose some."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def cell_link(page, path, index):
    """A link to a cell; `number` writes its section's number into it."""
    target = page_of(path)
    reference = link(page, target, cell_id(index))
    reference["cell"] = target, index
    return reference


def where(page, made):
    """A link to the cell that made a definition."""
    return cell_link(page, made.path, made.cell_index)


def code(text):
    """Text set as code."""
    return nodes.literal("", text)


def paragraph(*words, style=""):
    """A paragraph of strings and nodes."""
    children = [nodes.Text(w) if isinstance(w, str) else w for w in words]
    return nodes.paragraph("", "", *children, classes=[style] * bool(style))


def record_of(page):
    """The committed notebook of a page."""
    return Path(LOOM.book.root, RECORD, f"{Path(page).name}.ipynb")


def outputs_of(page):
    """What the files hold that keep a chapter's outputs."""
    record = record_of(page)
    ran = Path(LOOM.book.root, EXECUTED, f"{record.stem}-stage.ipynb")
    return [f.read_bytes() if f.exists() else b"" for f in (ran, record)]
