"""Playground at ``/``: drop an image, see the served models' outputs.

It asks the routes that everybody asks, and fetches nothing from anywhere else.
"""

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

_FOLDER: Final = Path(__file__).parent
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".jpg": "image/jpeg",
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Playground:
    """The page's files, read once; nothing else can be asked for."""

    def __init__(self) -> None:
        self._files = {
            path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES
        }

    def add_to(self, app: FastAPI) -> None:
        """Register the page and its files."""
        app.add_api_route("/", self.page, response_model=None, include_in_schema=False)
        app.add_api_route(
            "/playground/{name}", self.file, response_model=None, include_in_schema=False
        )

    async def page(self) -> Response:
        """The page."""
        return await self.file("page.html")

    async def file(self, name: str) -> Response:
        """One of the page's files, or a 404."""
        if name not in self._files:
            return JSONResponse({"error": "there is no such file"}, 404)
        kind = _TYPES[Path(name).suffix]
        return Response(self._files[name], headers=_HEADERS, media_type=kind)
