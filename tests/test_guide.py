"""The line under a title, the map, and the paths: site/guide.py."""

import re
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from small_book import cell, page, small_book

from companion.literate.loom import LOOM
from companion.literate.source import read_book

ONE = cell("def one():\n    return 1", "tangle")
TEST = cell("@test\ndef test_one():\n    assert one() == 1", "test")
PAGES = {
    "first": page("first", ONE, TEST, cell("one()", "solution")),
    "second": page(
        "second", cell("def two():\n    return 2 * one()", "tangle")),
    "third": page(
        "third",
        cell("def six():\n    return 3 * two() * one()", "tangle"),
        cell("@test\ndef test_two():\n    assert two() == 2", "test"),
    ),
    "fourth": page(
        "fourth",
        cell("from companion.losses import two"),
        cell("def unlike():\n    return one() + 3", "tangle"),
        cell("two()"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def guide(extension):
    return extension("guide")


@pytest.fixture
def loom(tmp_path):
    """Load the small book, with changes to its first page."""

    def load(old="", new=""):
        changed = PAGES | {"first": PAGES["first"].replace(old, new)}
        LOOM.load(small_book(tmp_path, **changed).root)

    load()
    return load


def soup(text):
    return BeautifulSoup(text, "html.parser")


def test_a_chapter_needs_what_its_library_code_uses(guide, loom):
    assert guide.needs() == {
        "first": [],
        "second": ["first"],
        "third": ["second"],  # and so the first, which is left out
        "fourth": ["first"],  # what an experiment imports does not count
    }


def test_who_extends_a_class_needs_it(guide, tmp_path):
    grows = "@extend\nclass A:\n    def f(self):\n        return 1"
    LOOM.load(small_book(
        tmp_path,
        first=page("first", cell("class A:\n    pass", "tangle")),
        second=page("second", cell(grows, "tangle"))).root)  # fmt: skip
    assert guide.needs()["second"] == ["first"]


@pytest.mark.parametrize("minutes, said", [
    (0, "½ hour"), (44, "½ hour"), (60, "1 hour"), (90, "1½ hours"),
    (125, "2 hours"), (620, "10½ hours")])  # fmt: skip
def test_hours(guide, minutes, said):
    assert guide.hours(minutes) == said


def test_minutes_are_words_lines_in_sight_and_exercises(guide, tmp_path):
    text = "word " * 399  # and the title's
    long = "\n".join(["x = 1"] * 30)
    LOOM.load(small_book(tmp_path, first=page(
        "first", text, cell(long), cell(long, "hide-cell"),
        cell("x", "solution", "hide-cell"))).root)  # fmt: skip
    first = LOOM.book.chapter("first")
    assert guide.minutes(first) == (400 / 200 + 30 / 15, 15)


def test_the_rule_is_told_as_it_is(guide, root):
    using = (root / "chapters/front/using.md").read_text()
    rule = f"{guide.WORDS} words and {guide.LINES} lines of code a minute"
    assert rule in using
    assert "a quarter of an hour for each exercise" in using
    assert guide.EXERCISE == 15


@pytest.mark.parametrize("words, said", [
    (["a"], "a"), (["a", "b"], "a and b"),
    (["a", "b", "c"], "a, b and c")])  # fmt: skip
def test_lists_are_said_as_one_says_them(guide, words, said):
    assert guide.listed(words) == said


def test_the_line_leads_to_what_it_names(guide, loom):
    loom("outcomes: {}", "outcomes: {count & see: test_one}")
    lines = guide.guided()
    first, third = (
        soup(lines[f"chapters/{n}"]) for n in ("first", "third")
    )
    assert first.p.get_text() == "½ hour · after it you can count & see"
    assert first.a["href"] == "#cell-1"
    assert third.p.get_text() == "½ hour · needs Second"
    assert third.a["href"] == "second.html"


def test_the_map_has_a_link_a_chapter_and_an_arc_a_need(guide, loom):
    svg = soup("".join(guide.drawn("chapters/front/using", guide.needs()))).svg
    links = {a["aria-label"]: a["href"] for a in svg.select("a")}
    assert links["Third, ½ hour, needs Second"] == "../third.html"
    assert len(links) == len(PAGES)
    assert len(svg.select("path")) == 3
    assert svg["role"] == "group" and svg["aria-label"]
    assert float(svg["viewbox"].split()[2]) <= 700


def test_a_path_names_its_hours_and_what_it_skips(guide, loom):
    text = soup(guide.walked("intro", ["first", "third"], guide.needs()))
    assert " ".join(text.get_text().split()) == (
        "First → Third: ½ hour without the exercises. "
        "The library lends you what it skips: Second.")  # fmt: skip


def test_what_is_said_otherwise_is_read_again(guide, loom):
    env = SimpleNamespace(metadata={"using": {"guide": True}, "other": {}})
    assert set(guide.outdated(None, env, [], [], [])) >= {"using"}
    assert guide.outdated(None, env, [], [], []) == []
    loom("# First", "# The first")
    changed = guide.outdated(None, env, [], [], [])
    assert changed == ["chapters/second", "chapters/fourth", "using"]


def test_the_line_stands_under_the_title(guide):
    app = SimpleNamespace(env=SimpleNamespace(guided={"a": "<p>line</p>"}))
    context = {"body": "<h1>A</h1><p>Why?</p>"}
    guide.introduce(app, "b", "page.html", context, None)
    assert context["body"] == "<h1>A</h1><p>Why?</p>"
    guide.introduce(app, "a", "page.html", context, None)
    assert context["body"] == "<h1>A</h1>\n<p>line</p><p>Why?</p>"


def test_every_chapter_promises_two_things_or_more(root):
    """That each is shown by the page, lint says."""
    few = {c.name: c.outcomes for c in read_book(root).chapters
           if c.cells and len(c.outcomes) < 2}  # fmt: skip
    assert few == {}


@pytest.mark.slow
def test_every_chapter_has_a_line_whose_links_lead_somewhere(site):
    lines = 0
    for file in site.glob("chapters/*/*.html"):
        text = file.read_text()
        for found in re.findall(r'<p class="tt-guide">.*?</p>', text):
            lines += 1
            for href in re.findall(r'href="([^"]*)"', found):
                target, _, anchor = href.partition("#")
                there = file.parent / target if target else file
                assert f'id="{anchor}"' in there.read_text() or not anchor
    assert lines == len([c for c in read_book().chapters if c.cells])
