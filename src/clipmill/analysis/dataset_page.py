"""Samples of a dataset on one page: pictures, every kind of caption, scores, verdicts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipmill.analysis.dataset_style import DATASET_STYLE
from clipmill.analysis.histogram import histogram
from clipmill.analysis.page import Html, Section, document, paragraph, section, tag, together
from clipmill.analysis.sample_card import sample_card
from clipmill.analysis.sample_choice import PageConfig, choose
from clipmill.analysis.sample_details import read_details
from clipmill.analysis.style import series_colour
from clipmill.data.dataset import Dataset
from clipmill.data.distribution import Distribution
from clipmill.data.stats import REAL, chosen_shards, score_distributions
from clipmill.stage_records import Report

__all__ = ["PageConfig", "dataset_page"]

# Shards whose scores make the figures: enough for their shape, however large the dataset.
_NUM_SHARDS = 64

Distributions = Mapping[str, Mapping[str, Distribution]]


def dataset_page(dataset: Dataset, config: PageConfig, cache: Path, *, report: Report) -> str:
    """A self-contained HTML page.

    Raises ConfigError if the dataset has no such uid or score, ArtifactError or StorageError if a
    shard or layer can't be read.
    """
    report(0, 2, "choosing samples")
    chosen = choose(dataset, config, cache)
    shards = chosen_shards(dataset, _NUM_SHARDS)
    scores: Distributions = {
        layer: score_distributions(dataset, layer, shards, cache)
        for layer in sorted(dataset.layers)
        if layer.startswith("score/")
    }
    report(1, 2, "reading samples")
    places = [place for group in chosen for place in group.places]
    details = read_details(dataset, places, cache)
    kinds = [REAL, *(name for name in sorted(dataset.layers) if name.startswith("captions/"))]
    colours = {kind: series_colour(number) for number, kind in enumerate(kinds)}
    sections = list(_scores_section(scores, len(shards), dataset, colours))
    for group in chosen:
        cards = (
            sample_card(details[place], number, colours, scores)
            for number, place in enumerate(group.places, 1)
        )
        note = paragraph(group.note, class_="caveat") if group.note else Html("")
        sections.append(section(group.anchor, group.heading, note, *cards))
    page = document(
        f"Samples of {_name(dataset)}", _header(dataset, kinds), sections, style=DATASET_STYLE
    )
    report(2, 2, "drawn")
    return page


def _name(dataset: Dataset) -> str:
    return dataset.uri.rpartition("/")[2] or dataset.uri


def _header(dataset: Dataset, kinds: list[str]) -> Html:
    left_out = sum(dataset.quarantine.values())
    facts: dict[str, Any] = {
        "samples": f"{dataset.num_samples:,}",
        "shards": f"{len(dataset.shards):,}",
        "size": _size(sum(shard.num_bytes for shard in dataset.shards)),
        "kinds of captions": len(kinds),
        "layers": len(dataset.layers),
        "left out": f"{left_out:,}",
    }
    pairs = (tag("div", tag("dt", name), tag("dd", str(value))) for name, value in facts.items())
    return together(
        paragraph("clipmill data view", class_="kicker"),
        tag("h1", f"Samples of {_name(dataset)}"),
        paragraph(tag("code", dataset.uri), class_="caveat"),
        tag("dl", pairs, class_="facts"),
    )


def _scores_section(
    scores: Distributions, num_shards: int, dataset: Dataset, colours: Mapping[str, str]
) -> Iterator[Section]:
    """A row of figures a layer; those of a kind of caption in its colour."""
    by_column = {kind.removeprefix("captions/"): colour for kind, colour in colours.items()}
    rows = []
    for layer, columns in scores.items():
        figures = [
            histogram(column, distribution, {**by_column, **colours}.get(column, "var(--soft)"))
            for column, distribution in columns.items()
            if distribution.count
        ]
        if figures:
            rows.append(together(tag("h3", layer), tag("div", figures, class_="histograms")))
    if not rows:
        return
    filled = sum(shard.num_samples > 0 for shard in dataset.shards)
    over = "all samples" if num_shards == filled else f"{num_shards} of {filled:,} shards"
    note = paragraph(f"Over {over}. The dashed line is the median.", class_="caveat")
    yield section("scores", "Scores", note, rows)


def _size(num_bytes: int) -> str:
    size, units = float(num_bytes), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}" if size < 1000 else f"{size:,.0f} {units[0]}"
