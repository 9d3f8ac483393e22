"""Sections of training: the captioned data, losses of encoders and captioner, and time by stage."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipmill.data.dataset import MANIFEST, Dataset, cache_folder, parse_quarantined
from clipmill.data.layers import read_layer
from clipmill.data.shards.read import read_shard
from clipmill.data.sources import REASONS
from clipmill.engine.result import read_log
from clipmill.errors import NotFoundError
from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.report.format import format_duration, join_words
from clipmill.report.html.charts import Line, Reference, line_chart
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    empty_section,
    image_tag,
    paragraph,
    section,
    series_color,
    table,
    tag,
)
from clipmill.report.sections.sources import source_charts
from clipmill.stage_records import StageRecord
from clipmill.storage import join, read_json

_NUM_SAMPLES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    uid: str
    image: bytes
    real: str
    synthetic: str
    """Empty without a layer."""
    fallback: bool
    """True if the captioner returned nothing, and the real caption replaces it."""


def samples_section(dataset: Dataset, layer: str, captioner: str) -> Section:
    """Return the section ``Samples``; ``captioner`` names the synthetic captions."""
    known = layer in dataset.layers
    samples = list(_samples(dataset, layer if known else ""))
    cards = (_card(sample, captioner or "synthetic") for sample in samples)
    intro = paragraph(
        f"{len(samples)} of {dataset.num_samples:,} images, evenly spaced, not hand-picked."
    )
    if not layer:
        note = empty_section("No layer of synthetic captions was given.")
    elif not known:
        note = empty_section(f"The dataset has no layer {layer}, so only real captions are shown.")
    else:
        note = Html("")
    return section("samples", "Samples", concat(intro, note), tag("div", cards, class_="samples"))


def _samples(dataset: Dataset, layer: str) -> Iterator[_Sample]:
    """Yield samples of the first non-empty shards, evenly spaced within each."""
    remaining = _NUM_SAMPLES
    for index, shard in enumerate(dataset.shards):
        if not remaining:
            return
        if not shard.num_samples:
            continue
        rows = np.linspace(0, shard.num_samples - 1, min(remaining, shard.num_samples)).astype(int)
        remaining -= len(rows)
        columns = read_layer(dataset, layer, index, cache_folder()).to_pydict() if layer else {}
        with read_shard(dataset, index, cache_folder()) as reader:
            for row in rows.tolist():
                yield _Sample(
                    uid=reader.uid(row),
                    image=reader.image(row),
                    real=reader.caption(row),
                    synthetic=columns["captions"][row][0] if columns else "",
                    fallback=bool(columns["fallback"][row]) if "fallback" in columns else False,
                )


def _card(sample: _Sample, captioner: str) -> Html:
    captions = concat(tag("dt", "real"), tag("dd", sample.real, dir="auto"))
    if sample.fallback:
        captions = concat(
            captions, tag("dt", captioner), tag("dd", "said nothing; the real one stands in")
        )
    elif sample.synthetic:
        synthetic = tag("dd", sample.synthetic, dir="auto", class_="synthetic")
        captions = concat(captions, tag("dt", captioner), synthetic)
    # The captions below say what the image shows.
    image = image_tag(sample.image, f"Image {sample.uid}")
    return tag("figure", image, tag("figcaption", tag("dl", captions)))


_NUM_NAMES = 3


def quarantine_section(dataset: Dataset) -> Section:
    """Return the section ``Rejected samples``."""
    if not dataset.quarantine:
        return section(
            "quarantine", "Rejected samples", paragraph("None: every item could be used.")
        )
    names: dict[str, list[str]] = {}
    for bad in parse_quarantined(read_json(join(dataset.uri, MANIFEST))["quarantined"]):
        names.setdefault(bad["reason"], []).append(bad["origin"])
    rows = [
        [
            tag("span", reason, tag("small", REASONS.get(reason, ""))),
            f"{count:,}",
            _names(names.get(reason, []), count),
        ]
        for reason, count in sorted(dataset.quarantine.items(), key=lambda item: (-item[1], item))
    ]
    left_out = sum(dataset.quarantine.values())
    total = left_out + dataset.num_samples
    caption = f"{left_out:,} of {total:,} items were set aside; the others make up the dataset."
    return section(
        "quarantine",
        "Rejected samples",
        table(caption, ["Reason", "Items", "Among them"], rows),
    )


def _names(names: list[str], count: int) -> Html:
    shown = names[:_NUM_NAMES]
    codes = [tag("code", name) for name in shown]
    spaced = [part for code in codes for part in (code, Html(", "))][:-1]
    return tag("td", spaced, " …" if count > len(shown) else "")


Log = list[dict[str, float]]


def losses_section(
    encoders: Mapping[str, CheckpointMetadata], captioner: CheckpointMetadata | None
) -> Section:
    """Return the section ``Losses``: contrastive by caption source, totals, the captioner's."""
    logs = {label: _log(metadata) for label, metadata in encoders.items()}
    charts = _encoder_charts(encoders, {label: log for label, log in logs.items() if log})
    charts += [chart for label, log in logs.items() for chart in source_charts(log, label)]
    if captioner is not None and (log := _log(captioner)):
        charts.append(_captioner_chart(log))
    absent = [label for label, log in logs.items() if not log]
    notes = [empty_section(f"{join_words(absent)} left no log.")] if absent else []
    if captioner is None:
        notes.append(empty_section("No training log of a captioner."))
    intro = paragraph(
        "Where many values were logged, a bold line is their moving average, over the raw ones."
    )
    return section("losses", "Losses", intro, notes, tag("div", charts, class_="charts"))


