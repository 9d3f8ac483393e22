"""Join DataCompDR's tars without images to a dataset of the same samples, as layers.

The tars are listed once by the headers of their members; then each shard's reinforcements are read
at their offsets, so that nothing is copied, and memory holds about 60 bytes a sample and one
shard's rows.
"""

import itertools
import json
import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.join import Identifier, JoinCounts, SampleIndex, other_identifiers
from clipmill.data.layers import (
    REAL,
    commit_layer,
    embedded_captions,
    layer_table,
    write_layer_shard,
)
from clipmill.data.shards.read import read_records, read_shard
from clipmill.data.sources.files import (
    PreadFile,
    files_digest,
    matching_files,
    relative_names,
    uncompressed_file,
)
from clipmill.data.sources.reinforcement import (
    DEFAULT_NAME,
    Read,
    ReinforcedLayers,
    drawn_size,
    layer_rows,
)
from clipmill.data.sources.webdataset import (
    Sample,
    complete_samples,
    inspect_tar,
    read_member,
    samples,
)
from clipmill.errors import ArtifactError, BadSampleError, SourceError
from clipmill.images import image_size
from clipmill.lineage import Parent
from clipmill.stage_records import ProgressCallback

_LOG = logging.getLogger(__name__)

MISSING_REINFORCEMENT: Final = "missing_reinforcement"
"""Why the select layer refuses a sample."""

# Samples of a tar that are matched together.
_BATCH: Final = 4096

_MAX_LOGGED: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcementConfig(Config):
    """Join of reinforcements to samples."""

    by: Identifier = "key"
    """What a tar's sample and one of the dataset have in common."""
    name: str = DEFAULT_NAME
    """The part of the layers' names after their kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedReinforcements:
    """Layers of a dataset that reinforcements became."""

    layers: tuple[str, ...]
    """Captions, teacher, and ``select/NAME`` if some samples have no reinforcement."""
    counts: JoinCounts
    """Samples and reinforcements; a sample whose reinforcement is damaged is missing."""
    damaged: int
    """Reinforcements that can't be read, or whose crops don't fit the sample's image."""


def import_reinforcements(
    config: ReinforcementConfig, dataset: str, source: str, *, report: ProgressCallback
) -> ImportedReinforcements:
    """Join the tars of ``source`` (see ``matching_files``) to the dataset's samples, as layers.

    A sample without reinforcement has its real caption in the captions layer and no embedding in
    the teacher layer; the layer ``select/NAME`` leaves such samples out of a training.

    Raises:
        SourceError: the tars hold no reinforcement.
        ConfigError: no sample of the dataset has such an identifier.
        ArtifactError: no reinforcement is of one of the dataset's samples, or one can be used.
    """
    opened = Dataset.open(dataset)
    total = opened.num_samples
    base, paths = matching_files(source, (".tar", ".tar.gz", ".tgz"))
    files = [PreadFile(uncompressed_file(path)) for path in paths]
    layers = _inspect(files, config.name, source)
    report(0, total, "reading")
    reinforcements = _Reinforcements(opened, config.by, files)
    if not reinforcements.index.counts.matched:
        raise _unmatched_error(config, dataset, source, str(reinforcements.index.counts))
    num_damaged = done = 0
    kept: list[NDArray[np.bool_]] = []
    for index, shard in enumerate(opened.shards):
        tables, keep, damaged = _read_shard(opened, index, layers, reinforcements)
        for layer, table in tables.items():
            write_layer_shard(opened, layer, index, table)
        kept.append(keep)
        num_damaged += damaged
        done += shard.num_samples
        report(min(done, total - 1), total, "written")
    matched = sum(int(keep.sum()) for keep in kept)
    counts = replace(reinforcements.index.counts, matched=matched, missing=total - matched)
    if not matched:
        raise _unmatched_error(config, dataset, source, f"{counts}, {num_damaged:,} damaged")
    names = layers.layers
    if matched < total:
        names += (f"select/{config.name}",)
        for index, keep in enumerate(kept):
            write_layer_shard(opened, names[-1], index, _selection(opened.uids(index), keep))
    parent = Parent(
        role="import",
        uri=str(Path(source).absolute()),
        digest=files_digest(relative_names(base, paths).items(), "metadata"),
    )
    detail = {key: str(count) for key, count in asdict(counts).items()}
    for layer in names:
        parents = (parent, *embedded_captions(opened, layer))
        opened = commit_layer(
            opened, layer, parents=parents, detail=detail | {"damaged": str(num_damaged)}
        )
    report(total, total, "imported")
    return ImportedReinforcements(layers=names, counts=counts, damaged=num_damaged)


def _unmatched_error(
    config: ReinforcementConfig, dataset: str, source: str, counts: str
) -> ArtifactError:
    return ArtifactError(
        f"no reinforcement in {source} fits a sample of {dataset}: {counts}",
        expected=f"samples with the {config.by} of a reinforcement, and their original images",
        action=f"join by what both have in common: {other_identifiers(config.by)}",
    )


