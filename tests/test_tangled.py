"""What was read and tangled is kept from run to run, as long as it holds."""

import pytest
from small_book import cell, page, small_book

from companion.literate import tangle as tangling
from companion.literate.tangle import KEPT, read_book, tangle, tangled


@pytest.fixture
def folder(tmp_path):
    small_book(tmp_path, first=page("first", cell("def f(): return 1",
                                                  "tangle")))
    return tmp_path


@pytest.fixture
def readings(monkeypatch):
    """How often a book was read."""
    found = []
    monkeypatch.setattr(tangling, "read_book",
                        lambda root: found.append(root) or read_book(root))
    return found


def test_the_second_time_nothing_is_read(folder, readings):
    book, library = tangled(folder)
    again, kept = tangled(folder)
    assert len(readings) == 1
    assert again.chapters == book.chapters and again.root == folder
    assert kept.written == library.written == tangle(book).written
    assert [d.name for d in kept.definitions] == [
        d.name for d in library.definitions]


def test_seen_from_elsewhere_it_is_the_same_book(folder, readings,
                                                 monkeypatch):
    tangled(folder)
    monkeypatch.chdir(folder)
    book, _ = tangled()
    assert len(readings) == 1 and book.root.resolve() == folder


@pytest.mark.parametrize("file", [
    "chapters/first.md", "_toc.yml", "_config.yml", "intro.md"])
def test_what_changed_is_read_again(folder, readings, file):
    tangled(folder)
    with (folder / file).open("a") as text:
        text.write("\n# more\n")
    tangled(folder)
    assert len(readings) == 2


def test_a_new_page_is_an_error_again(folder):
    tangled(folder)
    (folder / "chapters/other.md").write_text("# Other\n")
    with pytest.raises(tangling.SourceError, match=r"not in _toc\.yml"):
        tangled(folder)


def test_other_tools_begin_anew(folder, readings, monkeypatch, tmp_path):
    tangled(folder)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "tangle.py").write_text("# newer\n")
    monkeypatch.setattr(tangling, "__file__", str(tools / "tangle.py"))
    tangled(folder)
    assert len(readings) == 2


@pytest.mark.parametrize("damage", [
    lambda kept: kept[:-1], lambda kept: kept[:100], lambda kept: b"",
    lambda kept: kept[:-1] + bytes([kept[-1] ^ 1]),
    lambda kept: kept[:64] + b"0" * 64 + kept[128:]])
def test_what_is_damaged_is_made_anew(folder, readings, damage):
    _, library = tangled(folder)
    path = folder / KEPT
    path.write_bytes(damage(path.read_bytes()))
    assert tangled(folder)[1].written == library.written
    assert len(readings) == 2


def test_a_folder_that_cannot_be_written(folder, monkeypatch):
    def refuse(path, content):
        raise PermissionError(path)

    monkeypatch.setattr(tangling, "replace_file", refuse)
    assert tangled(folder)[1].files and not (folder / KEPT).exists()
