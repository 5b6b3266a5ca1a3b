"""Every output comes from one execution, on the chapter's own stage."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from small_book import cell, page, small_book

from companion.literate import execute as module, write
from companion.literate.execute import Room, code_cells, execute, main
from companion.literate.source import SourceError

ONE = cell("def one():\n    return 1", "tangle")


def outputs(notebook):
    return [
        output.get("text") or output.get("data") or output.evalue
        for cell in code_cells(notebook)
        for output in cell.outputs
    ]


def fails(book, name="first"):
    with pytest.raises(SourceError) as error:
        execute(book, name)
    return str(error.value)


def test_outputs_cache_and_prose(tmp_path, monkeypatch):
    first = page(
        "first",
        ONE,
        cell("one()"),
        cell("import random\nprint(random.random())"),
        cell("1 / 0", "raises-exception"),
    )
    done = execute(small_book(tmp_path, first=first), "first")
    one, number, error = outputs(done)
    assert one == {"text/plain": "1"}
    assert error == "division by zero"
    assert done.metadata["execution"]["seconds"] > 0

    edited = first.replace("# First", "# First\n\nOther prose.")
    again = execute(small_book(tmp_path, first=edited), "first")
    assert outputs(again)[1] == number
    assert "Other prose." in again.cells[0].source

    told = "ran again"
    monkeypatch.setattr(module, "run_cells", lambda *_: pytest.fail(told))
    execute(small_book(tmp_path, first=edited), "first")
    folded = edited.replace("raises-exception", "raises-exception, hide-cell")
    execute(small_book(tmp_path, first=folded), "first")
    kept = edited.replace("raises-exception", "hide-cell")
    with pytest.raises(pytest.fail.Exception, match=told):
        execute(small_book(tmp_path, first=kept), "first")


@pytest.mark.slow
def test_a_changed_cell_or_library_runs_again(tmp_path, monkeypatch):
    second = page("second", cell("from companion.layers import one\none()"))
    book = small_book(tmp_path, first=page("first", ONE), second=second)
    assert outputs(execute(book, "second")) == [{"text/plain": "1"}]
    longer = page("first", "A new paragraph.\n", ONE)
    book = small_book(tmp_path, first=longer, second=second)
    with monkeypatch.context() as patch:
        told = "a paragraph of another chapter ran it again"
        patch.setattr(module, "run_cells", lambda *_: pytest.fail(told))
        execute(book, "second")
    other = ONE.replace("return 1", "return 11")
    book = small_book(tmp_path, first=page("first", other), second=second)
    assert outputs(execute(book, "second")) == [{"text/plain": "11"}]


@pytest.mark.slow
def test_a_damaged_cache_is_rebuilt(tmp_path):
    book = small_book(tmp_path, first=page("first", cell("6 * 7")))
    execute(book, "first")
    cache = tmp_path / "_build/executed/first-stage.ipynb"
    cache.write_text('{"cells": [')
    assert outputs(execute(book, "first")) == [{"text/plain": "42"}]


@pytest.mark.slow
def test_a_chapter_sees_nothing_later(tmp_path):
    early = page("early", cell("import companion.data"))
    late = page("late", cell("def name():\n    return 0", "tangle"))
    book = small_book(tmp_path, early=early, late=late)
    message = fails(book, "early")
    assert message.startswith(
        "chapters/early.md:9: ModuleNotFoundError: "
        "No module named 'companion.data'"
    )
    final = execute(book, "early", library="final")
    assert final.cells[-1].execution_count == 1


def test_a_failure_names_the_line_of_the_chapter(tmp_path):
    first = page(
        "first",
        cell("def half(n):\n    assert n % 2 == 0, 'odd'\n    return n // 2"),
        cell("x = 3\nhalf(x)"),
    )
    message = fails(small_book(tmp_path, first=first))
    assert message.startswith("chapters/first.md:10: AssertionError: odd\n")
    assert "chapters/first.md:17" in message
    assert "Cell In[" not in message and "\x1b" not in message


def test_a_cell_that_the_page_does_not_have(tmp_path):
    source = 'raise ValueError("in Cell In[99], line 3")'
    message = fails(small_book(tmp_path, first=page("first", cell(source))))
    assert message.startswith(
        "chapters/first.md:9: ValueError: in Cell In[99], line 3\n")


def test_a_syntax_error_names_its_line(tmp_path):
    first = page("first", cell("x = 1\n%matplotlib inline\nx = = 2"))
    message = fails(small_book(tmp_path, first=first))
    assert message.startswith("chapters/first.md:11: SyntaxError: ")


def test_a_failure_in_the_library_names_both_places(tmp_path):
    first = page(
        "first", cell('def check():\n    raise ValueError("no")', "tangle")
    )
    second = page(
        "second", cell("from companion.layers import check\ncheck()")
    )
    message = fails(small_book(tmp_path, first=first, second=second), "second")
    assert message.startswith("chapters/second.md:10: ValueError: no\n")
    assert "\nFile companion/layers.py:" in message
    assert str(tmp_path) not in message


def test_an_error_that_ipython_cannot_print(tmp_path):
    """It looks for the lines of a lambda inside a string, in vain."""
    source = 'print(f"{1}"\n      f"{(lambda: missing)()}")\ny = 2'
    message = fails(small_book(tmp_path, first=page("first", cell(source))))
    place, _, found = message.partition(": ")
    assert place in ("chapters/first.md:9", "chapters/first.md:10")
    assert found.startswith("NameError: name 'missing' is not defined\n")


def test_what_should_raise_and_does_not(tmp_path):
    first = page("first", cell("1 + 1", "raises-exception"))
    assert fails(small_book(tmp_path, first=first)) == (
        "chapters/first.md:10: the cell is tagged raises-exception and "
        "raised nothing: remove the tag, or let it fail"
    )


@pytest.mark.slow
def test_a_cell_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CELL_TIMEOUT", 1)
    first = page("first", cell("1"), cell("while True:\n    pass"))
    assert fails(small_book(tmp_path, first=first)) == (
        "chapters/first.md:14: ran longer than 1 s"
    )


@pytest.mark.slow
def test_a_kernel_that_dies(tmp_path):
    first = page("first", cell("import os\nos._exit(3)"))
    assert fails(small_book(tmp_path, first=first)) == (
        "chapters/first.md:9: the kernel died in this cell"
    )


def test_figures_are_transparent_svg_with_real_text(tmp_path):
    first = page(
        "first",
        cell(
            "import matplotlib.pyplot as plt\n"
            "plt.plot([1, 2])\n"
            "plt.title('a title')\n"
            "plt.show()"
        ),
    )
    (data,) = outputs(execute(small_book(tmp_path, first=first), "first"))
    svg = data["image/svg+xml"]
    assert ">a title</text>" in svg
    assert "#ffffff" not in svg and f"#{module.INK}" in svg
    assert data["text/plain"] == "<Figure size 640x480 with 1 Axes>"


def gpu_book(folder):
    return small_book(
        folder, first=page("first", cell("print(2 ** 9)", "gpu"))
    )


@pytest.mark.slow
def test_gpu_cells_run_where_there_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gpu_name", lambda: "Some GPU")
    done = execute(gpu_book(tmp_path), "first")
    assert outputs(done) == ["512\n"]
    recorded = done.cells[-1].metadata["recorded"]
    assert recorded["device"] == "Some GPU"
    assert recorded["source"] == module.hashed("print(2 ** 9)")[:12]


@pytest.mark.slow
def test_gpu_cells_show_the_record_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gpu_name", lambda: "Some GPU")
    book = gpu_book(tmp_path)
    record = tmp_path / "site/notebooks/first.ipynb"
    record.parent.mkdir(parents=True)
    nbformat.write(execute(book, "first"), record)

    monkeypatch.setattr(module, "gpu_name", lambda: None)
    note, text = outputs(execute(book, "first"))
    source = module.hashed("print(2 ** 9)")[:12]
    assert note["text/plain"].startswith("Recorded on Some GPU, 20")
    assert note["text/plain"].endswith(f"; source {source}")
    assert text == "512\n"

    edited = page("first", cell("print(2 ** 10)", "gpu"))
    book = small_book(tmp_path, first=edited)
    note, text = outputs(execute(book, "first"))
    assert note["text/plain"].endswith("an earlier version of this cell")


def test_gpu_cells_never_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gpu_name", lambda: None)
    (note,) = outputs(execute(gpu_book(tmp_path), "first"))
    assert note["text/plain"].startswith("Not run here")


def test_a_chapter_says_whether_it_ran(tmp_path, monkeypatch, capsys):
    small_book(tmp_path, first=page("first", cell("1")))
    monkeypatch.chdir(tmp_path)
    assert main(["first"]) == 0
    told, ran = capsys.readouterr().out.splitlines()
    assert told == "1 of 1 chapters to execute, for the first time:"
    assert ran.startswith("first: executed in ")
    assert main(["first"]) == 0
    assert capsys.readouterr().out == "first: unchanged\n"
    assert main(["other"]) == 1


def test_a_failure_is_told_beside_what_ran(tmp_path, monkeypatch, capsys):
    small_book(
        tmp_path,
        first=page("first", cell("1 / 0")),
        second=page("second", cell("1")),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "processors", lambda: 2)
    assert main([]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("chapters/first.md:9: ZeroDivisionError: ")
    assert "second: executed in " in told.out


IN_TURN = """\
import time
from pathlib import Path
here, there = (Path({folder!r}, name) for name in {names})
alone = Path({folder!r}, "alone")
"""
MEET = """\
here.with_suffix(".here").touch()
waited = 0
while not there.with_suffix(".here").exists():
    waited += 1
    assert waited < 6000, "the other chapter is not running"
    time.sleep(0.01)