def _inspect(files: Sequence[PreadFile], name: str, source: str) -> ReinforcedLayers:
    """Return the layers that the tars bring; raises SourceError for none."""
    for file in files:
        layers = inspect_tar(file, name)
        if layers is not None and layers.layers:
            return layers
    raise SourceError(
        f"{source} holds no reinforcement",
        expected="tars with members KEY.syn.json, KEY.paug.json and KEY.npz or KEY.pth.gz",
        action="pass the tars of apple/DataCompDR-12M or another release of this format",
    )


class _Reinforcements:
    """The reinforcements of a dataset's samples, by their offsets in the tars."""

    def __init__(self, dataset: Dataset, by: Identifier, files: Sequence[PreadFile]) -> None:
        self.index = SampleIndex(dataset, by)
        self._files = files
        self._starts = np.cumsum([0, *(shard.num_samples for shard in dataset.shards)])
        self._number = np.full(dataset.num_samples, -1, np.int32)
        self._range = np.zeros((dataset.num_samples, 2), np.int64)
        for number, file in enumerate(files):
            listed = complete_samples(file)
            while batch := list(itertools.islice(listed, _BATCH)):
                rows, positions = self.index.match([_identifier(file, each, by) for each in batch])
                # A range holds the members whose headers begin in it.
                ranges = [(parts[0][1].header, parts[-1][1].header + 1) for _, parts in batch]
                self._number[positions] = number
                self._range[positions] = np.array(ranges, np.int64)[rows]

    def open(self, shard: int, row: int) -> tuple[Container[str], Read] | None:
        """Return the members of a sample's reinforcement and their reader, None if it has none."""
        position = int(self._starts[shard]) + row
        if self._number[position] < 0:
            return None
        file = self._files[self._number[position]]
        _, parts = next(samples(file, *self._range[position].tolist()))
        members = dict(parts)
        return members, partial(read_member, file, members)


def _identifier(file: PreadFile, sample: Sample, by: Identifier) -> str | None:
    """Return a sample's key, url or uid; None if it has none that can be read."""
    key, parts = sample
    members = dict(parts)
    try:
        if by == "url" and "url.txt" in members:
            return read_member(file, members, "url.txt").decode().strip()
        if by != "key" and "json" in members:
            value = json.loads(read_member(file, members, "json"))
            return str(value[by]) if by in value else None
    except (BadSampleError, ValueError, TypeError):
        return None
    # The release's keys are DataComp's uids.
    return None if by == "url" else key.rpartition("/")[2]


def _read_shard(
    dataset: Dataset, index: int, layers: ReinforcedLayers, reinforcements: _Reinforcements
) -> tuple[dict[str, pa.Table], NDArray[np.bool_], int]:
    """Return a shard's rows by layer, which samples have some, and the number of damaged ones."""
    none = layer_rows(layers, (), _no_member, num_real=None, drawn_on=(1, 1), stored=(1, 1))
    rows, captions, is_kept, num_damaged = [], [], [], 0
    with read_shard(dataset, index, cache_folder()) as reader:
        for row, record in enumerate(read_records(dataset, index, cache_folder())):
            values = none
            reinforcement = reinforcements.open(index, row)
            if reinforcement is not None:
                parse = partial(layer_rows, layers, *reinforcement, num_real=None)
                upright = record.width, record.height
                try:
                    try:
                        drawn_on = drawn_size(record.metadata, upright)
                        values = parse(drawn_on=drawn_on, stored=upright)
                    except BadSampleError:
                        # Crops are of the image before its EXIF turn, which a header tells.
                        stored = image_size(reader.image(row))
                        if stored == upright:
                            raise
                        values = parse(drawn_on=stored, stored=stored)
                except BadSampleError as error:
                    num_damaged += 1
                    if num_damaged <= _MAX_LOGGED:
                        _LOG.warning("reinforcement of %s: %s", record.uid, error)
            rows.append(values)
            captions.append(record.caption)
            is_kept.append(_is_complete(layers, values))
    tables = {
        layer: layer_table(layer, dataset.uids(index), captions, [values[layer] for values in rows])
        for layer in layers.layers
    }
    return tables, np.array(is_kept, bool), num_damaged


def _no_member(name: str) -> bytes:
    raise AssertionError(name)


def _is_complete(layers: ReinforcedLayers, values: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a sample has an embedding, or captions if the layers hold no embedding."""
    *_, layer = layers.layers
    column = "image" if layer.startswith("teacher/") else "captions"
    return len(values[layer][column]) > 0


def _selection(uids: Sequence[str], keep: NDArray[np.bool_]) -> pa.Table:
    """Return a select layer's rows that keep the samples with a reinforcement."""
    refused = [None if is_kept else MISSING_REINFORCEMENT for is_kept in keep.tolist()]
    return pa.table(
        {
            "uid": pa.array(uids, pa.string()),
            "keep": pa.array(keep),
            "refused_by": pa.array(refused, pa.string()),
            "caption": pa.array([REAL] * len(keep), pa.string()),
            "caption_index": pa.array([0] * len(keep), pa.int32()),
        }
    )
