"""A small web server whose answers a test sets, and a log of its requests."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Web:
    """Answers by path: one for all requests, a list for the first ones, or a function."""

    root: str = ""
    answers: dict[str, Answer | list[Answer] | Callable[[Any], Answer | None]] = field(
        default_factory=dict
    )
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    delay: float = 0.0
    most_at_once: int = 0

    @property
    def counts(self) -> Counter[str]:
        """Requests by path."""
        return Counter(path for path, _ in self.requests)


@contextmanager
def serve(host: str = "127.0.0.1") -> Iterator[Web]:
    """A server on a free port of ``host``."""
    web = Web()
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            nonlocal at_once
            with lock:
                at_once += 1
                web.most_at_once = max(web.most_at_once, at_once)
                web.requests.append((self.path, dict(self.headers)))
                answer = web.answers.get(self.path, (404, {}, b""))
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
            if web.delay:
                time.sleep(web.delay)
            with lock:  # before the answer, which the client may act on at once
                at_once -= 1
            if callable(answer):
                answer = answer(self)
            if answer is not None:
                status, headers, body = answer
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    web.root = f"http://{host}:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
