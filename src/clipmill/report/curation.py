"""Report of a selection: what each filter dropped, scores before and after, and samples."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer, resolve_layer
from clipmill.data.select import CAPTION_SELECTION, FILTERS_DETAIL, FilterStep, reject_reasons
from clipmill.data.semantic_duplicates import (
    EMBEDDING_COLUMN,
    SemanticDuplicateFilter,
    read_embeddings,
)
from clipmill.data.stats import (
    Distribution,
    StreamingRange,
    numbers,
    sample_shards,
    score_columns,
)
from clipmill.errors import BadSampleError, ConfigError
from clipmill.lineage import lineage
from clipmill.report.html.charts import before_after_histogram, format_number
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    document,
    image_tag,
    paragraph,
    section,
    tag,
)
from clipmill.report.preview import Position, SampleDetails, SamplesConfig, read_details
from clipmill.stage_records import ProgressCallback

KEPT = ""
"""Reason of kept samples."""

# Shards whose scores make the histograms: enough for their shape, however large the dataset.
_NUM_SHARDS = 64

# Columns that number something rather than measure it.
_UNMEASURED = ("score/concepts",)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationReportConfig(SamplesConfig):
    """Samples of a report: of those kept, and of those that each filter dropped."""

    num_samples: int = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class _Selection:
    """A select layer as it is reported."""

    layer: str
    counts: Mapping[str, int]
    """Samples by reason, KEPT first, then the filters in their order."""
    steps: Mapping[str, FilterStep]
    """Filters by reason; empty for layers that don't record them."""
    samples: Mapping[str, Sequence[Position]]
    """Samples to show, by reason."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def curation_page(
    dataset: Dataset,
    layer: str,
    config: CurationReportConfig,
    cache: Path,
    *,
    report: ProgressCallback,
) -> str:
    """Return a self-contained HTML page about a select layer, named in full or by its beginning.

    Raises:
        ConfigError: the dataset has no such layer.
        ArtifactError, StorageError: a shard or layer can't be read.
    """
    names = [name for name in dataset.layers if name.startswith("select/")]
    layer = resolve_layer(names, layer)
    report(0, 3, "counting")
    selection = _read_selection(dataset, layer, config, cache)
    report(1, 3, "comparing scores")
    shards = sample_shards(dataset, _NUM_SHARDS)
    histograms = list(_histograms(dataset, layer, shards, cache))
    report(2, 3, "reading samples")
    sections = [section("filters", "What each filter dropped", _funnel(selection))]
    if histograms:
        sections.append(_scores_section(histograms, len(shards), dataset))
    sections += _sample_sections(dataset, selection, cache)
    page = document(
        f"Curation of {_name(dataset)}",
        _header(dataset, selection),
        sections,
        stylesheets=["samples", "curation"],
    )
    report(3, 3, "drawn")
    return page


def _read_selection(
    dataset: Dataset, layer: str, config: CurationReportConfig, cache: Path
) -> _Selection:
    """Count the reasons, and draw samples of each: those with the lowest of random numbers."""
    random = np.random.default_rng(config.seed)
    counts: Counter[str] = Counter()
    drawn: dict[str, list[tuple[float, Position]]] = {}
    for shard, info in enumerate(dataset.shards):
        if not info.num_samples:
            continue
        table = read_layer(dataset, layer, shard, cache)
        keep = table["keep"].to_pylist()
        refused_by = (
            table["refused_by"].to_pylist()
            if "refused_by" in table.column_names
            else [None] * len(keep)
        )
        reasons = np.array(
            [KEPT if k else r or "unnamed" for k, r in zip(keep, refused_by, strict=True)]
        )
        draws = random.random(len(reasons))
        for reason in dict.fromkeys(reasons.tolist()):
            rows = np.flatnonzero(reasons == reason)
            counts[reason] += len(rows)
            lowest = rows[np.argsort(draws[rows])[: config.num_samples]]
            candidates = [(float(draws[row]), (shard, int(row))) for row in lowest]
            drawn[reason] = sorted([*drawn.get(reason, []), *candidates])[: config.num_samples]
    stored = lineage(dataset.layer_uri(layer)).detail.get(FILTERS_DETAIL, "[]")
    steps = tuple(FilterStep.from_json(step) for step in json.loads(stored))
    known = reject_reasons(steps)
    rest = [reason for reason, _ in counts.most_common() if reason not in {KEPT, *known}]
    order = [KEPT, *(r for r in known if r != CAPTION_SELECTION or counts[r]), *rest]
    return _Selection(
        layer=layer,
        counts={reason: counts[reason] for reason in order},
        steps=dict(zip(known[1:], steps, strict=True)),
        samples={reason: [place for _, place in drawn.get(reason, [])] for reason in order},
    )


def _name(dataset: Dataset) -> str:
    return dataset.uri.rstrip("/").rpartition("/")[2] or dataset.uri


def _header(dataset: Dataset, selection: _Selection) -> Html:
    kept = selection.counts[KEPT]
    facts = {
        "samples before": f"{selection.total:,}",
        "kept": f"{kept:,}",
        "share kept": f"{kept / selection.total:.1%}" if selection.total else "none",
        "dropped": f"{selection.total - kept:,}",
        "filters": f"{len(selection.counts) - 1}",
    }
    pairs = (tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items())
    return concat(
        paragraph("clipmill data selection-report", class_="kicker"),
        tag("h1", f"Curation of {_name(dataset)}"),
        paragraph(tag("code", selection.layer), " of ", tag("code", dataset.uri), class_="caveat"),
        tag("dl", pairs, class_="facts"),
    )


def _funnel(selection: _Selection) -> Html:
    """A bar a filter: what it dropped of the samples that reached it."""
    left = total = max(1, selection.total)
    rows: list[Html] = []
    for reason, count in selection.counts.items():
        if reason == KEPT:
            continue
        share = f"{count / left:.1%} of {left:,}" if left else ""
        settings = _settings(selection.steps.get(reason))
        rows += [
            tag("div", reason, tag("small", settings) if settings else "", class_="name"),
            tag(
                "div",
                tag("i", style=f"width: {100 * (left - count) / total:.2f}%"),
                tag("i", class_="dropped", style=f"width: {100 * count / total:.2f}%"),
                class_="remaining",
                role="img",
                aria_label=f"{reason} dropped {count:,}, {left - count:,} are left",
            ),
            tag("div", f"{count:,}", tag("small", share), class_="count"),
        ]
        left -= count
    return concat(
        _legend({"left after the filter": "var(--series-0)", "dropped by it": "var(--bad)"}),
        tag("div", rows, class_="funnel"),
        paragraph(
            "Each filter sees what those above it left. Bars are of all samples.", class_="caveat"
        ),
    )


def _legend(entries: Mapping[str, str]) -> Html:
    items = (tag("span", tag("i", style=f"background: {c}"), name) for name, c in entries.items())
    return tag("div", *items, class_="legend")


def _settings(step: FilterStep | None) -> str:
    """Return a filter's settings that differ from their defaults, or what has none."""
    if step is None:
        return ""
    defaults = {
        field.name: field.default for field in type(step.config).__dataclass_fields__.values()
    }
    shown = {name: value for name, value in step.settings.items() if value != defaults[name]}
    return ", ".join(f"{name} {_format(value)}" for name, value in shown.items())


