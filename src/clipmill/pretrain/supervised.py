"""Supervised pretraining on labelled images: the mobile encoders' baseline."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.classes import ClassFolder
from clipmill.data.folder import open_folder
from clipmill.data.stored_augmentation import StoredAugmentationConfig, draw_augmentation, replay
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.errors import ConfigError
from clipmill.models.checkpoint import ModelCard, has_checkpoint
from clipmill.models.towers import VisionConfig
from clipmill.stage_records import Report

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.engine.distributed import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedConfig(Config):
    """A supervised run."""

    vision: VisionConfig
    """The image tower: a timm model, whose classifier is trained with it."""
    augmentation: StoredAugmentationConfig = StoredAugmentationConfig()
    """Crop and RandAugment; pictures are mirrored besides."""
    mixup: float = 0.2
    """Alpha of mixup; 0 for none."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0 for none."""
    erased: float = 0.25
    """Share of pictures that lose a rectangle."""
    label_smoothing: float = 0.1
    """Probability that is spread over all classes."""
    drop_path: float = 0.0
    """Highest rate of stochastic depth."""
    num_workers: int = 8
    """Processes of a rank that decode; 0 decodes in the training process."""
    train: TrainConfig
    """Length, rate, precision."""

    def __post_init__(self) -> None:
        """Refuse a tower without a classifier of its own (ConfigError)."""
        if not self.vision.timm_model:
            raise ConfigError(
                "vision.timm_model was empty",
                expected="the name of a timm model",
                action="set vision.timm_model=fastvit_mci0, or vit_base_patch16_224",
            )


def pretrain_supervised(config: SupervisedConfig, data: str, store: str, *, report: Report) -> str:
    """Train on ``train/CLASS/*`` below the folder (or tar) at ``data``; the checkpoint's URI.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    folder, parent = open_folder(data, "images")
    uri = result_uri(store, "encoders", "supervised", config, (parent,))
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.loop import train
    from clipmill.pretrain.supervised_objective import SupervisedObjective

    images = ClassFolder.open(Path(folder), "train")
    trained = train(
        lambda here: SupervisedObjective(config, len(images.classes), here),
        lambda cursor, here: _batches(config, images, here, cursor),
        config.train,
        name="supervised",
        state_uri=f"{uri}/state",
        report=report,
    )
    card = ModelCard(
        kind="supervised",
        architecture={"vision": config.vision.to_json(), "classes": list(images.classes)},
        recipe=config.to_json(),
        parents=(parent,),
        metrics={k: v for k, v in trained.log[-1].items() if k.startswith("loss")},
        summary={
            "classes": str(len(images.classes)),
            "seen samples": f"{config.train.num_seen_samples:,}",
            "seed": str(config.train.seed),
        },
    )
    tensors = {k: v for k, v in trained.tensors.items() if k.startswith("visual.")}
    save_result(uri, card, tensors, trained)
    return uri


def _batches(
    config: SupervisedConfig, images: ClassFolder, here: "Ranks", cursor: int
) -> "Iterator[dict[str, Tensor]]":
    from clipmill.data.samples import sample_batches

    def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
        picture = images.image(index)
        numbers = draw_augmentation(picture.width, picture.height, config.augmentation, generator)
        seen_HW3 = np.asarray(replay(picture, config.vision.image_size, numbers))
        if generator.random() < 0.5:
            seen_HW3 = seen_HW3[:, ::-1]
        pixels_3HW = np.ascontiguousarray(seen_HW3.transpose(2, 0, 1))
        return {"image": pixels_3HW, "label": np.array(images.labels[index])}

    return sample_batches(
        load,
        len(images),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        cursor=cursor,
        num_workers=config.num_workers,
        rank=here.rank,
        world_size=here.world_size,
    )
