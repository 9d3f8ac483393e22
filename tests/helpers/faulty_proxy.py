"""A proxy that adds a path prefix, holds requests back, and fails on demand."""

import threading
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, Self


class Answer(NamedTuple):
    """A response that the proxy gives itself."""

    status: int
    body: bytes
    headers: dict[str, str] = {}  # noqa: RUF012  # never changed


class Prediction(NamedTuple):
    """A request for a prediction."""

    path: str
    content_type: str | None
    body: bytes


@dataclass
class Faults:
    """What goes wrong, and the predictions that were requested."""

    next_answers: list[Answer] = field(default_factory=list)
    """Answers to the next predictions, in place of the server's."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """Answers by path, query excluded, in place of the server's."""
    is_open: threading.Event = field(default_factory=threading.Event)
    """Predictions wait while it isn't set."""
    predictions: list[Prediction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_open.set()


class FaultyProxy(ThreadingHTTPServer):
    """As a context manager it serves inside."""

    daemon_threads = True

    def __init__(self, target: str, prefix: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.prefix = prefix
        self.faults = Faults()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.prefix}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.is_open.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
        pass

    def do_GET(self) -> None:
        self._forward(None)

    def do_POST(self) -> None:
        self._forward(self.rfile.read(int(self.headers["Content-Length"])))

    def _forward(self, body: bytes | None) -> None:
        faults, path = self.server.faults, self.path.removeprefix(self.server.prefix)
        if not self.path.startswith(self.server.prefix):
            return self._send(Answer(404, b"<h1>Not found</h1>"))
        if body is not None:
            faults.predictions.append(Prediction(path, self.headers["Content-Type"], body))
            faults.is_open.wait(60)
            if faults.next_answers:
                return self._send(faults.next_answers.pop(0))
        if answer := faults.answers.get(path.partition("?")[0]):
            return self._send(answer)
        request = urllib.request.Request(self.server.target + path, body)
        if body is not None:
            request.add_header("Content-Type", self.headers["Content-Type"])
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return self._send(Answer(response.status, response.read(), dict(response.headers)))
        except urllib.error.HTTPError as error:
            return self._send(Answer(error.code, error.read(), dict(error.headers)))

    def _send(self, answer: Answer) -> None:
        dropped = {"content-length", "connection", "date", "server", "transfer-encoding"}
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        with suppress(OSError):  # the browser has left
            self.wfile.write(answer.body)
