"""What a chapter's cells call while they run: `extend` and `test`."""

import gc
import inspect
import sys
from types import CellType


class Empty:
    """Holds what Python itself writes into every class, no more."""


def extend(addition):
    """Give the members of class `addition` to the class of that name.

    The class is looked up where the decorator stands, and returned:
    after the cell the name still means the class it meant before.
    """
    caller = sys._getframe(1)
    scope = {**caller.f_globals, **caller.f_locals}
    original = scope.get(addition.__name__)
    check_extension(original, addition)
    for name, value in members(original, addition).items():
        setattr(original, name, value)
        if hasattr(type(value), "__set_name__"):
            value.__set_name__(original, name)
    rebind_class_cell(addition, original)
    return original


def check_extension(original, addition):
    """Refuse what could not stand at the end of the class's body."""
    name = addition.__name__
    if not isinstance(original, type):
        raise NameError(
            f"@extend found no class {name!r} to extend: "
            "define or import it in an earlier cell"
        )
    if addition.__bases__ != (object,):
        raise TypeError(
            f"@extend class {name} names base classes: "
            "write them where the class is defined"
        )
    if "__slots__" in vars(addition) or inspect.get_annotations(addition):
        raise TypeError(
            f"@extend class {name} declares fields: "
            "declare them where the class is defined"
        )


def members(original, addition):
    """The attributes that the body of `addition` wrote, by name."""
    found = {
        name: value
        for name, value in vars(addition).items()
        if name not in vars(Empty)
    }
    if found.get("__hash__", found) is None and "__hash__" in vars(original):
        del found["__hash__"]  # Python's own, beside __eq__
    return found


def rebind_class_cell(addition, original):
    """Let zero-argument super() in the new members mean `original`."""
    for referrer in gc.get_referrers(addition):
        if isinstance(referrer, CellType):
            referrer.cell_contents = original


def test(function):
    """Run a test where it is written; print one line when it passes."""
    function()
    print(f"ok  {function.__name__}")
    return function


PREFIX = "application/papermill.record/"


def glue(name, value):
    """Keep str(value) under `name`, for the page's prose to quote."""
    from IPython.display import display

    scrapbook = {"name": name, "mime_prefix": PREFIX}
    display(
        {PREFIX + "text/plain": str(value)},
        raw=True,
        metadata={"scrapbook": scrapbook},
    )
