"""Generate captions with a CoCa: beam search or sampling with a key-value cache, and scores.

open_clip's ``generate`` recomputes both text transformers over the whole text for each new token.
Here keys and values of earlier tokens are cached, and those of the image are computed once for all
texts about it; the results are equal up to rounding.

Shapes: B images, R texts or beams per image, N = B * R texts, T text length, V vocabulary, K kept
tokens, M image tokens, D width, H heads.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipmill.data.captioners.config import MIN_TOKENS, GenerateConfig
from clipmill.errors import ArtifactError
from clipmill.models.coca import encode_image, predict_tokens
from clipmill.models.encoders import Normalize
from clipmill.models.tokenizer import Tokenizer

# Advances each beam: tokens (N,) and, after the first step, parents (N,) to logits (N, V).
Step = Callable[[Tensor, Tensor | None], Tensor]


class CocaWithKVCache:
    """CoCa that extends R texts per image of a batch, one token at a time."""

    def __init__(
        self, coca: Any, image_embs_BMD: Tensor, *, texts_per_image: int, max_tokens: int
    ) -> None:
        self._text = coca.text
        self._decoder = coca.text_decoder
        self._texts_per_image = texts_per_image
        self._tokens_NT = torch.empty(
            len(image_embs_BMD) * texts_per_image, 0, dtype=torch.long, device=image_embs_BMD.device
        )
        self._text_cache = [_KVCache(max_tokens) for _ in self._text.transformer.resblocks]
        self._decoder_cache = [_KVCache(max_tokens) for _ in self._decoder.resblocks]
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
        visible_N11T = self._attention_mask(self._tokens_NT)[:, None, None]
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

    def _attention_mask(self, text_NT: Tensor) -> Tensor:
        """Return which tokens (N, T) the text tower attends to.

        In published CoCas the mask that hides padding is shifted right by one token (open_clip,
        ``correct_cls_mask``); clipmill's are trained the same way.
        """
        valid_NT: Tensor = text_NT != self._text.pad_id
        if self._text.correct_cls_mask:
            return valid_NT
        return torch.cat([torch.ones_like(valid_NT[:, :1]), valid_NT[:, :-1]], dim=1)


class CaptionGenerator:
    """Generates captions and their scores from pixels."""

    def __init__(
        self,
        coca: Any,
        tokenizer: Tokenizer,
        normalize: Normalize,
        config: GenerateConfig,
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._coca = coca.to(self._device).eval()
        self._normalize = normalize.to(self._device)
        self._tokenizer = tokenizer
        self._config = config

    @torch.inference_mode()
    def generate(
        self, pixels_BHW3: NDArray[np.uint8], seeds: Sequence[int]
    ) -> list[list[tuple[str, float]]]:
        """Return each image's captions with the mean log probability of their tokens."""
        images_B3HW = torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2).to(self._device)
        with self._autocast():
            images_B3HW = self._normalize(images_B3HW.float() / 255)
            _, image_BMD = encode_image(self._coca, images_B3HW)
            if self._config.method == "beam_search":
                tokens_NT = self._beam_search(image_BMD)
            else:
                tokens_NT = self._sample(image_BMD, seeds)
            scores_N = self._score(image_BMD, tokens_NT)
        if not scores_N.isfinite().all():
            raise ArtifactError(
                "the captioner's predictions aren't finite numbers",
                expected="whole weights, in an arithmetic that is wide enough for them",
                action="set generate.precision=fp32; if that doesn't help, use other weights",
            )
        texts = [self._tokenizer.decode(tokens) for tokens in tokens_NT.cpu()]
        count = len(texts) // len(pixels_BHW3)
        scored = list(zip(texts, scores_N.tolist(), strict=True))
        return [scored[start : start + count] for start in range(0, len(scored), count)]

    def _autocast(self) -> AbstractContextManager[Any]:
        precision = self._config.precision
        if precision == "bf16" or (precision == "auto" and self._device.type == "cuda"):
            return torch.autocast(self._device.type, torch.bfloat16)
        return nullcontext()

    def _beam_search(self, image_BMD: Tensor) -> Tensor:
        config, ids = self._config, self._tokenizer
        num_beams = config.num_beams // config.num_beam_groups
        return beam_search(
            self._cached(image_BMD, num_beams).step,
            num_images=len(image_BMD),
            num_beams=num_beams,
            start_id=ids.start_id,
            end_id=ids.end_id,
            pad_id=ids.pad_id,
            min_tokens=MIN_TOKENS,
            max_tokens=config.max_tokens,
            device=self._device,
        )

    def _sample(self, image_BMD: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return token ids (N, T); each text depends on its own image's seed alone."""
        config, ids = self._config, self._tokenizer
        shape = (config.num_captions, config.max_tokens)
        uniform = np.concatenate([np.random.default_rng(seed).random(shape) for seed in seeds])
        u_NT = torch.from_numpy(uniform).to(self._device)
        text_NT = torch.full((len(uniform), 1), ids.start_id, device=self._device)
        done_N = torch.zeros(len(uniform), dtype=torch.bool, device=self._device)
        cached = self._cached(image_BMD, config.num_captions)
        for length in range(1, config.max_tokens):
            logits_NV = cached.step(text_NT[:, -1]).float()
            if length < MIN_TOKENS:
                logits_NV[:, ids.end_id] = -torch.inf
            next_N = sample_token(logits_NV, u_NT[:, length], config)
            if length == config.max_tokens - 1:
                next_N = torch.full_like(next_N, ids.end_id)
            next_N = torch.where(done_N, ids.pad_id, next_N)
            text_NT = torch.cat([text_NT, next_N[:, None]], dim=1)
            done_N |= (next_N == ids.end_id) | (next_N == ids.pad_id)
            if done_N.all():
                break
        return text_NT

    def _cached(self, image_BMD: Tensor, texts_per_image: int) -> CocaWithKVCache:
        return CocaWithKVCache(
            self._coca,
            image_BMD,
            texts_per_image=texts_per_image,
            max_tokens=self._config.max_tokens,
        )

    def _score(self, image_BMD: Tensor, tokens_NT: Tensor) -> Tensor:
        """Return the mean log probability (N,) of the tokens after the start, without padding."""
        count = len(tokens_NT) // len(image_BMD)
        logits = predict_tokens(self._coca, image_BMD.repeat_interleave(count, dim=0), tokens_NT)
        next_NT = tokens_NT[:, 1:]
        said_NT = next_NT != self._tokenizer.pad_id
        loss_NT = F.cross_entropy(logits.float().transpose(1, 2), next_NT, reduction="none")
        return -(loss_NT * said_NT).sum(1) / said_NT.sum(1).clamp(min=1)


def sample_token(logits_NV: Tensor, u_N: Tensor, config: GenerateConfig) -> Tensor:
    """Return a token (N,) per row: ``u_N`` in [0, 1) selects one of the kept tokens.

    Tokens are kept or dropped before the temperature is applied, as in open_clip.
    """
    if config.method == "top_k" and config.top_k == 1:
        return logits_NV.argmax(-1)
    if config.method == "top_k":
        kept_NK, tokens_NK = logits_NV.topk(min(config.top_k, logits_NV.shape[1]))
    else:
        kept_NK, tokens_NK = logits_NV.sort(descending=True, stable=True)
        probability_NK = kept_NK.softmax(-1)
        before_NK = probability_NK.cumsum(-1) - probability_NK
        kept_NK = kept_NK.masked_fill(before_NK >= config.top_p, -torch.inf)
    up_to_NK = (kept_NK / config.temperature).double().softmax(-1).cumsum(-1)
    place_N1 = torch.searchsorted(up_to_NK, (u_N * up_to_NK[:, -1])[:, None], right=True)
    return tokens_NK.gather(1, place_N1.clamp(max=tokens_NK.shape[1] - 1))[:, 0]


class _KVCache:
    """Keys and values (N, H, T, D / H) of the tokens so far, preallocated for all."""

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
    block: Any, x_N1D: Tensor, cache: _KVCache, at: int, visible: Tensor | None
) -> Tensor:
    normed = block.ln_1(x_N1D)
    key, value = cache.add(*_key_value(block, normed), at)
    return _finish(block, x_N1D, _project(block, normed, 0), key, value, visible)


