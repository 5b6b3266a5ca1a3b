# Tangled from graphs: edit there, `make tangle`. sha256:123d68119dae
"""Graphs as pictures: operands above, readers below."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from statistics import mean

from companion.compiler.graph import OpNode, toposort
from companion.ops import CONST, FAMILIES


def rows(*roots: OpNode) -> list[list[OpNode]]:
    """From the roots up, the values that are there in each row."""
    order = toposort(*roots)[::-1]
    top: dict[OpNode, int] = {}
    end: dict[OpNode, int] = {}
    for node in order:
        at = top.setdefault(node, 0)
        end.setdefault(node, at)
        for x in node.src:
            top[x] = max(top.get(x, 0), at + 1)
            end[x] = min(end.get(x, at + 1), at + 1)
    return [[node for node in order if end[node] <= row <= top[node]]
            for row in range(max(top.values()) + 1)]


def steps(table: list[list[OpNode]], row: int,
          node: OpNode) -> list[OpNode]:
    """Where the value of `node` leads, one row further down."""
    below, here = table[row - 1] if row else [], table[row]
    # A reader that is in both rows passes by here, and reads above.
    return [x for x in below if x is node
            or node in x.src and x not in here]


def columns(table: list[list[OpNode]]) -> list[dict[OpNode, float]]:
    """For each row the columns, near those to which they lead."""
    found: list[dict[OpNode, float]] = []
    for row, nodes in enumerate(table):
        wanted = {node: mean([found[-1][x] for x in steps(table, row, node)]
                             or [0.0]) for node in nodes}
        at: dict[OpNode, float] = {}
        for node in sorted(nodes, key=wanted.__getitem__):
            at[node] = max(wanted[node], max(at.values(), default=-9e9) + 1)
        shift = mean([wanted[node] - at[node] for node in nodes])
        found.append({node: x + shift for node, x in at.items()})
    return found


FAMILY = {op: family for family, ops in FAMILIES.items() for op in ops}
INK = {"leaves": "#2f7fc1", "elementwise": "#2f7fc1", "movement": "#7c7c7c"}
WIDE, HIGH = 88, 42  # between columns, between rows


def label(node: OpNode) -> str:
    """What to write beside a circle: the operation, or the number."""
    # In the digits that its dtype needs: 0.1, not 0.10000000149.
    return str(node.dtype.numpy.type(node.arg[0])
               if node.op is CONST else node.op)


def circle(node: OpNode, x: float, y: float) -> str:
    ink = INK.get(FAMILY.get(node.op, ""), "#96791f")
    fill = "none" if node.src else ink
    shape = "×".join(map(str, node.shape))
    return (f'<g data-age="{node.age}"><title>{escape(repr(node))}</title>'
            f'<circle cx="{x:.0f}" cy="{y:.0f}" r="7" fill="{fill}" '
            f'stroke="{ink}" stroke-width="2"/><text x="{x + 11:.0f}" '
            f'y="{y + 1:.0f}">{escape(label(node))}</text><text '
            f'x="{x + 11:.0f}" y="{y + 12:.0f}" font-size="8">{shape}'
            f'</text></g>')


def line(x: float, y: float, to: float, row: float) -> str:
    """From one place to another, one row below."""
    middle = (y + row) / 2
    return (f'<path d="M{x:.0f},{y:.0f}C{x:.0f},{middle:.0f} {to:.0f},'
            f'{middle:.0f} {to:.0f},{row:.0f}" fill="none" '
            f'stroke="#7c7c7c" stroke-opacity="0.6"/>')


def svg(width: float, height: float, parts: list[str]) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" fill="#7c7c7c" '
            f'font-family="monospace" font-size="10">'
            + "\n".join(parts) + "</svg>")


def drawn(table: list[list[OpNode]], at: list[dict[OpNode, float]],
          row: int) -> Iterator[str]:
    """The circles of a row, and the lines that leave it."""
    y = 20.0 + HIGH * (len(table) - 1 - row)
    above = table[row + 1] if row + 1 < len(table) else []
    for node in table[row]:
        starts, x = node not in above, at[row][node]
        if starts:
            yield circle(node, x, y)
        for to in steps(table, row, node):
            # From the rim of a circle to the rim of another.
            yield line(x, y + 8 * starts, at[row - 1][to],
                       y + HIGH - 8 * (to is not node))


def draw(*roots: OpNode) -> str:
    """An SVG of a small graph; `data-age` says which node a circle is."""
    table = rows(*roots)
    places = columns(table)
    left, right = [pick(x for at in places for x in at.values())
                   for pick in (min, max)]
    at = [{node: 20 + WIDE * (x - left) for node, x in row.items()}
          for row in places]
    parts = [part for row in range(len(table))
             for part in drawn(table, at, row)]
    return svg(WIDE * (right - left + 1), 40 + HIGH * (len(table) - 1),
               parts)
