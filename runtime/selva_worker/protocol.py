"""JSON-RPC 2.0, which both transports speak: one object a request, one object a reply. No batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from selva_bundle.errors import SelvaError
from selva_worker.client import MAX_REQUEST_BYTES

PARSE_ERROR, INVALID_REQUEST, UNKNOWN_METHOD, INVALID_PARAMS, FAILED = -32700, -32600, -32601, -32602, -32603
OUTSIDE, QUEUE_FULL, UNKNOWN_JOB, KEY_TAKEN, BUSY = -32001, -32002, -32003, -32004, -32005
"""Codes of this protocol's own errors."""

Call = Callable[[str, dict[str, Any]], Any]
"""Called with a method and its params. Returns what JSON can hold."""


class Refused(SelvaError, ValueError):  # noqa: N818 -- an answer, which the client shows
    """A request that the worker does not take."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def answer(data: bytes, call: Call) -> bytes | None:
    """Return the reply to one request as one line, or None if it is a notification."""
    number: Any = None
    try:
        request = _parsed(data)
        number = request.get("id")
        method, params = _checked(request)
        reply = {"result": call(method, params)}
    except Refused as error:
        reply = failure(error.code, str(error))
    except Exception as error:
        reply = failure(FAILED, f"the worker failed: {type(error).__name__}: {error}")
    else:
        if "id" not in request:
            return None
    return line({"jsonrpc": "2.0", "id": number, **reply})


def failure(code: int, message: str) -> dict[str, Any]:
    """Return the part of a reply that says why a request was refused."""
    return {"error": {"code": code, "message": message}}


def line(message: dict[str, Any]) -> bytes:
    """Return a message as one line of JSON."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def too_long() -> Refused:
    """Return the error about a request that is too long."""
    return Refused(INVALID_REQUEST, f"the request is longer than {MAX_REQUEST_BYTES} bytes")


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_REQUEST_BYTES:
        raise too_long()
    try:
        request = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(PARSE_ERROR, f"the request is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise Refused(INVALID_REQUEST, "the request is not a JSON object; batches are not taken")
    return request


def _no_constant(name: str) -> None:
    """Refuse NaN and infinities, which are not JSON."""
    raise ValueError(f"{name} is not a JSON value")


def _checked(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    method, params, number = request.get("method"), request.get("params", {}), request.get("id")
    if request.get("jsonrpc") != "2.0" or not isinstance(method, str):
        raise Refused(INVALID_REQUEST, 'the request needs "jsonrpc": "2.0" and a "method"')
    if isinstance(number, (dict, list, bool)):
        raise Refused(INVALID_REQUEST, 'the request\'s "id" is not a number or text')
    if not isinstance(params, dict):
        raise Refused(INVALID_PARAMS, '"params" must be an object with names')
    return method, params
