"""Who may speak to the worker on HTTP. Any page in a browser can reach 127.0.0.1, so being local proves nothing.

A request needs the token, a Host that is this server (a name that a hostile DNS points here is not), and no foreign
Origin. No answer allows another origin to read it. Bodies are JSON and bounded, except a video that is put into the
page's folder. Only the page's own files, which hold no secret, are given without the token.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from selva_worker.client import MAX_REQUEST_BYTES

VIDEOS = "/v1/page/videos/"
"""Below this path a video is put."""
MAX_VIDEO_BYTES = 8 << 30
_JSON_ONLY = "the body must be application/json"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gate:
    """An ASGI application that refuses, or else passes requests on to `inner`."""

    def __init__(self, inner: Callable[[Scope, Receive, Send], Awaitable[None]], token: str, port: int) -> None:
        self._inner, self._token = inner, f"Bearer {token}".encode()
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope["method"], scope["path"], scope["headers"])
        if refusal is None:
            await self._inner(scope, receive, send)
            return
        status, message = refusal
        body = json.dumps({"error": message}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        given: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            given.setdefault(name.lower(), []).append(value)
        if len(given.get(b"host", [])) != 1 or given[b"host"][0] not in self._hosts:
            return 421, "the Host is not this worker"
        if any(origin not in {b"http://" + host for host in self._hosts} for origin in given.get(b"origin", [])):
            return 403, "the Origin is not this worker"
        if method in ("GET", "HEAD") and (path == "/" or path.startswith("/page/")):
            return None
        tokens = given.get(b"authorization", [])
        if len(tokens) != 1 or not secrets.compare_digest(tokens[0], self._token):
            return 401, "the bearer token is missing or wrong; it is in the rendezvous file"
        if method == "POST":
            types = [value.split(b";")[0].strip().lower() for value in given.get(b"content-type", [])]
            return _bad_length(given, MAX_REQUEST_BYTES) if types == [b"application/json"] else (415, _JSON_ONLY)
        if method == "PUT":
            return _bad_length(given, MAX_VIDEO_BYTES if path.startswith(VIDEOS) else MAX_REQUEST_BYTES)
        return None


def _bad_length(given: dict[bytes, list[bytes]], most_bytes: int) -> tuple[int, str] | None:
    lengths = given.get(b"content-length", [])
    if len(lengths) != 1 or not lengths[0].isdigit() or b"transfer-encoding" in given:
        return 411, "the request needs a Content-Length and no Transfer-Encoding"
    if int(lengths[0][:20]) > most_bytes:
        return 413, f"the request is longer than {most_bytes} bytes"
    return None
