"""Results of a shard of images: files, COCO's results and Parquet columns, by the model's task.

Shapes: H W an image's height and width, N its objects, C classes, D embedding width.
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from operator import itemgetter
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.errors import ArtifactError
from clipmill.serve.protocol.images import scale_boxes, scale_to
from clipmill.serve.protocol.png import encode_output_png
from clipmill.serve.protocol.rle import encode_rle
from clipmill.storage import Store
from clipmill.tasks.base import Prediction

_MAX_NAME_BYTES: Final = 255


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the model takes it."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    """Height and width of the upright image, pixels."""
    network_size: tuple[int, int]
    """Those to which it was scaled down for the network."""


class ShardResults(ABC):
    """Results of one shard. ``add`` may be called from several threads, for different rows."""

    def __init__(
        self,
        store: Store,
        index: int,
        names: Sequence[str],
        classes: tuple[str, ...],
        embedding_width: int,
        png_scale: int,
    ) -> None:
        self._store = store
        self.index = index
        self._names = names
        self._classes = classes
        self._embedding_width = embedding_width
        self._png_scale = png_scale
        self._predictions: list[Any] = [None] * len(names)
        self._reasons = [""] * len(names)
        self._digests = [b""] * len(names)

    @abstractmethod
    def add(self, row: int, prediction: Prediction, image: PreparedImage) -> None:
        """Keep, or write, the prediction for an image."""

    @abstractmethod
    def _columns(self) -> dict[str, pa.Array]:
        """Return the task's columns of the table, null for rejected images."""

    def reject(self, row: int, reason: str) -> None:
        """Record that an image has no prediction."""
        self._reasons[row] = reason

    def write(self) -> str:
        """Write the table and return the digest (hex) of all of the shard's results."""
        names = pa.array(self._names, pa.string())
        table = pa.table(
            {"uid": names, **self._columns(), "reason": pa.array(self._reasons, pa.string())}
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self._store.put(table_key(self.index), buffer.getvalue())
        return sha256(b"".join([*self._digests, buffer.getvalue()])).hexdigest()


def table_key(index: int) -> str:
    """Return the key of a shard's table."""
    return f"shards/{index:05d}.parquet"


class DenseResults(ShardResults):
    """A PNG for each image: class ids with their palette, or depth as 16 bits."""

    def add(self, row: int, prediction: Prediction, image: PreparedImage) -> None:
        """Write the PNG."""
        (output_HW,) = prediction.values()
        data = encode_output_png(scale_to(output_HW, image.size), self._png_scale)
        key = _png_key(self._names[row])
        self._store.put(key, data)
        self._predictions[row] = key
        self._digests[row] = sha256(data).digest()

    def _columns(self) -> dict[str, pa.Array]:
        return {"file": pa.array(self._predictions, pa.string())}


class DetectionResults(ShardResults):
    """COCO's results, joined to one file at the end; the table has the images' sizes."""

    def add(self, row: int, prediction: Prediction, image: PreparedImage) -> None:
        """Keep the image's size and objects, with the row in place of the image's id."""
        objects = []
        boxes_N4 = scale_boxes(prediction["boxes"], image.size, image.network_size)
        arrays = (boxes_N4, prediction["scores"], prediction["labels"])
        for number, (box, score, label) in enumerate(zip(*arrays, strict=True)):
            x1, y1, x2, y2 = box.tolist()
            result = {
                "image_id": row,
                "category_id": int(label) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
            }
            if "masks" in prediction:
                mask_HW = scale_to(prediction["masks"][number], image.size)
                result["segmentation"] = encode_rle(mask_HW)
            objects.append(result)
        self._predictions[row] = (*image.size, objects)

    def write(self) -> str:
        """Write the objects, then the table."""
        objects = json.dumps([o for each in self._predictions if each for o in each[2]]).encode()
        self._store.put(objects_key(self.index), objects)
        self._digests = [sha256(objects).digest()]
        return super().write()

    def _columns(self) -> dict[str, pa.Array]:
        heights, widths, counts = (
            [None if p is None else value(p) for p in self._predictions]
            for value in (itemgetter(0), itemgetter(1), lambda p: len(p[2]))
        )
        return {
            "num_objects": pa.array(counts, pa.int32()),
            "height": pa.array(heights, pa.int32()),
            "width": pa.array(widths, pa.int32()),
        }


def objects_key(index: int) -> str:
    """Return the key of a shard's objects."""
    return f"shards/{index:05d}.objects.json"


class ClassificationResults(ShardResults):
    """The most probable class, its probability, and the probabilities of all (C,)."""

    def add(self, row: int, prediction: Prediction, image: PreparedImage) -> None:
        """Keep the probabilities."""
        del image
        self._predictions[row] = prediction["probabilities"]

    def _columns(self) -> dict[str, pa.Array]:
        best = [None if p is None else int(p.argmax()) for p in self._predictions]
        pairs = list(zip(best, self._predictions, strict=True))
        return {
            "label": pa.array([None if i is None else self._classes[i] for i in best], pa.string()),
            "probability": pa.array(
                [None if p is None else float(p[i]) for i, p in pairs], pa.float32()
            ),
            "probabilities": _vectors(self._predictions, len(self._classes)),
        }


class EmbeddingResults(ShardResults):
    """A unit vector (D,) for each image."""

    def add(self, row: int, prediction: Prediction, image: PreparedImage) -> None:
        """Keep the embedding."""
        del image
        self._predictions[row] = prediction["embedding"]

    def _columns(self) -> dict[str, pa.Array]:
        return {"embedding": _vectors(self._predictions, self._embedding_width)}


RESULTS: Final[Mapping[str, type[ShardResults]]] = {
    "segmentation": DenseResults,
    "depth": DenseResults,
    "detection": DetectionResults,
    "classification": ClassificationResults,
    "clip": EmbeddingResults,
}
"""By task."""


def results_type(task: str) -> type[ShardResults]:
    """Return the form of a task's results; ArtifactError if it has none."""
    if task not in RESULTS:
        raise ArtifactError(
            f"batch inference has no form for the results of a {task} model",
            expected=f"a model of {', '.join(RESULTS)}",
            action="serve the model with `clipmill serve` instead",
        )
    return RESULTS[task]


def _png_key(name: str) -> str:
    """Return the key of an image's PNG; a name that is too long with the suffix is hashed."""
    folder, slash, file = name.rpartition("/")
    if len(file.encode()) + 4 > _MAX_NAME_BYTES:
        file = sha256(file.encode()).hexdigest()
    return f"files/{folder}{slash}{file}.png"


def _vectors(rows: Sequence[NDArray[Any] | None], width: int) -> pa.Array:
    """Return a column of float32 vectors (``width``), null where a row is."""
    flat = np.zeros((len(rows), width), np.float32)
    for index, row in enumerate(rows):
        if row is not None:
            flat[index] = row
    mask = pa.array([row is None for row in rows], pa.bool_())
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), width, mask=mask)
