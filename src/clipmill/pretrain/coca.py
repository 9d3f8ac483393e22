"""Training a CoCa captioner on a dataset with good captions.

As CoCa was fine-tuned on COCO's captions before it wrote those of DataCompDR. Its contrastive loss
and its captioning loss are added (CoCa, Yu et al. 2022).

Shapes: B batch, T text length, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clipmill.config import Config
from clipmill.data.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.loader import PairBatch
from clipmill.data.view import View, ViewConfig
from clipmill.engine.distributed import Ranks
from clipmill.engine.loop import TrainConfig, train
from clipmill.engine.objective import Objective
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import ModelCard, has_checkpoint
from clipmill.models.normalization import Normalize
from clipmill.models.towers import MAX_LOGIT_SCALE, CocaConfig, build_coca
from clipmill.pretrain.pairs import LoadConfig, pair_batches
from clipmill.stages import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionerConfig(Config):
    """A CoCa training run."""

    model: CocaConfig = CocaConfig()
    """Towers and decoder."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss (open_clip's default)."""
    captioning_weight: float = 2.0
    """Weight of the captioning loss (open_clip's default)."""
    crop: RandomResizedCropConfig = RandomResizedCropConfig()
    """Augmentation."""
    load: LoadConfig = LoadConfig()
    """How samples are read and decoded."""
    train: TrainConfig
    """Length, rate, precision."""


class CocaObjective(Objective):
    """Contrastive and captioning loss of (image, real caption)."""

    def __init__(self, config: CaptionerConfig, here: Ranks) -> None:
        from open_clip.loss import CoCaLoss

        super().__init__()
        self.normalize = Normalize()
        self.coca = build_coca(config.model)
        self._weights = (config.contrastive_weight, config.captioning_weight)
        # Weighted here: at weight 0 open_clip leaves parameters without a gradient, for which
        # gradients averaged over ranks would wait.
        self._loss = CoCaLoss(
            caption_loss_weight=1.0,
            clip_loss_weight=1.0,
            local_loss=True,
            gather_with_grad=True,
            cache_labels=True,
            rank=here.rank,
            world_size=here.world_size,
        )

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Losses ``contrastive`` and ``captioning``."""
        assert batch.real_BT is not None
        found = self.coca(self.normalize(batch.images_B3HW.float() / 255), batch.real_BT)
        contrastive, captioning = self._loss(
            found["image_features"].float(),
            found["text_features"].float(),
            found["logits"].float(),
            found["labels"],
            found["logit_scale"],
        )
        return {
            "contrastive": contrastive * self._weights[0],
            "captioning": captioning * self._weights[1],
        }

    def after_step(self) -> None:
        """Keep the logit scale within CLIP's bounds."""
        with torch.no_grad():
            self.coca.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def train_captioner(config: CaptionerConfig, dataset: str, store: str, *, report: Report) -> str:
    """Train CoCa on the dataset's real captions; the URI of the checkpoint, under ``store``.

    A checkpoint that is there already is returned at once; an unfinished run goes on.
    """
    view = View(Dataset.open(dataset), ViewConfig(captions="real"))
    uri = result_uri(store, "captioners", "coca", config, view.parents)
    if has_checkpoint(uri):
        return uri
    clip = config.model.clip
    trained = train(
        lambda here: CocaObjective(config, here),
        lambda cursor, here: pair_batches(
            view,
            config.load,
            config.train,
            crop=CropTransform(clip.vision.image_size, config.crop),
            tokenizer=clip.text.tokenizer(),
            here=here,
            cursor=cursor,
        ),
        config.train,
        name="coca",
        state_uri=f"{uri}/state",
        report=report,
    )
    card = ModelCard(
        kind="coca",
        architecture=config.model.to_json(),
        recipe=config.to_json(),
        parents=view.parents,
        metrics={k: v for k, v in trained.log[-1].items() if k.startswith("loss")},
        summary={"seen samples": f"{config.train.num_seen_samples:,}"},
    )
    tensors = {
        k.removeprefix("coca."): v for k, v in trained.tensors.items() if k.startswith("coca.")
    }
    save_result(uri, card, tensors, trained)
    return uri
