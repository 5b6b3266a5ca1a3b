"""The measures of a chapter, and every limit broken once."""

import pytest
from small_book import cell, page, small_book

from companion.literate.execute import execute
from companion.literate.lint import (
    functions,
    longest_run,
    main,
    measure,
    problems,
    summary,
    table,
    words,
)
from companion.literate.source import SourceError
from companion.literate.tangle import tangle

DEFINE = cell("def one():\n    return 1", "tangle")


def lint(folder, *blocks):
    """What `lint` finds wrong with a chapter made of these blocks."""
    book = small_book(folder, first=page("first", *blocks))
    return [str(problem) for problem in problems(book, tangle(book))]


def measured(folder, *blocks):
    book = small_book(folder, first=page("first", *blocks))
    return measure(book, book.chapter("first"))


def test_measures(tmp_path):
    found = measured(
        tmp_path,
        "One two three {term}`four <x>` `code` $x$ [five](b.md).",
        "```{margin}\nAn aside.\n```",
        cell("1\n2"),
        "Six seven.",
        "```{figure} a.svg\n:alt: An A\nIts caption.\n```",
        DEFINE,
        DEFINE.replace("one", "two"),
    )
    assert found.words == 1 + 5 + 2 + 2 + 2  # the title's word first
    assert found.cells == [2, 2, 2] and found.folded == 0
    assert (found.library, found.pending) == (4, 2)
    assert (found.figures, found.asides) == (1, 1)
    assert found.gap == 8
    assert found.seconds is None


def test_what_is_folded_is_not_in_sight(tmp_path):
    """It counts for the library, and as a line on the page."""
    long = "\n".join(["x = 1"] * 20)
    hidden = ("hide-cell", "hide-input", "remove-cell")
    blocks = [cell(long, tag) for tag in hidden]
    library = cell(long, "tangle", "hide-input")
    found = measured(tmp_path, library, *blocks, cell("1"))
    assert (found.cells, found.folded) == ([1], 3)
    assert (found.library, found.pending) == (20, 0)


def test_an_exercise_is_a_title_with_its_weight(tmp_path):
    """One to three marks; other bold beginnings are none."""
    marked = "**1. A sum** ●. Add.", "Why?", "**2. A $x$?** ●●●. Show."
    others = "**3. Bare.** Text.", "**1978.** A year.", "**4. A** ●●●●. B."
    found = measured(tmp_path, *(f"{x}\n" for x in marked + others))
    assert found.exercises == 2


def test_a_screen_is_the_sum_of_what_it_shows(tmp_path):
    empty = measured(tmp_path).screens
    figure = "```{figure} a.svg\n:alt: An A\n```"
    drawn = cell("x = 1", mystnb="{image: {alt: A point}}")
    for block, pixels in [
        (cell("x = 1\ny = 2"), 90 + 2 * 15), (cell("x = 1", "hide-cell"), 48),
        (figure, 340), (drawn, 90 + 15 + 340), ("One two.\n\nThree.", 3 * 3.3),
    ]:  # fmt: skip
        more = measured(tmp_path, block).screens - empty
        assert more == pytest.approx(pixels / 900)


def test_folds_that_show_nothing_share_a_line(tmp_path):
    proof, gone = cell("x = 1", "hide-cell"), cell("x", "remove-cell")
    plumbing = cell("def f(): ...", "tangle", "hide-input")
    shown = cell("1", "hide-input")
    for blocks, lines in [
        ([proof, plumbing, proof], 1), ([proof, gone, proof], 1),
        ([proof, "Words.\n", proof], 2), ([proof, shown, proof], 3),
        ([proof, cell("1"), proof], 2), ([shown, shown], 2), ([gone], 0),
    ]:  # fmt: skip
        assert measured(tmp_path, *blocks).lines == lines, blocks


def test_a_formula_ends_a_stretch_of_words(tmp_path):
    found = measured(tmp_path, "One two three.\n\n$$\nx\n$$\n\nFour.")
    assert (found.words, found.gap) == (5, 4)  # the title's word first
    assert measured(tmp_path, "```{sidebar} A\nText.\n```").asides == 1


