"""Supervised pretraining on labelled images: the mobile encoders' baseline."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.data.labeled.folder import open_folder
from clipmill.data.labeled.image_folder import ClassFolder
from clipmill.data.transforms.augmentation import (
    draw_augmentation,
    replay,
)
from clipmill.data.transforms.mixup import erase, mix
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint
from clipmill.models.encoders import Normalize
from clipmill.pretrain.config import SupervisedConfig
from clipmill.stage_records import Report

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.engine.distributed import Ranks


def pretrain_supervised(config: SupervisedConfig, data: str, store: str, *, report: Report) -> str:
    """Train on ``train/CLASS/*`` below the folder (or tar) at ``data``; the checkpoint's URI.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    folder, parent = open_folder(data, "images")
    uri = result_uri(store, "encoders", "supervised", config, (parent,))
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.trainer import train
    from clipmill.pretrain.supervised import SupervisedObjective

    images = ClassFolder.open(Path(folder), "train")
    trained = train(
        lambda here: SupervisedObjective(config, len(images.classes), here),
        lambda cursor, here: _batches(config, images, here, cursor),
        config.train,
        name="supervised",
        state_uri=f"{uri}/state",
        report=report,
    )
    metadata = CheckpointMetadata(
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
    save_result(uri, metadata, tensors, trained)
    return uri


def _batches(
    config: SupervisedConfig, images: ClassFolder, here: "Ranks", cursor: int
) -> "Iterator[dict[str, Tensor]]":
    from clipmill.data.labeled.dataloader import sample_batches

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


class SupervisedObjective(Objective):
    """The loss of a batch with ``image`` (B, 3, H, W) uint8 and ``label`` (B,)."""

    def __init__(self, config: SupervisedConfig, num_classes: int, here: Ranks) -> None:
        import timm

        super().__init__()
        del here  # the loss is a mean over pictures, whoever has them
        self.normalize = Normalize(config.vision.mean, config.vision.std)
        # Named as in a CLIP checkpoint, so that the tower is found in the same place.
        trunk = timm.create_model(
            config.vision.timm_model, num_classes=num_classes, drop_path_rate=config.drop_path
        )
        self.visual = nn.ModuleDict({"trunk": trunk})
        self._config = config
        self._num_classes = num_classes

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss ``classification``."""
        config = self._config
        images_B3HW = self.normalize(batch["image"].float() / 255)
        targets_BC = F.one_hot(batch["label"], self._num_classes).float()
        targets_BC = torch.lerp(
            targets_BC, torch.full_like(targets_BC, 1 / self._num_classes), config.label_smoothing
        )
        images_B3HW = erase(images_B3HW, config.random_erasing_prob)
        images_B3HW, targets_BC = mix(
            images_B3HW, targets_BC, mixup=config.mixup, cutmix=config.cutmix
        )
        logits_BC = self.visual["trunk"](images_B3HW).float()
        return {"classification": F.cross_entropy(logits_BC, targets_BC)}
