"""Recognise a video by its content: a hash of the packets that a part of it can need, without decoding them.

The packets begin and end where `read_clip` begins and ends, and a little later. So a part of a long film is hashed
without reading the film. The file's name and times do not count, nor its sound and its tags. A copy in another format
has another fingerprint, because its times are rounded in another way.
"""

from __future__ import annotations

import hashlib
import os
from fractions import Fraction
from threading import Event

from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from selva_bundle.errors import Cancelled
from selva_bundle.lengths import exact_seconds
from selva_runtime.media.container import Decoder, packets
from selva_runtime.media.pictures import display_matrix
from selva_runtime.media.seeking import SEEK_MARGIN_S, SeekFailed, header_length, seek_near
from selva_runtime.media.video import VideoFile

_MARGIN_S = 5
"""Packets are hashed until this much after the end of the part, because decoders show frames late and out of order."""
_UNREADABLE = b"a place that cannot be read"


def fingerprint(
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    cancelled: Event | None = None,
) -> str:
    """Return a hash of everything that `read_clip` can need for this part of a video. `duration_s` None: to its end.

    Another part may have the same packets and so the same hash. The file is opened anew, even if it is a `VideoFile`.

    Raises:
        MediaNotFoundError: there is no such file.
        MediaError: it is not a video that can be read.
        Cancelled: `cancelled` was set.
    """
    start = exact_seconds(start_s)
    end = None if duration_s is None else start + exact_seconds(duration_s)
    with VideoFile(path.path if isinstance(path, VideoFile) else path) as video:
        try:
            return _hash(video, start, end, cancelled, seek=start > 2 * SEEK_MARGIN_S)
        except SeekFailed:
            video.reopen()
            return _hash(video, start, end, cancelled, seek=False)


def _hash(video: VideoFile, start: Fraction, end: Fraction | None, cancelled: Event | None, *, seek: bool) -> str:
    """Hash the packets from where `read` begins. Raises `SeekFailed` where `read` does."""
    decoder = Decoder(video.container, video.stream, video.path, cancelled)
    content = _Content(decoder)
    decoder.on_packet = content.add
    first = next(decoder.frames(), None)
    if first is None:
        end = None  # all of it is damaged
    else:
        if seek:
            content = _Content(decoder)
            decoder.on_packet = content.add
            seek_near(decoder, first[0] + start)
        end = None if end is None else end + first[0]
    for packet in packets(video.container, video.stream):
        if content.reaches(end):
            break
        if cancelled is not None and cancelled.is_set():
            raise Cancelled(f"{video.path}: reading stopped")
        content.add(packet)
    return content.digest(_header(video, decoder, first))


def _header(video: VideoFile, decoder: Decoder, first: tuple[Fraction, Fraction, VideoFrame] | None) -> str:
    """Describe what the frames depend on besides the packets."""
    stream, codec = video.stream, video.stream.codec_context
    return repr(
        (
            (codec.name, codec.codec_tag, codec.profile, codec.width, codec.height, codec.pix_fmt, codec.extradata),
            (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc),
            (video.container.format.name, decoder.time_base, decoder.usual_interval, decoder.by_order),
            header_length(video.container, stream),
            first and (first[0], display_matrix(first[2])),
        )
    )


class _Content:
    """The hash of packets in the order of the file."""

    def __init__(self, decoder: Decoder) -> None:
        self._by_order, self._time_base = decoder.by_order, decoder.time_base
        self._hash = hashlib.sha256()
        self._times_are_sound = True
        self._dts: Fraction | None = None
        """Decoding time of the last packet."""
        self._shown: list[Fraction] = []
        """Presentation times of packets since `reaches` was called."""
        self._after: Fraction | None = None
        """Presentation time of the first frame from the end on."""

    def add(self, packet: Packet[Stream] | None) -> None:
        """Add a packet, or None for a place that cannot be read."""
        if packet is None:
            self._hash.update(_UNREADABLE)
        elif packet.size or packet.dts is not None:  # an empty packet marks the end
            flags = packet.is_keyframe, packet.is_corrupt, packet.is_discard, packet.is_disposable, packet.is_trusted
            side_data = [(str(side.data_type), bytes(side)) for side in packet.iter_sidedata()]
            self._hash.update(repr((packet.pts, packet.dts, packet.duration, flags, packet.size, side_data)).encode())
            self._hash.update(packet)
            self._note_times(packet)

    def reaches(self, end: Fraction | None) -> bool:
        """Whether no later packet is needed up to `end` (seconds): the first frame from there on, and some more."""
        if end is None or self._dts is None or not self._times_are_sound:
            return False
        later = [shown for shown in self._shown if shown >= end]
        self._after = min(later if self._after is None else [*later, self._after], default=None)
        self._shown.clear()
        return self._after is not None and self._dts >= self._after + _MARGIN_S

    def digest(self, header: str) -> str:
        """Return the hash of the header and the packets."""
        return hashlib.sha256(header.encode() + self._hash.digest()).hexdigest()

    def _note_times(self, packet: Packet[Stream]) -> None:
        shown = packet.dts if self._by_order else packet.pts
        if shown is None or (packet.dts is None and self._dts is not None):
            self._times_are_sound = False
            return
        self._shown.append(shown * self._time_base)
        if packet.dts is not None:
            dts = packet.dts * self._time_base
            self._times_are_sound &= shown >= packet.dts and (self._dts is None or dts >= self._dts)
            self._dts = dts
