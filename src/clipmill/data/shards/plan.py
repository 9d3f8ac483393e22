"""Plan of a dataset: the range of its source that each shard holds, and the files it is written to.

A plan is in the store, so that workers need nothing but it and the source: ``plan.json``, the
source's splits (one per shard) in files of SPLITS_PER_FILE, and the source's ``listing`` if it
has one. Equal sources and configurations give equal plans on any machine.

``shards/00000.tar`` lies next to its sidecar ``shards/00000.json``. With ``duplicates=drop`` a
shard that holds duplicates is rewritten without them as ``00000-dedup.tar``, and the rows of the
source's layers wait under ``plan/rows`` until the duplicates are known.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.config import Config, canonical_json, digest_json
from clipmill.data.dataset import DEDUP, FORMAT, ShardInfo, check_kind
from clipmill.data.layers import parquet_options
from clipmill.data.shards.ingest import ImageConstraints, IngestConfig
from clipmill.data.sources import FingerprintMode, Source, Split, open_source
from clipmill.data.sources.base import ReadListing
from clipmill.data.sources.files import LISTING
from clipmill.errors import ArtifactError, ConfigError, NotFoundError, SourceError, StorageError
from clipmill.images import MAX_PIXELS
from clipmill.storage import Store, atomic_write, join, open_store, read_json, write_json
from clipmill.storage.local import LocalStore

PLAN = "plan.json"
SPLITS_PER_FILE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig(Config):
    """Shard size, and the constraints that samples must meet.

    Example:
        >>> config = clipmill.ShardConfig(samples_per_shard=100, min_side=32, duplicates="drop")
        >>> dataset = clipmill.Dataset.open(clipmill.write_dataset(config, "photos", "out"))
        >>> len(dataset.shards), dataset.num_samples
        (1, 24)
    """

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "shorter_side": "resize_shorter_side",
        "identity": "fingerprint",
    }
    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "fingerprint": {"listing": "metadata"},
    }

    samples_per_shard: int = 1000
    """Items of the source per shard, bad ones included."""
    max_pixels: int = 64_000_000
    """Largest width x height, pixels."""
    min_side: int = 1
    """Smallest shorter side, pixels."""
    max_caption_bytes: int = 65_536
    """Longest caption, bytes of UTF-8."""
    resize_shorter_side: int = 0
    """Images with a longer shorter side are resized to it, pixels; 0 for no resizing."""
    jpeg_quality: int = 0
    """JPEG quality (1 to 100) of re-encoded images: those resized, or all of them if
    ``resize_shorter_side`` is 0. 0 keeps the bytes of all images."""
    duplicates: Literal["report", "drop"] = "report"
    """Samples whose id or image bytes another sample has are counted, or dropped."""
    fingerprint: FingerprintMode = "content"
    """Digest of the source: ``content`` reads every byte once more, ``metadata`` takes names, sizes
    and modification times of files."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, low, high, example in (
            ("samples_per_shard", 1, None, 10_000),
            ("max_pixels", 1, MAX_PIXELS, MAX_PIXELS),
            ("min_side", 1, None, 1),
            ("max_caption_bytes", 1, None, 10_000),
            ("resize_shorter_side", 0, None, 512),
            ("jpeg_quality", 1 if self.resize_shorter_side else 0, 100, 95),
        ):
            value = getattr(self, name)
            if value < low or (high and value > high):
                raise ConfigError(
                    f"{name} was {value}",
                    expected=f"at least {low}" + (f" and at most {high}" if high else ""),
                    action=f"set {name} in that range, e.g. `--set {name}={example}`",
                )

    @property
    def ingest(self) -> IngestConfig:
        """The settings that concern single samples."""
        return IngestConfig(
            constraints=ImageConstraints(max_pixels=self.max_pixels, min_side=self.min_side),
            max_caption_bytes=self.max_caption_bytes,
            resize_shorter_side=self.resize_shorter_side,
            jpeg_quality=self.jpeg_quality,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan(Config):
    """All that workers on different machines need to write ranges of one dataset's shards."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "place": "plan_uri",
    }

    config: ShardConfig
    """Shard size and constraints."""
    source: str
    """The source's spec (see ``sources``)."""
    source_digest: str
    """SHA-256 (hex) of the source (see ``ShardConfig.fingerprint``)."""
    layers: tuple[str, ...]
    """Names of the layers that the source provides."""
    num_items: int
    """Items in the source, bad ones included."""
    num_shards: int
    """Shards of the dataset."""
    uri: str
    """URI of the dataset."""
    plan_uri: str
    """URI of the folder with the splits and the listing."""

    def splits(self, start: int, stop: int) -> Iterator[Split]:
        """Yield the splits of shards ``start`` to ``stop`` (exclusive)."""
        store = open_store(self.plan_uri)
        for number in range(start // SPLITS_PER_FILE, -(-stop // SPLITS_PER_FILE)):
            first = number * SPLITS_PER_FILE
            rows = json.loads(store.get(_splits_name(number)))
            for row in rows[max(start - first, 0) : stop - first]:
                yield Split(*row)

    @property
    def read_listing(self) -> ReadListing:
        """Function that reads a byte range of the source's listing."""
        return partial(open_store(self.plan_uri).get_range, LISTING)


def plan_shards(config: ShardConfig, source: str, store: str, *, plan_uri: str = "") -> ShardPlan:
    """Plan the dataset of ``source`` under the folder ``store``; its plan goes to ``plan_uri``.

    The default for ``plan_uri`` is the dataset's folder ``plan``. Memory doesn't grow with the
    source. Raises SourceError if it holds no item.
    """
    opened = open_source(source)
    digest = opened.digest(config.fingerprint)
    return write_plan(config, opened, digest, dataset_uri(config, digest, store), plan_uri)


def dataset_uri(config: ShardConfig, source_digest: str, store: str) -> str:
    """Return the URI of a source's dataset: equal inputs share an address."""
    address = {"format": FORMAT, "config": config.to_json(), "source": source_digest}
    return open_store(join(store, "datasets", digest_json(address)[:16])).uri


def write_plan(
    config: ShardConfig, source: Source, source_digest: str, uri: str, plan_uri: str = ""
) -> ShardPlan:
    """Cut an open source into splits, and write the plan of the dataset at ``uri``."""
    target = open_store(plan_uri or join(uri, "plan"))
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
        plan_uri=target.uri,
    )
    # Written last, so that its presence marks a complete plan.
    write_json(join(target.uri, PLAN), {"format": FORMAT, "kind": "plan", "plan": plan.to_json()})
    return plan


def read_plan(uri: str) -> ShardPlan:
    """Read the plan of the dataset at ``uri``; raises ArtifactError if there is none."""
    plan_uri = join(open_store(uri).uri, "plan", PLAN)
    try:
        value = read_json(plan_uri)
    except NotFoundError as error:
        raise ArtifactError(
            f"there is no plan for a dataset at {uri}",
            expected="the URI that `clipmill data plan` printed",
            action="correct the URI, or run `clipmill data plan` first",
        ) from error
    check_kind(value, "plan", plan_uri)
    return ShardPlan.from_stored(value["plan"], plan_uri)


def worker_range(num_shards: int, index: int, count: int) -> tuple[int, int]:
    """Return the first shard of worker ``index`` of ``count``, and the one past its last.

    Ranges are consecutive, and differ by at most one shard.

    Raises ConfigError unless ``index`` is from 0 to ``count`` - 1.
    """
    if not 0 <= index < count:
        raise ConfigError(
            f"worker {index} of {count}",
            expected="a number from 0 to one less than the count of workers",
            action="pass a worker such as 0/8, the first of eight",
        )
    return index * num_shards // count, (index + 1) * num_shards // count


def parse_worker_slice(text: str) -> tuple[int, int]:
    """Parse ``"3/8"`` as (3, 8); raises ConfigError for anything else."""
    index, slash, count = text.partition("/")
    if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise ConfigError(
            f"worker {text!r}",
            expected="I/N: a number from 0, and the count of workers",
            action="pass a worker such as 0/8, the first of eight",
        )
    return int(index), int(count)


def _splits_name(number: int) -> str:
    return f"splits-{number:05d}.json"


def tar_key(index: int, suffix: str = "") -> str:
    """Return the key of a shard's tar in its dataset."""
    return f"shards/{index:05d}{suffix}.tar"


def sidecar_key(index: int, suffix: str = "") -> str:
    """Return the key of a shard's sidecar in its dataset."""
    return f"shards/{index:05d}{suffix}.json"


def shard_info(index: int, sidecar: dict[str, Any], suffix: str = "") -> ShardInfo:
    """Return the entry in ``dataset.json`` of a shard with this sidecar."""
    return ShardInfo(
        name=f"{index:05d}{suffix}.tar",
        num_samples=sidecar["num_samples"],
        num_bytes=sidecar["num_bytes"],
        sha256=sidecar["sha256"],
    )


@contextmanager
def staged_file(store: Store, key: str) -> Iterator[Path]:
    """Yield a local path to write to; the file is put at ``key`` when the block succeeds."""
    if isinstance(store, LocalStore):
        with atomic_write(store.path(key)) as path:
            yield path
        return
    with TemporaryDirectory(prefix="clipmill-shard-") as folder:
        path = Path(folder) / "shard.tar"
        try:
            yield path
        except OSError as error:
            raise StorageError(
                f"can't write a shard to {folder}: {error.strerror}",
                expected="space for a shard in the folder for temporary files",
                action="free some, or set TMPDIR to a folder on a larger disk",
            ) from error
        store.put_file(key, path)


def shard_versions(config: ShardConfig) -> tuple[str, str]:
    """Return the suffixes of a shard's versions, the likelier first: see DEDUP.

    Samples with the uid of an earlier one are always dropped, others if ``duplicates`` says so.
    """
    return (DEDUP, "") if config.duplicates == "drop" else ("", DEDUP)


def delete_original(store: Store, index: int) -> None:
    """Delete the version of a shard that has duplicates; its sidecar first, which lists it."""
    store.delete(sidecar_key(index))
    store.delete(tar_key(index))


def staged_rows_key(layer: str, index: int) -> str:
    """Return the key of a layer's rows that wait for duplicates to be dropped."""
    return f"plan/rows/{layer}/{index:05d}.parquet"


def write_staged_rows(plan: ShardPlan, layer: str, index: int, table: pa.Table) -> None:
    """Write a layer's rows, to wait for duplicates to be dropped."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **parquet_options(layer))
    open_store(plan.uri).put(staged_rows_key(layer, index), buffer.getvalue())


def read_staged_rows(plan: ShardPlan, layer: str, index: int) -> pa.Table:
    """Read the rows of :func:`write_staged_rows`."""
    data = open_store(plan.uri).get(staged_rows_key(layer, index))
    return pq.read_table(io.BytesIO(data), use_threads=False)
