"""A timeline's sequence with real media, for the tests of its file formats."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from clips import numbered, write_video

from selva_runtime.media.post.timecode import DROP_RATES, Timecode
from selva_runtime.media.timelines.sequence import Sequence, StemTrack

RATES = [
    Fraction(rate, base) for rate, base in ((24_000, 1001), (24, 1), (25, 1), (30_000, 1001), (50, 1), (60_000, 1001))
]
NAMES = ('dog "barking" & <more>', "Möwen 'rufen'")
ODD_FRAME, FRAMES, RATE_HZ = 37, 211, 48_000
FIRST, VIDEO_FIRST = 107_892, 2_711


def make_sequence(folder: Path, rate: Fraction, *, timed: bool = False) -> Sequence:
    """A video whose stems begin at an odd frame; each has one sample that is heard, and the second has two takes."""
    video = write_video(folder / "a #1 50% straße.mp4", map(numbered, range(FRAMES)), rate=rate)
    start = ODD_FRAME / rate
    samples = round((FRAMES / rate - start) * RATE_HZ)
    files = [folder / f"stem {number}.wav" for number in range(3)]
    for number, file in enumerate(files):
        sound = np.zeros(samples, np.float32)
        sound[10_000 * (number + 1)] = 0.5
        soundfile.write(file, sound, RATE_HZ, "PCM_24")
    return Sequence(
        name="street",
        video=video,
        size=(64, 48),
        first=Timecode(frame=FIRST, rate=rate, drop=rate in DROP_RATES),
        video_first=Timecode(frame=VIDEO_FIRST, rate=rate),
        frames=FRAMES,
        tracks=(StemTrack(name=NAMES[0], takes=(files[0],)), StemTrack(name=NAMES[1], takes=tuple(files[1:]))),
        start_s=start,
        samples=samples,
        rate_hz=RATE_HZ,
        timed_stems=timed,
    )
