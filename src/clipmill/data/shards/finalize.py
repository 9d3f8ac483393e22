"""Finalize a dataset: find duplicates over all shards, list the shards, commit the layers.

Duplicates are found in bounded memory: fingerprints are partitioned into files by their first
bits, so that equal ones meet in one file and each file fits in memory. Of equal samples the first
in the dataset's order is the original, so the result doesn't depend on who wrote which shard, or
when.
"""

import base64
import io
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.data.dataset import (
    DEDUP,
    FORMAT,
    MANIFEST,
    RETRY_LIST,
    RETRY_ROW,
    Dataset,
    ShardInfo,
    dedup_suffix,
    listed_quarantined,
    read_sidecar,
    sidecar_uri,
)
from clipmill.data.layers import (
    commit_layer,
    embedded_captions,
    has_layer_shard,
    write_layer_shard,
)
from clipmill.data.shards.plan import (
    ShardPlan,
    delete_original,
    read_staged_rows,
    shard_info,
    shard_versions,
    staged_file,
    staged_rows_key,
    tar_key,
)
from clipmill.data.shards.tar import TarWriter, read_members
from clipmill.data.sources.base import RETRYABLE
from clipmill.data.sources.urls import retry_spec
from clipmill.errors import BadSampleReason, NotFoundError, SourceError
from clipmill.lineage import Parent
from clipmill.storage import exists, join, open_store, write_json

_LOG = logging.getLogger(__name__)

# Quarantined items and duplicates listed in dataset.json; sidecars list all quarantined items.
MAX_LISTED = 1000

_MAX_CACHED_SIDECARS = 64

# Of one sample: half a SHA-256 of its id, and half a SHA-256 of its image's bytes.
FINGERPRINT = np.dtype([("id", "<u8", (2,)), ("image", "<u8", (2,))])

_SPILLED = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])

# Each sample has a row for its id and one for its image.
BYTES_SPILLED_PER_SAMPLE = 2 * _SPILLED.itemsize

_ROWS_PER_FILE = 1_000_000

_MAX_FILES = 512


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Samples that duplicate an earlier one, in the dataset's order."""

    positions: NDArray[np.int64]
    originals: NDArray[np.int64]
    """For each, the position of the sample that it duplicates."""
    same_id: NDArray[np.bool_]
    """For each, whether the ids are equal; otherwise the image bytes are."""


def finalize_dataset(plan: ShardPlan, *, source_parents: tuple[Parent, ...] = ()) -> Dataset:
    """Write ``dataset.json`` for the written shards, and commit the source's layers.

    An existing ``dataset.json`` is left as it is, with its layers. Raises NotFoundError if
    a shard is missing, SourceError if no shard has any sample.
    """
    source = Parent(role="source", uri=plan.source, digest=plan.source_digest)
    if not exists(join(plan.uri, MANIFEST)):
        _write_manifest(plan, source_parents or (source,))
    dataset = Dataset.open(plan.uri)
    is_staged = plan.config.duplicates == "drop"
    for layer in plan.layers:
        if layer not in dataset.layers:
            if is_staged:
                _write_staged_rows(plan, dataset, layer)
            else:
                _drop_rows(dataset, layer)
            parents = (source, *embedded_captions(dataset, layer))
            dataset = commit_layer(dataset, layer, parents=parents, detail={"from": "source"})
    if is_staged:
        _delete_temporaries(plan, dataset)
    open_store(plan.uri).remove_abandoned()
    return dataset


def _write_manifest(plan: ShardPlan, parents: tuple[Parent, ...]) -> None:
    shards = ShardManifest(plan)
    duplicates = find_duplicates(shards.fingerprints(), plan.num_items)
    if plan.config.duplicates == "drop":
        shards.drop_duplicates(duplicates)
    else:
        same_uids = shards.same_uids(duplicates)
        if len(same_uids.positions):
            shards.drop_duplicates(same_uids)
    infos, counts = shards.infos, shards.quarantine
    retry = _write_retry_list(plan, infos) if RETRYABLE & counts.keys() else ""
    if not any(info.num_samples for info in infos):
        raise SourceError(
            f"none of the {plan.num_items} items in {plan.source} can be used: "
            + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
            + "".join(
                f"; the first, {bad['origin']}: {bad['detail']}" for bad in shards.quarantined[:1]
            ),
            expected="images that decode, each with a UTF-8 caption",
            action="correct the source, or widen the limits of the configuration"
            + (f"; to fetch what failed again, shard {retry!r}" if retry else ""),
        )
    dataset = Dataset(
        uri=plan.uri, shards=tuple(infos), layers={}, quarantine=counts, parents=parents
    )
    num_same_id = int(duplicates.same_id.sum())
    write_json(
        join(plan.uri, MANIFEST),
        {
            "format": FORMAT,
            "kind": "dataset",
            "digest": dataset.digest,
            "shards": [asdict(info) for info in infos],
            "layers": {},
            "quarantine": dict(counts),
            "quarantined": shards.quarantined,
            "duplicates": {
                "dropped": plan.config.duplicates == "drop",
                "num_same_id": num_same_id,
                "num_same_image": len(duplicates.positions) - num_same_id,
                "shown": shards.describe_duplicates(duplicates),
            },
            "parents": [parent.to_json() for parent in parents],
            "config": plan.config.to_json(),
            "summary": summary(infos, counts),
        },
    )