def _finish(
    block: Any, x: Tensor, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None
) -> Tensor:
    """Apply the rest of open_clip's ResidualAttentionBlock to queries, keys and values."""
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    finished: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return finished


def _query(block: Any, x: Tensor) -> Tensor:
    return _project(block, block.ln_1(x), 0)


def _key_value(block: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    return _project(block, normed, 1), _project(block, normed, 2)


def _project(block: Any, x: Tensor, part: int) -> Tensor:
    """Return part 0, 1, 2 of the input projection: queries, keys, values (N, H, T, D / H)."""
    weight = block.attn.in_proj_weight.chunk(3)[part]
    bias = block.attn.in_proj_bias.chunk(3)[part]
    projected = F.linear(x, weight, bias)
    count, length, width = projected.shape
    heads: int = block.attn.num_heads
    return projected.view(count, length, heads, width // heads).transpose(1, 2)


def beam_search(
    step: Step,
    *,
    num_images: int,
    num_beams: int,
    start_id: int,
    end_id: int,
    pad_id: int,
    min_tokens: int,
    max_tokens: int,
    device: torch.device,
) -> Tensor:
    """Return each image's best text: token ids (B, T), start and end included, then ``pad_id``.

    This is the search of open_clip's ``CoCa.generate``, up to its version 3.3. It differs from the
    textbook's in two ways, on which captions published with it depend: a text's score is the sum of
    its tokens' *logits*, not of their log probabilities, divided by its length; and groups of beams
    don't interact (open_clip has no diversity penalty), so all find the same texts, and one group
    is searched here.

    No text ends before ``min_tokens``; at ``max_tokens`` it is cut without an end.
    """
    first_B1 = torch.arange(num_images, device=device)[:, None] * num_beams
    text_NT = torch.full((num_images * num_beams, 1), start_id, device=device)
    # All beams begin as one.
    score_BK = torch.full((num_images, num_beams), -1e9, device=device)
    score_BK[:, 0] = 0.0
    finished = _FinishedTexts(num_images, num_beams, max_tokens, pad_id, device)
    done_B = torch.zeros(num_images, dtype=torch.bool, device=device)
    parent_N: Tensor | None = None
    while text_NT.shape[1] < max_tokens and not done_B.all():
        length = text_NT.shape[1] + 1
        logits_NV = step(text_NT[:, -1], parent_N).float()
        if length <= min_tokens:
            logits_NV[:, end_id] = -torch.inf
        vocab_size = logits_NV.shape[1]
        scores_BKV = score_BK[:, :, None] + logits_NV.view(num_images, num_beams, vocab_size)
        # At most one ending per beam, so that the number of live beams stays the same.
        top_BJ, place_BJ = scores_BKV.flatten(1).topk(2 * num_beams)
        parent_BJ, token_BJ = first_B1 + place_BJ // vocab_size, place_BJ % vocab_size
        ends_BJ = token_BJ == end_id
        for rank in range(num_beams):
            text_BT = torch.cat([text_NT[parent_BJ[:, rank]], token_BJ[:, rank, None]], dim=1)
            finished.add(text_BT, top_BJ[:, rank].double() / length, ends_BJ[:, rank] & ~done_B)
        done_B = done_B | finished.is_complete(top_BJ[:, 0].double() / length)
        going_BK = ends_BJ.byte().argsort(dim=1, stable=True)[:, :num_beams]
        score_BK = top_BJ.gather(1, going_BK)
        parent_N = parent_BJ.gather(1, going_BK).flatten()
        token_N = token_BJ.gather(1, going_BK).flatten()
        text_NT = torch.cat([text_NT[parent_N], token_N[:, None]], dim=1)
    length = text_NT.shape[1]
    for beam in range(num_beams):
        text_BT = text_NT.view(num_images, num_beams, length)[:, beam]
        finished.add(text_BT, score_BK[:, beam].double() / length, ~done_B)
    return finished.best()[:, :length]


class _FinishedTexts:
    """The best finished texts of each image so far."""

    def __init__(
        self, num_images: int, num_beams: int, max_tokens: int, pad_id: int, device: torch.device
    ) -> None:
        self._text_BKT = torch.full((num_images, num_beams, max_tokens), pad_id, device=device)
        self._score_BK = torch.full(
            (num_images, num_beams), -torch.inf, dtype=torch.float64, device=device
        )
        self._rows_B = torch.arange(num_images, device=device)
        self._pad_id = pad_id

    def add(self, text_BT: Tensor, score_B: Tensor, wanted_B: Tensor) -> None:
        """Replace the worst text where ``wanted_B`` and the new one is better."""
        worst_B, place_B = self._score_BK.min(dim=1)
        better_B = wanted_B & (score_B > worst_B)
        rows_b, place_b = self._rows_B[better_B], place_B[better_B]
        self._text_BKT[rows_b, place_b] = self._pad_id
        self._text_BKT[rows_b, place_b, : text_BT.shape[1]] = text_BT[better_B]
        self._score_BK[rows_b, place_b] = score_B[better_B]

    def is_complete(self, attainable_B: Tensor) -> Tensor:
        """Return whether (B,) all texts are finished and no live one can be better."""
        worst_B = self._score_BK.min(dim=1).values
        return worst_B.isfinite() & (worst_B >= attainable_B)

    def best(self) -> Tensor:
        """Return the best text (B, max_tokens) of each image."""
        return self._text_BKT[self._rows_B, self._score_BK.argmax(dim=1)]
