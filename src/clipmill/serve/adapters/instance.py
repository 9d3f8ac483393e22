"""Adapter of detection, classification, and other tasks with arrays of other sizes.

Shapes: n images in a request, N objects of an image, C classes, k of them named.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from clipmill.models.embedding_stats import EmbeddingCallback
from clipmill.serve.adapters.base import (
    Item,
    ModelAdapter,
    Tensors,
    require_images_only,
    top_k_labels,
)
from clipmill.serve.errors import BadRequestError, RejectReason
from clipmill.serve.protocol.images import DATATYPES
from clipmill.serve.protocol.request import InferenceInputs, InferenceParameters
from clipmill.serve.protocol.rle import encode_rle
from clipmill.tasks.base import OutputSpec, Prediction
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import class_palette, object_color_index

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
        del inputs
        if parameters.top_k and self._has(_PROBABILITIES):
            probabilities_nC = np.stack([prediction[_PROBABILITIES] for prediction in results])
            names_nk, scores_nk = top_k_labels(
                self._predictor.classes, probabilities_nC, parameters.top_k
            )
            return {"top_labels": names_nk, "top_probabilities": scores_nk}
        predictions = [
            self._apply_threshold_and_top_k(prediction, parameters) for prediction in results
        ]
        if parameters.output == "rle":
            predictions = [
                {**prediction, _MASKS: _encode_rle_json(prediction[_MASKS])}
                for prediction in predictions
            ]
        return pack_ragged(self._predictor.outputs, predictions)

    def build_v1_predictions(
        self, inputs: InferenceInputs, results: Sequence[Any], parameters: InferenceParameters
    ) -> list[dict[str, Any]]:
        """Return each image's own arrays; with ``rle`` its masks as COCO's objects."""
        if parameters.top_k and self._has(_PROBABILITIES):
            return super().build_v1_predictions(inputs, results, parameters)
        each = [self._apply_threshold_and_top_k(prediction, parameters) for prediction in results]
        if parameters.output == "rle":
            return [{**one, _MASKS: [encode_rle(mask) for mask in one[_MASKS]]} for one in each]
        return each

    def _apply_threshold_and_top_k(
        self, prediction: Prediction, parameters: InferenceParameters
    ) -> dict[str, Any]:
        """Return the objects that the parameters select; a prediction lists the best first."""
        if not self._has(_SCORES):
            return dict(prediction)
        selected = np.flatnonzero(prediction[_SCORES] >= parameters.threshold)
        selected = selected[: parameters.top_k or None]
        return {name: array[selected] for name, array in prediction.items()}

    def _has(self, name: str) -> bool:
        return any(output.name == name for output in self._predictor.outputs)


def _encode_rle_json(masks_NHW: NDArray[Any]) -> NDArray[Any]:
    files = np.empty(len(masks_NHW), object)
    files[:] = [orjson.dumps(encode_rle(mask_HW)) for mask_HW in masks_NHW]
    return files


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
