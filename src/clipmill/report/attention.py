"""Attention distance of ViTs' heads (CLIP-QC, Figure 3), for any encoders and images."""

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipmill.errors import ConfigError, SourceError
from clipmill.models.pretrained import open_encoder
from clipmill.models.weights.addresses import parse_address
from clipmill.report.html.charts import Line, dot_chart, line_chart
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    document,
    paragraph,
    section,
    table,
    tag,
)
from clipmill.stage_records import ProgressCallback

if TYPE_CHECKING:
    from clipmill.models.attention import AttentionStatistics

_BATCH = 16


def measure_attention(
    encoder: str, data: str, *, num_images: int, report: ProgressCallback
) -> "AttentionStatistics":
    """Measure a ViT's attention on the first images of ``data``, at its pretraining size.

    ``encoder`` is the address of a ViT (:mod:`clipmill.models.weights.addresses`); ``data`` a
    dataset's URI or any source.

    Raises:
        ConfigError: the encoder isn't a plain ViT.
        SourceError: no image is usable.
    """
    import numpy as np
    import torch

    from clipmill.data.captioned_images import iter_captioned_images, open_captioned_images
    from clipmill.models.attention import AttentionMeter
    from clipmill.models.encoders import build_dense
    from clipmill.models.preprocess import tower_image

    source = open_encoder(encoder)
    dense = build_dense(source.config)
    source.load_weights(dense)
    if len(dense.strides) != 1:
        raise ConfigError(
            f"{encoder} has maps of strides {', '.join(map(str, dense.strides))}",
            expected="a plain ViT, each of whose blocks sees all patches",
            action="give another encoder",
        )
    if source.notice:
        report(0, num_images, source.notice)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    meter = AttentionMeter(dense.to(device), patch_size=dense.strides[0])
    skipped: Counter[str] = Counter()
    images = itertools.islice(
        iter_captioned_images(open_captioned_images(data), skipped), num_images
    )
    vision, count = source.config.vision, 0
    while batch := [tower_image(p, vision) for p, _ in itertools.islice(images, _BATCH)]:
        pixels_BHW3 = torch.from_numpy(np.stack(batch)).to(device)
        meter.add(pixels_BHW3.permute(0, 3, 1, 2).float() / 255)
        count += len(batch)
        report(count, num_images, "looked at")
    if not count:
        raise SourceError(
            f"{data} has no image that can be used",
            expected="images with captions",
            action=f"mend the data; left out were {dict(skipped)}",
        )
    return meter.result()


def attention_json(statistics: "AttentionStatistics") -> dict[str, Any]:
    """Return the statistics as JSON values."""
    return {
        "distance_px": statistics.distance_LH.tolist(),
        "spread_px": statistics.head_distance_std_L.tolist(),
        "divergence_nats": statistics.divergence_L.tolist(),
        "num_images": statistics.num_images,
        "patch_size": statistics.patch_size,
        "image_size": statistics.image_size,
    }


def attention_from_json(value: Mapping[str, Any]) -> "AttentionStatistics":
    """Parse the output of :func:`attention_json`."""
    import torch

    from clipmill.models.attention import AttentionStatistics

    return AttentionStatistics(
        distance_LH=torch.tensor(value["distance_px"]),
        divergence_L=torch.tensor(value["divergence_nats"]),
        num_images=value["num_images"],
        patch_size=value["patch_size"],
        image_size=value["image_size"],
    )


def attention_charts(by_encoder: Mapping[str, "AttentionStatistics"]) -> Html:
    """Draw each encoder's heads by layer, and their diversity, without headings."""
    return concat(_heads(by_encoder).body, _diversity(by_encoder).body)


def attention_page(by_encoder: Mapping[str, "AttentionStatistics"]) -> str:
    """Return an HTML page of each encoder's heads, and their diversity, by layer."""
    short = [
        name.rstrip("/").rpartition("/")[2] if parse_address(name).scheme == "clipmill" else name
        for name in by_encoder
    ]
    if len(set(short)) == len(short):
        by_encoder = dict(zip(short, by_encoder.values(), strict=True))
    header = concat(
        paragraph("clipmill eval attention", class_="kicker"),
        tag("h1", "How far the heads look"),
        paragraph(
            "Each dot is a head: the distance from a patch to those that it attends to, weighted "
            "by attention, mean over patches and images; class token left out (CLIP-QC, "
            "Figure 3).",
            class_="lead",
        ),
    )
    return document(
        "Attention distance", header, [_heads(by_encoder), _diversity(by_encoder), _all(by_encoder)]
    )


def _heads(by_encoder: Mapping[str, "AttentionStatistics"]) -> Section:
    highest = max(float(statistics.distance_LH.max()) for statistics in by_encoder.values())
    charts = [
        dot_chart(
            name,
            f"pixels of {statistics.image_size}, over {statistics.num_images:,} images",
            statistics.distance_LH.tolist(),
            x_name="layer",
            limits=(0.0, highest),
            series=series,
        )
        for series, (name, statistics) in enumerate(by_encoder.items())
    ]
    return section("heads", "Heads", tag("div", charts, class_="charts"))


def _diversity(by_encoder: Mapping[str, "AttentionStatistics"]) -> Section:
    charts = [
        line_chart(title, note, _lines(by_encoder, name), x_name="layer")
        for title, note, name in (
            (
                "Spread of the heads' distances",
                "standard deviation, pixels",
                "head_distance_std_L",
            ),
            ("Divergence between heads", "mean over pairs, nats", "divergence_L"),
        )
    ]
    return section("diversity", "Diversity of heads", tag("div", charts, class_="charts"))


def _lines(by_encoder: Mapping[str, "AttentionStatistics"], name: str) -> list[Line]:
    return [
        Line(
            label=label,
            x=tuple(range(1, len(values) + 1)),
            y=tuple(values),
            series=series,
        )
        for series, (label, statistics) in enumerate(by_encoder.items())
        for values in [getattr(statistics, name).tolist()]
    ]


def _all(by_encoder: Mapping[str, "AttentionStatistics"]) -> Section:
    rows = [
        [
            f"{label}, layer {layer}",
            _number(statistics.distance_LH[layer - 1].mean()),
            _number(statistics.head_distance_std_L[layer - 1]),
            _number(statistics.divergence_L[layer - 1]),
        ]
        for label, statistics in by_encoder.items()
        for layer in range(1, len(statistics.head_distance_std_L) + 1)
    ]
    head = ["Layer", "Mean distance, px", "Spread, px", "Divergence, nats"]
    return section("numbers", "Numbers", table("Means of each layer.", head, rows, class_="small"))


def _number(value: Any) -> str:
    return f"{float(value):.3f}"
