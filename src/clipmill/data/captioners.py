"""Captioners: pictures in, captions out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from clipmill.config import Config
from clipmill.data.augmentation import center_resize
from clipmill.errors import ArtifactError, ConfigError
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.towers import CocaConfig, build_coca
from clipmill.storage import Parent

# open_clip's ``generate`` lets no caption end before this many.
_MIN_TOKENS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig(Config):
    """How captions are drawn from a CoCa, by open_clip's ``generate``."""

    method: Literal["beam_search", "top_p", "top_k"] = "beam_search"
    """Deterministic beams, or sampling."""
    num_beams: int = 6
    """Beams of a search."""
    num_beam_groups: int = 3
    """Groups of beams that are kept apart."""
    top_p: float = 0.1
    """Nucleus sampling keeps the tokens above this quantile (open_clip's meaning)."""
    top_k: int = 1
    """Top-k sampling keeps this many tokens; 1 is greedy."""
    max_tokens: int = 40
    """Longest caption, tokens, start and end included."""
    seed: int = 0
    """Seed of sampling, with the shard's number."""


class Captioner(Protocol):
    """What turns pictures into captions."""

    parent: Parent
    """The model, as the layer's parent."""

    def caption(self, images: Sequence[Image.Image], seed: int) -> list[str]:
        """One caption a picture; empty where nothing could be said."""
        ...


class CocaCaptioner:
    """A CoCa checkpoint of ours."""

    def __init__(self, uri: str, config: GenerateConfig, *, num_threads: int = 0) -> None:
        import torch

        from clipmill.models.normalization import Normalize

        if num_threads:
            torch.set_num_threads(num_threads)
        card, tensors = load_checkpoint(uri)
        if card.kind != "coca":
            raise ArtifactError(
                f"{uri} is a checkpoint of kind {card.kind!r}",
                expected="a CoCa checkpoint",
                action="give the URI of a captioner",
            )
        architecture = CocaConfig.from_json(card.architecture)
        longest = architecture.clip.text.context_length
        if not _MIN_TOKENS < config.max_tokens <= longest:
            raise ConfigError(
                f"max_tokens was {config.max_tokens}",
                expected=f"{_MIN_TOKENS + 1} to {longest}, this captioner's longest text",
                action="set generate.max_tokens",
            )
        self.parent = card.as_parent("captioner")
        self._config = config
        self._size = architecture.clip.vision.image_size
        self._tokenizer = architecture.clip.text.tokenizer()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._normalize = Normalize().to(self._device)
        self._coca = build_coca(architecture).to(self._device).eval()
        self._coca.load_state_dict(tensors)

    def caption(self, images: Sequence[Image.Image], seed: int) -> list[str]:
        """Captions by open_clip's ``generate``."""
        import numpy as np
        import torch

        torch.manual_seed(self._config.seed * 1_000_003 + seed)
        pixels_BHW3 = torch.from_numpy(np.stack([center_resize(i, self._size) for i in images]))
        pixels_B3HW = pixels_BHW3.permute(0, 3, 1, 2).to(self._device).float() / 255
        tokens_BT = self._coca.generate(
            self._normalize(pixels_B3HW),
            seq_len=self._config.max_tokens,
            min_seq_len=_MIN_TOKENS,
            generation_type=self._config.method,
            num_beams=self._config.num_beams,
            num_beam_groups=self._config.num_beam_groups,
            top_p=self._config.top_p,
            top_k=self._config.top_k,
            pad_token_id=self._tokenizer.pad_id,
            sot_token_id=self._tokenizer.start_id,
            eos_token_id=self._tokenizer.end_id,
        )
        return [self._tokenizer.decode(t) for t in tokens_BT]
