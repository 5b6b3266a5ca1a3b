# Tangled from record: edit there, `make tangle`. sha256:2b8d0599c13b
import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from companion.literate.execute import (
    Room, cached, check_claims, code_cells, execute, paired, sign_recording)
from companion.literate.lint import problems
from companion.literate.markdown import Addresses, Page, addresses
from companion.literate.notebook import notebook_path, stale, write_notebook
from companion.literate.runtime import extend
from companion.literate.source import SourceError, read_book
from companion.literate.stage import stage, sync
from companion.literate.tangle import tangle


def test_extend_reaches_instances_and_super():
    class Base:
        def name(self):
            return "base"

    class Point(Base):
        pass

    old = Point()

    @extend
    class Point:
        def name(self):
            return super().name() + "!"

    assert old.name() == "base!" and type(old) is Point


def cell(source, tags="", **options):
    """A code cell, as a chapter spells it."""
    lines = [f":tags: [{tags}]"] if tags else []
    lines += [f":{key}: {value}" for key, value in options.items()]
    mark = "`" * 3
    head = mark + "{code-cell} python"
    return "\n".join([head, *lines, source, mark, "", ""])


def page(title, module, *blocks):
    """A chapter whose tangled cells go to companion/MODULE."""
    own = f"{{module: {module}, outcomes: {{}}}}"
    front = f"---\ncompanion: {own}\n---\n"
    return front + f"# {title}\n\n" + "\n".join(blocks)


def write_book(folder, **pages):
    """A book of these chapters, in this order."""
    files = {f"chapters/{name}.md": text for name, text in pages.items()}
    files["intro.md"] = "# A small book\n"
    entries = "".join(f"- file: chapters/{name}\n" for name in pages)
    files["_toc.yml"] = f"root: intro\nchapters:\n{entries}"
    address = "https://github.com/someone/small-book"
    files["_config.yml"] = f"repository: {{url: '{address}', branch: main}}\n"
    for name, text in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_book(folder)


def test_a_stage_holds_what_came_before():
    with TemporaryDirectory() as folder:
        one = cell("def one():\n    return 1", "tangle")
        two = cell("def two():\n    return 2 * one()", "tangle")
        pages = {"a": page("A", "layers.py", one),
                 "b": page("B", "losses.py", two)}
        book = write_book(folder, **pages)
        staged = stage(book, "b")
        assert (staged / "companion/layers.py").exists()
        assert not (staged / "companion/losses.py").exists()
        book = write_book(folder, a="# Nothing\n", b=pages["b"])
        stage(book, "a")
        sync(staged, {})
        assert not list(staged.rglob("*.py"))


def is_free(file):
    """Whether one more may share a locked file."""
    try:
        flock(file, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        return False
    flock(file, LOCK_UN)
    return True


def test_a_cell_that_is_alone_has_no_neighbour():
    with TemporaryDirectory() as folder, Room(Path(folder)) as room:
        for alone in (False, True, False):
            room.enter(alone)
            with open(room.folder / "room.lock") as neighbour:
                assert is_free(neighbour) != alone
        with open(room.folder / "gate.lock") as patient:
            assert is_free(room.gate)
            flock(patient, LOCK_EX)  # a neighbour waits to be alone
            assert not is_free(room.gate)


def test_a_damaged_cache_counts_as_none():
    with TemporaryDirectory() as folder:
        path = Path(folder, "fruit-stage.ipynb")
        done = new_notebook(metadata={"execution": {"key": "right"}})
        done.cells.append(new_code_cell("one\ntwo"))
        path.write_text(nbformat.writes(done))
        assert cached(path, "right") == cached(path) == done
        assert cached(path, "wrong") is None
        for damage in (b"", b"\xff", b"{}", b"[]", b"null",
                       path.read_bytes()[:-9], b'{"metadata": {}}'):
            path.write_bytes(damage)
            assert cached(path, "right") is None, damage
            assert cached(path) is None, damage


def test_a_recording_stays_with_its_source():
    def recorded(source):
        made = new_code_cell(source)
        sign_recording(made, "a GPU")
        return made

    one, two, new = map(recorded, ("one", "two", "new"))
    assert paired([new, one, two], [one, two]) == [None, one, two]
    assert paired([two, one], [one, two]) == [two, one]
    assert paired([one, new], [one, two]) == [one, two]  # edited
    assert paired([new, one], [one, two]) == [None, one]


def test_a_failure_names_the_chapters_line():
    with TemporaryDirectory() as folder:
        book = write_book(
            folder,
            a=page("A", "layers.py", cell("def f(x):\n    return 1 / x"),
                   cell("x = 0\nf(x)")))
        try:
            execute(book, "a")
        except SourceError as error:
            assert (error.path, error.line) == ("chapters/a.md", 8)
            assert error.message.startswith("ZeroDivisionError: ")
            assert "chapters/a.md:14" in error.message
        else:
            raise AssertionError("it ran")


def refusal(function, *arguments):
    """What a function has against its arguments."""
    try:
        function(*arguments)
    except SourceError as error:
        return str(error)
    return "none"


def test_a_false_claim_stops_the_reference():
    text = """from companion.literate import claim
claim("cheap", 1 > 0, "a cent", "a fortune")
claim("fast", 2 > 3, "fast", "slow here")"""
    timed, compared = cell(text, "timing"), cell(text)
    with TemporaryDirectory() as folder:
        book = write_book(folder, only=page("Only", "only.py", timed))
        with mock.patch.dict(os.environ, COMPANION_REFERENCE=""):
            done = execute(book, "only")
        with mock.patch.dict(os.environ, COMPANION_REFERENCE="this one"):
            assert refusal(execute, book, "only") == (
                "chapters/only.md:10: the claim fast does not hold, and "
                "COMPANION_REFERENCE is set: mend the program or the "
                "sentence; the page says 'slow here'")
        book = write_book(folder, only=page("Only", "only.py", compared))
        told = refusal(check_claims, book.chapter("only"), done)
        assert "only.md:8: the claim cheap depends on what was" in told


def test_directives_inside_directives():
    web = Addresses("", "", "", {}, {}, {})
    text = "::::{tip}\n:::{math}\nx\n:::\n::::"
    wanted = "> **Tip**\n>\n> $$\n> x\n> $$"
    assert Page("a", web, {}).rewrite(text) == wanted


def test_the_record_is_text_and_repeats_itself():
    with TemporaryDirectory() as folder:
        plot = "import matplotlib.pyplot as plt\nplt.plot([1]); plt.show()"
        book = write_book(
            folder, a=page("A", "layers.py", cell(plot),
                           cell("import time\nprint(time.time())", "timing")))
        web = addresses(book)
        assert stale(book, "a", web) == "is missing"
        assert write_notebook(book, "a", web)
        assert not write_notebook(book, "a", web)
        assert stale(book, "a", web) == ""
        notebook = nbformat.read(notebook_path(book, "a"), as_version=4)
        drawn, timed = code_cells(notebook)[1:]
        assert list(drawn.outputs[0].data) == ["text/plain"]
        assert timed.outputs == [] and timed.execution_count is None


def test_an_author_is_told_everything_at_once():
    with TemporaryDirectory() as folder:
        long = cell("\n".join(["x = 1"] * 31))
        book = write_book(folder, a=page("A", "layers.py", "Simply.\n", long))
        found = [str(problem) for problem in problems(book, tangle(book))]
        assert found == [
            "chapters/a.md:9: a cell of 31 lines: at most 30",
            "chapters/a.md:6: 'Simply' tells the reader nothing: "
            "leave it out"]
