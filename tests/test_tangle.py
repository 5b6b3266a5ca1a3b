"""Tangle: growth, replacement, imports, and every error in one line."""

import ast
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from small_book import cell

import companion
from companion.__main__ import COMMANDS
from companion.literate import growth, tangle as command, write as writing
from companion.literate.floors import FLOORS
from companion.literate.names import line_of, names_in
from companion.literate.origin import annotate, origin
from companion.literate.source import Cell, SourceError, read_book
from companion.literate.tangle import tangle
from companion.literate.write import check, write
from companion.timing import row_of

ROOT = Path(__file__).parents[1]
FRONT = "---\ncompanion: {{module: {}}}\n---\n# Title\n\n"  # 5 lines


def save_book(root, **pages):
    """Write a book; a page is its module and its cells."""
    (root / "chapters").mkdir(parents=True, exist_ok=True)
    for name, (module, *cells) in pages.items():
        text = FRONT.format(module) + "".join(cells)
        (root / f"chapters/{name}.md").write_text(text)
    files = "".join(f"- file: chapters/{name}\n" for name in pages)
    toc = f"format: jb-book\nroot: intro\nchapters:\n{files}"
    (root / "_toc.yml").write_text(toc)
    (root / "intro.md").write_text("# Intro\n")
    return read_book(root)


def grown(root, *cells, module="view.py", **pages):
    """The text of the file that cells of one page become."""
    book = save_book(root, a=(module, *cells), **pages)
    text = tangle(book).files[f"companion/{module}"]
    return text.split("\n", 1)[1]


def code(source, **options):
    """A tangled cell."""
    return cell(source, "tangle", **options)


def bare(text):
    """A text, blank lines merged."""
    return re.sub(r"\n+", "\n", text).strip()


def plain(text):
    """A file without its header and its origins."""
    text = re.sub(r'(?m)^#line \d+ "\S+"', "", text)
    return bare(text.split("\n", 1)[1])


def complaint(root, *cells, **pages):
    """The error that a book of these cells meets."""
    with pytest.raises(SourceError) as error:
        tangle(save_book(root, a=("view.py", *cells), **pages))
    return str(error.value)


VIEW = code('class View:\n    """A window."""\n\n    size = 1')
GROW = code("@extend\nclass View:\n    def first(self):\n        return 1")


def test_a_class_grows_where_it_stands(tmp_path):
    assert grown(tmp_path, VIEW, code("LAST = 1"), GROW) == '''\
class View:
    """A window."""

    size = 1

    def first(self):
        return 1


LAST = 1
'''


def test_a_class_grows_from_another_chapter(tmp_path):
    book = save_book(
        tmp_path, a=("view.py", VIEW), b=("buffer.py", GROW, code("B = View")))
    files = tangle(book).files
    assert "def first" in files["companion/view.py"]
    assert "from companion.view import View" in files["companion/buffer.py"]
    assert "first" not in files["companion/buffer.py"]


def test_a_member_takes_the_place_of_the_old(tmp_path):
    old = code("class View:\n    def a(self): ...\n\n    def b(self): ...")
    new = "@extend\nclass View:\n    def a(self):\n        return 2"
    text = grown(tmp_path, old, code(new, replaces="View.a"))
    assert bare(text) == (
        "class View:\n    def a(self):\n        return 2\n"
        "    def b(self): ...")


def test_functions_classes_and_entries_are_replaced(tmp_path):
    first = code("T = {}\nA = 1\nT[A] = 0\n\n\ndef f(): ...\n\n\nclass C:\n"
                 "    x = 1")
    second = code("class C:\n    y = 2\n\n\ndef f(): return 2\nT[A] = 3\n",
                  replaces="C, f, T[A]")
    assert bare(grown(tmp_path, first, second)) == (
        "A = 1\ndef f(): return 2\nclass C:\n    y = 2\n"
        "T = {\n    A: 3,\n}")


def test_a_table_is_printed_whole(tmp_path):
    table = code("T = {\n    1: 2,\n}\nU = {}\nB = len(U)")
    aligned = code('# why\nT["ä"] = (f,\n          3)  # so\n'
                   "U[0] = [\n    g(),\n]")
    late = code("def f(): ...\n\n\ndef g(): ...")
    assert bare(grown(tmp_path, table, late, aligned)) == (
        "def g(): ...\n"
        "U = {\n    0: [\n        g(),\n    ],\n}\nB = len(U)\ndef f(): ...\n"
        'T = {\n    1: 2,\n    # why\n    "ä": (f,\n          3),  # so\n}')


def test_entries_that_share_a_value_are_printed_in_their_table(tmp_path):
    table = code("T: dict[str, int] = {}\nB = 1")
    more = code('T |= dict.fromkeys(("a", "b"), 1)\nT["c"] = 2\n'
                "# why\nT |= dict.fromkeys((\n    3,\n    4), 5)")
    assert bare(grown(tmp_path, table, more)) == (
        'B = 1\nT: dict[str, int] = {\n    **dict.fromkeys(("a", "b"), 1),\n'
        '    "c": 2,\n    # why\n    **dict.fromkeys((\n        3,\n'
        "        4), 5),\n}")


def test_an_entry_made_from_its_own_table_waits_for_it(tmp_path):
    first = code("T = {}\nT[1] = 2\nU = {}\nU[1] = 2")
    later = code("T[3] = T[1]\nT[4] = 1\nU |= dict.fromkeys(U, 3)\nU[2] = 1")
    found = bare(grown(tmp_path, first, later))
    scope = {}
    exec(found, scope)
    assert scope["T"] == {1: 2, 3: 2, 4: 1} and scope["U"] == {1: 3, 2: 1}


@pytest.mark.parametrize("text", ['T[1] = """\n"""', "T[1], T[3] = 1, 3"])
def test_a_table_stays_above_what_cannot_join_it(tmp_path, text):
    found = grown(tmp_path, code("T = {}"), code(text), code("T[2] = 2"))
    scope = {}
    exec(bare(found), scope)
    assert scope["T"][2] == 2


