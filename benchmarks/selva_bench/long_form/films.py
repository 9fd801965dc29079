"""Composed films of any length as video files, so that the whole path from a file to a stem is measured.

A film is a composed scene of the demo's world: two sources in one frame, each with one voice from begin to end. The
frames are rendered and written a few at a time. The codec is lossless, so the model sees exactly what was rendered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation.report import TEST_SEED
from selva_ref.demo.world.kinds import prompt
from selva_ref.demo.world.scenes import FPS, FRAMES, SIZE, Scene, composed_scene, frame_times, render

SHORT, MEDIUM, LONG = 608, 2048, 15_000
"""Frames of a film: 24.32 s, 81.92 s and 10 minutes, which the segments cover exactly."""
CHUNK_FRAMES = 256


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film, fixed by these values alone."""

    number: int
    frames: int = FRAMES
    kinds: tuple[str, str] | None = None
    """What its two sources are; None leaves that to its number."""

    @property
    def name(self) -> str:
        """A name for its file and for tables."""
        return f"{self.duration_s:g}s-{self.number}"

    @property
    def duration_s(self) -> float:
        """Length of the film."""
        return self.frames / FPS

    @property
    def scene(self) -> Scene:
        """What it shows, and when that sounds."""
        return composed_scene((TEST_SEED, 6, self.number), self.kinds, frames=self.frames)

    @property
    def prompts(self) -> list[str]:
        """The prompts of its two sources."""
        return [prompt(source.kind) for source in self.scene.sources]

    def write(self, folder: Path) -> Path:
        """Writes the film as a lossless video and returns its path."""
        path = folder / f"{self.name}.mkv"
        with atomic_write(path) as temporary:
            write_video(self.scene, temporary)
        return path


FILMS = tuple(
    Film(number=1000 + number, frames=frames) for number, frames in enumerate([SHORT] * 4 + [MEDIUM] * 3 + [LONG])
)


def scenes(films: Sequence[Film], each: int) -> list[Film]:
    """`each` scenes of 4.16 s for every film, with the same kinds: some kinds are heard better than others."""
    kinds = [(left.kind, right.kind) for left, right in (film.scene.sources for film in films)] * each
    first = films[0].number * 100
    return [Film(number=first + index, kinds=pair) for index, pair in enumerate(kinds)]


def write_video(scene: Scene, path: Path) -> None:
    """Renders a scene into a Matroska file of FFV1 frames."""
    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as target:
        video = target.add_stream("ffv1", rate=FPS, width=SIZE, height=SIZE, pix_fmt="bgr0")
        video.codec_context.time_base = Fraction(1, FPS)
        for start in range(0, scene.frames, CHUNK_FRAMES):
            planes = render(scene, times_s=frame_times(start, min(start + CHUNK_FRAMES, scene.frames)))
            for number, picture in enumerate(planes.transpose(0, 2, 3, 1), start):
                frame = av.VideoFrame.from_ndarray(picture.copy(), "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                target.mux(video.encode(frame))
        target.mux(video.encode(None))
