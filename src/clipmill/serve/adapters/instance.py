"""Detection, classification, and any task whose prediction isn't an array of the image's size.

Shapes: n images in a request, N objects of an image, C classes, k of them named.
"""

from collections.abc import Sequence
from typing import Any, Final, cast
import numpy as np
import orjson
from numpy.typing import NDArray
from clipmill.models.embedding_stats import Listener
from clipmill.serve.protocol.request import InferenceInputs
from clipmill.serve.protocol.images import DATATYPES
from clipmill.serve.protocol.request import Options
from clipmill.serve.errors import BadRequestError
from clipmill.serve.protocol.rle import encode_rle
from clipmill.serve.adapters.base import Item, ModelAdapter, Tensors, top_k_labels, require_images_only
from clipmill.tasks.base import OutputSpec, Prediction
from clipmill.tasks.visualization import object_color_index
from clipmill.tasks.visualization import class_palette
from clipmill.tasks.predictor import Predictor

_MASKS: Final = "masks"
_SCORES: Final = "scores"
_PROBABILITIES: Final = "probabilities"


class InstanceAdapter(ModelAdapter):
    """The arrays that a task names, with ``counts`` where each image has a number of its own."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.metadata = predictor.metadata
        self.kind = predictor.task.name

    def inputs(self) -> list[dict[str, Any]]:
        """Encoded images."""
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]

    def outputs(self) -> list[dict[str, Any]]:
        """The task's arrays, all images' together."""
        described = [
            {
                "name": output.name,
                "datatype": DATATYPES[output.dtype],
                "shape": [-1] * (len(output.shape) + (not _is_counted(output))),
            }
            for output in self._predictor.outputs
        ]
        if any(_is_counted(output) for output in self._predictor.outputs):
            described.append({"name": "counts", "datatype": "INT64", "shape": [-1]})
        if self._has(_PROBABILITIES):
            described += [
                {"name": "top_labels", "datatype": "BYTES", "shape": [-1, -1]},
                {"name": "top_probabilities", "datatype": "FP32", "shape": [-1, -1]},
            ]
        return described

    def describe(self) -> dict[str, Any]:
        """Units and axes of the arrays; class names and colours."""
        outputs, classes = self._predictor.outputs, list(self._predictor.classes)
        return {
            "outputs": [
                {"name": o.name, "unit": o.unit, "axes": [str(axis) for axis in o.shape]}
                for o in outputs
            ],
            "codings": ["raw", "rle"] if self._has(_MASKS) else ["raw"],
            "classes": classes,
            "palette": class_palette()[[object_color_index(n) for n in range(len(classes))]].tolist(),
        }

    def check(self, asked: InferenceInputs, options: Options) -> None:
        """Images alone; a threshold, and run lengths, for objects alone."""
        require_images_only(asked)
        if options.output not in self.describe()["codings"]:
            raise BadRequestError(
                "parameter", f"{self.kind} answers {self.describe()['codings']} alone"
            )
        if options.threshold and not self._has(_SCORES):
            raise BadRequestError("parameter", f"{self.kind} has no 'threshold'")

    def predict(self, items: Sequence[Item]) -> list[Any]:
        """A prediction for each image."""
        return list(self._predictor.predict(cast("Sequence[NDArray[np.uint8]]", items)))

    def watch(self, listener: Listener) -> None:
        """Tell ``listener`` the encoder's embedding of each image."""
        self._predictor.add_embedding_hook(listener)

    def answer(self, asked: InferenceInputs, results: Sequence[Any], options: Options) -> Tensors:
        """Arrays of all images together; see :func:`together`.

        With ``rle`` each of the ``masks`` (N,) is the JSON of an :class:`~clipmill.serve.protocol.rle.Rle`.
        With ``top_k`` a classification is ``top_labels`` and ``top_probabilities`` (n, k).
        """
        del asked
        if options.top_k and self._has(_PROBABILITIES):
            probabilities_nC = np.stack([prediction[_PROBABILITIES] for prediction in results])
            names_nk, scores_nk = top_k_labels(
                self._predictor.classes, probabilities_nC, options.top_k
            )
            return {"top_labels": names_nk, "top_probabilities": scores_nk}
        kept = [self._kept(prediction, options) for prediction in results]
        if options.output == "rle":
            kept = [{**prediction, _MASKS: _rle_files(prediction[_MASKS])} for prediction in kept]
        return together(self._predictor.outputs, kept)

    def answer_each(
        self, asked: InferenceInputs, results: Sequence[Any], options: Options
    ) -> list[dict[str, Any]]:
        """Each image's own arrays; with ``rle`` its masks as COCO's objects."""
        if options.top_k and self._has(_PROBABILITIES):
            return super().answer_each(asked, results, options)
        each = [self._kept(prediction, options) for prediction in results]
        if options.output == "rle":
            return [{**one, _MASKS: [encode_rle(mask) for mask in one[_MASKS]]} for one in each]
        return each

    def _kept(self, prediction: Prediction, options: Options) -> dict[str, Any]:
        """The objects that are asked for; a prediction names the best first."""
        if not self._has(_SCORES):
            return dict(prediction)
        chosen = np.flatnonzero(prediction[_SCORES] >= options.threshold)
        chosen = chosen[: options.top_k or None]
        return {name: array[chosen] for name, array in prediction.items()}

    def _has(self, name: str) -> bool:
        return any(output.name == name for output in self._predictor.outputs)


def _rle_files(masks_NHW: NDArray[Any]) -> NDArray[Any]:
    files = np.empty(len(masks_NHW), object)
    files[:] = [orjson.dumps(encode_rle(mask_HW)) for mask_HW in masks_NHW]
    return files


def together(outputs: Sequence[OutputSpec], predictions: Sequence[Prediction]) -> Tensors:
    """Arrays of several images as one each.

    What an image has N of comes end to end, with ``counts`` (n,): how many are each image's.

    Raises:
        BadRequestError: the images' sizes differ, and so do their masks'.
    """
    tensors: Tensors = {}
    for output in outputs:
        arrays = [prediction[output.name] for prediction in predictions]
        counted = _is_counted(output)
        if len({array.shape[1:] if counted else array.shape for array in arrays}) > 1:
            raise BadRequestError(
                "image_shape", f"{output.name!r} needs images of one size in a V2 request"
            )
        tensors[output.name] = np.concatenate(arrays) if counted else np.stack(arrays)
        if counted:
            tensors["counts"] = np.array([len(array) for array in arrays], np.int64)
    return tensors


def _is_counted(output: OutputSpec) -> bool:
    """Whether the first axis is a number that each image has for itself."""
    return output.shape[0] not in {"H", "W", "C"} and isinstance(output.shape[0], str)
