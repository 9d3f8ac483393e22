"""A small Kubernetes API over HTTP: custom resources and pods in memory, its errors in JSON.

It keeps what it is sent, merges patches as RFC 7396 says, and lets a test play the controllers:
``on_change(resource)`` is called after each write and may set its status; ``admit(new, old)``
returns a webhook's message where it refuses a write, ``interfere(method, path)`` a code and a
message.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

from clipmill.cluster.api import ClusterApi


class ApiServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.resources: dict[str, dict] = {}
        self.pods: list[dict] = []
        self.events: list[dict] = []
        self.config_maps: dict[str, dict] = {}
        self.secrets: set[str] = set()
        self.forbidden_paths: set[str] = set()
        self.queries: list[dict] = []
        self.on_read: Callable[[str], None] = lambda path: None
        self.logs: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.history: list[dict] = []
        self.forbidden: set[str] = set()
        self.on_change: Callable[[dict], None] = lambda resource: None
        self.admit: Callable[[dict, dict | None], str] = lambda new, old: ""
        self.interfere: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()

    def api(self) -> ClusterApi:
        """A client of ours at this server."""
        return ClusterApi(client_at(f"http://127.0.0.1:{self.server_port}"))


def client_at(url: str) -> client.ApiClient:
    configuration = client.Configuration()
    configuration.host = url
    configuration.retries = False
    return client.ApiClient(configuration)


def merged(base: object, patch: object) -> object:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    made = dict(base) if isinstance(base, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merged(made.get(name), value)
    return made


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, *args) -> None:
        """Be quiet."""

    def _answer(self, code: int, body: object) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, code: int, message: str) -> None:
        self._answer(code, {"kind": "Status", "status": "Failure", "message": message})

    def _begin(self) -> tuple[str, dict, object]:
        url = urlsplit(self.path)
        self.server.requests.append((self.command, url.path))
        self.server.queries.append(parse_qs(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        return url.path, parse_qs(url.query), body

    def _refuses(self) -> bool:
        path = urlsplit(self.path).path
        if failure := self.server.interfere(self.command, path):
            self._fail(*failure)
            return True
        if self.command in self.server.forbidden or path in self.server.forbidden_paths:
            self._fail(403, "the service account cannot do that")
            return True
        return False

    def do_GET(self) -> None:
        path, query, _ = self._begin()
        if self._refuses():
            return
        self.server.on_read(path)
        if "/secrets/" in path:
            namespace, _, name = path.removeprefix("/api/v1/namespaces/").split("/")
            is_there = f"{namespace}/{name}" in self.server.secrets
            self._answer(200, {}) if is_there else self._fail(404, f"{path} not found")
        elif "/configmaps/" in path:
            self._config_map(path)
        elif path.endswith("/events"):
            self._answer(200, {"items": self.server.events})
        elif "/pods" in path:
            self._pods(path, query)
        elif path in self.server.resources:
            self._answer(200, self.server.resources[path])
        elif any(key.startswith(path + "/") for key in self.server.resources):
            wanted = query.get("labelSelector", [""])[0]
            found = [v for k, v in self.server.resources.items() if k.startswith(path + "/")]
            self._answer(200, {"items": [r for r in found if _bears(r, wanted)]})
        else:
            self._fail(404, f"{path} not found")

    def _config_map(self, path: str) -> None:
        namespace, _, name = path.removeprefix("/api/v1/namespaces/").split("/")
        config_map = self.server.config_maps.get(f"{namespace}/{name}")
        if config_map is None:
            self._fail(404, f"{path} not found")
        else:
            self._answer(200, config_map)

    def _pods(self, path: str, query: dict) -> None:
        if path.endswith("/log"):
            name = path.split("/")[-2]
            self._answer(200, self.server.logs[f"{name}/{query['container'][0]}"])
            return
        wanted = query["labelSelector"][0]
        self._answer(200, {"items": [pod for pod in self.server.pods if _bears(pod, wanted)]})

    def do_POST(self) -> None:
        path, query, body = self._begin()
        assert query["fieldValidation"] == ["Strict"]
        if self._refuses():
            return
        meta = body["metadata"]
        meta.setdefault("name", meta.get("generateName", "") + "x7k2p")
        key = f"{path}/{meta['name']}"
        if key in self.server.resources:
            self._fail(409, f"{meta['name']} already exists")
            return
        if message := self.server.admit(body, None):
            self._fail(403, message)
            return
        self._keep(key, body)
        self._answer(201, body)

    def do_PATCH(self) -> None:
        path, _, body = self._begin()
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        if self._refuses():
            return
        if path not in self.server.resources:
            self._fail(404, f"{path} not found")
            return
        changed = merged(self.server.resources[path], body)
        if message := self.server.admit(changed, self.server.resources[path]):
            self._fail(403, message)
            return
        self._keep(path, changed)
        self._answer(200, self.server.resources[path])

    def do_DELETE(self) -> None:
        path, _, _ = self._begin()
        if self._refuses():
            return
        if self.server.resources.pop(path, None) is None:
            self._fail(404, f"{path} not found")
        else:
            self._answer(200, {"kind": "Status", "status": "Success"})

    def _keep(self, key: str, resource: dict) -> None:
        self.server.resources[key] = resource
        self.server.history.append(json.loads(json.dumps(resource)))
        self.server.on_change(resource)


def _bears(resource: dict, selector: str) -> bool:
    labels = resource["metadata"].get("labels", {})
    pairs = [part.partition("=") for part in selector.split(",") if part]
    return all(labels.get(name) == value for name, _, value in pairs)
