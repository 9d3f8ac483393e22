"""CoCa for decoding: each image is encoded once, and each token is computed once.

open_clip's ``generate`` encodes an image once a beam, and runs both text transformers over the
whole text again for each new token. Here keys and values of earlier tokens are kept, and those of
the image are computed once for all texts about it. Beam search is open_clip's own, which asks
:class:`CachedCoca` in place of CoCa; the numbers are the same up to rounding.

Shapes: B images, R texts an image, N = B * R texts, T text length, M image tokens, D width,
H heads, V vocabulary.
"""

from typing import TYPE_CHECKING, Any

import torch
from open_clip.coca_model import CoCa
from torch import Tensor, nn
from torch.nn import functional as F

# open_clip's classes are untyped.
if TYPE_CHECKING:
    _Coca = nn.Module
else:
    _Coca = CoCa


class CachedCoca(_Coca):
    """A CoCa for decoding R texts an image, in steps of one token.

    It shares the modules of ``coca``. A call with texts of one token begins anew; later calls need
    the texts of the call before, each longer by one token, in any order within an image.
    """

    def __init__(self, coca: Any, *, texts_per_image: int, max_tokens: int) -> None:
        # CoCa's own would build its towers anew.
        nn.Module.__init__(self)
        self.visual = _EncodeOnce(coca.visual, texts_per_image)
        self.text = coca.text
        self.text_decoder = coca.text_decoder
        self.logit_scale = coca.logit_scale
        self.pad_id = coca.pad_id
        self._texts_per_image = texts_per_image
        self._max_tokens = max_tokens
        self._before_NT = torch.empty(0, 0)
        self._text_cache: list[_Cache] = []
        self._decoder_cache: list[_Cache] = []
        self._image_cache: list[tuple[Tensor, Tensor]] = []

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_latent: Tensor,
        image_embs: Tensor,
        output_labels: bool = False,
    ) -> dict[str, Tensor]:
        """``logits`` (N, 1, V) of the token after ``text`` (N, T); ``image_embs`` is (B, M, D)."""
        del image, image_latent, output_labels
        at = text.shape[1] - 1
        if at == 0:
            self._begin(image_embs)
        else:
            self._follow(text[:, :-1])
        self._before_NT = text.clone()
        tower = self.text
        dtype = tower.transformer.get_cast_dtype()
        x_N1D = tower.token_embedding(text[:, -1:]).to(dtype) + tower.positional_embedding[at].to(
            dtype
        )
        visible_N11T = self._visible(text)[:, None, None]
        for block, cache in zip(tower.transformer.resblocks, self._text_cache, strict=True):
            x_N1D = _self_attention(block, x_N1D, cache, at, visible_N11T)
        decoder = self.text_decoder
        for block, cache, cross, (key, value) in zip(
            decoder.resblocks,
            self._decoder_cache,
            decoder.cross_attn,
            self._image_cache,
            strict=True,
        ):
            x_N1D = _self_attention(block, x_N1D, cache, at, None)
            x_BRD = x_N1D.view(key.shape[0], self._texts_per_image, -1)
            x_N1D = _finish(cross, x_BRD, _query(cross, x_BRD), key, value, None).view_as(x_N1D)
        return {"logits": decoder.ln_final(x_N1D) @ decoder.text_projection}

    def _begin(self, image_embs_BMD: Tensor) -> None:
        self._text_cache = [_Cache(self._max_tokens) for _ in self.text.transformer.resblocks]
        self._decoder_cache = [_Cache(self._max_tokens) for _ in self.text_decoder.resblocks]
        self._image_cache = [
            _key_value(cross, cross.ln_1_kv(image_embs_BMD))
            for cross in self.text_decoder.cross_attn
        ]

    def _follow(self, text_NT: Tensor) -> None:
        """Reorder the caches as a beam search has reordered its texts."""
        if torch.equal(text_NT, self._before_NT):
            return
        count, length = text_NT.shape
        shape = (count // self._texts_per_image, self._texts_per_image, length)
        now, before = text_NT.view(shape), self._before_NT.view(shape)
        # A search that is done with an image fills its beams with anything, and never looks again.
        parent_BR = (now[:, :, None] == before[:, None]).all(-1).to(torch.uint8).argmax(-1)
        first_B1 = torch.arange(0, count, self._texts_per_image, device=text_NT.device)[:, None]
        parent_N = (parent_BR + first_B1).flatten()
        for cache in (*self._text_cache, *self._decoder_cache):
            cache.reorder(parent_N)

    def _visible(self, text_NT: Tensor) -> Tensor:
        """Which tokens (N, T) the text tower's attention sees, as its mask says.

        The mask that hides padding lies one place too far right in the CoCa that is published
        (open_clip, ``correct_cls_mask``), and ours are trained alike.
        """
        valid_NT: Tensor = text_NT != self.text.pad_id
        if self.text.correct_cls_mask:
            return valid_NT
        return torch.cat([torch.ones_like(valid_NT[:, :1]), valid_NT[:, :-1]], dim=1)


class _EncodeOnce(nn.Module):
    """An image tower that is handed every image R times, and encodes it once."""

    def __init__(self, visual: nn.Module, copies: int) -> None:
        super().__init__()
        self.visual = visual
        self._copies = copies

    def forward(self, images: Tensor) -> Any:
        return self.visual(images[:: self._copies])


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