def test_an_entry_stays_where_its_table_cannot_take_it(tmp_path):
    cells = (
        code("T = {1: 2}\nT[2] = 3"),  # no room before the brace
        code("U = dict(a=1)\nU[2] = 3"),
        code("V = {}\nV[1] = 0\nV |= {1: 1}\nV[2] = 2"),
        code('W = {}\nW[1] = """\n"""'),
        code("X = {}\nX[1], X[2] = 3, 4"),
    )
    assert bare(grown(tmp_path, *cells)) == (
        "T = {1: 2}\nT[2] = 3\nU = dict(a=1)\nU[2] = 3\n"
        "V = {\n    1: 0,\n}\nV |= {1: 1}\nV[2] = 2\n"
        'W = {}\nW[1] = """\n"""\nX = {}\nX[1], X[2] = 3, 4')


def test_an_entry_of_a_table_is_replaced(tmp_path):
    first = code("T = {}\nT[1] = 1\nT[2] = 2")
    second = code("T[1] = 3", replaces="T[1]")
    assert bare(grown(tmp_path, first, second)) == (
        "T = {\n    1: 3,\n    2: 2,\n}")
    assert "T[1] is already defined at chapters/a.md:9" in complaint(
        tmp_path, first, code("T[1] = 3"))


def test_what_runs_at_import_finds_what_it_needs(tmp_path):
    late = code("def make(n):\n    return helper\n\n\nhelper = 2")
    grow = code("@extend\nclass View:\n    one = make(1)")
    lines = bare(grown(tmp_path, VIEW, late, grow)).split("\n")
    starts = [line for line in lines if not line.startswith(" ")]
    assert starts == ["def make(n):", "helper = 2", "class View:"]


def test_the_program_block_stays_last(tmp_path):
    run = code('if __name__ == "__main__":\n    print(C)')
    text = grown(tmp_path, code("C = {}"), run, code("C[1] = 2"))
    assert text.index("1: 2") < text.index("if __name__")


def test_accessors_and_overloads_may_repeat_a_name(tmp_path):
    source = ("class View:\n    @property\n    def a(self): ...\n\n"
              "    @a.setter\n    def a(self, x): ...")
    assert grown(tmp_path, code(source)).count("def a") == 2


def test_tests_lose_their_decorator(tmp_path):
    book = save_book(tmp_path, a=(
        "view.py", VIEW, cell("@test\ndef test_v():\n    View()", "test")))
    text = tangle(book).files["tests/chapters/test_a.py"]
    assert text.split("\n", 1)[1] == """\
from companion.view import View


def test_v():
    View()
"""


def test_imports_are_gathered_merged_and_sorted(tmp_path):
    shown = cell("from __future__ import annotations\nimport numpy as np")
    first = code("import sys\nfrom math import pi\n\nX = np.e, sys")
    second = code("import os\nfrom math import e, PI\n\nY = os, e, pi")
    assert grown(tmp_path, shown, first, second) == """\
from __future__ import annotations

import os
import sys
from math import PI, e, pi

import numpy as np

X = np.e, sys

Y = os, e, pi
"""


def test_names_with_numbers_stand_in_their_order(tmp_path):
    one = ("dtype.py", code("int32 = 2\nint8 = 1\nint64 = 3"))
    two = ("buffer.py", code("S = int64, int8, int32"))
    files = tangle(save_book(tmp_path, a=one, b=two)).files
    assert "import int8, int32, int64\n" in files["companion/buffer.py"]


def test_a_name_of_an_earlier_chapter_is_imported(tmp_path):
    one = ("view.py", VIEW)
    two = ("buffer.py", cell("from companion import View"), code("B = View"))
    files = tangle(save_book(tmp_path, a=one, b=two)).files
    assert "from companion.view import View" in files["companion/buffer.py"]


def test_a_builtin_is_not_imported(tmp_path):
    one = ("view.py", code("def sum(x): ..."))
    two = ("buffer.py", code("B = sum([1])"))
    files = tangle(save_book(tmp_path, a=one, b=two)).files
    assert "import" not in files["companion/buffer.py"]


SCOPES = """
import os
def f(a, b=D1, *args: A1, k: Q[int] = D2, **kw) -> R1:
    x = [i + y for i in range(a) for y in os.listdir(i) if G1]
    def g(): return x, G2, h
    h = lambda z=D3: z + w + G3
    try: pass
    except E1 as e: str(e)
    match a:
        case C1(p=q, r=[*rest]): return q, rest
        case {"k": v, **more}: return v, more
        case K.V as m: return m
    with W1 as (t, u): t, u
    if (n := a): n
    global GG
    GG = 1
@D4
class C(B1, metaclass=M1):
    attr: AA = V1
    def m(self): return attr2, attr
    other = [size for size in L1]
    rm = m
TABLE[K1] = V2
y = [zz(i) for i in L2]
"""


def test_free_names_are_those_of_no_scope():
    bound, found = names_in(SCOPES)
    free = {u.name for u in found} - {"os", "range", "str", "int"}
    late = {"E1", "G1", "G2", "G3", "C1", "K", "W1", "D3", "GG", "attr",
            "attr2", "w"}
    now = {"A1", "AA", "B1", "D1", "D2", "D4", "K1", "L1", "L2", "M1", "Q",
           "R1", "TABLE", "V1", "V2", "zz"}
    assert free == late | now
    assert now <= {u.name for u in found if u.now}
    assert {line_of(u, SCOPES) for u in found if u.name == "w"} == {6}
    assert bound >= {"os", "f", "C", "y"}


def test_a_function_may_be_called_top():
    source = "def top():\n    mine = theirs\n    return mine"
    assert [use.name for use in names_in(source).uses] == ["theirs"]


