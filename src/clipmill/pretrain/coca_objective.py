"""CoCa's objective: its contrastive and its captioning loss, added (Yu et al. 2022)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from clipmill.data.loader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.models.coca import coca_forward
from clipmill.models.normalization import Normalize
from clipmill.models.towers import MAX_LOGIT_SCALE, build_coca
from clipmill.pretrain.coca import CaptionerConfig


class CocaObjective(Objective):
    """Contrastive and captioning loss of (image, real caption)."""

    def __init__(self, config: CaptionerConfig, here: Ranks) -> None:
        from open_clip.loss import ClipLoss

        super().__init__()
        self.normalize = Normalize(config.model.clip.vision.mean, config.model.clip.vision.std)
        self.coca = build_coca(config.model)
        self._weights = (config.contrastive_weight, config.captioning_weight)
        self._contrastive = ClipLoss(
            local_loss=True,
            gather_with_grad=True,
            cache_labels=True,
            rank=here.rank,
            world_size=here.world_size,
        )

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Losses ``contrastive`` and ``captioning``."""
        assert batch.real_BT is not None
        images_B3HW = self.normalize(batch.images_B3HW.float() / 255)
        found = coca_forward(self.coca, images_B3HW, batch.real_BT)
        contrastive = self._contrastive(
            found.image_BD.float(), found.text_BD.float(), self.coca.logit_scale.exp()
        )
        captioning = F.cross_entropy(
            found.logits_BTV.float().transpose(1, 2),
            batch.real_BT[:, 1:],
            ignore_index=self.coca.pad_id,
        )
        # A weight of 0 leaves every parameter a gradient, which ranks that average them wait for.
        return {
            "contrastive": contrastive * self._weights[0],
            "captioning": captioning * self._weights[1],
        }

    def after_step(self) -> None:
        """Keep the logit scale within CLIP's bounds."""
        with torch.no_grad():
            self.coca.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
