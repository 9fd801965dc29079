"""Estimate the memory that FFmpeg would need for the tables of an MP4 or MOV file, before FFmpeg opens it.

When FFmpeg opens a movie, it makes an index entry for every sample, and one more for every sample that an edit covers.
A few bytes can say "80 million samples", so a small file could use all memory. A file is refused if its tables would
need more than 512 MiB plus the size of the file, or more than 1 GiB. For samples estimated at just under 512 MiB,
FFmpeg 8.1 was measured to need 522 MiB. tests/test_runtime_movies.py measures each kind of table.

Damaged but harmless files pass, because FFmpeg knows best what can be saved. A truncated table counts up to its end.
An estimate that is not exact is too high.
"""

from __future__ import annotations

import os
import zlib
from array import array
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO, RawIOBase
from pathlib import Path

from selva_bundle.errors import MediaError
from selva_runtime.media.boxes import MAX_DEPTH, PARENTS, SCANNED, Box, BoxFile, BoxReader, TooLarge
from selva_runtime.media.movie_tracks import INDEX_BYTES, TIME_BYTES, Table, Track

BASE_BYTES, MAX_BYTES = 512 << 20, 1 << 30

ROW_BYTES = {
    b"stts": (8, 8),
    b"ctts": (8, 8),
    b"stss": (4, 4),
    b"stps": (4, 4),
    b"stsc": (12, 12),
    b"stco": (4, 8),
    b"co64": (8, 8),
    b"sbgp": (8, 8),
    b"elst": (12, 40),
    b"dref": (12, 160),
    b"saio": (4, 8),
}
"""Tables of a track → smallest size of a row in the file, size of a row in memory, bytes."""
WITHIN_BOX = {b"stsc", b"elst", b"dref"}
"""Tables that end with their box. FFmpeg reads other tables past their box, up to the end of the file."""
READ = frozenset(
    [*ROW_BYTES, *b"trun sidx tfra stsz stz2 hdlr mdhd mvhd tkhd chap senc saiz iloc iinf cmov iprp".split()]
)
SKIPPED = {b"mdat", b"free", b"skip", b"wide"}
FRAGMENT_BYTES, FRAGMENT_TRACK_BYTES = 64, 64
TRACK_BYTES = 16 << 10
ENCRYPTED_BYTES = 160
ITEM_BYTES = 256
"""Memory for an item of a still picture."""


def check_movie(file: RawIOBase, path: str | os.PathLike[str]) -> None:
    """Check the memory that the tables of `file` would need. The file may be of any format.

    Raises:
        MediaError: they would need too much.
    """
    buffered = BufferedReader(file)
    try:
        size = buffered.seek(0, os.SEEK_END)
        Movie(min(MAX_BYTES, BASE_BYTES + size)).read(BoxFile(buffered, size))
    except TooLarge as error:
        raise MediaError(f"{Path(path)}: {error}; export it again, with few edits and in one piece") from None
    finally:
        buffered.detach()