@pytest.mark.parametrize(
    ("cells", "told"),
    {
        (code("x = (1"),): "8: Python cannot read this: '(' was never closed",
        (cell("x = (1"),): "7: Python cannot read this: '(' was never closed",
        (code("return 1"),): "8: Python cannot read this: 'return' outside"
        " function",
        (cell("x = 1\n\ndef f(a, a): ..."),): "9: Python cannot read this:"
        " duplicate argument 'a' in function definition",
        (VIEW, VIEW): "16: View is already defined at chapters/a.md:8:"
        " rename one of them or say `:replaces: View`",
        (VIEW, GROW, GROW): "26: View.first is already defined at"
        " chapters/a.md:18: rename one of them or say"
        " `:replaces: View.first`",
        (code("T = {1: 2}"), code("T[1] = 3")): "13: T[1] is already defined"
        " at chapters/a.md:8: rename one of them or say `:replaces: T[1]`",
        (code("T = {1: 2}"), code("T[1] = 3", replaces="T[1]")): "14: T[1]"
        " is one with T at chapters/a.md:8: replace that whole statement",
        (code("def f(): ...", replaces="g"),): "9: replaces g: no earlier"
        " cell defines it, or this one does not",
        (GROW,): "9: @extend found no class View: define it in an earlier"
        " tangled cell",
        (VIEW, code("@extend\nclass View(A):\n    x = 1")): "17: @extend"
        " class View has bases or a docstring: write them where it is"
        " defined",
        (code("def f():\n    return other"),): "9: other is defined nowhere:"
        " define or import it",
        (code("total = 1"), code("y = totl")): "13: totl is defined nowhere:"
        " define or import it (did you mean total?)",
        (cell("n = 3"), code("y = n")): "12: n comes from the untagged cell"
        " at line 7: tag it",
        (code("import os as x"), code("import re as x")): "13: x is imported"
        " from os and from re: rename one",
    }.items(),
)
def test_bad_cell(tmp_path, cells, told):
    assert complaint(tmp_path, *cells) == f"chapters/a.md:{told}"


C_ONE = code("%%c kernels/a.c\n#include <math.h>\nint f(int n) { return n; }")
C_TWO = code("%%c kernels/a.c -O3\nint f(int n) { return 2 * n; }")
C_NEW = code("%%c kernels/a.c\nint f(int n) { return 3; }", replaces="f")


def test_c_cells_accumulate_with_their_lines(tmp_path):
    more = code("%%c kernels/a.c\nint g(void) { return f(1); }")
    text = grown(tmp_path, C_ONE, more, module="kernels/a.c")
    assert text == """\
#line 9 "chapters/a.md"
#include <math.h>
int f(int n) { return n; }

#line 16 "chapters/a.md"
int g(void) { return f(1); }
"""


def test_two_cells_that_claim_one_c_symbol(tmp_path):
    assert complaint(tmp_path, C_ONE, C_TWO) == (
        "chapters/a.md:16: f is already defined at chapters/a.md:9: rename"
        " one of them or say `:replaces: f`")


def test_a_c_cell_takes_the_place_of_the_old(tmp_path):
    text = grown(tmp_path, C_ONE, C_NEW, module="kernels/a.c")
    assert "return 3" in text and "return n" not in text


def run(root, *words, code="", **options):
    """`python -m companion tangle`, in the folder of a book."""
    program = [sys.executable, "-c", code] if code else [
        sys.executable, "-m", "companion", "tangle"]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*program, *words], cwd=root, text=True, env=path,
                          capture_output=True, **options)


def told(root, *words):
    """What the command says when it fails."""
    result = run(root, *words)
    assert result.returncode == 1
    return result.stderr.strip() or result.stdout.strip()


def test_c_that_does_not_compile(tmp_path, need):
    bad = code("%%c kernels/a.c\nint f(void)\n{\n    return x;\n}")
    save_book(tmp_path, a=("view.py", VIEW, bad))
    error = told(tmp_path, "--out", "lib")
    assert error.startswith(
        "chapters/a.md:19: the C compiler cannot read this: ")
    assert "x" in error.split("read this: ")[1]
    assert not (tmp_path / "lib").exists()


CUDA = """%%cuda kernels/a.cu
#include <cuda_fp16.h>
__global__ void fill(int n, float *x)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = VALUE;
}"""


@pytest.mark.parametrize(("source", "line", "word"), [
    (CUDA.replace("VALUE", "1.0f"), None, None),
    (CUDA.replace(".cu\n", ".cu -DVALUE=1.0f\n"), None, None),
    (CUDA.replace("/a.cu\n", "/a.cuh -DVALUE=1.0f\n"), None, None),
    (CUDA, 22, "VALUE"),
    (CUDA.replace("VALUE", "i +"), 22, "expected"),
    (CUDA.replace("blockDim.x", "blockDin.x"), 20, "blockDin"),
    ("%%c kernels/a.h\nint f(int *restrict x);", None, None),
    ("%%c kernels/a.h -DN=3\nstatic int x[N];", None, None),
    ("%%c kernels/a.h\nstatic int x[N];", 17, "N"),
])
def test_cuda_and_headers_are_read_as_well(tmp_path, source, line, word):
    save_book(tmp_path, a=("view.py", VIEW, code(source)))
    result = run(tmp_path, "--out", "lib")
    assert result.returncode == (line is not None), result.stderr
    if line:
        assert re.match(rf"chapters/a\.md:{line}: the C(\+\+)? compiler"
                        rf" cannot read this: .*{word}", result.stderr)
        assert not (tmp_path / "lib").exists()


def test_the_books_own_emulated_card_is_used(tmp_path):
    card = code("%%cuda kernels/emulator.h\n#define __global__\n"
                "enum { LANES = 3 };")
    kernel = code("%%cuda kernels/a.cu\n__global__ void f(int *x)\n"
                  "{\n    x[0] = LANES;\n    y = 1;\n}")
    save_book(tmp_path, a=("view.py", card, kernel))
    assert told(tmp_path, "--out", "lib").startswith(
        "chapters/a.md:19: the C++ compiler cannot read this: ")


TENSOR = ("tensor.py", code("class Tensor:\n    x = 1"))


def test_an_import_that_climbs_a_floor(tmp_path):
    cells = cell("import os"), code("def f():\n    return Tensor")
    assert complaint(tmp_path, *cells, b=TENSOR) == (
        "chapters/a.md:13: companion/view.py stands on floor 0 and cannot"
        " import companion/tensor.py, on floor 2: move one of the two")


def test_a_module_without_a_plan_stands_where_its_imports_put_it(tmp_path):
    mine = code("def f():\n    return Tensor", file="mine.py")
    more = code("def g():\n    return f", file="more.py")
    low = code("n = 1", file="low.py")
    book = save_book(tmp_path, a=("view.py", mine, more, low), b=TENSOR)
    assert tangle(book).floors == {
        "companion/mine.py": 2, "companion/more.py": 2,
        "companion/low.py": 0, "companion/tensor.py": 2}