def _write_retry_list(plan: ShardPlan, infos: list[ShardInfo]) -> str:
    """Write the rows that a later run may fetch; return the source spec that does, or ``""``."""
    store = open_store(plan.uri)
    num_rows = 0
    with tempfile.TemporaryDirectory(prefix="clipmill-retry-") as folder:
        path = Path(folder) / RETRY_LIST
        with path.open("w", encoding="utf-8") as file:
            for index, info in enumerate(infos):
                sidecar = read_sidecar(plan.uri, index, dedup_suffix(info.name))
                for bad in sidecar["quarantined"]:
                    if RETRY_ROW in bad:
                        file.write(json.dumps(bad[RETRY_ROW], ensure_ascii=False) + "\n")
                        num_rows += 1
        if not num_rows:
            return ""
        store.put_file(RETRY_LIST, path)
    spec = retry_spec(plan.source, join(plan.uri, RETRY_LIST))
    _LOG.warning(
        "%d rows couldn't be fetched, and may be later: run clipmill data shard '%s'",
        num_rows,
        spec,
    )
    return spec


def _write_staged_rows(plan: ShardPlan, dataset: Dataset, layer: str) -> None:
    """Write a layer's rows, without those of dropped samples."""
    for index in range(plan.num_shards):
        if not has_layer_shard(dataset, layer, index):
            table = read_staged_rows(plan, layer, index)
            write_layer_shard(dataset, layer, index, _kept_rows(dataset, index, table))


def _drop_rows(dataset: Dataset, layer: str) -> None:
    """Rewrite a layer's rows of shards from which samples were dropped, without those."""
    store = open_store(dataset.layer_uri(layer))
    for index, info in enumerate(dataset.shards):
        if dedup_suffix(info.name) and not has_layer_shard(dataset, layer, index):
            table = pq.read_table(io.BytesIO(store.get(f"{index:05d}.parquet")), use_threads=False)
            write_layer_shard(dataset, layer, index, _kept_rows(dataset, index, table))


def _kept_rows(dataset: Dataset, index: int, table: pa.Table) -> pa.Table:
    kept = set(dataset.uids(index))
    return table.filter(pa.array([uid in kept for uid in table["uid"].to_pylist()], pa.bool_()))


def _delete_temporaries(plan: ShardPlan, dataset: Dataset) -> None:
    """Delete staged rows and original shards, also those that a late worker left."""
    store = open_store(plan.uri)
    for index, info in enumerate(dataset.shards):
        for layer in plan.layers:
            store.delete(staged_rows_key(layer, index))
        if dedup_suffix(info.name):
            delete_original(store, index)


