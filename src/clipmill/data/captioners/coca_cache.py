"""CoCa for decoding: each image is encoded once, and each token is computed once.

open_clip's ``generate`` runs both text transformers over the whole text again for each new token.
Here keys and values of earlier tokens are kept, and those of the image are computed once for all
texts about it; the numbers are the same up to rounding.

Shapes: B images, R texts an image, N = B * R texts, T text length, M image tokens, D width,
H heads, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class CachedCoca:
    """Decodes R texts for each image of a batch with a CoCa, one token at a time."""

    def __init__(
        self, coca: Any, image_embs_BMD: Tensor, *, texts_per_image: int, max_tokens: int
    ) -> None:
        self._text = coca.text
        self._decoder = coca.text_decoder
        self._texts_per_image = texts_per_image
        self._tokens_NT = torch.empty(
            len(image_embs_BMD) * texts_per_image, 0, dtype=torch.long, device=image_embs_BMD.device
        )
        self._text_cache = [_Cache(max_tokens) for _ in self._text.transformer.resblocks]
        self._decoder_cache = [_Cache(max_tokens) for _ in self._decoder.resblocks]
        self._image_cache = [
            _key_value(cross, cross.ln_1_kv(image_embs_BMD)) for cross in self._decoder.cross_attn
        ]

    def step(self, token_N: Tensor, parent_N: Tensor | None = None) -> Tensor:
        """Append a token to each text; return the logits (N, V) of the token after it.

        With ``parent_N`` text n continues what was text ``parent_N[n]``, one of the same image.
        """
        if parent_N is not None:
            self._tokens_NT = self._tokens_NT[parent_N]
            for cache in (*self._text_cache, *self._decoder_cache):
                cache.reorder(parent_N)
        at = self._tokens_NT.shape[1]
        self._tokens_NT = torch.cat([self._tokens_NT, token_N[:, None]], dim=1)
        dtype = self._text.transformer.get_cast_dtype()
        x_N1D = self._text.token_embedding(token_N[:, None]).to(dtype)
        x_N1D = x_N1D + self._text.positional_embedding[at].to(dtype)
        visible_N11T = self._visible(self._tokens_NT)[:, None, None]
        for block, cache in zip(self._text.transformer.resblocks, self._text_cache, strict=True):
            x_N1D = _self_attention(block, x_N1D, cache, at, visible_N11T)
        for block, cache, cross, (key, value) in zip(
            self._decoder.resblocks,
            self._decoder_cache,
            self._decoder.cross_attn,
            self._image_cache,
            strict=True,
        ):
            x_N1D = _self_attention(block, x_N1D, cache, at, None)
            x_BRD = x_N1D.view(key.shape[0], self._texts_per_image, -1)
            x_N1D = _finish(cross, x_BRD, _query(cross, x_BRD), key, value, None).view_as(x_N1D)
        logits_N1V: Tensor = self._decoder.ln_final(x_N1D) @ self._decoder.text_projection
        return logits_N1V[:, 0]

    def _visible(self, text_NT: Tensor) -> Tensor:
        """Which tokens (N, T) the text tower's attention sees, as its mask says.

        The mask that hides padding lies one place too far right in the CoCa that is published
        (open_clip, ``correct_cls_mask``), and ours are trained alike.
        """
        valid_NT: Tensor = text_NT != self._text.pad_id
        if self._text.correct_cls_mask:
            return valid_NT
        return torch.cat([torch.ones_like(valid_NT[:, :1]), valid_NT[:, :-1]], dim=1)


class _Cache:
    """Keys and values (N, H, T, D / H) of the tokens so far, in room for all."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._key_value: Tensor | None = None

    def add(self, key: Tensor, value: Tensor, at: int) -> tuple[Tensor, Tensor]:
        if self._key_value is None:
            count, heads, _, width = key.shape
            self._key_value = key.new_empty(2, count, heads, self._max_tokens, width)
        self._key_value[0, :, :, at], self._key_value[1, :, :, at] = key[:, :, 0], value[:, :, 0]
        return self._key_value[0, :, :, : at + 1], self._key_value[1, :, :, : at + 1]

    def reorder(self, parent_N: Tensor) -> None:
        assert self._key_value is not None
        self._key_value = self._key_value[:, parent_N]


def _self_attention(
    block: Any, x_N1D: Tensor, cache: _Cache, at: int, visible: Tensor | None
) -> Tensor:
    normed = block.ln_1(x_N1D)
    key, value = cache.add(*_key_value(block, normed), at)
    return _finish(block, x_N1D, _project(block, normed, 0), key, value, visible)


def _finish(
    block: Any, x: Tensor, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None
) -> Tensor:
    """The rest of open_clip's ResidualAttentionBlock, once queries, keys and values are there."""
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    x = x + block.ls_1(block.attn.out_proj(found.transpose(1, 2).flatten(2)))
    finished: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return finished


def _query(block: Any, x: Tensor) -> Tensor:
    return _project(block, block.ln_1(x), 0)


def _key_value(block: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    return _project(block, normed, 1), _project(block, normed, 2)


def _project(block: Any, x: Tensor, part: int) -> Tensor:
    """Part 0, 1, 2 of the input projection: queries, keys, values (N, H, T, D / H)."""
    weight = block.attn.in_proj_weight.chunk(3)[part]
    bias = block.attn.in_proj_bias.chunk(3)[part]
    found = F.linear(x, weight, bias)
    count, length, width = found.shape
    heads: int = block.attn.num_heads
    return found.view(count, length, heads, width // heads).transpose(1, 2)
