"""Configs of the architectures: image and text towers, CLIP, CoCa, MAE, RangeAugment.

They import neither torch nor a sibling, so that recipes and commands can read them quickly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from clipmill.config import Config
from clipmill.errors import ConfigError

# OpenAI CLIP's vocabulary (Radford et al. 2021).
CLIP_VOCAB_SIZE = 49408
Activation = Literal["gelu", "quick_gelu"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
# OpenAI CLIP's image statistics, open_clip's default for every tower but MobileCLIP's.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig(Config):
    """An image tower: a ViT of the given size, or any timm model by name."""

    image_size: int = 224
    """Side of the square input, pixels."""
    patch_size: int = 16
    """Side of a ViT's patch, pixels."""
    width: int = 768
    """Width of a ViT's tokens."""
    layers: int = 12
    """Number of a ViT's blocks."""
    head_width: int = 64
    """Width of an attention head."""
    timm_model: str = ""
    """Name of a timm model that replaces the ViT; empty for the ViT."""
    has_input_norm: bool = True
    """Normalize a ViT's tokens before the first block, as CLIP does and MAE doesn't."""
    mlp_ratio: float = 4.0
    """Width of a ViT's MLP, as a multiple of its tokens' width."""
    activation: Activation = "gelu"
    """Activation of a ViT's MLP; OpenAI's, DFN's and MetaCLIP's weights need ``quick_gelu``. A timm
    model has its own."""
    timm_args: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments of ``timm.create_model`` that make another model of ``timm_model``'s."""
    pool: str = ""
    """Pooling of a timm model (timm's ``global_pool``), ``default`` for the model's own; empty for
    the mean under a projection, and for the model's own where there is none."""
    head: Literal["projection", "mlp", "classifier", "none"] = "projection"
    """Layer between a timm model's features and the embedding: a projection or an MLP of the pooled
    features, the model's own classifier (MobileCLIP), or none (SigLIP)."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Mean of the images that the tower reads, by channel, in 0..1."""
    std: tuple[float, float, float] = CLIP_STD
    """Their standard deviation, by channel."""
    interpolation: Interpolation = "bicubic"
    """Interpolation of the resizing to ``image_size``."""
    resize: Literal["center", "shortest", "squash"] = "center"
    """Part of the image that becomes the square of ``image_size``: the central square, the center
    after the shorter side was resized to it (open_clip's ``shortest``), or the full image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig(Config):
    """A text transformer."""

    context_length: int = 77
    """Longest text, tokens (CLIP-QC, Table 11)."""
    vocab_size: int = CLIP_VOCAB_SIZE
    """Number of tokens; fewer keep the most frequent merges."""
    width: int = 512
    """Width of tokens."""
    heads: int = 8
    """Number of attention heads."""
    layers: int = 12
    """Number of blocks."""
    is_causal: bool = True
    """Let a token see only those before it; MobileCLIP's see all."""
    activation: Activation = "gelu"
    """Activation of the MLPs; that of a ViT next to it must be the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig(Config):
    """A pair of towers with one embedding space; the defaults are ViT-B/16."""

    embed_dim: int = 512
    """Width of the shared embedding."""
    vision: VisionConfig = VisionConfig()
    """The image tower."""
    text: TextConfig = TextConfig()
    """The text tower."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Loss of the similarities; ``sigmoid`` adds a learnable bias (SigLIP, Zhai et al. 2023)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerOptions(Config):
    """Options of the towers in training; the weights fit any choice."""

    patch_dropout: float = 0.0
    """Share of an image's patches that a step leaves out (FLIP, Li et al. 2023)."""
    gradient_checkpointing: bool = False
    """Run blocks again in the backward pass, to save their activations' memory."""

    def __post_init__(self) -> None:
        """Refuse a share out of range (ConfigError)."""
        if not 0 <= self.patch_dropout < 1:
            raise ConfigError(
                f"patch_dropout was {self.patch_dropout}",
                expected="at least 0 and below 1",
                action="use 0.5 to 0.75, or 0 for none",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CocaConfig(Config):
    """CLIP's towers with a multimodal decoder that writes captions (CoCa, Yu et al. 2022)."""

    clip: ClipConfig = ClipConfig()
    """The two towers."""
    decoder_layers: int = 12
    """Number of the multimodal decoder's blocks."""
    num_queries: int = 256
    """Number of image tokens that a ViT's attentional pooler hands to the decoder."""
    token_stride: int = 16
    """Stride of a timm tower's map whose places are the image tokens, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig(Config):
    """A pretrained image tower to build an encoder from."""

    vision: VisionConfig = VisionConfig()
    """The tower as it was pretrained."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Mean of the images that it was pretrained on, by channel, in 0..1."""
    std: tuple[float, float, float] = CLIP_STD
    """Their standard deviation, by channel."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeAugmentConfig(Config):
    """Strength of RangeAugment (Mehta et al. 2022), as a distance from the original images."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "start_psnr_decibels": "psnr_start_db",
        "end_psnr_decibels": "psnr_end_db",
        "chance": "prob",
    }

    psnr_start_db: float = 40.0
    """Target at the first step (CLIP-QC, Table 11)."""
    psnr_end_db: float = 20.0
    """Target at the last step (CLIP-QC, Table 11)."""
    weight: float = 100.0
    """Of the loss, which is over squared errors in units of 255 squared (ml-cvnets)."""
    prob: float = 0.5
    """Share of a batch that each operator is applied to (ml-cvnets)."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name in ("psnr_start_db", "psnr_end_db"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="above 0",
                    action=f"set {name} to a number above 0",
                )
        if not 0 <= self.prob <= 1:
            raise ConfigError(
                f"prob was {self.prob}",
                expected="from 0 to 1",
                action="set prob to a number from 0 to 1",
            )
