"""PNG files of every kind, written byte by byte, because encoders choose the kind themselves."""

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(path: Path, pixels: np.ndarray, *, kind: int = GREY, bits: int = 8, palette=None, alphas=None) -> Path:
    """Writes `pixels` (H, W) or (H, W, C), whose values are those of the file, of `bits` each."""
    height, width = pixels.shape[:2]
    if bits < 8:
        rows = [np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -bits:]) for row in pixels]
    else:
        rows = [row.astype(">u2" if bits == 16 else "u1") for row in pixels]
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    parts += [] if palette is None else [chunk(b"PLTE", bytes(np.ravel(palette).tolist()))]
    parts += [] if alphas is None else [chunk(b"tRNS", bytes(alphas))]
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path
