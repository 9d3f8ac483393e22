"""Evaluating a task model: metrics, and a few samples to look at, as an artifact."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load, save

from clipmill.data.labeled.folder import open_folder
from clipmill.config import digest_json
from clipmill.errors import ArtifactError
from clipmill.models.checkpoint import read_card
from clipmill.stage_records import Report
from clipmill.storage import exists, join, read_bytes, write_bytes, write_json
from clipmill.lineage import Parent, read_artifact_file
from clipmill.tasks.visualization import to_png

_RESULT = "evaluation.json"
_PER_IMAGE = "per_image.safetensors"
NUM_SAMPLES = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """What an evaluation's artifact says."""

    uri: str
    """Where it lies."""
    digest: str
    """Its digest."""
    task: str
    """The task's name."""
    model: Parent
    """The model that was judged."""
    data: Parent
    """The data that it was judged on."""
    metrics: dict[str, float]
    """Figures by name."""
    num_samples: int
    """Samples whose pictures are kept."""

    def per_image(self) -> dict[str, NDArray[Any]]:
        """What the task's ``figure`` takes, a row an image.

        Raises:
            NotFoundError: the task has none, or an evaluation before 0.2 left none.
        """
        return load(read_bytes(join(self.uri, _PER_IMAGE)))

    def picture(self, index: int, name: str) -> bytes:
        """PNG of sample ``index``: ``image``, ``truth`` or ``prediction``."""
        return read_bytes(join(self.uri, f"{index:02d}-{name}.png"))


def evaluate(model: str, data: str, store: str, *, report: Report) -> str:
    """Judge the model on the data's test split; the URI of the result, under ``store``.

    A result that is there already is returned at once.
    """
    card = read_card(model)
    folder, data_parent = open_folder(data, "data")
    parents = [card.as_parent("model"), data_parent]
    digest = digest_json([[p.role, p.digest] for p in parents])
    uri = join(store, "evaluations", digest[:12])
    if exists(join(uri, _RESULT)):
        return uri
    from clipmill.tasks.predictor import Predictor

    predictor = Predictor.open(model, num_threads=card.recipe["train"]["num_threads"])
    task = predictor.task
    _check_classes(model, predictor.classes, task.classes(folder))
    found = task.evaluate(
        lambda image_HW3: predictor.predict([image_HW3])[0],
        task.config_type.from_json(predictor.card.architecture["config"]),
        folder,
        num_samples=NUM_SAMPLES,
        report=report,
    )
    for index, sample in enumerate(found.samples):
        pictures = {
            "image": sample.image_HW3,
            "truth": task.draw(sample.truth, sample.image_HW3, predictor.classes),
            "prediction": task.draw(sample.prediction, sample.image_HW3, predictor.classes),
        }
        for name, picture_HW3 in pictures.items():
            write_bytes(join(uri, f"{index:02d}-{name}.png"), to_png(picture_HW3))
    if found.per_image:
        # Rows are paired by their number: models that are compared see the same images.
        write_bytes(join(uri, _PER_IMAGE), save(dict(found.per_image)))
    figure = found.metrics[task.metric.name]
    write_json(
        join(uri, _RESULT),
        {
            "format": 1,
            "kind": "evaluation",
            "digest": digest,
            "task": task.name,
            "metrics": found.metrics,
            "num_samples": len(found.samples),
            "parents": [p.to_json() for p in parents],
            "summary": {task.metric.name: f"{figure:.3f} {task.metric.unit}"},
        },
    )
    return uri


def _check_classes(model: str, known: tuple[str, ...], found: tuple[str, ...]) -> None:
    if found == known:
        return
    number = next(
        (n for n, (a, b) in enumerate(zip(known, found, strict=False)) if a != b),
        min(len(known), len(found)),
    )
    names = [repr(c[number]) if number < len(c) else "missing" for c in (known, found)]
    raise ArtifactError(
        f"{model} knows {len(known)} classes, the data has {len(found)}; "
        f"class {number} is {names[0]} there and {names[1]} here",
        expected="a model that was trained for the data's class list",
        action="give the data that it was made for, or fine-tune on this",
    )


def read_evaluation(uri: str) -> EvaluationResult:
    """The result at ``uri``; NotFoundError or ArtifactError where none or another thing lies."""
    value = read_artifact_file(uri, _RESULT, "clipmill evaluate")
    model, data = (Parent.from_json(p) for p in value["parents"])
    return EvaluationResult(
        uri=uri,
        digest=value["digest"],
        task=value["task"],
        model=model,
        data=data,
        metrics=value["metrics"],
        num_samples=value["num_samples"],
    )
