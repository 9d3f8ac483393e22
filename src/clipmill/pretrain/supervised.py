"""Supervised pretraining on labeled images: the mobile encoders' baseline.

Shapes: B batch, C classes, H W height and width.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.data.labeled.dataloader import build_labeled_dataloader
from clipmill.data.labeled.folder import ImageFolder, fetch_folder
from clipmill.data.transforms.augmentation import replay, sample_augmentation
from clipmill.data.transforms.mixup import erase, mix
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import Objective
from clipmill.engine.result import result_uri, save_run, state_uri
from clipmill.engine.trainer import train
from clipmill.models.checkpoint import has_checkpoint
from clipmill.models.encoders import Normalize
from clipmill.pretrain.config import SupervisedConfig
from clipmill.stage_records import ProgressCallback


def pretrain_supervised(
    config: SupervisedConfig, data: str, store: str, *, report: ProgressCallback
) -> str:
    """Train on ``train/CLASS/*`` in the folder (or tar) at ``data``; return the checkpoint's URI.

    An existing checkpoint is returned at once; an unfinished run is resumed.
    """
    folder, parent = fetch_folder(data, "images")
    uri = result_uri(store, "encoders", "supervised", config, (parent,))
    if has_checkpoint(uri):
        return uri
    images = ImageFolder.open(Path(folder), "train")
    result = train(
        partial(SupervisedObjective, config, len(images.classes)),
        partial(_dataloader, config, images),
        config.train,
        name="supervised",
        checkpoint_uri=state_uri(uri),
        report=report,
    )
    return save_run(
        uri,
        result,
        kind="supervised",
        architecture={"vision": config.vision.to_json(), "classes": list(images.classes)},
        config=config,
        parents=(parent,),
        summary={
            "classes": str(len(images.classes)),
            "seen samples": f"{config.train.num_seen_samples:,}",
            "seed": str(config.train.seed),
        },
        tensors={k: v for k, v in result.tensors.items() if k.startswith("visual.")},
    )


def _dataloader(
    config: SupervisedConfig, images: ImageFolder, start_step: int, dist: DistributedContext
) -> Iterator[dict[str, Tensor]]:
    return build_labeled_dataloader(
        partial(_load_sample, config, images),
        len(images),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=start_step,
        num_workers=config.num_workers,
        rank=dist.rank,
        world_size=dist.world_size,
    )


def _load_sample(
    config: SupervisedConfig, images: ImageFolder, index: int, generator: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Return an augmented ``image`` (3, H, W) uint8 and its ``label``."""
    image = images.image(index)
    numbers = sample_augmentation(image.width, image.height, config.augmentation, generator)
    pixels_HW3 = np.asarray(replay(image, config.vision.image_size, numbers))
    if generator.random() < 0.5:
        pixels_HW3 = pixels_HW3[:, ::-1]
    pixels_3HW = np.ascontiguousarray(pixels_HW3.transpose(2, 0, 1))
    return {"image": pixels_3HW, "label": np.array(images.labels[index])}


class SupervisedObjective(Objective):
    """Cross-entropy of a timm model on mixed, erased, smoothly labeled batches.

    A batch has ``image`` (B, 3, H, W) uint8 and ``label`` (B,).
    """

    def __init__(
        self, config: SupervisedConfig, num_classes: int, dist: DistributedContext
    ) -> None:
        import timm

        super().__init__()
        del dist  # the loss is a mean over images, on whichever rank
        self.normalize = Normalize(config.vision.mean, config.vision.std)
        # Named as in a CLIP checkpoint, so that the tower is found in the same place.
        trunk = timm.create_model(
            config.vision.timm_model, num_classes=num_classes, drop_path_rate=config.drop_path
        )
        self.visual = nn.ModuleDict({"trunk": trunk})
        self._config = config
        self._num_classes = num_classes

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return loss ``classification``."""
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
