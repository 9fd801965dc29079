"""Single parts of what a worker refuses: headers, JSON-RPC messages, folders."""

import asyncio
import json
import os

import pytest
from platforms import needs_posix

from selva_worker.folders import AllowedFolders
from selva_worker.gate import Gate
from selva_worker.protocol import Refused, answer

GOOD = [
    (b"host", b"127.0.0.1:8"),
    (b"authorization", b"Bearer x"),
    (b"content-type", b"application/json"),
    (b"content-length", b"2"),
]


def status(
    headers: list[tuple[bytes, bytes]], method: str = "POST", kind: str = "http", path: str = "/v1/rpc"
) -> int | None:
    """The gate's answer: 200 if it lets the request pass, None if it says nothing."""
    sent = []

    async def inner(scope, receive, send):
        sent.append({"status": 200})

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(inner, "x", 8)({"type": kind, "method": method, "path": path, "headers": headers}, None, send))
    return sent[0]["status"] if sent else None


def changed(name: bytes, *values: bytes) -> list[tuple[bytes, bytes]]:
    return [header for header in GOOD if header[0] != name] + [(name, value) for value in values]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (GOOD, 200),
        ([(name.title(), value) for name, value in GOOD], 200),
        (changed(b"host", b"localhost:8"), 200),
        (changed(b"origin", b"http://127.0.0.1:8"), 200),
        (changed(b"content-type", b"Application/JSON; charset=utf-8"), 200),
        (changed(b"host", b"127.0.0.1"), 421),
        (changed(b"host", b"127.0.0.1:8", b"evil"), 421),
        (changed(b"host"), 421),
        (changed(b"origin", b"https://127.0.0.1:8"), 403),
        (changed(b"origin", b"http://127.0.0.1:8", b"http://evil"), 403),
        (changed(b"authorization", b"Bearer x", b"Bearer y"), 401),
        (changed(b"authorization", b"x"), 401),
        (changed(b"content-type", b"application/json", b"text/plain"), 415),
        (changed(b"content-type", b"application/jsonp"), 415),
        (changed(b"content-length", b"2", b"3"), 411),
        (changed(b"content-length", b"-2"), 411),
        (changed(b"content-length", b"2 "), 411),
        (changed(b"transfer-encoding", b"chunked"), 411),
        (changed(b"content-length", b"1048576"), 200),
        (changed(b"content-length", b"1048577"), 413),
        (changed(b"content-length", b"9" * 5000), 413),
    ],
    ids=range(21),
)
def test_the_gate(headers, expected):
    assert status(headers) == expected


def test_the_gate_asks_for_no_body_where_there_is_none():
    assert status(GOOD[:2], "GET") == 200
    assert status(GOOD[:1], "GET") == 401
    assert status(GOOD, kind="websocket") is None


def test_only_the_pages_own_files_need_no_token():
    host = GOOD[:1]
    assert status(host, "GET", path="/") == 200
    assert status(host, "GET", path="/page/main.js") == 200
    assert status(host, "GET", path="/pages") == 401
    assert status(host, path="/page/main.js") == 401
    assert status([], "GET", path="/") == 421
    assert status([*host, (b"origin", b"http://evil")], "GET", path="/") == 403


def test_a_video_may_be_longer_than_a_request():
    put = [header for header in GOOD if header[0] != b"content-length"]
    long, too_long = [*put, (b"content-length", b"1048577")], [*put, (b"content-length", b"8589934593")]
    assert status(long, "PUT", path="/v1/page/videos/a.mp4") == 200
    assert status(too_long, "PUT", path="/v1/page/videos/a.mp4") == 413
    assert status(long, "PUT", path="/v1/other") == 413
    assert status(put, "PUT", path="/v1/page/videos/a.mp4") == 411


def reply(text: str, call=lambda method, params: [method, params]) -> dict | None:
    found = answer(text.encode(), call)
    return None if found is None else json.loads(found)


def test_a_message_gets_its_reply():
    assert reply('{"jsonrpc":"2.0","id":"a","method":"m"}') == {"jsonrpc": "2.0", "id": "a", "result": ["m", {}]}
    assert reply('{"jsonrpc":"2.0","id":null,"method":"m"}')["id"] is None
    assert reply('{"jsonrpc":"2.0","method":"m"}') is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"jsonrpc":"2.0","id":{},"method":"m"}', -32600),
        ('{"jsonrpc":"2.0","id":[1],"method":"m"}', -32600),
        ('{"jsonrpc":"2.0","id":true,"method":"m"}', -32600),
        ('{"jsonrpc":"1.0","id":1,"method":"m"}', -32600),
        ('{"jsonrpc":"2.0","id":1,"method":1}', -32600),
        ('[{"jsonrpc":"2.0","id":1,"method":"m"}]', -32600),
        ('"text"', -32600),
        ('{"jsonrpc":"2.0","id":1,"method":"m","params":[1]}', -32602),
        ('{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":-Infinity}}', -32700),
        (" " * (1 << 20) + '{"jsonrpc":"2.0","id":1,"method":"m"}', -32600),
        ("[" * 500_000, -32700),
    ],
    ids=range(11),
)
def test_a_message_that_is_none_gets_a_code(text, code):
    assert reply(text)["error"]["code"] == code


def test_a_fault_of_the_worker_is_an_answer():
    found = reply('{"jsonrpc":"2.0","id":1,"method":"m"}', call=lambda method, params: 1 / 0)
    assert found["error"] == {"code": -32603, "message": "the worker failed: ZeroDivisionError: division by zero"}


def test_folders(tmp_path):
    (tmp_path / "film.mp4").touch()
    (tmp_path / "a").mkdir()
    allowed = AllowedFolders([str(tmp_path / "a"), str(tmp_path / "a")])
    (tmp_path / "a" / "b").mkdir()
    allowed.add(str(tmp_path / "a" / "b"))
    assert allowed.folders == [str(tmp_path / "a")]
    assert allowed.resolved(str(tmp_path / "a" / "b" / ".." / "c")) == str(tmp_path / "a" / "c")
    for wrong in (str(tmp_path / "film.mp4"), str(tmp_path / "absent")):
        with pytest.raises(Refused, match="is not a folder"):
            allowed.add(wrong)
    for wrong in ("a", "", f"{tmp_path}/a\0"):
        with pytest.raises(Refused, match="path"):
            allowed.resolved(wrong)
    for wrong in (str(tmp_path / "ab"), str(tmp_path), str(tmp_path / "a" / "..")):
        with pytest.raises(Refused, match="is outside the allowed folders"):
            allowed.resolved(wrong)


@needs_posix
def test_links_are_followed_before_a_path_is_judged(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    os.symlink(tmp_path / "out", tmp_path / "in" / "away")
    os.symlink(tmp_path / "in", tmp_path / "out" / "back")
    allowed = AllowedFolders([str(tmp_path / "out" / "back")])
    assert allowed.folders == [str(tmp_path / "in")]
    with pytest.raises(Refused, match="is outside"):
        allowed.resolved(str(tmp_path / "in" / "away" / "film.mp4"))
    assert AllowedFolders(["/"]).resolved(str(tmp_path)) == str(tmp_path)
