"""CLIP and CoCa from a config, built of open_clip's modules.

Shapes: B batch, T text length, D embedding width, N image tokens, V vocabulary.
"""

import dataclasses
import math
from dataclasses import replace
from typing import Any

from clipmill.config import Config
from clipmill.models.tokenizer import CLIP_VOCAB_SIZE, Tokenizer

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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig(Config):
    """A causal text transformer."""

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

    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids this tower reads."""
        return Tokenizer(vocab_size=self.vocab_size, context_length=self.context_length)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig(Config):
    """A pair of towers with one embedding space; the defaults are ViT-B/16."""

    embed_dim: int = 512
    """Width of the shared embedding."""
    vision: VisionConfig = VisionConfig()
    """The image tower."""
    text: TextConfig = TextConfig()
    """The text tower."""


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


def build_clip(config: ClipConfig) -> Any:
    """open_clip's CLIP: ``encode_image``, ``encode_text`` (both give (B, D)), ``logit_scale``."""
    import open_clip

    return open_clip.CLIP(
        embed_dim=config.embed_dim,
        vision_cfg=vision_kwargs(config.vision),
        text_cfg=config.text.to_json(),
        output_dict=True,
    )


def build_coca(config: CocaConfig) -> Any:
    """open_clip's CoCa; its forward gives ``logits`` (B, T-1, V) and ``labels`` (B, T-1).

    open_clip has image tokens from ViTs only; a timm tower's come from :class:`TimmTokens`.
    """
    from open_clip.coca_model import CoCa
    from torch import nn

    from clipmill.models.timm_tokens import TimmTokens

    # The text tower appends a class token of its own after the context.
    text = config.clip.text.to_json() | {"embed_cls": True, "output_tokens": True}
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
        return kwargs | {"timm_model_name": config.timm_model, "timm_pool": "avg"}
    return kwargs | {
        "patch_size": config.patch_size,
        "width": config.width,
        "layers": config.layers,
        "head_width": config.head_width,
    }
