"""Preview of a dataset: an HTML page of samples with captions, scores and selections."""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.config import Config
from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.shards.read import SampleRecord, read_records, read_shard
from clipmill.data.stats import (
    REAL,
    Distribution,
    numbers,
    sample_shards,
    score_columns,
    score_distributions,
)
from clipmill.errors import BadSampleError, ConfigError
from clipmill.report.html.charts import format_number, histogram, normalized_position, share_below
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    document,
    image_tag,
    paragraph,
    section,
    series_color,
    tag,
)
from clipmill.stage_records import ProgressCallback

# Reading small remote sidecars is latency-bound, so several are read at once.
_NUM_READERS = 16
MAX_SAMPLES = 500
"""Maximum samples of a page that browsers still open."""
# Shards whose scores make the histograms: enough for their shape, however large the dataset.
_NUM_SHARDS = 64

_SCALARS = (bool, int, float, str)
# Characters of a caption that are shown.
_MAX_CHARACTERS = 500

Scores = Mapping[str, Mapping[str, Distribution]]
"""Scores by score layer and column."""

Position = tuple[int, int]
"""Shard and row of a sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesConfig(Config):
    """Number and random choice of a page's samples."""

    num_samples: int = 24
    """Samples of each choice."""
    seed: int = 0
    """Seed of the random choice."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not 1 <= self.num_samples <= MAX_SAMPLES:
            raise ConfigError(
                f"num_samples was {self.num_samples}",
                expected=f"1 to {MAX_SAMPLES}",
                action="set num_samples=24, say, and write several pages for more",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig(SamplesConfig):
    """Samples of a page: random ones, highest or lowest; random ones unless others are given."""

    uids: tuple[str, ...] = ()
    """Uids of samples, or their beginnings."""
    highest_by: str = ""
    """``LAYER:COLUMN`` of the score whose ``num_samples`` highest are shown; empty for none."""
    lowest_by: str = ""
    """``LAYER:COLUMN`` of the score whose ``num_samples`` lowest are shown; empty for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleGroup:
    """Samples selected by one criterion."""

    anchor: str
    heading: str
    note: str
    """Description of the criterion."""
    rows: tuple[Position, ...]
    """(shard, row) of each, in display order."""


@dataclass(kw_only=True, slots=True)
class CaptionSet:
    """A sample's captions of one kind."""

    kind: str
    """``real``, or the name of a captions layer."""
    texts: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    """Other columns of the layer."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """Score of these captions by score layer."""


@dataclass(kw_only=True, slots=True)
class SelectionDecision:
    """Decision of a selection layer."""

    rule: str
    kept: bool
    refused_by: str
    """Name of the filter; empty where the sample was kept or the layer lacks it."""
    facts: dict[str, Any]
    """Other columns of the layer."""


@dataclass(kw_only=True, slots=True)
class SampleDetails:
    """One sample."""

    record: SampleRecord
    shard: str
    """File name of its shard."""
    row: int
    image: bytes
    captions: list[CaptionSet]
    scores: dict[str, float | None]
    """Scores that aren't of one kind of caption, by ``layer: column``."""
    decisions: list[SelectionDecision]


def dataset_page(
    dataset: Dataset, config: PreviewConfig, cache: Path, *, report: ProgressCallback
) -> str:
    """Return a self-contained HTML page of samples.

    Raises:
        ConfigError: the dataset has no such uid or score.
        ArtifactError, StorageError: a shard or layer can't be read.
    """
    report(0, 2, "choosing samples")
    groups = select_samples(dataset, config, cache)
    shards = sample_shards(dataset, _NUM_SHARDS)
    scores: Scores = {
        layer: score_distributions(dataset, layer, shards, cache)
        for layer in sorted(dataset.layers)
        if layer.startswith("score/")
    }
    report(1, 2, "reading samples")
    positions = [position for group in groups for position in group.rows]
    details = read_details(dataset, positions, cache)
    kinds = [REAL, *(name for name in sorted(dataset.layers) if name.startswith("captions/"))]
    colors = {kind: series_color(number) for number, kind in enumerate(kinds)}
    sections = list(_scores_section(scores, len(shards), dataset, colors))
    for group in groups:
        cards = (
            sample_card(details[position], number, colors, scores)
            for number, position in enumerate(group.rows, 1)
        )
        note = paragraph(group.note, class_="caveat") if group.note else Html("")
        sections.append(section(group.anchor, group.heading, note, *cards))
    page = document(
        f"Samples of {_name(dataset)}", _header(dataset, kinds), sections, stylesheets=["samples"]
    )
    report(2, 2, "drawn")
    return page