def test_what_stands_below_cannot_import_a_module_without_a_plan(tmp_path):
    mine = code("def f():\n    return Tensor", file="mine.py")
    assert complaint(tmp_path, mine, code("g = f"), b=TENSOR) == (
        "chapters/a.md:15: companion/view.py stands on floor 0 and cannot"
        " import companion/mine.py, on floor 2: move one of the two")


def test_every_planned_room_is_on_one_floor():
    rooms = " ".join(FLOORS).split()
    assert len(rooms) == len(set(rooms))
    stand = tangle(read_book(ROOT)).floors
    planned = {"companion/tensor/random.py": 2, "companion/gpu.py": 4}
    assert planned.items() <= stand.items()
    assert {f for f in stand if "literate" in f or "__" in f} == {
        "companion/tensor/__init__.py", "companion/nn/__init__.py",
        "companion/utils/__init__.py"}


def test_a_tool_that_imports_the_framework(tmp_path):
    tool = code("from companion.tensor import Tensor\n\nx = Tensor",
                file="literate/x.py")
    assert complaint(tmp_path, tool, b=TENSOR) == (
        "chapters/a.md:9: companion/literate/x.py stands beside the house"
        " and cannot import companion/tensor.py, on floor 2: move one of the"
        " two")


def test_a_front_reads_its_rooms_last(tmp_path):
    """Unless it needs a name at once; a room that does is in a circle."""
    front = code("def f():\n    return g", file="tensor/__init__.py")
    rooms = [code("def g():\n    return f", file="tensor/room.py"),
             code("def n():\n    return 3", file="tensor/early.py"),
             code("three = n()", file="tensor/__init__.py")]
    book = save_book(tmp_path, a=("view.py", front, *rooms))
    text = tangle(book).files["companion/tensor/__init__.py"]
    early, late = [text.index(f"from companion.tensor.{room} import")
                   for room in ("early", "room")]
    assert early < text.index("def f") < text.index("three") < late


def test_a_circle_of_two_rooms(tmp_path):
    one = code("def f():\n    return g", file="tensor/one.py")
    two = code("def g():\n    return f", file="tensor/two.py")
    assert "import cycle companion/tensor/" in complaint(tmp_path, one, two)


def test_an_import_cycle(tmp_path):
    other = ("buffer.py", code("class Buffer:\n    view = View"))
    grow = code("@extend\nclass View:\n    def b(self):\n"
                "        return Buffer")
    assert complaint(tmp_path, VIEW, grow, b=other) == (
        "chapters/a.md:19: import cycle companion/view.py → companion/buffer"
        ".py → companion/view.py, by way of Buffer: move what both need down")


LAYER = ("layers.py", code("class Layer:\n    size = 1"))
ADAM = ("optim.py", code("class Adam:\n    def step(self):\n"
                         "        return Layer"))
EARLY = code("def fit():\n    return Adam", file="layers.py")


@pytest.mark.parametrize("pages", [
    {"a": (*LAYER, EARLY), "b": ADAM},
    {"first": LAYER, "a": ("layers.py", EARLY), "b": ADAM},
    {"first": LAYER, "a": ("view.py", EARLY), "b": ADAM,
     "c": ("data.py", code("x = Layer, Adam"))},
])
def test_a_cycle_is_blamed_on_the_page_that_asks_too_early(tmp_path, pages):
    book = save_book(tmp_path, **pages)
    page = (tmp_path / "chapters/a.md").read_text().split("\n")
    line = 1 + page.index("    return Adam")
    with pytest.raises(SourceError) as error:
        tangle(book)
    assert str(error.value) == (
        f"chapters/a.md:{line}: import cycle companion/layers.py →"
        " companion/optim.py → companion/layers.py, by way of Adam:"
        " move what both need down")


def test_a_cycle_is_blamed_on_the_page_that_closed_it(tmp_path):
    late = code("@extend\nclass Layer:\n    def train(self):\n"
                "        return Adam")
    with pytest.raises(SourceError) as error:
        tangle(save_book(tmp_path, a=LAYER, b=ADAM, c=("data.py", late)))
    assert str(error.value).startswith("chapters/c.md:11: import cycle"
                                       " companion/layers.py → companion/o")


def test_a_name_that_two_modules_define(tmp_path):
    one = ("dtype.py", code("x = 1"))
    two = ("ops.py", code("x = 2"))
    told = complaint(tmp_path, code("y = x"), b=one, c=two)
    assert told == (
        "chapters/a.md:8: x is defined in companion/dtype.py and"
        " companion/ops.py: import the one meant on the page")
    shown = cell("from companion.ops import x")
    text = grown(tmp_path, shown, code("y = x"), b=one, c=two)
    assert text.startswith("from companion.ops import x\n")


def test_a_name_means_what_its_own_page_defines(tmp_path):
    one = ("dtype.py", code("x = 1"))
    two = ("ops.py", code("x = 2"), code("y = x", file="buffer.py"))
    files = tangle(save_book(tmp_path, a=one, b=two)).files
    assert "from companion.ops import x" in files["companion/buffer.py"]


def test_a_member_is_resolved_by_the_page_that_gives_it(tmp_path):
    one = ("view.py", cell("import math as m"), VIEW,
           code("@extend\nclass View:\n    def a(self):\n"
                "        return m.pi"))
    two = ("buffer.py", cell("import cmath as c"),
           code("@extend\nclass View:\n    def b(self):\n"
                "        return c.pi"))
    text = tangle(save_book(tmp_path, a=one, b=two)).files["companion/view.py"]
    assert "import cmath as c\nimport math as m\n" in text


def test_upto_stops_before_a_chapter(tmp_path):
    pages = {"a": ("view.py", VIEW), "b": ("buffer.py", code("B = View"))}
    book = save_book(tmp_path, **pages)
    assert list(tangle(book, upto="b").files) == ["companion/view.py"]


