"""Takes MP4 and MOV files apart into boxes and rebuilds them, to make files that no encoder would write."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

PARENTS = {b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"udta"}
Box = tuple[bytes, "bytes | list[Box]"]


def parse(data: bytes) -> list[Box]:
    boxes, place = [], 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + size]
        boxes.append((kind, parse(content) if kind in PARENTS else content))
        place += max(size, 8)
    return boxes


def build(boxes: list[Box]) -> bytes:
    return b"".join(box(kind, content if isinstance(content, bytes) else build(content)) for kind, content in boxes)


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind: bytes, *fields: int, version: int = 0, flags: int = 0, rest: bytes = b"") -> bytes:
    """Makes a box with a version, flags and 32-bit fields."""
    return box(kind, struct.pack(f">I{len(fields)}I", version << 24 | flags, *fields), rest)


def replaced(boxes: list[Box], changes: dict[bytes, bytes | Callable[[bytes], bytes] | None]) -> list[Box]:
    """Replaces the content of the named boxes wherever they are; None leaves a box out."""
    made: list[Box] = []
    for kind, content in boxes:
        if kind in changes:
            change = changes[kind]
            if change is not None:
                made.append((kind, change(build_content(content)) if callable(change) else change))
        else:
            made.append((kind, content if isinstance(content, bytes) else replaced(content, changes)))
    return made


def build_content(content: bytes | list[Box]) -> bytes:
    return content if isinstance(content, bytes) else build(content)


def table(*fields: int, rows: bytes = b"", version: int = 0) -> bytes:
    """Makes the content of a table box: version, then fields, then rows."""
    return struct.pack(f">{1 + len(fields)}I", version << 24, *fields) + rows


def with_samples(boxes: list[Box], count: int) -> list[Box]:
    """Changes the tables to one chunk of `count` samples of one byte, without edits."""
    rows = {b"stsz": table(1, count), b"stsc": table(1, 1, count, 1), b"stts": table(1, count, 512)}
    return replaced(boxes, {**rows, b"edts": None})


def edits(count: int, begin: int = 0, length: int = 1) -> bytes:
    """Makes the content of an edit list that shows the same place again and again."""
    return table(count, rows=struct.pack(">IiI", length, begin, 1 << 16) * count)


def compressed(boxes: list[Box], more_bytes: int = 0) -> list[Box]:
    """Stores the movie header as one zlib stream, as old QuickTime did; the stated length is `more_bytes` too large."""
    header = build_content(dict(boxes)[b"moov"])
    movie = box(b"dcom", b"zlib"), box(b"cmvd", struct.pack(">I", len(header) + more_bytes), zlib.compress(header))
    return [(kind, box(b"cmov", *movie) if kind == b"moov" else content) for kind, content in boxes]


PEAKS = """
import sys
{code}

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    try:
        run(path)
        outcome = "made"
    except Exception as error:
        outcome = type(error).__name__
    print(outcome, (status("VmHWM") - before) / 1024)
"""


def peaks_mib(code: str, *paths: Path, timeout_s: float = 60) -> list[tuple[str, float]]:
    """For each path, the result of `run(path)` in `code`, and by how many MiB it raised the memory of its process."""
    command = [sys.executable, "-c", PEAKS.format(code=code), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return [(outcome, float(mib)) for outcome, mib in map(str.split, done.stdout.splitlines())]
