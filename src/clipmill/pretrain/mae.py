"""Masked-autoencoder pretraining on a dataset's pictures: CLIP's baseline without captions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipmill.data.dataset import Dataset
from clipmill.data.loading.dataloader import PairBatch
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint
from clipmill.models.encoders import Normalize
from clipmill.models.mae import MaskedAutoencoder
from clipmill.pretrain.config import MaePretrainConfig
from clipmill.pretrain.dataloader import pair_batches
from clipmill.stage_records import Report

if TYPE_CHECKING:
    from torch import Tensor


def pretrain_mae(config: MaePretrainConfig, dataset: str, store: str, *, report: Report) -> str:
    """Train on the pictures of the dataset at that URI; the checkpoint's URI, under ``store``.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    view = View(Dataset.open(dataset), ViewConfig(captions="real", fraction=config.fraction))
    uri = result_uri(store, "encoders", "mae", config, view.parents)
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.trainer import train
    from clipmill.pretrain.mae import MaeObjective

    trained = train(
        lambda here: MaeObjective(config, here),
        lambda cursor, here: pair_batches(
            view,
            config.load,
            config.train,
            crop=CropTransform(config.model.vision.image_size, config.crop),
            tokenizer=_no_tokens,
            here=here,
            cursor=cursor,
        ),
        config.train,
        name="mae",
        state_uri=f"{uri}/state",
        report=report,
    )
    metadata = CheckpointMetadata(
        kind="mae",
        architecture=config.model.to_json(),
        recipe=config.to_json(),
        parents=view.parents,
        metrics={k: v for k, v in trained.log[-1].items() if k.startswith("loss")},
        summary={
            "seen samples": f"{config.train.num_seen_samples:,}",
            "seed": str(config.train.seed),
        },
    )
    tensors = {k.removeprefix("mae."): v for k, v in trained.tensors.items() if k[:4] == "mae."}
    save_result(uri, metadata, tensors, trained)
    return uri


def _no_tokens(texts: Sequence[str]) -> "Tensor":
    import torch

    return torch.zeros(len(texts), 1, dtype=torch.int64)


class MaeObjective(Objective):
    """Mean squared error on masked patches; half of the pictures are mirrored (He et al. 2022)."""

    def __init__(self, config: MaePretrainConfig, here: Ranks) -> None:
        super().__init__()
        del here  # the loss is a mean over pictures, whoever has them
        self.normalize = Normalize(config.model.vision.mean, config.model.vision.std)
        self.mae = MaskedAutoencoder(config.model)

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Loss ``reconstruction``."""
        images_B3HW = self.normalize(batch.images_B3HW.float() / 255)
        is_mirrored = torch.rand(len(images_B3HW), 1, 1, 1, device=images_B3HW.device) < 0.5
        images_B3HW = torch.where(is_mirrored, images_B3HW.flip(-1), images_B3HW)
        return {"reconstruction": self.mae(images_B3HW).loss}
