"""Find the boxes of an MP4 or MOV file by seeking, as FFmpeg's demuxer does.

No table is read here. The number of boxes is limited, because each costs time. A file of another format ends at once:
its first bytes, read as a box, point past its end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

MAX_BOXES = 1_000_000
MAX_DEPTH = 12
"""FFmpeg gives up at 10."""
PARENTS = frozenset(b"moov hoov trak edts mdia minf stbl dinf udta ilst sinf schi tref mvex moof traf mfra".split())
SCANNED = frozenset(b"stsd meta wave iprp".split())
"""Boxes whose children follow fields of many layouts. They are searched for the names of children instead."""


class TooLarge(Exception):  # noqa: N818 -- becomes a MediaError with the file's name
    """The file has too much of something. The message says of what."""


class BoxFile(NamedTuple):
    """A file, or a movie header that was compressed in a file. `size` is in bytes."""

    file: BinaryIO
    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Read `count` bytes at `offset`, or fewer at the end of the file."""
        self.file.seek(offset)
        return self.file.read(count)

    def read_number(self, offset: int, size: int = 4) -> int:
        """Read a big-endian number of `size` bytes. 0 if the file ends before."""
        data = self.read(offset, size)
        return int.from_bytes(data, "big") if len(data) == size else 0

    def read_rows(self, offset: int, dtype: DTypeLike, count: int) -> NDArray[np.void]:
        """Read (count,) rows of a NumPy type, or fewer at the end of the file."""
        layout = np.dtype(dtype)
        data = self.read(offset, count * layout.itemsize)
        return np.frombuffer(data, layout, len(data) // layout.itemsize)


class Box(NamedTuple):
    """A box of the file: its four-letter kind, and where its content begins and ends."""

    kind: bytes
    begin: int
    """Start of the content."""
    end: int


class BoxReader:
    """Walks through the boxes of one file and counts them."""

    def __init__(self, wanted: frozenset[bytes]) -> None:
        self.boxes = 0
        names = b"|".join(sorted(map(re.escape, wanted - PARENTS)))
        self.names = re.compile(rb"(?=(" + names + rb"))")

    def children(self, source: BoxFile, begin: int, end: int) -> Iterator[Box]:
        """Yield the boxes from `begin` to `end`. Stop at an impossible size. Cut a box that reaches past `end`.

        Raises:
            TooLarge: the file has more than a million boxes.
        """
        while begin + 8 <= end:
            self._count()
            header = source.read(begin, 16)
            if len(header) < 8:
                return
            size, kind = struct.unpack_from(">I4s", header)
            skip = 8
            if size == 1 and begin + 16 <= end and len(header) == 16:
                size, skip = struct.unpack_from(">Q", header, 8)[0], 16
            elif size == 0:
                size = end - begin
            if size < skip:
                return
            yield Box(kind, begin + skip, min(begin + size, end))
            begin += size

    def scan(self, source: BoxFile, box: Box) -> Iterator[Box]:
        """Yield everything in the box that looks like one of the wanted boxes.

        Raises:
            TooLarge: the file has more than a million boxes.
        """
        data = source.read(box.begin, box.end - box.begin)
        for found in self.names.finditer(data):
            offset = found.start()
            size = int.from_bytes(data[max(0, offset - 4) : offset], "big")
            if offset >= 4 and size <= len(data) - offset + 4 and (size >= 8 or size in (0, 1)):
                self._count()
                skip = 12 if size == 1 else 4
                end = box.begin + offset - 4 + size if size >= 8 else box.end
                yield Box(found.group(1), box.begin + offset + skip, min(end, box.end))

    def _count(self) -> None:
        self.boxes += 1
        if self.boxes > MAX_BOXES:
            raise TooLarge(f"it has more than {MAX_BOXES:,} boxes")
