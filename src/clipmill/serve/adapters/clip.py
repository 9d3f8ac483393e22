"""CLIP checkpoints: embeddings of images and texts, and choice among the caller's own labels.

Shapes: B images, M texts, L labels, D embedding width, n images in a request.
"""

from collections.abc import Sequence
from typing import Any, Final
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.clip import ClipEmbedder
from clipmill.models.execution import set_num_threads
from clipmill.models.embedding_stats import Listener
from clipmill.models.config import ClipConfig
from clipmill.serve.protocol.request import InferenceInputs
from clipmill.serve.protocol.request import Options
from clipmill.serve.errors import BadRequestError
from clipmill.serve.adapters.base import Item, ModelAdapter, Tensors, top_k_labels

_MAX_REMEMBERED: Final = 4096


class ClipAdapter(ModelAdapter):
    """Both towers; embeddings are unit vectors."""

    kind = "clip"

    def __init__(self, uri: str) -> None:
        """Load and verify the CLIP checkpoint at ``uri``; branches of its towers are fused.

        Raises:
            NotFoundError: nothing lies there.
            ArtifactError: it is cut or changed.
        """
        set_num_threads()
        self.metadata, tensors = load_checkpoint(uri)
        self._config = ClipConfig.from_json(self.metadata.architecture)
        self._embedder = ClipEmbedder(self._config, tensors)
        self._listeners: list[Listener] = []
        self._remembered: dict[str, NDArray[np.float32]] = {}

    def inputs(self) -> list[dict[str, Any]]:
        """Images, texts, and labels for the images; any of them may be left out."""
        names = ("image", "text", "labels")
        return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in names]

    def outputs(self) -> list[dict[str, Any]]:
        """An embedding an image and text; with labels, their probabilities."""
        width = self._config.embed_dim
        return [
            {"name": "image_embedding", "datatype": "FP32", "shape": [-1, width]},
            {"name": "text_embedding", "datatype": "FP32", "shape": [-1, width]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, -1]},
        ]

    def describe(self) -> dict[str, Any]:
        """What similarities mean here."""
        return {
            "outputs": [{"name": "image_embedding", "unit": "unit vector"}],
            "codings": ["raw", "float16"],
            "classes": [],
            "palette": [],
            "loss": self._config.loss,
            "logit_scale": self._embedder.scale,
            "logit_bias": self._embedder.bias,
            "image_side": self._config.vision.image_size,
        }

    def check(self, asked: InferenceInputs, options: Options) -> None:
        """Images, texts or both; labels for images alone."""
        if asked.labels and (asked.texts or not asked.sources):
            raise BadRequestError("protocol", "'labels' go with 'image', and without 'text'")
        if not asked.num_items:
            raise BadRequestError("protocol", "the request has neither 'image' nor 'text'")
        if options.output in {"png", "rle"}:
            raise BadRequestError(
                "parameter",
                f"embeddings have no {options.output.upper()}: take 'raw' or 'float16'",
            )
        if options.top_k and not asked.labels:
            raise BadRequestError("parameter", "'top_k' goes with 'labels'")

    def prepare(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The central square at the tower's size."""
        return self._embedder.prepare(Image.fromarray(image_HW3))

    def words(self, asked: InferenceInputs, options: Options) -> tuple[str, ...]:
        """Texts as they are, labels in their sentence."""
        return asked.texts or tuple(options.template.replace("{}", name) for name in asked.labels)

    def predict(self, items: Sequence[Item]) -> list[NDArray[Any]]:
        """(D,) for an image, (M, D) for a request's texts."""
        images = [item for item in items if isinstance(item, np.ndarray)]
        results: list[NDArray[Any]] = []
        if images:
            embedded_BD = self._embedder.images(images)
            for listener in self._listeners:
                listener(embedded_BD)
            results = list(embedded_BD)
        texts = [item for item in items if not isinstance(item, np.ndarray)]
        self._remember({word for words in texts for word in words})
        of_texts = iter([np.stack([self._remembered[w] for w in words]) for words in texts])
        of_images = iter(results)
        return [next(of_images if isinstance(i, np.ndarray) else of_texts) for i in items]

    def watch(self, listener: Listener) -> None:
        """Tell ``listener`` each image's embedding."""
        self._listeners.append(listener)

    def answer(self, asked: InferenceInputs, results: Sequence[NDArray[Any]], options: Options) -> Tensors:
        """Embeddings (n, D) and (M, D), or (n, L) probabilities, or the ``top_k`` of them."""
        dtype = np.float16 if options.output == "float16" else np.float32
        num_images = len(asked.sources)
        tensors: Tensors = {}
        if num_images and not asked.labels:
            tensors["image_embedding"] = np.stack(results[:num_images]).astype(dtype)
        if asked.texts:
            tensors["text_embedding"] = results[num_images].astype(dtype)
        if not asked.labels:
            return tensors
        cosine_nL = np.stack(results[:num_images]) @ results[num_images].T
        probabilities_nL = self._probabilities(cosine_nL.astype(np.float64))
        if not options.top_k:
            return {"probabilities": probabilities_nL.astype(dtype)}
        names_nk, scores_nk = top_k_labels(asked.labels, probabilities_nL, options.top_k)
        return {"top_labels": names_nk, "top_probabilities": scores_nk.astype(dtype)}

    def _probabilities(self, cosine_nL: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the loss meant similarities: over the labels together, or each by itself."""
        logits_nL = self._embedder.scale * cosine_nL + self._embedder.bias
        if self._config.loss == "sigmoid":
            each: NDArray[np.float64] = 1 / (1 + np.exp(-logits_nL))
            return each
        raised_nL = np.exp(logits_nL - logits_nL.max(axis=1, keepdims=True))
        together: NDArray[np.float64] = raised_nL / raised_nL.sum(axis=1, keepdims=True)
        return together

    def _remember(self, words: set[str]) -> None:
        """Run those texts that aren't known: labels come again with each image."""
        if len(self._remembered) + len(words) > _MAX_REMEMBERED:
            self._remembered.clear()
        new = sorted(words - self._remembered.keys())
        if new:
            self._remembered.update(zip(new, self._embedder.texts(new), strict=True))
