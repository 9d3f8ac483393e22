"""Checks of a canary: answers to the evaluation's images, and the errors that Prometheus counts.

Shapes: H W image height and width.
"""

import io
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.cluster.constants import TRACK_LABEL
from clipmill.cluster.kserve import InferenceServiceConfig
from clipmill.cluster.monitoring.series import SERVED_REQUESTS
from clipmill.errors import ClusterError, GateError, ServerError
from clipmill.serve.client import Client
from clipmill.tasks.base import Prediction
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.registry import get_task
from clipmill.tasks.visualization import BAR_BACKGROUND, upscale_factor, upscale_nearest

_TIMEOUT_SECONDS: Final = 10
_SAME_COLOR: Final = 24
"""Largest difference of a channel between colors that count as the same, of 255: devices round."""
_LABEL_TOLERANCE: Final = 0.05
"""Largest loss of agreement with the labels against the evaluation, 0 to 1."""
T = TypeVar("T")


def check_answers(
    url: str,
    name: str,
    result: EvaluationResult,
    *,
    min_agreement: float,
    answer_seconds: float,
    poll_interval_seconds: float = 1.0,
) -> str:
    """Send the evaluation's images to a server, and compare its answers; return what was seen.

    Answers are drawn as the evaluation drew its predictions and its labels, and compared by pixel.
    Connections that are refused are tried again for ``answer_seconds``: a pod is ready before every
    node knows the way to it.

    Raises:
        ServerError: no server answers, or the status isn't 200.
        GateError: the answers differ from the evaluation's, or agree less with the labels.
    """
    client = Client(url)
    end = time.monotonic() + answer_seconds

    def retried(call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except ServerError as error:
                # An answer of the server's own, such as a 500, counts at once.
                has_answered = isinstance(error.__cause__, urllib.error.HTTPError)
                if has_answered or time.monotonic() >= end:
                    raise
                time.sleep(poll_interval_seconds)

    classes = tuple(retried(lambda: client.metadata(name))["parameters"]["classes"])
    task = get_task(result.task)
    same, served, evaluated = [], [], []
    for index in range(result.num_samples):
        image_HW3 = _read(result, index, "image")
        answer = retried(lambda: _predict(client, name, result.task, image_HW3))  # noqa: B023  # called at once
        drawn_HW3 = task.visualize(answer, image_HW3, classes)
        truth_HW3, prediction_HW3 = (_read(result, index, n) for n in ("truth", "prediction"))
        same.append(agreement(drawn_HW3, prediction_HW3, image_HW3))
        served.append(agreement(drawn_HW3, truth_HW3, image_HW3))
        evaluated.append(agreement(prediction_HW3, truth_HW3, image_HW3))
    if not same:
        return "it has started and describes its model; the evaluation keeps no image to send"
    images = "1 labeled image" if len(same) == 1 else f"{len(same)} labeled images"
    seen = (
        f"{images} of the evaluation: the answers agree with the evaluation by "
        f"{np.mean(same):.0%}, and with the labels by {np.mean(served):.0%} "
        f"(evaluated: {np.mean(evaluated):.0%})"
    )
    if np.mean(same) < min_agreement or np.mean(served) < np.mean(evaluated) - _LABEL_TOLERANCE:
        raise GateError(
            f"{name} doesn't answer as it was evaluated: {seen}",
            expected=f"an agreement of {min_agreement:.0%}, and labels met as in the evaluation",
            action="compare the server's image and device with those of the evaluation",
        )
    return seen


def agreement(a_HW3: NDArray[Any], b_HW3: NDArray[Any], image_HW3: NDArray[Any]) -> float:
    """Return the share (0 to 1) of equal pixels, among those where either is drawn upon.

    Pixels of the image itself or of a panel's background don't count where both have them.
    """
    if a_HW3.shape != b_HW3.shape:
        return 0.0
    plain_HW3 = upscale_nearest(image_HW3, upscale_factor(image_HW3))
    background_HW3 = np.broadcast_to(np.array(BAR_BACKGROUND, np.uint8), a_HW3.shape)
    is_drawn_HW = np.ones(a_HW3.shape[:2], bool)
    if plain_HW3.shape == a_HW3.shape:
        for below_HW3 in (plain_HW3, background_HW3):
            is_drawn_HW &= ~(_same(a_HW3, below_HW3) & _same(b_HW3, below_HW3))
    if not is_drawn_HW.any():
        return 1.0
    return float(_same(a_HW3, b_HW3)[is_drawn_HW].mean())


def _same(a_HW3: NDArray[Any], b_HW3: NDArray[Any]) -> NDArray[Any]:
    difference_HW3 = np.abs(a_HW3.astype(np.int16) - b_HW3.astype(np.int16))
    same_HW: NDArray[Any] = difference_HW3.max(axis=2) <= _SAME_COLOR
    return same_HW


def _read(result: EvaluationResult, index: int, name: str) -> NDArray[Any]:
    with Image.open(io.BytesIO(result.read_image(index, name)), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"))


def _predict(client: Client, name: str, task: str, image_HW3: NDArray[Any]) -> Prediction:
    if task == "detection":
        return client.detect(name, [image_HW3])[0]
    outputs = client.infer(name, images=[image_HW3])
    return {output.name: outputs[output.name][0] for output in get_task(task).outputs}


class Prometheus:
    """A Prometheus server at a base URL, such as ``http://prometheus-operated.monitoring:9090``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def error_ratio(self, endpoint: InferenceServiceConfig, track: str) -> float | None:
        """Return the share of a track's requests in two minutes that got a 5xx; None without any.

        Raises:
            ClusterError: the server can't be queried.
        """
        # The PodMonitor turns the pods' label into this one.
        label = TRACK_LABEL.replace(".", "_").replace("/", "_")
        selector = f'model="{endpoint.name}",namespace="{endpoint.namespace}",{label}="{track}"'
        failed = f'(sum(rate({SERVED_REQUESTS}{{{selector},code=~"5.."}}[2m])) or vector(0))'
        value = self.value(f"{failed} / sum(rate({SERVED_REQUESTS}{{{selector}}}[2m]))")
        return None if value is None or math.isnan(value) else value

    def value(self, query: str) -> float | None:
        """Return the only value of an instant query, or None where there is none."""
        address = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                current = json.load(response)["data"]["result"]
        except (OSError, ValueError, KeyError) as error:
            raise ClusterError(
                f"Prometheus at {self._url} can't be queried: {error}",
                expected="a Prometheus that answers /api/v1/query",
                action="give its address with --prometheus",
            ) from error
        return float(current[0]["value"][1]) if current else None
