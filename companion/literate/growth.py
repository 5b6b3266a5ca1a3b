# Tangled from tangle: edit there, `make tangle`. sha256:662d73f67a01
"""How the time to tangle a book grows with its cells."""

from collections.abc import Iterable, Iterator
from math import log
from pathlib import Path
from statistics import linear_regression
from time import process_time

from companion.literate.source import Book, read_myst
from companion.literate.tangle import tangle

FUNCTION = """{fence}{{code-cell}} python
:tags: [tangle]
def f{n}(x):
    y = x + {n}
    return f{callee}(y)
{fence}
"""
FRONT = "---\ncompanion: {{module: compiler/m{first}.py}}\n---\n# A page\n"


def long_book(cells: int, most: int = 40) -> Book:
    """A book in memory: small functions, at most `most` a chapter."""
    pages = []
    for first in range(0, cells, most):
        functions = range(first, min(first + most, cells))
        text = FRONT.format(first=first) + "".join(
            FUNCTION.format(fence="`" * 3, n=n, callee=max(n - most, n % most))
            for n in functions)
        pages.append(read_myst(f"p{first}", f"chapters/p{first}.md", text))
    return Book(Path(), tuple(pages))


SIZES = (500, 2_000, 10_000)  # cells


def seconds(cells: int, rounds: int = 3) -> float:
    """The least time of our process that such a book has taken."""
    taken = []
    for _ in range(rounds):
        start = process_time()
        tangle(long_book(cells))
        taken.append(process_time() - start)
    return min(taken)


def exponent(sizes: Iterable[float], taken: Iterable[float]) -> float:
    """The p with which `taken` grows like `sizes` to the power p."""
    slope, _ = linear_regression([*map(log, sizes)], [*map(log, taken)])
    return slope


def bench(threads: int, quick: bool) -> Iterator[dict]:
    """Milliseconds for books of growing length, and how they grow."""
    sizes = SIZES[:2] if quick else SIZES
    taken = [seconds(cells) for cells in sizes]
    rows = [(f"{n} cells", 1e3 * t, "ms") for n, t in zip(sizes, taken)]
    rows.append(("exponent of growth", exponent(sizes, taken), "of cells"))
    for case, ours, unit in rows:
        yield {"bench": "tangle", "case": case, "threads": threads,
               "unit": unit, "ours": ours, "peer": None, "ratio": None,
               "spread": None, "limit_fraction": None, "peer_name": None}
