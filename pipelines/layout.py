"""Boxes in layers, and lines between them: the layered drawing of Sugiyama et al. (1981).

Coordinates are pixels, y grows downwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]
Edge = tuple[str, str]

GAP = 28.0
"""Between neighbours of a layer, and half of it at its ends."""
LAYER_GAP = 44.0
"""Between layers."""
_SWEEPS = 6


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is."""

    corners: Mapping[str, Point]
    """The upper left corner of each box."""
    lines: tuple[tuple[Point, ...], ...]
    """From a box's lower edge to another's upper one, with the points that it passes."""
    width: float
    height: float


def layered(sizes: Mapping[str, Point], edges: Iterable[Edge]) -> Layout:
    """Lay boxes of these sizes out so that all edges point down.

    Edges that a longer way between the same boxes implies are left out.
    """
    kept = _without_shortcuts(sizes, list(edges))
    ranks = _ranks(sizes, kept)
    rows: list[list[str]] = [[] for _ in range(max(ranks.values(), default=-1) + 1)]
    for name, rank in ranks.items():
        rows[rank].append(name)
    widths = {name: size[0] for name, size in sizes.items()}
    chains = []
    for above, below in kept:
        # A line that passes a layer takes a place in it.
        passed = [f"{above}>{below}>{rank}" for rank in range(ranks[above] + 1, ranks[below])]
        for rank, name in enumerate(passed, start=ranks[above] + 1):
            rows[rank].append(name)
            widths[name] = 0.0
        chains.append([above, *passed, below])
    _order(rows, [pair for chain in chains for pair in pairwise(chain)])
    width = max((sum(widths[n] + GAP for n in row) for row in rows), default=0.0)
    tops, middles, height = [], {}, 0.0
    for row in rows:
        x = (width - sum(widths[name] + GAP for name in row)) / 2
        for name in row:
            middles[name] = x + (widths[name] + GAP) / 2
            x += widths[name] + GAP
        tops.append(height)
        height += max(sizes[name][1] for name in row if name in sizes) + LAYER_GAP
    lines = tuple(_line(chain, ranks, sizes, middles, tops) for chain in chains)
    corners = {
        name: (middles[name] - size[0] / 2, tops[ranks[name]]) for name, size in sizes.items()
    }
    return Layout(corners, lines, width, max(height - LAYER_GAP, 0.0))


def _without_shortcuts(names: Iterable[str], edges: Sequence[Edge]) -> list[Edge]:
    below: dict[str, set[str]] = {name: set() for name in names}
    for above, under in edges:
        below[above].add(under)

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            new = below[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    return [
        (above, under)
        for above, under in edges
        if not any(under in reached(other) for other in below[above] - {under})
    ]


def _ranks(names: Iterable[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The length of the longest way to each box."""
    ranks = dict.fromkeys(names, 0)
    for _ in ranks:
        for above, under in edges:
            ranks[under] = max(ranks[under], ranks[above] + 1)
    return ranks


def _order(rows: list[list[str]], links: Sequence[Edge]) -> None:
    """Sort each row by the mean place of its neighbours, down and up in turn."""
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        order = range(1, len(rows)) if downwards else range(len(rows) - 2, -1, -1)
        for i in order:
            fixed = rows[i - 1 if downwards else i + 1]
            place = {name: (k + 0.5) / len(fixed) for k, name in enumerate(fixed)}
            here = {name: (k + 0.5) / len(rows[i]) for k, name in enumerate(rows[i])}
            means = {}
            for name in rows[i]:
                met = [a if name == b else b for a, b in links if name in {a, b}]
                places = [place[other] for other in met if other in place]
                means[name] = sum(places) / len(places) if places else here[name]
            rows[i].sort(key=means.__getitem__)


def _line(
    chain: Sequence[str],
    ranks: Mapping[str, int],
    sizes: Mapping[str, Point],
    middles: Mapping[str, float],
    tops: Sequence[float],
) -> tuple[Point, ...]:
    first, *passed, last = chain
    points = [(middles[first], tops[ranks[first]] + sizes[first][1])]
    for rank, name in enumerate(passed, start=ranks[first] + 1):
        points += [(middles[name], tops[rank]), (middles[name], tops[rank + 1] - LAYER_GAP)]
    return (*points, (middles[last], tops[ranks[last]]))
