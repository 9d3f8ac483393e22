"""Join DataCompDR's tars without images to a dataset of the same samples, as layers.

The tars are listed once by the headers of their members; then each shard's reinforcements are read
at their offsets, so that nothing is copied, and memory holds about 60 bytes a sample and the rows
of a shard in each process.
"""

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
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
from clipmill.data.parallel import OrderedMap, executor_map
from clipmill.data.shards.read import SampleRecord, ShardReader, read_records, read_shard
from clipmill.data.sources.files import (
    PreadFile,
    files_digest,
    matching_files,
    relative_names,
    uncompressed_file,
)
from clipmill.data.sources.reinforcement import (
    DEFAULT_NAME,
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
from clipmill.processes import available_cpus, process_pool
from clipmill.stage_records import ProgressCallback

_LOG = logging.getLogger(__name__)

MISSING_REINFORCEMENT: Final = "missing_reinforcement"
"""Why the select layer refuses a sample."""

# Samples of a tar that are matched together.
_BATCH: Final = 4096

_MAX_LOGGED: Final = 3

# Below, starting processes costs more than it saves.
_MIN_SAMPLES_FOR_PROCESSES: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcementConfig(Config):
    """Join of reinforcements to samples."""

    by: Identifier = "key"
    """Field that a tar's sample and one of the dataset have in common."""
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
    files = [uncompressed_file(path) for path in paths]
    layers = _inspect(files, config.name, source)
    report(0, total, "reading")
    index, ranges = _locate(opened, config.by, files)
    if not index.counts.matched:
        raise _unmatched_error(config, dataset, source, str(index.counts))
    num_damaged = done = 0
    kept: list[NDArray[np.bool_]] = []
    with _mapped(total) as mapped:
        for keep, damaged in mapped(partial(_write_shard, dataset, layers, files), ranges):
            for reason in damaged[: max(0, _MAX_LOGGED - num_damaged)]:
                _LOG.warning("reinforcement of %s", reason)
            kept.append(keep)
            num_damaged += len(damaged)
            done += len(keep)
            report(min(done, total - 1), total, "written")
    matched = sum(int(keep.sum()) for keep in kept)
    counts = replace(index.counts, matched=matched, missing=total - matched)
    if not matched:
        raise _unmatched_error(config, dataset, source, f"{counts}, {num_damaged:,} damaged")
    names = layers.layers
    if matched < total:
        names += (f"select/{config.name}",)
        for shard, keep in enumerate(kept):
            write_layer_shard(opened, names[-1], shard, _selection(opened.uids(shard), keep))
    parent = Parent(
        role="import",
        uri=source,
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


def _inspect(files: Sequence[Path], name: str, source: str) -> ReinforcedLayers:
    """Return the layers that the tars bring; raises SourceError for none."""
    for file in files:
        layers = inspect_tar(PreadFile(file), name)
        if layers is not None and layers.layers:
            return layers
    raise SourceError(
        f"{source} holds no reinforcement",
        expected="tars with members KEY.syn.json, KEY.paug.json and KEY.npz or KEY.pth.gz",
        action="pass the tars of apple/DataCompDR-12M or another release of this format",
    )


@dataclass(frozen=True, slots=True)
class _ShardRanges:
    """Places of the reinforcements of a shard's samples."""

    shard: int
    number_N: NDArray[np.int32]
    """Index of the tar for each sample, -1 for none."""
    range_N2: NDArray[np.int64]
    """Offsets in the tar between which the headers of its members begin."""


def _locate(
    dataset: Dataset, by: Identifier, files: Sequence[Path]
) -> tuple[SampleIndex, list[_ShardRanges]]:
    """List the tars' samples; return where those of each shard lie."""
    index = SampleIndex(dataset, by)
    number_N = np.full(dataset.num_samples, -1, np.int32)
    range_N2 = np.zeros((dataset.num_samples, 2), np.int64)
    for number, path in enumerate(files):
        file = PreadFile(path)
        listed = complete_samples(file)
        while batch := list(itertools.islice(listed, _BATCH)):
            rows, positions = index.match([_identifier(file, each, by) for each in batch])
            ranges = [(parts[0][1].header, parts[-1][1].header + 1) for _, parts in batch]
            number_N[positions] = number
            range_N2[positions] = np.array(ranges, np.int64)[rows]
    ends = np.cumsum([shard.num_samples for shard in dataset.shards])[:-1]
    parts = zip(np.split(number_N, ends), np.split(range_N2, ends), strict=True)
    return index, [_ShardRanges(shard, *part) for shard, part in enumerate(parts)]


@contextmanager
def _mapped(num_samples: int) -> Iterator[OrderedMap]:
    """Yield a map over shards, in processes where there is enough to do."""
    num_processes = available_cpus()
    if num_processes == 1 or num_samples < _MIN_SAMPLES_FOR_PROCESSES:
        yield map
        return
    with process_pool(num_processes) as pool:
        yield partial(executor_map, pool, num_processes, 1)


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


def _write_shard(
    uri: str, layers: ReinforcedLayers, files: Sequence[Path], ranges: _ShardRanges
) -> tuple[NDArray[np.bool_], list[str]]:
    """Write a shard's rows of each layer; return which samples have some, and what is damaged."""
    dataset, shard = _open_dataset(uri), ranges.shard
    none = layer_rows(layers, (), _no_member, num_real=None, drawn_on=(1, 1), stored=(1, 1))
    rows, captions, is_kept, damaged = [], [], [], []
    opened: dict[int, PreadFile] = {}
    places = zip(ranges.number_N.tolist(), ranges.range_N2.tolist(), strict=True)
    with read_shard(dataset, shard, cache_folder()) as reader:
        records = read_records(dataset, shard, cache_folder())
        for row, (record, (number, place)) in enumerate(zip(records, places, strict=True)):
            values = none
            if number >= 0:
                file = opened.get(number) or opened.setdefault(number, PreadFile(files[number]))
                try:
                    values = _read_reinforcement(layers, file, place, record, reader, row)
                except BadSampleError as error:
                    damaged.append(f"{record.uid}: {error}")
            rows.append(values)
            captions.append(record.caption)
            is_kept.append(_is_complete(layers, values))
    uids = dataset.uids(shard)
    for layer in layers.layers:
        table = layer_table(layer, uids, captions, [values[layer] for values in rows])
        write_layer_shard(dataset, layer, shard, table)
    return np.array(is_kept, bool), damaged


_open_dataset = lru_cache(1)(Dataset.open)


def _read_reinforcement(
    layers: ReinforcedLayers,
    file: PreadFile,
    place: Sequence[int],
    record: SampleRecord,
    reader: ShardReader,
    row: int,
) -> Mapping[str, Mapping[str, Any]]:
    """Return a sample's row in each layer; raises BadSampleError if it's damaged or doesn't fit."""
    _, parts = next(samples(file, *place))
    members = dict(parts)
    parse = partial(layer_rows, layers, members, partial(read_member, file, members), num_real=None)
    upright = record.width, record.height
    try:
        return parse(drawn_on=drawn_size(record.metadata, upright), stored=upright)
    except BadSampleError:
        # Crops are of the image before its EXIF turn, which its header tells.
        stored = image_size(reader.image(row))
        if stored == upright:
            raise
        return parse(drawn_on=stored, stored=stored)


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
