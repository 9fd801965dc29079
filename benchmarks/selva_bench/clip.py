"""A video of the requested length. The benchmark's clip is real footage, which is often too short."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import VideoFrame

from selva_bench.errors import BenchError

EXAMPLE = Path(__file__).parents[2] / "examples" / "street.mp4"
"""Only exists in a checkout, not in an installed package."""
_SPARE_FRAMES = 2


def clip_of(video: Path | None, duration_s: float, folder: Path) -> Path:
    """Returns `video` (None: the example) if it lasts `duration_s`, else a copy in `folder` that repeats it."""
    video = EXAMPLE if video is None else video
    if not video.is_file():
        raise BenchError(f"{video} is not there; give a video with --video FILE")
    try:
        return video if _lasts(video, duration_s) else looped(video, duration_s, folder / "clip.mp4")
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise BenchError(f"{video} cannot be used ({error}); give another --video") from error


def looped(video: Path, duration_s: float, out: Path) -> Path:
    """Repeats the pictures of `video`, without sound, until they last `duration_s`."""
    with av.open(str(video)) as source:
        stream = source.streams.video[0]
        rate = Fraction(stream.average_rate or 25)
        width, height = stream.width // 2 * 2, stream.height // 2 * 2
    with av.open(str(out), "w") as target:
        made = target.add_stream("libx264", rate=rate, width=width, height=height, pix_fmt="yuv420p")
        for number, frame in zip(range(int(duration_s * rate) + _SPARE_FRAMES), _forever(video), strict=False):
            picture = frame.reformat(width, height, "yuv420p")
            picture.time_base, picture.pts = 1 / rate, number
            target.mux(made.encode(picture))
        target.mux(made.encode(None))
    return out


def _lasts(video: Path, duration_s: float) -> bool:
    """Whether the header states enough. A file without a duration counts as too short; a copy of it works as well."""
    with av.open(str(video)) as source:
        stream = source.streams.video[0]
        if stream.duration and stream.time_base:
            return bool(stream.duration * stream.time_base >= duration_s)
        return source.duration is not None and source.duration / av.time_base >= duration_s


def _forever(video: Path) -> Iterator[VideoFrame]:
    while True:
        with av.open(str(video)) as source:
            count = 0
            for frame in source.decode(video=0):
                count += 1
                yield frame
        if not count:
            raise BenchError(f"{video} holds no picture; give another --video")
