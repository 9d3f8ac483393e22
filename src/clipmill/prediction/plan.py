"""Plan of a batch prediction: the model, the images and the limits, written before any work.

All workers read the plan, so that they agree about the images even where a bucket grows meanwhile.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

from clipmill.config import Config, digest_json
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.shards.read import ShardReader, read_shard
from clipmill.errors import ArtifactError, SourceError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import read_metadata
from clipmill.prediction.config import PredictionConfig
from clipmill.storage import exists, join, open_store, read_json, write_json

FORMAT: Final = 1
PLAN: Final = "plan/plan.json"
IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif"),
)
"""Files of a folder that are images; those that can't be decoded are counted as rejected."""
_DATASET: Final = "dataset.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionPlan(Config):
    """All that workers need to predict ranges of shards."""

    config: PredictionConfig
    """Settings."""
    task: str
    """Name of the model's task, or ``clip``."""
    model: str
    """URI of the model."""
    model_digest: str
    """Digest of the model."""
    data: str
    """URI of the images."""
    data_digest: str
    """Digest of a dataset; of a folder, that of the names, sizes and times of its images."""
    source: Literal["folder", "dataset"]
    """Kind of the images' place."""
    shard_sizes: tuple[int, ...]
    """Images of each shard."""
    uri: str
    """URI of the results."""

    @property
    def digest(self) -> str:
        """Digest of all that the results depend on."""
        return digest_json([FORMAT, self.config.digest, self.model_digest, self.data_digest])

    @property
    def parents(self) -> tuple[Parent, Parent]:
        """The model, and the dataset or folder."""
        role = "dataset" if self.source == "dataset" else "images"
        return (
            Parent(role="model", uri=self.model, digest=self.model_digest),
            Parent(role=role, uri=self.data, digest=self.data_digest),
        )

    @property
    def num_images(self) -> int:
        """Images of all shards."""
        return sum(self.shard_sizes)

    def open_shard(self, index: int) -> "FolderShard | DatasetShard":
        """Return the images of a shard; close it after use."""
        if self.source == "folder":
            return FolderShard(self.data, read_json(join(self.uri, _listing_key(index))))
        dataset = Dataset.open(self.data)
        if dataset.digest != self.data_digest:
            raise ArtifactError(
                f"{self.data} isn't the dataset that was planned",
                expected=f"the dataset with digest {self.data_digest[:12]}",
                action="run `clipmill predict MODEL --data URI --store URI` again",
            )
        return DatasetShard(read_shard(dataset, index, cache_folder()))


class FolderShard:
    """Images of a folder or bucket, named by their keys."""

    def __init__(self, uri: str, entries: list[tuple[str, int]]) -> None:
        self._store = open_store(uri)
        self.names = [name for name, _ in entries]
        """Key of each image."""
        self._sizes = [size for _, size in entries]

    def size(self, row: int) -> int:
        """Return the bytes of an image as they were listed."""
        return self._sizes[row]

    def read(self, row: int) -> bytes:
        """Return an image file; NotFoundError if it is gone."""
        return self._store.get(self.names[row])

    def close(self) -> None:
        """Do nothing: no file is open."""


class DatasetShard:
    """Images of a dataset's shard, named by their uids."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
        self.names = reader.uids
        """Uid of each image."""
        self.close = reader.close

    def size(self, row: int) -> int:
        """Return the bytes of an image."""
        return len(self.read(row))

    def read(self, row: int) -> bytes:
        """Return an image file."""
        return self._reader.image(row)


def plan_prediction(config: PredictionConfig, model: str, data: str, store: str) -> PredictionPlan:
    """Write the plan of a prediction below ``store``, or read the one that exists.

    Raises:
        NotFoundError, ArtifactError: there is no such model, or of a kind that can't predict.
        SourceError: the folder holds no image.
    """
    metadata = read_metadata(model)
    task = str(metadata.architecture.get("task", "")) if metadata.kind == "task" else metadata.kind
    if metadata.kind not in {"task", "clip"}:
        raise ArtifactError(
            f"{model} is a checkpoint of kind {metadata.kind!r}",
            expected="a task model, as finetune makes, or a CLIP, as pretrain makes",
            action="give the URI of such a checkpoint",
        )
    data = open_store(data).uri
    listings: list[list[tuple[str, int]]] = []
    if exists(join(data, _DATASET)):
        dataset = Dataset.open(data)
        source: Literal["folder", "dataset"] = "dataset"
        data_digest, sizes = dataset.digest, [shard.num_samples for shard in dataset.shards]
    else:
        source = "folder"
        data_digest, listings = _list_images(data, store, config.images_per_shard)
        sizes = [len(listing) for listing in listings]
    plan = PredictionPlan(
        config=config,
        task=task,
        model=metadata.uri,
        model_digest=metadata.digest,
        data=data,
        data_digest=data_digest,
        source=source,
        shard_sizes=tuple(sizes),
        uri="",
    )
    uri = open_store(join(store, "predictions", f"{task}-{plan.digest[:12]}")).uri
    if exists(join(uri, PLAN)):
        return read_prediction_plan(uri)
    plan = PredictionPlan.from_json({**plan.to_json(), "uri": uri})
    for index, listing in enumerate(listings):
        write_json(join(uri, _listing_key(index)), listing)
    # Written last, so that its presence marks a complete plan.
    write_json(join(uri, PLAN), {"format": FORMAT, "kind": "plan", "plan": plan.to_json()})
    return plan


def read_prediction_plan(uri: str) -> PredictionPlan:
    """Return the plan of the prediction at ``uri``; ArtifactError if there is none."""
    key = join(open_store(uri).uri, PLAN)
    if not exists(key):
        raise ArtifactError(
            f"there is no planned prediction at {uri}",
            expected="the URI that `clipmill predict ... --plan-only` printed",
            action="correct the URI, or plan first",
        )
    return PredictionPlan.from_stored(read_json(key)["plan"], key)


def _listing_key(index: int) -> str:
    return f"plan/{index:05d}.json"


def _list_images(
    uri: str, store: str, images_per_shard: int
) -> tuple[str, list[list[tuple[str, int]]]]:
    """Return the digest of a folder's images, and their names and sizes by shard."""
    results = join(open_store(store).uri, "predictions") + "/"
    total, images = hashlib.sha256(), []
    for entry in open_store(uri).entries():
        path = PurePosixPath(entry.key)
        is_hidden = any(part.startswith(".") for part in path.parts)
        is_result = join(uri, entry.key).startswith(results)
        if path.suffix.lower() not in IMAGE_SUFFIXES or is_hidden or is_result:
            continue
        images.append((entry.key, entry.size))
        total.update(json.dumps([entry.key, entry.size, entry.modified]).encode())
    if not images:
        raise SourceError(
            f"{uri} holds no image",
            expected=f"files ending in {', '.join(IMAGE_SUFFIXES)}, or a dataset",
            action="correct the URI of --data",
        )
    starts = range(0, len(images), images_per_shard)
    return total.hexdigest(), [images[i : i + images_per_shard] for i in starts]
