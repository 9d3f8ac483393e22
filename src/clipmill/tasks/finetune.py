"""Fine-tune an encoder on labeled data for a task."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.labeled.folder import fetch_folder
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_run, state_uri
from clipmill.errors import ConfigError, SourceError
from clipmill.models.checkpoint import has_checkpoint
from clipmill.models.embedding_stats import (
    EmbeddingStatistics,
    evenly_spaced_indices,
    statistics_of,
)
from clipmill.models.pretrained import open_encoder
from clipmill.stage_records import ProgressCallback, no_progress
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.registry import get_task
from clipmill.tasks.training_registry import get_training_task

if TYPE_CHECKING:
    from clipmill.engine.distributed import DistributedContext
    from clipmill.engine.objective import Objective

_NUM_EMBEDDING_IMAGES = 64

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(Config):
    """Configuration of a fine-tuning run.

    Example:
        >>> config = clipmill.get_recipe("depth-tiny", clipmill.FinetuneConfig)
        >>> config = config.override(["train.steps=100", "train.schedule.lr=1e-3"])
        >>> config.task, config.train.steps
        ('depth', 100)
    """

    task: str
    """Name of the task."""
    model: Config
    """Config of the task's model and data."""
    train: TrainConfig
    """Steps, batch size, optimizer, precision."""

    @classmethod
    def from_json(cls, value: object, path: str = "") -> Self:
        """Build from plain JSON values; ``task`` determines the type of ``model``."""
        if isinstance(value, dict) and isinstance(value.get("task"), str) and "model" in value:
            kind = get_task(value["task"]).config_type
            model_path = f"{path}.model" if path else "model"
            value = {**value, "model": kind.from_json(value["model"], model_path)}
        # A dataclass with slots is another class than the one that ``super()`` remembers.
        return super(FinetuneConfig, cls).from_json(value, path)


def finetune(
    config: FinetuneConfig,
    encoder: str,
    data: str,
    store: str = "out",
    *,
    report: ProgressCallback = no_progress,
) -> str:
    """Train a task model and return the URI of its checkpoint.

    An existing checkpoint is returned at once; an unfinished run resumes.

    Args:
        config: The run, such as a recipe's.
        encoder: Address of an image tower (:mod:`clipmill.models.weights.addresses`).
        data: Folder in the task's layout, or the URI of one packed as a tar.
        store: Folder or ``s3://`` URI for checkpoints.
        report: Called with the steps done, their total, and a message.

    Raises:
        ConfigError: the encoder's stride doesn't fit the recipe's images, or a batch of one image
            a process doesn't suit the head's batch norm.
        SourceError: the data have faults (:func:`clipmill.tasks.checks.check_before`).
        StoppedError, TrainingError, StorageError: as the training loop does.

    Example:
        >>> config = clipmill.get_recipe(
        ...     "linear-segmentation-tiny", clipmill.FinetuneConfig, ["train.steps=2"]
        ... )
        >>> encoder = "random:timm/test_byobnet"
        >>> model = clipmill.finetune(config, encoder, "labels", "out")
    """
    task = get_training_task(config.task)
    source = open_encoder(encoder)
    folder, data_parent = fetch_folder(data, "data")
    parents = (source.parent, data_parent)
    uri = result_uri(store, "models", task.name, config, parents)
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.trainer import train
    from clipmill.tasks.checks import check_before

    splits = ("train", task.test_split_name)
    check_before(task.name, folder, splits=splits, config=config.model)
    classes = task.classes(folder)

    def build_objective(dist: "DistributedContext") -> "Objective":
        objective = task.build_objective(config.model, source.config, classes)
        for side in task.input_sizes(config.model):
            objective.encoder.validate_image_size(side)
        source.load_weights(objective.encoder)
        if source.notice and not dist.rank:
            report(0, config.train.steps, source.notice)
        return objective

    def build_dataloader(start_step: int, dist: "DistributedContext") -> Iterator[Any]:
        return task.train_dataloader(
            config.model,
            folder,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            start_step=start_step,
            rank=dist.rank,
            world_size=dist.world_size,
        )

    try:
        result = train(
            build_objective,
            build_dataloader,
            config.train,
            name=task.name,
            checkpoint_uri=state_uri(uri),
            report=report,
        )
    except ValueError as error:
        # PyTorch's batch norm refuses a single value before the first update.
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"a batch of {config.train.batch_size} leaves batch norm a single value a channel",
            expected="at least 2 images in a batch of each process",
            action="set train.batch_size to 2 or more for each process",
        ) from error
    renamed = {task.inference_key(key): tensor for key, tensor in result.tensors.items()}
    tensors = {key: tensor for key, tensor in renamed.items() if key is not None}
    return save_run(
        uri,
        result,
        kind="task",
        architecture={
            "task": task.name,
            "classes": list(classes),
            "encoder": source.config.to_json(),
            "config": config.model.to_json(),
        },
        config=config,
        parents=parents,
        summary={
            "task": task.name,
            "steps": f"{config.train.steps:,}",
            **source.facts,
        },
        tensors=tensors,
        embed=lambda metadata: training_embedding(Predictor(metadata, tensors), folder),
    )


def training_embedding(predictor: Predictor, folder: Path) -> EmbeddingStatistics | None:
    """Compute statistics of the encoder's embeddings (images, width) of the training split.

    Images are spread over the split and preprocessed as at inference; unreadable ones are left out
    with a warning. Returns None where the split has too few.
    """
    images = get_training_task(predictor.task.name).training_images(folder)
    embeddings: list[NDArray[Any]] = []
    predictor.add_embedding_hook(embeddings.append)
    for index in evenly_spaced_indices(len(images), _NUM_EMBEDDING_IMAGES):
        try:
            predictor.predict([images.image_HW3(index)])
        except SourceError as error:
            _logger.warning("no embedding of training image %d: %s", index, error)
    return statistics_of(np.concatenate(embeddings)) if embeddings else None
