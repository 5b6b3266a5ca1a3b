"""Sphinx extension: what a chapter takes, needs and gives, and the map.

A chapter needs another one if the code that it gives to the library uses
a name that the other defines. What follows from the rest is left out.
"""

import re
from html import escape

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from companion.literate.lint import proofs
from companion.literate.loom import LOOM, cell_id, page_of, uri
from companion.literate.source import SourceError

WORDS, LINES = 200, 15  # that are read in a minute
WORD = re.compile(r"[A-Za-z][\w'’-]*")
EXERCISE = 15  # minutes
FOLDED = {"hide-cell", "hide-input", "remove-cell", "remove-input"}

WIDTH, DOT, ROW = 480, 120, 32
MAP = "Which chapter needs which: a list in reading order, with arcs."


def needs():
    """For each chapter, in reading order, those it builds on directly."""
    chapters = {c.name: c for c in LOOM.chapters.values()}
    order = list(chapters)
    direct = {name: set() for name in order}
    for chapter, other in uses():
        earlier = order.index(other) < order.index(chapter)
        if earlier and chapters[other].beside == chapters[chapter].beside:
            direct[chapter].add(other)
    return {name: nearest(name, direct, order) for name in order}


def uses():
    """Yield (chapter, chapter whose name its library code uses)."""
    made = [d for d in LOOM.library.definitions if is_library(d)]
    first = {}
    for d in made:
        for key in ((d.file, d.name), d.name):
            first.setdefault(key, d.chapter)
    for d in made:
        owner = re.split(r"[.\[]", d.name)[0]
        for name in (*d.uses, owner):
            other = first.get((d.file, name)) or first.get(name)
            if other and other != d.chapter:
                yield d.chapter, other


def is_library(made):
    """Whether a definition belongs to the library and not to its tests."""
    return made.file.startswith("companion/")


def nearest(name, direct, order):
    """What a chapter needs, less what the others of these need."""
    own = direct[name]
    implied = {far for near in own for far in reach(near, direct)}
    return sorted(own - implied, key=order.index)


def reach(name, graph):
    """All that a chapter needs, by way of others too."""
    found = set()
    for near in graph[name]:
        found |= {near, *reach(near, graph)}
    return found


def minutes(chapter):
    """How long the text and the code in sight take, and the exercises."""
    shown = [c for c in chapter.cells if FOLDED.isdisjoint(c.tags)]
    lines = sum(cell.source.count("\n") + 1 for cell in shown)
    asked = sum("solution" in cell.tags for cell in chapter.cells)
    read = sum(len(WORD.findall(b.body)) for b in chapter.blocks if not b.name)
    return read / WORDS + lines / LINES, asked * EXERCISE


def hours(count):
    """Minutes as hours, to the half."""
    whole, half = divmod(max(round(count / 30), 1), 2)
    number = f"{whole or ''}{'½' * half}"
    return f"{number} hour{'s' * (count >= 75)}"


def listed(words):
    """Words as one says them: a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def clause(verb, words):
    """A part of the line, if there is anything to say."""
    return [f"{verb} {listed(words)}"] if words else []


def chapter_link(page, name):
    """A link to a chapter, by its title."""
    chapter = LOOM.book.chapter(name)
    target = uri(page, page_of(chapter.path))
    return f'<a href="{target}">{escape(chapter.title)}</a>'


def outcome_link(found, outcome, name):
    """A link to the test or the exercise that shows an outcome."""
    if name not in found:  # lint says so
        return escape(outcome)
    return f'<a href="#{cell_id(found[name].index)}">{escape(outcome)}</a>'


def line(chapter, graph):
    """The line under a chapter's title."""
    page = page_of(chapter.path)
    near = [chapter_link(page, name) for name in graph[chapter.name]]
    found = proofs(chapter)
    outcomes = [
        outcome_link(found, outcome, name)
        for outcome, name in chapter.outcomes.items()
    ]
    parts = [
        hours(sum(minutes(chapter))),
        *clause("needs", near),
        *clause("after it you can", ["; ".join(outcomes)] * bool(outcomes)),
    ]
    return f'<p class="tt-guide">{" · ".join(parts)}</p>'


