"""Load on an endpoint, beside a plain KServe model with the same network and codec.

    python benchmarks/serve_load.py MODEL_URI [--side 256] [--seconds 5]

``MODEL_URI`` is a task model. Prints, for both servers: p50 over the bare forward with one client,
images a second with 32 clients that ask one after another, and what comes of an open loop, which
sends at ten times that rate whether answers come or not, while liveness is asked ten times a
second.
"""

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from clipmill.serve.client import pixels_request
from clipmill.serve.ports import free_port
from clipmill.serve.process import ServerProcess
from clipmill.tasks.predictor import Predictor

NUM_CLIENTS = 32
OVERLOAD = 10
HOST = "127.0.0.1"


def serve_plainly(uri: str, port: int) -> None:
    """KServe as its documentation has it: a synchronous predict, no batches, no limits."""
    sys.argv = sys.argv[:1]
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

    class Plain(Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("model")
            self.predictor = Predictor(uri)
            self.ready = True

        def predict(self, payload: InferRequest, *_: Any) -> InferResponse:
            (output_HW,) = self.predictor.predict([payload.inputs[0].as_numpy()])[0].values()
            output = InferOutput("output", [1, *output_HW.shape], "UINT8")
            output.set_data_from_numpy(output_HW[None], binary_data=True)
            return InferResponse("1", "model", [output], use_binary_outputs=True)

    ModelServer(http_port=port, enable_grpc=False, workers=1).start([Plain()])


class Target:
    """A server under load."""

    def __init__(self, port: int, body: bytes, headers: dict[str, str]) -> None:
        self.port, self._body, self._headers = port, body, headers
        self._local = threading.local()

    def ask(self) -> tuple[int, float]:
        """Status and seconds of one request, over the thread's connection; -1 for none."""
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        started = time.perf_counter()
        try:
            connection = self._local.connection
            connection.request("POST", "/v2/models/model/infer", self._body, self._headers)
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            self._local.connection.close()
            status = -1
        return status, time.perf_counter() - started

    def live_seconds(self) -> float:
        """How long a liveness probe takes."""
        started = time.perf_counter()
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        connection.close()
        return time.perf_counter() - started


def one_client(target: Target, number: int = 40) -> float:
    """Median milliseconds of a request with nobody else there."""
    return median(target.ask()[1] for _ in range(number)) * 1000


def closed_loop(target: Target, seconds: float) -> float:
    """Images a second with 32 clients."""
    end = time.perf_counter() + seconds

    def run(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            count += target.ask()[0] == 200
        return count

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        return sum(pool.map(run, range(NUM_CLIENTS))) / seconds


def open_loop(target: Target, rate: float, seconds: float) -> dict[str, Any]:
    """What comes of ``rate`` requests a second, and of liveness probes meanwhile."""
    probes: list[float] = []
    is_done = threading.Event()

    def probe() -> None:
        while not is_done.wait(0.1):
            probes.append(target.live_seconds())

    prober = threading.Thread(target=probe)
    prober.start()
    started = time.perf_counter()
    with ThreadPoolExecutor(256) as pool:
        answers = []
        for index in range(int(rate * seconds)):
            time.sleep(max(0.0, started + index / rate - time.perf_counter()))
            answers.append(pool.submit(target.ask))
        found = [answer.result() for answer in answers]
    is_done.set()
    prober.join()
    served = [seconds for status, seconds in found if status == 200]
    refused = [seconds for status, seconds in found if status == 503]
    return {
        "sent_per_second": round(rate),
        "statuses": dict(Counter(status for status, _ in found)),
        "p99_200_ms": _p99(served),
        "p99_503_ms": _p99(refused),
        "p99_live_ms": _p99(probes),
        "max_live_ms": round(max(probes, default=0) * 1000, 1),
    }


def _p99(seconds: list[float]) -> float | None:
    return round(quantiles(seconds, n=100)[98] * 1000, 1) if len(seconds) > 1 else None


def measure(target: Target, forward_ms: float, seconds: float) -> dict[str, Any]:
    """All figures of one server."""
    alone = one_client(target)
    rate = closed_loop(target, seconds)
    return {
        "p50_ms": round(alone, 2),
        "over_forward_ms": round(alone - forward_ms, 2),
        "images_per_second": round(rate, 1),
        "overload": open_loop(target, OVERLOAD * rate, seconds / 2),
    }


def bare_forward(uri: str, image_HW3: np.ndarray, number: int = 40) -> float:
    """Median milliseconds of the network without a server."""
    predictor = Predictor(uri)

    def run() -> float:
        started = time.perf_counter()
        predictor.predict([image_HW3])
        return time.perf_counter() - started

    return median(run() for _ in range(number)) * 1000


def wait_for(is_up: Callable[[], object]) -> None:
    """Return once it doesn't raise any more."""
    for _ in range(600):
        try:
            is_up()
        except OSError:
            time.sleep(0.1)
        else:
            return


def main() -> None:
    """Measure both, one after the other, and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--plain-port", type=int)
    options = parser.parse_args()
    if options.plain_port:
        serve_plainly(options.model, options.plain_port)
        return
    side = options.side
    image_HW3 = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    body, headers = pixels_request(image_HW3)
    forward_ms = bare_forward(options.model, image_HW3)
    results: dict[str, Any] = {"forward_ms": round(forward_ms, 2)}
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "log"
        with ServerProcess({"model": options.model}, log_path=log_path) as server:
            ours = Target(server.http_port, body, headers)
            results["clipmill"] = measure(ours, forward_ms, options.seconds)
        port = free_port(HOST)
        command = [sys.executable, __file__, options.model, "--plain-port", str(port)]
        with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as plain:
            target = Target(port, body, headers)
            wait_for(target.live_seconds)
            results["plain"] = measure(target, forward_ms, options.seconds)
            plain.kill()
    ratio = results["clipmill"]["images_per_second"] / results["plain"]["images_per_second"]
    results["images_per_second_ratio"] = round(ratio, 2)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