def test_every_definition_knows_its_places(tmp_path):
    new = "@extend\nclass View:\n    def first(self):\n        return LAST"
    library = tangle(save_book(
        tmp_path, a=("view.py", VIEW, GROW, code("LAST = 2")),
        b=("buffer.py", code(new, replaces="View.first"))))
    rows = {(d.name, d.chapter): d for d in library.definitions}
    old, newer = rows["View.first", "a"], rows["View.first", "b"]
    assert (old.action, old.line) == ("extend", 0)
    assert (newer.action, newer.file) == ("replace", "companion/view.py")
    assert newer.replaced == "chapters/a.md:18"
    assert (newer.after, newer.uses) == ("View.size", {"LAST"})
    for row in rows.values():
        if row.line:
            page = (tmp_path / row.path).read_text().split("\n")
            text = library.files[row.file].split("\n")
            assert text[row.line - 1] == page[row.chapter_line - 1]


# ---------------------------------------------------------------- writing


def test_tangling_twice_changes_nothing(tmp_path):
    book = save_book(tmp_path, a=("view.py", VIEW, GROW))
    assert write(tangle(book).files, tmp_path) == ["companion/view.py"]
    before = (tmp_path / "companion/view.py").stat()
    assert write(tangle(book).files, tmp_path) == []
    after = (tmp_path / "companion/view.py").stat()
    assert (before.st_mtime_ns, before.st_ino) == (
        after.st_mtime_ns, after.st_ino)


def test_only_what_changed_is_written_and_what_is_stale_goes(tmp_path):
    write({"companion/a.py": sealed("a"), "companion/b.py": sealed("b")},
          tmp_path)
    new = {"companion/a.py": sealed("a"), "companion/c.py": sealed("c")}
    changed = ["companion/c.py", "companion/b.py"]
    assert write(new, tmp_path, remove=True) == changed
    assert sorted(p.name for p in (tmp_path / "companion").iterdir()) == [
        "a.py", "c.py"]
    assert not list(tmp_path.glob(".tangle*"))


def sealed(*lines):
    """A generated file's text."""
    return writing.with_header("companion/x.py", ["x"], list(lines))


def test_a_file_edited_by_hand_is_kept(tmp_path):
    save_book(tmp_path, a=("view.py", VIEW, GROW))
    assert run(tmp_path).returncode == 0
    file = tmp_path / "companion/view.py"
    edited = file.read_text().replace("size = 1", "size = 7\n    n = 1")
    file.write_text(edited)
    message = ("companion/view.py:5: edited by hand in line 5-6: move the"
               " edit to the chapter, or `tangle --force` to drop it")
    assert told(tmp_path, "--check") == message
    assert told(tmp_path) == message
    assert file.read_text() == edited
    assert run(tmp_path, "--force").returncode == 0
    assert run(tmp_path, "--check").stdout == "2 files as tangled\n"


def test_check_names_each_kind_of_difference(tmp_path):
    now = {f"companion/{n}.py": sealed(n) for n in "abc"}
    write(now, tmp_path)
    (tmp_path / "companion/d.py").write_text("mine = 1\n")
    (tmp_path / "companion/c.py").unlink()
    new = {"companion/a.py": sealed("new"), "companion/c.py": sealed("c")}
    assert check(new, tmp_path) == [
        "companion/a.py: out of date: run `make tangle`",
        "companion/b.py: no cell makes it any more: `tangle --remove`"
        " removes it",
        "companion/c.py: missing: run `make tangle`",
        "companion/d.py:1: written by hand: move it into a chapter",
    ]


OLD = {f"companion/{n}.py": sealed(n, "old") for n in "abcd"}
NEW = {f"companion/{n}.py": sealed(n, "new") for n in "abce"}
KILLED = """
import json, os, signal, sys
from companion.literate import write
new, steps, last = json.loads(sys.argv[1]), 0, int(sys.argv[2])
events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
def hook(event, words):
    global steps
    if event in events:
        steps += 1
        if steps > last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
write.write(new, ".", remove=True)
"""


def killed(folder, step):
    """Write NEW over OLD; whether it was killed at this step."""
    write(OLD, folder)
    result = run(folder, json.dumps(NEW), str(step), code=KILLED)
    assert result.returncode in (0, -9), result.stderr
    return result.returncode != 0


@pytest.mark.slow
def test_a_kill_at_any_step_is_mended_by_the_next_run(tmp_path):
    steps, found = itertools.count(), []
    while killed(folder := tmp_path / str(len(found)), next(steps)):
        now = writing.present(folder).values()
        assert {*now} <= {*OLD.values(), *NEW.values()}
        with writing.only_one(folder):
            writing.finish(folder)
        assert not list(folder.glob(".tangle*"))
        found.append(writing.present(folder))
        assert write(NEW, folder, remove=True) is not None
        assert writing.present(folder) == NEW
    decided = found.index(NEW)
    assert found == [OLD] * decided + [NEW] * (len(found) - decided)
    assert 10 < decided < len(found) - 10


@pytest.mark.parametrize("remains", [".tangle-new", ".tangle-new/companion"])
def test_what_a_kill_left_goes_though_nothing_changed(tmp_path, remains):
    write(OLD, tmp_path)
    (tmp_path / remains).mkdir(parents=True)
    assert write(OLD, tmp_path) == []
    assert not list(tmp_path.glob(".tangle*"))


# ------------------------------------------------------- nothing is lost


LOST = ("companion/buffer.py:1: no cell of b makes companion/buffer.py any"
        " more: give the cells their tags back, or say `tangle --remove`")


def two_modules(root):
    """A book whose second chapter makes a module of its own."""
    book = save_book(
        root, a=("view.py", VIEW), b=("buffer.py", code("B = View")))
    assert run(root).returncode == 0
    return book


@pytest.mark.parametrize("words", [
    (), ("--force",), ("--upto", "b"), ("chapters/a.md", "--out", ".")])
def test_removing_a_module_wants_a_word(tmp_path, words):
    two_modules(tmp_path)
    if not words or words == ("--force",):
        save_book(tmp_path, a=("view.py", VIEW),
                  b=("buffer.py", cell("B = View")))
    before = writing.present(tmp_path)
    assert told(tmp_path, *words) == LOST
    assert writing.present(tmp_path) == before
    result = run(tmp_path, *words, "--remove")
    assert result.returncode == 0, result.stderr
    assert "companion/buffer.py" not in writing.present(tmp_path)


