"""What a page says where somebody links to it: site/summary.py."""

from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.core import publish_doctree


@pytest.fixture(scope="module")
def summary(extension):
    return extension("summary")


def described(summary, text):
    app = SimpleNamespace(
        env=SimpleNamespace(titles={"a": nodes.title("", "A & B")}),
        config=SimpleNamespace(html_title="Book", project=""))
    context = {"metatags": "<meta old>"}
    summary.describe(app, "a", "page.html", context, publish_doctree(text))
    return context["metatags"]


def test_the_opening_question_is_the_description(summary):
    found = described(summary, "A\n=\n\nWhat is *\"it\"*,\nand why?\n")
    question = "What is &quot;it&quot;, and why?"
    assert f'<meta name="description" content="{question}" />' in found
    assert f'<meta property="og:description" content="{question}" />' in found
    assert '<meta property="og:title" content="A &amp; B" />' in found
    assert found.startswith("<meta old>")


def test_a_page_without_a_text_keeps_its_head(summary):
    assert described(summary, "A\n=\n") == "<meta old>"


@pytest.mark.slow
def test_every_page_is_described(site):
    pages = [site / "index.html", site / "intro.html",
             *site.glob("chapters/**/*.html")]
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        for name in ('name="description"', 'property="og:title"'):
            assert text.count(f"<meta {name}") == 1, (page.name, name)
