"""Whether a dataset is what it says: every digest, count and uid, in shards and layers.

Nothing is trusted but ``dataset.json``, whose own digest is checked first; copies in a cache
aren't looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clipmill.data.dataset import MANIFEST, Dataset
from clipmill.data.uid_index import UidIndex
from clipmill.data.verify_file import Fault, check_file, read_record
from clipmill.data.verify_layer import LayerCheck, unlisted_layers
from clipmill.data.verify_tar import tar_faults
from clipmill.digest import sha256_bytes
from clipmill.errors import ArtifactError
from clipmill.stage_records import Report
from clipmill.storage import join, open_store, read_json

__all__ = ["Fault", "Verification", "verify"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was checked, and everything that is wrong."""

    uri: str
    digest: str = ""
    """The dataset's; empty if its list can't be read."""
    num_files: int = 1
    """Files that were looked at."""
    num_bytes: int = 0
    """Bytes of shards and layers that were read."""
    faults: tuple[Fault, ...] = ()
    """What is damaged."""
    notes: tuple[str, ...] = ()
    """What is odd, and harmless: work that isn't finished, files that nothing lists."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "uri": self.uri,
            "digest": self.digest,
            "whole": self.is_whole,
            "num_files": self.num_files,
            "num_bytes": self.num_bytes,
            "faults": [{"uri": fault.uri, "what": fault.what} for fault in self.faults],
            "notes": list(self.notes),
        }


def verify(uri: str, *, contents: bool = True, report: Report | None = None) -> Verification:
    """Check the dataset at ``uri``: every file whole, or without ``contents`` lists and sizes.

    Raises StorageError if the store can't be asked; whatever it holds is told, not raised.
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
        self._uids = UidIndex()
        self._quarantined: list[dict[str, str]] = []
        self._faults: list[Fault] = []
        self._num_files, self._num_bytes = 1, 0

    def run(self, report: Report | None) -> Verification:
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
        self._faults += self._doubled()
        return Verification(
            uri=dataset.uri,
            digest=dataset.digest,
            num_files=self._num_files,
            num_bytes=self._num_bytes,
            faults=tuple(self._faults),
            notes=(*self._unlisted_files(), *unlisted_layers(dataset)),
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
            said = {name: sidecar[name] for name in ("num_samples", "num_bytes", "sha256")}
            self._quarantined += [dict(bad) for bad in sidecar["quarantined"]]
            if sidecar["fingerprints_sha256"] != sha256_bytes(sidecar["fingerprints"].encode()):
                self._faults.append(Fault(uri, "has other fingerprints than it was written with"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._faults.append(Fault(uri, f"lacks a part: {error!r}"))
            return None
        for name, value in said.items():
            if value != (listed := getattr(info, name)):
                self._faults.append(Fault(uri, f"has {name} {value}, and {listed} listed"))
        if len(uids) != info.num_samples:
            what = f"names {len(uids)} uids, and {info.num_samples} samples listed"
            self._faults.append(Fault(uri, what))
        self._uids.add(index, uids)
        return uids

    def _list_faults(self) -> Iterator[Fault]:
        """What of ``dataset.json`` its digest doesn't cover, and the rest of it tells."""
        dataset, summary = self._dataset, self._value.get("summary")
        counted = {
            "num_samples": dataset.num_samples,
            "num_shards": len(dataset.shards),
            "num_bytes": sum(shard.num_bytes for shard in dataset.shards),
            "num_quarantined": sum(dataset.quarantine.values()),
        }
        for name, count in counted.items():
            said = summary.get(name) if isinstance(summary, dict) else None
            if said != count:
                what = f"sums up {name} as {said}, and it is {count}"
                yield Fault(join(dataset.uri, MANIFEST), what)

    def _quarantine_faults(self) -> Iterator[Fault]:
        """What the sidecars say of the items left out, against the dataset's list."""
        uri, shown = join(self._dataset.uri, MANIFEST), self._value.get("quarantined", [])
        counts: dict[str, int] = {}
        for bad in self._quarantined:
            reason = bad.get("reason", "")
            counts[reason] = counts.get(reason, 0) + 1
        if counts != self._dataset.quarantine:
            listed = dict(self._dataset.quarantine)
            yield Fault(uri, f"counts {listed} left out, and the sidecars {counts}")
        elif shown != self._quarantined[: len(shown)]:
            yield Fault(uri, "names other items left out than the sidecars")

    def _doubled(self) -> Iterator[Fault]:
        for uid, shards in self._uids.doubled(self._read_uids):
            names = " and ".join(self._dataset.shards[index].name for index in shards)
            yield Fault(join(self._dataset.uri, "shards"), f"hold {uid} more than once: {names}")

    def _read_uids(self, index: int) -> list[str]:
        uids: list[str] = read_json(self._dataset.sidecar_uri(index))["uids"]
        return uids

    def _unlisted_files(self) -> Iterator[str]:
        shards = self._dataset.shards
        known = {name for s in shards for name in (s.name, f"{s.name.removesuffix('.tar')}.json")}
        for key in open_store(self._dataset.uri).list("shards/"):
            if key.removeprefix("shards/") not in known:
                yield f"{join(self._dataset.uri, key)} is listed nowhere"