class ShardManifest:
    """The shards of a plan as their sidecars list them; collects what ``dataset.json`` states."""

    def __init__(self, plan: ShardPlan) -> None:
        self._plan = plan
        self._store = open_store(plan.uri)
        self._starts: NDArray[np.int64] = np.zeros(plan.num_shards + 1, np.int64)
        self.infos: list[ShardInfo] = []
        self.quarantine: Counter[str] = Counter()
        self.quarantined: list[dict[str, str]] = []
        self._shard_uids = lru_cache(_MAX_CACHED_SIDECARS)(self._read_uids)

    def fingerprints(self) -> Iterator[NDArray[np.void]]:
        """Yield the fingerprints of all samples, shard by shard, duplicates included.

        Raises NotFoundError if a shard is missing.
        """
        for index in range(self._plan.num_shards):
            suffix, sidecar = self._sidecar(index)
            fingerprints = fingerprints_of(sidecar)
            self._starts[index + 1] = self._starts[index] + len(fingerprints)
            self._record(index, suffix, sidecar)
            yield fingerprints

    def describe_duplicates(self, duplicates: Duplicates) -> list[dict[str, str]]:
        """Return the first duplicates: both uids, and the reason."""
        return [
            {
                "uid": self._uid(int(duplicates.positions[i])),
                "same_as": self._uid(int(duplicates.originals[i])),
                "reason": _reason(duplicates, i),
            }
            for i in range(min(len(duplicates.positions), MAX_LISTED))
        ]

    def same_uids(self, duplicates: Duplicates) -> Duplicates:
        """Return those with the uid of an earlier sample, which no dataset may hold twice.

        A sample of the same id has another uid where its image differs.
        """
        uids: dict[int, set[str]] = {}
        is_repeated = np.zeros(len(duplicates.positions), np.bool_)
        for i in np.flatnonzero(duplicates.same_id):
            original = int(duplicates.originals[i])
            seen = uids.setdefault(original, {self._uid(original)})
            uid = self._uid(int(duplicates.positions[i]))
            is_repeated[i] = uid in seen
            seen.add(uid)
        return Duplicates(
            duplicates.positions[is_repeated],
            duplicates.originals[is_repeated],
            duplicates.same_id[is_repeated],
        )

    def drop_duplicates(self, duplicates: Duplicates) -> None:
        """Rewrite each shard that has duplicates without them, under another name."""
        bounds = np.searchsorted(duplicates.positions, self._starts)
        self.infos, self.quarantine, self.quarantined = [], Counter(), []
        for index in range(self._plan.num_shards):
            first, last = int(bounds[index]), int(bounds[index + 1])
            if first < last:
                if not exists(sidecar_uri(self._plan.uri, index, DEDUP)):
                    self._write_deduplicated(index, duplicates, range(first, last))
                # The original goes last, when nothing needs it any more.
                delete_original(self._store, index)
                self._record(index, DEDUP, read_sidecar(self._plan.uri, index, DEDUP))
            else:
                self._record(index, *self._sidecar(index))

    def _record(self, index: int, suffix: str, sidecar: dict[str, Any]) -> None:
        self.infos.append(shard_info(index, sidecar, suffix))
        self.quarantine.update(bad["reason"] for bad in sidecar["quarantined"])
        self.quarantined += listed_quarantined(
            sidecar["quarantined"][: MAX_LISTED - len(self.quarantined)]
        )

    def _write_deduplicated(self, index: int, duplicates: Duplicates, rows: range) -> None:
        start = int(self._starts[index])
        by_row = {int(duplicates.positions[i]) - start: i for i in rows}
        try:
            sidecar = read_sidecar(self._plan.uri, index)
            with self._open(index) as original:
                self._rewrite_shard(index, sidecar, original, by_row, duplicates)
        except NotFoundError:
            # Another process may have finalized the dataset first and deleted the original.
            if not exists(sidecar_uri(self._plan.uri, index, DEDUP)):
                raise

    def _rewrite_shard(
        self,
        index: int,
        sidecar: dict[str, Any],
        original: BinaryIO,
        rows: dict[int, int],
        duplicates: Duplicates,
    ) -> None:
        quarantined = list(sidecar["quarantined"])
        with staged_file(self._store, tar_key(index, DEDUP)) as path, path.open("wb") as file:
            tar = TarWriter(file)
            for row, (record, members) in enumerate(read_members(original)):
                if row not in rows:
                    tar.append(members)
                    continue
                same_as = self._uid(int(duplicates.originals[rows[row]]))
                quarantined.append(
                    {
                        "origin": record["origin"],
                        "reason": _reason(duplicates, rows[row]),
                        "detail": f"the same as sample {same_as}",
                    }
                )
            sha256 = tar.finish()
        kept = [uid for row, uid in enumerate(sidecar["uids"]) if row not in rows]
        value = {
            **sidecar,
            "num_samples": len(kept),
            "num_bytes": tar.num_bytes,
            "sha256": sha256,
            "uids": kept,
            "quarantined": quarantined,
            "dropped": [[row, sidecar["uids"][row]] for row in sorted(rows)],
        }
        write_json(sidecar_uri(self._plan.uri, index, DEDUP), value)

    @contextmanager
    def _open(self, index: int) -> Iterator[BinaryIO]:
        with tempfile.TemporaryDirectory(prefix="clipmill-shard-") as folder:
            path = Path(folder) / "shard.tar"
            self._store.get_file(tar_key(index), path)
            with path.open("rb") as file:
                yield file

    def _sidecar(self, index: int) -> tuple[str, dict[str, Any]]:
        first, second = shard_versions(self._plan.config)
        try:
            return first, read_sidecar(self._plan.uri, index, first)
        except NotFoundError:
            return second, read_sidecar(self._plan.uri, index, second)

    def _uid(self, position: int) -> str:
        index = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._shard_uids(index)[position - int(self._starts[index])]

    def _read_uids(self, index: int) -> list[str]:
        """Return the uids of a shard as it was written first."""
        _, sidecar = self._sidecar(index)
        uids: list[str] = list(sidecar["uids"])
        for row, uid in sidecar.get("dropped", []):
            uids.insert(row, uid)
        return uids