def test_tests_and_kernels_are_not_lost_either(tmp_path):
    cells = C_ONE, cell("@test\ndef test_v(): View()", "test")
    save_book(tmp_path, a=("view.py", VIEW, *cells))
    assert run(tmp_path).returncode == 0
    save_book(tmp_path, a=("view.py", VIEW))
    assert told(tmp_path) == (
        "companion/kernels/a.c:1: no cell of a makes companion/kernels/a.c,"
        " tests/chapters/test_a.py any more: give the cells their tags back,"
        " or say `tangle --remove`")
    assert "companion/kernels/a.c" in writing.present(tmp_path)


def test_a_notebook_that_lost_its_tags_empties_nothing(tmp_path):
    book = two_modules(tmp_path / "book")
    for name in "ab":
        text = notebook(book.chapter(name))
        (tmp_path / f"{name}.ipynb").write_text(text)
    words = "a.ipynb", "b.ipynb", "--out", "mine"
    assert run(tmp_path, *words).returncode == 0
    before = writing.present(tmp_path / "mine")
    text = (tmp_path / "b.ipynb").read_text()
    (tmp_path / "b.ipynb").write_text(text.replace('"tangle"', ""))
    assert told(tmp_path, *words) == (
        "b.ipynb:1: no cell is tagged `tangle`: tag those that belong to"
        " the library")
    assert "companion/buffer.py" in told(tmp_path, "a.ipynb", "--out", "mine")
    assert writing.present(tmp_path / "mine") == before


def test_a_source_named_twice(tmp_path):
    save_book(tmp_path, a=("view.py", VIEW))
    again = ("chapters/a.md", "./chapters/a.md", "--out", "mine")
    assert told(tmp_path, *again) == (
        "chapters/a.md:1: chapters/a.md stands here twice: drop one of the"
        " two")
    (tmp_path / "a.md").write_text((tmp_path / "chapters/a.md").read_text())
    assert told(tmp_path, "chapters/a.md", "a.md", "--out", "mine") == (
        "a.md:1: a.md and chapters/a.md share a name: rename one")


def test_what_editors_leave_in_the_library_is_not_ours(tmp_path):
    two_modules(tmp_path)
    library = tmp_path / "companion"
    (library / ".ipynb_checkpoints").mkdir()
    old = (library / "view.py").read_text()
    (library / ".ipynb_checkpoints/view-checkpoint.py").write_text(old)
    (library / "._view.py").write_bytes(b"\0\xff")
    (library / ".#view.py").symlink_to("someone@somewhere.1")
    (library / "folder.py").mkdir()
    assert run(tmp_path, "--check").stdout == "3 files as tangled\n"
    assert run(tmp_path).stdout == "3 files tangled, 0 changed\n"


def test_a_readers_own_module_needs_no_plan(tmp_path):
    mine = code("def third(x):\n    return x / 3", file="mine.py")
    page = FRONT.format("view.py") + mine
    (tmp_path / "page.md").write_text(page)
    result = run(tmp_path, "page.md", "--out", "mine")
    assert result.returncode == 0, result.stderr
    assert "def third" in (tmp_path / "mine/companion/mine.py").read_text()


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch, capsys):
    pages = {"b": ("ops.py", code("x = 2"))}
    save_book(tmp_path, a=("view.py", VIEW))
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 0
    before = writing.present(tmp_path)
    save_book(tmp_path, a=("view.py", VIEW, GROW), **pages)
    real, written = os.fsync, []

    def full(handle):
        written.append(handle)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert command.main([]) == 1
    assert writing.present(tmp_path) == before
    assert capsys.readouterr().err == (
        ".: No space left on device: nothing was changed; mend that and run"
        " it again\n")
    assert not list(tmp_path.glob(".tangle*"))
    monkeypatch.setattr(os, "fsync", real)
    assert command.main([]) == 0
    assert len(writing.present(tmp_path)) == 3


# ------------------------------------------------------- notebooks, origins


def notebook(chapter):
    """A reader's notebook with the cells of a chapter."""
    cells = [
        {"cell_type": "code", "metadata": c.options, "source": c.source,
         "outputs": [], "execution_count": None}
        for c in chapter.cells
    ]
    return json.dumps({"cells": cells, "metadata": chapter.front,
                       "nbformat": 4, "nbformat_minor": 5})


def test_a_readers_notebooks_give_their_library(tmp_path):
    cells = VIEW, GROW, C_ONE, cell("@test\ndef test_v(): View()", "test")
    book = save_book(
        tmp_path, a=("view.py", *cells), b=("buffer.py", code("B = View")))
    for name in "ab":
        page = tmp_path / f"{name}.ipynb"
        page.write_text(notebook(book.chapter(name)))
    result = run(tmp_path, "a.ipynb", "b.ipynb", "--out", "mine")
    assert result.stdout == "5 files tangled, 5 changed\n", result.stderr
    mine = writing.present(tmp_path / "mine")
    origins = mine.pop("companion/origins.txt").split("\n")
    assert "companion/view.py:7 a.ipynb[2]:3" in origins
    ours = tangle(book).files
    assert {f: plain(t) for f, t in mine.items()} == {
        f: plain(t) for f, t in ours.items()}
    assert mine["companion/view.py"].split("\n")[6] == "    def first(self):"


