"""Training objectives on a pretrained encoder, frozen or with a learning rate by layer.

Shapes: B batch, D width, H W image, h w a feature map's height and width.
"""

from typing import Generic, Self, TypeVar

from torch import Tensor

from clipmill.engine.objective import Objective
from clipmill.models.encoders import DenseEncoder, Encoder, FeatureCache

EncoderT = TypeVar("EncoderT", bound=Encoder)


class EncoderObjective(Objective, Generic[EncoderT]):
    """Objective with a pretrained encoder as its attribute ``encoder``."""

    encoder: EncoderT

    def __init__(self, *, freeze_encoder: bool = False) -> None:
        super().__init__()
        self._freeze_encoder = freeze_encoder

    def freeze_if(self, encoder: EncoderT) -> EncoderT:
        """Return the encoder, without gradients if it is to be frozen."""
        return encoder.requires_grad_(not self._freeze_encoder)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen encoder stays in eval mode (no drop path, fixed batch norm)."""
        super().train(mode)
        if self._freeze_encoder:
            self.encoder.eval()
        return self

    def layer_id(self, parameter: str) -> int | None:
        """Return a parameter's layer in the encoder; None for the heads (full learning rate)."""
        if parameter.startswith("encoder."):
            return self.encoder.layer_id(parameter.removeprefix("encoder."))
        return None

    @property
    def num_layers(self) -> int:
        """One above the encoder's own top layer, as in BEiT's and MAE's layer decay."""
        return self.encoder.num_layers + 1


class DenseObjective(EncoderObjective[DenseEncoder]):
    """Objective on feature maps, which a frozen encoder may compute once for each image."""

    _cache: FeatureCache | None = None

    def feature_maps(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Return maps (B, D, h, w) of ``images`` (B, H, W, 3) uint8, finest first.

        A batch with ``keys`` (B,), the images' ids, is served from the cache where it can be.
        """
        images_B3HW = batch["images"].permute(0, 3, 1, 2).float() / 255
        if "keys" not in batch:
            maps: list[Tensor] = self.encoder(images_B3HW)
            return maps
        if self._cache is None:
            self._cache = FeatureCache(self.encoder)
        return self._cache(images_B3HW, batch["keys"])
