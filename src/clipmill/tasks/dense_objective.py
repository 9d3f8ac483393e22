"""What the objectives of dense tasks share: an encoder of feature maps.

Shapes: B batch, D width, H W image, h w a map's height and width.
"""

from torch import Tensor

from clipmill.models.dense import DenseEncoder
from clipmill.models.feature_cache import FeatureCache
from clipmill.tasks.encoder_objective import EncoderObjective


class DenseObjective(EncoderObjective):
    """An objective over a dense encoder, held as ``encoder``."""

    encoder: DenseEncoder
    _cache: FeatureCache | None = None

    def maps(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The encoder's maps (B, D, h, w) of ``images`` (B, H, W, 3) uint8, finest first.

        A batch that names its images by ``keys`` (B,) wants a frozen encoder's maps computed once.
        """
        images_B3HW = batch["images"].permute(0, 3, 1, 2).float() / 255
        if "keys" not in batch:
            maps: list[Tensor] = self.encoder(images_B3HW)
            return maps
        if self._cache is None:
            self._cache = FeatureCache(self.encoder)
        return self._cache(images_B3HW, batch["keys"])
