"""A chat endpoint on this machine, over real sockets, that misbehaves as it is told."""

import base64
import io
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


class ChatServer(ThreadingHTTPServer):
    """Answers ``/v1/chat/completions``; ``plan`` says how the first requests go wrong, in order.

    A step is a name of ``_Handler``'s methods below, or a status with headers; what comes after
    the plan, or stands as "ok" in it, is answered well.
    """

    daemon_threads = True

    def __init__(self, plan=(), *, answer=None, always=None, choices=None, logprob=-0.5, tokens=10):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan = list(plan)
        self.always = always
        self.answer = answer or (lambda body, k: f"about {text_of(body)}, take {k}")
        self.choices = choices
        self.logprob = logprob
        self.tokens = tokens
        self.bodies = []
        self.headers = []
        self.times = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.pause = 0.0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that have gone away are part of the game."""

    def step(self):
        with self.lock:
            self.times.append(time.monotonic())
            if self.always:
                return self.always
            return self.plan.pop(0) if self.plan else "ok"

    def counts(self):
        """How often each text was asked about."""
        return Counter(text_of(body) for body in self.bodies)


def text_of(body):
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def image_of(body):
    url = body["messages"][-1]["content"][1]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            if self.path != "/v1/chat/completions":
                self.send(404, b"no such path")
                return
            step = server.step()
            if isinstance(step, tuple):
                status, headers = step
                self.send(status, json.dumps({"error": self.echo()}).encode(), headers)
            else:
                getattr(self, step.replace("-", "_"))(body)
        finally:
            with server.lock:
                server.under_way -= 1

    def echo(self):
        return f"status for {self.headers['authorization']}"

    def send(self, status, data, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value() if callable(value) else value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def completion(self, body):
        server = self.server
        count = min(body.get("n", 1), server.choices or body.get("n", 1))
        choices = []
        for k in range(count):
            message = {"role": "assistant", "content": server.answer(body, k)}
            choice = {"index": k, "message": message, "finish_reason": "stop"}
            if body.get("logprobs"):
                token = {"token": "x", "logprob": server.logprob - k}
                choice["logprobs"] = {"content": [token, token]}
            choices.append(choice)
        usage = {"usage": {"total_tokens": server.tokens}} if server.tokens else {}
        return json.dumps({"id": "1", "object": "chat.completion", "choices": choices, **usage})

    def ok(self, body):
        time.sleep(self.server.pause)
        self.send(200, self.completion(body).encode())

    def cut(self, body):
        """The connection ends in the middle of the body."""
        data = self.completion(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def cut_chunks(self, body):
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\n{'cho\r\n")
        self.close_connection = True

    def hang_up(self, body):
        """No answer at all."""
        self.close_connection = True

    def malformed(self, body):
        self.send(200, b'{"choices": [{"message": ')

    def foreign(self, body):
        self.send(200, b'{"result": "a picture"}')

    def html(self, body):
        self.send(200, b"<html>login</html>", {"content-type": "text/html"})

    def no_choice(self, body):
        self.send(200, b'{"choices": []}')

    def parts(self, body):
        self.send(200, b'{"choices": [{"message": {"content": {"a": 1}}}]}')

    def bad_gzip(self, body):
        self.send(200, b"not gzip", {"content-encoding": "gzip"})

    def filtered(self, body):
        choice = {"message": {"content": None}, "finish_reason": "content_filter"}
        self.send(200, json.dumps({"choices": [choice]}).encode())

    def null(self, body):
        choice = {"message": {"content": None}, "finish_reason": "stop"}
        self.send(200, json.dumps({"choices": [choice]}).encode())

    def surrogate(self, body):
        self.send(200, b'{"choices": [{"message": {"content": "half \\ud83d pair"}}]}')

    def drip(self, body):
        """A byte now and then, for ever: no read takes long, all of it does."""
        self.send_response(200)
        self.send_header("content-length", "1000000")
        self.end_headers()
        while not self.server.released.wait(0.02):
            self.wfile.write(b" ")
            self.wfile.flush()

    def flood(self, body):
        """More than any answer can have."""
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for _ in range(40):
            self.wfile.write(b" " * 2**18)

    def silence(self, body):
        self.server.released.wait(30)
        self.close_connection = True

    def redirect(self, body):
        self.send(307, b"", {"location": "http://127.0.0.1:9/steal"})
