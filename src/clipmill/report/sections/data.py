"""Sections of the dataset: samples with their captions, and rejected items."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clipmill.data.dataset import MANIFEST, Dataset, cache_folder, parse_quarantined
from clipmill.data.layers import read_layer
from clipmill.data.shards.read import read_shard
from clipmill.data.sources import REASONS
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    empty_section,
    image_tag,
    paragraph,
    section,
    table,
    tag,
)
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
    """Whether the captioner returned nothing, and the real caption replaces it."""


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
    # The captions below say what the picture shows.
    image = image_tag(sample.image, f"Picture {sample.uid}")
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
