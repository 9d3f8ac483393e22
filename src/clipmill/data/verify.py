"""Verify a dataset: every digest, count and uid, in shards and layers.

Nothing is trusted but ``dataset.json``, whose own digest is checked first; copies in a cache
aren't looked at.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.config import digest_json, sha256_bytes, sha256_file
from clipmill.data.dataset import (
    MANIFEST,
    Dataset,
    check_kind,
    listed_quarantined,
    parse_quarantined,
)
from clipmill.data.layers import LAYER_MANIFEST
from clipmill.data.shards.tar import index_tar
from clipmill.errors import ArtifactError, BadSampleError, NotFoundError
from clipmill.images import decode_rgb
from clipmill.stage_records import ProgressCallback
from clipmill.storage import join, open_store, read_bytes, read_json, split_uri
from clipmill.storage.local import LocalStore

# Samples that are named; the others are counted.
_NUM_NAMED = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is damaged."""

    uri: str
    """URI that holds it."""
    what: str
    """Description of the fault, the rest of a sentence that begins with the URI."""

    def __str__(self) -> str:
        return f"{self.uri} {self.what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Counts of what was checked, and all faults."""

    uri: str
    digest: str = ""
    """The dataset's; empty if its list can't be read."""
    num_files: int = 1
    """Files that were looked at."""
    num_bytes: int = 0
    """Bytes of shards and layers that were read."""
    faults: tuple[Fault, ...] = ()
    """Damage."""
    notes: tuple[str, ...] = ()
    """Harmless oddities: unfinished work, files that nothing lists."""

    @property
    def is_ok(self) -> bool:
        """True if nothing is damaged."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "uri": self.uri,
            "digest": self.digest,
            "whole": self.is_ok,
            "num_files": self.num_files,
            "num_bytes": self.num_bytes,
            "faults": [{"uri": fault.uri, "what": fault.what} for fault in self.faults],
            "notes": list(self.notes),
        }


def verify(
    uri: str, *, contents: bool = True, report: ProgressCallback | None = None
) -> Verification:
    """Check the dataset at ``uri``: every file whole, or without ``contents`` lists and sizes.

    Raises StorageError if the store fails; whatever it holds is told, not raised.
    """
    uri = open_store(uri).uri
    manifest = join(uri, MANIFEST)
    value, faults = read_record(manifest, "dataset")
    if value is None:
        return Verification(uri=uri, faults=tuple(faults))
    try:
        dataset = Dataset.open(uri)
    except ArtifactError as error:
        what = error.what.removeprefix(manifest).strip()
        return Verification(uri=uri, faults=(Fault(manifest, what),))
    return _Verifier(dataset, value, contents).run(report)


class _Verifier:
    def __init__(self, dataset: Dataset, value: dict[str, Any], contents: bool) -> None:
        self._dataset = dataset
        self._value = value
        self._contents = contents
        self._uids = DuplicateUidDetector()
        self._quarantined: list[dict[str, str]] = []
        self._faults: list[Fault] = []
        self._num_files, self._num_bytes = 1, 0

    def run(self, report: ProgressCallback | None) -> Verification:
        dataset = self._dataset
        layers = [LayerCheck(dataset, name) for name in sorted(dataset.layers)]
        for layer in layers:
            self._count(1, 0, layer.faults)
        num_read = 0
        for index in range(len(dataset.shards)):
            uids = self._check_shard(index)
            num_read += uids is not None
            for layer in layers:
                self._count(*layer.check_shard(index, uids, contents=self._contents))
            if report:
                report(index + 1, len(dataset.shards), "shards checked")
        self._faults += self._list_faults()
        if num_read == len(dataset.shards):
            self._faults += self._quarantine_faults()
        self._faults += self._duplicate_uid_faults()
        return Verification(
            uri=dataset.uri,
            digest=dataset.digest,
            num_files=self._num_files,
            num_bytes=self._num_bytes,
            faults=tuple(self._faults),
            notes=(*self._unlisted_files(), *unlisted_layers(dataset), *self._unfinished()),
        )

    def _count(self, num_files: int, num_bytes: int, faults: list[Fault]) -> None:
        self._num_files += num_files
        self._num_bytes += num_bytes
        self._faults += faults

    def _check_shard(self, index: int) -> list[str] | None:
        """Check a shard and its sidecar; the sidecar's uids, if it can be read."""
        info, uri = self._dataset.shards[index], self._dataset.shard_uri(index)
        uids = self._check_sidecar(index)
        look_into = (lambda path, bad: tar_faults(path, uri, uids, bad)) if self._contents else None
        self._count(1, *check_file(uri, info.num_bytes, info.sha256, look_into))
        return uids

    def _check_sidecar(self, index: int) -> list[str] | None:
        uri, info = self._dataset.sidecar_uri(index), self._dataset.shards[index]
        sidecar, faults = read_record(uri, "shard")
        self._count(1, 0, faults)
        if sidecar is None:
            return None
        try:
            uids: list[str] = [str(uid) for uid in sidecar["uids"]]
            stated = {name: sidecar[name] for name in ("num_samples", "num_bytes", "sha256")}
            self._quarantined += parse_quarantined(sidecar["quarantined"])
            if sidecar["fingerprints_sha256"] != sha256_bytes(sidecar["fingerprints"].encode()):
                self._faults.append(Fault(uri, "has other fingerprints than it was written with"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._faults.append(Fault(uri, f"lacks a part: {error!r}"))
            return None
        for name, value in stated.items():
            if value != (listed := getattr(info, name)):
                self._faults.append(Fault(uri, f"has {name} {value}, and {listed} listed"))
        if len(uids) != info.num_samples:
            what = f"names {len(uids)} uids, and {info.num_samples} samples listed"
            self._faults.append(Fault(uri, what))
        self._uids.add(index, uids)
        return uids

    def _list_faults(self) -> Iterator[Fault]:
        """Yield faults of the parts of ``dataset.json`` that its digest doesn't cover."""
        dataset, summary = self._dataset, self._value.get("summary")
        counted = {
            "num_samples": dataset.num_samples,
            "num_shards": len(dataset.shards),
            "num_bytes": sum(shard.num_bytes for shard in dataset.shards),
            "num_quarantined": sum(dataset.quarantine.values()),
        }
        for name, count in counted.items():
            stated = summary.get(name) if isinstance(summary, dict) else None
            if stated != count:
                what = f"sums up {name} as {stated}, and it is {count}"
                yield Fault(join(dataset.uri, MANIFEST), what)

    def _quarantine_faults(self) -> Iterator[Fault]:
        """Compare the quarantined items in the sidecars with the dataset's list."""
        uri = join(self._dataset.uri, MANIFEST)
        shown = parse_quarantined(self._value.get("quarantined", ()))
        counts: dict[str, int] = {}
        for bad in self._quarantined:
            reason = bad.get("reason", "")
            counts[reason] = counts.get(reason, 0) + 1
        if counts != self._dataset.quarantine:
            listed = dict(self._dataset.quarantine)
            yield Fault(uri, f"counts {listed} left out, and the sidecars {counts}")
        elif shown != listed_quarantined(self._quarantined[: len(shown)]):
            yield Fault(uri, "names other items left out than the sidecars")

    def _duplicate_uid_faults(self) -> Iterator[Fault]:
        for uid, shards in self._uids.find_duplicates(self._read_uids):
            names = " and ".join(self._dataset.shards[index].name for index in shards)
            yield Fault(join(self._dataset.uri, "shards"), f"hold {uid} more than once: {names}")

    def _read_uids(self, index: int) -> list[str]:
        uids: list[str] = read_json(self._dataset.sidecar_uri(index))["uids"]
        return uids

    def _unfinished(self) -> Iterator[str]:
        store = open_store(self._dataset.uri)
        if isinstance(store, LocalStore):
            for path in store.unfinished():
                yield (
                    f"{path} is an unfinished write: `clipmill data finalize` removes it once its "
                    "process is gone"
                )

    def _unlisted_files(self) -> Iterator[str]:
        shards = self._dataset.shards
        known = {name for s in shards for name in (s.name, f"{s.name.removesuffix('.tar')}.json")}
        for key in open_store(self._dataset.uri).list("shards/"):
            if key.removeprefix("shards/") not in known:
                yield f"{join(self._dataset.uri, key)} is listed nowhere"


def read_record(uri: str, kind: str = "") -> tuple[dict[str, Any] | None, list[Fault]]:
    """Read the JSON object at ``uri``, of this kind if one is given; None with its fault otherwise.

    Raises StorageError if the store fails.
    """
    try:
        value = json.loads(read_bytes(uri))
        if kind:
            check_kind(value, kind, uri)
    except NotFoundError:
        return None, [Fault(uri, "is missing")]
    except ValueError as error:  # a UnicodeDecodeError is one too
        return None, [Fault(uri, f"isn't JSON: {error}")]
    except ArtifactError as error:
        return None, [Fault(uri, error.what.removeprefix(uri).strip())]
    if not isinstance(value, dict):
        return None, [Fault(uri, "isn't a JSON object")]
    return value, []


def check_file(
    uri: str,
    num_bytes: int,
    sha256: str,
    look_into: Callable[[Path, bool], list[Fault]] | None,
) -> tuple[int, list[Fault]]:
    """Return the bytes read of the file at ``uri``, and its faults.

    ``look_into`` gets a local path of it, and whether its digest is wrong; without it the size
    alone is compared. A remote file is copied for the while. Raises StorageError if the store
    fails, or the copy can't be written.
    """
    store, key = split_uri(uri)
    try:
        size = store.size(key)
        faults = []
        if size != num_bytes:
            change = "cut" if size < num_bytes else "longer"
            faults = [Fault(uri, f"is {change}: it has {size:,} bytes, and {num_bytes:,} listed")]
        if look_into is None:
            return 0, faults
        if isinstance(store, LocalStore):
            return size, faults + _contents(store.path(key), uri, sha256, bool(faults), look_into)
        with tempfile.TemporaryDirectory(prefix="clipmill-verify-") as folder:
            path = Path(folder) / "file"
            store.get_file(key, path)
            return size, faults + _contents(path, uri, sha256, bool(faults), look_into)
    except NotFoundError:
        return 0, [Fault(uri, "is missing")]


def _contents(
    path: Path,
    uri: str,
    sha256: str,
    is_reported: bool,
    look_into: Callable[[Path, bool], list[Fault]],
) -> list[Fault]:
    actual = sha256_file(path)
    is_damaged = actual != sha256
    faults = look_into(path, is_damaged)
    if is_damaged and not is_reported:
        changed = f"has changed: its SHA-256 is {actual[:12]}…, and {sha256[:12]}… listed"
        faults.insert(0, Fault(uri, changed))
    return faults


class LayerCheck:
    """A listed layer: its manifest at once, its files shard by shard."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        """Read the manifest; ``faults`` has what is wrong with it."""
        self._folder = dataset.layer_uri(name)
        self._dataset = dataset
        self._uri = join(self._folder, LAYER_MANIFEST)
        value, self.faults = read_record(self._uri, "layer")
        self._files: list[dict[str, Any]] = []
        if value:
            try:
                self.faults += self._manifest_faults(name, value)
            except (KeyError, TypeError, AttributeError) as error:
                self.faults.append(Fault(self._uri, f"lacks a part: {error!r}"))

    def check_shard(
        self, index: int, uids: Sequence[str] | None, *, contents: bool
    ) -> tuple[int, int, list[Fault]]:
        """Files and bytes that were read for one shard, and the faults there."""
        if not index < len(self._files):
            return 0, 0, []  # the manifest's own faults say so
        listed = self._files[index]
        uri = join(self._folder, f"{index:05d}.parquet")
        record_uri = join(self._folder, f"{index:05d}.json")
        record, faults = read_record(record_uri)
        if record and record != listed:
            faults.append(Fault(record_uri, f"says {record}, and {LAYER_MANIFEST} lists {listed}"))
        expected = self._dataset.shards[index].num_samples

        def look_into(path: Path, is_damaged: bool) -> list[Fault]:
            del is_damaged
            return _table_faults(path, uri, uids, expected)

        size, file_faults = check_file(
            uri, listed["num_bytes"], listed["sha256"], look_into if contents else None
        )
        return 2, size, faults + file_faults

    def _manifest_faults(self, name: str, value: dict[str, Any]) -> Iterator[Fault]:
        uri, files, info = self._uri, value["files"], self._dataset.layers[name]
        computed = digest_json({"name": value["name"], "files": files})
        for who, listed in (("the dataset lists", info.digest), ("it says", value["digest"])):
            if computed != listed:
                yield Fault(uri, f"has the digest {computed[:12]}…, and {who} {str(listed)[:12]}…")
        if value["name"] != name:
            yield Fault(uri, f"is of layer {value['name']}")
        on = [parent["digest"] for parent in value["parents"] if parent["role"] == "dataset"]
        if on != [self._dataset.digest]:
            yield Fault(uri, f"was made from a dataset {', '.join(on) or 'that it does not name'}")
        if len(files) != len(self._dataset.shards):
            yield Fault(uri, f"lists {len(files)} files for {len(self._dataset.shards)} shards")
            return
        for index, (file, shard) in enumerate(zip(files, self._dataset.shards, strict=True)):
            if file["num_rows"] != shard.num_samples:
                rows = f"{file['num_rows']} rows for the {shard.num_samples} samples"
                yield Fault(uri, f"lists {rows} of shard {index}")
        for key in ("num_rows", "num_bytes"):
            if (stated := value["summary"][key]) != (total := sum(file[key] for file in files)):
                yield Fault(uri, f"sums up {key} as {stated}, and it is {total}")
        if info.num_bytes != sum(file["num_bytes"] for file in files):
            yield Fault(
                uri, f"lists other sizes than the {info.num_bytes:,} bytes of the dataset's"
            )
        self._files = files


def unlisted_layers(dataset: Dataset) -> Iterator[str]:
    """Describe layers that the dataset doesn't list, and their progress."""
    files: dict[str, set[str]] = {}
    for key in open_store(dataset.uri).list("layers/"):
        folder, _, name = key.removeprefix("layers/").rpartition("/")
        files.setdefault(folder, set()).add(name)
    for layer in sorted(files.keys() - dataset.layers.keys()):
        if LAYER_MANIFEST in files[layer]:
            yield f"layer {layer} is committed, and the dataset doesn't list it yet"
        else:
            done = sum(name.endswith(".parquet") for name in files[layer])
            yield f"layer {layer} isn't finished: {done} of {len(dataset.shards)} shards"


def _table_faults(
    path: Path, uri: str, uids: Sequence[str] | None, num_samples: int
) -> list[Fault]:
    try:
        table = pq.read_table(path, use_threads=False)
        actual = table["uid"].to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        return [Fault(uri, f"can't be read as Parquet with a column uid: {error}")]
    faults = [] if uids is None else order_faults(uri, actual, uids)
    if not faults and len(actual) != num_samples:
        faults = [Fault(uri, f"has {len(actual)} rows for {num_samples} samples")]
    return faults


def tar_faults(path: Path, uri: str, uids: Sequence[str] | None, is_damaged: bool) -> list[Fault]:
    """Compare the samples in a tar with the sidecar's uids, if those are known.

    Of a damaged tar the images are decoded too, to name those that are broken.
    """
    with path.open("rb") as file:
        try:
            index = index_tar(file)
        except (ArtifactError, ValueError) as error:
            reason = error.what if isinstance(error, ArtifactError) else str(error)
            return [Fault(uri, f"can't be read as a shard: {reason.rpartition('shard: ')[2]}")]
        actual = [uid.decode("utf-8", "backslashreplace") for uid in index["uid"].tolist()]
        faults = [] if uids is None else order_faults(uri, actual, uids)
        if is_damaged and (broken := list(_broken(file, index, actual))):
            faults.append(Fault(uri, f"holds images that don't decode: {_names(broken)}"))
    return faults


def order_faults(uri: str, actual: Sequence[str], expected: Sequence[str]) -> list[Fault]:
    """Return differences of a list of uids from the shard's: lost, foreign, duplicate, moved."""
    if list(actual) == list(expected):
        return []
    faults = []
    counts, listed = Counter(actual), set(expected)
    if lost := [uid for uid in expected if uid not in counts]:
        faults.append(Fault(uri, f"lacks {_names(lost)}"))
    if foreign := [uid for uid in counts if uid not in listed]:
        faults.append(Fault(uri, f"holds {_names(foreign)}, foreign to the shard"))
    if duplicates := [uid for uid, count in counts.items() if count > 1]:
        faults.append(Fault(uri, f"holds {_names(duplicates)} more than once"))
    if not faults:
        pairs = enumerate(zip(actual, expected, strict=True))
        row, (uid, other) = next(item for item in pairs if len({*item[1]}) > 1)
        faults.append(Fault(uri, f"is in another order: row {row} is {uid}, and {other} expected"))
    return faults


def _broken(file: BinaryIO, index: NDArray[np.void], uids: Sequence[str]) -> Iterator[str]:
    for uid, (offset, length) in zip(uids, index["image"].tolist(), strict=True):
        file.seek(offset)
        try:
            decode_rgb(file.read(length))
        except BadSampleError:
            yield uid


def _names(uids: Sequence[str]) -> str:
    more = len(uids) - _NUM_NAMED
    noun = "sample" if len(uids) == 1 else "samples"
    return f"{noun} {', '.join(uids[:_NUM_NAMED])}" + (f" and {more:,} more" if more > 0 else "")


class DuplicateUidDetector:
    """Short hashes of the uids of each shard."""

    def __init__(self) -> None:
        self._hashes: dict[int, NDArray[np.uint64]] = {}

    def add(self, shard_index: int, uids: Sequence[str]) -> None:
        """Take the uids of one shard."""
        short = (hashlib.blake2b(uid.encode(), digest_size=8).digest() for uid in uids)
        self._hashes[shard_index] = np.frombuffer(b"".join(short), np.uint64)

    def find_duplicates(
        self, read_uids: Callable[[int], Sequence[str]]
    ) -> Iterator[tuple[str, list[int]]]:
        """Yield each uid that occurs twice or more, with the shard of each occurrence.

        ``read_uids`` reads the uids of a shard again, for the few shards where hashes meet.
        """
        if not self._hashes:
            return
        hashes, counts = np.unique(np.concatenate([*self._hashes.values()]), return_counts=True)
        met = hashes[counts > 1]
        shards_by_uid: dict[str, list[int]] = {}
        if len(met):
            for index, hashes_of in self._hashes.items():
                rows = np.flatnonzero(np.isin(hashes_of, met))
                uids = read_uids(index) if len(rows) else ()
                for row in rows.tolist():
                    shards_by_uid.setdefault(uids[row], []).append(index)
        # Different uids may share a hash.
        yield from ((uid, shards) for uid, shards in shards_by_uid.items() if len(shards) > 1)
