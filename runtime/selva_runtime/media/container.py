"""Open and decode media files that anyone may have made.

Only local, regular files are opened, and nothing that they point to (playlists, references, URLs). Each of FFmpeg's
errors becomes one typed error whose message names the file. Damage inside a file is counted and skipped. Missing or
wrong times are replaced, so that callers see frames with increasing times.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import FileIO
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from selva_bundle.errors import Cancelled, MediaError, MediaNotFoundError
from selva_runtime.media.movie_memory import check_movie

MAX_SIDE_PIXELS = 8192
MAX_READ_ERRORS = 50
DECODER_THREADS = 4
"""More threads would hold more frames at once, and 8K frames are large."""
AV_ERRORS = (av.FFmpegError, OSError, ValueError, EOFError, IndexError)
"""What PyAV raises: its own errors, those of the file, ValueError from its own checks, and IndexError when a new stream
appears in the middle of a damaged file."""

STILL = Disposition.attached_pic | Disposition.timed_thumbnails
LIMITS = {"protocol_whitelist": "none", "max_pixels": str(MAX_SIDE_PIXELS**2)}


class LenientFile(FileIO):
    """A file that returns -1 for a seek outside the file, as FFmpeg's own files do. Some demuxers try such seeks."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Seek, and return the new position in bytes, or -1 if it is outside the file."""
        try:
            return super().seek(offset, whence)
        except OSError:
            return -1


def reason(error: BaseException) -> str:
    """Return FFmpeg's or the system's message without numbers and function names."""
    return str(getattr(error, "strerror", None) or error)


def check_regular_file(path: Path) -> None:
    """Check that `path` is a readable, non-empty regular file.

    Raises:
        MediaNotFoundError: there is no such file.
        MediaError: it is a folder, a device, empty or unreadable.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MediaNotFoundError(f"{path}: no such file; check the path") from None
    except ValueError as error:
        raise MediaError(f"{str(path)!r}: is not a file name ({error}); check the path") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({reason(error)})") from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path}: is a folder; name one video file in it")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path}: is not a regular file; copy the video to disk first")
    if not status.st_size:
        raise MediaError(f"{path}: is empty; copy or export it again")


@contextmanager
def open_media(path: str | os.PathLike[str], **options: str) -> Iterator[InputContainer]:
    """Open the demuxer of `path`. It reads through a Python file, so that no name is taken for a URL or a pattern.

    Raises:
        MediaNotFoundError: there is no such file.
        MediaError: a folder, an empty or unreadable file, one that FFmpeg does not recognise, or a movie whose tables
            would take too much memory.
    """
    path = Path(path)
    check_regular_file(path)
    try:
        file = LenientFile(os.fspath(path), "rb")
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({reason(error)})") from error
    with file:
        check_movie(file, path)
        file.seek(0)
        try:
            container = av.open(file, "r", metadata_errors="replace", options={**LIMITS, **options})
        except AV_ERRORS as error:
            raise MediaError(
                f"{path}: is not a video, or is damaged from the start ({reason(error)}); export it again"
            ) from error
        with container:
            yield container


def find_video_stream(container: InputContainer, path: str | os.PathLike[str]) -> VideoStream:
    """Return the default video stream, or the first one. Cover art does not count.

    Raises:
        MediaError: no video stream, a codec that FFmpeg does not know, or frames larger than 8192x8192.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & STILL]
    if not moving:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        cover = " (a cover picture does not count)" if container.streams.video else ""
        raise MediaError(f"{path}: has no video stream{cover}, but {found}; choose a video file")
    stream = max(moving, key=lambda candidate: bool(candidate.disposition & Disposition.default))
    if stream.codec_context is None:
        raise MediaError(f"{path}: its video codec is unknown to FFmpeg; convert it to H.264 first")
    check_frame_size(path, stream.width, stream.height)
    return stream


def check_frame_size(path: str | os.PathLike[str], width: int, height: int) -> None:
    """Check the size of frames in pixels.

    Raises:
        MediaError: frames larger than 8192x8192.
    """
    if max(width, height) > MAX_SIDE_PIXELS:
        limit = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}"
        raise MediaError(f"{path}: {width}x{height} frames are larger than {limit}; scale the video down first")


def packets(container: InputContainer, *streams: Stream) -> Iterator[Packet[Stream] | None]:
    """Yield all packets of `streams`, and None for each place that cannot be read. What follows is often intact."""
    for _ in range(MAX_READ_ERRORS):
        try:
            yield from container.demux(*streams)
            return
        except AV_ERRORS:
            yield None


class Decoder:
    """Decodes the frames of one stream, gives them increasing times, and counts the damage."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        path: Path,
        cancelled: threading.Event | None = None,
    ) -> None:
        self.container, self.stream, self.path, self.cancelled = container, stream, path, cancelled
        self.time_base = stream.time_base or Fraction(1, 1000)
        # AVI stores no presentation times, and FFmpeg's guess is wrong for reordered frames: use the decoding order.
        self.by_order = container.format.name == "avi"
        rate = stream.average_rate or stream.guessed_rate
        self.usual_interval = 1 / Fraction(rate) if rate else Fraction(1, 25)
        self.damaged_packets = 0
        self.packets_end = Fraction(0)
        """End of the last packet in seconds, even if it cannot be decoded."""
        self.on_packet: Callable[[Packet[Stream] | None], None] | None = None
        """Called with each packet before it is decoded, and with None for a place that cannot be read."""
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = min(DECODER_THREADS, os.cpu_count() or 1)

    def frames(self) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """Yield (begin, end, frame), in seconds. A frame without a usable time begins at the end of the one before.

        Raises:
            MediaError: a frame larger than 8192x8192.
            Cancelled: the event was set.
        """
        begin = end = None
        for frame in self._decoded():
            check_frame_size(self.path, frame.width, frame.height)
            ticks = frame.dts if self.by_order else frame.pts
            stamp = None if ticks is None else ticks * self.time_base
            if stamp is None or (begin is not None and stamp <= begin):
                stamp = end or Fraction(0)
            begin = stamp
            end = begin + (frame.duration * self.time_base if frame.duration > 0 else self.usual_interval)
            yield begin, end, frame

    def _decoded(self) -> Iterator[VideoFrame]:
        for packet in packets(self.container, self.stream):
            if self.cancelled is not None and self.cancelled.is_set():
                raise Cancelled(f"{self.path}: reading stopped")
            if self.on_packet is not None:
                self.on_packet(packet)
            if packet is None:
                self.damaged_packets += 1
                continue
            if packet.pts is not None and not packet.is_discard and not self.by_order:
                self.packets_end = max(self.packets_end, (packet.pts + (packet.duration or 0)) * self.time_base)
            try:
                frames = self.stream.decode(packet)
            except AV_ERRORS:
                self.damaged_packets += 1
                continue
            yield from frames
