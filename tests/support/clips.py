"""Small real media files for the tests, rendered with PyAV.

Each picture of `numbered` shows its own number: the left half is grey by the low hexadecimal digit, the right half by
the high one. The steps of 16 survive lossy codecs, resizing and colour conversion.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def numbered(number: int, *, width: int = 64, height: int = 48) -> Picture:
    """Returns picture `number`, uint8 (height, width, 3)."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2] = 8 + 15 * (number % 16)
    picture[:, width // 2 :] = 8 + 15 * (number // 16 % 16)
    return picture


def number_of(planes: Picture) -> int:
    """The number of a `numbered` picture, of shape (3, size, size)."""
    middle, quarter = planes.shape[1] // 2, planes.shape[2] // 4
    low, high = (int(planes[:, middle, column].astype(int).mean() - 8 + 7.5) // 15 for column in (quarter, -quarter))
    return low + 16 * high


def numbers_of(frames: Picture) -> list[int]:
    return [number_of(planes) for planes in frames]


def write_video(
    path: Path,
    pictures: Iterable[Picture],
    *,
    rate: Fraction | int = 25,
    ticks: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    turned: tuple[float, bool, bool] | None = None,
    colour: tuple[int, int] | None = None,
    sound: NDArray[np.float32] | None = None,
    sound_codec: str = "aac",
    sound_rate_hz: int = 48000,
    start_s: Fraction | int = 0,
) -> Path:
    """Writes a video. Picture k is shown at `ticks[k] * time_base`, or else at `start_s + k / rate`.

    Args:
        turned: degrees counterclockwise, mirrored, upside down.
        colour: matrix, range.
        sound: mono, starts with the pictures and may be longer; its language is "deu".
    """
    time_base = time_base or 1 / Fraction(rate)
    with av.open(str(path), "w", format=container) as target:
        video = None
        track = add_sound(target, sound_codec, sound_rate_hz) if sound is not None else None
        for index, picture in enumerate(pictures):
            if video is None:
                height, width = picture.shape[:2]
                video = target.add_stream(
                    codec, rate=rate, width=width, height=height, pix_fmt=pixels, options=options or {}
                )
                video.codec_context.time_base = time_base
                if turned:
                    video.set_display_rotation(turned[0], hflip=turned[1], vflip=turned[2])
                if colour:
                    video.codec_context.colorspace, video.codec_context.color_range = colour
            frame = av.VideoFrame.from_ndarray(picture, "rgb24" if picture.ndim == 3 else "gray")
            frame.time_base = time_base
            frame.pts = ticks[index] if ticks is not None else round((start_s + index / Fraction(rate)) / time_base)
            target.mux(video.encode(frame))
            if track is not None:
                begin, end = (round(place * sound_rate_hz / Fraction(rate)) for place in (index, index + 1))
                target.mux(track.encode(sound_frame(sound[begin:end], sound_rate_hz, begin, start_s)))
        target.mux(video.encode(None))
        if track is not None:
            if len(tail := sound[end:]):
                target.mux(track.encode(sound_frame(tail, sound_rate_hz, end, start_s)))
            target.mux(track.encode(None))
    return path


def add_sound(target: av.container.OutputContainer, codec: str, rate_hz: int) -> av.AudioStream:
    stream = target.add_stream(codec, rate=rate_hz, layout="mono")
    stream.metadata["language"] = "deu"
    return stream


def sound_frame(part: NDArray[np.float32], rate_hz: int, place: int, start_s: Fraction | int = 0) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part[None]), format="fltp", layout="mono")
    frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
    frame.pts = place + round(start_s * rate_hz)
    return frame


def click(length_s: float, at_s: float, rate_hz: int) -> NDArray[np.float32]:
    """Silence with one sample of 0.9 at `at_s`."""
    sound = np.zeros(round(length_s * rate_hz), np.float32)
    sound[round(at_s * rate_hz)] = 0.9
    return sound


def loudest_s(path: Path, track: int) -> float:
    """Time of the loudest sample of an audio track, in seconds after the first picture."""
    with av.open(str(path)) as source:
        shown_s = next(source.decode(video=0)).time
    best, heard_s = 0.0, 0.0
    with av.open(str(path)) as source:
        for frame in source.decode(audio=track):
            levels = np.abs(frame.to_ndarray().astype(np.float64)).max(axis=0)
            if levels.max() > best:
                best, heard_s = levels.max(), frame.time + int(levels.argmax()) / frame.sample_rate
    return heard_s - shown_s
