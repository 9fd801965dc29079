"""The file of an entry: a mark, the blocks of rows, then a description in JSON, its checksum and a mark.

The description is at the end because the number of rows is not known before. A truncated file has none. It holds the
key, which is compared, so that the hash in the name need not be trusted.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selva_runtime.cache.files import HEAD, TAIL_MAGIC, OpenFile, PartFile

SUFFIX = ".selva"
_TAIL = struct.Struct("<QI")
"""Bytes of the description, and its CRC-32."""
_MAX_DESCRIPTION_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some consecutive rows in the file."""

    rows: int
    checksum: int
    """CRC-32 of the stored bytes: it notices every flipped bit, at 2.7 GB/s."""
    offset: int
    size: int
    """Bytes."""
    content: bytes | None = None
    """The stored bytes if they are not in the file."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an entry is."""

    kind: str
    key: str
    """The key as `key_text` writes it."""
    facts: dict[str, Any]
    row_shape: tuple[int, ...]
    blocks: tuple[Block, ...]


class DamageError(ValueError):
    """A file is not a whole entry."""


class NewEntry:
    """A file that becomes the entry of `kind` and `key` in `folder`, if it does not exceed the limit.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, kind: str, key: str, limit_bytes: int) -> None:
        self.path = entry_path(folder, kind, key)
        self.limit_bytes = limit_bytes
        self._kind, self._key = kind, key
        self._part = PartFile(self.path)

    @property
    def file(self) -> OpenFile:
        """The open file, to write and read rows."""
        return self._part.file

    def publish(self, row_shape: tuple[int, ...], blocks: Sequence[Block], facts: Mapping[str, Any]) -> OpenFile:
        """Write the description and give the file its name. Return the file to read from.

        Raises:
            OSError: the disk is full, or the name is taken by a file that the cache did not write.
        """
        description = {
            "kind": self._kind,
            "key": self._key,
            "facts": facts,
            "row_shape": row_shape,
            "blocks": [(block.rows, block.checksum) for block in blocks],
        }
        content = json.dumps(description).encode()
        self.file.write(content + _TAIL.pack(len(content), zlib.crc32(content)) + TAIL_MAGIC)
        return self._part.publish()

    def abandon(self) -> None:
        """Remove the name. The content can be read as long as the file is open."""
        self._part.abandon()


def key_text(key: Mapping[str, object]) -> str:
    """Write a key so that equal keys are equal texts.

    Raises:
        TypeError: a value is not plain.
        ValueError: a number is not finite.
    """
    return json.dumps(key, sort_keys=True, allow_nan=False)


def entry_path(folder: Path, kind: str, key: str) -> Path:
    """Return the path of an entry. `key` is as `key_text` writes it."""
    return folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}{SUFFIX}"


def read_description(file: OpenFile) -> Description:
    """Read what an entry is. Its rows are not read.

    Raises:
        DamageError: the file is not a whole entry.
        OSError: the file cannot be read.
    """
    end = file.status().st_size - _TAIL.size - len(TAIL_MAGIC)
    if end < len(HEAD) or file.read(0, len(HEAD)) != HEAD:
        raise DamageError("no mark at the begin")
    tail = file.read(end, _TAIL.size + len(TAIL_MAGIC))
    size, checksum = _TAIL.unpack(tail[: _TAIL.size])
    if tail[_TAIL.size :] != TAIL_MAGIC or not 0 < size <= min(end - len(HEAD), _MAX_DESCRIPTION_BYTES):
        raise DamageError("no mark at the end")
    content = file.read(end - size, size)
    if zlib.crc32(content) != checksum:
        raise DamageError("the description was altered")
    try:
        description = _parsed(json.loads(content))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamageError("the description cannot be read") from error
    if len(HEAD) + sum(block.size for block in description.blocks) != end - size:
        raise DamageError("the rows have another length")
    return description


def _parsed(found: Any) -> Description:
    row_shape = tuple(int(length) for length in found["row_shape"])
    blocks, offset = [], len(HEAD)
    for rows, checksum in found["blocks"]:
        if rows < 1:
            raise ValueError(f"a block has {rows} rows")
        size = 4 * rows * math.prod(row_shape)
        blocks.append(Block(rows=rows, checksum=checksum, offset=offset, size=size))
        offset += size
    return Description(
        kind=found["kind"], key=found["key"], facts=found["facts"], row_shape=row_shape, blocks=tuple(blocks)
    )
