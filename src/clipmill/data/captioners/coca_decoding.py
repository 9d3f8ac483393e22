"""From pixels to captions with CoCa: beam search and sampling, and the captions' scores.

Shapes: B images, R texts an image, N = B * R texts, T text length, V vocabulary, K kept tokens,
M image tokens, D their width.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipmill.data.captioners.beam_search import beam_search
from clipmill.data.captioners.coca import MIN_TOKENS, GenerateConfig
from clipmill.data.captioners.coca_cache import CachedCoca
from clipmill.errors import ArtifactError
from clipmill.models.coca import encode_image, predict_tokens
from clipmill.models.normalization import Normalize
from clipmill.models.tokenizer import Tokenizer


class Decoder:
    """Captions and their scores from pixels."""

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
    def decode(
        self, pixels_BHW3: NDArray[np.uint8], seeds: Sequence[int]
    ) -> list[list[tuple[str, float]]]:
        """For each image its captions, each with the mean log probability of its tokens."""
        images_B3HW = torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2).to(self._device)
        with self._arithmetic():
            images_B3HW = self._normalize(images_B3HW.float() / 255)
            _, image_BMD = encode_image(self._coca, images_B3HW)
            if self._config.method == "beam_search":
                tokens_NT = self._search(image_BMD)
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
        found = list(zip(texts, scores_N.tolist(), strict=True))
        return [found[start : start + count] for start in range(0, len(found), count)]

    def _arithmetic(self) -> AbstractContextManager[Any]:
        wanted = self._config.precision
        if wanted == "bf16" or (wanted == "auto" and self._device.type == "cuda"):
            return torch.autocast(self._device.type, torch.bfloat16)
        return nullcontext()

    def _search(self, image_BMD: Tensor) -> Tensor:
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
        """Token ids (N, T), each text drawn by its own image's seed alone."""
        config, ids = self._config, self._tokenizer
        shape = (config.num_captions, config.max_tokens)
        drawn = np.concatenate([np.random.default_rng(seed).random(shape) for seed in seeds])
        u_NT = torch.from_numpy(drawn).to(self._device)
        text_NT = torch.full((len(drawn), 1), ids.start_id, device=self._device)
        done_N = torch.zeros(len(drawn), dtype=torch.bool, device=self._device)
        cached = self._cached(image_BMD, config.num_captions)
        for length in range(1, config.max_tokens):
            logits_NV = cached.step(text_NT[:, -1]).float()
            if length < MIN_TOKENS:
                logits_NV[:, ids.end_id] = -torch.inf
            next_N = draw(logits_NV, u_NT[:, length], config)
            if length == config.max_tokens - 1:
                next_N = torch.full_like(next_N, ids.end_id)
            next_N = torch.where(done_N, ids.pad_id, next_N)
            text_NT = torch.cat([text_NT, next_N[:, None]], dim=1)
            done_N |= (next_N == ids.end_id) | (next_N == ids.pad_id)
            if done_N.all():
                break
        return text_NT

    def _cached(self, image_BMD: Tensor, texts_per_image: int) -> CachedCoca:
        return CachedCoca(
            self._coca,
            image_BMD,
            texts_per_image=texts_per_image,
            max_tokens=self._config.max_tokens,
        )

    def _score(self, image_BMD: Tensor, tokens_NT: Tensor) -> Tensor:
        """Mean log probability (N,) of the tokens after the start, padding left out."""
        count = len(tokens_NT) // len(image_BMD)
        logits = predict_tokens(self._coca, image_BMD.repeat_interleave(count, dim=0), tokens_NT)
        next_NT = tokens_NT[:, 1:]
        said_NT = next_NT != self._tokenizer.pad_id
        loss_NT = F.cross_entropy(logits.float().transpose(1, 2), next_NT, reduction="none")
        return -(loss_NT * said_NT).sum(1) / said_NT.sum(1).clamp(min=1)


def draw(logits_NV: Tensor, u_N: Tensor, config: GenerateConfig) -> Tensor:
    """A token (N,) for each row, where ``u_N`` in [0, 1) falls among those that sampling keeps.

    Which are kept is decided before the temperature is applied, as in open_clip.
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
