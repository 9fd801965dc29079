"""Files of the cache, opened so that a link or another user's file is never read, and another file never removed.

A reader keeps its file open. On POSIX it can then still be read after another process removed it. Windows refuses to
remove an open file, so removing one is tried and may fail.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from threading import Lock

from selva_runtime.cache.place import large_file_folder

HEAD = b"selva-cache 1\n\0\0"
TAIL_MAGIC = b"selvaend"
PART_SUFFIX = ".part"
_OWN_ONLY = 0o600


class OpenFile:
    """A descriptor that is closed with this object, and read at any offset."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._leftovers: list[Path] = []
        self._lock = Lock()
        self.close = weakref.finalize(self, _close, descriptor, self._leftovers)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on, or fewer at the end of the file."""
        parts: list[bytes] = []
        while size > 0 and (part := self._read_some(offset, size)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def _read_some(self, offset: int, size: int) -> bytes:
        if sys.platform != "win32":
            return os.pread(self.descriptor, size, offset)
        with self._lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, size)

    def write(self, content: memoryview | bytes) -> None:
        """Write all of `content` at the end of what was written."""
        rest = memoryview(content).cast("B")
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def status(self) -> os.stat_result:
        """Return what the system knows of the file."""
        return os.fstat(self.descriptor)

    def remove(self, path: Path) -> None:
        """Remove the file, which has the name `path`: at once, or when it is closed."""
        try:
            path.unlink(missing_ok=True)
        except OSError:  # Windows, where it is still open
            self._leftovers.append(path)


class PartFile:
    """A file under a temporary name that becomes `final`. Its lock says that its writer is alive."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(f".{final.stem}.{secrets.token_hex(6)}{PART_SUFFIX}")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
        self.file = OpenFile(os.open(self.path, flags, _OWN_ONLY))
        try:
            with suppress(OSError):  # a file system without locks
                _lock(self.file.descriptor)
            self.file.write(HEAD)
        except OSError:
            self.abandon()
            raise

    def publish(self) -> OpenFile:
        """Give the file its name, replacing an older entry. Return the file to read from.

        Raises:
            OSError: the folder cannot be written to, or the name is taken by a file that the cache did not write.
        """
        if not may_replace(self.final):
            raise FileExistsError(f"{self.final} was not written by the cache; remove it")
        if sys.platform != "win32":
            os.replace(self.path, self.final)
            return self.file
        self.file.close()  # Windows renames no open file
        try:
            os.replace(self.path, self.final)
        except OSError:
            self.file = open_own(self.path)
            raise
        return open_own(self.final)

    def abandon(self) -> None:
        """Remove the name. The content can be read as long as the file is open."""
        self.file.remove(self.path)


def unnamed_file(folder: str | os.PathLike[str] | None) -> OpenFile:
    """Make a file that vanishes with the process. `folder` None means one for large files.

    Raises:
        OSError: the folder cannot be written to.
    """
    with tempfile.TemporaryFile(prefix="selva-", dir=folder or large_file_folder()) as file:
        return OpenFile(os.dup(file.fileno()))


def open_own(path: Path) -> OpenFile:
    """Open a regular file of this user. A link is not followed.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: it is a link, a device, a folder or another user's.
        OSError: it cannot be read.
    """
    if not _is_own(path.lstat()):
        raise PermissionError(f"{path} is not a file of this user")
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    file = OpenFile(os.open(path, flags))
    if not _is_own(file.status()):
        file.close()
        raise PermissionError(f"{path} is not a file of this user")
    return file


def written_by_cache(file: OpenFile) -> bool:
    """Whether the cache wrote this file, though it may be damaged: its begin or end says so.

    A loss of power may leave a part of the begin, or zeros.
    """
    head = file.read(0, len(HEAD))
    end = file.read(max(0, file.status().st_size - len(TAIL_MAGIC)), len(TAIL_MAGIC))
    return HEAD.startswith(head) or end == TAIL_MAGIC or not any(head)


def may_replace(path: Path) -> bool:
    """Whether there is no such file, or one that the cache wrote."""
    try:
        return written_by_cache(open_own(path))
    except FileNotFoundError:
        return True
    except OSError:
        return False


def remove_own(path: Path) -> bool:
    """Remove a file that the cache wrote, and return whether it is gone. Any other file stays."""
    with suppress(OSError):
        if may_replace(path):
            path.unlink(missing_ok=True)
            return True
    return False


def remove_same(path: Path, file: OpenFile) -> None:
    """Remove `path` if it is still this file and not one that another process wrote since."""
    with suppress(OSError):
        if os.path.samestat(path.lstat(), file.status()):
            file.remove(path)


def is_abandoned(path: Path) -> bool:
    """Whether the writer of a part file has ended without removing it."""
    if sys.platform == "win32":
        return True  # the file of a living writer cannot be removed
    try:
        file = open_own(path)
        _lock(file.descriptor)
    except OSError:
        return False
    return True


def _lock(descriptor: int) -> None:
    """Lock the file until it is closed.

    Raises:
        OSError: another process has the lock, or the file system has no locks.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_own(status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode):
        return False
    return sys.platform == "win32" or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def _close(descriptor: int, leftovers: list[Path]) -> None:
    os.close(descriptor)
    for path in leftovers:
        with suppress(OSError):
            path.unlink()
