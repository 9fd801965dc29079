"""Measures when the sound comes if a video has another frame rate than the model, under both frame rules.

    python -m selva_bench.frame_rule --out benchmarks/results/frame_rule.json

The demo's scenes are rendered at each rate and stored without loss. The heard onsets of the demo bundle's stems are
compared with the times at which the sources truly sounded: positive is late.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import click
import numpy as np

import selva_runtime
from selva_bench import machine
from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation.events import matched, onsets
from selva_ref.demo.evaluation.report import TEST_SEED
from selva_ref.demo.world.kinds import KINDS, prompt
from selva_ref.demo.world.scenes import DURATION_S, SIZE, Scene, render, single_scene
from selva_runtime import Session
from selva_runtime.media.frames import FRAME_RULES

RATES = {
    "25": Fraction(25),
    "24": Fraction(24),
    "29.97": Fraction(30000, 1001),
    "30": Fraction(30),
    "60": Fraction(60),
}


def write_scene(path: Path, scene: Scene, rate: Fraction) -> None:
    """Renders the scene at a frame rate and stores it without loss."""
    times_s = (np.arange(int(DURATION_S * rate)) / float(rate)).astype(np.float32)
    with av.open(str(path), "w", format="nut") as target:
        stream = target.add_stream("rawvideo", rate=rate, width=SIZE, height=SIZE, pix_fmt="rgb24")
        stream.codec_context.time_base = 1 / rate
        for number, planes in enumerate(render(scene, times_s=times_s)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes.transpose(1, 2, 0)), "rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


def measure(session: Session, scenes: list[Scene], rate: Fraction, rule: str, steps: int) -> dict[str, float]:
    """Returns the mean signed offset of the onsets, its standard error, and how many of the events were heard."""
    offsets_s: list[float] = []
    events = 0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scene.nut"
        for seed, scene in enumerate(scenes):
            write_scene(path, scene, rate)
            clip = session.encode(path, duration_s=DURATION_S, frame_rule=rule)
            source = scene.sources[0]
            heard_s = onsets(session.generate(clip, [prompt(source.kind)], seed=seed, steps=steps)[0].audio)
            events += source.events_s.size
            offsets_s += [float(heard_s[i] - source.events_s[j]) for i, j in matched(heard_s, source.events_s)]
    offsets_ms = 1000 * np.array(offsets_s)
    return {
        "offset_ms": round(float(offsets_ms.mean()), 2),
        "standard_error_ms": round(float(offsets_ms.std() / np.sqrt(offsets_ms.size)), 2),
        "heard": round(offsets_ms.size / events, 3),
    }


@click.command()
@click.option("--scenes", type=click.IntRange(1), default=32, show_default=True, help="Scenes at each rate.")
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Integration steps of each stem.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also kept as JSON.")
def main(scenes: int, steps: int, out: Path | None) -> None:
    """Mean signed offset of the demo's onsets by the video's frame rate and the frame rule."""
    session = Session(Path(selva_runtime.__file__).with_name("demo_bundle"))
    drawn = [single_scene((TEST_SEED, 6, number), KINDS[number % len(KINDS)]) for number in range(scenes)]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, rate in RATES.items():
        found[name] = {rule: measure(session, drawn, rate, rule, steps) for rule in FRAME_RULES}
        for rule, row in found[name].items():
            click.echo(
                f"{name:>6} fps  {rule:<8} {row['offset_ms']:+6.1f} ± {row['standard_error_ms']:.1f} ms, "
                f"{row['heard']:.1%} heard"
            )
    if out is not None:
        setting = {"command": "python -m selva_bench.frame_rule", "scenes": scenes, "steps": steps}
        document = {**setting, "machine": machine.describe(), "rates": found}
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
