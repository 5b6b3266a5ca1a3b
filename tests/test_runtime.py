"""`extend` reopens a class, `test` runs a function where it stands."""

from functools import cached_property

import pytest

from companion.literate import runtime
from companion.literate.runtime import (
    extend,
    message,
    read_records,
    test as run_test,
)


class Base:
    def greet(self):
        return "base"


def reopen(source, **names):
    """Run a cell's source in a namespace of its own, as a kernel does."""
    scope = {"extend": extend, **names}
    exec(source, scope)
    return scope


def point_class():
    scope = {"Base": Base}
    exec(
        "class Point(Base):\n"
        "    'A point.'\n"
        "    def __init__(self, x):\n"
        "        self.x = x\n",
        scope,
    )
    return scope["Point"]


def test_members_reach_old_instances_and_the_name_keeps_its_class():
    Point = point_class()
    old = Point(3)
    scope = reopen(
        "@extend\n"
        "class Point:\n"
        "    origin = 0\n"
        "    def double(self):\n"
        "        return 2 * self.x\n"
        "    __neg__ = double\n",
        Point=Point,
    )
    assert scope["Point"] is Point
    assert old.double() == -old == 6
    assert Point.origin == 0
    assert Point.__doc__ == "A point."


def test_super_and_class_cells_mean_the_original():
    Point = point_class()
    reopen(
        "@extend\n"
        "class Point:\n"
        "    def greet(self):\n"
        "        return super().greet() + '!'\n"
        "    @property\n"
        "    def kind(self):\n"
        "        return __class__\n"
        "    @classmethod\n"
        "    def make(cls, x):\n"
        "        return cls(x)\n"
        "    @staticmethod\n"
        "    def two():\n"
        "        return 2\n",
        Point=Point,
    )
    point = Point.make(5)
    assert point.greet() == "base!"
    assert point.kind is Point
    assert Point.two() == 2 and point.x == 5


def test_descriptors_learn_their_name_and_owner():
    Point = point_class()
    reopen(
        "@extend\n"
        "class Point:\n"
        "    @cached_property\n"
        "    def square(self):\n"
        "        return self.x ** 2\n",
        Point=Point,
        cached_property=cached_property,
    )
    assert Point(3).square == 9


def test_a_later_eq_keeps_an_earlier_hash():
    Point = point_class()
    Point.__hash__ = lambda self: 7
    reopen(
        "@extend\n"
        "class Point:\n"
        "    def __eq__(self, other):\n"
        "        return self.x == other.x\n",
        Point=Point,
    )
    assert Point(1) == Point(1) and hash(Point(1)) == 7


def test_slots_stay():
    class Pair:
        __slots__ = ("a", "b")

    @extend
    class Pair:
        def total(self):
            return self.a + self.b

    pair = Pair()
    pair.a, pair.b = 1, 2
    assert pair.total() == 3
    with pytest.raises(AttributeError):
        pair.c = 3


def test_no_such_class():
    with pytest.raises(NameError) as error:
        reopen("@extend\nclass Tensor:\n    x = 1\n")
    assert str(error.value) == (
        "@extend found no class 'Tensor' to extend: "
        "define or import it in an earlier cell"
    )


def test_bases_are_refused():
    with pytest.raises(TypeError, match="names base classes"):
        reopen(
            "@extend\nclass Point(dict):\n    x = 1\n", Point=point_class()
        )


@pytest.mark.parametrize("field", ["y: int", "__slots__ = ('y',)"])
def test_fields_are_refused(field):
    with pytest.raises(TypeError, match="declares fields"):
        reopen(f"@extend\nclass Point:\n    {field}\n", Point=point_class())


def test_an_annotated_member_keeps_the_class_s_own_annotations():
    Point = point_class()
    Point.__annotations__ = {"x": "int"}
    reopen("@extend\nclass Point:\n    y: int = 7\n", Point=Point)
    assert Point(1).y == 7
    assert Point.__annotations__ == {"x": "int"}


def test_a_test_runs_at_once_and_prints_one_line(capsys):
    @run_test
    def test_sum():
        assert 1 + 1 == 2

    assert capsys.readouterr().out == "ok  test_sum\n"
    assert callable(test_sum)


def test_a_failing_test_raises(capsys):
    with pytest.raises(AssertionError):

        @run_test
        def test_wrong():
            assert 1 + 1 == 3

    assert capsys.readouterr().out == ""


def test_message_is_what_an_error_of_the_kind_says():
    assert "invalid literal" in message(lambda: int("x"))
    assert "'b'" in message(lambda: {}["b"], KeyError)
    assert "by zero" in message(lambda: 1 // 0, ZeroDivisionError)
    with pytest.raises(KeyError):
        message(lambda: {}["b"])
    with pytest.raises(UnicodeDecodeError):  # a ValueError, and another one
        message(lambda: b"\xff".decode())
    with pytest.raises(AssertionError, match="nothing was raised"):
        message(lambda: 1)


@pytest.mark.parametrize(
    "text, found",
    [
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{\n "a": [\n  1\n ]\n}\n', [{"a": [1]}]),
        ("", []),
        (None, []),
    ],
)
def test_records_are_read_line_by_line_or_whole(
    tmp_path, monkeypatch, text, found
):
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "a/b/c.py"))
    if text is not None:
        folder = tmp_path / "site/records"
        folder.mkdir(parents=True)
        (folder / "x.json").write_text(text)
    assert read_records("x") == found
