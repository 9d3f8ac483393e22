"""CoCa, open_clip's modules with clipmill's forward pass; and a timm model as its image tower.

open_clip's own forward pass returns logits that are shifted against their labels by one token up to
version 3.3, and logits that the caller must shift from 4 on.

Shapes: B batch, T text length, D embedding width, M image tokens, W their width, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from clipmill.errors import ConfigError
from clipmill.models.config import CocaConfig
from clipmill.models.towers import check_towers, text_kwargs, vision_kwargs


@dataclass(frozen=True, kw_only=True, slots=True)
class CocaOutput:
    """CoCa's embeddings and predictions for images with their texts."""

    image_BD: Tensor
    """Unit embeddings of the images."""
    text_BD: Tensor
    """Unit embeddings of the texts."""
    logits_BTV: Tensor
    """Predictions, T - 1 of them: ``logits[:, t]`` is of token ``t + 1``, and has seen none after
    token ``t``."""


def coca_forward(coca: Any, images_B3HW: Tensor, tokens_BT: Tensor) -> CocaOutput:
    """Return the embeddings, and the predictions of each text's tokens but the first."""
    image_BD, image_BMW = encode_image(coca, images_B3HW)
    text_BD, text_BTW = coca._encode_text(tokens_BT)  # noqa: SLF001  # it has no other name
    logits_BTV = coca.text_decoder(image_BMW, text_BTW[:, :-1])
    return CocaOutput(image_BD=image_BD, text_BD=text_BD, logits_BTV=logits_BTV)


def encode_image(coca: Any, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit embeddings (B, D) of images, and their tokens (B, M, W) for the decoder."""
    image_BD, image_BMW = coca._encode_image(images_B3HW)  # noqa: SLF001  # it has no other name
    return image_BD, image_BMW


def predict_tokens(coca: Any, image_BMW: Tensor, tokens_BT: Tensor) -> Tensor:
    """Return logits (B, T - 1, V) of each text's tokens but the first, given the image's tokens."""
    _, text_BTW = coca._encode_text(tokens_BT[:, :-1])  # noqa: SLF001  # it has no other name
    logits_BTV: Tensor = coca.text_decoder(image_BMW, text_BTW)
    return logits_BTV


class TimmTokenEncoder(nn.Module):
    """timm model as CoCa's image tower: (B, 3, H, W) to pooled (B, D) and tokens (B, M, W)."""

    def __init__(
        self, name: str, *, image_size: int, stride: int, width: int, embed_dim: int
    ) -> None:
        """Build the model with fresh weights.

        Raises:
            ConfigError: the model has no map of that stride.
        """
        import timm

        super().__init__()
        self.trunk = timm.create_model(name, num_classes=0)
        strides = [stage["reduction"] for stage in self.trunk.feature_info]
        if stride not in strides:
            raise ConfigError(
                f"{name} has no map of stride {stride}",
                expected=f"one of {', '.join(map(str, strides))}",
                action="change token_stride",
            )
        self._index = len(strides) - 1 - strides[::-1].index(stride)
        # Nothing above the map is run, so nothing above it is kept.
        self.trunk.prune_intermediate_layers([self._index], prune_norm=True)
        side = image_size // stride
        self.to_tokens = nn.Linear(self.trunk.feature_info[self._index]["num_chs"], width)
        self.positions = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.norm = nn.LayerNorm(width)
        self.to_embedding = nn.Linear(width, embed_dim, bias=False)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean token, projected, and the tokens."""
        (map_BChw,) = self.trunk.forward_intermediates(
            images_B3HW, indices=[self._index], intermediates_only=True
        )
        tokens_BMW = self.to_tokens(map_BChw.flatten(2).transpose(1, 2)) + self.positions
        tokens_BMW = self.norm(tokens_BMW)
        return self.to_embedding(tokens_BMW.mean(dim=1)), tokens_BMW


def build_coca(config: CocaConfig) -> Any:
    """Build open_clip's CoCa.

    open_clip has image tokens from ViTs only; a timm tower's come from :class:`TimmTokenEncoder`.
    """
    from open_clip.coca_model import CoCa
    from torch import nn

    check_towers(config.clip)
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
        quick_gelu=config.clip.text.activation == "quick_gelu",
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
        model.visual = TimmTokenEncoder(
            config.clip.vision.timm_model,
            image_size=config.clip.vision.image_size,
            stride=config.token_stride,
            width=config.clip.text.width,
            embed_dim=config.clip.embed_dim,
        )
    return model
