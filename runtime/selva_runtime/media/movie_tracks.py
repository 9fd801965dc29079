"""Estimate the number of entries in FFmpeg's index of one track, before and after its edits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selva_runtime.media.boxes import Box, BoxFile, TooLarge

INDEX_BYTES, TIME_BYTES = 24, 12
"""Memory per sample: for its place, size and time, and for its duration and offset."""
MAX_ROWS = 8 << 20
"""Larger tables are refused."""
MAX_STEPS = 10_000_000_000
"""Limit of edits times entries. FFmpeg counts from the first sample for each edit."""
PCM = (b"sowt", b"twos", b"raw ", b"NONE", b"in24", b"in32", b"fl32", b"fl64", b"lpcm", b"ipcm", b"fpcm")
PCM_STEP, PACKED_STEP = 1024, 160
"""Sound samples in one index entry: for PCM, and at least for other codecs, which pack them."""
NEGATIVE = 1 << 31
"""FFmpeg reads larger durations as negative ones, and changes those that follow."""
MAX_TITLE_BYTES = 1 << 17

Numbers = NDArray[np.int64]


class Table(NamedTuple):
    """Where the rows of a table are. `length` is the number of rows."""

    source: BoxFile
    begin: int
    length: int

    def column(self, index: int, *types: str) -> Numbers:
        """Read one column (rows,). `types` are the NumPy types of a row.

        Raises:
            TooLarge: the table has too many rows.
        """
        if self.length > MAX_ROWS:
            raise TooLarge(f"one of its tables has more than {MAX_ROWS:,} rows")
        layout = [(str(place), kind) for place, kind in enumerate(types)]
        rows: NDArray[Any] = self.source.read_rows(self.begin, layout, self.length)
        return rows[str(index)].astype(np.int64)


@dataclass
class Track:
    """What the boxes of one track contain."""

    number: int = 0
    samples: int = 0
    sample_bytes: int = 0
    """Size of every sample. 0 if a table lists the sizes."""
    time_scale: int = 0
    handlers: set[bytes] = field(default_factory=set)
    description: bytes = b""
    """First bytes of the table of codecs."""
    tables: dict[bytes, Table] = field(default_factory=dict)
    groups: list[Table] = field(default_factory=list)
    wide_edits: bool = False
    doubled: bool = False
    """Whether a table occurs twice. It is not worth knowing which one FFmpeg uses."""

    def note(self, source: BoxFile, box: Box) -> None:
        """Store the fields of a box if they are needed here."""
        wide = source.read_number(box.begin, 1) == 1
        if box.kind == b"hdlr":
            self.handlers.add(source.read(box.begin + 8, 4))
        elif box.kind == b"mdhd":
            self.time_scale = max(self.time_scale, source.read_number(box.begin + (20 if wide else 12)))
        elif box.kind == b"tkhd":
            self.number = source.read_number(box.begin + (20 if wide else 12))

    def add(self, kind: bytes, table: Table) -> None:
        """Add a table."""
        if kind == b"sbgp":
            self.groups.append(table)
            return
        kind = b"stco" if kind == b"co64" else kind
        self.doubled |= kind in self.tables
        self.tables[kind] = table

    def add_samples(self, count: int, each_bytes: int) -> None:
        """Store the number of samples and the size of each (0: a table lists the sizes)."""
        self.doubled |= bool(self.samples)
        self.samples, self.sample_bytes = max(self.samples, count), each_bytes

    def count(self, kind: bytes) -> int:
        """Return the number of rows of a table, 0 if there is none."""
        return self.tables[kind].length if kind in self.tables else 0

    def index_bytes(self, movie_scale: int, allowed: int, *, chapters: bool) -> tuple[int, int]:
        """Return the bytes that FFmpeg keeps for the index, and those that it frees after it has applied the edits.

        Tables are read only if the sum could be above `allowed` bytes.

        Raises:
            TooLarge: a table has too many rows, or the edits would take minutes to follow.
        """
        plain = self._is_plain_sound()
        runs = self._sound_runs() if plain else np.array([[self.samples, 0]], np.int64)
        entries = int(runs[:, 0].sum())
        timed = not plain or self.count(b"ctts") > 0
        index, kept = entries * INDEX_BYTES + self.samples * TIME_BYTES * timed, self._unrolled_groups() * 4
        if chapters:
            kept += entries * min(2 * self.sample_bytes or MAX_TITLE_BYTES, MAX_TITLE_BYTES)
        edits = self.count(b"elst")
        if not edits:
            return index + kept, 0
        if self.count(b"ctts") and edits * entries > MAX_STEPS:
            raise TooLarge("its edit list would take minutes to process")
        covered, entry_bytes = edits * entries, INDEX_BYTES + TIME_BYTES * timed
        known = not self.doubled and self.time_scale and movie_scale and entries
        if known and covered * entry_bytes > allowed - index - kept:
            covered = min(covered, self._covered(runs if plain else self._sample_runs(), movie_scale))
        return covered * entry_bytes + kept, index

    def _is_plain_sound(self) -> bool:
        """Whether FFmpeg puts many samples into one entry."""
        if self.doubled or not self.handlers & {b"soun", b"m1a "} or self.handlers & {b"vide", b"subp", b"clcp"}:
            return False
        times = self.tables.get(b"stts")
        return times is not None and times.length == 1 and times.source.read_number(times.begin + 4) == 1

    def _sound_runs(self) -> Numbers:
        """(runs, 2): number of entries, and duration of each."""
        chunks = self.count(b"stco")
        if not chunks or not self.count(b"stsc"):
            return np.zeros((1, 2), np.int64)
        version, packed = self.description[24:26], int.from_bytes(self.description[44:48], "big")
        known = self.description[4:8] == b"\0\0\0\1" and self.description[12:16] in PCM
        step = PCM_STEP if known and (version != b"\0\1" or packed <= 1) else PACKED_STEP
        first = self.tables[b"stsc"].column(0, ">u4", ">u4", ">u4")
        samples = self.tables[b"stsc"].column(1, ">u4", ">u4", ">u4")
        entries, lengths = -(-samples // step), np.diff(first, append=chunks + 1)
        if (lengths <= 0).any() or first[0] != 1:  # FFmpeg corrects such a table in its own way
            return np.array([[chunks * int(entries.max()), 0]], np.int64)
        return np.stack([lengths * entries, samples // np.maximum(entries, 1)], 1)

    def _sample_runs(self) -> Numbers:
        if not self.count(b"stts"):
            return np.array([[self.samples, 0]], np.int64)
        counts, durations = (self.tables[b"stts"].column(index, ">u4", ">u4") for index in (0, 1))
        ends = np.minimum(np.cumsum(counts), self.samples)
        ends[-1] = self.samples
        if (durations >= NEGATIVE).any():
            durations[:] = 0
        return np.stack([np.diff(ends, prepend=0), durations], 1)

    def _unrolled_groups(self) -> int:
        """For HEVC with groups of samples, FFmpeg expands groups and offsets to as many entries as they state."""
        tables = [*self.groups, *filter(None, [self.tables.get(b"ctts")])] if self.groups else []
        return sum(int(table.column(0, ">u4", ">u4").sum()) for table in tables)

    def _covered(self, runs: Numbers, movie_scale: int) -> int:
        """Count the entries that all edits cover, each from a key frame before it to one after it.

        If frames are decoded in another order than they are shown, FFmpeg continues to the second key frame after it.
        """
        layout = (">i8", ">i8", ">u4") if self.wide_edits else (">u4", ">i4", ">u4")
        lengths, begins = (self.tables[b"elst"].column(index, *layout) for index in (0, 1))
        shown = next(iter(np.flatnonzero(begins != -1)), len(begins))
        sound = bool(self.handlers & {b"soun", b"m1a "}) or b"vide" not in self.handlers
        offsets = self.tables[b"ctts"].column(1, ">u4", ">i4") if self.count(b"ctts") else np.zeros(1, np.int64)
        earlier, later = max(0, -int(offsets.min())), max(0, int(offsets.max()))
        begin = begins[shown:] - (earlier + later) - (self.time_scale if sound else 0)
        end = begins[shown:] + earlier + np.ceil(lengths[shown:] * (self.time_scale / movie_scale)) + 1

        samples = np.concatenate([[0], np.cumsum(runs[:, 0])])
        times = np.concatenate([[0], np.cumsum(runs[:, 0] * runs[:, 1])])
        total = int(samples[-1])

        def first_at(time: NDArray[Any]) -> Numbers:
            """Return the first sample that begins at `time` or later."""
            run = np.clip(np.searchsorted(times, time, "left") - 1, 0, len(runs) - 1)
            within = np.ceil((time - times[run]) / np.maximum(runs[run, 1], 1)).clip(0, total)
            return np.where(time <= 0, 0, np.minimum(samples[run] + within, total)).astype(np.int64)

        before = np.maximum(first_at(begin) - 1, 0)
        run = np.clip(np.searchsorted(samples, before, "right") - 1, 0, len(runs) - 1)
        start = first_at(times[run] + (before - samples[run]) * runs[run, 1])
        stop = np.maximum(first_at(end), start)
        if b"stss" in self.tables:
            keys = self._key_samples()
            place = np.searchsorted(keys, start, "right") - 1
            start = np.where(place < 0, 0, keys[np.maximum(place, 0)])
            following = np.searchsorted(keys, stop, "left") + (self.count(b"ctts") > 0)
            stop = np.where(following < len(keys), keys[np.minimum(following, len(keys) - 1)], total)
        return int((np.minimum(stop + 3, total) - start).sum())

    def _key_samples(self) -> Numbers:
        """Return the key samples that FFmpeg finds. It stops at a number that is not above the one before."""
        keys = self.tables[b"stss"].column(0, ">u4")
        if not len(keys):
            return np.zeros(1, np.int64)
        keys = keys - (1 if keys[0] else 0)
        falls = np.flatnonzero(np.diff(keys) <= 0)
        return keys[: falls[0] + 1] if len(falls) else keys