def select_samples(dataset: Dataset, config: PreviewConfig, cache: Path) -> list[SampleGroup]:
    """Select the samples of ``config``.

    Raises:
        ConfigError: there is no such sample or score.
    """
    groups = []
    if config.uids:
        rows = tuple(_named(dataset, config.uids))
        groups.append(SampleGroup(anchor="named", heading="By uid", note="", rows=rows))
    for anchor, score in (("best", config.highest_by), ("worst", config.lowest_by)):
        if score:
            rows = _extremes(dataset, score, config.num_samples, cache, highest=anchor == "best")
            note = f"The {len(rows)} {'highest' if anchor == 'best' else 'lowest'}, in order."
            heading = f"{anchor.capitalize()} by {score}"
            groups.append(SampleGroup(anchor=anchor, heading=heading, note=note, rows=rows))
    if not groups:
        rows = _random(dataset, config.num_samples, config.seed)
        note = f"{len(rows)} of {dataset.num_samples:,}, drawn with seed {config.seed}."
        groups = [SampleGroup(anchor="random", heading="At random", note=note, rows=rows)]
    return groups


def _named(dataset: Dataset, names: Sequence[str]) -> Iterator[Position]:
    matches: dict[str, list[Position]] = {name: [] for name in names}
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        shards = readers.map(dataset.uids, range(len(dataset.shards)))
        for shard, uids in enumerate(shards):
            for row, uid in enumerate(uids):
                for name in names:
                    if uid.startswith(name):
                        matches[name].append((shard, row))
    missing = [name for name in names if not matches[name]]
    if missing:
        raise ConfigError(
            f"{dataset.uri} has no sample {', '.join(missing)}",
            expected="uids of its samples, or how they begin",
            action="take them from a page, a layer, or the shards' .json files",
        )
    yield from dict.fromkeys(p for name in names for p in matches[name][:MAX_SAMPLES])


def _random(dataset: Dataset, count: int, seed: int) -> tuple[Position, ...]:
    total = dataset.num_samples
    drawn = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    ends = np.cumsum([shard.num_samples for shard in dataset.shards])
    rows = []
    for position in drawn.tolist():
        shard = int(np.searchsorted(ends, position, side="right"))
        rows.append((shard, position - int(ends[shard] - dataset.shards[shard].num_samples)))
    return tuple(rows)


def _extremes(
    dataset: Dataset, score: str, count: int, cache: Path, *, highest: bool
) -> tuple[Position, ...]:
    """Return the positions of the highest or lowest values; missing ones are skipped."""
    layer, _, column = score.partition(":")
    if layer not in dataset.layers:
        known = [name for name in sorted(dataset.layers) if name.startswith("score/")]
        raise _unknown_score_error(score, [f"{name}:COLUMN" for name in known])
    sign = 1.0 if highest else -1.0
    top: list[tuple[float, int, int]] = []
    for shard, info in enumerate(dataset.shards):
        if not info.num_samples:
            continue
        table = read_layer(dataset, layer, shard, cache)
        if column not in score_columns(table):
            raise _unknown_score_error(score, [f"{layer}:{name}" for name in score_columns(table)])
        values = sign * numbers(table[column])
        order = np.argsort(-values, kind="stable")[:count]  # NaN comes last
        # Of equal values, the first in the dataset.
        rows = [(values[r], -shard, -r) for r in order.tolist() if not np.isnan(values[r])]
        top = heapq.nlargest(count, [*top, *rows])
    return tuple((-shard, -row) for _, shard, row in top)


def _unknown_score_error(score: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"there is no score {score!r}",
        expected=f"one of {', '.join(known)}" if known else "a score layer, but there is none",
        action="name such a score" if known else "score the dataset first",
    )


