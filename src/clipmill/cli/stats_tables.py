"""A dataset's statistics on a terminal."""

from collections.abc import Mapping

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clipmill.data.distribution import QUANTILES, Distribution
from clipmill.data.stats import DatasetStats

_BARS = " ▁▂▃▄▅▆▇█"
# Columns of text, below which the median stands for all quantiles.
_WIDE = 120


def stats_tables(stats: DatasetStats, width: int) -> Group:
    """All tables, for a terminal of ``width`` columns; those without rows are left out."""
    quantiles = QUANTILES if width >= _WIDE else (0.5,)
    captions = {name.removeprefix("captions/"): found for name, found in stats.captions.items()}
    tables = (
        ("Words of a caption", "kind", {k: c.words for k, c in captions.items()}),
        ("Characters of a caption", "kind", {k: c.characters for k, c in captions.items()}),
        ("Pictures", "pixels or bytes", stats.pictures),
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
    """A row a distribution; where the terminal is narrow, names are broken and numbers aren't."""
    table = _table(title)
    table.add_column(first, overflow="fold")
    for name in ("number", "mean", "least", *(f"{q:.0%}" for q in quantiles), "most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("least to most", no_wrap=True)
    for name, d in rows.items():
        number = f"{d.count:,}" + (f" ({d.missing:,} missing)" if d.missing else "")
        at = dict(zip(QUANTILES, d.quantiles, strict=False))
        values = (d.mean, d.low, *(at[q] for q in quantiles), d.high) if d.count else ()
        histogram = [spark(d.bins)] if d.count else []
        table.add_row(name, number, *map(short, values), *histogram)
    return table


def short(value: float) -> str:
    """A number in few characters: whole from a hundred on, else three digits or so."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def spark(bins: tuple[int, ...]) -> str:
    """The histogram as blocks; a bin with anything in it shows at least the lowest."""
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
