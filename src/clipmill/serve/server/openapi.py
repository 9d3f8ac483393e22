"""The OpenAPI document of the server's routes."""

import re
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from clipmill.version import clipmill_version

_REFUSED: Final = ("/v1/models/{model_name}:explain", "/v2/repository/")
"""Routes of KServe that this server refuses."""
_ERROR: Final = {
    "description": "The error's cause, in words",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "string"}},
            }
        }
    },
}
_CONTENT_TYPES: Final = {
    "/": "text/html",
    "/metrics": "text/plain",
}
_ALSO_RAISED: Final = {
    "/v2/health/ready": HTTPStatus.SERVICE_UNAVAILABLE,
    "/ready": HTTPStatus.SERVICE_UNAVAILABLE,
}


def describe_routes(app: FastAPI, root_path: str) -> dict[str, Any]:
    """Return the document: each path once, with the errors that it can give.

    KServe registers routes that differ from ours by their parameter's name alone, which OpenAPI
    forbids; the first of them answers.
    """
    document = get_openapi(
        title="clipmill serve",
        version=clipmill_version(),
        description='Open Inference Protocol V2 and V1. Errors are `{"error": "..."}`.',
        routes=app.routes,
        servers=[{"url": root_path or "/"}],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    paths: dict[str, Any] = {}
    seen: set[str] = set()
    for path, operations in document["paths"].items():
        template = re.sub(r"{[^}]*}", "{}", path)
        if template in seen or path.startswith(_REFUSED):
            continue
        seen.add(template)
        paths[path] = {
            method: _complete(path, method, operation) for method, operation in operations.items()
        }
    components = _used_components(document, paths)
    return {**document, "security": [], "paths": paths, "components": components}


def _complete(path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    responses = dict(operation["responses"])
    responses.pop("422", None)  # FastAPI's; no route validates by it
    if "{" in path:
        responses.setdefault("404", _ERROR)
    for end, status in _ALSO_RAISED.items():
        if path.endswith(end):
            responses.setdefault(str(int(status)), _ERROR)
    if path in _CONTENT_TYPES:
        responses["200"] = {
            "description": "Successful Response",
            "content": {_CONTENT_TYPES[path]: {"schema": {"type": "string"}}},
        }
    name = re.sub(r"\W+", "_", path.replace("{", "").replace("}", "")).strip("_") or "page"
    return {**operation, "operationId": f"{method}_{name}", "responses": responses}


def _used_components(document: dict[str, Any], paths: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas that the paths refer to, directly or not."""
    schemas = document.get("components", {}).get("schemas", {})
    used: dict[str, Any] = {}
    pending: list[Any] = [paths]
    while pending:
        names = set(re.findall(r"#/components/schemas/(\w+)", repr(pending.pop())))
        for name in sorted(names - used.keys()):
            used[name] = schemas[name]
            pending.append(schemas[name])
    return {"schemas": used} if used else {}
