"""HTTP parsers of uvicorn under bodies of several sizes: httptools, h11, and the server's own.

    python benchmarks/serve_http.py [--rounds 5] [--seconds 1]

Each parser serves, in a process of its own, an app that reads a body and answers with its length.
One client sends over one connection, to the parsers by turns. Prints of each size the requests a
second and the server's CPU milliseconds of a request, and of each parser the median ratio of its
CPU time to httptools' in the same round (below 1 is better).
"""

import argparse
import http.client
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import uvicorn
from harness.processes import cpu_seconds
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from clipmill.processes import free_port
from clipmill.serve.config import ServingConfig
from clipmill.serve.server.http_protocol import HttpProtocol

PARSERS: dict[str, Any] = {
    "httptools": HttpToolsProtocol,
    "h11": H11Protocol,
    "clipmill": partial(HttpProtocol, ServingConfig()),
}
SIZES = (1_000, 100_000, 1_000_000, 16_000_000)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Read a body as the server does, and respond with its length."""
    del scope
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    text = str(len(body)).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def serve(parser: str, port: int) -> None:
    """Serve until killed."""
    settings: dict[str, Any] = {"log_level": "error", "lifespan": "off", "ws": "none"}
    uvicorn.run(answer, port=port, http=PARSERS[parser], **settings)


def measure(port: int, pid: int, body: bytes, seconds: float) -> tuple[float, float]:
    """Return requests a second, and the server's CPU seconds of one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    before, started, count = cpu_seconds(pid), time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        connection.request("POST", "/", body, {"Content-Type": "image/jpeg"})
        assert int(connection.getresponse().read()) == len(body)
        count += 1
    took = time.perf_counter() - started
    connection.close()
    return count / took, (cpu_seconds(pid) - before) / count


def wait_for(port: int) -> None:
    """Return once something listens."""
    while True:
        try:
            http.client.HTTPConnection("127.0.0.1", port).connect()
        except OSError:
            time.sleep(0.1)
        else:
            return


def main() -> None:
    """Measure all parsers by turns, and print what each took."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=1)
    arguments.add_argument("--serve", nargs=2, metavar=("PARSER", "PORT"))
    options = arguments.parse_args()
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return
    servers = {}
    for parser in PARSERS:
        port = free_port()
        command = [sys.executable, str(Path(__file__)), "--serve", parser, str(port)]
        servers[parser] = (port, subprocess.Popen(command))
    try:
        for port, _ in servers.values():
            wait_for(port)
        for size in SIZES:
            rounds = [
                {
                    parser: measure(port, process.pid, bytes(size), options.seconds)
                    for parser, (port, process) in servers.items()
                }
                for _ in range(options.rounds)
            ]
            print(json.dumps({"body_bytes": size} | summarize(rounds)), flush=True)
    finally:
        for _, process in servers.values():
            process.kill()


def summarize(rounds: list[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """Return each parser's medians."""
    return {
        parser: {
            "requests_per_second": round(median(each[parser][0] for each in rounds), 1),
            "cpu_ms": round(median(each[parser][1] for each in rounds) * 1000, 3),
            "cpu_over_httptools": round(
                median(each[parser][1] / each["httptools"][1] for each in rounds), 2
            ),
        }
        for parser in PARSERS
    }


if __name__ == "__main__":
    main()