def test_summary(tmp_path):
    short = "\n\n\n".join(f"def f{n}():\n    return 1" for n in range(9))
    long = "def g():\n    x = 1\n    y = 2\n    return x + y"
    blocks = [cell(source, "tangle") for source in (short, long)]
    library = tangle(small_book(tmp_path, first=page("first", *blocks)))
    library.files = {f: t for f, t in library.files.items() if "layers" in f}
    assert summary(library) == ("10 functions; lines: median 2, 90 % 2, max 4")


@pytest.mark.slow
def test_seconds_come_from_the_cache(tmp_path):
    book = small_book(tmp_path, first=page("first", cell("1")))
    execute(book, "first")
    found = measure(book, book.chapter("first"))
    assert found.seconds is not None and found.seconds > 0
    (tmp_path / "_build/executed/first-stage.ipynb").write_text("{")
    assert measure(book, book.chapter("first")).seconds is None


def test_words_are_those_that_are_read():
    assert words("A {ref}`text <label>` with `x = 1` and $a b$.") == 4
    assert words("don't count 12 well-known") == 3


def test_longest_run():
    assert longest_run([True, True, False, True]) == 2
    assert longest_run([]) == 0


def test_a_clean_chapter(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters/a.svg").write_text("<svg/>")
    assert lint(
        tmp_path,
        "Words, [a link](first.md), [a label](#x), [far](https://a.b/c.d).",
        "[From the top](/intro.md).",
        "![An A](a.svg)",
        DEFINE,
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    "block, message",
    [
        (cell("\n".join(["x = 1"] * 31)),
         "chapters/first.md:9: a cell of 31 lines: at most 30"),
        (cell("x = 1\ny = '" + "y" * 80 + "'"),
         "chapters/first.md:10: 86 columns: at most 79"),
        (cell("x = 1\nx;"),
         "chapters/first.md:10: nbval shows what a semicolon hides: "
         "end the cell with plt.show()"),
        (cell("x = 1", "tangle", "remove-input"),
         "chapters/first.md:10: the page hides what goes to "
         "companion/layers.py: fold it, with hide-input"),
        ("This is\nSimply true.",
         "chapters/first.md:9: 'Simply' tells the reader nothing: "
         "leave it out"),
        ("```{note}\nIt is just so.\n```",
         "chapters/first.md:9: 'just' tells the reader nothing: "
         "leave it out"),
        ("![](first.md)",
         "chapters/first.md:8: no alternative text for first.md"),
        ("```{figure} first.md\nCaption\n```",
         "chapters/first.md:8: no alternative text for first.md"),
        ("Text\n[a link](none.md#x)",
         "chapters/first.md:9: none.md#x does not exist"),
        ("```{image} /none.svg\n:alt: None\n```",
         "chapters/first.md:8: /none.svg does not exist"),
        ("```{figure} first.md\n:alt:\nCaption\n```",
         "chapters/first.md:8: no alternative text for first.md"),
    ],
)  # fmt: skip
def test_limits(tmp_path, block, message):
    assert lint(tmp_path, block) == [message]


@pytest.mark.parametrize("options, what", [
    (":alt: Two axes: x and y", "mapping values are not allowed"),
    (":alt", "expected `key: value` lines"),
])  # fmt: skip
def test_options_that_are_no_yaml(tmp_path, options, what):
    figure = f"```{{figure}} a.svg\n{options}\n```"
    note = f"````{{note}}\nText.\n\n{figure}\n````"
    error = rf"^chapters/first.md:13: YAML: {what}"
    with pytest.raises(SourceError, match=error):
        small_book(tmp_path, first=page("first", "Text.", note))


OUTCOMES = [
    ("{}", []),
    ("{do it: test_one, or this: half}", []),
    ("{do it: one}",
     ["chapters/first.md:4: 'do it' is shown by one, which no test and no "
      "exercise of the page defines"]),
    ("{do it: [a]}",
     ["chapters/first.md:4: 'do it' is shown by ['a'], which no test and no "
      "exercise of the page defines"]),
]  # fmt: skip


@pytest.mark.parametrize("outcomes, found", OUTCOMES)
def test_an_outcome_is_shown_by_the_page(tmp_path, outcomes, found):
    text = page(
        "first",
        DEFINE,
        cell("@test\ndef test_one():\n    assert one() == 1", "test"),
        cell("!ls\ndef half(): ...", "exercise"),
        cell("def half():\n    return one() / 2", "solution"),
        cell("%%c a.c\nint f() { return 1; }", "solution"),
    )
    text = text.replace("outcomes: {}", f"outcomes: {outcomes}")
    book = small_book(tmp_path, first=text)
    assert [str(p) for p in problems(book, tangle(book))] == found


def test_a_chapter_says_what_one_can_do_after_it(tmp_path):
    text = page("first", DEFINE).replace(", outcomes: {}", "")
    book = small_book(tmp_path, first=text, second="# No cells\n")
    (problem,) = problems(book, tangle(book))
    assert str(problem) == (
        "chapters/first.md:4: what can a reader do after it? Add "
        "`companion: {outcomes: {do this: test_NAME, and that: "
        "NAME_OF_AN_EXERCISE}}`"
    )


def test_a_term_of_the_field_is_no_filler(tmp_path):
    assert lint(tmp_path, "It is compiled just-in-time.") == []


def test_a_picture_drawn_by_a_cell_needs_a_text_and_a_caption(tmp_path):
    source = "import matplotlib.pyplot as plt\nplt.plot([1]); plt.show()"
    text, caption = "image: {alt: A point}", "figure: {caption: One}"

    def found(*before, **options):
        picture = cell(source, **options)
        book = small_book(tmp_path, first=page("first", *before, picture))
        if not before:
            execute(book, "first")
        return [str(problem) for problem in problems(book, tangle(book))]

    no_text = (
        "the picture has no alternative text: "
        "give the cell `mystnb: {image: {alt: …}}`"
    )
    no_caption = (
        "the picture has no caption: "
        "give the cell `mystnb: {figure: {caption: …}}`"
    )
    first = "chapters/first.md:"
    assert found() == [f"{first}9: {no_text}", f"{first}9: {no_caption}"]
    assert found(mystnb=f"{{{text}}}") == [f"{first}10: {no_caption}"]
    assert found(mystnb=f"{{{caption}}}") == [f"{first}10: {no_text}"]
    assert found(mystnb=f"{{{text}, {caption}}}") == []
    moved = found(cell("1"), mystnb=f"{{{text}}}")
    assert moved == [f"{first}15: {no_caption}"]


def test_a_page_that_is_too_long(tmp_path):
    many = [cell(f"{i}") for i in range(46)]
    tall = [cell("\n".join(["1"] * 29)) for _ in range(45)]
    tall.append("word " * 600)
    (cells,) = [x for x in lint(tmp_path / "a", *many) if "the most" in x]
    assert "46 cells" in cells
    (screens,) = [x for x in lint(tmp_path / "b", *tall) if "the most" in x]
    assert "28 screens" in screens and "hide-input" in screens
    folded = [cell("1", "hide-input") for _ in range(46)]
    assert not [x for x in lint(tmp_path / "c", *folded) if "the most" in x]


def test_a_long_function(tmp_path):
    body = "\n".join(["    x = 1"] * 20)
    long = cell(f"class A:\n    x = 1\n\n\ndef f():\n{body}", "tangle")
    book = small_book(tmp_path, first=page("first", long))
    library = tangle(book)
    library.files = {
        path: text.replace("def f():", "def f():" + "\n    x = 1" * 20)
        for path, text in library.files.items()
    }
    found = [name for *_, name, length in functions(library) if length > 30]
    assert found == ["f"]
    assert "f has 41 lines: at most 30" in str(list(problems(book, library)))


def test_the_table_lines_up():
    lines = table([["arrays", *range(15)]]).split("\n")
    assert lines[0].startswith("chapter ")
    assert len({len(line) for line in lines}) == 1


def test_command(tmp_path, monkeypatch, capsys):
    small_book(tmp_path, first=page("first", DEFINE))
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "first" in out and "functions; lines" in out
    small_book(tmp_path, first=page("first", "Obviously."))
    assert main([]) == 1
    assert capsys.readouterr().err.startswith("chapters/first.md:8: ")
