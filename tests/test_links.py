"""Every link of the built site arrives, and every picture is described."""

from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ADDRESSES = {"a": "href", "link": "href", "img": "src", "script": "src",
             "source": "src", "iframe": "src", "use": "href"}  # fmt: skip


class Page(HTMLParser):
    """What one page links to, what it offers, what it shows."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.unlabelled = [], {"", "top"}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get("id"), found.get("name")} - {None}
        link = found.get(ADDRESSES.get(tag))
        if link:
            self.links.append((self.getpos()[0], link))
        decorative = found.get("aria-hidden") == "true"
        if tag == "img" and not found.get("alt") and not decorative:
            self.unlabelled.append((self.getpos()[0], found.get("src")))

    handle_startendtag = handle_starttag


def read_pages(site):
    """Every page of the site, by its path."""
    return {
        path: Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.relative_to(site).parts
    }


def dead_links(site, pages):
    """`page:line: link` for each internal link that arrives nowhere."""
    return [
        f"{path.relative_to(site)}:{line}: {link}"
        for path, page in pages.items()
        for line, link in page.links
        if not arrives(pages, path, link)
    ]


def arrives(pages, path, link):
    """Whether the file exists, and the place in it, if it is a page."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = path
    if parts.path:
        target = (path.parent / unquote(parts.path)).resolve()
        target = target / "index.html" if target.is_dir() else target
    anchor = unquote(urldefrag(link).fragment)
    if target in pages:
        return anchor in pages[target].anchors
    return target.is_file()


def unlabelled_images(site, pages):
    """`page:line: image` for each picture without alternative text."""
    return [
        f"{path.relative_to(site)}:{line}: {source}"
        for path, page in pages.items()
        for line, source in page.unlabelled
    ]


@pytest.mark.slow
def test_every_link_arrives_and_every_image_has_words(site):
    site = site.resolve()
    pages = read_pages(site)
    assert dead_links(site, pages) == unlabelled_images(site, pages) == []


@pytest.mark.parametrize(
    ("body", "dead"),
    [
        ('<p id="a"></p><a href="#a">here</a>', []),
        ('<a href="#b">here</a>', ["index.html:1: #b"]),
        ('<a href="gone.html">here</a>', ["index.html:1: gone.html"]),
        ('<img src="x%20y.svg" alt="x">', []),
        ('<a href="https://example.org/gone">away</a>', []),
    ],
)
def test_dead_links(tmp_path, body, dead):
    (tmp_path / "x y.svg").write_text("<svg/>")
    (tmp_path / "index.html").write_text(body)
    assert dead_links(tmp_path, read_pages(tmp_path)) == dead


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ('<img src="x.svg" alt="strides">', []),
        ('<img src="x.svg">', ["index.html:1: x.svg"]),
        ('<img src="x.svg" alt="">', ["index.html:1: x.svg"]),
        ('<img src="x.svg" alt="" aria-hidden="true">', []),
    ],
)
def test_unlabelled_images(tmp_path, image, found):
    (tmp_path / "index.html").write_text(image)
    assert unlabelled_images(tmp_path, read_pages(tmp_path)) == found
