"""Sphinx extension: what a page says where somebody links to it.

Search engines and messengers show a title and a sentence; a page's sentence
is its opening question.
"""

from html import escape

from docutils import nodes


def opening(doctree):
    """The first paragraph of a page as plain text; its question."""
    first = next(iter(doctree.findall(nodes.paragraph)), None)
    return "" if first is None else " ".join(first.astext().split())


def tags(title, text, book):
    """The tags of the head: for search engines, and Open Graph's."""
    values = {
        "og:type": "article",
        "og:site_name": book,
        "og:title": title,
        "og:description": text,
    }
    yield f'<meta name="description" content="{escape(text)}" />'
    for name, value in values.items():
        yield f'<meta property="{name}" content="{escape(value)}" />'


def describe(app, pagename, templatename, context, doctree):
    """Give a page that has a text its summary."""
    text = opening(doctree) if doctree else ""
    if not text:
        return
    title = app.env.titles[pagename].astext()
    found = tags(title, text, app.config.html_title or app.config.project)
    context["metatags"] = "\n".join([context.get("metatags", ""), *found])


def setup(app):
    """Register with Sphinx."""
    app.connect("html-page-context", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