BROKEN = {
    "def f(:": (1, "invalid syntax"),
    "%time y = 1\nx = (y": (2, "'(' was never closed"),
    "x = 1\nbreak": (2, "'break' outside loop"),
    "x\0": (1, "source code string cannot contain null bytes"),
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_broken_cell_of_a_notebook(tmp_path, source):
    book = save_book(tmp_path, a=("view.py", VIEW, cell("0")))
    text = notebook(book.chapter("a")).replace('"0"', json.dumps(source))
    (tmp_path / "a.ipynb").write_text(text)
    line, problem = BROKEN[source]
    assert told(tmp_path, "a.ipynb", "--out", "mine") == (
        f"a.ipynb[2]:{line}: Python cannot read this: {problem}")
    assert not (tmp_path / "mine").exists()


IPYTHON = {
    "%matplotlib inline\ny = 1": "\ny = 1",
    "!pip install a \\\n  b (\ny = 1": "\n\ny = 1",
    "for f in files:\n    !cat {f}": "for f in files:\n    pass",
    "y = !ls don't\ny?\n?y": "",
    "await y": "await y",
    "    y = 1": "y = 1",
    "y = ('%s'\n     % y)\n%time y": "y = ('%s'\n     % y)\n",
    ">>> y = 1": "",
    "%%time\nimport re": "\nimport re",
    "%%bash\nls -l $HOME": "",
}


@pytest.mark.parametrize("source", IPYTHON)
def test_what_ipython_reads_is_no_error(source):
    found = command.readable(Cell("a", "a.md", 0, 1, source)).source
    left = re.sub(r"(?m)^pass$", "", found)
    assert left.rstrip() == IPYTHON[source].rstrip()


def test_a_page_may_show_an_error():
    shown = Cell("a", "a.md", 0, 1, "def f(:", ("raises-exception",))
    assert command.readable(shown).source == ""


def test_a_reader_without_the_book_gets_a_library_too(tmp_path):
    export = 'EXPORTS["View"] = "companion.view"'
    cells = VIEW, code(export, file="__init__.py")
    book = save_book(tmp_path / "book", a=("view.py", *cells))
    page = notebook(book.chapters[1])
    (tmp_path / "a.ipynb").write_text(page)
    result = run(tmp_path, "a.ipynb", "--out", "mine")
    assert result.returncode == 0, result.stderr
    program = "import companion as c; print(c.View.size, c.__file__)"
    own = {"PYTHONPATH": "mine"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, text=True,
        env={**os.environ, **own}, capture_output=True)
    assert result.stdout == f"1 {tmp_path}/mine/companion/__init__.py\n"


def test_sources_need_a_place_of_their_own(tmp_path):
    save_book(tmp_path, a=("view.py", VIEW))
    assert told(tmp_path, "chapters/a.md") == (
        "chapters/a.md:1: is not the whole book: say `--out DIR`")


def test_every_line_leads_back_to_its_chapter(tmp_path):
    extra = code("# why\nA = 1\n\n# how\n\nB = 2\n\n\n\ndef f():\n\n"
                 "    return A\n# end")
    new = code("@extend\nclass View:\n    size = 3", replaces="View.size")
    book = save_book(tmp_path, a=("view.py", VIEW, extra, GROW, new))
    write(tangle(book).written, tmp_path)
    file = str(tmp_path / "companion/view.py")
    page = (tmp_path / "chapters/a.md").read_text().split("\n")
    lines = Path(file).read_text().split("\n")
    found = 0
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("# Tangled"):
            path, at = origin(file, number).split(":")
            assert (path, page[int(at) - 1]) == ("chapters/a.md", line)
            found += 1
    assert found == 12


SNIPPETS = st.sampled_from((
    "x{n} = {n}", "# note {n}\nx{n} = (\n    {n},\n)", "a{n}, *b{n} = 1, 2",
    "def f{n}():\n    return {n}  # end", "@property\ndef g{n}(self):\n\n"
    "    # why\n    return {n}", "if True:\n    pass  # {n}",
    "class C{n}:\n\n    a{n} = 1\n\n\n    def m(self): return {n}",
    "@extend\nclass View:\n    v{n} = 1\n    # of {n}\n"
    "    def w{n}(self):\n        return \"\"\"\n{n}\"\"\"",
))
CELLS = st.lists(st.lists(st.tuples(SNIPPETS, st.integers(1, 3)), min_size=1),
                 max_size=6)


@given(CELLS)
@settings(max_examples=200)
def test_no_line_is_lost_and_each_leads_back(cells):
    numbers, texts = itertools.count(), [VIEW]
    for found in cells:
        parts = [s.format(n=next(numbers)) + "\n" * gap for s, gap in found]
        texts.append(code("".join(parts)))
    with tempfile.TemporaryDirectory() as folder:
        book = save_book(Path(folder), a=("view.py", *texts))
        written = tangle(book).written
        write(written, folder)
        text = written["companion/view.py"]
        file = f"{folder}/companion/view.py"
        places = [origin(file, n + 1) for n in range(text.count("\n"))]
    tree = ast.parse(text)
    assert sum(isinstance(node, ast.ClassDef) and node.name == "View"
               for node in ast.walk(tree)) == 1
    page = book.chapters[1].text.split("\n")
    source = [line for c in book.chapters[1].cells
              for line in c.source.replace(
                  "@extend\nclass View:\n", "").split("\n") if line]
    lines = [line for line in text.split("\n")[1:] if line]
    assert sorted(lines) == sorted(source)
    for place, line in zip(places, text.split("\n"), strict=False):
        if line in lines:
            assert page[int(place.split(":")[1]) - 1] == line


def test_an_error_shows_the_chapters_line(tmp_path):
    failing = code("def f():\n    return g()\n\n\ndef g():\n    return 1 / 0")
    book = save_book(tmp_path, a=("view.py", failing))
    write(tangle(book).written, tmp_path)
    scope = {}
    file = tmp_path / "companion/view.py"
    exec(compile(file.read_text(), str(file), "exec"), scope)
    with pytest.raises(ZeroDivisionError) as error:
        scope["f"]()
    assert annotate(error.value).__notes__ == [
        "f is written at chapters/a.md:9", "g is written at chapters/a.md:13"]


def test_python_shows_the_chapters_line(tmp_path):
    program = ("import companion\n"
               "from companion.literate.source import read_book\n"
               "read_book('/nowhere')")
    result = run(tmp_path, code=program)
    assert "read_book is written at chapters/appendix/tangle.md:" in (
        result.stderr)


# -------------------------------------------------------------- this book


def test_the_tools_tangle_themselves():
    library = tangle(read_book(ROOT))
    tools = [f for f in library.files if f.startswith("companion/literate/")]
    assert {"companion/literate/tangle.py", "companion/__main__.py"} <= set(
        library.files)
    for file in [*tools, "companion/__init__.py", "companion/__main__.py"]:
        assert (ROOT / file).read_text() == library.files[file], file


TOOLS = "tangle", "record", "weave"


@pytest.mark.slow
def test_tools_that_changed_run_again(tmp_path):
    """The tools alone are a book, and short beside the whole library."""
    for name in ("intro.md", "chapters/appendix", "companion/literate"):
        copy = shutil.copytree if "/" in name else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for file in (ROOT / "companion").glob("__*__.py"):
        shutil.copy(file, tmp_path / "companion")
    pages = [f"- file: chapters/appendix/{page.stem}"
             for page in sorted((ROOT / "chapters/appendix").glob("*.md"))
             if page.stem in TOOLS]
    for page in (tmp_path / "chapters/appendix").glob("*.md"):
        if page.stem not in TOOLS:
            page.unlink()
    (tmp_path / "_toc.yml").write_text("\n".join(
        ["format: jb-book", "root: intro", "chapters:", *pages]))
    page = tmp_path / "chapters/appendix/tangle.md"
    page.write_text(page.read_text().replace("Tangled from {}", "Woven of {}"
                    ).replace("Tangled from (", "Woven of ("))
    result = subprocess.run(
        [sys.executable, "-m", "companion", "tangle", "--force"],
        cwd=tmp_path, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    for file in (tmp_path / "companion").rglob("*.py"):
        assert file.read_text().startswith("# Woven of "), file


def instructions(call, *words):
    """How many instructions of Python a call carries out."""
    count = itertools.count()

    def trace(frame, event, value):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            next(count)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(*words)
    finally:
        sys.settrace(before)
    return next(count)


def functions(n, text="def f{0}(x):\n    return f{1}(x)", **options):
    """A cell for each of n definitions that use the one before."""
    cells = [code(text.format(i, max(i - 1, 0)),
                  **{k: v.format(i) for k, v in options.items()})
             for i in range(n)]
    return "".join(cells)


MEMBER = "@extend\nclass View:\n    def {2}{0}(self): return abs(self.f{1})"
OWN, THEIRS = MEMBER.replace("{2}", "f"), MEMBER.replace("{2}", "g")
BOOKS = {
    "chapters": lambda n: {
        f"p{i}": (f"compiler/m{i}.py", functions(5).replace("f", f"f{i}_"
                  ).replace(f"de{'f'}{i}_", "def")) for i in range(n // 5)},
    "modules": lambda n: {
        f"p{i}": (f"compiler/m{i}.py", code(
            f"def f{i}(x):\n    return f{max(i - 1, 0)}(x)"))
        for i in range(n)},
    "functions": lambda n: {"a": ("view.py", functions(n))},
    "constants": lambda n: {
        "a": ("view.py", code("A0 = 1"),
              *[code(f"A{i + 1} = A{i}") for i in range(n)])},
    "members": lambda n: {"a": ("view.py", VIEW, functions(n, OWN))},
    "members of two pages": lambda n: {
        "a": ("view.py", VIEW, functions(n // 2, OWN)),
        "b": ("view.py", functions(n // 2, THEIRS))},
    "entries": lambda n: {"a": ("view.py", code("T = {}"), functions(n // 2),
                                functions(n // 2, "T[{0}] = f{0}"))},
    "replaced": lambda n: {
        "a": ("view.py", functions(n // 2)),
        "b": ("view.py", functions(n // 2, "def f{0}(x):\n    return 2",
                                   replaces="f{0}"))},
    "tests": lambda n: {"a": ("view.py", VIEW, *[
        cell(f"@test\ndef test_{i}():\n    View()", "test")
        for i in range(n)])},
    "kernels": lambda n: {"a": ("view.py", functions(
        n, "%%c kernels/a.c\nint f{0}(int n) {{ return n; }}"))},
    "shown": lambda n: {"a": ("view.py", VIEW, *[
        # no cell is another book's: to compare them would be work too
        cell(f"x{i}_{n} = View()") for i in range(n)])},
}


@pytest.mark.parametrize("shape", BOOKS)
def test_twice_the_cells_take_twice_the_work(tmp_path, shape):
    def work(n):
        book = save_book(tmp_path / str(n), **BOOKS[shape](n))
        tangle(book)  # what is remembered, is remembered
        return instructions(tangle, book)

    base, short, long = (work(n) for n in (20, 60, 100))
    assert long - base < 2.1 * (short - base)


def test_a_books_pages_are_read_with_twice_the_work(tmp_path):
    def work(n):
        folder = tmp_path / str(n)
        save_book(folder, **BOOKS["modules"](n))
        return instructions(read_book, folder)

    base, short, long = (work(n) for n in (20, 60, 100))
    assert long - base < 2.1 * (short - base)


def test_the_exponent_of_growth():
    assert growth.exponent([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    assert growth.exponent([1, 10, 100], [5, 500, 50_000]) == pytest.approx(2)
    assert len(tangle(growth.long_book(90)).files) == 3


def test_the_bench_of_the_tangler(monkeypatch):
    monkeypatch.setattr(growth, "SIZES", (4, 8, 16))
    rows = list(growth.bench(1, quick=False))
    assert [row["case"] for row in rows] == [
        "4 cells", "8 cells", "16 cells", "exponent of growth"]
    assert [row_of(row).split()[:2] for row in rows[:1]] == [["4", "cells"]]
    assert len(list(growth.bench(1, quick=True))) == 3


# ------------------------------------------------------- the command line


def line(*words):
    """`python -m companion WORDS`."""
    return subprocess.run([sys.executable, "-m", "companion", *words],
                          cwd=ROOT, text=True, capture_output=True)


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["help"]])
def test_help_lists_the_commands(words):
    result = line(*words)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: python -m companion COMMAND")
    for name in COMMANDS:
        assert re.search(rf"(?m)^  {name} +[A-Z]", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    result = line(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: python -m companion {name} ")
    assert line("help", name).stdout == result.stdout


@pytest.mark.parametrize("words", ["help", "stage"])
def test_a_reader_who_has_seen_enough(words):
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "companion", *words.split()], cwd=ROOT,
        stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_the_version():
    assert line("--version").stdout == f"companion {companion.__version__}\n"


@pytest.mark.parametrize(("words", "told"), [
    (["tangel"], "no command 'tangel': did you mean tangle?"),
    (["help", "benhc"], "no command 'benhc': did you mean bench?"),
    (["--hlep"], "no command '--hlep': did you mean --help?"),
    (["xyzzy"], "no command 'xyzzy'"),
    ([], "usage: python -m companion COMMAND …"),
])
def test_a_word_that_is_no_command(words, told):
    result = line(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.split("\n")[0] == told
    assert "  tangle     Write the library" in result.stderr
