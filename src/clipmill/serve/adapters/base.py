"""Interface between the server and a model in memory, and what all adapters share.

Shapes: n images in a request, H W an image's height and width, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.models.embedding_stats import EmbeddingCallback
from clipmill.serve.errors import BadRequestError, RejectReason
from clipmill.serve.protocol.request import InferenceInputs, InferenceParameters

Item = NDArray[np.uint8] | tuple[str, ...]
"""An element of a batch: an image (H, W, 3), or the texts of one request."""

Tensors = dict[str, NDArray[Any]]
"""Output arrays by name; of type object where they hold bytes."""


class ModelAdapter(ABC):
    """A model in memory; ``predict_batch`` runs in one thread at a time, the rest in any."""

    metadata: CheckpointMetadata
    kind: str
    """Its task's name, or ``clip``."""

    @abstractmethod
    def input_specs(self) -> list[dict[str, Any]]:
        """Return V2's description of the inputs."""

    @abstractmethod
    def output_specs(self) -> list[dict[str, Any]]:
        """Return V2's description of every output that a request may name."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return plain JSON by which a client interprets outputs: classes, units, palette."""

    @abstractmethod
    def validate(self, inputs: InferenceInputs, parameters: InferenceParameters) -> None:
        """Raise BadRequestError for what the model can't answer; nothing is decoded yet."""

    def preprocess(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image as it waits in the queue."""
        return image_HW3

    def batch_key(self, item: Item) -> Hashable:
        """Return the key of the items that may share a batch."""
        return item.shape if isinstance(item, np.ndarray) else "texts"

    def text_inputs(
        self, inputs: InferenceInputs, parameters: InferenceParameters
    ) -> tuple[str, ...]:
        """Return the texts to encode."""
        del parameters
        return inputs.texts

    @abstractmethod
    def predict_batch(self, items: Sequence[Item]) -> list[Any]:
        """Return a result for each item."""

    @abstractmethod
    def add_embedding_hook(self, hook: EmbeddingCallback) -> None:
        """Call ``hook`` with the embeddings of all images from now on."""

    @abstractmethod
    def build_v2_outputs(
        self, inputs: InferenceInputs, results: Sequence[Any], parameters: InferenceParameters
    ) -> Tensors:
        """Return V2's output tensors, at least those that ``parameters`` names.

        ``results`` are those of the images, then of the texts.
        """

    def build_v1_predictions(
        self, inputs: InferenceInputs, results: Sequence[Any], parameters: InferenceParameters
    ) -> list[dict[str, Any]]:
        """Return V1's predictions, one per image or text: V2's tensors without their first axis."""
        tensors = self.build_v2_outputs(inputs, results, parameters)
        num_images = len(inputs.sources) or len(inputs.texts)
        return [{name: array[i] for name, array in tensors.items()} for i in range(num_images)]

    def min_response_bytes(
        self, inputs: InferenceInputs, results: Sequence[Any], parameters: InferenceParameters
    ) -> int:
        """Return the size that the response has at least; nothing is built for it yet."""
        del inputs, results, parameters
        return 0

    def record_output_metrics(self, model: str, results: Sequence[Any]) -> None:
        """Record statistics of results under the model's name, for alerts on prediction drift."""
        del model, results


def classification_outputs(
    names: Sequence[str], probabilities_nC: NDArray[Any], parameters: InferenceParameters
) -> Tensors:
    """Return ``probabilities`` (n, C), or the most probable names as bytes and theirs (n, k).

    The latter are ``top_labels`` and ``top_probabilities``, of all classes without ``top_k``.
    """
    num = parameters.top_k or len(names)
    best_nk = np.argsort(-probabilities_nC, axis=1, kind="stable")[:, :num]
    encoded = np.array([name.encode() for name in names], object)
    tensors: Tensors = {
        "probabilities": probabilities_nC,
        "top_labels": encoded[best_nk],
        "top_probabilities": np.take_along_axis(probabilities_nC, best_nk, axis=1),
    }
    own = ("top_labels", "top_probabilities") if parameters.top_k else ("probabilities",)
    return {name: tensors[name] for name in parameters.outputs or own if name in tensors}


def require_images_only(inputs: InferenceInputs) -> None:
    """Raise BadRequestError for a request with other inputs than images."""
    if inputs.texts or inputs.labels or not inputs.sources:
        raise BadRequestError(RejectReason.PROTOCOL, "the request must have one input, 'image'")
