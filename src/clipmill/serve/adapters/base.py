"""What a served model does, whatever it answers with: the contract between model and server.

Shapes: n images in a request, H W an image's height and width.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any
import numpy as np
from numpy.typing import NDArray
from clipmill.errors import ArtifactError
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.models.embedding_stats import Listener
from clipmill.serve.protocol.request import InferenceInputs
from clipmill.serve.protocol.request import Options
from clipmill.serve.errors import BadRequestError

Item = NDArray[np.uint8] | tuple[str, ...]
"""What a batch is made of: an image (H, W, 3), or the texts of one request."""

Tensors = dict[str, NDArray[Any]]
"""Output arrays by name; of type object where they hold bytes."""


class ModelAdapter(ABC):
    """A model in memory. ``predict`` is called from one thread at a time, the rest from any."""

    metadata: CheckpointMetadata
    kind: str
    """Its task's name, or ``clip``."""

    @abstractmethod
    def inputs(self) -> list[dict[str, Any]]:
        """V2's description of the inputs."""

    @abstractmethod
    def outputs(self) -> list[dict[str, Any]]:
        """V2's description of the outputs, as they are without parameters."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Classes, units, palette: what a client needs to understand an answer. Plain JSON."""

    @abstractmethod
    def check(self, asked: InferenceInputs, options: Options) -> None:
        """Refuse, before anything is decoded, what it can't answer (BadRequestError)."""

    def prepare(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What of an image waits in the queue."""
        return image_HW3

    def bucket(self, item: Item) -> Hashable:
        """Items of one bucket are run together."""
        return item.shape if isinstance(item, np.ndarray) else "texts"

    def words(self, asked: InferenceInputs, options: Options) -> tuple[str, ...]:
        """The texts to run."""
        del options
        return asked.texts

    @abstractmethod
    def predict(self, items: Sequence[Item]) -> list[Any]:
        """A result for each item."""

    @abstractmethod
    def watch(self, listener: Listener) -> None:
        """From now on let ``listener`` hear the embedding of each image that is run."""

    @abstractmethod
    def answer(self, asked: InferenceInputs, results: Sequence[Any], options: Options) -> Tensors:
        """V2's output tensors; ``results`` belong to images first, then to words."""

    def answer_each(
        self, asked: InferenceInputs, results: Sequence[Any], options: Options
    ) -> list[dict[str, Any]]:
        """V1's predictions, one an image or text: V2's tensors without their first axis."""
        tensors = self.answer(asked, results, options)
        num_images = len(asked.sources) or len(asked.texts)
        return [{name: array[i] for name, array in tensors.items()} for i in range(num_images)]

    def observe(self, model: str, results: Sequence[Any]) -> None:
        """Count answers' values under the model's name, so that their drift shows."""
        del model, results


def top_k_labels(
    names: Sequence[str], probabilities_nC: NDArray[Any], num: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The ``num`` best names (n, num), as bytes, and their probabilities (n, num), best first."""
    best_nk = np.argsort(-probabilities_nC, axis=1, kind="stable")[:, :num]
    encoded = np.array([name.encode() for name in names], object)
    return encoded[best_nk], np.take_along_axis(probabilities_nC, best_nk, axis=1)


def require_images_only(asked: InferenceInputs) -> None:
    """For models that take images alone (BadRequestError)."""
    if asked.texts or asked.labels or not asked.sources:
        raise BadRequestError("protocol", "the request must have one input, 'image'")


def load_model_adapter(uri: str) -> ModelAdapter:
    """The model at ``uri``, verified against its digest.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: it is cut, changed, or of a kind that can't be served.
    """
    kind = read_metadata(uri).kind
    if kind == "task":
        from clipmill.serve.adapters.dense import DenseAdapter
        from clipmill.serve.adapters.instance import InstanceAdapter
        from clipmill.tasks.predictor import Predictor

        predictor = Predictor.open(uri)
        is_dense = [output.shape for output in predictor.outputs] == [("H", "W")]
        return DenseAdapter(predictor) if is_dense else InstanceAdapter(predictor)
    if kind == "clip":
        from clipmill.serve.adapters.clip import ClipAdapter

        return ClipAdapter(uri)
    raise ArtifactError(
        f"{uri} is a checkpoint of kind {kind!r}",
        expected="a task model, as finetune makes, or a CLIP, as pretrain makes",
        action="give the URI of such a checkpoint",
    )
