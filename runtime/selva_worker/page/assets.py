"""The page's own files. They hold no secret, so a browser gets them without the token; see `Gate`."""

from __future__ import annotations

import secrets
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    "": "text/plain; charset=utf-8",
}
_NONCE = "{nonce}"
"""Stands in index.html for a number that is new in each answer: wavesurfer.js makes a style sheet of its own."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; connect-src 'self'; "
    "img-src 'self'; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""With every answer to a page: a browser keeps nothing, and no other site can embed or read it."""


def asset_routes() -> list[Route]:
    """Return the routes `/` and `/page/FILE`."""
    names = {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.suffix in _TYPES}

    def index(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        text = (STATIC / "index.html").read_text(encoding="utf-8").replace(_NONCE, nonce)
        headers = {**HEADERS, "Content-Security-Policy": _POLICY.replace(_NONCE, nonce)}
        return Response(text, media_type=_TYPES[".html"], headers=headers)

    def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in names:
            return JSONResponse({"error": "the page has no such file"}, 404)
        path = STATIC / name
        return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=HEADERS)

    return [Route("/", index, methods=["GET"]), Route("/page/{name:path}", asset, methods=["GET"])]
