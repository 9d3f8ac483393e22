"""The masked autoencoder's objective: what it reconstructs of each picture's hidden patches."""

import torch
from torch import Tensor

from clipmill.data.loader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.models.mae import MaskedAutoencoder
from clipmill.models.normalization import Normalize
from clipmill.pretrain.mae import MaePretrainConfig


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