"""
ORDINARY = """\
here.touch()
assert not alone.exists(), "beside a cell that takes the time"
time.sleep(0.02)
assert not alone.exists(), "joined by a cell that takes the time"
here.unlink()
"""
TIMED = """\
alone.touch(exist_ok=False)
assert not there.exists(), "beside a neighbour"
time.sleep(0.02)
assert not there.exists(), "joined by a neighbour"
alone.unlink()
"""


@pytest.mark.slow
def test_chapters_overlap_and_timed_cells_do_not(tmp_path, monkeypatch):
    def chapter(name, other):
        start = IN_TURN.format(folder=str(tmp_path), names=[name, other])
        turns = [cell(ORDINARY), cell(TIMED, "timing")] * 8
        return page(name, cell(start), cell(MEET), *turns)

    first, second = chapter("first", "second"), chapter("second", "first")
    small_book(tmp_path, first=first, second=second)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "processors", lambda: 2)
    monkeypatch.delenv("COMPANION_CROWDED", raising=False)
    assert main([]) == 0


@pytest.mark.parametrize("crowded", [False, True])
def test_only_a_cell_that_takes_the_time_is_alone(
    tmp_path, monkeypatch, crowded
):
    """And not even that one where nobody reads the times, as in CI."""
    monkeypatch.delenv("COMPANION_CROWDED", raising=False)
    if crowded:
        monkeypatch.setenv("COMPANION_CROWDED", "1")
    asked, enter = [], Room.enter

    def note(room, alone=False):
        asked.append(alone)
        enter(room, alone)

    monkeypatch.setattr(Room, "enter", note)
    cells = cell("1"), cell("2", "varies"), cell("3", "timing")
    execute(small_book(tmp_path, first=page("first", *cells)), "first")
    # the first: the kernel
    assert asked == [False, False, False, not crowded]


HOLD = """\
import subprocess, sys, time
from pathlib import Path
from companion.literate.execute import Room
with Room(Path(sys.argv[1])) as room:
    room.enter(alone=True)
    kernel = subprocess.Popen([sys.executable, "-c", "input()"],
                              stdin=subprocess.PIPE)
    print("alone", flush=True)
    time.sleep(600)
