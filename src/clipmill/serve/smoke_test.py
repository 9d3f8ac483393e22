"""A look at endpoints: start them, ask each about a few pictures, keep what they answered."""

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
from clipmill.lineage import Parent
from clipmill.serve.client import binary_request, curl_command, query
from clipmill.serve.launch import ServerProcess
from clipmill.stage_records import Report
from clipmill.storage import exists, join, read_json, write_bytes, write_json
from clipmill.tasks.registry import get_task
from clipmill.tasks.visualization import encode_png

_RESULT = "probe.json"
_REQUEST = "request.bin"
_NUM_TIMED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SmokeTestModel:
    """A model to start and ask."""

    task: str
    """Its task, also its name as an endpoint."""
    model: Parent
    """Where it lies, and its digest."""


def probe(
    models: tuple[SmokeTestModel, ...],
    image_HW3: NDArray[Any],
    store: str,
    *,
    report: Report,
) -> str:
    """Start all models in one KServe server, and query each over HTTP with binary tensors.

    The URI of what was found, under ``store``: the answers drawn, median times, and the lines of
    ``/metrics`` that are ours. It is kept by digest of models and picture.

    Raises:
        ServerError: the server doesn't start, or doesn't answer.
    """
    parents = [m.model for m in models]
    digest = digest_json([[p.digest for p in parents], encode_png(image_HW3).hex()])
    uri = join(store, "probes", digest[:12])
    if exists(join(uri, _RESULT)):
        return uri
    report(0, len(models), "starting")
    with tempfile.TemporaryDirectory(prefix="clipmill-probe-") as scratch:
        named = {m.task: m.model.uri for m in models}
        with ServerProcess(named, log_path=Path(scratch) / "server.log") as server:
            endpoints = []
            for number, model in enumerate(models, start=1):
                endpoints.append(_ask(server.url, model, image_HW3, uri))
                report(number, len(models), f"{model.task} answered")
            metrics = scrape(server.url)
    write_json(
        join(uri, _RESULT),
        {
            "format": 1,
            "kind": "probe",
            "digest": digest,
            "endpoints": endpoints,
            "metrics": metrics,
            "parents": [p.to_json() for p in parents],
        },
    )
    return uri


def read_smoke_test(uri: str) -> dict[str, Any]:
    """What the probe at ``uri`` found."""
    found: dict[str, Any] = read_json(join(uri, _RESULT))
    return found


def scrape(url: str) -> str:
    """The lines of the server's ``/metrics`` that tell of our models."""
    with urlopen(f"{url}/metrics", timeout=10) as response:  # noqa: S310  # a server of ours
        lines = response.read().decode().splitlines()
    return "\n".join(line for line in lines if "clipmill_serve" in line and "_created" not in line)


def curl_lines(url: str, models: Mapping[str, str], image_png: bytes, folder: Path) -> list[str]:
    """Write a request body for a picture into ``folder``; the line that asks each model."""
    body, headers = binary_request(image_png)
    (folder / _REQUEST).write_bytes(body)
    return [_curl_line(url, name, headers, folder) for name in models]


def _ask(url: str, model: SmokeTestModel, image_HW3: NDArray[Any], uri: str) -> dict[str, Any]:
    seconds = []
    for _ in range(_NUM_TIMED):
        started = time.perf_counter()
        answer_HW = query(url, model.task, image_HW3)
        seconds.append(time.perf_counter() - started)
    write_bytes(join(uri, f"{model.task}-image.png"), encode_png(image_HW3))
    body, headers = binary_request(encode_png(image_HW3))
    write_bytes(join(uri, _REQUEST), body)
    task = get_task(model.task)
    picture = encode_png(task.visualize({task.outputs[0].name: answer_HW}, image_HW3, ()))
    write_bytes(join(uri, f"{model.task}-answer.png"), picture)
    return {
        "name": model.task,
        "task": model.task,
        "model": model.model.uri,
        "digest": model.model.digest,
        "milliseconds": median(seconds) * 1000,
        "request": f"POST /v2/models/{model.task}/infer",
        "curl": _curl_line("http://127.0.0.1:8080", model.task, headers, Path()),
    }


def _curl_line(url: str, name: str, headers: Mapping[str, str], folder: Path) -> str:
    return curl_command(
        url,
        name,
        body_path=folder / _REQUEST,
        header_length=int(headers["Inference-Header-Content-Length"]),
        output_path=folder / f"{name}-answer.bin",
    )
