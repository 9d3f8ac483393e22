"""A small registry that answers as Kubeflow's does (Model Registry 0.3, REST ``v1alpha3``).

MODEL_REGISTRY_URL names a real one instead; the same tests pass with both. Fields that the
published OpenAPI document doesn't have are refused.
"""

import json
import os
import re
import secrets
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BASE = "/api/model_registry/v1alpha3"
CREATE = {
    "registered_models": {"name", "description", "customProperties", "externalId", "owner",
                          "readme", "maturity", "language", "tasks", "provider", "state"},
    "versions": {"name", "registeredModelId", "description", "customProperties", "externalId",
                 "author", "state"},
    "artifacts": {"name", "artifactType", "uri", "description", "customProperties", "externalId",
                  "state", "modelFormatName", "modelFormatVersion", "storageKey", "storagePath",
                  "serviceAccountName"},
}  # fmt: skip
VALUES = {
    "MetadataStringValue": ("string_value", str),
    "MetadataDoubleValue": ("double_value", float),
}


class RefusedError(Exception):
    """An answer with a code other than 200."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Registry:
    """Models, their versions and the versions' artifacts."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.models: dict[str, dict] = {}
        self.versions: dict[str, dict] = {}
        self.artifacts: dict[str, list[dict]] = {}
        self.writes: list[str] = []
        self.page = 100

    def authorize(self, header: str) -> None:
        if self.token and header != f"Bearer {self.token}":
            raise RefusedError(401, "no token")

    def answer(self, method: str, path: str, query: dict[str, str], body: dict) -> dict:
        if method != "GET":
            self.writes.append(f"{method} {path}")
        if (method, path) == ("GET", "registered_model"):
            return self._one([m for m in self.models.values() if m["name"] == query["name"]])
        if (method, path) == ("GET", "model_version"):
            found = [
                v
                for v in self.versions.values()
                if (v["name"], v["registeredModelId"]) == (query["name"], query["parentResourceId"])
            ]
            return self._one(found)
        if (method, path) == ("POST", "registered_models"):
            return self._create(self.models, body, "registered_models")
        kind, _, rest = path.partition("/")
        number, _, part = rest.partition("/")
        if kind == "registered_models" and number in self.models:
            return self._of_model(method, self.models[number], part, query, body)
        if kind == "model_versions" and number in self.versions and part == "artifacts":
            artifacts = self.artifacts.setdefault(number, [])
            if method == "GET":
                return {"items": artifacts, "size": len(artifacts), "nextPageToken": ""}
            if body.get("artifactType") != "model-artifact":
                raise RefusedError(400, "artifactType")
            made: dict[str, dict] = {a["id"]: a for a in artifacts}
            artifacts.append(self._create(made, body, "artifacts"))
            return artifacts[-1]
        raise RefusedError(404, f"{path}: not found")

    def _of_model(self, method: str, model: dict, part: str, query: dict, body: dict) -> dict:
        if (method, part) == ("PATCH", ""):
            self._check(body, CREATE["registered_models"] - {"name"})
            model.update(body)  # custom properties are replaced, not merged
            return model
        if part != "versions":
            raise RefusedError(404, "not found")
        if method == "POST":
            if body.get("registeredModelId") != model["id"]:
                raise RefusedError(400, "registeredModelId")
            return self._create(self.versions, body, "versions")
        own = [v for v in self.versions.values() if v["registeredModelId"] == model["id"]]
        if query.get("sortOrder") == "DESC":
            own.reverse()
        start, size = int(query.get("nextPageToken") or 0), min(int(query["pageSize"]), self.page)
        more = str(start + size) if start + size < len(own) else ""
        return {"items": own[start : start + size], "nextPageToken": more, "size": len(own)}

    def _create(self, known: dict[str, dict], body: dict, kind: str) -> dict:
        self._check(body, CREATE[kind])
        if not body.get("name"):
            raise RefusedError(400, "name is required")
        for resource in known.values():
            same = resource.get("registeredModelId") == body.get("registeredModelId")
            if same and resource["name"] == body["name"]:
                raise RefusedError(409, f"{body['name']} already exists: conflict")
        number = str(len(self.models) + len(self.versions) + 1)
        known[number] = {"customProperties": {}, "state": "LIVE", **body, "id": number}
        return known[number]

    def _check(self, body: dict, allowed: set[str]) -> None:
        if unknown := body.keys() - allowed:
            raise RefusedError(400, f"unknown fields {sorted(unknown)}")
        for key, value in body.get("customProperties", {}).items():
            name, kind = VALUES[value["metadataType"]]
            if value.keys() != {"metadataType", name} or not isinstance(value[name], kind):
                raise RefusedError(400, f"customProperties.{key}")

    def _one(self, found: list[dict]) -> dict:
        if not found:
            raise RefusedError(404, "not found")
        return found[0]


@contextmanager
def serving(registry: Registry) -> Iterator[str]:
    """Serve the registry; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            try:
                registry.authorize(self.headers.get("Authorization", ""))
                path = re.sub(f"^{BASE}/", "", url.path)
                code, value = 200, registry.answer(self.command, path, query, body)
            except RefusedError as error:
                code, value = error.code, {"code": "refused", "message": str(error)}
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PATCH = do_GET  # http.server's names

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def real_url() -> str:
    """Address of a real registry for the tests; empty for none."""
    return os.environ.get("MODEL_REGISTRY_URL", "")


def own_task() -> str:
    """A task's name of its own for each test: a real registry forgets nothing."""
    return f"depth-{secrets.token_hex(4)}"
