"""Load on an endpoint: where the time of a request goes, and what overload does to probes.

    python benchmarks/serve_load.py MODEL_URI [--side 512] [--seconds 5] [--rounds 3]
        [--rates RATE ...] [--detection MODEL_URI]

``MODEL_URI`` is a segmentation model; ``bench.py serving`` compares with other servers. Prints p50
with one client over the bare forward, images a second with 32 clients that ask one after another,
the CPU time that the server took for one, and where the time of a request goes. Then an open loop
sends at ten times that rate, whether answers come or not (a full queue takes ``full_queue_ms`` at
the rate at which answers come then), while a process of its own probes liveness and, beside it, a
server that does nothing; right after, 32 clients ask for a second. With rates, that open loop alone
is run. With a detection model, it is run with every eighth request a photo of 2048 x 2048 pixels
whose masks come as 60 MB of JSON.
"""

import argparse
import http.client
import io
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TextIO

import numpy as np
from harness.processes import cpu_seconds, tree
from numpy.typing import NDArray
from PIL import Image

from clipmill.processes import free_port
from clipmill.serve.client import pixels_request
from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ServerProcess
from clipmill.serve.smoke_test import scrape_metrics
from clipmill.tasks.predictor import Predictor

NUM_ALONE = 40
NUM_CLIENTS = 32
OVERLOAD = 10
HOST = "127.0.0.1"
PARTS = ("preprocess", "queue_wait", "infer", "postprocess")


class Target:
    """A server under load."""

    def __init__(
        self, port: int, pid: int, path: str, live: str, body: bytes, headers: dict[str, str]
    ) -> None:
        self.port, self.pid, self.live = port, pid, live
        self._path, self._body, self._headers = path, body, headers
        self._local = threading.local()

    def request(self) -> tuple[str, bytes, dict[str, str]]:
        """Return path, body and headers of the next request."""
        return self._path, self._body, self._headers

    def ask(self) -> tuple[int, float]:
        """Status and seconds of one request, over the thread's connection; -1 for none."""
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        started = time.perf_counter()
        try:
            connection = self._local.connection
            connection.request("POST", *self.request())
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            self._local.connection.close()
            status = -1
        return status, time.perf_counter() - started

    def wait(self) -> None:
        """Return once it answers."""
        for _ in range(3000):
            if self.ask()[0] == 200:
                return
            time.sleep(0.1)
        raise SystemExit(f"the server at {self.port} doesn't answer")

    def cpu_seconds(self) -> float:
        """CPU time of its processes so far."""
        return cpu_seconds(self.pid)


class MixedTarget(Target):
    """A server of two models, with every eighth request a large one for detection."""

    _numbers = itertools.count()

    def request(self) -> tuple[str, bytes, dict[str, str]]:
        """Return path, body and headers of the next request."""
        if next(self._numbers) % 8:
            return super().request()
        return LARGE_PATH, LARGE_BODY, {"Content-Type": "image/jpeg"}


