"""Render `street.mp4`, the video that the documentation and the quick start use, and `street.json`, its true events.

A composed scene of the demo's world, of the kind that is only tested on: a ball bounces and a lamp beeps in one frame,
their events interleaved. The same seed gives the same file. Usage:

    python examples/make_clip.py [OUT.mp4]
"""

import json
import sys
from fractions import Fraction
from pathlib import Path

import av

from selva_ref.demo.world.scenes import FPS, composed_scene, render
from selva_ref.demo.world.sounds import RATE_HZ

SEED = (2026,)
KINDS = ("ball", "lamp")
SIZE = 256
BLOCK = 1024


def write(path):
    scene = composed_scene(SEED, KINDS)
    frames, sound = render(scene, SIZE), sum(source.sound() for source in scene.sources)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as target:
        video = target.add_stream(
            "libx264", rate=FPS, width=SIZE, height=SIZE, pix_fmt="yuv420p", options={"crf": "20", "threads": "1"}
        )
        video.codec_context.time_base = Fraction(1, FPS)
        audio = target.add_stream("aac", rate=RATE_HZ, layout="mono", bit_rate=64_000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture.transpose(1, 2, 0).copy(), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            target.mux(video.encode(frame))
        for start in range(0, sound.size, BLOCK):
            frame = av.AudioFrame.from_ndarray(0.9 * sound[None, start : start + BLOCK], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
            target.mux(audio.encode(frame))
        target.mux(video.encode(None))
        target.mux(audio.encode(None))
    events = {source.kind: [round(float(t), 3) for t in source.events_s] for source in scene.sources}
    path.with_suffix(".json").write_text(json.dumps(events) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("street.mp4"))