def _reason(duplicates: Duplicates, i: int) -> BadSampleReason:
    if duplicates.same_id[i]:
        return BadSampleReason.DUPLICATE_ID
    return BadSampleReason.DUPLICATE_IMAGE


def summary(infos: list[ShardInfo], quarantine: Counter[str]) -> dict[str, int]:
    """Return the totals that ``dataset.json`` states."""
    return {
        "num_samples": sum(info.num_samples for info in infos),
        "num_shards": len(infos),
        "num_bytes": sum(info.num_bytes for info in infos),
        "num_quarantined": quarantine.total(),
    }


def fingerprints_of(sidecar: dict[str, Any]) -> NDArray[np.void]:
    """Return the fingerprints of a shard's samples, those dropped later included."""
    return np.frombuffer(base64.b64decode(sidecar["fingerprints"]), FINGERPRINT)


def find_duplicates(shards: Iterable[NDArray[np.void]], num_samples: int) -> Duplicates:
    """Compare all samples; ``shards`` yields arrays of FINGERPRINT in the dataset's order.

    A sample with the id of an earlier one isn't compared by its image.
    """
    num_files = min(_MAX_FILES, 1 << max(0, (num_samples // _ROWS_PER_FILE).bit_length()))
    has_same_id = np.zeros(num_samples, np.bool_)
    with tempfile.TemporaryDirectory(prefix="clipmill-duplicates-") as folder:
        ids, images = (Path(folder) / name for name in ("id", "image"))
        _spill(shards, {"id": ids, "image": images}, num_files)
        same_ids = _find_by_partition(ids, num_files, has_same_id)
        for positions, _ in same_ids:
            has_same_id[positions] = True
        same_images = _find_by_partition(images, num_files, has_same_id)
    pairs = [*same_ids, *same_images]
    empty = np.empty(0, np.int64)
    positions = np.concatenate([empty, *(duplicates for duplicates, _ in pairs)])
    originals = np.concatenate([empty, *(originals for _, originals in pairs)])
    num_same_ids = sum(len(duplicates) for duplicates, _ in same_ids)
    order = np.argsort(positions)
    return Duplicates(positions[order], originals[order], (order < num_same_ids))


def _spill(shards: Iterable[NDArray[np.void]], folders: dict[str, Path], num_files: int) -> None:
    shift = np.uint64(64 - (num_files - 1).bit_length())
    with ExitStack() as stack:
        files: dict[str, list[BinaryIO]] = {}
        for name, folder in folders.items():
            folder.mkdir()
            files[name] = [
                stack.enter_context((folder / str(i)).open("wb")) for i in range(num_files)
            ]
        start = 0
        for shard in shards:
            for name in folders:
                rows = np.empty(len(shard), _SPILLED)
                rows["high"], rows["low"] = shard[name][:, 0], shard[name][:, 1]
                rows["position"] = np.arange(start, start + len(shard))
                numbers = rows["high"] >> shift if num_files > 1 else np.zeros(len(rows), np.uint64)
                for number in np.unique(numbers):
                    files[name][int(number)].write(rows[numbers == number].tobytes())
            start += len(shard)


def _find_by_partition(
    folder: Path, num_files: int, excluded: NDArray[np.bool_]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return, per file, the positions of duplicates and of the first sample equal to each."""
    pairs = []
    for number in range(num_files):
        rows = np.fromfile(folder / str(number), _SPILLED)
        rows = rows[~excluded[rows["position"]]]
        if not len(rows):
            continue
        rows = rows[np.lexsort((rows["position"], rows["low"], rows["high"]))]
        same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
        # The first of a run of equal rows is where the last change was.
        first = np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(rows)), 0))
        duplicate = np.flatnonzero(np.r_[False, same])
        pairs.append((rows["position"][duplicate], rows["position"][first[duplicate]]))
    return pairs
