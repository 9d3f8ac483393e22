"""Adapter of CLIP checkpoints: embeddings, and classification by the request's own labels.

Shapes: B images, M texts, L labels, D embedding width, n images in a request.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.clip import ClipEmbedder
from clipmill.models.config import ClipConfig
from clipmill.models.embedding_stats import EmbeddingCallback
from clipmill.models.execution import set_num_threads
from clipmill.serve.adapters.base import Item, ModelAdapter, Tensors, classification_outputs
from clipmill.serve.errors import BadRequestError, RejectReason
from clipmill.serve.protocol.request import InferenceInputs, InferenceParameters

_MAX_CACHED_TEXTS: Final = 4096
_NEEDED_INPUTS: Final = {"image_embedding": "image", "text_embedding": "text"}
"""Input that an output needs; all others need ``labels``."""


class ClipAdapter(ModelAdapter):
    """Both towers; embeddings are unit vectors."""

    kind = "clip"

    def __init__(self, uri: str, *, backend: Literal["torch", "onnx"] = "torch") -> None:
        """Load and verify the CLIP checkpoint at ``uri``; branches of its towers are fused.

        Raises:
            NotFoundError: nothing lies there.
            ArtifactError: it is cut or changed.
        """
        set_num_threads()
        self.metadata, tensors = load_checkpoint(uri)
        self._config = ClipConfig.from_json(self.metadata.architecture)
        self._embedder = ClipEmbedder(self._config, tensors, backend=backend, name=uri)
        self._hooks: list[EmbeddingCallback] = []
        self._text_cache: dict[str, NDArray[np.float32]] = {}

    def input_specs(self) -> list[dict[str, Any]]:
        """Describe images, texts, and labels for the images; each is optional."""
        names = ("image", "text", "labels")
        return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in names]

    def output_specs(self) -> list[dict[str, Any]]:
        """Describe an embedding per image and text; with labels, their probabilities or order."""
        width = self._config.embed_dim
        return [
            {"name": "image_embedding", "datatype": "FP32", "shape": [-1, width]},
            {"name": "text_embedding", "datatype": "FP32", "shape": [-1, width]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "top_labels", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "top_probabilities", "datatype": "FP32", "shape": [-1, -1]},
        ]

    def describe(self) -> dict[str, Any]:
        """Return how similarities become probabilities, and the image size."""
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

    def validate(self, inputs: InferenceInputs, parameters: InferenceParameters) -> None:
        """Accept images, texts or both; labels for images only."""
        if inputs.labels and (inputs.texts or not inputs.sources):
            raise BadRequestError(
                RejectReason.PROTOCOL, "'labels' go with 'image', and without 'text'"
            )
        if not inputs.num_queue_slots:
            raise BadRequestError(
                RejectReason.PROTOCOL, "the request has neither 'image' nor 'text'"
            )
        if parameters.output in {"png", "rle"}:
            raise BadRequestError(
                RejectReason.PARAMETER,
                f"embeddings have no {parameters.output.upper()}: take 'raw' or 'float16'",
            )
        if parameters.top_k and not inputs.labels:
            raise BadRequestError(RejectReason.PARAMETER, "'top_k' goes with 'labels'")
        present = {"image": inputs.sources, "text": inputs.texts, "labels": inputs.labels}
        for output in parameters.outputs:
            if not present[needed := _NEEDED_INPUTS.get(output, "labels")]:
                raise BadRequestError(
                    RejectReason.PROTOCOL, f"the output {output!r} needs the input {needed!r}"
                )

    def preprocess(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the central square at the tower's size."""
        return self._embedder.prepare(Image.fromarray(image_HW3))

    def text_inputs(
        self, inputs: InferenceInputs, parameters: InferenceParameters
    ) -> tuple[str, ...]:
        """Return texts as they are, labels in their sentence."""
        return inputs.texts or tuple(
            parameters.template.replace("{}", name) for name in inputs.labels
        )

    def predict_batch(self, items: Sequence[Item]) -> list[NDArray[Any]]:
        """Return (D,) for an image, (M, D) for a request's texts."""
        images = [item for item in items if isinstance(item, np.ndarray)]
        results: list[NDArray[Any]] = []
        if images:
            embedded_BD = self._embedder.encode_images(images)
            for hook in self._hooks:
                hook(embedded_BD)
            results = list(embedded_BD)
        texts = [item for item in items if not isinstance(item, np.ndarray)]
        self._encode_uncached({text for group in texts for text in group})
        text_results = iter(
            [np.stack([self._text_cache[text] for text in group]) for group in texts]
        )
        image_results = iter(results)
        return [next(image_results if isinstance(i, np.ndarray) else text_results) for i in items]

    def add_embedding_hook(self, hook: EmbeddingCallback) -> None:
        """Call ``hook`` with the embeddings of all images from now on."""
        self._hooks.append(hook)

    def build_v2_outputs(
        self,
        inputs: InferenceInputs,
        results: Sequence[NDArray[Any]],
        parameters: InferenceParameters,
    ) -> Tensors:
        """Return embeddings (n, D) and (M, D), or probabilities (n, L), or their ``top_k``."""
        dtype = np.float16 if parameters.output == "float16" else np.float32
        num_images = len(inputs.sources)
        tensors: Tensors = {}
        if num_images and ("image_embedding" in parameters.outputs or not inputs.labels):
            tensors["image_embedding"] = np.stack(results[:num_images]).astype(dtype)
        if inputs.texts:
            tensors["text_embedding"] = results[num_images].astype(dtype)
        if not inputs.labels:
            return tensors
        cosine_nL = np.stack(results[:num_images]) @ results[num_images].T
        probabilities_nL = self._probabilities(cosine_nL.astype(np.float64))
        for name, array in classification_outputs(
            inputs.labels, probabilities_nL, parameters
        ).items():
            tensors[name] = array if array.dtype == object else array.astype(dtype)
        return tensors

    def _probabilities(self, cosine_nL: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return softmax over the labels, or a sigmoid of each, whichever the loss was."""
        logits_nL = self._embedder.scale * cosine_nL + self._embedder.bias
        if self._config.loss == "sigmoid":
            sigmoid_nL: NDArray[np.float64] = 1 / (1 + np.exp(-logits_nL))
            return sigmoid_nL
        exp_nL = np.exp(logits_nL - logits_nL.max(axis=1, keepdims=True))
        softmax_nL: NDArray[np.float64] = exp_nL / exp_nL.sum(axis=1, keepdims=True)
        return softmax_nL

    def _encode_uncached(self, texts: set[str]) -> None:
        """Encode the texts that aren't cached: each image comes with the same labels."""
        if len(self._text_cache) + len(texts) > _MAX_CACHED_TEXTS:
            self._text_cache.clear()
        new = sorted(texts - self._text_cache.keys())
        if new:
            self._text_cache.update(zip(new, self._embedder.encode_texts(new), strict=True))
