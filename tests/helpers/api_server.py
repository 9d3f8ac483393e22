"""A real Kubernetes API server on this machine: etcd and kube-apiserver, and nothing that acts.

KUBEBUILDER_ASSETS names the folder of both commands, as for controller-runtime's envtest;
CLUSTER_DIR one with ``bin/kube-apiserver``, and etcd may be on PATH.
"""

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.strict_schemas import definitions

_TOKEN = "administrator"  # of a server that lives as long as a test
_START_SECONDS = 90


def commands() -> tuple[str, str]:
    """Paths of etcd and kube-apiserver; a skipped test where they can't be had."""
    assets, cluster = (os.environ.get(name, "") for name in ("KUBEBUILDER_ASSETS", "CLUSTER_DIR"))
    path = os.pathsep.join([assets, *([f"{cluster}/bin"] if cluster else [])])
    server = shutil.which("kube-apiserver", path=path)
    etcd = shutil.which("etcd", path=path) or shutil.which("etcd")
    if server is None or etcd is None:
        pytest.skip("no API server: KUBEBUILDER_ASSETS or CLUSTER_DIR names no kube-apiserver")
    return etcd, server


class ApiServer:
    """Requests to the API as an administrator, or as another user."""

    def __init__(self, url: str, certificate: Path) -> None:
        self.url = url
        self.certificate = certificate
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE  # its certificate is its own
        self._paths: dict[tuple[str, str], tuple[str, bool]] = {}

    def request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        user: str = "",
        content: str = "application/json",
    ) -> tuple[int, dict[str, Any]]:
        """Return the status code and the body; ``user`` is impersonated."""
        headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": content}
        if user:
            headers["Impersonate-User"] = user
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text[:1] == b"{" else {"message": text.decode()}

    def path(self, resource: dict[str, Any], namespace: str) -> str:
        """Path of the resource's kind, by the API's discovery."""
        group, _, version = resource["apiVersion"].rpartition("/")
        base = f"/apis/{group}/{version}" if group else f"/api/{version}"
        key = (resource["apiVersion"], resource["kind"])
        if key not in self._paths:
            code, body = self.request("GET", base)
            assert code == 200, f"{base}: {body}"
            for entry in body["resources"]:
                if "/" not in entry["name"]:
                    kind = (resource["apiVersion"], entry["kind"])
                    self._paths[kind] = (entry["name"], entry["namespaced"])
        plural, namespaced = self._paths[key]
        where = resource["metadata"].get("namespace", namespace)
        return f"{base}/namespaces/{where}/{plural}" if namespaced else f"{base}/{plural}"

    def problems(self, resource: dict[str, Any], namespace: str = "default") -> list[str]:
        """Return the API's objections to a strict dry run; none where it takes the resource."""
        query = "?dryRun=All&fieldValidation=Strict&fieldManager=tests"
        metadata = resource["metadata"]
        if "name" in metadata:
            path = f"{self.path(resource, namespace)}/{metadata['name']}{query}&force=true"
            kind = "application/apply-patch+yaml"
            code, body = self.request("PATCH", path, resource, content=kind)
        else:
            code, body = self.request("POST", self.path(resource, namespace) + query, resource)
        who = f"{resource['kind']} {metadata.get('name', '')}"
        return [] if code < 300 else [f"{who}: {code}: {body.get('message')}"]

    def create(self, resource: dict[str, Any], namespace: str = "default") -> None:
        """Create the resource; one that is there stays."""
        code, body = self.request("POST", self.path(resource, namespace), resource)
        assert code in {200, 201, 409}, body

    def allows(self, user: str, verb: str, resource: str, namespace: str, group: str = "") -> bool:
        """Return True if RBAC lets the user do that, by the API's own review.

        ``resource`` may name a subresource: ``pods/log``.
        """
        kind, _, subresource = resource.partition("/")
        attributes = {
            "verb": verb,
            "resource": kind,
            "subresource": subresource,
            "namespace": namespace,
            "group": group,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        code, body = self.request("POST", path, review)
        assert code == 201, body
        return bool(body["status"]["allowed"])


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in taken]


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """Start the server with the custom kinds of CLIPMILL_CRDS, and stop it in the end."""
    crds = definitions()
    etcd, kube_apiserver = commands()
    client, peer, port = _free_ports(3)
    (folder / "tokens.csv").write_text(f'{_TOKEN},administrator,1,"system:masters"\n')
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    store = f"http://127.0.0.1:{client}"
    processes = [
        [
            *(etcd, f"--data-dir={folder}/etcd", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={store}", f"--advertise-client-urls={store}"),
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
        ],
        [
            *(kube_apiserver, f"--etcd-servers={store}", "--bind-address=127.0.0.1"),
            *(f"--secure-port={port}", f"--cert-dir={folder}/certificates"),
            *(f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=RBAC"),
            *("--service-cluster-ip-range=10.0.0.0/24", "--service-account-issuer=tests"),
            *(f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"),
            # No controller makes the service accounts that it wants.
            "--disable-admission-plugins=ServiceAccount",
            # Debian's etcd is too old for it.
            "--feature-gates=WatchList=false",
        ],
    ]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        for command in processes:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        certificate = folder / "certificates" / "apiserver.crt"
        server = ApiServer(f"https://127.0.0.1:{port}", certificate)
        end = time.monotonic() + _START_SECONDS
        while not _is_ready(server):
            assert time.monotonic() < end, (folder / "log").read_text()[-4000:]
            time.sleep(0.3)
        _install(server, crds)
        yield server


def _is_ready(server: ApiServer) -> bool:
    try:
        return server.request("GET", "/readyz")[0] == 200
    except ValueError:  # "ok" isn't JSON
        return True
    except OSError:
        return False


def _install(server: ApiServer, crds: Path) -> None:
    base = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    names = []
    for file in sorted(crds.rglob("*.yaml")):
        for resource in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader):
            if resource and resource["kind"] == "CustomResourceDefinition":
                # Webhooks that convert versions aren't there.
                resource["spec"].pop("conversion", None)
                code, body = server.request("POST", base, resource)
                assert code in {201, 409}, f"{file.name}: {body}"
                names.append(resource["metadata"]["name"])
    end = time.monotonic() + _START_SECONDS
    for name in names:
        while not _is_established(server.request("GET", f"{base}/{name}")[1]):
            assert time.monotonic() < end, name
            time.sleep(0.2)


def _is_established(crd: dict[str, Any]) -> bool:
    conditions = crd.get("status", {}).get("conditions", [])
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
