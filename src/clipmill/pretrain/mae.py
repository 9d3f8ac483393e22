"""Masked-autoencoder pretraining on a dataset's pictures: CLIP's baseline without captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipmill.config import Config
from clipmill.data.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.view import View, ViewConfig
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import ModelCard, has_checkpoint
from clipmill.models.mae_config import MaeConfig
from clipmill.pretrain.pairs import LoadConfig, pair_batches
from clipmill.stage_records import Report

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MaePretrainConfig(Config):
    """A masked-autoencoder run."""

    model: MaeConfig = MaeConfig()
    """Encoder and decoder."""
    fraction: float = 1.0
    """Part of the dataset's samples, above 0 and at most 1."""
    crop: RandomResizedCropConfig = RandomResizedCropConfig(scale=(0.2, 1.0))
    """Augmentation; pictures are mirrored besides (He et al. 2022)."""
    load: LoadConfig = LoadConfig()
    """Where samples are read and decoded."""
    train: TrainConfig
    """Length, rate, precision."""


def pretrain_mae(config: MaePretrainConfig, dataset: str, store: str, *, report: Report) -> str:
    """Train on the pictures of the dataset at that URI; the checkpoint's URI, under ``store``.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    view = View(Dataset.open(dataset), ViewConfig(captions="real", fraction=config.fraction))
    uri = result_uri(store, "encoders", "mae", config, view.parents)
    if has_checkpoint(uri):
        return uri
    from clipmill.engine.loop import train
    from clipmill.pretrain.mae_objective import MaeObjective

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
    card = ModelCard(
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
    save_result(uri, card, tensors, trained)
    return uri


def _no_tokens(texts: Sequence[str]) -> "Tensor":
    import torch

    return torch.zeros(len(texts), 1, dtype=torch.int64)
