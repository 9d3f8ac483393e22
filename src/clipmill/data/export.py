"""A view baked into plain WebDataset tars, for trainers that know nothing of layers.

Samples keep the dataset's order. Each holds its image as it was, one caption as ``.txt``, and a
``.json`` with all captions by kind. Tar ``j`` holds fixed samples of the view, so a rerun keeps
the tars that are whole, and rivals write equal bytes. ``sizes.json`` is what open_clip reads for
the number of samples.
"""

import io
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from clipmill.config import Config, canonical_json, digest_json, sha256_file
from clipmill.data.dataset import FORMAT, Dataset, check_kind
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.read import SampleRecord, read_records, read_shard
from clipmill.errors import ArtifactError, ConfigError, StorageError
from clipmill.stage_records import ProgressCallback
from clipmill.storage import Store, exists, join, open_store, read_json, write_json

EXPORT_MANIFEST = "export.json"

SIZES = "sizes.json"

_REAL = "real"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig(Config):
    """Samples and captions to export, and their layout in tars."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "several": "captions_per_image",
    }

    view: ViewConfig = ViewConfig()
    """Samples, and the captions they can have."""
    captions_per_image: Literal["first", "random", "each"] = "first"
    """Captions of an image that has several: the first, one drawn by seed and uid, or each, with a
    copy of the image (under keys ``<uid>-0``, ``<uid>-1``, ...). Of ``both`` the real one is
    first."""
    seed: int = 0
    """Seed of ``random``."""
    samples_per_tar: int = 1000
    """Samples of the view that a tar covers."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if self.samples_per_tar < 1:
            raise ConfigError(
                f"samples_per_tar was {self.samples_per_tar}",
                expected="at least 1",
                action="give samples_per_tar such a value",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedSample:
    """One sample with the captions it goes out with."""

    record: SampleRecord
    image: bytes
    """The image file."""
    captions: dict[str, list[str]]
    """All that the view has, by kind: ``real``, or the name of a layer."""
    texts: list[str]
    """Those that it's written with, a copy of the sample each."""


def export(
    config: ExportConfig,
    dataset: str,
    store: str,
    cache: Path,
    *,
    report: ProgressCallback | None = None,
) -> str:
    """Write the tars under ``store``, and return the URI of their folder.

    Tars that an earlier run finished are kept. Raises ConfigError if the dataset has no such
    captions, ArtifactError if the view is empty, or a shard or layer isn't the listed one.
    """
    view = View(Dataset.open(dataset), config.view)
    address = digest_json({"format": FORMAT, "view": view.digest, "config": config.to_json()})
    uri = open_store(join(store, "exports", address[:16])).uri
    if exists(join(uri, EXPORT_MANIFEST)):
        return uri
    sizes = view.shard_sizes()
    total = sum(sizes)
    if not total:
        raise ArtifactError(
            f"nothing of {view.dataset.uri} is in this view",
            expected="at least one sample",
            action="raise view.subset_fraction, or use other selection layers",
        )
    folder = open_store(uri)
    records = []
    for tar in range(-(-total // config.samples_per_tar)):
        first = tar * config.samples_per_tar
        last = min(first + config.samples_per_tar, total)
        record = _existing_record(folder, tar)
        if record is None:
            samples = _samples(view, config, sizes, range(first, last), cache)
            record = _write(folder, tar, samples)
        records.append(record)
        if report:
            report(last, total, "samples exported")
    _finish(uri, address, config, view, records)
    return uri


def tar_name(tar: int) -> str:
    """Return the file name of a tar in the export's folder."""
    return f"{tar:05d}.tar"


def _existing_record(folder: Store, tar: int) -> dict[str, Any] | None:
    """Return the record of a complete tar, else None."""
    name, record = tar_name(tar), f"{tar:05d}.json"
    if not (folder.exists(record) and folder.exists(name)):
        return None
    value: dict[str, Any] = read_json(join(folder.uri, record))
    check_kind(value, "export-tar", join(folder.uri, record))
    return value if folder.size(name) == value["num_bytes"] else None


def _write(folder: Store, tar: int, samples: Iterator[ExportedSample]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="clipmill-export-") as scratch:
        path = Path(scratch) / "export.tar"
        try:
            num_samples = write_export_tar(path, samples)
        except OSError as error:
            raise StorageError(
                f"can't write a tar to {scratch}: {error.strerror}",
                expected="space for a tar in the folder for temporary files",
                action="free some, or set TMPDIR to a folder on a larger disk",
            ) from error
        record = {
            "format": FORMAT,
            "kind": "export-tar",
            "num_samples": num_samples,
            "num_bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        folder.put_file(tar_name(tar), path)
    # The record is written last, so that it marks a complete tar.
    write_json(join(folder.uri, f"{tar:05d}.json"), record)
    return record


def _samples(
    view: View, config: ExportConfig, sizes: list[int], positions: range, cache: Path
) -> Iterator[ExportedSample]:
    """Yield the samples at these positions of the view, in the dataset's order."""
    start = 0
    for index, size in enumerate(sizes):
        rows = range(max(positions.start - start, 0), min(positions.stop - start, size))
        if rows:
            yield from _shard_samples(view, config, index, rows, cache)
        start += size


def _shard_samples(
    view: View, config: ExportConfig, index: int, rows: range, cache: Path
) -> Iterator[ExportedSample]:
    dataset, layer = view.dataset, config.view.layer
    records = list(read_records(dataset, index, cache))
    with read_shard(dataset, index, cache) as reader:
        shard = view.open_shard(index, reader.uids, cache)
        for row in shard.rows[rows.start : rows.stop].tolist():
            record = records[row]
            captions = {} if config.view.captions == "synthetic" else {_REAL: [record.caption]}
            if shard.synthetic is not None:
                captions[layer] = shard.synthetic[row].as_py()
            if shard.selected is not None and (selected := shard.selected[row]) is not None:
                captions = {config.view.selection_layers[-1]: [selected]}
            known = [caption for kind in captions.values() for caption in kind]
            yield ExportedSample(
                record=record,
                image=reader.image(row),
                captions=captions,
                texts=_texts(config, record.uid, known),
            )


def _texts(config: ExportConfig, uid: str, captions: list[str]) -> list[str]:
    if config.captions_per_image == "each":
        return captions
    if config.captions_per_image == "first":
        return captions[:1]
    key = int(digest_json([config.seed, uid])[:16], 16)
    return [captions[np.random.default_rng(key).integers(len(captions))]]


def _finish(
    uri: str, address: str, config: ExportConfig, view: View, records: list[dict[str, Any]]
) -> None:
    """Write the lists of tars, for open_clip and for lineage; they mark a complete export."""
    tars = {tar_name(tar): record for tar, record in enumerate(records)}
    write_json(join(uri, SIZES), {name: record["num_samples"] for name, record in tars.items()})
    files = {
        name: {key: record[key] for key in ("num_samples", "num_bytes", "sha256")}
        for name, record in tars.items()
    }
    write_json(
        join(uri, EXPORT_MANIFEST),
        {
            "format": FORMAT,
            "kind": "export",
            "digest": digest_json({"address": address, "files": files}),
            "config": config.to_json(),
            "files": files,
            "parents": [parent.to_json() for parent in view.parents],
            "summary": {
                "num_samples": sum(record["num_samples"] for record in records),
                "num_tars": len(records),
                "num_bytes": sum(record["num_bytes"] for record in records),
            },
        },
    )


def write_export_tar(path: Path, samples: Iterable[ExportedSample]) -> int:
    """Write a tar whose bytes depend on the samples alone; how many samples it then has."""
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            uid = sample.record.uid
            value = {
                "uid": uid,
                "width": sample.record.width,
                "height": sample.record.height,
                "origin": sample.record.origin,
                "captions": sample.captions,
            }
            for number, text in enumerate(sample.texts):
                key = uid if len(sample.texts) == 1 else f"{uid}-{number}"
                _add(tar, f"{key}{sample.record.suffix}", sample.image)
                _add(tar, f"{key}.txt", text.encode())
                _add(tar, f"{key}.json", canonical_json(value).encode())
                count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # A fresh TarInfo has zero times, no owner and mode 0644.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
