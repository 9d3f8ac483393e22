"""From a source to a dataset of shards: resumable, and equal bytes for equal inputs.

Shard ``i`` holds a fixed range of the source's items, so it can be made by any process, at any
time, twice over. Its tar is put first and its sidecar after, so a sidecar says "whole".
"""

import math
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from clipmill.config import Config
from clipmill.data.dataset import (
    FORMAT,
    MANIFEST,
    Dataset,
    ShardInfo,
    cache_folder,
    read_sidecar,
    sidecar_uri,
)
from clipmill.data.images import MAX_PIXELS
from clipmill.data.shard_tar import write_tar
from clipmill.data.sources import FolderSource, Pair
from clipmill.digest import digest_json, sha256_file
from clipmill.errors import BadSampleError, ConfigError, SourceError, StorageError
from clipmill.storage import Parent, Store, exists, get_tree, join, open_store, write_json

# The quarantined items that dataset.json shows; the sidecars of the shards name all.
_QUARANTINE_SHOWN = 1000
# Decoding is somewhat more than half of the work, and all of it that runs in parallel.
_MOST_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig(Config):
    """How a source is cut into shards, and which of its images are let in."""

    samples_per_shard: int = 1000
    """Items of the source a shard covers, the bad ones included."""
    max_pixels: int = 64_000_000
    """Largest width x height that is decoded, in pixels."""
    min_side: int = 1
    """Shortest side that is let in, in pixels."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, low, high in (
            ("samples_per_shard", 1, None),
            ("max_pixels", 1, MAX_PIXELS),
            ("min_side", 1, None),
        ):
            value = getattr(self, name)
            if value < low or (high and value > high):
                raise ConfigError(
                    f"{name} was {value}",
                    expected=f"at least {low}" + (f" and at most {high}" if high else ""),
                    action=f"give {name} such a value",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan(Config):
    """All that tasks on different machines need to make ranges of one dataset's shards."""

    config: ShardConfig
    """How the source is cut."""
    source: str
    """A folder, or the URI of a ``.tar`` made by ``put_tree``."""
    source_digest: str
    """SHA-256 (hex) over the source's names and contents."""
    num_items: int
    """Items in the source, the bad ones included."""
    uri: str
    """Where the dataset goes."""

    @property
    def num_shards(self) -> int:
        """Shards that the dataset will have."""
        return math.ceil(self.num_items / self.config.samples_per_shard)


def shard(
    config: ShardConfig,
    source: str,
    store: str,
    *,
    source_parents: tuple[Parent, ...] = (),
    progress: Callable[[int, int], None] | None = None,
    num_threads: int = 0,
) -> str:
    """Make the dataset of ``source`` under the folder ``store``, and return its URI.

    ``source`` is a folder or the URI of a ``.tar`` made by ``put_tree``. ``source_parents``
    replace the plain reference to it in the lineage. ``progress`` is called with the number of
    items done and of all. ``num_threads`` decode at once (0: one a CPU, up to
    the few that help). What an earlier run has
    finished is kept. Raises SourceError if nothing in the source can be used.
    """
    plan = plan_shards(config, source, store)
    if not exists(join(plan.uri, MANIFEST)):  # spares the look at every shard
        shard_range(plan, 0, plan.num_shards, progress=progress, num_threads=num_threads)
        finish_shards(plan, source_parents=source_parents)
    return plan.uri


def plan_shards(config: ShardConfig, source: str, store: str) -> ShardPlan:
    """Read all of ``source`` once for its digest, which gives the dataset its address."""
    if "://" not in source:
        source = str(Path(source).absolute())
    opened = _open_source(source)
    source_digest = opened.digest()
    address = {"format": FORMAT, "config": config.to_json(), "source": source_digest}
    return ShardPlan(
        config=config,
        source=source,
        source_digest=source_digest,
        num_items=len(opened.items),
        uri=open_store(join(store, "datasets", digest_json(address)[:16])).uri,
    )


def shard_range(
    plan: ShardPlan,
    start: int,
    stop: int,
    *,
    progress: Callable[[int, int], None] | None = None,
    num_threads: int = 0,
) -> None:
    """Make shards ``start`` to ``stop`` (exclusive), passing over those that are whole."""
    source = _open_source(plan.source)
    if len(source.items) != plan.num_items:
        raise SourceError(
            f"{plan.source} has {len(source.items)} items, and had {plan.num_items} before",
            expected="a source that nobody changes while it is sharded",
            action="shard it anew, once it is complete",
        )
    store = open_store(plan.uri)
    size = plan.config.samples_per_shard
    first, last = start * size, min(stop * size, plan.num_items)
    num_threads = num_threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    with ThreadPoolExecutor(num_threads) as pool:
        for index in range(start, stop):
            items = range(index * size, min((index + 1) * size, last))
            if not _is_whole(store, index):
                reader = partial(
                    source.read, max_pixels=plan.config.max_pixels, min_side=plan.config.min_side
                )
                results = _in_order(pool, reader, items, ahead=2 * num_threads)
                _make_shard(store, index, [source.items[i].origin for i in items], results)
            if progress:
                progress(items.stop - first, last - first)


