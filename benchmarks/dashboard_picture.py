"""A Grafana dashboard's panels as a picture, as Grafana would show them: its colors and units."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

STEP_SECONDS = 2
"""Between two points of a line."""
_LINES = 12
_TITLE_LETTERS = 60
_LEGEND_LETTERS = 26
_WIDTH, _HEIGHT, _HEAD, _TITLE, _LEGEND_ROW = 5.2, 1.8, 0.4, 0.65, 0.15
"""Inches: of a panel, of its chart, of the head, of room for a title and for a row of a legend."""
_PAGE, _PANEL, _GRID, _TEXT, _FAINT = "#111217", "#181b1f", "#2c3038", "#d5d5df", "#8e8e9a"
_COLORS = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2"),
    *("#b877d9", "#96d98d", "#ffcb7d", "#37872d", "#e0b400", "#c0d8ff"),
)
_STYLE = {
    "axes.edgecolor": _GRID,
    "axes.facecolor": _PANEL,
    "axes.prop_cycle": plt.cycler(color=_COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": _PAGE,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "grid.color": _GRID,
    "text.color": _TEXT,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
}
_UNITS = {
    "percentunit": PercentFormatter(1),
    "s": EngFormatter("s"),
    "bytes": EngFormatter("B"),
    "lengthm": EngFormatter("m"),
    "short": FuncFormatter(lambda value, _: f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"),
}
"""By Grafana's names of them."""

Line = dict[str, Any]
"""A series of Prometheus's answer, and the ``quantile`` that its query is of."""


def draw(board: dict[str, Any], answers: list[list[Line]], start: float, file: Path) -> None:
    """Write the picture; its times are minutes and seconds since ``start``."""
    panels = board["panels"]
    columns = 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    seconds = [float(t) - start for lines in answers for s in lines for t, _ in s["values"]]
    with plt.rc_context(_STYLE):
        between = _TITLE + _LEGEND_ROW * max(
            -(-min(len(lines), _LINES) // _legend_columns(legend(lines))) for lines in answers
        )
        width, height = _WIDTH * columns, (_HEIGHT + between) * rows + _HEAD
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
        figure.subplots_adjust(
            left=0.55 / width,
            right=1 - 0.15 / width,
            bottom=between / height,
            top=1 - 2 * _HEAD / height,
            wspace=0.14,
            hspace=between / _HEIGHT,
        )
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for panel, lines, axis in zip(panels, answers, axes.flat, strict=False):
            title = textwrap.fill(panel["title"], _TITLE_LETTERS)
            axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
            if lines:
                _plot(axis, panel["fieldConfig"]["defaults"]["unit"], lines, start)
                axis.set_xlim(min(seconds), max(seconds))
            else:
                axis.set(xticks=[], yticks=[])
                place = {"x": 0.5, "y": 0.5, "ha": "center", "va": "center"}
                axis.text(
                    s="nothing of the kind happened",
                    **place,
                    color=_FAINT,
                    transform=axis.transAxes,
                )
        figure.text(
            *(0.15 / width, 1 - 0.3 / height, board["title"]), fontsize=13, fontweight="bold"
        )
        figure.savefig(file, dpi=100)
        plt.close(figure)
    with Image.open(file) as picture:
        method = Image.Quantize.MAXCOVERAGE  # the others merge the lines' colors
        small = picture.convert("RGB").quantize(128, method=method, kmeans=1)
    small.save(file, optimize=True)


def _plot(axis: Axes, unit: str, lines: list[Line], start: float) -> None:
    highest, names = 0.0, legend(lines)
    shown = sorted(zip(names, lines, strict=True), key=lambda named: -_mean(named[1]))
    for name, line in sorted(shown[:_LINES], key=lambda named: named[0]):
        seconds, values = _with_gaps(line)
        (drawn,) = axis.plot(seconds - start, values, linewidth=1.3, label=name or None)
        gone = np.isnan(np.concatenate(([np.nan], values, [np.nan])))
        alone = gone[:-2] & ~gone[1:-1] & gone[2:]  # a line needs two
        axis.plot(seconds[alone] - start, values[alone], ".", color=drawn.get_color())
        highest = max(highest, float(np.nanmax(values, initial=0.0)))
    # A line that is zero throughout lies on the ground.
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]), top=highest * 1.1 or 1.0)
    axis.grid(visible=True, linewidth=0.6)
    axis.tick_params(length=0)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{s // 60:.0f}:{s % 60:02.0f}"))
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 3, 6, 10]))
    axis.yaxis.set_major_formatter(_UNITS[unit])
    axis.yaxis.set_major_locator(MaxNLocator(5))
    if any(names):
        axis.legend(
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.1),
            ncols=_legend_columns(names),
            fontsize=7,
            frameon=False,
            handlelength=1.2,
            columnspacing=1.2,
        )


def legend(lines: list[Line]) -> list[str]:
    """A name a line: its quantile, and as few and short labels as tell the lines apart."""
    labels = {key for line in lines for key in line["metric"]} - {"__name__", "instance", "job"}
    longest = sorted(
        labels,
        key=lambda k: (max(len(line["metric"].get(k, "")) for line in lines), k),
        reverse=True,
    )
    kept = sorted(labels)
    for label in longest:
        fewer = [k for k in kept if k != label]
        if len({_name(line, fewer) for line in lines}) == len(lines):
            kept = fewer
    return [_name(line, kept) for line in lines]


def _legend_columns(names: list[str]) -> int:
    return 3 if max(map(len, names), default=0) < _LEGEND_LETTERS else 2


def _name(line: Line, labels: list[str]) -> str:
    return " ".join(filter(None, [line["quantile"], *(line["metric"].get(k, "") for k in labels)]))


def _mean(line: Line) -> float:
    return float(np.mean([float(value) for _, value in line["values"]]))


def _with_gaps(line: Line) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times and values, with a NaN wherever the series was away for a while."""
    times, values = np.array(line["values"], float).T
    away = np.flatnonzero(np.diff(times) > 1.5 * STEP_SECONDS) + 1
    return np.insert(times, away, times[away]), np.insert(values, away, np.nan)
