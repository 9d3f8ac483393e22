"""CLIP and CoCa from a config, built of open_clip's modules.

Shapes: B batch, T text length, D embedding width, N image tokens, V vocabulary.
"""

import dataclasses
import math
from dataclasses import replace
from typing import Any, Literal

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.models.tokenizer import CLIP_VOCAB_SIZE, Tokenizer

Activation = Literal["gelu", "quick_gelu"]
MAX_LOGIT_SCALE = math.log(100)  # CLIP's clamp (Radford et al. 2021)
# OpenAI CLIP's image statistics, open_clip's default for every tower but MobileCLIP's.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
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
    """Whether a ViT's tokens are normalised before the first block: CLIP's are, MAE's aren't."""
    mlp_ratio: float = 4.0
    """Width of a ViT's MLP, as a multiple of its tokens' width."""
    activation: Activation = "gelu"
    """Activation of a ViT's MLP; OpenAI's, DFN's and MetaCLIP's weights need ``quick_gelu``. A timm
    model has its own."""
    head: Literal["projection", "classifier"] = "projection"
    """How a timm model reaches the embedding: a projection of the pooled features, or the model's
    own classifier (MobileCLIP)."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Mean of the images that the tower reads, by channel, in 0..1."""
    std: tuple[float, float, float] = CLIP_STD
    """Their standard deviation, by channel."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
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
    """Whether a token sees only those before it; MobileCLIP's see all."""
    activation: Activation = "gelu"
    """Activation of the MLPs; that of a ViT beside it is the same."""

    def tokenizer(self, *, is_padded: bool = False) -> Tokenizer:
        """The tokenizer whose ids this tower reads; ``is_padded`` always fills the context."""
        return Tokenizer(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            is_trimmed=self.is_causal and not is_padded,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig(Config):
    """A pair of towers with one embedding space; the defaults are ViT-B/16."""

    embed_dim: int = 512
    """Width of the shared embedding."""
    vision: VisionConfig = VisionConfig()
    """The image tower."""
    text: TextConfig = TextConfig()
    """The text tower."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """What similarities are made for; ``sigmoid`` adds a learnable bias to them (SigLIP, Zhai et
    al. 2023)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TowerOptions(Config):
    """How towers are run in training; their weights fit any choice."""

    patch_dropout: float = 0.0
    """Share of an image's patches that a step leaves out (FLIP, Li et al. 2023)."""
    gradient_checkpointing: bool = False
    """Whether blocks run again in the backward pass, to save their activations' memory."""

    def __post_init__(self) -> None:
        """Refuse a share out of range (ConfigError)."""
        if not 0 <= self.patch_dropout < 1:
            raise ConfigError(
                f"patch_dropout was {self.patch_dropout}",
                expected="at least 0 and below 1",
                action="use 0.5 to 0.75, or 0 for none",
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
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


def build_clip(config: ClipConfig, options: TowerOptions = TowerOptions()) -> Any:
    """A :class:`~clipmill.models.clip.Clip` of the config's towers.

    Raises:
        ConfigError: the image tower has no patches to drop.
    """
    from clipmill.models.clip import Clip

    sigmoid = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}  # SigLIP, section 3.2
    try:
        model = Clip(
            embed_dim=config.embed_dim,
            vision_cfg=vision_kwargs(config.vision) | {"patch_dropout": options.patch_dropout},
            text_cfg=text_kwargs(config.text),
            quick_gelu=config.text.activation == "quick_gelu",
            output_dict=True,
            **(sigmoid if config.loss == "sigmoid" else {}),
        )
    except TypeError as error:
        if "patch_drop" not in str(error):
            raise
        raise ConfigError(
            f"patch_dropout was {options.patch_dropout}, and {config.vision.timm_model} has no "
            "patches to drop",
            expected="0 for such a tower",
            action="set towers.patch_dropout=0.0",
        ) from error
    if options.gradient_checkpointing:
        model.set_grad_checkpointing()
    return model


def build_coca(config: CocaConfig) -> Any:
    """open_clip's CoCa; its forward gives ``logits`` (B, T-1, V) and ``labels`` (B, T-1).

    open_clip has image tokens from ViTs only; a timm tower's come from :class:`TimmTokens`.
    """
    from open_clip.coca_model import CoCa
    from torch import nn

    from clipmill.models.timm_tokens import TimmTokens

    # The text tower appends a class token of its own after the context.
    text = text_kwargs(config.clip.text) | {"embed_cls": True, "output_tokens": True}
    model = CoCa(
        embed_dim=config.clip.embed_dim,
        vision_cfg=vision_kwargs(replace(config.clip.vision, timm_model=""))
        | {
            "attentional_pool": True,
            "attn_pooler_queries": config.num_queries,
            "attn_pooler_heads": config.clip.text.heads,
            "output_tokens": True,
        },
        text_cfg=text,
        multimodal_cfg={
            "context_length": text["context_length"],
            "vocab_size": config.clip.text.vocab_size,
            "width": config.clip.text.width,
            "heads": config.clip.text.heads,
            "layers": config.decoder_layers,
        },
    )
    # open_clip leaves it as the memory was.
    nn.init.normal_(model.text_decoder.text_projection, std=config.clip.text.width**-0.5)
    if config.clip.vision.timm_model:
        model.visual = TimmTokens(
            config.clip.vision.timm_model,
            image_size=config.clip.vision.image_size,
            stride=config.token_stride,
            width=config.clip.text.width,
            embed_dim=config.clip.embed_dim,
        )
    return model


def vision_kwargs(config: VisionConfig) -> dict[str, Any]:
    """The image tower in open_clip's words."""
    kwargs: dict[str, Any] = {"image_size": config.image_size}
    if config.timm_model:
        names: dict[str, Any] = {"timm_model_name": config.timm_model, "timm_pool": "avg"}
        return kwargs | names | ({"timm_proj": None} if config.head == "classifier" else {})
    return kwargs | {
        "patch_size": config.patch_size,
        "width": config.width,
        "layers": config.layers,
        "head_width": config.head_width,
        "mlp_ratio": config.mlp_ratio,
        "no_ln_pre": not config.has_input_norm,
    }


def text_kwargs(config: TextConfig) -> dict[str, Any]:
    """The text tower in open_clip's words."""
    return {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.width,
        "heads": config.heads,
        "layers": config.layers,
        "no_causal_mask": not config.is_causal,
    }
