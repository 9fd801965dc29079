"""Rows of an array in a file: written while their number is unknown, read by slices, so that memory stays small.

The rows are float32, in blocks with a checksum that is compared at every read. What does not fit on the disk stays in
memory.
"""

from __future__ import annotations

import os
import warnings
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import CacheError
from selva_runtime.cache.entries import Block, NewEntry
from selva_runtime.cache.files import HEAD, OpenFile, remove_same, unnamed_file
from selva_runtime.cache.settings import size_text

Float32 = npt.NDArray[np.float32]
_BLOCK_BYTES = 1 << 20
"""A block is read as a whole, so it is small. A single row may be larger."""


class Rows:
    """An array (rows, …) of float32 that is read from its file at each access, in slices along the first axis.

    `path` is the entry that the file is. A damaged one is removed.

    Raises:
        CacheError: on access, what is read is not what was written.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, file: OpenFile | None, row_shape: tuple[int, ...], blocks: Sequence[Block], path: Path | None = None
    ) -> None:
        self._file, self._blocks, self._path = file, tuple(blocks), path
        self._firsts = [0, *accumulate(block.rows for block in blocks)]
        self.shape = (self._firsts.pop(), *row_shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Float32:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("rows are read in slices without a step")
        values = np.empty((max(0, stop - start), *self.shape[1:]), np.float32)
        for index in range(bisect_right(self._firsts, start) - 1, bisect_left(self._firsts, stop)):
            first, block = self._firsts[index], self._read(self._blocks[index])
            begin, end = max(start, first), min(stop, first + len(block))
            values[begin - start : end - start] = block[begin - first : end - first]
        return values

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("the rows are in a file; an array of them is a copy")
        return self[:].astype(dtype or np.float32, copy=False)

    def check(self) -> None:
        """Compare all checksums now, instead of each at a read.

        Raises:
            CacheError: a row is not what was written.
        """
        for block in self._blocks:
            self._read(block)

    def _read(self, block: Block) -> Float32:
        """(rows, …) of one block."""
        content = block.content
        if content is None:
            assert self._file is not None
            try:
                content = self._file.read(block.offset, block.size)
            except OSError:
                content = b""
            if zlib.crc32(content) != block.checksum:  # or it is too short
                if self._path is not None:
                    remove_same(self._path, self._file)
                raise CacheError("the encoded clip on the disk is damaged; encode the video again")
        return np.frombuffer(content, np.float32).reshape(block.rows, *self.shape[1:])


class RowWriter:
    """Collects rows in `file`, or in memory if there is none. `entry` is what they become when they are committed.

    `with` removes what was not committed. `warn` gets a line if the disk fails or the entry is too large.
    """

    def __init__(
        self,
        file: OpenFile | None,
        warn: Callable[[str], None],
        entry: NewEntry | None = None,
        on_stored: Callable[[Path], None] | None = None,
    ) -> None:
        self._file, self._warn, self._entry, self._on_stored = file, warn, entry, on_stored
        self._full = file is None
        self._end = 0 if entry is None else len(HEAD)
        self._row_shape: tuple[int, ...] | None = None
        self._blocks: list[Block] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()
        self._file = None

    def append(self, rows: Float32) -> None:
        """Write rows (n, …). All must have the shape of the first.

        Raises:
            ValueError: they are not float32, or have another shape.
        """
        self._row_shape = rows.shape[1:] if self._row_shape is None else self._row_shape
        if rows.dtype != np.float32 or rows.shape[1:] != self._row_shape:
            raise ValueError(f"rows are {rows.dtype} {rows.shape[1:]}; give float32 {self._row_shape}")
        step = max(1, _BLOCK_BYTES // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), step):
            self._append_block(rows[start : start + step])

    def commit(self, facts: Mapping[str, Any]) -> Rows:
        """Make the rows an entry with these facts, if they are for one, and return them.

        Raises:
            ValueError: there are no rows.
            TypeError: the facts cannot be written as JSON.
        """
        if self._row_shape is None:
            raise ValueError("there are no rows to keep")
        entry = self._entry
        if entry is None:
            return Rows(self._file, self._row_shape, self._blocks)
        try:
            file = entry.publish(self._row_shape, self._blocks, facts)
        except OSError as error:
            self._warn(f"does not keep the new entry ({error.strerror or error})")
            self.abandon()
            return Rows(entry.file, self._row_shape, self._blocks)
        self._entry = None
        if self._on_stored is not None:
            self._on_stored(entry.path)
        return Rows(file, self._row_shape, self._blocks, entry.path)

    def _append_block(self, values: Float32) -> None:
        content = np.ascontiguousarray(values).data.cast("B")
        if self._entry is not None and self._end + len(content) > self._entry.limit_bytes:
            self._warn(f"does not keep what is larger than its limit of {size_text(self._entry.limit_bytes)}")
            self.abandon()
        written = self._write(content)
        block = Block(
            rows=len(values),
            checksum=zlib.crc32(content),
            offset=self._end,
            size=len(content),
            content=None if written else bytes(content),
        )
        self._blocks.append(block)
        self._end += len(content) if written else 0

    def _write(self, content: memoryview) -> bool:
        """Write to the file, and return false from the first failure on."""
        if not self._full and self._file is not None:
            try:
                self._file.write(content)
            except OSError as error:
                self._full = True
                self._warn(
                    f"cannot be written ({error.strerror or error}), so the rest stays in memory; free some space"
                )
                self.abandon()
        return not self._full

    def abandon(self) -> None:
        """Give up the entry. What was written can still be read."""
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.abandon()


def temporary_rows(
    folder: str | os.PathLike[str] | None = None, *, warn: Callable[[str], None] = warnings.warn
) -> RowWriter:
    """Return a writer into a file without a name, which vanishes with the process. None: a folder for large files.

    `warn` gets a line if the file cannot be made or the disk is full: the rows then stay in memory.
    """

    def warn_of_file(problem: str) -> None:
        warn(f"the temporary file {problem}")

    try:
        return RowWriter(unnamed_file(folder), warn_of_file)
    except OSError as error:
        warn_of_file(f"cannot be made ({error.strerror or error}), so the clip stays in memory")
        return RowWriter(None, warn_of_file)