def _photo(side: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    Image.fromarray(noise).resize((side, side)).save(file, "JPEG", quality=90)
    return file.getvalue()


LARGE_PATH = "/v2/models/detection/infer?top_k=7"
LARGE_BODY = _photo(2048)


def closed_loop(target: Target, seconds: float) -> tuple[float, float]:
    """Images a second with 32 clients, and CPU seconds an image."""
    before = target.cpu_seconds()
    end = time.perf_counter() + seconds

    def run(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            count += target.ask()[0] == 200
        return count

    started = time.perf_counter()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        count = sum(pool.map(run, range(NUM_CLIENTS)))
    rate = count / (time.perf_counter() - started)
    return rate, (target.cpu_seconds() - before) / max(count, 1)


def open_loop(target: Target, control_port: int, rate: float, seconds: float) -> dict[str, Any]:
    """What comes of ``rate`` requests a second, and of liveness probes meanwhile."""
    addresses = [f"{target.port}{target.live}", f"{control_port}/"]
    command = [sys.executable, __file__, "--probe", *addresses]
    prober = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started = time.perf_counter()
    with ThreadPoolExecutor(256) as pool:
        answers = []
        for index in range(int(rate * seconds)):
            time.sleep(max(0.0, started + index / rate - time.perf_counter()))
            answers.append(pool.submit(target.ask))
        found = [answer.result() for answer in answers]
    took = time.perf_counter() - started
    ours, control = json.loads(prober.communicate()[0])
    served = [seconds for status, seconds in found if status == 200]
    refused = [seconds for status, seconds in found if status == 503]
    return {
        "sent_per_second": round(rate),
        "statuses": dict(Counter(status for status, _ in found)),
        "p99_200_ms": _p99(served),
        "full_queue_ms": _ms(ServingConfig().max_queue_size * took / max(len(served), 1)),
        "p99_503_ms": _p99(refused),
        "live_ms": {"p99": _p99(ours), "max": _ms(max(ours))},
        "control_live_ms": {"p99": _p99(control), "max": _ms(max(control))},
        "num_probes": len(ours),
        "images_per_second_after": round(closed_loop(target, 1)[0], 1),
    }


def _set_at_end(stream: TextIO, event: threading.Event) -> None:
    stream.read()
    event.set()


def probe(addresses: list[str]) -> None:
    """Ask each twenty times a second until standard input closes; print the seconds they took."""
    is_done = threading.Event()
    threading.Thread(target=_set_at_end, args=(sys.stdin, is_done), daemon=True).start()
    seconds: list[list[float]] = [[] for _ in addresses]
    while not is_done.wait(0.05):
        for address, found in zip(addresses, seconds, strict=True):
            port, _, path = address.partition("/")
            started = time.perf_counter()
            connection = http.client.HTTPConnection(HOST, int(port), timeout=60)
            connection.request("GET", f"/{path}")
            connection.getresponse().read()
            connection.close()
            found.append(time.perf_counter() - started)
    print(json.dumps(seconds))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _p99(seconds: list[float]) -> float | None:
    return _ms(quantiles(seconds, n=100, method="inclusive")[98]) if len(seconds) > 1 else None


def bare_forward(predictor: Predictor, image_HW3: NDArray[np.uint8]) -> float:
    """Seconds of the network without a server."""
    started = time.perf_counter()
    predictor.predict([image_HW3])
    return time.perf_counter() - started


def sums_of(url: str) -> dict[str, float]:
    """Total seconds of each part of our requests so far, and their number."""
    values = dict(
        line.rsplit(" ", 1) for line in scrape_metrics(url).splitlines() if line[0] != "#"
    )
    found = {
        part: float(values[f'clipmill_serve_{part}_seconds_sum{{model="model"}}']) for part in PARTS
    }
    return found | {"count": float(values['clipmill_serve_infer_seconds_count{model="model"}'])}


def start_peer(
    python: str, file: str, uri: str, log_path: Path, stack: ExitStack, *options: str
) -> tuple[int, int]:
    """Port and process id of a peer; it ends with ``stack``."""
    port = free_port(HOST)
    command = [python, str(Path(__file__).with_name(file)), str(port), uri, *options]
    log = stack.enter_context(log_path.with_name(f"{port}.log").open("wb"))
    process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop() -> None:
        children = tree(process.pid)[1:]
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:
            subprocess.run(["kill", "-9", str(child)], check=False, stderr=subprocess.DEVNULL)

    stack.callback(stop)
    return port, process.pid


def main() -> None:
    """Measure all in turn, and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", type=float)
    parser.add_argument("--probe", nargs="+")
    parser.add_argument("--detection", help="URI of a detection model")
    options = parser.parse_args()
    if options.probe:
        probe(options.probe)
        return
    shape = (options.side, options.side, 3)
    image_HW3 = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    predictor = Predictor.open(options.model)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        log_path = Path(folder) / "log"
        models = {"model": options.model}
        if options.detection:
            models["detection"] = options.detection
        ours = ServerProcess(models, log_path=log_path)
        stack.enter_context(ours)
        binary = pixels_request(image_HW3)
        infer, live = "/v2/models/model/infer", "/v2/health/live"
        targets = {"clipmill": Target(ours.http_port, ours.pid, infer, live, *binary)}
        control_port, _ = start_peer(sys.executable, "serve_overhead.py", "", log_path, stack)
        if options.detection:
            mixed = MixedTarget(ours.http_port, ours.pid, infer, live, *binary)
            mixed.wait()
            rate, _ = closed_loop(mixed, options.seconds)
            found = open_loop(mixed, control_port, OVERLOAD * rate, options.seconds)
            print(json.dumps({"closed_loop_per_second": round(rate, 2), **found}))
            return
        if options.rates:
            targets["clipmill"].wait()
            for rate in options.rates:
                found = open_loop(targets["clipmill"], control_port, rate, options.seconds / 2)
                print(json.dumps(found), flush=True)
            return
        for target in targets.values():
            target.wait()
        measure(targets, predictor, image_HW3, ours.url, control_port, options)


def measure(
    targets: dict[str, Target],
    predictor: Predictor,
    image_HW3: NDArray[np.uint8],
    url: str,
    control_port: int,
    options: argparse.Namespace,
) -> None:
    """Rounds of bare forward, of one client and of 32 clients; then the overload.

    One client asks many times in a row: turns with other processes would put threads to sleep.
    """
    forward: list[float] = []
    alone: dict[str, list[float]] = {name: [] for name in targets}
    loops: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
    parts: Counter[str] = Counter()
    for _ in range(options.rounds):
        before = Counter(sums_of(url))
        forward += (bare_forward(predictor, image_HW3) for _ in range(NUM_ALONE))
        for name, target in targets.items():
            alone[name] += (target.ask()[1] for _ in range(NUM_ALONE))
        parts.update(sums_of(url))
        parts.subtract(before)
        for name, target in targets.items():
            loops[name].append(closed_loop(target, options.seconds))
    forward_ms = _ms(median(forward))
    results: dict[str, Any] = {"forward_ms": forward_ms}
    for name, target in targets.items():
        rate = median(rate for rate, _ in loops[name])
        results[name] = {
            "p50_ms": _ms(median(alone[name])),
            "over_forward_ms": round(_ms(median(alone[name])) - forward_ms, 2),
            "images_per_second": [round(rate, 1) for rate, _ in loops[name]],
            "cpu_ms_per_image": _ms(median(cpu for _, cpu in loops[name])),
            "overload": open_loop(target, control_port, OVERLOAD * rate, options.seconds / 2),
        }
    shares = {part: parts[part] / parts["count"] for part in PARTS}
    rest = sum(alone["clipmill"]) / len(alone["clipmill"]) - sum(shares.values())
    results["clipmill"]["mean_ms"] = {name: _ms(s) for name, s in {**shares, "rest": rest}.items()}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
