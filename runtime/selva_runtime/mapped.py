"""Mapped weights, given back to the system as soon as they were read.

OpenVINO maps the files of a graph and keeps them mapped as long as the graph is loaded, so that every weight counts
twice in the memory of the process. It reads them again only to compile the graph anew, and then from the file. So it
does with weights that were made here, once they are in a file too. ONNX Runtime, told not to pack weights, computes
with the mapped ones, each read once a run.
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

_SMAPS = Path("/proc/self/smaps")
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
        smaps = _SMAPS.read_text(errors="surrogateescape")
    except OSError:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    given_bytes = 0
    for start, end in unaltered_mappings(smaps, {str(file) for file in files}):
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


def unaltered_mappings(smaps: str, files: Collection[str]) -> Iterator[tuple[int, int]]:
    """First address and end of what `/proc/PID/smaps` lists of `files`, where it holds what the file holds.

    That is read-only, or private (ONNX Runtime maps so) with no page of its own: a page that was written to is one.
    """
    candidate = None
    for line in smaps.splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            mine = len(fields) == 6 and fields[5] in files
            if mine and fields[1].startswith("r--"):
                yield start, end
            candidate = (start, end) if mine and fields[1] == "rw-p" else None
        elif candidate and fields[:2] == ["Anonymous:", "0"]:
            yield candidate
