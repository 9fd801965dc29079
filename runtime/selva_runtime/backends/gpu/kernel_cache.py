"""Store TensorRT-RTX's compiled kernels in the user's cache folder, so that the second start is fast.

RTX compiles kernels when an engine first sees a shape, which takes seconds. The file holds code that runs at the next
start. So it must belong to the user, be unaltered, and be writable by nobody else. Any other file is ignored and
replaced. A problem with the cache never fails a run. It only makes it slower.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from selva_runtime.cache.place import user_caches

_MAGIC = b"selva-rtx-cache 1\n"
_MAX_BYTES = 2**31
_HEADER_BYTES = len(_MAGIC) + 32


def cache_folder() -> Path:
    """Return this program's folder in the user's cache folder of this platform."""
    return user_caches() / "selva-deploy"


class CacheFile:
    """One cache on the disk. `name` says what it is for (library, GPU, engines)."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder()
        self.path = self._folder / (re.sub(r"[^A-Za-z0-9._-]+", "-", name) + ".rtxcache")

    def read(self) -> bytes | None:
        """Return what was written last. None if there is no file that can be trusted."""
        try:
            if not _is_private(self._folder.lstat(), stat.S_ISDIR):
                return None
            with open(os.open(self.path, os.O_RDONLY | _flag("O_NOFOLLOW") | _flag("O_BINARY")), "rb") as file:
                status = os.fstat(file.fileno())
                if not _is_private(status, stat.S_ISREG) or status.st_size > _MAX_BYTES:
                    return None
                content = file.read()
        except OSError:
            return None
        payload = content[_HEADER_BYTES:]
        whole = content[:_HEADER_BYTES] == _MAGIC + hashlib.sha256(payload).digest()
        return payload if whole else None

    def write(self, payload: bytes) -> bool:
        """Replace the file atomically. Return false if the folder cannot be used."""
        temporary = self._folder / f".{secrets.token_hex(6)}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_private(self._folder.lstat(), stat.S_ISDIR):
                return False
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | _flag("O_BINARY")
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
            temporary.replace(self.path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            return False
        return True


def _is_private(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Whether it is of the right kind and only the user can write to it. On Windows the profile ensures that."""
    if not is_kind(status.st_mode):
        return False
    return sys.platform == "win32" or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def _flag(name: str) -> int:
    return int(getattr(os, name, 0))
