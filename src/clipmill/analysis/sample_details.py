"""All that is known of a sample: its picture, its captions by kind, scores and verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.reader import read_shard
from clipmill.data.shard_records import SampleRecord, read_records
from clipmill.data.stats import REAL, numbers, score_columns

_SCALARS = (bool, int, float, str)


@dataclass(kw_only=True, slots=True)
class KindOfCaption:
    """A sample's captions of one kind."""

    kind: str
    """``real``, or the name of a captions layer."""
    texts: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the layer says of the sample."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """By score layer: how well these captions fit."""


@dataclass(kw_only=True, slots=True)
class Verdict:
    """What a select layer decided."""

    rule: str
    kept: bool
    refused_by: str
    """Empty where it was kept, or the layer doesn't say."""
    facts: dict[str, Any]
    """Its other columns."""


@dataclass(kw_only=True, slots=True)
class SampleDetails:
    """One sample."""

    record: SampleRecord
    shard: str
    """File name of its shard."""
    row: int
    image: bytes
    captions: list[KindOfCaption]
    scores: dict[str, float | None]
    """Scores of no one kind of caption, by ``layer: column``."""
    verdicts: list[Verdict]


def read_details(
    dataset: Dataset, places: Sequence[tuple[int, int]], cache: Path
) -> dict[tuple[int, int], SampleDetails]:
    """The samples at these (shard, row), whatever their order; each shard is opened once."""
    found = {}
    for shard in sorted({shard for shard, _ in places}):
        rows = sorted({row for index, row in places if index == shard})
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
                    captions=[KindOfCaption(kind=REAL, texts=[records[row].caption])],
                    scores={},
                    verdicts=[],
                )
                for name, table in tables.items():
                    _add(details, name, table, row)
                found[shard, row] = details
    return found


def _add(details: SampleDetails, layer: str, table: pa.Table, row: int) -> None:
    """Take what a layer says of a sample; captions layers come first, by their names."""
    values: dict[str, Any] = table.slice(row, 1).to_pylist()[0]
    del values["uid"]
    if layer.startswith("captions/"):
        kind = KindOfCaption(kind=layer, texts=values.pop("captions"))
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
        details.verdicts.append(
            Verdict(rule=layer, kept=kept, refused_by=refused_by or "", facts=facts)
        )


def _names(column: str, kind: str) -> bool:
    """Whether a score's column is of this kind of caption: its name, with or without folder."""
    return column in (kind, kind.partition("/")[2])


def _is_shown(value: object) -> bool:
    plain = value if isinstance(value, list) else [value]
    return value not in (None, "", [], False) and all(isinstance(v, _SCALARS) for v in plain)
