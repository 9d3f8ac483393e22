"""Depth's training objective."""

import torch
from torch import Tensor
from torch.nn import functional as F
from clipmill.models.dense import build_dense
from clipmill.models.config import EncoderConfig
from clipmill.tasks.objective import DenseObjective
from clipmill.tasks.depth.task import DepthConfig
from clipmill.tasks.depth.model import DepthNetwork, LinearDepthHead


class DepthObjective(DenseObjective):
    """SiLog over the pixels whose depth is known."""

    def __init__(self, config: DepthConfig, encoder: EncoderConfig) -> None:
        super().__init__(is_frozen=config.is_frozen)
        held = self.held(build_dense(encoder, drop_path=config.drop_path))
        network = DepthNetwork(config, held)
        self.encoder = network.encoder
        self.decoder = network.decoder
        self._lambda = config.silog_lambda

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss ``silog``."""
        maps = self.maps(batch)
        truth_BHW = batch["depth"]
        if isinstance(self.decoder, LinearDepthHead):
            # At the features' places alone, as segmentation's linear head.
            depth_B1HW = self.decoder.coarse(maps)
            truth_BHW = F.interpolate(
                truth_BHW[:, None], depth_B1HW.shape[-2:], mode="nearest-exact"
            )[:, 0]
        else:
            depth_B1HW = self.decoder(maps[-1])
        return {"silog": silog(depth_B1HW[:, 0].float(), truth_BHW, self._lambda)}


def silog(prediction_BHW: Tensor, truth_BHW: Tensor, forgiven: float) -> Tensor:
    """sqrt(mean(d^2) - forgiven mean(d)^2), d = log truth - log prediction (Eigen et al. 2014)."""
    known = truth_BHW > 0
    difference = torch.log(truth_BHW[known]) - torch.log(prediction_BHW[known] + 1e-7)
    loss: Tensor = torch.sqrt((difference**2).mean() - forgiven * difference.mean() ** 2)
    return loss
