"""Evaluate a task model, and write its metrics and a few samples as an artifact."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load, save

from clipmill.config import digest_json
from clipmill.data.labeled.folder import fetch_folder
from clipmill.errors import BadSampleReason
from clipmill.lineage import Parent, read_artifact_file
from clipmill.models.checkpoint import read_metadata
from clipmill.stage_records import ProgressCallback, no_progress
from clipmill.storage import (
    absolute_uri,
    artifact_uri,
    exists,
    join,
    read_bytes,
    write_bytes,
    write_json,
)
from clipmill.tasks.visualization import encode_png

_RESULT = "evaluation.json"
_PER_IMAGE = "per_image.safetensors"
NUM_SAMPLES = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Content of an evaluation artifact."""

    uri: str
    """Address of the artifact."""
    digest: str
    """Digest of model and data."""
    task: str
    """The task's name."""
    model: Parent
    """The evaluated model."""
    data: Parent
    """The test data."""
    metrics: dict[str, float]
    """Metric values by name."""
    num_samples: int
    """Samples whose images are kept."""

    def per_image(self) -> dict[str, NDArray[Any]]:
        """Read the rows of :meth:`Task.metric_from_rows`, one an image.

        Raises:
            NotFoundError: the task has none, or the evaluation was written before 0.2.
        """
        return load(read_bytes(join(self.uri, _PER_IMAGE)))

    def read_image(self, index: int, name: str) -> bytes:
        """Read a PNG of sample ``index``: ``image``, ``truth`` or ``prediction``."""
        return read_bytes(join(self.uri, f"{index:02d}-{name}.png"))


def evaluate(
    model: str,
    data: str,
    store: str = "out",
    *,
    split: str = "",
    report: ProgressCallback = no_progress,
) -> str:
    """Evaluate a task model on the data's test split; return the URI of the result.

    An existing result is returned at once. :func:`read_evaluation` reads its metrics.

    Args:
        model: URI that :func:`clipmill.tasks.finetune.finetune` returned.
        data: Folder in the task's layout, or the URI of one packed as a tar.
        store: Folder or ``s3://`` URI for the result.
        split: Name of the split, such as ``test``; the task's usual one where it is empty.
        report: Called with the images done, their total, and a message.

    Raises:
        ArtifactError: the model isn't a task model.
        SourceError: the data have faults, or classes that the model doesn't know.

    Example:
        >>> config = clipmill.get_recipe(
        ...     "linear-segmentation-tiny", clipmill.FinetuneConfig, ["train.steps=2"]
        ... )
        >>> encoder = "random:timm/test_byobnet"
        >>> model = clipmill.finetune(config, encoder, "labels", "out")
        >>> evaluation = clipmill.evaluate(model, "labels", "out")
        >>> clipmill.read_evaluation(evaluation).metrics
        {...'mIoU': ...}
    """
    from clipmill.tasks.training_registry import get_training_task

    metadata = read_metadata(model)
    folder, data_parent = fetch_folder(data, "data")
    parents = [metadata.as_parent("model"), data_parent]
    identity = [[p.role, p.digest] for p in parents]
    is_task = metadata.kind == "task"
    usual = get_training_task(metadata.architecture["task"]).test_split_name if is_task else ""
    if split not in {"", usual}:
        identity.append(["split", split])
    digest = digest_json(identity)
    uri = artifact_uri(store, "evaluations", digest[:12])
    if exists(join(uri, _RESULT)):
        return uri
    from clipmill.tasks.checks import check_before
    from clipmill.tasks.predictor import Predictor

    predictor = Predictor.open(model, num_threads=metadata.recipe["train"]["num_threads"])
    task = get_training_task(predictor.task.name)
    config = task.config_type.from_json(predictor.metadata.architecture["config"])
    check_before(
        task.name,
        folder,
        splits=(split or task.test_split_name,),
        config=config,
        classes=predictor.classes,
    )
    output = task.evaluate(
        lambda image_HW3: predictor.predict([image_HW3])[0],
        config,
        folder,
        num_samples=NUM_SAMPLES,
        report=report,
        classes=predictor.classes,
        split=split,
    )
    for index, sample in enumerate(output.samples):
        images = {
            "image": sample.image_HW3,
            "truth": task.visualize(sample.truth, sample.image_HW3, predictor.classes),
            "prediction": task.visualize(sample.prediction, sample.image_HW3, predictor.classes),
        }
        for name, pixels_HW3 in images.items():
            write_bytes(join(uri, f"{index:02d}-{name}.png"), encode_png(pixels_HW3))
    if output.per_image:
        # Rows are paired by their number: models that are compared see the same images.
        write_bytes(join(uri, _PER_IMAGE), save(dict(output.per_image)))
    for name, text in output.tables.items():
        write_bytes(join(uri, name), text.encode())
    value = output.metrics[task.metric.name]
    write_json(
        join(uri, _RESULT),
        {
            "format": 1,
            "kind": "evaluation",
            "digest": digest,
            "task": task.name,
            "metrics": output.metrics,
            "split": split or task.test_split_name,
            "num_samples": len(output.samples),
            "parents": [p.to_json() for p in parents],
            "summary": {task.metric.name: f"{value:.3f} {task.metric.unit}"},
        },
    )
    return uri


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultLocation:
    """Address of an evaluation, and the inputs that determine it."""

    uri: str
    """Address under the store, by the digest."""
    digest: str
    """Digest of the task, its configuration, the model and the data."""
    task: str
    """``zero-shot`` or ``retrieval``."""
    recipe: Mapping[str, object]
    """The config's JSON."""
    parents: tuple[Parent, ...]
    """Model and data."""

    @property
    def result_exists(self) -> bool:
        """True once the evaluation was written."""
        return exists(join(self.uri, _RESULT))

    def write_result(self, metrics: Mapping[str, float], summary: Mapping[str, str]) -> str:
        """Write the evaluation, and return its URI."""
        write_json(
            join(self.uri, _RESULT),
            {
                "format": 1,
                "kind": "evaluation",
                "digest": self.digest,
                "task": self.task,
                "recipe": self.recipe,
                "metrics": dict(metrics),
                "num_samples": 0,
                "parents": [p.to_json() for p in self.parents],
                "summary": dict(summary),
            },
        )
        return self.uri


def _metric_name(stored: str) -> str:
    prefix, dot, reason = stored.partition("skipped.")
    return f"skipped.{BadSampleReason.parse(reason)}" if dot and not prefix else stored


def read_evaluation(uri: str) -> EvaluationResult:
    """Read the evaluation at ``uri``.

    Raises:
        NotFoundError: there is none.
        ArtifactError: the artifact is damaged or of another kind.

    Example:
        >>> config = clipmill.get_recipe(
        ...     "linear-segmentation-tiny", clipmill.FinetuneConfig, ["train.steps=2"]
        ... )
        >>> encoder = "random:timm/test_byobnet"
        >>> model = clipmill.finetune(config, encoder, "labels", "out")
        >>> result = clipmill.read_evaluation(clipmill.evaluate(model, "labels", "out"))
        >>> result.task, result.num_samples
        ('segmentation', 2)
    """
    value = read_artifact_file(uri, _RESULT, "clipmill eval task")
    model, data = (Parent.from_json(p) for p in value["parents"])
    return EvaluationResult(
        uri=absolute_uri(uri),
        digest=value["digest"],
        task=value["task"],
        model=model,
        data=data,
        metrics={_metric_name(name): number for name, number in value["metrics"].items()},
        num_samples=value["num_samples"],
    )
