"""The cache: entries in a folder that processes share, the least recently used of which make room for new ones.

Nothing here fails a run. What cannot be read is missing, what cannot be written is not kept, and the user is told once.
No file is read, replaced or removed unless the cache wrote it, because the folder may be any folder of the user's.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selva_bundle.errors import CacheError
from selva_runtime.cache.entries import (
    SUFFIX,
    DamageError,
    Description,
    NewEntry,
    entry_path,
    key_text,
    read_description,
)
from selva_runtime.cache.files import (
    PART_SUFFIX,
    is_abandoned,
    open_own,
    remove_own,
    remove_same,
    written_by_cache,
)
from selva_runtime.cache.place import cache_place
from selva_runtime.cache.rows import Rows, RowWriter, temporary_rows
from selva_runtime.cache.settings import DEFAULT_LIMIT_BYTES, read_limit, size_text

_NAME = r"[a-z]+-[0-9a-f]{64}"
_ENTRY = re.compile(rf"{_NAME}{re.escape(SUFFIX)}")
_PART = re.compile(rf"\.{_NAME}\.[0-9a-f]{{12}}{re.escape(PART_SUFFIX)}")
_CHECKED_WHEN_FOUND_BYTES = 256 * 10**6
"""An entry up to this size is checked as a whole, in 0.1 s. A larger one is checked as it is read."""
_PART_AGE_S = 60
"""A part file this old has been locked by its writer if it is alive."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What was found. `rows` raises `CacheError` if a part that is read is damaged."""

    facts: dict[str, Any]
    rows: Rows


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of the cache."""

    path: Path
    size_bytes: int
    used_s: float
    """When it was last used, seconds since 1970."""


class Cache:
    """A folder of entries shared by processes, with a size limit.

    An entry is some rows under a kind, such as "text", and a key: a mapping of plain values. Its facts are for the
    caller; selva-cache shows those called name, model, start_s and duration_s.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: set[str] = set()
        self._untold: list[str] = []
        self._unusable = False

    @classmethod
    def at(cls, place: str | os.PathLike[str] | None) -> Cache | None:
        """Return the cache at `place`, or None if that is "none" or there is no home folder.

        `place` None means the environment variable SELVA_CACHE, or else the user's cache folder.

        Raises:
            RequestError: the place is empty or no file name.
        """
        folder = cache_place(place)
        return None if folder is None else cls(folder)

    @property
    def limit_bytes(self) -> int:
        """The size that the entries may have together."""
        try:
            return read_limit(self.folder)
        except FileNotFoundError:
            return DEFAULT_LIMIT_BYTES
        except (OSError, ValueError) as error:
            default = size_text(DEFAULT_LIMIT_BYTES)
            self._warn(f"has a limit that cannot be read ({_reason(error)}), so it is {default}")
            return DEFAULT_LIMIT_BYTES

    def find(self, kind: str, key: Mapping[str, object]) -> Entry | None:
        """Return an entry and mark it as used. None if there is none, or it cannot be read or was damaged."""
        text = key_text(key)
        path = entry_path(self.folder, kind, text)
        try:
            return self._read(path, kind, text)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._cannot_use(error)
        return None

    def writer(self, kind: str, key: Mapping[str, object]) -> RowWriter:
        """Return a writer of an entry. If that cannot be stored, the rows are written to a temporary file."""
        text = key_text(key)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            entry = NewEntry(self.folder, kind, text, self.limit_bytes)
        except OSError as error:
            self._cannot_use(error)
            return temporary_rows(warn=self._tell)
        return RowWriter(entry.file, self._warn, entry, on_stored=self.make_room)

    def files(self) -> list[StoredFile]:
        """List the entries, the least recently used first.

        Raises:
            OSError: the folder cannot be read.
        """
        found = []
        for path in self._scan(_ENTRY):
            with suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found.append(StoredFile(path=path, size_bytes=status.st_size, used_s=status.st_mtime))
        return sorted(found, key=lambda file: file.used_s)

    def describe(self, path: Path) -> Description | None:
        """Return what an entry is, without its rows. None if it is damaged or gone."""
        try:
            return read_description(open_own(path))
        except (DamageError, OSError):
            return None

    def make_room(self, keep: Path | None = None) -> None:
        """Remove the least recently used entries beyond the limit, except `keep`, and what dead writers left."""
        try:
            self._remove_parts()
            files = self.files()
        except OSError as error:
            self._cannot_use(error)
            return
        excess = sum(file.size_bytes for file in files) - self.limit_bytes
        for file in files:
            if excess <= 0:
                return
            if file.path != keep and remove_own(file.path):
                excess -= file.size_bytes

    def clear(self, unused_for_s: float = 0.0) -> list[StoredFile]:
        """Remove the entries that were not used for this long, and what dead writers left. Return what was removed.

        Raises:
            OSError: the folder cannot be read.
        """
        self._remove_parts()
        latest = time.time() - unused_for_s
        old = [file for file in self.files() if not unused_for_s or file.used_s <= latest]
        return [file for file in old if remove_own(file.path)]

    def new_warnings(self) -> tuple[str, ...]:
        """Return what went wrong since the last call. Each line comes once."""
        told = tuple(self._untold)
        self._untold.clear()
        return told

    def _read(self, path: Path, kind: str, key: str) -> Entry | None:
        file = open_own(path)
        try:
            found = read_description(file)
            if (found.kind, found.key) != (kind, key):
                raise DamageError("another entry has its name")
            rows = Rows(file, found.row_shape, found.blocks, path)
            if file.status().st_size <= _CHECKED_WHEN_FOUND_BYTES:
                rows.check()
        except (DamageError, CacheError):
            if written_by_cache(file):
                self._warn("had a damaged entry, which is computed again")
                remove_same(path, file)
            else:
                self._warn(f"holds {path.name}, which it did not write; remove that file")
            return None
        with suppress(OSError):  # a folder that can only be read
            os.utime(path)
        return Entry(facts=found.facts, rows=rows)

    def _scan(self, names: re.Pattern[str]) -> Iterator[Path]:
        try:
            for name in os.listdir(self.folder):
                if names.fullmatch(name):
                    yield self.folder / name
        except FileNotFoundError:
            return

    def _remove_parts(self) -> None:
        for path in self._scan(_PART):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > _PART_AGE_S and is_abandoned(path):
                    remove_own(path)

    def _cannot_use(self, error: OSError) -> None:
        if not self._unusable:
            self._unusable = True
            self._warn(f"cannot be used ({_reason(error)}); choose another with SELVA_CACHE, or none")

    def _warn(self, problem: str) -> None:
        self._tell(f"the cache {self.folder} {problem}")

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._untold.append(line)


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)