def finish_shards(plan: ShardPlan, *, source_parents: tuple[Parent, ...] = ()) -> Dataset:
    """List the finished shards in ``dataset.json``, which makes them a dataset.

    A dataset that is listed already is left as it is, with its layers. Raises NotFoundError if
    a shard is missing, SourceError if no shard has any sample.
    """
    if exists(join(plan.uri, MANIFEST)):
        return Dataset.open(plan.uri)
    shards = []
    quarantined: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    for index in range(plan.num_shards):
        sidecar = read_sidecar(plan.uri, index)
        shards.append(
            ShardInfo(
                name=f"{index:05d}.tar",
                num_samples=sidecar["num_samples"],
                num_bytes=sidecar["num_bytes"],
                sha256=sidecar["sha256"],
            )
        )
        counts.update(bad["reason"] for bad in sidecar["quarantined"])
        quarantined += sidecar["quarantined"][: _QUARANTINE_SHOWN - len(quarantined)]
    if not any(shard.num_samples for shard in shards):
        raise SourceError(
            f"none of the {plan.num_items} items in {plan.source} can be used: "
            + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())),
            expected="images that decode, each with a UTF-8 caption in a .txt file beside it",
            action="mend the source or the limits of the configuration",
        )
    source = Parent(role="source", uri=plan.source, digest=plan.source_digest)
    parents = source_parents or (source,)
    dataset = Dataset(
        uri=plan.uri, shards=tuple(shards), layers={}, quarantine=counts, parents=parents
    )
    write_json(
        join(plan.uri, MANIFEST),
        {
            "format": FORMAT,
            "kind": "dataset",
            "digest": dataset.digest,
            "shards": [asdict(shard) for shard in shards],
            "layers": {},
            "quarantine": dict(counts),
            "quarantined": quarantined,
            "parents": [parent.to_json() for parent in parents],
            "config": plan.config.to_json(),
            "summary": {
                "num_samples": dataset.num_samples,
                "num_shards": len(shards),
                "num_bytes": sum(shard.num_bytes for shard in shards),
                "num_quarantined": counts.total(),
            },
        },
    )
    return dataset


def _open_source(source: str) -> FolderSource:
    if source.endswith(".tar"):
        return FolderSource(get_tree(source, cache_folder()))
    if "://" in source:
        raise SourceError(
            f"{source} is neither a local folder nor a .tar",
            expected="a local folder, or the URI of a .tar that put_tree made of one",
            action="pack the folder with put_tree, or copy it here",
        )
    return FolderSource(Path(source))


def _is_whole(store: Store, index: int) -> bool:
    if not store.exists(f"shards/{index:05d}.json"):
        return False
    tar = f"shards/{index:05d}.tar"
    size: int = read_sidecar(store.uri, index)["num_bytes"]
    return store.exists(tar) and store.size(tar) == size


def _in_order(
    pool: Executor, read: Callable[[int], Pair], items: range, ahead: int
) -> Iterator[Future[Pair]]:
    """Read the items in the pool, at most ``ahead`` of them before the caller takes one."""
    pending: deque[Future[Pair]] = deque()
    for item in items:
        pending.append(pool.submit(read, item))
        if len(pending) == ahead:
            yield pending.popleft()
    yield from pending


def _make_shard(
    store: Store, index: int, origins: list[str], results: Iterator[Future[Pair]]
) -> None:
    quarantined: list[dict[str, str]] = []

    def good_pairs() -> Iterator[Pair]:
        for origin, result in zip(origins, results, strict=True):
            try:
                yield result.result()
            except BadSampleError as bad:
                quarantined.append({"origin": origin, "reason": bad.reason, "detail": bad.detail})

    with tempfile.TemporaryDirectory(prefix="clipmill-shard-") as folder:
        path = Path(folder) / "shard.tar"
        try:
            uids = write_tar(path, good_pairs())
        except OSError as error:
            raise StorageError(
                f"can't write a shard to {folder}: {error.strerror}",
                expected="space for a shard in the folder for temporary files",
                action="free some, or set TMPDIR to a folder on a larger disk",
            ) from error
        sidecar = {
            "format": FORMAT,
            "kind": "shard",
            "num_samples": len(uids),
            "num_bytes": path.stat().st_size,
            "sha256": sha256_file(path),
            "uids": uids,
            "quarantined": quarantined,
        }
        store.put_file(f"shards/{index:05d}.tar", path)
    write_json(sidecar_uri(store.uri, index), sidecar)
