"""Tables of a dataset's statistics for a terminal.

A module of its own, since rich and pyarrow are slow to import and one command needs them.
"""

from collections.abc import Mapping

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clipmill.data.stats import NUM_BINS, QUANTILES, DatasetStats, Distribution

_BARS = " ▁▂▃▄▅▆▇█"
# Columns of text; a narrower terminal gets the median alone.
_MIN_WIDTH_FOR_QUANTILES = 120

_MIN_NAME_WIDTH = 12

# Columns that numbers may take beside names and histograms on a narrow terminal.
_MAX_NUMBERS_WIDTH = 80 - _MIN_NAME_WIDTH - NUM_BINS - 4


def stats_tables(stats: DatasetStats, width: int) -> Group:
    """Return the tables that have rows, for a terminal of ``width`` columns."""
    quantiles = QUANTILES if width >= _MIN_WIDTH_FOR_QUANTILES else (0.5,)
    captions = {name.removeprefix("captions/"): c for name, c in stats.captions.items()}
    tables = (
        ("Words of a caption", "kind", {k: c.words for k, c in captions.items()}),
        ("Characters of a caption", "kind", {k: c.characters for k, c in captions.items()}),
        ("Images", "pixels or bytes", stats.images),
        (
            "Scores",
            "layer: column",
            {
                f"{layer}: {c}": d
                for layer, columns in stats.scores.items()
                for c, d in columns.items()
            },
        ),
    )
    return Group(
        _facts(stats),
        *(_distributions(*table, quantiles) for table in tables if table[-1]),
        *_verdicts(stats),
        *_layers(stats),
    )


def _facts(stats: DatasetStats) -> Table:
    table = Table.grid(padding=(0, 2))
    per_sample = [(k, c.per_sample) for k, c in stats.captions.items() if c.per_sample != 1]
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in sorted(stats.quarantine.items()))
    rows = {
        "dataset": stats.uri,
        "digest": stats.digest,
        "samples": f"{stats.num_samples:,} in {stats.num_shards:,} shards, "
        f"{stats.num_bytes / 1e6:,.1f} MB",
        "left out": left_out or "none",
        "files": ", ".join(f"{n:,} {suffix}" for suffix, n in stats.suffixes.items()) or "none",
        "read": f"{stats.shards_read:,} of {stats.num_shards:,} shards",
        **{f"{kind}": f"{mean:.2f} captions a sample" for kind, mean in per_sample},
    }
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(
        *columns,
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _distributions(
    title: str, first: str, rows: Mapping[str, Distribution], quantiles: tuple[float, ...]
) -> Table:
    """Return a table with a row for each distribution; a narrow terminal wraps names only.

    Histograms are left out where the numbers take their place.
    """
    is_narrow = len(quantiles) < len(QUANTILES)
    names = ("number", "mean", "least", *(f"{q:.0%}" for q in quantiles), "most")
    cells = [_cells(d, quantiles, is_narrow) for d in rows.values()]
    columns = zip(names, *(row for row in cells if len(row) == len(names)), strict=True)
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    has_bins = not is_narrow or sum(widths) + 2 * len(widths) <= _MAX_NUMBERS_WIDTH
    table = _table(title)
    table.add_column(first, overflow="fold", min_width=_MIN_NAME_WIDTH)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    if has_bins:
        table.add_column("least to most", no_wrap=True)
    for (name, d), row in zip(rows.items(), cells, strict=True):
        table.add_row(name, *row, *([sparkline(d.bins)] if d.count and has_bins else []))
    return table


def _cells(d: Distribution, quantiles: tuple[float, ...], is_narrow: bool) -> list[str]:
    missing = f"{d.missing:,} missing" if d.missing else ""
    number = f"{d.count:,}"
    if missing:
        number += f"\n{missing}" if is_narrow else f" ({missing})"
    at = dict(zip(QUANTILES, d.quantiles, strict=False))
    values = (d.mean, d.low, *(at[q] for q in quantiles), d.high) if d.count else ()
    return [number, *map(short, values)]


def short(value: float) -> str:
    """Format a number in few characters: whole from 100, else three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def sparkline(bins: tuple[int, ...]) -> str:
    """Draw a histogram with block characters; a bin that isn't empty gets at least the lowest."""
    most = max(bins)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in bins)


def _verdicts(stats: DatasetStats) -> list[Table]:
    if not stats.verdicts:
        return []
    table = _table("Verdicts", "layer", "kept", "refused", "by")
    for layer, verdict in stats.verdicts.items():
        by = ", ".join(f"{count:,} {reason}" for reason, count in verdict.reasons.items())
        table.add_row(layer, f"{verdict.kept:,}", f"{verdict.refused:,}", by)
    return [table]


def _layers(stats: DatasetStats) -> list[Table]:
    if not stats.layers:
        return []
    table = _table("Layers", "layer", "digest", "MB", "columns")
    for name, layer in stats.layers.items():
        size = f"{layer.num_bytes / 1e6:,.2f}"
        table.add_row(name, layer.digest[:12], size, ", ".join(layer.columns))
    return [table]
