"""A stage holds what the chapters before it define, and nothing later."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_book import cell, page, small_book

from companion.literate.stage import main, stage
from companion.literate.write import replace_file

FIRST = page("first", cell("def one():\n    return 1", "tangle"))
SECOND = page("second", cell("def two():\n    return 2 * one()", "tangle"))


@pytest.fixture
def book(tmp_path):
    return small_book(tmp_path, first=FIRST, second=SECOND)


def python(folder, code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def names(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_the_prefix_property(book):
    folder = stage(book, "second")
    assert folder == book.root / "_build/stage/second"
    assert "companion/layers.py" in names(folder)
    assert "companion/losses.py" not in names(folder)
    ran = python(folder, "import companion.losses")
    assert "No module named 'companion.losses'" in ran.stderr


def test_no_name_means_the_whole_library(book):
    ran = python(
        stage(book, None), "from companion.losses import two; print(two())"
    )
    assert ran.stdout == "2\n"


def test_a_book_without_tools_is_lent_ours(book):
    code = "from companion.literate import test; print(test.__name__)"
    assert python(stage(book, "first"), code).stdout == "test\n"
    ran = python(stage(book, "first"), "import companion.tensor")
    assert "No module named 'companion.tensor'" in ran.stderr


def test_what_is_unchanged_is_not_touched(book):
    folder = stage(book, "second")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.py")}
    stage(book, "second")
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*.py")}
    assert before == after


def test_what_a_chapter_no_longer_defines_goes(tmp_path):
    stage(small_book(tmp_path, first=FIRST, second=SECOND), "second")
    folder = stage(small_book(tmp_path, second=SECOND.replace("one()", "1")),
                   "second")  # fmt: skip
    assert "companion/layers.py" not in names(folder)


def test_many_builders_at_once(book):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: stage(book, "second"), range(16)))
    assert len(set(folders)) == 1
    assert not [name for name in names(folders[0]) if name.endswith(".part")]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.py"
    replace_file(target, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(target, "new \ud800")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.py"]


def test_command(book, monkeypatch, capsys):
    monkeypatch.chdir(book.root)
    assert main(["second"]) == 0
    assert capsys.readouterr().out == "_build/stage/second\n"
    assert main(["third"]) == 1
    error = capsys.readouterr().err
    assert error == "_toc.yml:1: no chapter called 'third'\n"
