"""A trained task model, ready to be asked: images in, named arrays for each out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import ArtifactError
from clipmill.models.checkpoint import ModelCard, load_checkpoint
from clipmill.models.embedding_stats import Listener, watch_encoder
from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import OutputSpec, Prediction, Task
from clipmill.tasks.registry import task_named

if TYPE_CHECKING:
    from torch import Tensor


class Predictor:
    """One model on one device. Not thread-safe: call it from one thread at a time."""

    def __init__(self, card: ModelCard, tensors: "Mapping[str, Tensor]") -> None:
        """The network of a checkpoint, its encoder's branches fused.

        Raises:
            ArtifactError: it is no task model.
        """
        import torch

        from clipmill.models.execution import CpuThreads
        from clipmill.models.execution import reparameterised

        if card.kind != "task":
            raise ArtifactError(
                f"{card.uri} is a checkpoint of kind {card.kind!r}",
                expected="a task model, as finetune makes",
                action="fine-tune the encoder first and give that URI",
            )
        self.card: ModelCard = card
        self.task: Task[Any] = task_named(card.architecture["task"])
        self.classes: tuple[str, ...] = tuple(card.architecture["classes"])
        """Class names by id; empty where the task has none."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = self.task.network(
            self.task.config_type.from_json(card.architecture["config"]),
            EncoderConfig.from_json(card.architecture["encoder"]),
            self.classes,
        )
        network.load_state_dict(tensors)
        network = reparameterised(network).to(memory_format=torch.channels_last)
        self._network = network.to(self._device)
        self._cpu = CpuThreads() if self._device.type == "cpu" else None
        # Its own, so that models in one process don't wait for each other.
        self._stream = (
            torch.cuda.Stream()  # type: ignore[no-untyped-call]
            if self._device.type == "cuda"
            else None
        )

    @classmethod
    def open(cls, uri: str, *, num_threads: int = 0) -> Self:
        """Load and verify the checkpoint at ``uri``; threads are as in :func:`use_threads`.

        Raises:
            NotFoundError: nothing lies there.
            ArtifactError: it is cut, changed, or no task model.
        """
        from clipmill.models.execution import use_threads

        use_threads(num_threads)
        return cls(*load_checkpoint(uri))

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Names, types, units and shapes of what :meth:`predict` gives."""
        return self.task.outputs

    def predict(self, images: Sequence[NDArray[Any]]) -> list[Prediction]:
        """A prediction for each image (H, W, 3) uint8; sizes may differ."""
        if self._cpu is not None:
            return self._cpu.map(lambda image_HW3: self._run([image_HW3])[0], images)
        by_size = defaultdict(list)
        for index, image_HW3 in enumerate(images):
            by_size[image_HW3.shape].append(index)
        predictions: list[Prediction] = [{}] * len(images)
        for indices in by_size.values():
            found = self._run([images[i] for i in indices])
            for index, prediction in zip(indices, found, strict=True):
                predictions[index] = prediction
        return predictions

    def _run(self, images: Sequence[NDArray[Any]]) -> list[Prediction]:
        """Predictions of images of one size."""
        import torch

        on_gpu = self._device.type == "cuda"
        shape = (len(images), *images[0].shape)
        batch_BHW3 = torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu)
        np.stack(images, out=batch_BHW3.numpy())
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            moved_B3HW = batch_BHW3.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            return self._by_image(self._network(moved_B3HW.float().div_(255)))

    def watch(self, listener: Listener) -> None:
        """From now on let ``listener`` hear the encoder's embedding of each image."""
        watch_encoder(self._network, self._network.get_submodule("encoder"), listener)

    def draw(self, prediction: Prediction, image_HW3: NDArray[Any]) -> NDArray[Any]:
        """A picture (H, W, 3) uint8 of a prediction, on or instead of its image."""
        return self.task.draw(prediction, image_HW3, self.classes)

    def _by_image(self, found: "Tensor | list[dict[str, Tensor]]") -> list[Prediction]:
        """What the network gave, as arrays of the promised types."""
        if not isinstance(found, list):
            (output,) = self.outputs
            found = [{output.name: tensor} for tensor in found.cpu()]
        return [
            {o.name: tensors[o.name].cpu().numpy().astype(o.dtype) for o in self.outputs}
            for tensors in found
        ]
