"""Adapter of segmentation, depth, and any task whose output is an array of the image's size.

Shapes: n images in a request, H W an image's height and width, C classes, P pixels of all images.
"""

import io
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.models.embedding_stats import EmbeddingCallback
from clipmill.serve.adapters.base import Item, ModelAdapter, Tensors, require_images_only
from clipmill.serve.errors import BadRequestError, RejectReason
from clipmill.serve.protocol.images import DATATYPES
from clipmill.serve.protocol.request import InferenceInputs, InferenceParameters
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import class_palette
from clipmill.telemetry import serving_metrics

_MAX_MILLIMETRES: Final = 65535
_DRIFT_PIXELS: Final = 64


class DenseAdapter(ModelAdapter):
    """Class ids (uint8) or metres (float32) for every pixel."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.metadata = predictor.metadata
        self.kind = predictor.task.name
        (self._output,) = predictor.outputs
        self._is_classes = self._output.dtype == "uint8"

    def input_specs(self) -> list[dict[str, Any]]:
        """Describe encoded images. UINT8 pixels are accepted too, which V2 can't describe."""
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]

    def output_specs(self) -> list[dict[str, Any]]:
        """Describe one array of the images' size."""
        datatype = DATATYPES[self._output.dtype]
        return [{"name": self._output.name, "datatype": datatype, "shape": [-1, -1, -1]}]

    def describe(self) -> dict[str, Any]:
        """Return class names and their colors, or the unit of depth."""
        classes = list(self.predictor.classes)
        return {
            "outputs": [{"name": self._output.name, "unit": self._output.unit}],
            "codings": ["raw", "png"] if self._is_classes else ["raw", "float16", "png"],
            "classes": classes,
            "palette": class_palette(len(classes)).tolist() if classes else [],
        }

    def validate(self, inputs: InferenceInputs, parameters: InferenceParameters) -> None:
        """Accept images only, and an output format that the output has."""
        require_images_only(inputs)
        if parameters.output == "rle":
            raise BadRequestError(RejectReason.PARAMETER, "'rle' is a format of objects' masks")
        if self._is_classes and parameters.output == "float16":
            raise BadRequestError(
                RejectReason.PARAMETER, "class ids are whole numbers: take 'raw' or 'png'"
            )

    def predict_batch(self, items: Sequence[Item]) -> list[NDArray[Any]]:
        """Return an output (H, W) for each image."""
        predictions = self.predictor.predict(cast("Sequence[NDArray[np.uint8]]", items))
        return [prediction[self._output.name] for prediction in predictions]

    def add_embedding_hook(self, hook: EmbeddingCallback) -> None:
        """Call ``hook`` with the encoder's embeddings of all images from now on."""
        self.predictor.add_embedding_hook(hook)

    def build_v2_outputs(
        self,
        inputs: InferenceInputs,
        results: Sequence[NDArray[Any]],
        parameters: InferenceParameters,
    ) -> Tensors:
        """Return the output as (n, H, W), or as BYTES (n,) for PNG.

        Raw images of several sizes come end to end as (P,), with ``sizes`` (n, 2): H, W of each.
        """
        del inputs
        name = self._output.name
        if parameters.output == "png":
            files = np.empty(len(results), object)
            files[:] = [self._encode_png(output_HW) for output_HW in results]
            return {name: files}
        dtype = np.float16 if parameters.output == "float16" else np.dtype(self._output.dtype)
        arrays = [output_HW.astype(dtype, copy=False) for output_HW in results]
        if len({array.shape for array in arrays}) == 1:
            return {name: np.stack(arrays)}
        sizes = np.array([array.shape for array in arrays], np.int64)
        return {name: np.concatenate([array.ravel() for array in arrays]), "sizes": sizes}

    def build_v1_predictions(
        self,
        inputs: InferenceInputs,
        results: Sequence[NDArray[Any]],
        parameters: InferenceParameters,
    ) -> list[dict[str, Any]]:
        """Return one array or PNG per image; their sizes may differ."""
        return [
            {
                self._output.name: self.build_v2_outputs(inputs, [result], parameters)[
                    self._output.name
                ][0]
            }
            for result in results
        ]

    def record_output_metrics(self, model: str, results: Sequence[NDArray[Any]]) -> None:
        """Record the classes, or the depths, of a few pixels of each output."""
        metrics = serving_metrics()
        for output_HW in results:
            sample = output_HW.ravel()[:: max(1, output_HW.size // _DRIFT_PIXELS)]
            if not self._is_classes:
                histogram = metrics.predicted_depth_meters.labels(model)
                for depth in sample.tolist():
                    histogram.observe(depth)
                continue
            for index, count in zip(*np.unique(sample, return_counts=True), strict=True):
                fraction = metrics.predicted_class_fraction.labels(model, self._class_name(index))
                fraction.inc(count / sample.size)

    def _class_name(self, index: int) -> str:
        classes = self.predictor.classes
        return classes[index] if index < len(classes) else str(index)

    def _encode_png(self, output_HW: NDArray[Any]) -> bytes:
        file = io.BytesIO()
        if self._is_classes:
            height, width = output_HW.shape
            image = Image.frombytes("P", (width, height), output_HW.tobytes())
            image.putpalette(class_palette().tobytes())
        else:
            millimetres_HW = np.clip(np.rint(output_HW * 1000), 0, _MAX_MILLIMETRES)
            image = Image.fromarray(millimetres_HW.astype(np.uint16))
        image.save(file, "PNG", compress_level=1)
        return file.getvalue()
