"""A Kubernetes API that keeps whatever it is sent: enough for Helm to install and upgrade for real.

It applies patches by merging maps and replacing lists, turns a secret's ``stringData`` into
``data``, and knows the kinds that it is made with. Nothing runs on it.
"""

import json
import threading
from base64 import b64encode
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from helm_python import Config

KNOWN = (
    {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "", "namespace": ""}},
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ""}},
    {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "", "namespace": ""}},
)
"""Kinds that Helm keeps its releases in, and that the chart looks up."""


def plural(kind: str) -> str:
    """How a kind's paths name it."""
    name = kind.lower()
    if name.endswith("y"):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith("s") else "s")


@contextmanager
def cluster(resources: list[dict]):
    """A server that knows the resources' kinds, and Helm's connection to it."""
    with _Server(resources) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with Config(
            kubeconfig_content=_kubeconfig(url), namespace="ml", storage_driver="memory"
        ) as helm:
            yield server, helm
        server.shutdown()


def _kubeconfig(url: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, resources: list[dict]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kinds: dict[str, dict[str, bool]] = {}
        for resource in [*KNOWN, *resources]:
            kinds = self.kinds.setdefault(resource["apiVersion"], {})
            kinds[resource["kind"]] = "namespace" in resource["metadata"]
        self.kept: dict[str, dict] = {}
        self.log: list[str] = []

    def put(self, resource: dict) -> None:
        """Keep an object, as if it had been created before."""
        version, kind, meta = resource["apiVersion"], resource["kind"], resource["metadata"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        space = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
        self.kept[f"{root}{space}/{plural(kind)}/{meta['name']}"] = resource

    def of(self, kind: str) -> dict[str, dict]:
        """What is kept of a kind, by name."""
        found = [r for r in self.kept.values() if r["kind"] == kind]
        return {resource["metadata"]["name"]: resource for resource in found}

    def discovered(self, path: str) -> dict | None:
        """The answer to a question about the API itself."""
        if path == "/version":
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = {}
            for version in self.kinds:
                group, _, name = version.rpartition("/")
                if group:
                    entry = {"groupVersion": version, "version": name}
                    groups.setdefault(group, []).append(entry)
            found = [
                {"name": n, "versions": v, "preferredVersion": v[0]} for n, v in groups.items()
            ]
            return {"kind": "APIGroupList", "groups": found}
        if path == "/openapi/v3":
            names = [f"apis/{v}" if "/" in v else f"api/{v}" for v in self.kinds]
            return {"paths": {n: {"serverRelativeURL": f"/openapi/v3/{n}"} for n in names}}
        if path.startswith("/openapi/v3/api"):
            return self.schema(path.split("/", 4)[4])
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version not in self.kinds:
            return None
        verbs = ["create", "delete", "get", "list", "patch", "update"]
        named = [
            {
                "name": plural(kind),
                "singularName": "",
                "kind": kind,
                "namespaced": spaced,
                "verbs": verbs,
            }
            for kind, spaced in self.kinds[version].items()
        ]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": named}

    def schema(self, version: str) -> dict:
        """That the server looks through fields itself, so Helm needn't."""
        group, _, name = version.rpartition("/")
        checks = [{"name": "fieldValidation", "in": "query"}]
        paths = {}
        for kind in self.kinds[version]:
            named = {"group": group, "version": name, "kind": kind}
            patch = {"parameters": checks, "x-kubernetes-group-version-kind": named}
            paths[f"/{kind}"] = {"patch": patch}
        return {"openapi": "3.0.0", "info": {"title": "", "version": ""}, "paths": paths}


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args) -> None:
        """Be quiet."""

    def answer(self, code: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> tuple[str, dict, dict]:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = yaml.load(self.rfile.read(length), Loader=yaml.CSafeLoader) if length else {}
        self.server.log.append(f"{self.command} {self.path}")
        return unquote(url.path), parse_qs(url.query), body or {}

    def missing(self, path: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound"}
        self.answer(404, {**status, "message": f"{path} not found", "code": 404})

    def keep(self, path: str, resource: dict, code: int) -> None:
        if resource["kind"] == "Secret":
            plain = resource.pop("stringData", {})
            resource.setdefault("data", {}).update(
                {name: b64encode(value.encode()).decode() for name, value in plain.items()}
            )
        meta = resource["metadata"]
        meta["resourceVersion"] = str(len(self.server.log))
        meta.setdefault("uid", path)
        self.server.kept[path] = resource
        self.answer(code, resource)

    def do_GET(self) -> None:
        path, query, _ = self.begin()
        found = self.server.discovered(path) or self.server.kept.get(path)
        if found:
            self.answer(200, found)
        elif any(path.endswith("/" + plural(k)) for ks in self.server.kinds.values() for k in ks):
            wanted = dict(
                part.split("=") for part in query.get("labelSelector", [""])[0].split(",") if part
            )
            inside = [r for p, r in self.server.kept.items() if p.rpartition("/")[0] == path]
            items = [r for r in inside if wanted.items() <= r["metadata"].get("labels", {}).items()]
            self.answer(200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
        else:
            self.missing(path)

    def do_POST(self) -> None:
        path, _, body = self.begin()
        self.keep(f"{path}/{body['metadata']['name']}", body, 201)

    def do_PUT(self) -> None:
        path, _, body = self.begin()
        self.keep(path, body, 200)

    def do_PATCH(self) -> None:
        path, _, body = self.begin()
        self.keep(path, _merged(self.server.kept.get(path, {}), body), 200)

    def do_DELETE(self) -> None:
        path, _, _ = self.begin()
        if self.server.kept.pop(path, None) is None:
            self.missing(path)
        else:
            self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})


def _merged(base: dict, patch: dict) -> dict:
    made = dict(base)
    for name, value in patch.items():
        inner = made.get(name)
        both = isinstance(value, dict) and isinstance(inner, dict)
        made[name] = _merged(inner, value) if both else value
    return made
