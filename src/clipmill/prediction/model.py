"""The model of a batch prediction: what a server runs, without the server.

Shapes: H W an image's height and width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.errors import ArtifactError
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.clip import ClipEmbedder
from clipmill.models.config import ClipConfig
from clipmill.models.execution import set_num_threads
from clipmill.prediction.plan import PredictionPlan
from clipmill.tasks.base import Prediction
from clipmill.tasks.predictor import Predictor


class PredictionModel:
    """A task model, or the image tower of a CLIP, on this machine's device."""

    def __init__(self, plan: PredictionPlan) -> None:
        """Load the plan's model; ArtifactError if its weights aren't those that were planned."""
        import torch

        set_num_threads()
        metadata, tensors = load_checkpoint(plan.model)
        if metadata.digest != plan.model_digest:
            raise ArtifactError(
                f"{plan.model} isn't the model that was planned",
                expected=f"the checkpoint with digest {plan.model_digest[:12]}",
                action="run `clipmill predict MODEL --data URI --store URI` again",
            )
        self.classes: tuple[str, ...] = ()
        """Class names by id."""
        self.embedding_width = 0
        """Width of a CLIP's embeddings; 0 of a task model."""
        self.png_scale = 1000
        """Values of a depth map's PNG in a meter."""
        self._embedder: ClipEmbedder | None = None
        self._predictor: Predictor | None = None
        backend = plan.config.serving.backend
        if metadata.kind == "clip":
            config = ClipConfig.from_json(metadata.architecture)
            self._embedder = ClipEmbedder(config, tensors, backend=backend, name=plan.model)
            self.embedding_width = config.embed_dim
        else:
            self._predictor = Predictor(metadata, tensors, backend=backend)
            self.classes = self._predictor.classes
            self.png_scale = self._predictor.outputs[0].png_scale
        default = 32 if torch.cuda.is_available() else 1
        self.batch_size = plan.config.batch_size or default
        """Images in a forward pass."""

    def prepare(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image as the model takes it."""
        if self._embedder is None:
            return image_HW3
        return self._embedder.prepare(Image.fromarray(image_HW3))

    def predict(self, images: Sequence[NDArray[Any]]) -> list[Prediction]:
        """Return a prediction for each prepared image."""
        if self._predictor is not None:
            return self._predictor.predict(images)
        assert self._embedder is not None
        return [{"embedding": row_D} for row_D in self._embedder.encode_images(images)]
