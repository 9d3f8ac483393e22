"""All shards of a plan once they are made: what they hold, and which samples to drop."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipmill.data.dataset import UNIQUE, ShardInfo, read_sidecar, sidecar_uri
from clipmill.data.shard_duplicates import Duplicates
from clipmill.data.shard_making import (
    delete_original,
    fingerprints_of,
    shard_info,
    staged,
    tar_key,
)
from clipmill.data.shard_plan import ShardPlan
from clipmill.data.shard_tar import TarWriter, read_members
from clipmill.errors import NotFoundError
from clipmill.storage import exists, open_store, write_json

# The quarantined items and the doubles that dataset.json shows; sidecars name all the former.
SHOWN = 1000
_SIDECARS_HELD = 64


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