def _format(value: Any) -> str:
    return format_number(value) if isinstance(value, float) else str(value)


def _histograms(dataset: Dataset, layer: str, shards: list[int], cache: Path) -> Iterator[Html]:
    """Yield a histogram of all and of kept samples for each score."""
    for name in sorted(dataset.layers):
        if not name.startswith("score/") or name.startswith(_UNMEASURED):
            continue
        ranges: dict[str, StreamingRange] = {}
        for shard in shards:
            table = read_layer(dataset, name, shard, cache)
            for column in score_columns(table):
                ranges.setdefault(column, StreamingRange()).add(numbers(table[column]))
        for column, extent in ranges.items():
            if not extent.count:
                continue

            def values(
                *, kept_only: bool, column: str = column, name: str = name
            ) -> Iterator[NDArray[np.float64]]:
                for shard in shards:
                    table = read_layer(dataset, name, shard, cache, columns=[column])
                    scores = numbers(table[column])
                    if kept_only:
                        keep = read_layer(dataset, layer, shard, cache, columns=["keep"])["keep"]
                        scores = scores[keep.to_numpy()]
                    yield scores

            before = extent.distribution(values(kept_only=False))
            after = _within(extent, values(kept_only=True))
            short = name.partition("/")[2].rpartition("-")[0] or name.partition("/")[2]
            title = column if column == short else f"{short}: {column}"
            yield before_after_histogram(title, before, after)


def _within(extent: StreamingRange, pieces: Iterator[NDArray[np.float64]]) -> Distribution:
    """Return the distribution of a part of the values, over the range of all."""
    scores = list(pieces)
    part = StreamingRange()
    for piece in scores:
        part.add(piece)
    part.low, part.high = extent.low, extent.high
    return part.distribution(scores)


def _scores_section(histograms: Sequence[Html], num_shards: int, dataset: Dataset) -> Section:
    filled = sum(shard.num_samples > 0 for shard in dataset.shards)
    over = "all samples" if num_shards == filled else f"{num_shards} of {filled:,} shards"
    return section(
        "scores",
        "Scores before and after",
        paragraph(f"Over {over}; of several captions' scores the highest.", class_="caveat"),
        _legend(
            {
                "all samples": "color-mix(in srgb, var(--soft) 32%, transparent)",
                "kept": "var(--series-0)",
            }
        ),
        tag("div", histograms, class_="histograms"),
    )


