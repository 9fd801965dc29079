"""A small local model hub with the protocol of huggingface_hub: right, wrong, cut, stalled or down."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from selva_ref.weights.published import CHECKPOINTS, Checkpoint, HubFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VAE_TENSORS = {"w": torch.arange(50_000.0), "b": torch.arange(60.0).reshape(6, 10).T}
TOWER_TENSORS = {"ln_final.weight": torch.ones(4), "visual.proj": torch.zeros(1000)}
VOCABULARY = b'{"a": 0}\n'


def pth(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


FILES = {
    "jnwnlee/SelVA/ext_weights/v1-16.pth": pth(VAE_TENSORS),
    "jnwnlee/SelVA/ext_weights/teacher.pth": pth({"t": torch.ones(2)}),
    "hkchengrex/MMAudio/weights/mmaudio_small_16k.pth": pth({"g": torch.ones(3)}),
    "apple/new-name/tower.bin": pth(TOWER_TENSORS),
    "apple/new-name/vocab.json": VOCABULARY,
}
CHUNK_BYTES = 10_000
"""Data is saved in steps of this many bytes; huggingface_hub's own ten million would be too many for the test files."""
TABLE = {
    "vae": Checkpoint(
        part="vae",
        file="v1-16.safetensors",
        licence="for tests",
        repo="jnwnlee/SelVA",
        weights=HubFile(
            path="ext_weights/v1-16.pth", md5=hashlib.md5(FILES["jnwnlee/SelVA/ext_weights/v1-16.pth"]).hexdigest()
        ),
    ),
    "teacher": Checkpoint(
        part="teacher",
        file="teacher.safetensors",
        licence="for tests",
        repo="jnwnlee/SelVA",
        weights=HubFile(path="ext_weights/teacher.pth"),
    ),
    "text_clip": Checkpoint(
        part="text_clip",
        file="clip/tower.safetensors",
        licence="for tests",
        repo="apple/old-name",
        revision=COMMIT,
        weights=HubFile(path="tower.bin"),
        companions=(HubFile(path="vocab.json"),),
        unused=("visual.*",),
    ),
}
MMAUDIO_TABLE = {
    "generator": Checkpoint(
        part="generator",
        file="mmaudio_small_16k.safetensors",
        licence="for tests",
        repo="hkchengrex/MMAudio",
        weights=HubFile(path="weights/mmaudio_small_16k.pth"),
    ),
    **TABLE,
    "clip_image": replace(
        TABLE["text_clip"],
        part="clip_image",
        file="clip/image_tower.safetensors",
        companions=(),
        unused=("ln_final.*",),
    ),
}
HERE = ["clip/tower.safetensors", "clip/vocab.json", "v1-16.safetensors"]


@dataclass
class SmallHub:
    """What the server answers, and a record of the requests."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    stated: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    """The content whose hash is stated. It differs from `files` if a file is damaged in transit."""
    cuts: list[int] = field(default_factory=list)
    """Number of bytes to send of each of the next files before the connection is cut."""
    dies: bool = False
    """Whether the hub cannot be reached after the next cut."""
    down: bool = False
    endless: set[str] = field(default_factory=set)
    """Files whose content never ends."""
    answers: dict[str, tuple[int, dict[str, str | None]]] = field(default_factory=dict)
    """File → the status of the hub's answer about it and headers that replace the right ones; None removes a header."""
    sent_bytes: int = 0
    stall: threading.Event | None = None
    """If given, it is set once half of a file is sent, and nothing more follows."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    @property
    def content_url(self) -> str:
        """Another host, as on the real hub: the client asks the hub about a file and downloads it elsewhere."""
        return self.url.replace("127.0.0.1", "localhost")

    def gets(self, name: str) -> list[str | None]:
        """The Range headers of the requests for the content of a file."""
        return [wanted for method, path, wanted in self.asked if (method, path) == ("GET", f"/content/{name}")]


class Handler(BaseHTTPRequestHandler):
    """Serves huggingface_hub's requests: /REPO/resolve/REVISION/FILE, renamed repositories, content elsewhere."""

    protocol_version = "HTTP/1.1"
    hub: SmallHub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        self.hub.asked.append((self.command, self.path, self.headers["Range"]))
        if self.hub.down:
            self.close_connection = True
            self.connection.close()
        elif "/apple/old-name/" in self.path:
            self.reply(307, {"Location": self.path.replace("old-name", "new-name")})
        elif self.path.startswith("/content/"):
            self.send_content(self.path.removeprefix("/content/"))
        else:
            repo, _, rest = self.path[1:].partition("/resolve/")
            name = f"{repo}/{rest.partition('/')[2]}"
            if name in self.hub.answers:
                status, headers = self.hub.answers[name]
                self.reply(status, self.description(name) | headers)
            elif name in self.hub.files:
                self.describe(name)
            else:
                self.reply(404, {"X-Error-Code": "EntryNotFound"})

    def describe(self, name: str) -> None:
        small = name.endswith(".json")
        self.reply(200 if small else 302, self.description(name), self.hub.files[name] if small else b"")

    def description(self, name: str) -> dict[str, str]:
        stated, headers = self.hub.stated[name], {"X-Repo-Commit": COMMIT}
        if name.endswith(".json"):
            etag = hashlib.sha1(b"blob %d\0" % len(stated) + stated).hexdigest()
            return headers | {"ETag": f'"{etag}"'}
        return headers | {
            "X-Linked-ETag": f'"{hashlib.sha256(stated).hexdigest()}"',
            "X-Linked-Size": str(len(stated)),
            "Location": f"{self.hub.content_url}/content/{name}",
        }

    def send_content(self, name: str) -> None:
        content = self.hub.files[name]
        if name in self.hub.endless:
            self.send_without_end(content)
            return
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        cut = self.hub.cuts.pop(0) if self.hub.cuts else None
        if self.hub.stall:
            cut = len(content) // 2
        self.reply(206 if start else 200, headers, content[start:], cut)

    def send_without_end(self, content: bytes) -> None:
        """Sends `content`, then zeros until the client disconnects, or far more than any test should accept."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            self.wfile.write(content)
            while self.command == "GET" and self.hub.sent_bytes < 1 << 25:
                self.hub.sent_bytes += self.wfile.write(bytes(1 << 16))

    def reply(self, status: int, headers: dict[str, str | None], body: bytes = b"", cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            if self.hub.stall:
                self.hub.stall.set()
                with suppress(OSError):
                    self.rfile.read(1)  # until the client disconnects
            self.hub.down |= self.hub.dies
            self.close_connection = True


@contextmanager
def serving() -> Iterator[SmallHub]:
    """Runs a hub at its `url`."""
    small = SmallHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": small}))
    small.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield small
    server.shutdown()
    server.server_close()


@contextmanager
def serving_small_preset(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """Runs a hub with the files of the tables instead of those of the presets `small_16k`; retries do not wait."""
    monkeypatch.setitem(CHECKPOINTS, "small_16k", TABLE)
    monkeypatch.setitem(CHECKPOINTS, "mmaudio_small_16k", MMAUDIO_TABLE)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
    with serving() as small:
        yield small