def read_details(
    dataset: Dataset, positions: Sequence[Position], cache: Path
) -> dict[Position, SampleDetails]:
    """Read the samples at these (shard, row); each shard is opened once."""
    details_by_position = {}
    for shard in sorted({shard for shard, _ in positions}):
        rows = sorted({row for index, row in positions if index == shard})
        tables = {
            name: read_layer(dataset, name, shard, cache)
            for name in sorted(dataset.layers)
            if name.partition("/")[0] in ("captions", "score", "select")
        }
        records = list(read_records(dataset, shard, cache))
        with read_shard(dataset, shard, cache) as reader:
            for row in rows:
                details = SampleDetails(
                    record=records[row],
                    shard=dataset.shards[shard].name,
                    row=row,
                    image=reader.image(row),
                    captions=[CaptionSet(kind=REAL, texts=[records[row].caption])],
                    scores={},
                    decisions=[],
                )
                for name, table in tables.items():
                    _add(details, name, table, row)
                details_by_position[shard, row] = details
    return details_by_position


def _add(details: SampleDetails, layer: str, table: pa.Table, row: int) -> None:
    """Add a layer's values for a sample; caption layers come first, by their names."""
    values: dict[str, Any] = table.slice(row, 1).to_pylist()[0]
    del values["uid"]
    if layer.startswith("captions/"):
        kind = CaptionSet(kind=layer, texts=values.pop("captions"))
        kind.facts = {k: v for k, v in values.items() if _is_shown(v)}
        details.captions.append(kind)
    elif layer.startswith("score/"):
        for column in score_columns(table):
            kinds = [kind for kind in details.captions if _names(column, kind.kind)]
            number = float(numbers(table[column].slice(row, 1))[0])
            score = None if math.isnan(number) else number
            for kind in kinds:
                kind.scores[layer] = score
            if not kinds:
                details.scores[f"{layer}: {column}"] = score
    else:
        kept, refused_by = bool(values.pop("keep", True)), values.pop("refused_by", None)
        facts = {k: v for k, v in values.items() if _is_shown(v)}
        details.decisions.append(
            SelectionDecision(rule=layer, kept=kept, refused_by=refused_by or "", facts=facts)
        )


def _names(column: str, kind: str) -> bool:
    """Return whether a score's column is of this kind of caption, with or without folder."""
    return column in (kind, kind.partition("/")[2])


def _is_shown(value: object) -> bool:
    plain = value if isinstance(value, list) else [value]
    return value not in (None, "", [], False) and all(isinstance(v, _SCALARS) for v in plain)


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
    return concat(
        paragraph("clipmill data preview", class_="kicker"),
        tag("h1", f"Samples of {_name(dataset)}"),
        paragraph(tag("code", dataset.uri), class_="caveat"),
        tag("dl", pairs, class_="facts"),
    )


def _scores_section(
    scores: Scores, num_shards: int, dataset: Dataset, colors: Mapping[str, str]
) -> Iterator[Section]:
    """A row of figures a layer; those of a kind of caption in its color."""
    by_column = {kind.removeprefix("captions/"): color for kind, color in colors.items()}
    rows = []
    for layer, columns in scores.items():
        figures = [
            histogram(column, distribution, {**by_column, **colors}.get(column, "var(--soft)"))
            for column, distribution in columns.items()
            if distribution.count
        ]
        if figures:
            rows.append(concat(tag("h3", layer), tag("div", figures, class_="histograms")))
    if not rows:
        return
    filled = sum(shard.num_samples > 0 for shard in dataset.shards)
    over = "all samples" if num_shards == filled else f"{num_shards} of {filled:,} shards"
    note = paragraph(f"Over {over}. The dashed line is the median.", class_="caveat")
    yield section("scores", "Scores", note, rows)


def sample_card(
    details: SampleDetails, rank: int, colors: Mapping[str, str], scores: Scores
) -> Html:
    """Return a sample with all its data; ``colors`` are by kind of caption."""
    record = details.record
    kinds = (_kind(kind, colors[kind.kind], scores) for kind in details.captions)
    return tag(
        "article",
        tag("div", paragraph(f"{rank}", class_="rank"), _picture(details), class_="shown"),
        tag("div", *kinds, class_="kinds"),
        _about(details, scores),
        class_="sample",
        id=f"uid-{record.uid}",
    )


