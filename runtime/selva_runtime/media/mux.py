"""Copy a video with the stem as its first sound track and the original sound after it.

Pictures and original sound are copied packet by packet and never encoded again. The stem starts with silence up to
the start of its clip, because many editors ignore edit lists, which could say the same. Subtitles, data and cover
pictures are left out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition, Stream

from selva_bundle.atomic import write_new
from selva_bundle.errors import MediaError, RequestError
from selva_runtime.media.audio import Audio, check_audio, check_rate, tag
from selva_runtime.media.container import find_video_stream, open_media, packets, reason
from selva_runtime.media.resampler import Resampler

FORMATS = {".mp4": ("mp4", "aac"), ".m4v": ("mp4", "aac"), ".mov": ("mov", "aac"), ".mkv": ("matroska", "flac")}
"""Suffix -> container, codec of the stem."""
FALLBACKS = (".mkv", ".mov")
"""Containers to try, in this order, if the wanted one cannot hold the source's codecs."""
AAC_BITS_PER_S = 160_000
FALLBACK_RATE_HZ = 48_000
MAX_REORDERED_FRAMES = 16
"""Limit of H.264 and HEVC. Matroska stores no decoding times, so the first packets get times before all others."""
STALE_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}
DEFAULT, NOT_DEFAULT = cast(Disposition, Disposition.default.value), cast(Disposition, 0)
"""Plain numbers, because PyAV 17 takes them too."""
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES}


class Unsupported(Exception):  # noqa: N818 -- a signal within this module
    """The container cannot hold one of the streams."""


class Damaged(Unsupported):
    """FFmpeg refuses the content of one of the streams, not its codec."""


@dataclass(frozen=True, kw_only=True)
class MuxResult:
    """The copy of the video."""

    path: Path
    """The path that was used."""
    warnings: tuple[str, ...]


def mux(
    video_path: str | os.PathLike[str],
    audio: Audio | Iterable[Audio],
    sample_rate_hz: int,
    out_path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    video_start_s: float | None = None,
    title: str = "",
) -> MuxResult:
    """Copy the video with `audio` (samples,) as its default sound track, `start_s` after its first frame.

    `audio` may also be blocks (n,), such as `WavBlocks`. They are read once for each container that is tried, so an
    iterator is not enough. The memory does not grow with the length then.

    `video_start_s`, as in `VideoClip`, is the time of the first frame; None takes it from the header. The suffix of
    `out_path` chooses the container: .mp4, .m4v, .mov (AAC) or .mkv (FLAC). Without one of these the suffix of the
    source is used, or else .mkv. If the codecs do not fit, .mkv is used with a warning. Nothing is overwritten.

    Raises:
        MediaNotFoundError: there is no such video.
        MediaError: the video cannot be read, or no container here can hold its codec.
        RequestError: audio, sample rate or start is out of range.
        OutputError: the file cannot be written.
    """
    rate_hz = check_rate(sample_rate_hz)
    sound = [check_audio(audio)] if isinstance(audio, np.ndarray) else audio
    if not 0 <= start_s < float("inf"):
        raise RequestError(f"start {start_s} s: must be 0 or more seconds into the video")
    source, wanted = Path(video_path), with_container_suffix(Path(out_path), Path(video_path))
    damage: Damaged | None = None
    for suffix in dict.fromkeys((wanted.suffix.lower(), *FALLBACKS)):
        job = Job(source, suffix, sound, rate_hz, start_s, video_start_s, tag(title))
        try:
            path = write_new(wanted if suffix == wanted.suffix.lower() else wanted.with_suffix(suffix), job.write)
        except Unsupported as error:
            damage = error if isinstance(error, Damaged) else damage
            cause = "is damaged: " if isinstance(error, Damaged) else ""
            refusal = f"{source.name}: {cause}{wanted.suffix} cannot hold its streams ({error})"
            continue
        warnings = [] if suffix == wanted.suffix.lower() else [f"{refusal}; written as {path.name}"]
        return MuxResult(path=path, warnings=(*warnings, *job.warnings))
    if damage:
        raise MediaError(f"{source}: is damaged: its streams cannot be copied ({damage}); export it again")
    raise MediaError(f"{refusal}, nor can {' or '.join(FALLBACKS)}; convert the video to H.264 first")


