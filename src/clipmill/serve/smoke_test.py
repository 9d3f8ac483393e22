"""Smoke test of a server: start it, send requests to each model, store responses and latencies."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from numpy.typing import NDArray

from clipmill.config import digest_json
from clipmill.lineage import Parent, read_artifact_file
from clipmill.serve.client import binary_request, curl_command, query
from clipmill.serve.launch import ServerProcess
from clipmill.stage_records import ProgressCallback
from clipmill.storage import artifact_uri, exists, join, write_bytes, write_json
from clipmill.tasks.registry import get_task
from clipmill.tasks.visualization import encode_png

_RESULT = "smoke_test.json"
_REQUEST = "request.bin"
_NUM_TIMED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SmokeTestModel:
    """A model to test."""

    task: str
    """Its task, also its name as an endpoint."""
    model: Parent
    """Its URI and digest."""


def run_smoke_test(
    models: tuple[SmokeTestModel, ...],
    image_HW3: NDArray[Any],
    store: str,
    *,
    report: ProgressCallback,
) -> str:
    """Start all models in one KServe server, and query each over HTTP with binary tensors.

    Returns the URI of the result under ``store``, named by the digest of models and image. It holds
    overlays, median latencies, and clipmill's lines of ``/metrics``.

    Raises:
        ServerError: the server doesn't start, or doesn't answer.
    """
    parents = [m.model for m in models]
    digest = digest_json([[p.digest for p in parents], encode_png(image_HW3).hex()])
    uri = artifact_uri(store, "smoke_tests", digest[:12])
    if exists(join(uri, _RESULT)):
        return uri
    report(0, len(models), "starting")
    with tempfile.TemporaryDirectory(prefix="clipmill-smoke-test-") as scratch:
        uris = {m.task: m.model.uri for m in models}
        with ServerProcess(uris, log_path=Path(scratch) / "server.log") as server:
            endpoints = []
            for number, model in enumerate(models, start=1):
                endpoints.append(_send_and_time(server.url, model, image_HW3, uri))
                report(number, len(models), f"{model.task} answered")
            metrics = scrape_metrics(server.url)
    write_json(
        join(uri, _RESULT),
        {
            "format": 1,
            "kind": "smoke_test",
            "digest": digest,
            "endpoints": endpoints,
            "metrics": metrics,
            "parents": [p.to_json() for p in parents],
        },
    )
    return uri


def read_smoke_test(uri: str) -> dict[str, Any]:
    """Return the JSON of the smoke test at ``uri``."""
    result: dict[str, Any] = read_artifact_file(uri, _RESULT, "clipmill demo")
    return result


def scrape_metrics(url: str) -> str:
    """Return clipmill's lines of the server's ``/metrics``."""
    with urlopen(f"{url}/metrics", timeout=10) as response:  # noqa: S310  # a local server
        lines = response.read().decode().splitlines()
    return "\n".join(line for line in lines if "clipmill_serve" in line and "_created" not in line)


def _send_and_time(
    url: str, model: SmokeTestModel, image_HW3: NDArray[Any], uri: str
) -> dict[str, Any]:
    seconds = []
    for _ in range(_NUM_TIMED):
        started = time.perf_counter()
        output_HW = query(url, model.task, image_HW3)
        seconds.append(time.perf_counter() - started)
    write_bytes(join(uri, f"{model.task}-image.png"), encode_png(image_HW3))
    body, headers = binary_request(encode_png(image_HW3))
    write_bytes(join(uri, _REQUEST), body)
    task = get_task(model.task)
    overlay = encode_png(task.visualize({task.outputs[0].name: output_HW}, image_HW3, ()))
    write_bytes(join(uri, f"{model.task}-answer.png"), overlay)
    return {
        "name": model.task,
        "task": model.task,
        "model": model.model.uri,
        "digest": model.model.digest,
        "milliseconds": median(seconds) * 1000,
        "request": f"POST /v2/models/{model.task}/infer",
        "curl": _curl_command(model.task, headers),
    }


def _curl_command(name: str, headers: Mapping[str, str]) -> str:
    return curl_command(
        "http://127.0.0.1:8080",
        name,
        body_path=Path(_REQUEST),
        header_length=int(headers["Inference-Header-Content-Length"]),
        output_path=Path(f"{name}-answer.bin"),
    )
