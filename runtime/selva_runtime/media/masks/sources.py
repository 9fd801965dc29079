"""Where the frames of a mask come from: a video, which may have only one frame, or a folder of numbered PNGs.

Both give the frame that is shown at a time, in seconds from the first frame of the masked video. Times ascend.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Protocol, Self

from av.video.frame import VideoFrame

from selva_bundle.errors import MediaError
from selva_runtime.media.container import MAX_SIDE_PIXELS, Decoder
from selva_runtime.media.frames import SLACK_S
from selva_runtime.media.seeking import SEEK_MARGIN_S, SeekFailed, seek_near
from selva_runtime.media.video import VideoFile, pluralise

MAX_PNGS = 250_000
"""Almost three hours at 25 frames a second."""
_NUMBER = re.compile(r"([0-9]{1,18})")
_Shown = tuple[Fraction, Fraction, VideoFrame]


class MaskFrames(Protocol):
    """The frames of a mask."""

    def at(self, time: Fraction) -> VideoFrame:
        """Return the frame that is shown at `time`, or the last one after the end."""

    @property
    def end(self) -> Fraction | None:
        """The time after which the last frame is held. None if that is not known yet, or there is only one frame."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the file or the folder."""


class MaskVideo:
    """A mask video, or one picture that holds for ever. `with` closes it.

    Raises:
        MediaError: it is no video or picture that can be read.
    """

    def __init__(self, path: Path, start: Fraction, cancelled: Event | None) -> None:
        self.path, self._cancelled = path, cancelled
        self._shown: _Shown
        self._next: _Shown | None
        with ExitStack() as opened:
            self._file = opened.enter_context(VideoFile(path))
            try:
                self._begin(start, seek=start > 2 * SEEK_MARGIN_S)
            except SeekFailed:
                self._file.reopen()
                self._begin(start, seek=False)
            self._open_files = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()

    def at(self, time: Fraction) -> VideoFrame:
        """Return the frame that is shown at `time`, or the last one after the end."""
        while self._next is not None and self._next[0] - self._origin <= time + SLACK_S:
            self._shown, self._next, self._moves = self._next, next(self._frames, None), True
        return self._shown[2]

    @property
    def end(self) -> Fraction | None:
        """The time after which the last frame is held. None if that is not known yet, or there is only one frame."""
        return self._shown[1] - self._origin if self._next is None and self._moves else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the file."""
        damaged = self._decoder.damaged_packets
        return (f"{self.path.name}: {pluralise(damaged, 'damaged packet')} skipped",) if damaged else ()

    def _begin(self, start: Fraction, *, seek: bool) -> None:
        self._decoder = Decoder(self._file.container, self._file.stream, self.path, self._cancelled)
        frames = self._decoder.frames()
        first = next(frames, None)
        if first is None:
            limit = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}"
            raise MediaError(f"{self.path}: no frame of up to {limit} pixels can be decoded; export it again")
        self._origin = first[0]
        self._frames = seek_near(self._decoder, self._origin + start) if seek else chain([first], frames)
        self._shown = next(self._frames)
        self._next = next(self._frames, None)
        self._moves = self._next is not None


class MaskFolder:
    """A folder of numbered PNGs: a sequence at the video's rate, whose lowest number is the video's first frame.

    Raises:
        MediaError: there is no sequence in it.
    """

    def __init__(self, folder: Path, interval: Fraction, cancelled: Event | None) -> None:
        self._folder, self._interval, self._cancelled = folder, interval, cancelled
        self._paths = numbered(folder, png_names(folder))
        self._numbers = list(self._paths)
        self._first = self._numbers[0]
        self._shown: tuple[int, VideoFrame] | None = None

    def at(self, time: Fraction) -> VideoFrame:
        """Return the frame that is shown at `time`. A missing number holds the one before it.

        Raises:
            MediaError: a file is no picture that can be read.
        """
        place = self._first + round(time / self._interval)
        number = self._numbers[max(0, bisect_right(self._numbers, place) - 1)]
        if self._shown is None or self._shown[0] != number:
            with MaskVideo(self._paths[number], Fraction(0), self._cancelled) as picture:
                self._shown = number, picture.at(Fraction(0))
        return self._shown[1]

    @property
    def end(self) -> Fraction | None:
        """The time after which the last frame is held, or None if there is only one."""
        return None if len(self._numbers) == 1 else (self._numbers[-1] - self._first + 1) * self._interval

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning if the numbers may not count from the start of the video."""
        if len(self._numbers) == 1 or self._first <= 1:
            return ()
        name = self._paths[self._first].name
        return (f"{self._folder.name}: {name} is taken for the first frame of the video",)


def png_names(folder: Path) -> list[str]:
    """Return the names of a folder's PNGs, sorted. Hidden files do not count.

    Raises:
        MediaError: there are none or too many, one is a link, or the folder cannot be read.
    """
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.lower().endswith(".png") or entry.name.startswith("."):
                    continue
                if not entry.is_file(follow_symlinks=False):
                    raise MediaError(f"{folder / entry.name}: is a link or a folder; put the PNG itself there")
                names.append(entry.name)
                if len(names) > MAX_PNGS:
                    raise MediaError(f"{folder}: holds more than {MAX_PNGS} PNGs; make a mask video of them")
    except OSError as error:
        raise MediaError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if not names:
        raise MediaError(f"{folder}: holds no PNG files; name a folder of them, one PNG, or a video")
    return sorted(names)


def numbered(folder: Path, names: list[str]) -> dict[int, Path]:
    """Return the PNGs of a sequence by their numbers, ascending.

    The number of a file is the only one in its name that differs from those of the other files.

    Raises:
        MediaError: the names are not those of one sequence.
    """
    if len(names) == 1:
        return {0: folder / names[0]}
    parts = [_NUMBER.split(Path(name).stem) for name in names]
    example = f"such as mask_0001.png; {names[0]} and {names[-1]} are not"
    if len({tuple(part[::2]) for part in parts}) > 1:
        raise MediaError(f"{folder}: the PNGs must be of one sequence, {example}")
    fields = [{int(part[place]) for part in parts} for place in range(1, len(parts[0]), 2)]
    differing = [2 * place + 1 for place, values in enumerate(fields) if len(values) > 1]
    if len(differing) != 1 or len(fields[differing[0] // 2]) < len(names):
        raise MediaError(f"{folder}: the names of the PNGs must differ in one number, {example}")
    found = {int(part[differing[0]]): folder / name for part, name in zip(parts, names, strict=True)}
    return dict(sorted(found.items()))