def with_container_suffix(wanted: Path, source: Path) -> Path:
    """Return `wanted` with the suffix of a container that can be written."""
    if wanted.suffix.lower() in FORMATS:
        return wanted
    suffix = source.suffix.lower() if source.suffix.lower() in FORMATS else ".mkv"
    if wanted.suffix and wanted.suffix.lower() == source.suffix.lower():
        return wanted.with_suffix(suffix)
    return wanted.with_name(wanted.name + suffix)


class Job:
    """One attempt to write one container."""

    def __init__(
        self,
        source: Path,
        suffix: str,
        sound: Iterable[Audio],
        rate_hz: int,
        start_s: float,
        video_start_s: float | None,
        title: str,
    ) -> None:
        self.source, self.sound, self.rate_hz = source, sound, rate_hz
        self.start_s, self.video_start_s, self.title = start_s, video_start_s, title
        self.container, self.codec = FORMATS[suffix]
        self.warnings: list[str] = []

    def write(self, path: Path) -> None:
        """Write the copy to `path`.

        Raises:
            Unsupported: the container cannot hold one of the streams.
            Damaged: FFmpeg refuses the content of one of the streams.
            MediaError: the video cannot be read.
            OSError: the file cannot be written.
        """
        with open_media(self.source, fflags="+genpts") as source:
            try:
                with av.open(f"file:{path}", "w", format=self.container) as target:
                    self.copy(source, target)
            except av.FFmpegError as error:
                if error.errno in DISK_ERRORS:
                    raise OSError(error.errno, os.strerror(error.errno)) from error
                raise Damaged(reason(error)) from error

    def copy(self, source: InputContainer, target: OutputContainer) -> None:
        """Copy the video and all sound tracks to `target`, and add the stem.

        Raises:
            Unsupported: the container cannot hold one of the streams.
            Damaged: nothing of a stream can be copied.
        """
        video = find_video_stream(source, self.source)
        shift = Fraction(source.start_time or 0, av.time_base)
        first = (video.start_time or 0) * (video.time_base or 0)
        start = (first if self.video_start_s is None else Fraction(self.video_start_s)) - shift + Fraction(self.start_s)
        copied = {video.index: self.add_copy(target, video)}
        stem = Stem(target, self.codec, self.sound, self.rate_hz, start, self.title)
        for number, sound in enumerate(source.streams.audio):
            if sound.codec_context is None or not sound.codec_context.sample_rate:
                self.warnings.append(f"{self.source.name}: a sound track that cannot be read was left out")
                continue
            copied[sound.index] = self.add_copy(target, sound)
            copied[sound.index].disposition = NOT_DEFAULT
            copied[sound.index].metadata.update(title="original" if number == 0 else f"original {number + 1}")
        target.metadata.update({key: value for key, value in source.metadata.items() if key not in STALE_TAGS})
        target.start_encoding()
        self.copy_packets(source, target, copied, stem, shift)

    def copy_packets(
        self,
        source: InputContainer,
        target: OutputContainer,
        copied: dict[int, Stream],
        stem: Stem,
        shift: Fraction,
    ) -> None:
        """Copy the packets of all streams. Leave out damaged ones, with a warning.

        Raises:
            Damaged: nothing of a stream can be copied.
        """
        order, left_out, taken = IncreasingTimes(), 0, set()
        refused: dict[int, av.FFmpegError] = {}
        for packet in packets(source, *(source.streams[index] for index in copied)):
            if packet is None:
                left_out += 1
            elif packet.size:
                index = packet.stream_index
                order.fix(packet, shift)
                for encoded in stem.encode_until(float((packet.dts or 0) * packet.time_base)):
                    target.mux(encoded)
                packet.stream = copied[index]
                try:
                    target.mux(packet)
                    taken.add(index)
                except av.FFmpegError as error:
                    if error.errno in DISK_ERRORS:
                        raise
                    refused[index] = error
                    left_out += 1
        for index in refused.keys() - taken:
            raise Damaged(reason(refused[index])) from refused[index]
        for encoded in stem.encode_until(float("inf")):
            target.mux(encoded)
        if left_out:
            self.warnings.append(f"{self.source.name}: damaged in {left_out} places, which were left out")

    def add_copy(self, target: OutputContainer, stream: Stream) -> Stream:
        """Add a stream like `stream` to `target`.

        Raises:
            Unsupported: the container cannot hold it.
        """
        try:
            copy = target.add_stream_from_template(stream, opaque=True)
        except av.FFmpegError:
            raise
        except ValueError as error:
            raise Unsupported(stream.codec_context.name) from error
        copy.metadata.update(stream.metadata)
        return copy