"""


def test_what_is_killed_leaves_nothing_locked(tmp_path, root):
    command = [sys.executable, "-c", HOLD, tmp_path]
    env = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as held:
        assert held.stdout.readline() == b"alone\n"
        held.kill()
    with Room(tmp_path) as room:  # waits for ever if it does not hold
        room.enter(alone=True)


WAITING = """\
import os, pathlib, time
pathlib.Path({!r}).write_text(f"{{os.getpid()}} {{os.getppid()}}")
time.sleep(600)"""


def alive(process):
    """Whether there is a process of that number, other than a zombie."""
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2][1] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_what_is_killed_takes_its_workers_along(tmp_path, root):
    told = tmp_path / "told"
    waiting = cell(WAITING.format(str(told)))
    small_book(tmp_path, first=page("first", waiting))
    command = [sys.executable, "-m", "companion", "execute", "first"]
    env = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=tmp_path, env=env) as run:
        while not (told.exists() and told.read_text()):
            assert run.poll() is None
            time.sleep(0.1)
        run.kill()
    kernel, worker = told.read_text().split()
    for process in (worker, kernel):
        for _ in range(600):
            if not alive(process):
                break
            time.sleep(0.1)
        assert not alive(process)


@pytest.mark.parametrize("where", ["run_cells", "mkstemp"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "_build/x")

    owner = write.tempfile if where == "mkstemp" else module
    small_book(tmp_path, first=page("first", cell("1")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(owner, where, full)
    assert main(["first"]) == 1
    told = capsys.readouterr().err
    assert told == (
        "_build/x: No space left on device: mend that, and run it again\n"
    )


def test_the_packages_that_count(tmp_path):
    def counted(source):
        book = small_book(tmp_path, first=page("first", cell(source)))
        found = module.packages(book.chapter("first"), {})
        return {line.partition("==")[0].lower() for line in found}

    plain = counted("x = 1")
    assert "ipykernel" in plain and "ipython" in plain
    assert not {"numpy", "matplotlib", "pytest", "ruff"} & plain
    drawn = counted("import matplotlib.pyplot as plt")
    assert {"matplotlib", "numpy", "pillow"} <= drawn
    assert "pytest" in counted('there = find_spec("pytest")')
    library = {"companion/layers.py": ["from safetensors import numpy"]}
    book = small_book(tmp_path, first=page("first", cell("x = 1")))
    staged = module.packages(book.chapter("first"), library)
    assert any(line.startswith("safetensors==") for line in staged)


def test_what_a_run_is_expected_to_take(tmp_path):
    book = small_book(tmp_path, first=page("first", cell("1")))
    run = module.Run(book, "first")
    assert run.expected() is None
    record = tmp_path / "site/notebooks/first.ipynb"
    record.parent.mkdir(parents=True)
    record.write_text(
        '{"cells": [], "metadata": {"seconds": 7}, '
        '"nbformat": 4, "nbformat_minor": 5}'
    )
    assert run.expected() == 7
    run.done()
    assert 0 < run.expected() < 7


@pytest.mark.parametrize("end", "\f\x85\u2028")
def test_what_ends_a_line_elsewhere_stays_in_a_cell(tmp_path, end):
    book = small_book(tmp_path, first=page("first", cell(f"x = 'a{end}b'")))
    (ran,) = code_cells(module.as_notebook(book.chapter("first")))
    assert ran.source == book.chapter("first").cells[0].source
    assert ran.source == f"x = 'a{end}b'"
