"""Predict the shards of a plan, and join their results once all are there.

Any number of workers may predict ranges of the shards. A shard's record is written last, so a
killed worker loses its current shard alone; the worker that finds no shard missing joins the
results. An image that can't be used is counted by reason, and never stops a job.
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.config import digest_json
from clipmill.errors import (
    BadSampleError,
    BadSampleReason,
    ClipmillError,
    ConfigError,
    NotFoundError,
)
from clipmill.lineage import read_artifact_file
from clipmill.prediction.plan import FORMAT, DatasetShard, FolderShard, PredictionPlan
from clipmill.prediction.results import (
    PreparedImage,
    objects_key,
    results_type,
    table_key,
)
from clipmill.serve.errors import BadRequestError, RejectReason, RequestError
from clipmill.serve.protocol.images import decode_image
from clipmill.stage_records import ProgressCallback
from clipmill.storage import Store, exists, join, open_store, read_json, write_json
from clipmill.tasks.base import Prediction

if TYPE_CHECKING:
    from clipmill.prediction.model import PredictionModel

PREDICTION: Final = "prediction.json"
TABLE: Final = "predictions.parquet"
OBJECTS: Final = "coco_results.json"
IMAGES: Final = "coco_images.json"
_NUM_READERS: Final = 16
_log = logging.getLogger(__name__)


def predict_shards(
    plan: PredictionPlan, *, report: ProgressCallback, start: int = 0, stop: int | None = None
) -> None:
    """Predict shards ``start`` to ``stop`` (exclusive), but those that exist; join all if possible.

    Raises:
        ConfigError: the range isn't one of the plan's shards.
        ArtifactError: the model or the dataset isn't the one that was planned.
    """
    num_shards = len(plan.shard_sizes)
    stop = num_shards if stop is None else stop
    if not 0 <= start <= stop <= num_shards:
        raise ConfigError(
            f"the range of shards was {start} to {stop}",
            expected=f"a range within 0 to {num_shards}",
            action="correct --worker",
        )
    if exists(join(plan.uri, PREDICTION)):
        return
    store = open_store(plan.uri)
    pending = _missing(store, range(start, stop))
    if pending:
        total = sum(plan.shard_sizes[start:stop])
        done = total - sum(plan.shard_sizes[index] for index in pending)
        report(done, total, "loading the model")
        from clipmill.prediction.model import PredictionModel

        with ThreadPoolExecutor(plan.config.num_threads) as pool:
            worker = _Worker(plan, store, PredictionModel(plan), pool)
            for index in pending:
                worker.predict_shard(index, done, total, report)
                done += plan.shard_sizes[index]
    if not _missing(store, range(num_shards)):
        report(plan.num_images, plan.num_images, "joining the results")
        _join_results(plan, store)


def read_prediction(uri: str) -> dict[str, Any]:
    """Return the record of the prediction at ``uri``; raises NotFoundError or ArtifactError."""
    value: dict[str, Any] = read_artifact_file(uri, PREDICTION, "clipmill predict")
    return value


_Result = tuple[int, Prediction, PreparedImage]


class _Worker:
    """Predicts shards, one after the other."""

    def __init__(
        self, plan: PredictionPlan, store: Store, model: "PredictionModel", pool: ThreadPoolExecutor
    ) -> None:
        self._plan = plan
        self._store = store
        self._model = model
        self._pool = pool
        self._num_rejected = 0
        self._has_succeeded = False
        self._failure: Exception | None = None

    def predict_shard(self, index: int, done: int, total: int, report: ProgressCallback) -> None:
        """Write the results of a shard, then its record."""
        with closing(self._plan.open_shard(index)) as shard:
            model = self._model
            results = results_type(self._plan.task)(
                self._store,
                index,
                shard.names,
                model.classes,
                model.embedding_width,
                model.png_scale,
            )
            reasons: Counter[str] = Counter()

            def reject(row: int, reason: str) -> None:
                results.reject(row, reason)
                reasons[reason] += 1
                self._num_rejected += 1

            writing: list[Future[None]] = []
            for rows, images in self._batches(shard, reject):
                predictions = self._predict(rows, images, reject)
                # Results of one batch alone wait in memory: a map is larger than its image.
                _wait(writing)
                writing = [self._pool.submit(results.add, *pair) for pair in predictions]
                words = f"predicted, {self._num_rejected} rejected" * bool(self._num_rejected)
                report(done + max(rows) + 1, total, words or "predicted")
            _wait(writing)
            if self._failure is not None and not self._has_succeeded:
                # Of all images so far none had a prediction, so the model is at fault.
                raise self._failure
            record = {
                "num_images": len(shard.names),
                "rejected": dict(sorted(reasons.items())),
                "digest": results.write(),
            }
        # Written last: it marks a complete shard.
        write_json(join(self._plan.uri, _record_key(index)), record)

    def _batches(
        self, shard: FolderShard | DatasetShard, reject: Callable[[int, str], None]
    ) -> Iterator[tuple[list[int], list[PreparedImage]]]:
        """Yield images that decode with their rows; the next batch is read meanwhile."""
        size = max(self._model.batch_size, self._plan.config.num_threads)
        num_rows = len(shard.names)
        cuts = [range(i, min(i + size, num_rows)) for i in range(0, num_rows, size)]

        def submit(cut: range) -> list[Future[PreparedImage]]:
            return [self._pool.submit(self._read, shard, row) for row in cut]

        ahead = submit(cuts[0]) if cuts else []
        for number, cut in enumerate(cuts):
            current, ahead = ahead, submit(cuts[number + 1]) if number + 1 < len(cuts) else []
            rows, images = [], []
            for row, future in zip(cut, current, strict=True):
                try:
                    images.append(future.result())
                    rows.append(row)
                except (RequestError, BadSampleError) as error:
                    reject(row, error.reason)
                except NotFoundError:
                    reject(row, BadSampleReason.MISSING_IMAGE)
            if rows:
                yield rows, images

    def _read(self, shard: FolderShard | DatasetShard, row: int) -> PreparedImage:
        limits = self._plan.config.serving
        if shard.size(row) > limits.max_image_bytes:
            raise BadRequestError(RejectReason.IMAGE_SIZE, "the file has too many bytes")
        image_HW3, size = decode_image(shard.read(row), limits)
        height, width = image_HW3.shape[:2]
        return PreparedImage(self._model.prepare(image_HW3), size, (height, width))

    def _predict(
        self,
        rows: Sequence[int],
        images: Sequence[PreparedImage],
        reject: Callable[[int, str], None],
    ) -> list[_Result]:
        """Return the rows with their predictions; images on which the model fails are rejected."""
        predictions: list[_Result] = []
        size = self._model.batch_size
        for begin in range(0, len(rows), size):
            part, batch = rows[begin : begin + size], images[begin : begin + size]
            error = self._predict_batch(part, batch, predictions)
            if error is None:
                continue
            _log.warning("a batch of %d failed, retrying one by one: %r", len(part), error)
            for row, image in zip(part, batch, strict=True):
                if (failure := self._predict_batch([row], [image], predictions)) is not None:
                    self._failure = failure
                    reject(row, BadSampleReason.FAILED)
        return predictions

    def _predict_batch(
        self,
        rows: Sequence[int],
        images: Sequence[PreparedImage],
        predictions: list[_Result],
    ) -> Exception | None:
        """Append a batch's predictions, or return the model's error."""
        try:
            outputs = self._model.predict([image.pixels for image in images])
            predictions += zip(rows, outputs, images, strict=True)
        except ClipmillError:
            raise
        except Exception as error:  # noqa: BLE001  # a model may raise anything over an odd image
            return error
        self._has_succeeded = True
        return None


def _wait(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()


def _missing(store: Store, shards: range) -> list[int]:
    records = {key for key in store.list("shards/") if key.endswith(".record.json")}
    return [index for index in shards if _record_key(index) not in records]


def _record_key(index: int) -> str:
    return f"shards/{index:05d}.record.json"


def _join_results(plan: PredictionPlan, store: Store) -> None:
    """Join the shards' tables and objects to one file each, and write the artifact's record."""
    from clipmill.models.checkpoint import read_metadata

    def record(index: int) -> dict[str, Any]:
        value: dict[str, Any] = read_json(join(plan.uri, _record_key(index)))
        return value

    shards = range(len(plan.shard_sizes))
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        records = list(readers.map(record, shards))
    rejected: Counter[str] = Counter()
    for each in records:
        rejected.update(each["rejected"])
    with tempfile.TemporaryDirectory(prefix="clipmill-predict-") as scratch:
        table = Path(scratch) / TABLE
        _join_tables(store, shards, table)
        store.put_file(TABLE, table)
        if plan.task == "detection":
            classes = read_metadata(plan.model).architecture["classes"]
            _join_objects(plan, store, Path(scratch), table, classes)
    num_rejected = sum(rejected.values())
    value = {
        "format": FORMAT,
        "kind": "prediction",
        "task": plan.task,
        "digest": digest_json([plan.digest, [each["digest"] for each in records]]),
        "config": plan.config.to_json(),
        "parents": [parent.to_json() for parent in plan.parents],
        "num_images": plan.num_images,
        "num_predicted": plan.num_images - num_rejected,
        "rejected": dict(sorted(rejected.items())),
        "summary": {
            "task": plan.task,
            "num_samples": str(plan.num_images - num_rejected),
            "rejected": ", ".join(f"{n} {reason}" for reason, n in sorted(rejected.items()))
            or "none",
        },
    }
    write_json(join(plan.uri, PREDICTION), value)


def _join_tables(store: Store, shards: range, path: Path) -> None:
    writer: Any = None
    for index in shards:
        table = pq.read_table(pa.BufferReader(store.get(table_key(index))))
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()


def _join_objects(
    plan: PredictionPlan, store: Store, folder: Path, table: Path, classes: Sequence[str]
) -> None:
    """Write COCO's results, and the images and categories that their ids name, both from 1 on."""
    first_ids = [1, *accumulate(plan.shard_sizes, initial=1)][1:]
    results = folder / OBJECTS
    with results.open("wb") as file:
        separator = b"["
        for index in range(len(plan.shard_sizes)):
            for item in json.loads(store.get(objects_key(index))):
                item["image_id"] += first_ids[index]
                file.write(separator + json.dumps(item).encode())
                separator = b",\n"
        file.write(b"[]" if separator == b"[" else b"]")
    store.put_file(OBJECTS, results)
    columns = pq.read_table(table, columns=["uid", "height", "width"]).to_pylist()
    images = [
        {"id": i, "file_name": row["uid"], "height": row["height"], "width": row["width"]}
        for i, row in enumerate(columns, start=1)
        if row["height"] is not None
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    store.put(IMAGES, json.dumps({"images": images, "categories": categories}).encode())
