# Tangled from tangle: edit there, `make tangle`. sha256:18b45a25beba
"""The floors of the house: who may import whom."""

from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import NamedTuple

from companion.literate.source import SourceError

FLOORS = (
    "dtype ops view buffer",
    "kernels native blas device timing",
    "autograd tensor",
    "activations layers losses optim training data",
    "cuda gpu",
    "convolution tokenizer embedding sequence attention transformer "
    "vocabulary",
    "compiler graph rewrite schedule lower render runtime jit",
    "profile cache quantize compress accelerate distributed benchmark",
)

BESIDE = "literate __init__ __main__"


def room(file: str) -> str:
    """`view` for companion/view.py, `kernels` for what is in there."""
    return file.split("/")[1].removesuffix(".py")


def beside(file: str) -> bool:
    """Whether a file is one of the tools beside the house."""
    return room(file) in BESIDE.split()


def planned(file: str) -> int | None:
    """The floor that the plan promises a file; None without a promise."""
    for number, rooms in enumerate(FLOORS):
        if room(file) in rooms.split():
            return number
    return None


class Link(NamedTuple):
    """A name that one file imports from another.

    `used` and `made` count the book's pages: where the name is used
    first, and where it was defined first.
    """

    file: str
    other: str
    name: str
    error: Callable[[str], SourceError]
    used: int
    made: int


def graph_of(links) -> dict[str, dict[str, None]]:
    """For each file, the files that it imports."""
    graph: dict[str, dict[str, None]] = {}
    for link in links:
        graph.setdefault(link.file, {}).setdefault(link.other)
    return graph


def check_cycles(links) -> None:
    """No module imports itself by way of others."""
    try:
        TopologicalSorter(graph_of(links)).prepare()
    except CycleError as error:
        cycle = error.args[1][:0:-1]
    else:
        return
    arrows = set(pairwise([*cycle, cycle[0]]))
    guilty = max((link for link in links if link[:2] in arrows),
                 key=lambda link: (max(link.made - link.used, 0), link.used))
    at = cycle.index(guilty.file)
    shown = " → ".join([*cycle[at:], *cycle[:at], guilty.file])
    raise guilty.error(f"import cycle {shown}, by way of {guilty.name}: "
                       "move what both need down")


def floors(files, links) -> dict[str, int]:
    """The floor of each file: as planned, or as its imports put it."""
    graph = graph_of(links)
    found: dict[str, int] = {}
    for file in TopologicalSorter(graph).static_order():
        below = [found.get(other, 0) for other in graph.get(file, ())]
        plan = planned(file)
        found[file] = max(below, default=0) if plan is None else plan
    house = [file for file in files if not beside(file)]
    return {file: found.get(file, planned(file) or 0) for file in house}


def check_floors(house: dict[str, int], links) -> None:
    """Imports lead downwards; the tools import nothing of the house."""
    for link in links:
        floor, other = house.get(link.file, -1), house.get(link.other, -1)
        if floor < other:
            place = "beside the house" if floor < 0 else f"on floor {floor}"
            raise link.error(
                f"{link.file} stands {place} and cannot import {link.other}, "
                f"on floor {other}: move one of the two")
