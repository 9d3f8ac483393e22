"""Training objective of depth estimation.

Shapes: B batch, H W image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import build_dense
from clipmill.tasks.config import DepthConfig
from clipmill.tasks.depth.model import DepthNetwork, LinearDepthHead
from clipmill.tasks.objective import DenseObjective


class DepthObjective(DenseObjective):
    """SiLog loss over the pixels whose depth is known."""

    def __init__(self, config: DepthConfig, encoder: EncoderConfig) -> None:
        super().__init__(freeze_encoder=config.freeze_encoder)
        dense = self.freeze_if(build_dense(encoder, drop_path=config.drop_path))
        network = DepthNetwork(config, dense)
        self.encoder = network.encoder
        self.decoder = network.decoder
        self._lambda = config.silog_lambda
        self._loss_at_map = config.linear_loss == "map"

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss ``silog``."""
        maps = self.feature_maps(batch)
        truth_BHW = batch["depth"]
        if isinstance(self.decoder, LinearDepthHead) and self._loss_at_map:
            # At the feature map's resolution, as segmentation's linear head.
            depth_B1HW = self.decoder.coarse(maps)
            truth_BHW = F.interpolate(
                truth_BHW[:, None], depth_B1HW.shape[-2:], mode="nearest-exact"
            )[:, 0]
        else:
            is_linear = isinstance(self.decoder, LinearDepthHead)
            depth_B1HW = self.decoder(maps if is_linear else maps[-1])
        return {"silog": silog(depth_B1HW[:, 0].float(), truth_BHW, self._lambda)}


def silog(prediction_BHW: Tensor, truth_BHW: Tensor, weight: float) -> Tensor:
    """Compute sqrt(mean(d^2) - weight mean(d)^2), d = log truth - log prediction (Eigen 2014).

    The loss of a batch without a known depth is 0.
    """
    known = truth_BHW > 0
    if not known.any():
        return prediction_BHW.sum() * 0
    difference = torch.log(truth_BHW[known]) - torch.log(prediction_BHW[known] + 1e-7)
    loss: Tensor = torch.sqrt((difference**2).mean() - weight * difference.mean() ** 2)
    return loss