def drawn(page, graph):
    """The map: a row a chapter, and an arc from each to what it needs."""
    chapters = LOOM.chapters.values()
    rows = {c.name: (n + c.beside) * ROW for n, c in enumerate(chapters)}
    height = max(rows.values(), default=0) + ROW
    yield (
        f'<svg class="tt-map" viewBox="0 {-ROW / 2} {WIDTH} {height}" '
        f'role="group" aria-label="{MAP}">'
    )
    for chapter in chapters:
        yield from node(page, chapter, graph[chapter.name], rows)
    yield "</svg>"


def node(page, chapter, near, rows):
    """A chapter on the map: a link with its arcs, its dot and its name."""
    number = LOOM.book.numbers.get(chapter.name, "")
    name, y = f"{number} {chapter.title}".strip(), rows[chapter.name]
    time = hours(sum(minutes(chapter)))
    titles = [LOOM.book.chapter(other).title for other in near]
    said = ", ".join([name, time, *clause("needs", titles)])
    target = uri(page, page_of(chapter.path))
    yield f'<a href="{target}" aria-label="{escape(said)}">'
    yield from (arc(rows[other], y) for other in near)
    yield (
        f'<rect x="{DOT - 8}" y="{y - ROW / 2}" height="{ROW}" '
        f'width="{WIDTH - DOT + 8}"/><circle cx="{DOT}" cy="{y}" r="4.5"/>'
    )
    yield f'<text x="{DOT + 16}" y="{y}">{escape(name)}</text></a>'
    short = time.replace(" hours", " h").replace(" hour", " h")
    yield f'<text x="{WIDTH}" y="{y}" aria-hidden="true">{short}</text>'


def arc(start, stop):
    """From a chapter down to one that needs it, to the left of the dots."""
    far = DOT - min((stop - start - ROW) * 0.5, DOT * 1.3)
    curve = f"M{DOT},{start}C{far},{start} {far},{stop} {DOT},{stop}"
    return f'<path d="{curve}"/>'


class Map(SphinxDirective):
    """`{chapter-map}`: which chapter needs which; its text is a caption."""

    has_content = True

    def run(self):
        page = self.env.docname
        self.env.metadata[page]["guide"] = True
        svg = "".join(drawn(page, needs()))
        caption = nodes.caption()
        text, messages = self.state.inline_text(
            " ".join(self.content), self.lineno
        )
        caption += text
        return [
            nodes.figure("", nodes.raw("", svg, format="html"), caption),
            *messages,
        ]


class Path(SphinxDirective):
    """`{path} arrays autograd`: some chapters, their hours, what is skipped.

    What the chapters need and the path leaves out comes with the library.
    """

    required_arguments, final_argument_whitespace = 1, True

    def run(self):
        page = self.env.docname
        self.env.metadata[page]["guide"] = True
        try:
            text = walked(page, self.arguments[0].split(), needs())
        except SourceError as error:
            raise self.error(error.message) from error
        return [nodes.raw("", text, format="html")]


def walked(page, names, graph):
    """A path through the book, as a paragraph."""
    chapters = [LOOM.book.chapter(name) for name in names]
    time = hours(sum(minutes(chapter)[0] for chapter in chapters))
    skipped = {far for name in names for far in reach(name, graph)}
    rest = [name for name in graph if name in skipped - set(names)]
    links = " → ".join(chapter_link(page, name) for name in names)
    text = f"{links}: {time} without the exercises."
    if rest:
        others = [chapter_link(page, name) for name in rest]
        text += f" The library lends you what it skips: {listed(others)}."
    return f"<p>{text}</p>"


def guided():
    """The line of every chapter, by its page."""
    graph = needs()
    return {page: line(c, graph) for page, c in LOOM.chapters.items()}


def outdated(app, env, added, changed, removed):
    """The pages whose line, map or paths say something else than before."""
    known, env.guided = getattr(env, "guided", {}), guided()
    if known == env.guided:
        return []
    pages = [p for p, text in env.guided.items() if known.get(p) != text]
    return pages + [p for p, kept in env.metadata.items() if "guide" in kept]


def introduce(app, pagename, templatename, context, doctree):
    """Put the line under the title of a chapter's page."""
    found = app.env.guided.get(pagename)
    if found:
        title, end, body = context["body"].partition("</h1>")
        context["body"] = f"{title}{end}\n{found}{body}"


def setup(app):
    """Register with Sphinx."""
    app.add_directive("chapter-map", Map)
    app.add_directive("path", Path)
    app.connect("env-get-outdated", outdated)
    app.connect("html-page-context", introduce)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
