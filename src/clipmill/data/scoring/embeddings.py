"""Image embeddings as a layer, and scores of heads that read them.

A head is a small network on the image embedding of one CLIP: LAION's aesthetic predictors and NSFW
detectors, or your own. Files and layouts of weights that are read:

=========== ======================================================= ==============================
layout      names                                                   computed
=========== ======================================================= ==============================
linear      ``weight``, ``bias``                                    LAION-Aesthetics V1
layers      ``layers.N.weight``, ``layers.N.bias``                  LAION-Aesthetics V2 and
                                                                    ``h14_nsfw``
normalized  ``norm.mean``, ``norm.variance``, ``linear_N.weight``,  LAION's NSFW detectors of
            ``linear_N.bias``                                       ViT-L/14 and ViT-B/32
=========== ======================================================= ==============================

A state dict doesn't tell which activations lie between its layers. In ``layers`` the numbers of an
``nn.Sequential`` do: its members between two linear ones are none, or dropout after ReLU, or
dropout alone in LAION-Aesthetics V2, which has no activation.

Shapes: B images, D embedding width.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.config import Config, sha256_bytes
from clipmill.data.dataset import Dataset
from clipmill.data.layers import resolve_layer
from clipmill.data.scoring.scorers import ClipImageScorer, ClipScoreConfig, RowBatch
from clipmill.data.semantic_duplicates import EMBEDDING_COLUMN, read_embeddings
from clipmill.errors import ConfigError
from clipmill.lineage import Parent
from clipmill.models.weights.files import read_tensors
from clipmill.storage import read_bytes

if TYPE_CHECKING:
    from torch import Tensor


class EmbeddingScorer(ClipImageScorer):
    """A column ``image`` of unit embeddings, in fp16; null where the image doesn't decode."""

    needs_captions = False

    def __init__(self, config: ClipScoreConfig) -> None:
        super().__init__(config, "model", "embedding")

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The column above."""
        assert rows.images is not None
        images_BD, has_image = self._towers.embed_rows(rows.images)
        values = pa.array(images_BD.astype(np.float16).ravel())
        width = images_BD.shape[1]
        column = pa.FixedSizeListArray.from_arrays(values, width, mask=pa.array(~has_image))
        return {EMBEDDING_COLUMN: column}


_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadScoreConfig(Config):
    """A head on image embeddings, and how its file is read."""

    name: str = ""
    """Name of its score, such as ``aesthetic``: its layer is ``score/<name>-<digest>``, and its
    column has that name."""
    file: str = ""
    """URI of its weights: a PyTorch state dict (.pth, .pt) or .safetensors."""
    embeddings: str = "score/embedding"
    """The layer of embeddings, of the CLIP that the head was trained on."""
    activation: Literal["auto", "none", "relu"] = "auto"
    """Activation between the layers; ``auto`` for those of LAION's heads."""
    output: Literal["auto", "none", "sigmoid"] = "auto"
    """Function of the last layer's output; ``auto`` is a sigmoid for LAION's NSFW detectors of
    ViT-L/14 and ViT-B/32, and none elsewhere, as in their code."""

    def __post_init__(self) -> None:
        """Refuse what can't name a layer and column (ConfigError)."""
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED_NAMES:
            raise ConfigError(
                f"head.name was {self.name!r}",
                expected="lower-case letters, digits and underscores, and none of "
                f"{', '.join(sorted(_RESERVED_NAMES))}",
                action="set head.name=aesthetic, for example",
            )


# Other scorers' layers.
_RESERVED_NAMES = frozenset({"clip", "concepts", "embedding", "image", "relevance", "text"})


class HeadScorer:
    """A column of float32, named as the head; null where the image has no embedding."""

    needs_images = False
    needs_captions = False

    def __init__(self, config: HeadScoreConfig, dataset: Dataset) -> None:
        if not config.file:
            raise ConfigError(
                "head.file was empty",
                expected="the URI of a head's weights, .pth or .safetensors",
                action="give it with --set head.file=URI",
            )
        layer = resolve_layer(dataset.layers, config.embeddings)
        self._name = config.name
        self.layers: tuple[str, ...] = (layer,)
        data = read_bytes(config.file)
        self._head = parse_head(data, config)
        self.parents: tuple[Parent, ...] = (
            Parent(role="head", uri=config.file, digest=sha256_bytes(data)),
            Parent(role="score", uri=dataset.layer_uri(layer), digest=dataset.layers[layer].digest),
        )
        self.detail = {"head": self._head.description}

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The column above."""
        (layer,) = self.layers
        column = rows.layers[layer][EMBEDDING_COLUMN].combine_chunks()
        is_valid = column.is_valid().to_numpy(zero_copy_only=False)
        scores = np.zeros(rows.num_rows, np.float32)
        if is_valid.any():
            embeddings_BD = read_embeddings(layer, column, np.flatnonzero(is_valid))
            scores[is_valid] = self._head(embeddings_BD, layer)
        return {self._name: pa.array(scores, mask=~is_valid)}


@dataclass(frozen=True, slots=True)
class Head:
    """Linear layers on unit embeddings."""

    weights: "tuple[tuple[Tensor, Tensor], ...]"
    """Weight and bias of each layer."""
    has_relu: tuple[bool, ...]
    """True if ReLU follows each layer."""
    mean_D: "Tensor | None"
    """Mean that is subtracted from the embedding, and ..."""
    variance_D: "Tensor | None"
    """... the variance whose root divides it."""
    is_probability: bool
    """True if a sigmoid ends it."""

    @property
    def width(self) -> int:
        """Width of the embeddings that it reads."""
        return int(self.weights[0][0].shape[1])

    @property
    def description(self) -> str:
        """Its layers' widths and functions, for people."""
        steps = [str(self.width)]
        for (weight, _), relu in zip(self.weights, self.has_relu, strict=True):
            steps.append(f"{weight.shape[0]}{' ReLU' if relu else ''}")
        ends = "sigmoid" if self.is_probability else ""
        starts = "normalized " if self.mean_D is not None else ""
        return starts + " - ".join(filter(None, [*steps, ends]))

    def __call__(self, embeddings_BD: NDArray[np.float16], layer: str) -> NDArray[np.float32]:
        """Return scores (B,) of fp16 unit embeddings; ConfigError for those of another width."""
        import torch
        from torch.nn import functional as F

        if embeddings_BD.shape[1] != self.width:
            raise ConfigError(
                f"embeddings of layer {layer} are {embeddings_BD.shape[1]} wide",
                expected=f"{self.width}, the head's width",
                action="embed the images by the CLIP that the head was trained on (768 is "
                "ViT-L/14, 512 ViT-B/32, 1024 ViT-H/14), and name that layer as head.embeddings",
            )
        with torch.inference_mode():
            x_BD = F.normalize(torch.from_numpy(embeddings_BD).float(), dim=-1)
            if self.mean_D is not None and self.variance_D is not None:
                x_BD = (x_BD - self.mean_D) / self.variance_D.sqrt()
            for (weight, bias), relu in zip(self.weights, self.has_relu, strict=True):
                x_BD = F.linear(x_BD, weight, bias)
                x_BD = F.relu(x_BD) if relu else x_BD
            scores_B: NDArray[np.float32] = (x_BD.sigmoid() if self.is_probability else x_BD)[
                :, 0
            ].numpy()
        return scores_B


