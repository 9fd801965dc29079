"""What the page keeps in the worker's state folder: dropped videos, stems, and which of these the user kept.

All of it is swept at the worker's start once it is a month old: the user downloads what is to stay.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from selva_bundle.atomic import atomic_write, output_errors
from selva_bundle.errors import OutputError
from selva_worker.protocol import INVALID_PARAMS, Refused

KEEP_S = 30 * 86_400
_FREE_BYTES = 1 << 30
"""So much of the disk is left to others."""
_MAX_MARKS = 10_000
_MARKS = ("kept", "thrown")
# fmt: off
VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv",
)
# fmt: on


class PageStore:
    """The folder `page` in the state folder.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, state: Path) -> None:
        self.path = state / "page"
        self.videos, self.stems = self.path / "videos", self.path / "stems"
        self._marks = self.path / "marks.json"
        for folder in (self.videos, self.stems):
            with output_errors(folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _sweep(folder, time.time() - KEEP_S)

    async def add_video(self, name: str, length_bytes: int, chunks: AsyncIterator[bytes]) -> Path:
        """Write a video whole or not at all, and return its path. If it breaks off, `chunks` raises.

        Raises:
            Refused: this is no name of a video, or it is too large.
            OutputError: it cannot be written, or too little is free on the disk.
        """
        name = _safe_name(name)
        if shutil.disk_usage(self.videos).free - length_bytes < _FREE_BYTES:
            raise OutputError(f"{self.videos} has too little room for {name}; type its path instead")
        folder = self.videos / secrets.token_hex(8)
        path = folder / name
        with output_errors(path):
            await run_in_threadpool(folder.mkdir, mode=0o700)
            try:
                with atomic_write(path) as temporary, temporary.open("wb") as file:
                    async for chunk in chunks:
                        await run_in_threadpool(file.write, chunk)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return path

    def marks(self) -> dict[str, str]:
        """Return what the user thought of stems, by "JOB.NUMBER": "kept" or "thrown"."""
        with suppress(OSError, ValueError):
            found = json.loads(self._marks.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def mark(self, stem: str, mark: str | None) -> None:
        """Note what the user thinks of a stem. None takes a mark away.

        Raises:
            Refused: there is no such mark.
            OutputError: it cannot be written.
        """
        if not re.fullmatch(r"[0-9a-f]{16}\.[0-9]{1,6}", stem) or mark not in (*_MARKS, None):
            raise Refused(INVALID_PARAMS, f"a mark is JOB.NUMBER with {', '.join(_MARKS)} or null")
        marks = self.marks()
        marks.pop(stem, None)
        if mark is not None:
            marks[stem] = mark
        with atomic_write(self._marks) as temporary:
            temporary.write_text(json.dumps(dict(list(marks.items())[-_MAX_MARKS:])), encoding="utf-8")


def _safe_name(name: str) -> str:
    """Return the name without what file systems dislike. It becomes the name of the scene in a timeline."""
    path = Path(name)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise Refused(INVALID_PARAMS, f"{name!r} is not named like a video: {', '.join(VIDEO_SUFFIXES)}")
    stem = re.sub(r"[^\w .()-]", "_", path.stem).strip(" .")[:80] or "video"
    return stem + path.suffix.lower()


def _sweep(folder: Path, before_s: float) -> None:
    """Remove what is older."""
    for path in folder.iterdir():
        with suppress(OSError):
            if path.lstat().st_mtime < before_s:
                shutil.rmtree(path, ignore_errors=True)