def _sample_sections(dataset: Dataset, selection: _Selection, cache: Path) -> Iterator[Section]:
    partners = {
        reason: _nearest_kept(dataset, selection, reason, cache)
        for reason, step in selection.steps.items()
        if isinstance(step.config, SemanticDuplicateFilter) and selection.samples[reason]
    }
    positions = [place for places in selection.samples.values() for place in places]
    positions += [place for pairs in partners.values() for place, _ in pairs.values()]
    samples = read_details(dataset, positions, cache)
    for reason, places in selection.samples.items():
        if not places:
            continue
        count = selection.counts[reason]
        drawn = f"{len(places)} of {count:,}, drawn at random."
        step = selection.steps.get(reason)
        if reason in partners:
            note = f"{drawn} Each is beside the kept image that is most similar."
            cards = [_pair(samples, place, partners[reason].get(place)) for place in places]
            wall = tag("div", cards, class_="wall pairs")
        else:
            note = drawn
            wall = tag("div", (_card(samples[p], step) for p in places), class_="wall")
        anchor, heading = (
            ("kept", "Kept") if reason == KEPT else (f"dropped-{reason}", f"Dropped by {reason}")
        )
        yield section(anchor, heading, paragraph(note, class_="caveat"), wall)


def _card(details: SampleDetails, step: FilterStep | None) -> Html:
    return tag(
        "article",
        _figure(details, is_dropped=step is not None),
        _caption(details),
        _facts(details, step),
    )


def _pair(
    samples: Mapping[Position, SampleDetails],
    place: Position,
    partner: tuple[Position, float] | None,
) -> Html:
    figures = [_figure(samples[place], "dropped", is_dropped=True)]
    facts = ""
    if partner is not None:
        figures.append(_figure(samples[partner[0]], "kept"))
        facts = f"cosine similarity {partner[1]:.4f}"
    return tag(
        "article",
        tag("div", figures, class_="images"),
        _caption(samples[place]),
        paragraph(facts, class_="facts-line"),
    )


def _figure(details: SampleDetails, label: str = "", *, is_dropped: bool = False) -> Html:
    uid = details.record.uid
    try:
        image = image_tag(details.image, f"Image {uid}")
    except BadSampleError as bad:
        image = tag("div", f"{bad.reason}: {bad.detail}", class_="broken")
    caption = tag("figcaption", f"{label} " if label else "", tag("code", uid[:12]))
    return tag("figure", image, caption, class_="dropped" if is_dropped and label else "")


def _caption(details: SampleDetails) -> Html:
    text = details.record.caption
    return paragraph(text if len(text) <= 140 else f"{text[:140]}…", dir_="auto")


def _facts(details: SampleDetails, step: FilterStep | None) -> Html:
    """The values that the filter read."""
    if step is None:
        return Html("")
    facts = []
    of_captions = {
        name: value for kind in details.captions[:1] for name, value in kind.scores.items()
    }
    for prefix, columns in step.config.required_columns.items():
        for name, value in {**details.scores, **of_captions}.items():
            layer, _, column = name.partition(": ")
            is_read = layer == prefix or layer.startswith(f"{prefix}-")
            if is_read and (not column or column in columns):
                shown = "missing" if value is None else format_number(value)
                facts.append(f"{column or prefix.partition('/')[2]} {shown}")
    return paragraph(" · ".join(facts), class_="facts-line") if facts else Html("")


def _nearest_kept(
    dataset: Dataset, selection: _Selection, reason: str, cache: Path
) -> dict[Position, tuple[Position, float]]:
    """Return for each shown sample the kept one that is most similar, and how much."""
    config = selection.steps[reason].config
    assert isinstance(config, SemanticDuplicateFilter)
    try:
        layer = resolve_layer(dataset.layers, config.layer)
    except ConfigError:  # the layer that was read is no longer the only one
        return {}
    places = selection.samples[reason]
    queries = []
    for shard, row in places:
        column = read_layer(dataset, layer, shard, cache)[EMBEDDING_COLUMN].combine_chunks()
        queries.append(read_embeddings(layer, column, np.array([row]))[0])
    query_QD = _unit(np.stack(queries))
    best = np.full(len(places), -np.inf, np.float32)
    nearest: list[Position] = [(-1, -1)] * len(places)
    for shard, info in enumerate(dataset.shards):
        if not info.num_samples:
            continue
        column = read_layer(dataset, layer, shard, cache)[EMBEDDING_COLUMN].combine_chunks()
        keep = read_layer(dataset, selection.layer, shard, cache, columns=["keep"])["keep"]
        rows = np.flatnonzero(keep.to_numpy() & column.is_valid().to_numpy(zero_copy_only=False))
        if not len(rows):
            continue
        similarity_QN = query_QD @ _unit(read_embeddings(layer, column, rows)).T
        index = similarity_QN.argmax(axis=1)
        value = similarity_QN[np.arange(len(places)), index]
        for number in np.flatnonzero(value > best):
            best[number] = value[number]
            nearest[number] = (shard, int(rows[index[number]]))
    return {
        place: (partner, float(value))
        for place, partner, value in zip(places, nearest, best, strict=True)
        if value > -np.inf
    }


def _unit(embeddings_ND: NDArray[np.float16]) -> NDArray[np.float32]:
    values_ND = embeddings_ND.astype(np.float32)
    unit_ND: NDArray[np.float32] = values_ND / np.linalg.norm(values_ND, axis=1, keepdims=True)
    return unit_ND