def parse_head(data: bytes, config: HeadScoreConfig) -> Head:
    """Return the head in a file's bytes.

    Raises:
        ArtifactError: the file is cut, or holds more than tensors.
        ConfigError: names or shapes aren't those of a head, or the activation isn't known.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"head{Path(config.file).suffix}"
        path.write_bytes(data)
        tensors = read_tensors(path)
    if set(tensors) <= {"weight", "bias"}:
        numbers, prefix = [0], ""
        tensors = {f"0.{name}": tensor for name, tensor in tensors.items()}
    else:
        prefix = "linear_" if "norm.mean" in tensors else "layers."
        pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.weight")
        matches = filter(None, map(pattern.fullmatch, tensors))
        numbers = sorted(int(match[1]) for match in matches)
    norm = ("norm.mean", "norm.variance") if prefix == "linear_" else ()
    expected = [f"{prefix}{n}.{part}" for n in numbers for part in ("weight", "bias")]
    if not numbers or set(tensors) != {*expected, *norm}:
        raise _not_a_head_error(config.file, f"tensors {', '.join(sorted(tensors)[:8])}")
    weights = tuple((tensors[f"{prefix}{n}.weight"], tensors[f"{prefix}{n}.bias"]) for n in numbers)
    _check_shapes(config.file, weights, {name: tensors[name] for name in norm})
    is_laion_nsfw = prefix == "linear_"
    if config.activation == "auto":
        has_relu = (
            (*[True] * (len(numbers) - 1), False)
            if is_laion_nsfw
            else (*_relu_by_gaps(config.file, numbers), False)
        )
    else:
        has_relu = (*[config.activation == "relu"] * (len(numbers) - 1), False)
    return Head(
        weights=weights,
        has_relu=has_relu,
        mean_D=tensors["norm.mean"].flatten() if norm else None,
        variance_D=tensors["norm.variance"].flatten() if norm else None,
        is_probability=is_laion_nsfw if config.output == "auto" else config.output == "sigmoid",
    )


# LAION-Aesthetics V2: linear layers with dropout between them.
_AESTHETIC_V2 = [0, 2, 4, 6, 7]


def _relu_by_gaps(file: str, numbers: list[int]) -> list[bool]:
    """Return whether ReLU follows each but the last layer, by the numbers of a Sequential."""
    if numbers == _AESTHETIC_V2:
        return [False] * (len(numbers) - 1)
    gaps = [after - before for before, after in pairwise(numbers)]
    if not set(gaps) <= {1, 3}:
        raise ConfigError(
            f"the layers of {file} are numbered {', '.join(map(str, numbers))}, which doesn't "
            "tell the activation between them",
            expected="a head of LAION, or a known activation",
            action="set head.activation=relu or head.activation=none",
        )
    return [gap == 3 for gap in gaps]


def _check_shapes(
    file: str, weights: "tuple[tuple[Tensor, Tensor], ...]", norm: "Mapping[str, Tensor]"
) -> None:
    width = weights[0][0].shape[-1]
    for name, tensor in norm.items():
        if tensor.numel() != width:
            raise _not_a_head_error(file, f"{name} of shape {tuple(tensor.shape)}")
    for weight, bias in weights:
        if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} with a bias of {tuple(bias.shape)}"
            raise _not_a_head_error(file, f"a layer of shape {shapes} after a width of {width}")
        width = weight.shape[0]
    if width != 1:
        raise _not_a_head_error(file, f"{width} outputs")


def _not_a_head_error(file: str, trouble: str) -> ConfigError:
    return ConfigError(
        f"{file} isn't a head on embeddings: it has {trouble}",
        expected="weight and bias; layers.N.weight and .bias; or norm.mean, norm.variance, "
        "linear_N.weight and .bias; with one output",
        action="save the head's state_dict under these names",
    )
