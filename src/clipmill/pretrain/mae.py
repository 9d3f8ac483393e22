"""Masked-autoencoder pretraining on a dataset's images: CLIP's baseline without captions."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from clipmill.data.dataset import Dataset
from clipmill.data.loading.dataloader import PairBatch
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import Objective
from clipmill.engine.result import result_uri, save_run, state_uri, under_prefix
from clipmill.engine.trainer import train
from clipmill.models.checkpoint import has_checkpoint
from clipmill.models.encoders import Normalize
from clipmill.models.mae import MaskedAutoencoder
from clipmill.pretrain.config import MaePretrainConfig
from clipmill.pretrain.dataloader import build_pair_dataloader
from clipmill.stage_records import ProgressCallback


def pretrain_mae(
    config: MaePretrainConfig, dataset: str, store: str, *, report: ProgressCallback
) -> str:
    """Train on the images of the dataset at a URI; return the checkpoint's URI, under ``store``.

    An existing checkpoint is returned at once; an unfinished run is resumed.
    """
    view = View(Dataset.open(dataset), ViewConfig(captions="real", subset_fraction=config.fraction))
    uri = result_uri(store, "encoders", "mae", config, view.parents)
    if has_checkpoint(uri):
        return uri
    result = train(
        partial(MaeObjective, config),
        partial(_dataloader, config, view),
        config.train,
        name="mae",
        checkpoint_uri=state_uri(uri),
        report=report,
    )
    return save_run(
        uri,
        result,
        kind="mae",
        architecture=config.model.to_json(),
        config=config,
        parents=view.parents,
        summary={
            "seen samples": f"{config.train.num_seen_samples:,}",
            "seed": str(config.train.seed),
        },
        tensors=under_prefix(result.tensors, "mae."),
    )


def _dataloader(
    config: MaePretrainConfig, view: View, start_step: int, dist: DistributedContext
) -> Iterator[PairBatch]:
    return build_pair_dataloader(
        view,
        config.dataloader,
        config.train,
        transform=CropTransform(config.model.vision.image_size, config.random_resized_crop),
        tokenizer=_no_tokens,
        start_step=start_step,
        dist=dist,
    )


def _no_tokens(texts: Sequence[str]) -> Tensor:
    return torch.zeros(len(texts), 1, dtype=torch.int64)


class MaeObjective(Objective):
    """Mean squared error on masked patches; half of the images are mirrored (He et al. 2022)."""

    def __init__(self, config: MaePretrainConfig, dist: DistributedContext) -> None:
        super().__init__()
        del dist  # the loss is a mean over images, on whichever rank
        self.normalize = Normalize(config.model.vision.mean, config.model.vision.std)
        self.mae = MaskedAutoencoder(config.model)

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return loss ``reconstruction``."""
        images_B3HW = self.normalize(batch.images_B3HW.float() / 255)
        is_mirrored = torch.rand(len(images_B3HW), 1, 1, 1, device=images_B3HW.device) < 0.5
        images_B3HW = torch.where(is_mirrored, images_B3HW.flip(-1), images_B3HW)
        return {"reconstruction": self.mae(images_B3HW).loss}