@dataclass
class Movie:
    """Adds up the memory that the boxes of one file would need."""

    allowed_bytes: int
    spent_bytes: int = 0
    fragments: int = 0
    time_scale: int = 0
    """The smallest time scale of the file, which makes edits longest."""
    tracks: list[Track] = field(default_factory=lambda: [Track()])
    """The tracks. The first is for tables before any track."""
    chapter_tracks: set[int] = field(default_factory=set)
    reader: BoxReader = field(default_factory=lambda: BoxReader(READ))
    starts: array[int] = field(default_factory=lambda: array("q"))
    """Where indexes say that fragments begin. FFmpeg reads there, even inside the media data."""

    def read(self, source: BoxFile) -> None:
        """Add up all boxes of a file.

        Raises:
            TooLarge: the tables would need too much memory or time.
        """
        seen = array("q")
        for box in self.reader.children(source, 0, source.size):
            seen.append(box.begin)
            self._box(source, box, 0, 1)
        tail = source.read_number(source.size - 4)
        if 8 <= tail <= source.size:
            self.starts.append(source.size - tail)
        self._read_fragments(source, set(seen))
        self.spend(self.fragments * (FRAGMENT_BYTES + FRAGMENT_TRACK_BYTES * len(self.tracks)))
        freed = 0
        for track in self.tracks:
            left = self.allowed_bytes - self.spent_bytes - freed
            kept, passing = track.index_bytes(self.time_scale, left, chapters=track.number in self.chapter_tracks)
            self.spend(kept)
            freed = max(freed, passing)
        self.spend(freed)

    def spend(self, count: int) -> None:
        """Add `count` bytes.

        Raises:
            TooLarge: the sum is more than what is allowed.
        """
        self.spent_bytes += count
        if self.spent_bytes > self.allowed_bytes:
            raise TooLarge(f"its tables need more than {self.allowed_bytes >> 20} MiB of memory")

    def _read_fragments(self, source: BoxFile, known: set[int]) -> None:
        while self.starts:
            begin = self.starts.pop()
            if not 0 <= begin < source.size or begin + 8 in known:
                continue
            for box in self.reader.children(source, begin, source.size):
                if box.begin in known:
                    break
                known.add(box.begin)
                self._box(source, box, 0, 1)

    def _box(self, source: BoxFile, box: Box, depth: int, times: int) -> None:
        """Add up one box. FFmpeg may read it `times` times."""
        kind, begin = box.kind, box.begin
        size = box.end - begin
        if depth > MAX_DEPTH:
            return
        if kind in SKIPPED:
            self._free(source, box, depth, times)
        elif kind in ROW_BYTES:
            self._table(source, box, times)
        elif kind in (b"stsz", b"stz2"):
            self._sizes(source, box, times)
        elif kind == b"trun":
            self._run(source, begin, times)
        elif kind == b"sidx":
            self._index(source, box, times)
        elif kind == b"tfra":
            self._random_access(source, begin, times)
        elif kind in (b"senc", b"saiz", b"iloc", b"iinf"):
            self._items(source, box, times)
        elif kind == b"cmov":
            self._compressed(source, box, depth)
        elif kind == b"mvhd":
            scale = source.read_number(begin + (20 if source.read_number(begin, 1) == 1 else 12))
            self.time_scale = min(scale, self.time_scale or scale)
        elif kind == b"chap":
            numbers = source.read_rows(begin, ">u4", size // 4)
            self.spend(times * 4 * len(numbers))
            self.chapter_tracks.update(numbers.tolist())
        elif kind in PARENTS or kind in SCANNED:
            self._parent(source, box, depth, times)
        elif depth:
            self.tracks[-1].note(source, box)
            self.spend(2 * size * times)

    def _parent(self, source: BoxFile, box: Box, depth: int, times: int) -> None:
        if box.kind == b"trak":
            self.tracks.append(Track())
            self.spend(TRACK_BYTES)
        if box.kind == b"moof":
            self.fragments += times
        if box.kind not in SCANNED:
            for child in self.reader.children(source, box.begin, box.end):
                self._box(source, child, depth + 1, times)
            return
        size = box.end - box.begin
        self.spend(2 * size * times)
        if box.kind == b"stsd":
            self.tracks[-1].description = source.read(box.begin, 64)
        if box.kind == b"iprp":
            times *= size  # FFmpeg reads a property again for each item that has it
        for child in self.reader.scan(source, box):
            self._box(source, child, depth + 1, times)

    def _free(self, source: BoxFile, box: Box, depth: int, times: int) -> None:
        """FFmpeg looks for a lost movie header in free space."""
        if box.kind == b"free" and source.read(box.begin + 4, 4) in (b"mvhd", b"cmov"):
            self._parent(source, box._replace(kind=b"moov"), depth, times)

    def _table(self, source: BoxFile, box: Box, times: int) -> None:
        header = 4
        if box.kind == b"sbgp":
            header = 12 if source.read_number(box.begin, 1) == 1 else 8
        in_file, in_memory = ROW_BYTES[box.kind]
        begin = box.begin + header + 4
        if box.kind == b"elst":
            in_file = 20 if source.read_number(box.begin, 1) == 1 else 12
            count = (box.end - begin) // in_file
            self.tracks[-1].wide_edits = in_file == 20
        else:
            end = box.end if box.kind in WITHIN_BOX else source.size
            count = min(source.read_number(box.begin + header), (end - begin) // in_file)
        count = max(0, count)
        self.spend(count * in_memory * times)
        self.tracks[-1].add(box.kind, Table(source, begin, count))

    def _sizes(self, source: BoxFile, box: Box, times: int) -> None:
        """Add to the samples of the track. A table that the file does not hold completely adds none."""
        count, bits, each = source.read_number(box.begin + 8), 32, source.read_number(box.begin + 4)
        if box.kind == b"stz2":
            bits, each = each & 0xFF, 0
        if each:
            self.tracks[-1].add_samples(count, each)
            return
        in_file, there = (count * bits + 4) >> 3, max(0, source.size - box.begin - 12)
        self.spend(min(in_file, there) * times)
        if in_file <= there and bits:
            self.spend(count * 4 * times)
            self.tracks[-1].add_samples(count, 0)

    def _run(self, source: BoxFile, begin: int, times: int) -> None:
        """Add up the samples of a fragment. Samples without fields of their own take no room in the file."""
        flags, count = source.read_number(begin), source.read_number(begin + 4)
        in_file = 4 * (flags & 0xF00).bit_count()
        there = min(count, max(0, source.size - begin) // in_file) if in_file else count
        self.spend((there * INDEX_BYTES + count * TIME_BYTES) * times)

    def _index(self, source: BoxFile, box: Box, times: int) -> None:
        wide = source.read_number(box.begin, 1) == 1
        place = box.begin + (30 if wide else 22)
        offset = box.end + source.read_number(box.begin + (20 if wide else 16), 8 if wide else 4)
        sizes = source.read_rows(place + 2, [("size", ">u4"), ("rest", "V8")], source.read_number(place, 2))["size"]
        self.spend(len(sizes) * FRAGMENT_BYTES * times)
        self.fragments += len(sizes) * times
        for size in sizes.tolist():
            if offset < source.size:
                self.starts.append(offset)
            offset += size

    def _random_access(self, source: BoxFile, begin: int, times: int) -> None:
        wide, lengths = source.read_number(begin, 1) == 1, source.read_number(begin + 8)
        rest = 3 + (lengths >> 4 & 3) + (lengths >> 2 & 3) + (lengths & 3)
        row = [("time", "V8"), ("offset", ">i8")] if wide else [("time", "V4"), ("offset", ">u4")]
        there = max(0, source.size - begin - 16) // (rest + (16 if wide else 8))
        count = min(source.read_number(begin + 12), there)
        self.spend(count * FRAGMENT_BYTES * times)
        self.fragments += count * times
        self.starts.extend(source.read_rows(begin + 16, [*row, ("rest", f"V{rest}")], count)["offset"].tolist())

    def _items(self, source: BoxFile, box: Box, times: int) -> None:
        """Add up a list for which FFmpeg allocates the stated length before it reads the list."""
        version, place, size = source.read_number(box.begin, 1), box.begin + 4, 4
        each = ENCRYPTED_BYTES
        if box.kind == b"saiz":
            place += 9 if source.read_number(box.begin + 3, 1) & 1 else 1
        elif box.kind in (b"iloc", b"iinf"):
            each, size = ITEM_BYTES, 2 if version < (2 if box.kind == b"iloc" else 1) else 4
            place += 2 if box.kind == b"iloc" else 0
        count = source.read_number(place, size)
        self.spend((count * 8 + min(count, source.size // 2) * each) * times)

    def _compressed(self, source: BoxFile, box: Box, depth: int) -> None:
        """Add up a movie header in a zlib stream. The box says how long it is."""
        length = source.read_number(box.begin + 20)
        self.spend(length + box.end - box.begin)
        try:
            data = zlib.decompressobj().decompress(source.read(box.begin + 24, box.end - box.begin - 24), length or 1)
        except zlib.error:
            return  # FFmpeg will say what is wrong
        inner = BoxFile(BytesIO(data), len(data))
        self._parent(inner, Box(b"moov", 0, len(data)), depth + 1, 1)
