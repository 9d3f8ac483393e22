"""CoCa's forward pass in training and scoring, whichever open_clip built the model.

open_clip's own hands out logits that were shifted against their labels by one token up to its
version 3.3, and logits that the caller must shift from 4 on.

Shapes: B batch, T text length, D embedding width, M image tokens, W their width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class CocaOutput:
    """What CoCa makes of images with their texts."""

    image_BD: Tensor
    """Unit embeddings of the images."""
    text_BD: Tensor
    """Unit embeddings of the texts."""
    logits_BTV: Tensor
    """Predictions, T - 1 of them: ``logits[:, t]`` is of token ``t + 1``, and has seen none after
    token ``t``."""


def coca_forward(coca: Any, images_B3HW: Tensor, tokens_BT: Tensor) -> CocaOutput:
    """Embeddings, and predictions of each text's tokens but the first."""
    image_BD, image_BMW = encode_image(coca, images_B3HW)
    text_BD, text_BTW = coca._encode_text(tokens_BT)  # noqa: SLF001  # it has no other name
    logits_BTV = coca.text_decoder(image_BMW, text_BTW[:, :-1])
    return CocaOutput(image_BD=image_BD, text_BD=text_BD, logits_BTV=logits_BTV)


def encode_image(coca: Any, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings (B, D) of images, and their tokens (B, M, W) for the decoder."""
    image_BD, image_BMW = coca._encode_image(images_B3HW)  # noqa: SLF001  # it has no other name
    return image_BD, image_BMW


def predict_tokens(coca: Any, image_BMW: Tensor, tokens_BT: Tensor) -> Tensor:
    """Logits (B, T - 1, V) of each text's tokens but the first, given the image's tokens."""
    _, text_BTW = coca._encode_text(tokens_BT[:, :-1])  # noqa: SLF001  # it has no other name
    logits_BTV: Tensor = coca.text_decoder(image_BMW, text_BTW)
    return logits_BTV