def _encoder_charts(
    encoders: Mapping[str, CheckpointMetadata], logs: Mapping[str, Log]
) -> list[Html]:
    lines: dict[str, list[Line]] = {"real": [], "synthetic": [], "total": []}
    for series, (label, metadata) in enumerate(encoders.items()):
        log = logs.get(label)
        if not log:
            continue
        lines["total"].append(_line(label, log, "loss", series))
        for kind in ("real", "synthetic"):
            # The log names the terms only where there are several.
            if f"loss/{kind}" in log[0]:
                lines[kind].append(_line(label, log, f"loss/{kind}", series))
            elif metadata.recipe.get("view", {}).get("captions") == kind:
                lines[kind].append(_line(label, log, "loss", series))
    titles = {
        "real": ("Contrastive loss on real captions", "what the encoders have in common"),
        "synthetic": ("Contrastive loss on synthetic captions", "for the same images"),
        "total": ("Total loss", "the sum of the terms, one for each kind of caption"),
    }
    chance = _chance(encoders)
    return [
        line_chart(
            *titles[kind],
            curves,
            x_name="updates",
            reference=None if kind == "total" else chance,
        )
        for kind, curves in lines.items()
        if curves
    ]


def _chance(encoders: Mapping[str, CheckpointMetadata]) -> Reference | None:
    """Return the loss of guessing within a batch: the logarithm of its size."""
    sizes = {metadata.recipe.get("train", {}).get("batch_size") for metadata in encoders.values()}
    size = sizes.pop() if len(sizes) == 1 else None
    return Reference(label=f"guessing, ln {size}", y=math.log(size)) if size else None


def _captioner_chart(log: Log) -> Html:
    terms = [name for name in log[0] if name.startswith("loss/")]
    lines = [_line("total", log, "loss", 5)]
    lines += [_line(name.removeprefix("loss/"), log, name, 2 + i) for i, name in enumerate(terms)]
    return line_chart("The captioner's loss", "CoCa, on its own pairs", lines, x_name="updates")


def _line(label: str, log: Log, name: str, series: int) -> Line:
    records = [record for record in log if name in record]
    x, y = (tuple(record[key] for record in records) for key in ("step", name))
    return Line(label=label, x=x, y=y, series=series)


def _log(metadata: CheckpointMetadata) -> Log:
    try:
        return read_log(metadata.uri)
    except NotFoundError:
        return []


def timing_section(stages: Sequence[StageRecord], labels: Sequence[str]) -> Section:
    """Return the section ``Timing``; stages of a label have its color."""
    if not stages:
        return section("time", "Timing", empty_section("No stage of a run was recorded."))
    total = wall_seconds(stages)
    start = min(stage.started for stage in stages)
    rows = [
        [
            f"{stage.name} {stage.label}".strip(),
            tag("td", _track(stage, start, total, labels)),
            "reused" if stage.reused else format_duration(stage.seconds),
        ]
        for stage in stages
    ]
    rows.append(["", tag("td", _axis(total)), ""])
    worked = sum(stage.seconds for stage in stages)
    reused = sum(stage.reused for stage in stages)
    text = f"{format_duration(total)} from the first start to the last end; the stages add up to "
    text += f"{format_duration(worked)}."
    if reused:
        text += f" {reused} of {len(stages)} found their result there already (hatched)."
    return section(
        "time",
        "Timing",
        paragraph(text),
        table(
            "Stages in the order in which they began.",
            ["Stage", "", "Time"],
            rows,
            class_="time small",
        ),
    )


def wall_seconds(stages: Sequence[StageRecord]) -> float:
    """Return seconds from the first start to the last end; 0 without stages."""
    if not stages:
        return 0.0
    return max(s.started + s.seconds for s in stages) - min(s.started for s in stages)


def _track(stage: StageRecord, start: float, total: float, labels: Sequence[str]) -> Html:
    left, width = (_percent(v, total) for v in (stage.started - start, stage.seconds))
    style = f"left: {left}; width: {width}"
    if stage.label in labels:
        style += f"; color: {series_color(labels.index(stage.label))}"
    bar = tag("i", style=style, class_="reused" if stage.reused else "")
    return tag("div", bar, class_="track")


def _axis(total: float) -> Html:
    marks = (
        tag("span", _round_duration(v), style=f"left: {_percent(v, total)}")
        for v in range(0, int(total) + 1, _step_seconds(total))
    )
    return tag("div", marks, class_="track soft", aria_hidden="true")


def _step_seconds(total: float) -> int:
    """Return a round step of which at most five fit."""
    units = (1, 60, 3600, 86400, 864000, 8640000)
    steps = [unit * digit for unit in units for digit in (1, 2, 5, 10, 30)]
    return next((step for step in steps if total / step <= 5), steps[-1])


def _round_duration(seconds: int) -> str:
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds and seconds % unit == 0:
            return f"{seconds // unit}\u00a0{name}"
    return "0"


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:.2f}%" if total else "0%"