def _picture(details: SampleDetails) -> Html:
    try:
        # The captions beside it say what the image shows.
        return image_tag(details.image, f"Image {details.record.uid}")
    except BadSampleError as bad:
        return tag("div", f"{bad.reason}: {bad.detail}", class_="broken")


def _kind(kind: CaptionSet, color: str, scores: Scores) -> Html:
    name = kind.kind.removeprefix("captions/")
    per_text = [
        " · ".join(
            f"{key} {_value(values[i])}"
            for key, values in kind.facts.items()
            if isinstance(values, list) and len(values) == len(kind.texts)
        )
        for i in range(len(kind.texts))
    ]
    texts = [
        concat(_text(text), " " if note else "", tag("small", note) if note else "")
        for text, note in zip(kind.texts, per_text, strict=True)
    ]
    if len(texts) == 1:
        body = tag("p", texts[0], dir="auto")
    else:
        body = tag("ol", (tag("li", text, dir="auto") for text in texts))
    rows = (
        _score(layer, value, _of_kind(scores.get(layer, {}), kind.kind))
        for layer, value in kind.scores.items()
    )
    scalars = {k: v for k, v in kind.facts.items() if not isinstance(v, list)}
    lengths = ", ".join(f"{len(text.split()):,}" for text in kind.texts)
    facts = [f"{lengths} word{'' if lengths == '1' else 's'}", *_facts(scalars)]
    return tag(
        "div",
        tag("h3", tag("i"), name, style=f"color: {color}"),
        body,
        paragraph(" · ".join(facts), class_="facts-line"),
        tag("ul", rows, class_="scores", style=f"color: {color}") if kind.scores else "",
        class_="kind",
    )


def _text(text: str) -> Html:
    more = len(text) - _MAX_CHARACTERS
    if more <= 0:
        return concat(text)
    rest = tag("span", f"… {more:,} more characters", class_="rest")
    return concat(text[:_MAX_CHARACTERS], rest)


def _of_kind(columns: Mapping[str, Distribution], kind: str) -> Distribution | None:
    return columns.get(kind) or columns.get(kind.partition("/")[2])


def _score(name: str, value: float | None, distribution: Distribution | None) -> Html:
    if value is None:
        return tag("li", tag("span", name, class_="name"), tag("span", "missing", class_="missing"))
    gauge: Html | str = ""
    if distribution and distribution.count:
        width = f"width: {100 * normalized_position(value, distribution):.1f}%"
        title = f"above {share_below(value, distribution):.0%} of all"
        gauge = tag("span", tag("i", style=width), class_="gauge", title=title)
    label = tag("span", name, class_="name")
    ink = tag("b", format_number(value), style="color: var(--ink)")
    return tag("li", label, ink, gauge)


def _about(details: SampleDetails, scores: Scores) -> Html:
    record = details.record
    parts: list[Html] = [_pill(decision) for decision in details.decisions]
    for name, value in details.scores.items():
        layer, _, column = name.partition(": ")
        distribution = scores.get(layer, {}).get(column)
        shown = "missing" if value is None else format_number(value)
        share = (
            f", above {share_below(value, distribution):.0%}"
            if value is not None and distribution and distribution.count
            else ""
        )
        parts.append(tag("span", f"{name} {shown}{share}"))
    link = tag("a", tag("code", record.uid), href=f"#uid-{record.uid}")
    size = f"{record.width} x {record.height} pixels, {record.image_bytes / 1000:,.1f} kB"
    parts += [link, tag("span", size), tag("code", record.origin)]
    parts.append(tag("span", f"{details.shard}, row {details.row}"))
    return tag("div", *parts, class_="about")


def _pill(decision: SelectionDecision) -> Html:
    rule = decision.rule.removeprefix("select/")
    by = f" by {decision.refused_by}" if decision.refused_by else ""
    text = " · ".join(
        [f"{rule}: {'kept' if decision.kept else f'refused{by}'}", *_facts(decision.facts)]
    )
    return tag("span", text, class_=f"pill {'kept' if decision.kept else 'refused'}")


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        yield name if value is True else f"{name} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return format_number(value) if isinstance(value, float) else str(value)


def _size(num_bytes: int) -> str:
    size, units = float(num_bytes), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}" if size < 1000 else f"{size:,.0f} {units[0]}"
