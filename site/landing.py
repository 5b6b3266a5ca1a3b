"""Sphinx extension: the landing page's picture, drawn from the book itself.

Every strand runs from the line of a chapter that defines something to the
line of the library (or of its tests) where tangle puts it.
"""

from html import escape
from pathlib import Path

from companion.literate.loom import LOOM

WIDTH, HEIGHT, GAP = 640, 560, 9
LEFT, RIGHT = 118, 490


class Column:
    """Texts stacked from top to bottom, each as tall as it is long."""

    def __init__(self, x, texts):
        self.x, self.texts = x, texts
        gap = min(GAP, HEIGHT / 4 / max(len(texts), 1))
        room = HEIGHT - gap * max(len(texts) - 1, 0)
        self.scale = room / max(sum(map(lines, texts.values())), 1)
        self.tops, y = {}, 0.0
        for name, text in texts.items():
            self.tops[name] = y
            y += lines(text) * self.scale + gap

    def point(self, name, line):
        """The height of one line of one text."""
        return self.tops[name] + (line - 0.5) * self.scale

    def draw(self, anchor):
        """The bars, and the names of those that have room for one."""
        side = -10 if anchor == "end" else 10
        for name, text in self.texts.items():
            y, height = self.tops[name], lines(text) * self.scale
            yield (
                f'<rect x="{self.x - 2}" y="{y:.1f}" width="4" '
                f'height="{max(height, 1.5):.1f}"/>'
            )
            if height > 11 and not name.startswith("tests/"):
                size = "large" if height > 24 else "small"
                path = Path(name)
                own = path.parent if path.stem == "__init__" else path
                label = escape(own.name.removesuffix(".md"))
                yield (
                    f'<text class="{size}" x="{self.x + side}" '
                    f'y="{y + height / 2:.1f}" text-anchor="{anchor}">'
                    f"{label}</text>"
                )


def lines(text):
    """How many lines a text has."""
    return text.count("\n")


def strand(definition, chapters, files):
    """The curve from a definition's paragraph to its place."""
    start = chapters.point(definition.path, definition.chapter_line)
    stop = files.point(definition.file, definition.line)
    middle = (LEFT + RIGHT) / 2
    kind = "test" if definition.file.startswith("tests/") else "code"
    path = (
        f"M{LEFT + 3},{start:.1f}C{middle},{start:.1f} "
        f"{middle},{stop:.1f} {RIGHT - 3},{stop:.1f}"
    )
    place = f"{definition.path}:{definition.chapter_line}"
    return (
        f'<path class="{kind}" d="{path}"><title>'
        f"{escape(definition.name)}: {place} to "
        f"{definition.file}:{definition.line}</title></path>"
    )


def picture(chapters, files, drawn):
    """The chapters, the files, and what ties them."""
    left = Column(LEFT, {c.path: c.text for c in chapters})
    right = Column(RIGHT, files)
    parts = [
        f'<svg viewBox="0 -6 {WIDTH} {HEIGHT + 12}" aria-hidden="true">',
        *(strand(d, left, right) for d in drawn),
        *left.draw("end"),
        *right.draw("start"),
        "</svg>",
    ]
    return "\n".join(parts)


def numbers(chapters, files, drawn):
    """What the landing page counts."""
    code = [t for f, t in files.items() if f.startswith("companion/")]
    return {
        "chapters": len(chapters),
        "cells": sum(len(chapter.cells) for chapter in chapters),
        "definitions": len(drawn),
        "tests": sum(d.name.startswith("test_") for d in drawn),
        "lines": sum(map(lines, code)),
    }


def add_picture(app, pagename, templatename, context, doctree):
    """Give the landing page the framework; the tools stay behind it."""
    if templatename != "landing.html":
        return
    chapters = [c for c in LOOM.chapters.values() if c.cells and not c.beside]
    paths = {c.path for c in chapters}
    made = LOOM.library.definitions
    drawn = [d for d in made if d.line and d.path in paths]
    files = {d.file: LOOM.library.files[d.file] for d in drawn}
    context["picture"] = picture(chapters, files, drawn)
    context["numbers"] = numbers(chapters, files, drawn)
    last = chapters[-1]
    page = last.path.removesuffix(".md")
    context["last"] = {"title": last.title, "page": page}


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", add_picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
