"""The plan of a dataset: which part of its source each shard holds, fixed before any is made.

A plan lies in the store, so that workers need nothing but it and the source: ``plan.json``, the
source's splits (one a shard) in files of SPLITS_PER_FILE, and the source's ``listing`` if it has
one. Equal sources and configurations give equal plans, wherever and by whomever they are made.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from clipmill.config import Config
from clipmill.data.dataset import FORMAT, check_kind
from clipmill.data.shards.ingest import ImageLimits
from clipmill.data.shards.ingest import Admission
from clipmill.data.sources import Identity, Source, Split, open_source
from clipmill.data.sources.base import ReadListing
from clipmill.data.sources.files import LISTING
from clipmill.config import canonical_json, digest_json
from clipmill.errors import ArtifactError, ConfigError, NotFoundError, SourceError
from clipmill.images import MAX_PIXELS
from clipmill.storage import join, open_store, read_json, write_json

PLAN = "plan.json"
SPLITS_PER_FILE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig(Config):
    """How a source is cut into shards, and which of its images are let in."""

    samples_per_shard: int = 1000
    """Items of the source a shard covers, the bad ones included."""
    max_pixels: int = 64_000_000
    """Largest width x height that is decoded, in pixels."""
    min_side: int = 1
    """Shortest side that is let in, in pixels."""
    max_caption_bytes: int = 65_536
    """Longest caption that is let in, in bytes of UTF-8."""
    shorter_side: int = 0
    """Images whose shorter side is longer are made smaller, in pixels; 0 leaves all as they are."""
    jpeg_quality: int = 0
    """Quality (1 to 100) of re-encoded images: those made smaller, or with ``shorter_side`` 0
    all. 0 leaves the bytes of all images untouched."""
    duplicates: Literal["report", "drop"] = "report"
    """What happens to samples whose id or image bytes another has: counted, or left out."""
    identity: Identity = "content"
    """What makes two sources one: every byte (read once more for it), or files' names, sizes and
    times."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, low, high in (
            ("samples_per_shard", 1, None),
            ("max_pixels", 1, MAX_PIXELS),
            ("min_side", 1, None),
            ("max_caption_bytes", 1, None),
            ("shorter_side", 0, None),
            ("jpeg_quality", 1 if self.shorter_side else 0, 100),
        ):
            value = getattr(self, name)
            if value < low or (high and value > high):
                raise ConfigError(
                    f"{name} was {value}",
                    expected=f"at least {low}" + (f" and at most {high}" if high else ""),
                    action=f"give {name} such a value",
                )

    @property
    def admission(self) -> Admission:
        """The part of the configuration that is about single samples."""
        return Admission(
            limits=ImageLimits(max_pixels=self.max_pixels, min_side=self.min_side),
            max_caption_bytes=self.max_caption_bytes,
            shorter_side=self.shorter_side,
            jpeg_quality=self.jpeg_quality,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan(Config):
    """All that workers on different machines need to make ranges of one dataset's shards."""

    config: ShardConfig
    """How the source is cut."""
    source: str
    """The source's spec (see ``sources``)."""
    source_digest: str
    """SHA-256 (hex) of what the source is."""
    layers: tuple[str, ...]
    """Names of the layers that the source's samples bring along."""
    num_items: int
    """Items in the source, the bad ones included."""
    num_shards: int
    """Shards that the dataset will have."""
    uri: str
    """Where the dataset goes."""
    place: str
    """Where the splits and the listing are."""

    def splits(self, start: int, stop: int) -> Iterator[Split]:
        """What shards ``start`` to ``stop`` hold, in order."""
        store = open_store(self.place)
        for number in range(start // SPLITS_PER_FILE, -(-stop // SPLITS_PER_FILE)):
            first = number * SPLITS_PER_FILE
            rows = json.loads(store.get(_splits_name(number)))
            for row in rows[max(start - first, 0) : stop - first]:
                yield Split(*row)

    @property
    def read_listing(self) -> ReadListing:
        """Reads ranges of the source's listing."""
        return partial(open_store(self.place).get_range, LISTING)


def plan_shards(config: ShardConfig, source: str, store: str, *, place: str = "") -> ShardPlan:
    """Plan the dataset of ``source`` under the folder ``store``, at ``place`` or beside it.

    Memory stays flat, whatever the source's size. Raises SourceError if it holds no item.
    """
    opened = open_source(source)
    digest = opened.digest(config.identity)
    return write_plan(config, opened, digest, dataset_uri(config, digest, store), place)


def dataset_uri(config: ShardConfig, source_digest: str, store: str) -> str:
    """Where the dataset of a source goes: equal inputs share an address."""
    address = {"format": FORMAT, "config": config.to_json(), "source": source_digest}
    return open_store(join(store, "datasets", digest_json(address)[:16])).uri


def write_plan(
    config: ShardConfig, source: Source, source_digest: str, uri: str, place: str = ""
) -> ShardPlan:
    """Cut an open source into splits, and write the plan of the dataset at ``uri``."""
    place = open_store(place or join(uri, "plan")).uri
    target = open_store(place)
    num_items = num_shards = 0
    rows: list[list[str | int]] = []
    with tempfile.TemporaryDirectory(prefix="clipmill-plan-") as scratch:
        path = Path(scratch) / LISTING
        with path.open("wb") as listing:
            for split in source.splits(config.samples_per_shard, listing):
                rows.append(split.to_json())
                num_items += split.num_items
                num_shards += 1
                if len(rows) == SPLITS_PER_FILE:
                    number = num_shards // SPLITS_PER_FILE - 1
                    target.put(_splits_name(number), canonical_json(rows).encode())
                    rows = []
        if rows:
            number = num_shards // SPLITS_PER_FILE
            target.put(_splits_name(number), canonical_json(rows).encode())
        if not num_items:
            raise SourceError(
                f"{source.uri} holds no item",
                expected="at least one image with a caption",
                action="correct the path of the source",
            )
        target.put_file(LISTING, path)
    plan = ShardPlan(
        config=config,
        source=source.uri,
        source_digest=source_digest,
        layers=source.layers,
        num_items=num_items,
        num_shards=num_shards,
        uri=uri,
        place=place,
    )
    # It comes last: where it lies, the plan is whole.
    write_json(join(place, PLAN), {"format": FORMAT, "kind": "plan", "plan": plan.to_json()})
    return plan


def read_plan(uri: str) -> ShardPlan:
    """The plan beside the dataset at ``uri``; raises ArtifactError if there is none."""
    place = join(open_store(uri).uri, "plan", PLAN)
    try:
        value = read_json(place)
    except NotFoundError as error:
        raise ArtifactError(
            f"there is no plan for a dataset at {uri}",
            expected="the URI that `clipmill data plan` printed",
            action="correct the URI, or plan the dataset first",
        ) from error
    check_kind(value, "plan", place)
    return ShardPlan.from_json(value["plan"])


def worker_range(num_shards: int, index: int, count: int) -> tuple[int, int]:
    """The shards of worker ``index`` of ``count``: consecutive, and even to within one.

    Raises ConfigError unless ``index`` is from 0 to ``count`` - 1.
    """
    if not 0 <= index < count:
        raise ConfigError(
            f"worker {index} of {count}",
            expected="a number from 0 to one less than the count of workers",
            action="give a worker such as 0/8, the first of eight",
        )
    return index * num_shards // count, (index + 1) * num_shards // count


def parse_worker(text: str) -> tuple[int, int]:
    """``"3/8"`` as (3, 8); raises ConfigError for anything else."""
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise ConfigError(
            f"worker {text!r}",
            expected="I/N: a number from 0, and the count of workers",
            action="give a worker such as 0/8, the first of eight",
        )
    return int(index), int(count)


def _splits_name(number: int) -> str:
    return f"splits-{number:05d}.json"
