"""CLIP score: cosine similarity of a picture's and a caption's embeddings (Hessel et al. 2021).

As DataComp stores it, without CLIPScore's factor of 2.5 and without clipping at 0.

Shapes: B pictures, C captions, D embedding width.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from clipmill.config import Config
from clipmill.data.scoring.scorers import Captions, RowBatch
from clipmill.errors import ConfigError
from clipmill.lineage import Parent
from clipmill.models.clip import clip_parent
from clipmill.models.preprocess import tower_image
from clipmill.models.weights.addresses import FORMS

if TYPE_CHECKING:
    from torch import Tensor

_NUM_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScoreConfig(Config):
    """Which CLIP judges, and how it runs."""

    model: str = ""
    """Address of a CLIP with both towers."""
    weights: str = ""
    """Always empty: the weights are part of the address (0.1 had them here)."""
    seed: int = 0
    """Seed of random weights."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the towers compute in; similarities are always taken in fp32."""
    batch_size: int = 256
    """Most captions encoded together."""
    num_threads: int = 0
    """CPU threads; 0: PyTorch's choice, within the container's limit."""

    def __post_init__(self) -> None:
        """Refuse weights apart from the model (ConfigError)."""
        if self.weights:
            name = self.model.removeprefix("open_clip:")
            raise ConfigError(
                f"clip.weights was {self.weights!r}",
                expected="nothing: the weights are part of clip.model",
                action=f"give the model as file:{self.weights}#open_clip/{name or 'NAME'}",
            )


class ClipScorer:
    """A column a caption kind of float32; null where the picture doesn't decode."""

    needs_images = True

    def __init__(self, config: ClipScoreConfig) -> None:
        self._config = config
        self.parents: tuple[Parent, ...] = (scoring_clip_parent(config, "judge"),)
        self.detail = {"model": config.model, "precision": config.precision}
        self._towers: ClipTowers | None = None

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The columns above."""
        assert rows.images is not None
        if self._towers is None:
            self._towers = ClipTowers(self._config)
        has_image = np.array([image is not None for image in rows.images])
        images_BD = np.zeros((rows.num_rows, 1), np.float32)
        if has_image.any():
            embeddings = self._towers.encode_images([image for image in rows.images if image])
            images_BD = np.zeros((rows.num_rows, embeddings.shape[1]), np.float32)
            images_BD[has_image] = embeddings
        return {
            kind: captions.column(self._similarity(images_BD, has_image, captions))
            for kind, captions in rows.captions.items()
        }

    def _similarity(
        self, images_BD: NDArray[np.float32], has_image: NDArray[np.bool_], captions: Captions
    ) -> pa.Array:
        assert self._towers is not None
        counts = 1 if captions.counts is None else np.array(captions.counts, np.int64)
        row_C = np.repeat(np.arange(len(images_BD)), counts)
        valid_C = np.flatnonzero(has_image[row_C])
        scores = np.zeros(len(row_C), np.float32)
        for start in range(0, len(valid_C), self._config.batch_size):
            part = valid_C[start : start + self._config.batch_size]
            texts_CD = self._towers.encode_texts([captions.texts[c] for c in part])
            scores[part] = np.einsum("cd,cd->c", images_BD[row_C[part]], texts_CD)
        return pa.array(scores, mask=~has_image[row_C])


class ClipTowers:
    """A CLIP on this machine's device; embeddings come back as unit vectors in fp32."""

    def __init__(self, config: ClipScoreConfig) -> None:
        import torch

        from clipmill.models.clip import load_clip
        from clipmill.models.encoders import Normalize
        from clipmill.models.execution import set_num_threads

        set_num_threads(config.num_threads)
        self.batch_size = config.batch_size
        """Most captions to be encoded together."""
        clip = load_clip(config.model, seed=config.seed)
        self._vision, self._tokenize = clip.vision, clip.tokenize
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            config.precision
        ]
        self._model = clip.model.to(self._device)
        self._normalize = Normalize(clip.vision.mean, clip.vision.std).to(self._device)
        self._pool = ThreadPoolExecutor(_NUM_THREADS)

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embeddings (B, D)."""
        import torch

        resized = list(self._pool.map(self._resized, images))
        pixels_B3HW = torch.from_numpy(np.stack(resized)).to(self._device).permute(0, 3, 1, 2)
        return self._encode(self._model.encode_image, self._normalize(pixels_B3HW.float() / 255))

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Embeddings (C, D)."""
        return self._encode(self._model.encode_text, self._tokenize(texts))

    def _resized(self, image: Image.Image) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = tower_image(image, self._vision)
        return pixels

    def _encode(self, tower: "Callable[[Tensor], Tensor]", values: "Tensor") -> NDArray[np.float32]:
        import torch
        from torch.nn import functional as F

        autocast = torch.autocast(
            self._device.type, self._type, enabled=self._type is not torch.float32
        )
        with torch.inference_mode(), autocast:
            embeddings = tower(values.to(self._device))
        unit: NDArray[np.float32] = F.normalize(embeddings.float(), dim=-1).cpu().numpy()
        return unit


def scoring_clip_parent(config: ClipScoreConfig, role: str) -> Parent:
    """The CLIP that judges, by digest.

    Raises:
        ConfigError, NotFoundError, ArtifactError: there is no such CLIP.
    """
    if not config.model:
        raise ConfigError(
            "clip.model was empty",
            expected=f"the address of a CLIP: {FORMS}",
            action="give it with --model, or --set clip.model=open_clip:ViT-L-14/openai",
        )
    return clip_parent(config.model, role, seed=config.seed)
