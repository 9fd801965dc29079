"""Mapped weights, given back to the system as soon as they were read.

OpenVINO maps the files of a graph and keeps them mapped as long as the graph is loaded, so that every weight counts
twice in the memory of the process. It reads them again only to compile the graph anew, and then from the file. So it
does with weights that were made here, once they are in a file too. ONNX Runtime, told not to pack weights, computes
with the mapped ones, each read once a run.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import numpy.typing as npt

_MAPS, _PAGES = Path("/proc/self/maps"), Path("/proc/self/pagemap")
_FILE_PAGE, _HELD = np.uint64(61), np.uint64(62)
"""Bits of a page's entry there (Linux, admin-guide/mm/pagemap): of a file; and from here on, swapped or present."""
_MADV_DONTNEED = 4
_EVERY_S = 0.1
_LINUX = sys.platform.startswith("linux")
_FOR_LARGE_FILES = Path("/var/tmp")
"""On a disk, where /tmp may be memory."""


def give_back(files: Collection[Path]) -> int:
    """Bytes of unaltered mappings of these files whose pages left the process; they return when they are read.

    On Linux, where /proc can be read; elsewhere nothing is done, and 0 returned.
    """
    try:
        maps = _MAPS.read_text(errors="surrogateescape")
    except OSError:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    given_bytes = 0
    for start, end, private in mappings(maps, {str(file) for file in files}):
        if private and _was_written_to(start, end):
            continue
        if libc.madvise(start, end - start, _MADV_DONTNEED) == 0:
            given_bytes += end - start
    return given_bytes


@contextmanager
def giving_back(files: Collection[Path]) -> Iterator[None]:
    """`give_back`, again and again while the body runs, and once more after it."""
    if not files or not _LINUX:
        yield
        return
    done = Event()

    def work() -> None:
        while not done.wait(_EVERY_S):
            give_back(files)

    thread = Thread(target=work, name="selva-give-back", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        give_back(files)


class KeptArrays:
    """Arrays in a file without a name, so that `give_back` can take their pages too. The file ends with the last array.

    Where that cannot be (not on Linux, a full disk) they stay in memory.
    """

    def __init__(self) -> None:
        self._file: Any = None
        if _LINUX:
            folder = _FOR_LARGE_FILES if os.access(_FOR_LARGE_FILES, os.W_OK) else None
            with suppress(OSError):
                self._file = tempfile.TemporaryFile(prefix="selva-", dir=folder)  # noqa: SIM115 -- the arrays outlive this

    def keep(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same values, mapped; written to they are a copy."""
        if self._file is None:
            return values
        try:
            start = -(-self._file.seek(0, os.SEEK_END) // 4096) * 4096
            self._file.seek(start)
            self._file.write(np.ascontiguousarray(values).data)
            self._file.flush()
            return np.memmap(self._file, values.dtype, "c", start, values.shape)
        except OSError:
            self._file = None
            return values

    @property
    def files(self) -> list[Path]:
        """For `giving_back`: under the name that the system lists it by."""
        return [] if self._file is None else [Path(os.readlink(f"/proc/self/fd/{self._file.fileno()}"))]


def mappings(maps: str, files: Collection[str]) -> Iterator[tuple[int, int, bool]]:
    """First address, end, and whether the process may have pages of its own, of what `/proc/PID/maps` lists of `files`.

    Read-only mappings and private ones (ONNX Runtime maps so); others share what is written with the file.
    """
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in files and (fields[1].startswith("r--") or fields[1] == "rw-p"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            yield start, end, fields[1] == "rw-p"


def _was_written_to(start: int, end: int) -> bool:
    """Whether a private mapping holds a page that is not the file's; true where that cannot be known."""
    page = mmap.PAGESIZE
    try:
        with _PAGES.open("rb", buffering=0) as file:
            file.seek(start // page * 8)
            entries = np.frombuffer(file.read((end - start) // page * 8), np.uint64)
    except OSError:
        return True
    own = (entries >> _HELD != 0) & (entries >> _FILE_PAGE & np.uint64(1) == 0)
    return len(entries) * page < end - start or bool(own.any())
