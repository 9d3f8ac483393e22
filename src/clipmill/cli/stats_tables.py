"""A dataset's statistics on a terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clipmill.data.distribution import QUANTILES, Distribution
from clipmill.data.stats import DatasetStats

_BARS = " ▁▂▃▄▅▆▇█"


def stats_tables(stats: DatasetStats) -> Group:
    """All tables; those without rows are left out."""
    parts: list[RenderableType] = [_facts(stats)]
    captions = _distributions("Captions", "kind")
    for kind, found in stats.captions.items():
        captions.add_row(f"{kind}, words", *_cells(found.words))
        captions.add_row(f"{kind}, characters", *_cells(found.characters))
    parts.append(captions)
    pictures = _distributions("Pictures", "pixels or bytes")
    for name, distribution in stats.pictures.items():
        pictures.add_row(name, *_cells(distribution))
    parts.append(pictures)
    if stats.scores:
        scores = _distributions("Scores", "layer: column")
        for layer, columns in stats.scores.items():
            for column, distribution in columns.items():
                scores.add_row(f"{layer}: {column}", *_cells(distribution))
        parts.append(scores)
    return Group(*parts, *_verdicts(stats), *_layers(stats))


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
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _distributions(title: str, first: str) -> Table:
    table = _table(title)
    table.add_column(first)
    for name in ("number", "mean", "least", *(f"{q:.0%}" for q in QUANTILES), "most"):
        table.add_column(name, justify="right")
    table.add_column("least to most")
    return table


def _cells(distribution: Distribution) -> list[str]:
    number = f"{distribution.count:,}"
    if distribution.missing:
        number += f" ({distribution.missing:,} missing)"
    if not distribution.count:
        return [number]
    d = distribution
    values = (d.mean, d.low, *d.quantiles, d.high)
    return [number, *(short(value) for value in values), spark(d.bins)]


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
        columns = ", ".join(f"{column}: {kind}" for column, kind in layer.columns.items())
        table.add_row(name, layer.digest[:12], f"{layer.num_bytes / 1e6:,.2f}", columns)
    return [table]
