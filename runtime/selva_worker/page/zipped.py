"""A ZIP of stems, made while it is sent: nothing of it lies on the disk or in memory as a whole."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_BLOCK_BYTES = 1 << 20


class _Outlet(io.RawIOBase):
    """A stream that cannot seek, from which the sender takes what was written."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        found, self._parts = b"".join(self._parts), []
        return found


def zip_stems(paths: Sequence[Path]) -> Iterator[bytes]:
    """Yield a ZIP of these files, not compressed. Files of one name get numbers.

    Raises:
        OSError: a file cannot be read.
    """
    outlet, used = _Outlet(), set[str]()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            name, number = path.name, 1
            while name in used:
                number += 1
                name = f"{path.stem}-{number}{path.suffix}"
            used.add(name)
            with path.open("rb") as source, archive.open(zipfile.ZipInfo.from_file(path, name), "w") as target:
                while block := source.read(_BLOCK_BYTES):
                    target.write(block)
                    yield outlet.take()
    yield outlet.take()
