# Tangled from record: edit there, `make tangle`. sha256:6cfd2c1e5111
"""What a chapter's cells call while they run."""

import gc
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import CellType


class Empty:
    """Holds what Python itself writes into every class, no more."""


def members(original: type, addition: type) -> dict:
    """The attributes that the body of `addition` wrote, by name."""
    own = {*vars(Empty), "__annotations__"}
    found = {n: v for n, v in vars(addition).items() if n not in own}
    if found.get("__hash__", found) is None and "__hash__" in vars(original):
        del found["__hash__"]  # Python's own, beside every __eq__
    return found


def rebind_class_cell(addition: type, original: type) -> None:
    """Let zero-argument super() in the new members mean `original`."""
    for referrer in gc.get_referrers(addition):
        if isinstance(referrer, CellType):
            referrer.cell_contents = original


def reopened(scope: dict, addition: type) -> type:
    """The class that `addition` extends, if it may."""
    name = addition.__name__
    original = scope.get(name)
    if not isinstance(original, type):
        raise NameError(f"@extend found no class {name!r} to extend: "
                        "define or import it in an earlier cell")
    if addition.__bases__ != (object,):
        raise TypeError(f"@extend class {name} names base classes: "
                        "write them where the class is defined")
    bare = set(inspect.get_annotations(addition)) - set(vars(addition))
    if bare or "__slots__" in vars(addition):
        raise TypeError(f"@extend class {name} declares fields: give them "
                        "values, or declare them where it is defined")
    return original


def extend(addition: type) -> type:
    """Give the members of class `addition` to the class of that name.

    The class is looked up where the decorator stands, and returned:
    after the cell the name still means the class it meant before.
    """
    caller = sys._getframe(1)
    original = reopened({**caller.f_globals, **caller.f_locals}, addition)
    for name, value in members(original, addition).items():
        setattr(original, name, value)
        if hasattr(type(value), "__set_name__"):
            value.__set_name__(original, name)
    rebind_class_cell(addition, original)
    return original


def test(function: Callable) -> Callable:
    """Run a test where it is written; print one line when it passes."""
    function()
    print(f"ok  {function.__name__}")
    return function


def message(call: Callable, *kinds: type[Exception]) -> str:
    """What the error says that `call` has to raise (a ValueError)."""
    kinds = kinds or (ValueError,)
    try:
        call()
    except kinds as error:
        # Of just these: a UnicodeDecodeError would pass for a ValueError.
        if type(error) not in kinds:
            raise
        return str(error)
    raise AssertionError(f"expected {kinds}, and nothing was raised")


PREFIX = "application/papermill.record/"


def glue(name: str, value, **about) -> None:
    """Keep str(value) under `name`, for the page's prose to quote."""
    from IPython.display import display

    scrapbook = {"name": name, "mime_prefix": PREFIX}
    bundle = {PREFIX + "text/plain": str(value)}
    display(bundle, raw=True, metadata={"scrapbook": scrapbook, **about})


def read_records(name: str) -> list[dict]:
    """The objects in site/records/NAME.json; none outside of the book."""
    homes = [folder / "site/records" / f"{name}.json"
             for folder in Path(__file__).resolve().parents]
    text = "".join([home.read_text() for home in homes if home.exists()])
    found = []
    while text := text.lstrip():
        value, end = json.JSONDecoder().raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def claim(name: str, holds, sentence: str, otherwise: str) -> None:
    """Glue `sentence` under `name` where it holds, else `otherwise`."""
    glue(name, sentence if holds else otherwise, holds=bool(holds))
