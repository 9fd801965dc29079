"""Give the memory of mapped weights back to the system as soon as they were read.

OpenVINO maps the files of a graph as long as the graph is loaded, so every weight counts twice in the memory of the
process. It reads the mapped weights only when it compiles the graph, and can read them from the file again. The same
holds for weights that this package computes, once they are in a file.
"""

from __future__ import annotations

import ctypes
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

from selva_runtime.cache.place import large_file_folder

_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4
_INTERVAL_S = 0.1
_LINUX = sys.platform.startswith("linux")


def release_pages(files: Collection[Path]) -> int:
    """Drop the pages of these files from the process, and return how many bytes were dropped.

    A page returns when it is read again. Where /proc cannot be read (not on Linux) nothing is done and 0 is returned.
    """
    try:
        maps = _MAPS.read_text(errors="surrogateescape")
    except OSError:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    released_bytes = 0
    for start, end in mappings(maps, {str(file) for file in files}):
        if libc.madvise(start, end - start, _MADV_DONTNEED) == 0:
            released_bytes += end - start
    return released_bytes


@contextmanager
def releasing_pages(files: Collection[Path]) -> Iterator[None]:
    """Call `release_pages` repeatedly while the body runs, and once after it."""
    if not files or not _LINUX:
        yield
        return
    done = Event()

    def work() -> None:
        while not done.wait(_INTERVAL_S):
            release_pages(files)

    thread = Thread(target=work, name="selva-release-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release_pages(files)


class FileBackedArrays:
    """Arrays in a file without a name, so that `release_pages` can drop their pages too.

    The file goes away with the last array. Where there is no such file (not on Linux, a full disk), the arrays stay in
    memory.
    """

    def __init__(self) -> None:
        self._file: Any = None
        if _LINUX:
            with suppress(OSError):
                self._file = tempfile.TemporaryFile(prefix="selva-", dir=large_file_folder())  # noqa: SIM115 -- the arrays outlive this

    def keep(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the same values, mapped from the file."""
        if self._file is None:
            return values
        try:
            start = -(-self._file.seek(0, os.SEEK_END) // 4096) * 4096
            self._file.seek(start)
            self._file.write(np.ascontiguousarray(values).data)
            self._file.flush()
            return np.memmap(self._file, values.dtype, "r+", start, values.shape)
        except OSError:
            self._file = None
            return values

    @property
    def files(self) -> list[Path]:
        """The file under the name that the system lists, for `releasing_pages`."""
        return [] if self._file is None else [Path(os.readlink(f"/proc/self/fd/{self._file.fileno()}"))]


def mappings(maps: str, files: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield start and end of the mappings of `files` in the text of `/proc/PID/maps` whose pages can be dropped.

    A dropped page is read from the file again. So a private mapping that can be written to is left out: it may hold
    values that are not in the file.
    """
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in files and (fields[1][1] == "-" or fields[1][3] == "s"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            yield start, end
