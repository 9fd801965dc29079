"""A mask in files, and its use on the frames of a video."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Event

import numpy as np
from av.video.frame import VideoFrame

from selva_bundle.errors import Cancelled, MediaError, MediaNotFoundError
from selva_runtime.media.container import check_regular_file, reason
from selva_runtime.media.masks.filling import GREY, Keep, Seen, check_fill, fill_outside, whole
from selva_runtime.media.masks.matte import matte
from selva_runtime.media.masks.sources import MaskFolder, MaskFrames, MaskVideo, png_names
from selva_runtime.media.pictures import Pictures
from selva_runtime.media.resize import Planes, resize

_EARLY_S = Fraction(1, 10)
"""A mask that ends this much before a frame that it is asked for gets a warning."""
_STRETCH = 1.03
"""An aspect ratio that differs by more than this factor gets a warning."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """A mask video, a folder of PNGs or one picture, and how it is applied.

    Raises:
        RequestError: there is no such fill.
    """

    path: Path
    fill: str = GREY
    """What is seen where the mask is black: "grey", "black" or "blur"."""
    invert: bool = False
    """Black keeps, white is filled."""

    def __post_init__(self) -> None:
        check_fill(self.fill)

    def files(self) -> list[Path]:
        """Return the files of the mask, in the order of their names.

        Raises:
            MediaNotFoundError: there is no such file or folder.
            MediaError: it cannot be read, or the folder has no PNGs.
        """
        with named():
            if self.path.is_dir():
                return [self.path / name for name in png_names(self.path)]
            check_regular_file(self.path)
            return [self.path]

    def content(self, cancelled: Event | None) -> str:
        """Return a hash of everything that the filled frames depend on.

        Raises:
            MediaNotFoundError: there is no such file or folder.
            MediaError: a file cannot be read.
            Cancelled: `cancelled` was set.
        """
        total = hashlib.sha256(repr((self.fill, self.invert, self.path.is_dir())).encode())
        for path in self.files():
            content = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while block := file.read(_READ_BYTES):
                        if cancelled is not None and cancelled.is_set():
                            raise Cancelled(f"{path}: reading stopped")
                        content.update(block)
            except OSError as error:
                raise MediaError(f"the mask {path}: cannot be read ({reason(error)})") from error
            total.update(repr((path.name if self.path.is_dir() else "", content.hexdigest())).encode())
        return total.hexdigest()

    @contextmanager
    def opened(self, start: Fraction, interval: Fraction, cancelled: Event | None) -> Iterator[OpenMask]:
        """Open the mask for a video of which a frame lasts `interval` seconds, to be read from `start` (seconds) on.

        Raises:
            MediaNotFoundError: there is no such file or folder.
            MediaError: it is no mask that can be read.
        """
        with named():
            frames: MaskFolder | MaskVideo
            if self.path.is_dir():
                frames = MaskFolder(self.path, interval, cancelled)
            else:
                frames = MaskVideo(self.path, start, cancelled)
        with frames if isinstance(frames, MaskVideo) else nullcontext():
            yield OpenMask(self, frames)


class OpenMask:
    """A mask that is being applied to the frames of a video."""

    def __init__(self, mask: MaskFile, frames: MaskFrames) -> None:
        self._mask, self._frames = mask, frames
        self._pictures = Pictures(mask.path)
        self._seen = Seen(mask.path.name)
        self._last: tuple[VideoFrame, tuple[int, ...], Keep] | None = None
        self._ended: Fraction | None = None
        self._stretched: str | None = None

    def fill(self, planes: Planes, time: Fraction) -> None:
        """Fill what the mask does not keep of an upright frame, (3, H, W), in place. `time` is in seconds.

        Raises:
            MediaError: the mask cannot be decoded.
        """
        with named():
            frame = self._frames.at(time)
            if self._last is None or self._last[0] is not frame or self._last[1] != planes.shape[1:]:
                self._last = frame, planes.shape[1:], self._keep(frame, *planes.shape[1:])
        fill_outside(planes, self._last[2], self._mask.fill)
        end = self._frames.end
        if end is not None and time > end + _EARLY_S:
            self._ended = end

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the mask, as far as it was used."""
        name = self._mask.path.name
        found = list(self._frames.warnings)
        if self._stretched is not None:
            found.append(f"{name}: {self._stretched}")
        if self._ended is not None:
            found.append(f"{name}: the mask ends at {float(self._ended):.2f} s; its last frame is held")
        return (*found, *self._seen.warnings())

    def _keep(self, frame: VideoFrame, height: int, width: int) -> Keep:
        keep = matte(frame, self._pictures)
        own_height, own_width = keep.shape
        stretch = own_width * height / (own_height * width)
        if not 1 / _STRETCH <= stretch <= _STRETCH:
            self._stretched = (
                f"the mask is {own_width}x{own_height}, the video {width}x{height}; it is stretched to fit"
            )
        fitted: Keep = resize(keep[None], whole(height), whole(width))[0]
        if self._mask.invert:
            np.subtract(255, fitted, out=fitted)
        self._seen.add(fitted)
        return fitted


@contextmanager
def named() -> Iterator[None]:
    """Say in errors that they are about the mask."""
    try:
        yield
    except (MediaError, MediaNotFoundError) as error:
        raise type(error)(f"the mask {error}") from error


def mask_of(path: str | os.PathLike[str] | None, fill: str, *, invert: bool) -> MaskFile | None:
    """Return a mask, or None if there is no path.

    Raises:
        RequestError: there is no such fill.
    """
    check_fill(fill)
    return None if path is None else MaskFile(path=Path(path), fill=fill, invert=invert)
