"""Adapters of task models: outputs of the image's size, and arrays of any other sizes.

Shapes: n images in a request, H W an image's height and width, C classes, N objects of an image,
k classes that are named, P pixels of all images.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from clipmill.models.embedding_stats import EmbeddingCallback
from clipmill.serve.adapters.base import (
    Item,
    ModelAdapter,
    Tensors,
    classification_outputs,
    require_images_only,
)
from clipmill.serve.errors import BadRequestError, RejectReason
from clipmill.serve.protocol.images import DATATYPES, scale_boxes, scale_to
from clipmill.serve.protocol.png import encode_output_png
from clipmill.serve.protocol.request import InferenceInputs, InferenceParameters
from clipmill.serve.protocol.rle import Rle, encode_rle
from clipmill.tasks.base import OutputSpec, Prediction
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import class_palette, object_color_index
from clipmill.telemetry import serving_metrics

_DRIFT_PIXELS: Final = 64
_SIZES: Final = "sizes"


class DenseAdapter(ModelAdapter):
    """Class ids (uint8) or meters (float32) for every pixel."""

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
        """Describe one array of the images' size, and the sizes."""
        datatype = DATATYPES[self._output.dtype]
        return [
            {"name": self._output.name, "datatype": datatype, "shape": [-1, -1, -1]},
            {"name": _SIZES, "datatype": "INT64", "shape": [-1, 2]},
        ]

    def describe(self) -> dict[str, Any]:
        """Return class names and their colors, or the unit of depth."""
        classes = list(self.predictor.classes)
        output: dict[str, Any] = {"name": self._output.name, "unit": self._output.unit}
        if not self._is_classes:
            output["values_per_meter"] = self._output.png_scale
        return {
            "outputs": [output],
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
        name = self._output.name
        sizes_n2 = np.array(inputs.sizes, np.int64)
        sizes: Tensors = {_SIZES: sizes_n2} if _SIZES in parameters.outputs else {}
        if not parameters.is_wanted(name):
            return sizes
        results = [scale_to(*pair) for pair in zip(results, inputs.sizes, strict=True)]
        if parameters.output == "png":
            files = np.empty(len(results), object)
            files[:] = [encode_output_png(output, self._output.png_scale) for output in results]
            return {name: files, **sizes}
        dtype = np.float16 if parameters.output == "float16" else np.dtype(self._output.dtype)
        arrays = [output_HW.astype(dtype, copy=False) for output_HW in results]
        if (sizes_n2 == sizes_n2[0]).all():
            return {name: np.stack(arrays), **sizes}
        return {name: np.concatenate([array.ravel() for array in arrays]), _SIZES: sizes_n2}

    def build_v1_predictions(
        self,
        inputs: InferenceInputs,
        results: Sequence[NDArray[Any]],
        parameters: InferenceParameters,
    ) -> list[dict[str, Any]]:
        """Return one array or PNG per image; their sizes may differ."""
        name = self._output.name
        predictions = []
        for result, size in zip(results, inputs.sizes, strict=True):
            outputs = self.build_v2_outputs(replace(inputs, sizes=(size,)), [result], parameters)
            predictions.append({name: outputs[name][0]})
        return predictions

    def min_response_bytes(
        self, inputs: InferenceInputs, results: Sequence[Any], parameters: InferenceParameters
    ) -> int:
        """Return a byte or two for each pixel, except for PNG."""
        del results
        if parameters.output == "png" or not parameters.is_wanted(self._output.name):
            return 0
        return sum(map(prod, inputs.sizes)) * (1 if self._is_classes else 2)

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


_BOXES: Final = "boxes"
_MASKS: Final = "masks"
_SCORES: Final = "scores"
_PROBABILITIES: Final = "probabilities"


class InstanceAdapter(ModelAdapter):
    """The arrays that a task names, with ``counts`` where each image has a number of its own."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.metadata = predictor.metadata
        self.kind = predictor.task.name

    def input_specs(self) -> list[dict[str, Any]]:
        """Describe encoded images."""
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]

    def output_specs(self) -> list[dict[str, Any]]:
        """Describe the task's arrays, those of all images packed into one."""
        described = [
            {
                "name": output.name,
                "datatype": DATATYPES[output.dtype],
                "shape": [-1] * (len(output.shape) + (not _is_ragged(output))),
            }
            for output in self._predictor.outputs
        ]
        if any(_is_ragged(output) for output in self._predictor.outputs):
            described.append({"name": "counts", "datatype": "INT64", "shape": [-1]})
        if self._has(_PROBABILITIES):
            described += [
                {"name": "top_labels", "datatype": "BYTES", "shape": [-1, -1]},
                {"name": "top_probabilities", "datatype": "FP32", "shape": [-1, -1]},
            ]
        return described

    def describe(self) -> dict[str, Any]:
        """Return units and axes of the arrays, and class names and colors."""
        outputs, classes = self._predictor.outputs, list(self._predictor.classes)
        return {
            "outputs": [
                {"name": o.name, "unit": o.unit, "axes": [str(axis) for axis in o.shape]}
                for o in outputs
            ],
            "codings": ["raw", "rle"] if self._has(_MASKS) else ["raw"],
            "classes": classes,
            "palette": class_palette()[
                [object_color_index(n) for n in range(len(classes))]
            ].tolist(),
        }

    def validate(self, inputs: InferenceInputs, parameters: InferenceParameters) -> None:
        """Accept images only, and a threshold and run lengths for objects only."""
        require_images_only(inputs)
        if parameters.output not in self.describe()["codings"]:
            raise BadRequestError(
                RejectReason.PARAMETER, f"{self.kind} answers {self.describe()['codings']} alone"
            )
        if parameters.threshold and not self._has(_SCORES):
            raise BadRequestError(RejectReason.PARAMETER, f"{self.kind} has no 'threshold'")

    def predict_batch(self, items: Sequence[Item]) -> list[Any]:
        """Return a prediction for each image."""
        return list(self._predictor.predict(cast("Sequence[NDArray[np.uint8]]", items)))

    def add_embedding_hook(self, hook: EmbeddingCallback) -> None:
        """Call ``hook`` with the encoder's embeddings of all images from now on."""
        self._predictor.add_embedding_hook(hook)

    def build_v2_outputs(
        self, inputs: InferenceInputs, results: Sequence[Any], parameters: InferenceParameters
    ) -> Tensors:
        """Return the arrays of all images packed into one each; see :func:`pack_ragged`.

        With ``rle`` each of the ``masks`` (N,) is the JSON of an ``Rle``.
        With ``top_k`` a classification is ``top_labels`` and ``top_probabilities`` (n, k).
        """
        if self._has(_PROBABILITIES):
            probabilities_nC = np.stack([prediction[_PROBABILITIES] for prediction in results])
            return classification_outputs(self._predictor.classes, probabilities_nC, parameters)
        predictions = self._selected_objects(inputs, results, parameters)
        if parameters.output == "rle" and parameters.is_wanted(_MASKS):
            predictions = [
                {**prediction, _MASKS: _as_json(prediction[_MASKS])} for prediction in predictions
            ]
        outputs = [output for output in self._predictor.outputs if output.name in predictions[0]]
        return pack_ragged(outputs, predictions)

    def build_v1_predictions(
        self, inputs: InferenceInputs, results: Sequence[Any], parameters: InferenceParameters
    ) -> list[dict[str, Any]]:
        """Return each image's own arrays; with ``rle`` its masks as COCO's objects."""
        if parameters.top_k and self._has(_PROBABILITIES):
            return super().build_v1_predictions(inputs, results, parameters)
        return self._selected_objects(inputs, results, parameters)

    def min_response_bytes(
        self, inputs: InferenceInputs, results: Sequence[Any], parameters: InferenceParameters
    ) -> int:
        """Return the size of the masks as raw bytes."""
        if parameters.output == "rle" or not self._has(_MASKS) or not parameters.is_wanted(_MASKS):
            return 0
        selected = (self._apply_threshold_and_top_k(result, parameters) for result in results)
        counts = [len(prediction[_MASKS]) for prediction in selected]
        return sum(n * prod(size) for n, size in zip(counts, inputs.sizes, strict=True))

    def _selected_objects(
        self,
        inputs: InferenceInputs,
        results: Sequence[Prediction],
        parameters: InferenceParameters,
    ) -> list[dict[str, Any]]:
        """Return each image's objects in its own pixels; masks are run lengths with ``rle``."""
        predictions = []
        for result, size, network_size in zip(
            results, inputs.sizes, inputs.network_sizes, strict=True
        ):
            prediction = self._apply_threshold_and_top_k(result, parameters)
            if _BOXES in prediction:
                prediction[_BOXES] = scale_boxes(prediction[_BOXES], size, network_size)
            if _MASKS in prediction:
                masks = (scale_to(mask_HW, size) for mask_HW in prediction[_MASKS])
                if parameters.output == "rle":
                    prediction[_MASKS] = [encode_rle(mask_HW) for mask_HW in masks]
                elif size != network_size:
                    empty = np.empty((0, *size), np.uint8)
                    prediction[_MASKS] = np.stack(list(masks)) if len(prediction[_MASKS]) else empty
            predictions.append(prediction)
        return predictions

    def _apply_threshold_and_top_k(
        self, prediction: Prediction, parameters: InferenceParameters
    ) -> dict[str, Any]:
        """Return the objects that the parameters select; a prediction lists the best first.

        Arrays that aren't wanted are left out, but for the scores, which ``counts`` needs.
        """
        if not self._has(_SCORES):
            return dict(prediction)
        count = int(np.count_nonzero(prediction[_SCORES] >= parameters.threshold))
        count = min(count, parameters.top_k or count)
        return {
            name: array[:count]
            for name, array in prediction.items()
            if name == _SCORES or parameters.is_wanted(name)
        }

    def _has(self, name: str) -> bool:
        return any(output.name == name for output in self._predictor.outputs)


def _as_json(masks: Sequence[Rle]) -> NDArray[Any]:
    texts = np.empty(len(masks), object)
    texts[:] = [orjson.dumps(mask) for mask in masks]
    return texts


def pack_ragged(outputs: Sequence[OutputSpec], predictions: Sequence[Prediction]) -> Tensors:
    """Pack the arrays of several images into one each.

    Arrays of N objects per image are concatenated; ``counts`` (n,) holds each image's N.

    Raises:
        BadRequestError: the images' sizes differ, and so do their masks'.
    """
    tensors: Tensors = {}
    for output in outputs:
        arrays = [prediction[output.name] for prediction in predictions]
        is_ragged = _is_ragged(output)
        if len({array.shape[1:] if is_ragged else array.shape for array in arrays}) > 1:
            raise BadRequestError(
                RejectReason.IMAGE_SHAPE,
                f"{output.name!r} needs images of one size in a V2 request",
            )
        tensors[output.name] = np.concatenate(arrays) if is_ragged else np.stack(arrays)
        if is_ragged:
            tensors["counts"] = np.array([len(array) for array in arrays], np.int64)
    return tensors


def _is_ragged(output: OutputSpec) -> bool:
    """Return whether the first axis is a number of objects, which differs between images."""
    return output.shape[0] not in {"H", "W", "C"} and isinstance(output.shape[0], str)
