# Tangled from tangle: edit there, `make tangle`. sha256:8f191a341bbc
from pathlib import Path
from tempfile import TemporaryDirectory

from companion.literate.names import names_in
from companion.literate.source import Book, check_exercises, read_myst
from companion.literate.tangle import tangle
from companion.literate.write import check, write

TICKS = "`" * 3


def cell(tags, code, *options):
    """A code cell as a chapter holds it."""
    head = f"{TICKS}{{code-cell}} python\n:tags: [{tags}]"
    return "\n".join([head, *options, code, TICKS, "", ""])


def page(module, *cells):
    """A chapter that writes to `module`."""
    front = f"---\ncompanion: {{module: {module}}}\n---\n# A page\n\n"
    return front + "".join(cells)


VIEW = """class View:
    def __init__(self, shape):
        self.shape = shape"""
windows = page("view.py", cell("tangle", VIEW))


def example(**pages):
    """A book in memory."""
    read = [read_myst(n, f"chapters/{n}.md", t) for n, t in pages.items()]
    for chapter in read:
        check_exercises(chapter)
    return Book(Path(), tuple(read))


def test_a_cell_counts_its_lines_in_the_chapter():
    found = read_myst("a", "a.md", windows).cells[0]
    lines = windows.split("\n")
    assert lines[found.line - 1] == found.source.split("\n")[0]
    assert str(found.error(2, "odd")) == f"a.md:{found.line + 1}: odd"


def test_scopes_are_those_of_python():
    found = names_in("class A(B):\n    c = 1\n    def f(self): return c")
    assert found == ({"A"}, [("B", 1, True), ("c", 3, False)])
    found = names_in("import a.b\nfor c in (): d = 1")
    assert found.bound == {"a", "c", "d"}


def test_tangling_twice_changes_nothing():
    files = tangle(example(windows=windows)).files
    with TemporaryDirectory() as folder:
        assert write(files, folder) == list(files)
        assert write(files, folder) == []
        assert check(files, folder) == []
