"""From finished shards to a dataset: doubles found, the list written, the layers committed."""

from dataclasses import asdict

import pyarrow as pa

from clipmill.data.dataset import FORMAT, MANIFEST, UNIQUE, Dataset
from clipmill.data.layers import commit_layer, has_layer_shard, write_layer_shard
from clipmill.data.shard_duplicates import find_duplicates
from clipmill.data.shard_list import ShardList, summary
from clipmill.data.shard_making import delete_original, read_staged_rows, staged_rows_key
from clipmill.data.shard_plan import ShardPlan
from clipmill.errors import SourceError
from clipmill.storage import Parent, exists, join, open_store, write_json


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


def _tidy(plan: ShardPlan, dataset: Dataset) -> None:
    """Delete what only finishing needed, and what a worker may have put since and then died."""
    store = open_store(plan.uri)
    for index, info in enumerate(dataset.shards):
        for layer in plan.layers:
            store.delete(staged_rows_key(layer, index))
        if info.name.endswith(f"{UNIQUE}.tar"):
            delete_original(store, index)


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
