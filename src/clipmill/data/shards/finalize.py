"""From finished shards to a dataset: doubles found, the list written, the layers committed."""

import pyarrow as pa
import tempfile
import numpy as np
from dataclasses import (asdict, dataclass)
from clipmill.data.dataset import (FORMAT, MANIFEST, UNIQUE, Dataset, ShardInfo, read_sidecar, sidecar_uri)
from clipmill.data.layers import (commit_layer, has_layer_shard, write_layer_shard)
from clipmill.data.shards.write import (delete_original, read_staged_rows, staged_rows_key, fingerprints_of, shard_info, staged, tar_key)
from clipmill.data.shards.plan import ShardPlan
from clipmill.errors import (SourceError, NotFoundError)
from clipmill.storage import (exists, join, open_store, write_json)
from clipmill.lineage import Parent
from collections import Counter
from collections.abc import (Iterator, Iterable)
from contextlib import (contextmanager, ExitStack)
from functools import lru_cache
from pathlib import Path
from typing import (Any, BinaryIO)
from numpy.typing import NDArray
from clipmill.data.shards.tar import (TarWriter, read_members)


# The quarantined items and the doubles that dataset.json shows; sidecars name all the former.
SHOWN = 1000

_SIDECARS_HELD = 64

# One sample: half a SHA-256 of its id, and one of its image's bytes.
FINGERPRINT = np.dtype([("id", "<u8", (2,)), ("image", "<u8", (2,))])

_SPILLED = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])

# Each sample has a row for its id and one for its image.
BYTES_SPILLED_PER_SAMPLE = 2 * _SPILLED.itemsize

_ROWS_PER_FILE = 1_000_000

_MOST_FILES = 512

@dataclass(frozen=True, slots=True)
class Duplicates:
    """The samples that double an earlier one, in order of their positions in the dataset."""

    positions: NDArray[np.int64]
    originals: NDArray[np.int64]
    """For each, the position of the sample that it doubles."""
    same_id: NDArray[np.bool_]
    """For each, whether the id is the same; else the image's bytes are."""

def finish_shards(plan: ShardPlan, *, source_parents: tuple[Parent, ...] = ()) -> Dataset:
    """List the finished shards in ``dataset.json``, which makes them a dataset.

    A dataset that is listed already is left as it is, with its layers. Raises NotFoundError if
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
            dataset = commit_layer(dataset, layer, parents=(source,), detail={"from": "source"})
    if is_staged:
        _tidy(plan, dataset)
    return dataset

def _write_manifest(plan: ShardPlan, parents: tuple[Parent, ...]) -> None:
    shards = ShardList(plan)
    doubles = find_duplicates(shards.fingerprints(), plan.num_items)
    if plan.config.duplicates == "drop":
        shards.drop(doubles)
    infos, counts = shards.infos, shards.quarantine
    if not any(info.num_samples for info in infos):
        raise SourceError(
            f"none of the {plan.num_items} items in {plan.source} can be used: "
            + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())),
            expected="images that decode, each with a UTF-8 caption",
            action="mend the source or the limits of the configuration",
        )
    dataset = Dataset(
        uri=plan.uri, shards=tuple(infos), layers={}, quarantine=counts, parents=parents
    )
    num_same_id = int(doubles.same_id.sum())
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
                "num_same_image": len(doubles.positions) - num_same_id,
                "shown": shards.show(doubles),
            },
            "parents": [parent.to_json() for parent in parents],
            "config": plan.config.to_json(),
            "summary": summary(infos, counts),
        },
    )

def _write_staged_rows(plan: ShardPlan, dataset: Dataset, layer: str) -> None:
    """Write a layer's rows of the samples that were kept."""
    for index in range(plan.num_shards):
        if not has_layer_shard(dataset, layer, index):
            table = read_staged_rows(plan, layer, index)
            kept = set(dataset.uids(index))
            is_kept = pa.array([uid in kept for uid in table["uid"].to_pylist()], pa.bool_())
            write_layer_shard(dataset, layer, index, table.filter(is_kept))

