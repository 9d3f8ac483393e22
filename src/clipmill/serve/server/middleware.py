"""Middleware of every route: a path prefix, HEAD, OPTIONS, and CORS where it is configured."""

from http import HTTPStatus

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from clipmill.serve.config import ServingConfig
from clipmill.serve.protocol.bodies import HEADER_LENGTH
from clipmill.serve.server.model import NETWORK_SIZE

_EXPOSED_HEADERS = (HEADER_LENGTH, NETWORK_SIZE, "Retry-After")


def with_methods(app: ASGIApp, routes: FastAPI) -> ASGIApp:
    """Return ``app`` with HEAD for each of the routes with GET, and OPTIONS for all."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            # uvicorn leaves out the body, by the scope that it keeps.
            scope = {**scope, "method": "GET"}
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            methods = _allowed_methods(routes, scope)
            response: Response = JSONResponse({"error": "there is no such route"}, 404)
            if methods:
                allow = ", ".join(sorted(methods))
                response = Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": allow})
            await response(scope, receive, send)
            return
        await app(scope, receive, send)

    return middleware


def with_root_path(app: ASGIApp, root_path: str) -> ASGIApp:
    """Return ``app`` under a path prefix, which a proxy before it may have stripped."""
    if not root_path:
        return app

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] == root_path:  # relative links of the page need the slash
                await RedirectResponse(f"{root_path}/")(scope, receive, send)
                return
            path = scope["path"]
            if not path.startswith(f"{root_path}/"):
                path = root_path + path
            scope = {**scope, "root_path": root_path, "path": path}
        await app(scope, receive, send)

    return middleware


def with_cors(app: ASGIApp, config: ServingConfig) -> ASGIApp:
    """Return ``app`` for pages of ``cors_origins`` too; as it is without them."""
    if not config.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=config.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=_EXPOSED_HEADERS,
    )


def _allowed_methods(routes: FastAPI, scope: Scope) -> set[str]:
    """Return the methods of a path's routes; empty if it has none."""
    methods = {
        method
        for method in ("GET", "POST")
        if any(
            route.matches({**scope, "method": method})[0] is Match.FULL
            for route in routes.router.routes
        )
    }
    return methods and methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
