"""Fine-tuning: an encoder and labelled data in, a task model out."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self
from clipmill.config import Config
from clipmill.data.labeled.folder import open_folder
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import ModelCard, has_checkpoint
from clipmill.models.pretrained import open_encoder
from clipmill.stage_records import Report
from clipmill.tasks.registry import task_named
import logging
from pathlib import Path
from typing import Any
import numpy as np
from numpy.typing import NDArray
from clipmill.errors import SourceError
from clipmill.models.embedding_stats import EmbeddingStatistics, spread_places, statistics_of
from clipmill.tasks.predictor import Predictor

if TYPE_CHECKING:
    from clipmill.engine.distributed import Ranks
    from clipmill.engine.objective import Objective


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(Config):
    """A fine-tuning run of any task."""

    task: str
    """Name of the task."""
    model: Config
    """The task's own config."""
    train: TrainConfig
    """Length, rate, precision."""

    @classmethod
    def from_json(cls, value: object, path: str = "") -> Self:
        """Build from plain JSON values; ``task`` says of what kind ``model`` is."""
        if isinstance(value, dict) and isinstance(value.get("task"), str) and "model" in value:
            kind = task_named(value["task"]).config_type
            where = f"{path}.model" if path else "model"
            value = {**value, "model": kind.from_json(value["model"], where)}
        # A dataclass with slots is another class than the one that ``super()`` remembers.
        return super(FinetuneConfig, cls).from_json(value, path)


def finetune(config: FinetuneConfig, encoder: str, data: str, store: str, *, report: Report) -> str:
    """Train a task model; the URI of its checkpoint, under ``store``.

    ``encoder`` is the address of an image tower (:mod:`clipmill.models.weights.addresses`); ``data`` a
    folder in the task's layout, or the URI of one packed as a tar. A checkpoint that is there
    already is returned at once; an unfinished run goes on.

    Raises:
        ConfigError: the encoder's stride doesn't fit the recipe's images.
        StoppedError, TrainingError, StorageError: as the training loop does.
    """
    task = task_named(config.task)
    start = open_encoder(encoder)
    folder, data_parent = open_folder(data, "data")
    parents = (start.parent, data_parent)
    uri = result_uri(store, "models", task.name, config, parents)
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.trainer import train
    from clipmill.tasks.finetune import training_embedding
    from clipmill.tasks.predictor import Predictor

    classes = task.classes(folder)

    def objective(here: "Ranks") -> "Objective":
        made = task.objective(config.model, start.config, classes)
        for side in task.sides(config.model):
            made.encoder.check_side(side)
        start.load_into(made.encoder)
        if start.notice and not here.rank:
            report(0, config.train.steps, start.notice)
        return made

    def batches(cursor: int, here: "Ranks") -> Iterator[Any]:
        return task.batches(
            config.model,
            folder,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            cursor=cursor,
            rank=here.rank,
            world_size=here.world_size,
        )

    trained = train(
        objective, batches, config.train, name=task.name, state_uri=f"{uri}/state", report=report
    )
    card = ModelCard(
        kind="task",
        architecture={
            "task": task.name,
            "classes": list(classes),
            "encoder": start.config.to_json(),
            "config": config.model.to_json(),
        },
        recipe=config.to_json(),
        parents=parents,
        metrics={k: v for k, v in trained.log[-1].items() if k.startswith("loss")},
        summary={
            "task": task.name,
            "steps": f"{config.train.steps:,}",
            **start.facts,
        },
    )
    named = {task.served_name(name): tensor for name, tensor in trained.tensors.items()}
    served = {name: tensor for name, tensor in named.items() if name is not None}
    save_result(
        uri,
        card,
        served,
        trained,
        embed=lambda: training_embedding(Predictor(card, served), folder),
    )
    return uri


_NUM_IMAGES = 64

_logger = logging.getLogger(__name__)


def training_embedding(predictor: Predictor, folder: Path) -> EmbeddingStatistics | None:
    """Statistics over images from all over the training split, seen as an endpoint sees them.

    None where the split has too few. Images that can't be read are left out: training met its
    own, and is over.
    """
    images = predictor.task.training_images(folder)
    found: list[NDArray[Any]] = []
    predictor.watch(found.append)
    for index in spread_places(len(images), _NUM_IMAGES):
        try:
            predictor.predict([images.image_HW3(index)])
        except SourceError as error:
            _logger.warning("no embedding of training image %d: %s", index, error)
    return statistics_of(np.concatenate(found)) if found else None
