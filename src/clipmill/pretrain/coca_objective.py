"""CoCa's objective: its contrastive and its captioning loss, added (Yu et al. 2022)."""

import torch
from torch import Tensor

from clipmill.data.loader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.models.normalization import Normalize
from clipmill.models.towers import MAX_LOGIT_SCALE, build_coca
from clipmill.pretrain.coca import CaptionerConfig


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
