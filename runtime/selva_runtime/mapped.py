"""Mapped weights, given back to the system once a library has its own copy of them in the layout that it computes with.

OpenVINO maps the files of a graph and keeps them mapped as long as the graph is loaded, so that every weight counts
twice in the memory of the process. It reads them again only to compile the graph anew, and then from the file.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4


def give_back(files: Collection[Path]) -> int:
    """Bytes of read-only mappings of these files whose pages left the process; they return when they are read.

    On Linux; elsewhere nothing is done, and 0 returned.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    given_bytes = 0
    for start, end in read_only_mappings(_MAPS.read_text(errors="surrogateescape"), {str(file) for file in files}):
        if libc.madvise(start, end - start, _MADV_DONTNEED) == 0:
            given_bytes += end - start
    return given_bytes


def read_only_mappings(maps: str, files: Collection[str]) -> Iterator[tuple[int, int]]:
    """First address and end of what `/proc/PID/maps` lists of `files` and nobody can have written to."""
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in files and fields[1].startswith("r--"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            yield start, end
