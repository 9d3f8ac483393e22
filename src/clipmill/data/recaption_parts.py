"""Captions of a shard that isn't done: what a costly captioner has said so far.

They lie beside the layer's shards until their shard is whole. What failed isn't kept: another run
asks again.
"""

from collections.abc import Mapping

from clipmill.data.captioners import CaptionOutput
from clipmill.data.dataset import Dataset
from clipmill.errors import NotFoundError
from clipmill.storage import join, open_store, read_json, write_json


def write_part(
    dataset: Dataset, layer: str, shard_index: int, outputs: Mapping[str, CaptionOutput]
) -> None:
    """Keep the outputs, by uid."""
    said = {
        uid: {"texts": list(out.texts), "scores": list(out.scores)}
        for uid, out in outputs.items()
        if out.texts
    }
    write_json(join(dataset.layer_uri(layer), _name(shard_index)), said)


def read_part(dataset: Dataset, layer: str, shard_index: int) -> dict[str, CaptionOutput]:
    """The outputs that an earlier run kept, by uid."""
    try:
        said = read_json(join(dataset.layer_uri(layer), _name(shard_index)))
    except NotFoundError:
        return {}
    return {
        uid: CaptionOutput(texts=tuple(out["texts"]), scores=tuple(out["scores"]))
        for uid, out in said.items()
    }


def drop_part(dataset: Dataset, layer: str, shard_index: int) -> None:
    """Forget what was kept of a shard that is whole."""
    open_store(dataset.layer_uri(layer)).delete(_name(shard_index))


def _name(shard_index: int) -> str:
    return f"{shard_index:05d}.part.json"
