"""Segmentation and depth, or any task that answers an image with an array of its size.

Shapes: n images in a request, H W an image's height and width, C classes, P pixels of all images.
"""

import io
from collections.abc import Sequence
from typing import Any, Final, cast
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from clipmill.models.embedding_stats import Listener
from clipmill.serve.protocol.request import InferenceInputs
from clipmill.serve.protocol.images import DATATYPES
from clipmill.serve.protocol.request import Options
from clipmill.serve.errors import BadRequestError
from clipmill.serve.adapters.base import Item, ModelAdapter, Tensors, require_images_only
from clipmill.tasks.visualization import class_palette
from clipmill.tasks.predictor import Predictor
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

    def inputs(self) -> list[dict[str, Any]]:
        """Encoded images. UINT8 pixels are taken too, which V2 has no word for."""
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]

    def outputs(self) -> list[dict[str, Any]]:
        """One array of the images' size."""
        datatype = DATATYPES[self._output.dtype]
        return [{"name": self._output.name, "datatype": datatype, "shape": [-1, -1, -1]}]

    def describe(self) -> dict[str, Any]:
        """Class names and their colours, or the unit of depth."""
        classes = list(self.predictor.classes)
        return {
            "outputs": [{"name": self._output.name, "unit": self._output.unit}],
            "codings": ["raw", "png"] if self._is_classes else ["raw", "float16", "png"],
            "classes": classes,
            "palette": class_palette(len(classes)).tolist() if classes else [],
        }

    def check(self, asked: InferenceInputs, options: Options) -> None:
        """Images alone, in a coding that the output has."""
        require_images_only(asked)
        if options.output == "rle":
            raise BadRequestError("parameter", "'rle' is a coding of objects' masks")
        if self._is_classes and options.output == "float16":
            raise BadRequestError("parameter", "class ids are whole numbers: take 'raw' or 'png'")

    def predict(self, items: Sequence[Item]) -> list[NDArray[Any]]:
        """An output (H, W) for each image."""
        predictions = self.predictor.predict(cast("Sequence[NDArray[np.uint8]]", items))
        return [prediction[self._output.name] for prediction in predictions]

    def watch(self, listener: Listener) -> None:
        """Tell ``listener`` the encoder's embedding of each image."""
        self.predictor.add_embedding_hook(listener)

    def answer(self, asked: InferenceInputs, results: Sequence[NDArray[Any]], options: Options) -> Tensors:
        """The output as (n, H, W), or as BYTES (n,) for PNG.

        Raw images of several sizes come end to end as (P,), with ``sizes`` (n, 2): H, W of each.
        """
        del asked
        name = self._output.name
        if options.output == "png":
            files = np.empty(len(results), object)
            files[:] = [self._png(output_HW) for output_HW in results]
            return {name: files}
        dtype = np.float16 if options.output == "float16" else np.dtype(self._output.dtype)
        arrays = [output_HW.astype(dtype, copy=False) for output_HW in results]
        if len({array.shape for array in arrays}) == 1:
            return {name: np.stack(arrays)}
        sizes = np.array([array.shape for array in arrays], np.int64)
        return {name: np.concatenate([array.ravel() for array in arrays]), "sizes": sizes}

    def answer_each(
        self, asked: InferenceInputs, results: Sequence[NDArray[Any]], options: Options
    ) -> list[dict[str, Any]]:
        """One array or PNG an image; their sizes may differ."""
        return [
            {self._output.name: self.answer(asked, [result], options)[self._output.name][0]}
            for result in results
        ]

    def observe(self, model: str, results: Sequence[NDArray[Any]]) -> None:
        """The classes, or the metres, of a few pixels of each answer."""
        metrics = serving_metrics()
        for output_HW in results:
            few = output_HW.ravel()[:: max(1, output_HW.size // _DRIFT_PIXELS)]
            if not self._is_classes:
                histogram = metrics.predicted_metres.labels(model)
                for metres in few.tolist():
                    histogram.observe(metres)
                continue
            for index, count in zip(*np.unique(few, return_counts=True), strict=True):
                metrics.predicted_share.labels(model, self._class(index)).inc(count / few.size)

    def _class(self, index: int) -> str:
        classes = self.predictor.classes
        return classes[index] if index < len(classes) else str(index)

    def _png(self, output_HW: NDArray[Any]) -> bytes:
        file = io.BytesIO()
        if self._is_classes:
            height, width = output_HW.shape
            picture = Image.frombytes("P", (width, height), output_HW.tobytes())
            picture.putpalette(class_palette().tobytes())
        else:
            millimetres_HW = np.clip(np.rint(output_HW * 1000), 0, _MAX_MILLIMETRES)
            picture = Image.fromarray(millimetres_HW.astype(np.uint16))
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()