def _tidy(plan: ShardPlan, dataset: Dataset) -> None:
    """Delete what only finishing needed, and what a worker may have put since and then died."""
    store = open_store(plan.uri)
    for index, info in enumerate(dataset.shards):
        for layer in plan.layers:
            store.delete(staged_rows_key(layer, index))
        if info.name.endswith(f"{UNIQUE}.tar"):
            delete_original(store, index)

class ShardList:
    """The shards by their sidecars, each of which is read once, and again if it's written anew."""

    def __init__(self, plan: ShardPlan) -> None:
        self._plan = plan
        self._store = open_store(plan.uri)
        self._starts: NDArray[np.int64] = np.zeros(plan.num_shards + 1, np.int64)
        self.infos: list[ShardInfo] = []
        self.quarantine: Counter[str] = Counter()
        self.quarantined: list[dict[str, str]] = []
        self._uids = lru_cache(_SIDECARS_HELD)(self._read_uids)

    def fingerprints(self) -> Iterator[NDArray[np.void]]:
        """The fingerprints of the samples, shard by shard, doubles included.

        Raises NotFoundError if a shard is missing.
        """
        for index in range(self._plan.num_shards):
            mark, sidecar = self._sidecar(index)
            found = fingerprints_of(sidecar)
            self._starts[index + 1] = self._starts[index] + len(found)
            self._note(index, mark, sidecar)
            yield found

    def show(self, doubles: Duplicates) -> list[dict[str, str]]:
        """The first doubles: the uids of both, and what's the same."""
        return [
            {
                "uid": self._uid(int(doubles.positions[i])),
                "same_as": self._uid(int(doubles.originals[i])),
                "reason": _reason(doubles, i),
            }
            for i in range(min(len(doubles.positions), SHOWN))
        ]

    def drop(self, doubles: Duplicates) -> None:
        """Write each shard that has doubles anew without them, beside itself."""
        bounds = np.searchsorted(doubles.positions, self._starts)
        self.infos, self.quarantine, self.quarantined = [], Counter(), []
        for index in range(self._plan.num_shards):
            first, last = int(bounds[index]), int(bounds[index + 1])
            if first < last:
                if not exists(sidecar_uri(self._plan.uri, index, UNIQUE)):
                    self._write_unique(index, doubles, range(first, last))
                # The version with doubles goes last, when nothing needs it any more.
                delete_original(self._store, index)
            self._note(index, *self._sidecar(index))

    def _note(self, index: int, mark: str, sidecar: dict[str, Any]) -> None:
        self.infos.append(shard_info(index, sidecar, mark))
        self.quarantine.update(bad["reason"] for bad in sidecar["quarantined"])
        self.quarantined += sidecar["quarantined"][: SHOWN - len(self.quarantined)]

    def _write_unique(self, index: int, doubles: Duplicates, which: range) -> None:
        start = int(self._starts[index])
        rows = {int(doubles.positions[i]) - start: i for i in which}
        try:
            sidecar = read_sidecar(self._plan.uri, index)
            with self._open(index) as original:
                self._write_without(index, sidecar, original, rows, doubles)
        except NotFoundError:
            # Another process that finishes too may have been first, and tidied up.
            if not exists(sidecar_uri(self._plan.uri, index, UNIQUE)):
                raise

    def _write_without(
        self,
        index: int,
        sidecar: dict[str, Any],
        original: BinaryIO,
        rows: dict[int, int],
        doubles: Duplicates,
    ) -> None:
        quarantined = list(sidecar["quarantined"])
        with staged(self._store, tar_key(index, UNIQUE)) as path, path.open("wb") as file:
            tar = TarWriter(file)
            for row, (record, members) in enumerate(read_members(original)):
                if row not in rows:
                    tar.append(members)
                    continue
                same_as = self._uid(int(doubles.originals[rows[row]]))
                quarantined.append(
                    {
                        "origin": record["origin"],
                        "reason": _reason(doubles, rows[row]),
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
        write_json(sidecar_uri(self._plan.uri, index, UNIQUE), value)

    @contextmanager
    def _open(self, index: int) -> Iterator[BinaryIO]:
        with tempfile.TemporaryDirectory(prefix="clipmill-shard-") as folder:
            path = Path(folder) / "shard.tar"
            self._store.get_file(tar_key(index), path)
            with path.open("rb") as file:
                yield file

    def _sidecar(self, index: int) -> tuple[str, dict[str, Any]]:
        if self._plan.config.duplicates == "drop":
            try:
                return UNIQUE, read_sidecar(self._plan.uri, index, UNIQUE)
            except NotFoundError:
                pass  # a shard without doubles, or not written anew yet
        return "", read_sidecar(self._plan.uri, index)

    def _uid(self, position: int) -> str:
        index = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self._uids(index)[position - int(self._starts[index])]

    def _read_uids(self, index: int) -> list[str]:
        """The uids of a shard as it was made."""
        _, sidecar = self._sidecar(index)
        uids: list[str] = list(sidecar["uids"])
        for row, uid in sidecar.get("dropped", []):
            uids.insert(row, uid)
        return uids

def _reason(doubles: Duplicates, i: int) -> str:
    return "duplicate-id" if doubles.same_id[i] else "duplicate-image"

def summary(infos: list[ShardInfo], quarantine: Counter[str]) -> dict[str, int]:
    """Totals, as ``dataset.json`` states them."""
    return {
        "num_samples": sum(info.num_samples for info in infos),
        "num_shards": len(infos),
        "num_bytes": sum(info.num_bytes for info in infos),
        "num_quarantined": quarantine.total(),
    }

def fingerprints_of(sidecar: dict[str, Any]) -> NDArray[np.void]:
    """The fingerprints of the samples that a shard had when it was made."""
    return np.frombuffer(base64.b64decode(sidecar["fingerprints"]), FINGERPRINT)

def find_duplicates(shards: Iterable[NDArray[np.void]], num_samples: int) -> Duplicates:
    """Compare all samples; ``shards`` yields arrays of FINGERPRINT in the dataset's order.

    A sample whose id an earlier one has is no original for others' images.
    """
    num_files = min(_MOST_FILES, 1 << max(0, (num_samples // _ROWS_PER_FILE).bit_length()))
    is_double = np.zeros(num_samples, np.bool_)
    with tempfile.TemporaryDirectory(prefix="clipmill-duplicates-") as folder:
        ids, images = (Path(folder) / name for name in ("id", "image"))
        _spill(shards, {"id": ids, "image": images}, num_files)
        same_ids = _doubles(ids, num_files, is_double)
        for positions, _ in same_ids:
            is_double[positions] = True
        same_images = _doubles(images, num_files, is_double)
    positions = _joined([found for found, _ in same_ids + same_images])
    originals = _joined([original for _, original in same_ids + same_images])
    num_same_ids = sum(len(found) for found, _ in same_ids)
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

def _doubles(
    folder: Path, num_files: int, left_out: NDArray[np.bool_]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return list(_doubles_by_file(folder, num_files, left_out))

def _doubles_by_file(
    folder: Path, num_files: int, left_out: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of doubles, and of the first sample equal to each, one file after the other."""
    for number in range(num_files):
        rows = np.fromfile(folder / str(number), _SPILLED)
        rows = rows[~left_out[rows["position"]]]
        rows = rows[np.lexsort((rows["position"], rows["low"], rows["high"]))]
        same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
        # The first of a run of equal rows is where the last change was.
        first = (
            np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(rows)), 0))
            if (len(rows))
            else np.empty(0, np.int64)
        )
        doubled = np.flatnonzero(np.r_[False, same]) if len(rows) else np.empty(0, np.int64)
        yield rows["position"][doubled], rows["position"][first[doubled]]

def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
