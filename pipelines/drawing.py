"""A compiled pipeline's graph as SVG: tasks as boxes in layers, loops and conditions as frames.

The layout is the layered one of Sugiyama et al. (1981). Coordinates are pixels, y grows downwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

Point = tuple[float, float]
Edge = tuple[str, str]

GAP = 28.0
"""Between neighbours of a layer, and half of it at its ends."""
LAYER_GAP = 44.0
"""Between layers."""
_SWEEPS = 6
Spec = Mapping[str, Any]

_CHARACTER = 7.4  # width of one at 13 px, roughly
_TASK_HEIGHT = 36.0
_PADDING = 18.0
_TITLE = 30.0
# Its own ground, since a page's theme need not be the reader's.
_STYLE = """
:root{--ground:#fff;--ink:#1f2328;--line:#6e7781;--frame:#f3f5f7;--cpu:#dbe9fa;--gpu:#fbe3c2}
@media (prefers-color-scheme:dark){:root{--ground:#0d1117;--ink:#e6edf3;--line:#8b949e;\
--frame:#161b22;--cpu:#1b3a5e;--gpu:#5a3a10}}
text{font:13px system-ui,sans-serif;fill:var(--ink)}.title{font-style:italic}
.ground{fill:var(--ground)}.cpu{fill:var(--cpu)}.gpu{fill:var(--gpu)}
.cpu,.gpu,.frame{stroke:var(--line)}.frame{fill:var(--frame);stroke-dasharray:5 4}
path{fill:none;stroke:var(--line);stroke-width:1.5}polygon{fill:var(--line)}
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of boxes and lines."""

    corners: Mapping[str, Point]
    """The upper left corner of each box."""
    lines: tuple[tuple[Point, ...], ...]
    """From a box's lower edge to another's upper one, with the points that it passes."""
    width: float
    height: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """A task or a frame, at the origin."""

    svg: str
    width: float
    height: float


def draw(spec: Spec, platform: Spec) -> str:
    """Return the SVG of a pipeline, from both documents of its YAML."""
    pools = {
        executor: placed["nodeSelector"]["labels"]["clipmill.io/pool"]
        for executor, placed in platform["platforms"]["kubernetes"]["deploymentSpec"][
            "executors"
        ].items()
    }
    body = _graph(spec["root"]["dag"], spec["components"], pools, 0)
    name = spec["pipelineInfo"]["name"]
    key, keys = "", 0.0
    for pool, words in (("cpu", "on a CPU node"), ("gpu", "on a GPU node")):
        if pool in pools.values():
            key += _moved(_task(words, pool).svg, _PADDING + keys, 0.0)
            keys += _task(words, pool).width + 12
    width = max(body.width, keys) + 2 * _PADDING
    height = body.height + _TASK_HEIGHT + 4 * _PADDING
    inner = _moved(body.svg, (width - body.width) / 2, _PADDING)
    inner += _moved(key, 0.0, body.height + 3 * _PADDING)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="Graph of the pipeline {escape(name)}">\n<style>{_STYLE}</style>\n'
        f'<rect class="ground" width="100%" height="100%" rx="8"/>\n{inner}</svg>\n'
    )


def _graph(dag: Spec, components: Spec, pools: Mapping[str, str], depth: int) -> _Drawn:
    tasks = dag["tasks"]
    drawn = {}
    for name, task in tasks.items():
        component = components[task["componentRef"]["name"]]
        if "dag" in component:
            inner = _graph(component["dag"], components, pools, depth + 1)
            drawn[name] = _frame(_title(task), inner, depth)
        else:
            drawn[name] = _task(task["taskInfo"]["name"], pools[component["executorLabel"]])
    edges = [
        (above, name) for name, task in tasks.items() for above in task.get("dependentTasks", [])
    ]
    placed = layered({name: (d.width, d.height) for name, d in drawn.items()}, edges)
    svg = _lines(placed)
    svg += "".join(_moved(drawn[name].svg, *placed.corners[name]) for name in tasks)
    return _Drawn(svg=svg, width=placed.width, height=placed.height)


def _title(task: Spec) -> str:
    name = task["taskInfo"]["name"]
    if "parameterIterator" in task:
        items = task["parameterIterator"]["items"]
        if "raw" in items:
            return f"for each of {items['raw']}"
        source = items["inputParameter"].removeprefix("pipelinechannel--").removesuffix("-Output")
        return f"for each of {source}"
    return str(name)


def _task(name: str, pool: str) -> _Drawn:
    width = len(name) * _CHARACTER + 2 * _PADDING
    svg = (
        f'<rect class="{pool}" width="{width:.0f}" height="{_TASK_HEIGHT:.0f}" rx="6"/>'
        f'<text x="{width / 2:.0f}" y="22.5" text-anchor="middle">{escape(name)}</text>\n'
    )
    return _Drawn(svg=svg, width=width, height=_TASK_HEIGHT)


def _frame(title: str, inner: _Drawn, depth: int) -> _Drawn:
    width = max(inner.width, len(title) * _CHARACTER + _PADDING) + _PADDING
    height = inner.height + _TITLE + _PADDING
    shade = "" if depth % 2 == 0 else ' style="fill:var(--ground)"'
    svg = (
        f'<rect class="frame" width="{width:.0f}" height="{height:.0f}" rx="8"{shade}/>'
        f'<text class="title" x="12" y="20">{escape(title)}</text>\n'
        + _moved(inner.svg, (width - inner.width) / 2, _TITLE)
    )
    return _Drawn(svg=svg, width=width, height=height)


def _lines(placed: Layout) -> str:
    svg = ""
    for points in placed.lines:
        (x, y), *_ = points
        path = f"M{x:.1f} {y:.1f}"
        for (x0, y0), (x1, y1) in pairwise(points):
            middle = (y0 + y1) / 2
            path += f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
        x, y = points[-1]
        tip = f"{x:.1f},{y:.1f} {x - 4:.1f},{y - 8:.1f} {x + 4:.1f},{y - 8:.1f}"
        svg += f'<path d="{path}"/><polygon points="{tip}"/>\n'
    return svg


def _moved(svg: str, x: float, y: float) -> str:
    return f'<g transform="translate({x:.1f} {y:.1f})">{svg}</g>\n'


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
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = below[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    return [
        (above, under)
        for above, under in edges
        if not any(under in reached(other) for other in below[above] - {under})
    ]


def _ranks(names: Iterable[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Return the length of the longest path to each box."""
    ranks = dict.fromkeys(names, 0)
    for _ in ranks:
        for above, under in edges:
            ranks[under] = max(ranks[under], ranks[above] + 1)
    return ranks


def _order(rows: list[list[str]], links: Sequence[Edge]) -> None:
    """Sort each row by the mean position of its neighbors, down and up in turn."""
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        order = range(1, len(rows)) if downwards else range(len(rows) - 2, -1, -1)
        for i in order:
            fixed = rows[i - 1 if downwards else i + 1]
            position = {name: (k + 0.5) / len(fixed) for k, name in enumerate(fixed)}
            own = {name: (k + 0.5) / len(rows[i]) for k, name in enumerate(rows[i])}
            means = {}
            for name in rows[i]:
                met = [a if name == b else b for a, b in links if name in {a, b}]
                positions = [position[other] for other in met if other in position]
                means[name] = sum(positions) / len(positions) if positions else own[name]
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
