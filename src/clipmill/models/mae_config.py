"""The shape of a masked autoencoder (He et al. 2022)."""

from dataclasses import dataclass

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.models.towers import VisionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MaeConfig(Config):
    """A ViT that sees few patches, and a decoder that predicts the others."""

    vision: VisionConfig = VisionConfig(has_input_norm=False)
    """The encoder."""
    mask_ratio: float = 0.75
    """Share of patches that the encoder doesn't see."""
    decoder_width: int = 512
    """Width of the decoder's tokens."""
    decoder_layers: int = 8
    """Number of the decoder's blocks."""
    decoder_heads: int = 16
    """Number of the decoder's attention heads."""

    def __post_init__(self) -> None:
        """Refuse what can't be masked (ConfigError)."""
        if self.vision.timm_model:
            raise ConfigError(
                f"vision.timm_model was {self.vision.timm_model!r}",
                expected="a ViT by width and layers: others have no patches to leave out",
                action="leave timm_model empty",
            )
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(
                f"mask_ratio was {self.mask_ratio}",
                expected="above 0 and below 1",
                action="use 0.75, the paper's",
            )
