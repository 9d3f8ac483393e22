"""One layer of a dataset against its records, and the layers that nothing lists."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.data.dataset import Dataset
from clipmill.data.layers import LAYER_MANIFEST
from clipmill.data.verify_file import Fault, check_file, read_record
from clipmill.data.verify_tar import order_faults
from clipmill.digest import digest_json
from clipmill.storage import join, open_store


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

        size, found = check_file(
            uri, listed["num_bytes"], listed["sha256"], look_into if contents else None
        )
        return 2, size, faults + found

    def _manifest_faults(self, name: str, value: dict[str, Any]) -> Iterator[Fault]:
        uri, files, info = self._uri, value["files"], self._dataset.layers[name]
        computed = digest_json({"name": value["name"], "files": files})
        for who, found in (("the dataset lists", info.digest), ("it says", value["digest"])):
            if computed != found:
                yield Fault(uri, f"has the digest {computed[:12]}…, and {who} {str(found)[:12]}…")
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
            if (said := value["summary"][key]) != (total := sum(file[key] for file in files)):
                yield Fault(uri, f"sums up {key} as {said}, and it is {total}")
        if info.num_bytes != sum(file["num_bytes"] for file in files):
            yield Fault(
                uri, f"lists other sizes than the {info.num_bytes:,} bytes of the dataset's"
            )
        self._files = files


def unlisted_layers(dataset: Dataset) -> Iterator[str]:
    """Say which layers lie beside the dataset and aren't in its list, and how far they are."""
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
        found = table["uid"].to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        return [Fault(uri, f"can't be read as Parquet with a column uid: {error}")]
    faults = [] if uids is None else order_faults(uri, found, uids)
    if not faults and len(found) != num_samples:
        faults = [Fault(uri, f"has {len(found)} rows for {num_samples} samples")]
    return faults