class IncreasingTimes:
    """Makes the decoding times of each stream increase. Containers require that, and damaged files break it."""

    def __init__(self) -> None:
        self.last: dict[int, int] = {}

    def fix(self, packet: Packet[Stream], shift: Fraction) -> None:
        """Fix the times of a packet, and move it `shift` seconds earlier, so that every recording begins at 0."""
        ticks, last = round(shift / packet.time_base), self.last.get(packet.stream_index)
        if packet.dts is not None:
            decode = packet.dts - ticks
        elif last is not None:
            decode = last + ((packet.duration or 1) if packet.pts is None else 1)
        else:
            decode = (packet.pts or 0) - ticks - MAX_REORDERED_FRAMES
        if last is not None:
            decode = max(decode, last + 1)
        packet.pts = decode if packet.pts is None else max(packet.pts - ticks, decode)
        packet.dts = self.last[packet.stream_index] = decode


class Stem:
    """The new sound track. It is encoded piece by piece while packets are copied."""

    def __init__(
        self, target: OutputContainer, codec: str, sound: Iterable[Audio], rate_hz: int, start: Fraction, title: str
    ) -> None:
        rates_hz = av.Codec(codec, "w").audio_rates
        if rates_hz and rate_hz not in rates_hz:
            sound, rate_hz = resampled(sound, rate_hz, FALLBACK_RATE_HZ), FALLBACK_RATE_HZ
        self.stream = cast(AudioStream, target.add_stream(codec, rate_hz, layout="mono"))
        if codec == "aac":
            self.stream.bit_rate = AAC_BITS_PER_S
        else:
            self.stream.format = "s32"  # 24 bits
        self.stream.metadata.update(title=title or "stem", handler_name=title or "stem")
        self.stream.disposition = DEFAULT
        self.rate_hz, self.samples = rate_hz, 0
        self.blocks = blocks(sound, max(0, round(start * rate_hz)), rate_hz)

    def encode_until(self, time_s: float) -> Iterator[Packet[AudioStream]]:
        """Encode and yield the packets that begin up to `time_s`. Infinity also flushes the encoder."""
        while self.samples <= time_s * self.rate_hz:
            block = next(self.blocks, None)
            if block is None:
                if time_s == float("inf"):
                    yield from self.stream.encode(None)
                return
            frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self.rate_hz, self.samples, Fraction(1, self.rate_hz)
            self.samples += len(block)
            yield from self.stream.encode(frame)


def resampled(sound: Iterable[Audio], from_hz: int, to_hz: int) -> Iterator[Audio]:
    """Yield the blocks (n,) at another sample rate."""
    resampler = Resampler(from_hz, to_hz)
    for block in sound:
        yield resampler.push(block)
    yield resampler.finish()


def blocks(sound: Iterable[Audio], silence: int, size: int) -> Iterator[Audio]:
    """Yield `silence` samples of silence, then the sound, in pieces (n,) of at most `size` samples.

    The pieces do not depend on the sizes of the sound's blocks, and so neither does what the encoder makes of them.
    """
    for start in range(0, silence, size):
        yield np.zeros(min(size, silence - start), np.float32)
    rest = np.empty(0, np.float32)
    for block in sound:
        rest = np.concatenate([rest, check_audio(block)])
        whole = len(rest) - len(rest) % size
        for start in range(0, whole, size):
            yield np.clip(rest[start : start + size], -1, 1)
        rest = rest[whole:].copy()
    if len(rest):
        yield np.clip(rest, -1, 1)
