"""CLIP score: cosine similarity of a picture's and a caption's embeddings (Hessel et al. 2021).

As DataComp stores it, without CLIPScore's factor of 2.5 and without clipping at 0.

Shapes: B pictures, C captions, D embedding width.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from clipmill.config import Config
from clipmill.data.scoring.contract import Captions, Rows
from clipmill.digest import digest_json, sha256_bytes
from clipmill.errors import ArtifactError, ConfigError
from clipmill.models.checkpoint import read_card
from clipmill.storage import Parent, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

OPEN_CLIP = "open_clip:"
_NUM_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScoreConfig(Config):
    """Which CLIP judges, and how it runs."""

    model: str = ""
    """URI of a CLIP checkpoint of ours, or ``open_clip:NAME``."""
    weights: str = ""
    """URI of the weights of an open_clip model, safetensors; empty for random ones."""
    seed: int = 0
    """Seed of random weights."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the towers compute in; similarities are always taken in fp32."""
    batch_size: int = 256
    """Most captions encoded together."""
    num_threads: int = 0
    """CPU threads; 0: PyTorch's choice, within the container's limit."""


class ClipScorer:
    """A column a caption kind of float32; null where the picture doesn't decode."""

    wants_images = True

    def __init__(self, config: ClipScoreConfig) -> None:
        self._config = config
        self.parents: tuple[Parent, ...] = (clip_parent(config, "judge"),)
        self.detail = {"model": config.model, "precision": config.precision}
        self._towers: ClipTowers | None = None

    def score(self, rows: Rows) -> dict[str, pa.Array]:
        """The columns above."""
        assert rows.images is not None
        if self._towers is None:
            self._towers = ClipTowers(self._config)
        has_image = np.array([image is not None for image in rows.images])
        images_BD = np.zeros((rows.num_rows, 1), np.float32)
        if has_image.any():
            found = self._towers.encode_images([image for image in rows.images if image])
            images_BD = np.zeros((rows.num_rows, found.shape[1]), np.float32)
            images_BD[has_image] = found
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
        asked_C = np.flatnonzero(has_image[row_C])
        scores = np.zeros(len(row_C), np.float32)
        for start in range(0, len(asked_C), self._config.batch_size):
            part = asked_C[start : start + self._config.batch_size]
            texts_CD = self._towers.encode_texts([captions.texts[c] for c in part])
            scores[part] = np.einsum("cd,cd->c", images_BD[row_C[part]], texts_CD)
        return pa.array(scores, mask=~has_image[row_C])


class ClipTowers:
    """A CLIP on this machine's device; embeddings come back as unit vectors in fp32."""

    def __init__(self, config: ClipScoreConfig) -> None:
        import torch

        from clipmill.models.cpu_threads import use_threads

        use_threads(config.num_threads)
        self.batch_size = config.batch_size
        """Most captions to be encoded together."""
        model, self._preprocess, self._tokenize = (
            _open_clip(config) if config.model.startswith(OPEN_CLIP) else _ours(config.model)
        )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            config.precision
        ]
        self._model = model.to(self._device).eval()
        self._pool = ThreadPoolExecutor(_NUM_THREADS)

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embeddings (B, D)."""
        import torch

        pixels_B3HW = torch.stack(list(self._pool.map(self._preprocess, images)))
        return self._encode(self._model.encode_image, pixels_B3HW)

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Embeddings (C, D)."""
        return self._encode(self._model.encode_text, self._tokenize(texts))

    def _encode(self, tower: "Callable[[Tensor], Tensor]", values: "Tensor") -> NDArray[np.float32]:
        import torch
        from torch.nn import functional as F

        autocast = torch.autocast(
            self._device.type, self._type, enabled=self._type is not torch.float32
        )
        with torch.inference_mode(), autocast:
            found = tower(values.to(self._device))
        unit: NDArray[np.float32] = F.normalize(found.float(), dim=-1).cpu().numpy()
        return unit


def clip_parent(config: ClipScoreConfig, role: str) -> Parent:
    """What judges, by digest; nothing heavy is imported.

    Raises ConfigError without a model, ArtifactError where another kind of checkpoint lies.
    """
    if not config.model:
        raise ConfigError(
            "clip.model was empty",
            expected=f"the URI of a CLIP checkpoint, or {OPEN_CLIP}NAME such as ViT-L-14",
            action="give it with --set clip.model=..., or --model",
        )
    if config.model.startswith(OPEN_CLIP):
        weights = sha256_bytes(read_bytes(config.weights)) if config.weights else config.seed
        digest = digest_json([config.model, weights])
        return Parent(role=role, uri=config.weights or config.model, digest=digest)
    card = read_card(config.model)
    if card.kind != "clip":
        raise ArtifactError(
            f"{config.model} is a checkpoint of kind {card.kind!r}",
            expected="a CLIP checkpoint",
            action="give the URI of one that `clipmill pretrain` made",
        )
    return card.as_parent(role)


def _open_clip(config: ClipScoreConfig) -> tuple[Any, Any, Any]:
    import open_clip
    import torch

    name = config.model.removeprefix(OPEN_CLIP)
    if name not in open_clip.list_models():
        raise ConfigError(
            f"open_clip has no model {name!r}",
            expected="one of open_clip.list_models(), such as ViT-B-32 or ViT-L-14",
            action="correct clip.model",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=None, pretrained_text=False
        )
    if config.weights:
        _load(model, config.weights)
    return model, preprocess, open_clip.get_tokenizer(name)


def _load(model: Any, uri: str) -> None:
    """Put the weights at ``uri`` into the model; only safetensors, since nothing is unpickled."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        model.load_state_dict(load(read_bytes(uri)))
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"{uri} doesn't hold this model's weights: {str(error).splitlines()[0]}",
            expected="a safetensors file with open_clip's names",
            action="convert the weights, or correct clip.model",
        ) from error


def _ours(uri: str) -> tuple[Any, Any, Any]:
    import torch

    from clipmill.models.center_resize import center_resize
    from clipmill.models.checkpoint import load_checkpoint
    from clipmill.models.normalization import Normalize
    from clipmill.models.towers import ClipConfig, build_clip

    card, tensors = load_checkpoint(uri)
    config = ClipConfig.from_json(card.architecture)
    model = build_clip(config)
    model.load_state_dict(tensors)
    normalize = Normalize(config.vision.mean, config.vision.std)

    def preprocess(image: Image.Image) -> "Tensor":
        pixels_HW3 = torch.from_numpy(center_resize(image, config.vision.image_size).copy())
        pixels_1HW3 = pixels_HW3.permute(2, 0, 1)[None].float() / 255
        pixels_3HW: Tensor = normalize(pixels_1HW3)[0]
        return pixels_3HW

    return model, preprocess, config.text.tokenizer()
