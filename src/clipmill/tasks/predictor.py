"""Run a trained task model on images."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.errors import ArtifactError
from clipmill.images import upright
from clipmill.models.checkpoint import CheckpointMetadata, load_checkpoint
from clipmill.models.config import EncoderConfig
from clipmill.models.embedding_stats import EmbeddingCallback, register_embedding_hook
from clipmill.tasks.base import OutputSpec, Prediction, Task
from clipmill.tasks.registry import get_task

if TYPE_CHECKING:
    from torch import Tensor


class Predictor:
    """One task model on one device; a GPU where there is one.

    Not thread-safe: call it from one thread at a time.

    Example:
        >>> config = clipmill.get_recipe(
        ...     "linear-segmentation-tiny", clipmill.FinetuneConfig, ["train.steps=2"]
        ... )
        >>> encoder = "random:timm/test_byobnet"
        >>> model = clipmill.finetune(config, encoder, "labels", "out")
        >>> predictor = clipmill.Predictor.open(model)
        >>> prediction = predictor(Image.open("image.jpg"))
        >>> prediction["classes"].shape  # class ids, as in predictor.classes
        (64, 64)
    """

    def __init__(
        self,
        metadata: CheckpointMetadata,
        tensors: "Mapping[str, Tensor]",
        *,
        backend: Literal["torch", "onnx"] = "torch",
    ) -> None:
        """Build the network of a checkpoint, with the encoder's branches fused.

        With the backend ``onnx`` ONNX Runtime runs the encoder, on a CPU.

        Raises:
            ArtifactError: the checkpoint is no task model.
            ConfigError: the encoder can't run with this backend.
        """
        import torch

        from clipmill.models.execution import InferenceThreadPool, fuse_branches

        if metadata.kind != "task":
            raise ArtifactError(
                f"{metadata.uri} is a checkpoint of kind {metadata.kind!r}",
                expected="a task model, as finetune makes",
                action="fine-tune the encoder first and give that URI",
            )
        self.metadata: CheckpointMetadata = metadata
        self.task: Task[Any] = get_task(metadata.architecture["task"])
        self.classes: tuple[str, ...] = tuple(metadata.architecture["classes"])
        """Class names by id; empty where the task has none."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = self.task.config_type.from_stored(metadata.architecture["config"], metadata.uri)
        self.outputs: tuple[OutputSpec, ...] = self.task.outputs_of(config)
        """Names, types, units and shapes of the arrays of a prediction."""
        network = self.task.build_inference_model(
            config,
            EncoderConfig.from_stored(metadata.architecture["encoder"], metadata.uri),
            self.classes,
        )
        network.load_state_dict(tensors)
        network = fuse_branches(network)
        if backend == "onnx":
            _run_encoder_with_onnx(network, metadata.uri)
        network = network.to(memory_format=torch.channels_last)
        self._network = network.to(self._device)
        # ONNX Runtime has threads of its own, which a batch shares.
        is_pooled = self._device.type == "cpu" and backend == "torch"
        self._cpu = InferenceThreadPool() if is_pooled else None
        # Its own, so that models in one process don't wait for each other.
        self._stream = (
            torch.cuda.Stream()  # type: ignore[no-untyped-call]
            if self._device.type == "cuda"
            else None
        )

    @classmethod
    def open(
        cls, uri: str, *, num_threads: int = 0, backend: Literal["torch", "onnx"] = "torch"
    ) -> Self:
        """Load and verify the checkpoint at ``uri``; threads as in :func:`set_num_threads`.

        Raises:
            NotFoundError: there is no checkpoint.
            ArtifactError: the checkpoint is damaged, or no task model.
        """
        from clipmill.models.execution import set_num_threads

        set_num_threads(num_threads)
        return cls(*load_checkpoint(uri), backend=backend)

    def __call__(self, image: Image.Image) -> Prediction:
        """Return the prediction for an image, upright: arrays by the names of ``outputs``."""
        return self.predict([np.asarray(upright(image).convert("RGB"))])[0]

    def predict(self, images: Sequence[NDArray[Any]]) -> list[Prediction]:
        """Return a prediction for each image (H, W, 3) uint8; sizes may differ."""
        if self._cpu is not None:
            return self._cpu.map(lambda image_HW3: self._run([image_HW3])[0], images)
        by_size = defaultdict(list)
        for index, image_HW3 in enumerate(images):
            by_size[image_HW3.shape].append(index)
        predictions: list[Prediction] = [{}] * len(images)
        for indices in by_size.values():
            outputs = self._run([images[i] for i in indices])
            for index, prediction in zip(indices, outputs, strict=True):
                predictions[index] = prediction
        return predictions

    def _run(self, images: Sequence[NDArray[Any]]) -> list[Prediction]:
        """Return predictions for images of one size."""
        import torch

        on_gpu = self._device.type == "cuda"
        shape = (len(images), *images[0].shape)
        batch_BHW3 = torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu)
        np.stack(images, out=batch_BHW3.numpy())
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            device_B3HW = batch_BHW3.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            return self._split_outputs(self._network(device_B3HW.float().div_(255)))

    def add_embedding_hook(self, hook: EmbeddingCallback) -> None:
        """Call ``hook`` with the encoder's embedding (1, width) of each image from now on."""
        register_embedding_hook(self._network, self._network.get_submodule("encoder"), hook)

    def visualize(self, prediction: Prediction, image_HW3: NDArray[Any]) -> NDArray[Any]:
        """Draw a prediction, on or instead of its image, as RGB (H, W, 3) uint8."""
        return self.task.visualize(prediction, image_HW3, self.classes)

    def _split_outputs(self, outputs: "Tensor | list[dict[str, Tensor]]") -> list[Prediction]:
        """Split the network's outputs by image, as arrays of the specified types."""
        if not isinstance(outputs, list):
            (spec,) = self.outputs
            outputs = [{spec.name: tensor} for tensor in outputs.cpu()]
        return [
            {
                o.name: tensors[o.name].cpu().numpy().astype(o.dtype, copy=False)
                for o in self.outputs
            }
            for tensors in outputs
        ]


def _run_encoder_with_onnx(network: Any, uri: str) -> None:
    """Replace the encoder by its graph: of the test size for classification, else of any size."""
    from clipmill.models.encoders import PooledEncoder
    from clipmill.models.onnx_runtime import OnnxModule

    encoder = network.encoder
    if isinstance(encoder, PooledEncoder):
        network.encoder = OnnxModule(encoder, uri, side=network.test_size)
    else:
        network.encoder = OnnxModule(encoder, uri, multiple=encoder.stride)
