"""A task in one file: which pixels belong to an object, learnt from ADE20K's layout.

Shapes: B batch, H W image, S side.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.nn import functional as F

from clipmill.config import Config
from clipmill.models.encoders import build_dense
from clipmill.models.execution import resize_and_run
from clipmill.tasks.base import Metric, OutputSpec
from clipmill.tasks.objective import DenseObjective
from clipmill.tasks.training import TestSplit, TrainingSamples, TrainingTask

NUM_GROUNDS = 2  # a scene's first classes are its floor and wall


@dataclass(frozen=True, kw_only=True, slots=True)
class SaliencyConfig(Config):
    """Size alone."""

    size: int = 64
    """Side of a training picture, pixels."""


class SaliencyNetwork(nn.Module):
    def __init__(self, config, encoder):
        super().__init__()
        self.encoder = build_dense(encoder)
        self.head = nn.Conv2d(self.encoder.channels[-1], 1, 1)
        self._size = config.size

    def logits(self, images_B3HW):
        coarse = self.head(self.encoder(images_B3HW)[-1])
        return F.interpolate(coarse, images_B3HW.shape[-2:], mode="bilinear")

    def forward(self, images_B3HW):
        return resize_and_run(images_B3HW, self._size, self.encoder.strides[-1], self.logits)[
            :, 0
        ].sigmoid()


class SaliencyObjective(DenseObjective):
    def __init__(self, config, encoder):
        super().__init__()
        network = SaliencyNetwork(config, encoder)
        self.encoder, self.head = network.encoder, network.head
        self._logits = network.logits

    def forward(self, batch):
        logits = self._logits(batch["images"].permute(0, 3, 1, 2).float() / 255)[:, 0]
        return {"saliency": F.binary_cross_entropy_with_logits(logits, batch["salient"])}


class SaliencyTask(TrainingTask[SaliencyConfig]):
    name = "saliency"
    metric = Metric(name="mae", unit="", higher_is_better=False)
    outputs = (OutputSpec(name="saliency", dtype="float32", unit="probability"),)
    config_type = SaliencyConfig

    def classes(self, folder):
        return ()

    def input_sizes(self, config):
        return (config.size,)

    def build_objective(self, config, encoder, classes):
        return SaliencyObjective(config, encoder)

    def training_samples(self, config, folder):
        from clipmill.data.labeled.dense import SegmentationFolder
        from clipmill.data.transforms.dense import crop_pair

        data = SegmentationFolder.open(folder, "training")

        def load(index, generator):
            salient = (data.classes_HW(index) >= NUM_GROUNDS).astype(np.float32)
            image, salient = crop_pair(
                data.image_HW3(index), salient, config.size, generator, fill=0
            )
            return {"images": image, "salient": salient}

        return TrainingSamples(load=load, num_samples=len(data))

    def training_images(self, folder):
        from clipmill.data.labeled.dense import SegmentationFolder

        return SegmentationFolder.open(folder, "training")

    def build_inference_model(self, config, encoder, classes):
        return SaliencyNetwork(config, encoder)

    def inference_key(self, training_key):
        return training_key

    def test_split(self, config, folder, classes=(), split=""):
        return SaliencyTestSplit(folder)

    def visualize(self, prediction, image_HW3, classes):
        return (image_HW3 * prediction["saliency"][..., None]).astype(np.uint8)


class SaliencyTestSplit(TestSplit):
    def __init__(self, folder):
        from clipmill.data.labeled.dense import SegmentationFolder

        self.data = SegmentationFolder.open(folder, "validation")
        self.errors = []

    def __len__(self):
        return len(self.data)

    def image_HW3(self, index):
        return self.data.image_HW3(index)

    def truth(self, index):
        return {"saliency": (self.data.classes_HW(index) >= NUM_GROUNDS).astype(np.float32)}

    def update(self, index, truth, prediction):
        self.errors.append(abs(prediction["saliency"] - truth["saliency"]).mean())

    def compute(self):
        return {"mae": float(np.mean(self.errors))}
