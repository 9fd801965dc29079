"""Measures what a mask selects where words cannot: scenes of the demo's world with two things of the same kind.

    python -m selva_bench.masks --out benchmarks/results/masks.json

Both things have the same prompt, but sound at different times. Without a mask there is one stem for both; with one,
each thing has the stem of the video in which all but its silhouette is filled. Noise and prompt are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

import selva_runtime
from selva_bench import machine
from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation.events import Score, score
from selva_ref.demo.evaluation.report import TEST_SEED
from selva_ref.demo.world.kinds import KINDS, prompt
from selva_ref.demo.world.scenes import DURATION_S, Scene, composed_scene, render, silhouettes
from selva_runtime import Session
from selva_runtime.media.masks.filling import FILLS, GREY

UNMASKED = "none"


def twins(count: int) -> list[Scene]:
    """Draws scenes with two things of the same kind, all kinds in turn."""
    return [composed_scene((TEST_SEED, 7, n), (KINDS[n % len(KINDS)],) * 2) for n in range(count)]


def measure(session: Session, scenes: Sequence[Scene], fill: str, steps: int) -> Score:
    """Scores the stems of every thing of the scenes, with its mask and a fill, or "none" without a mask."""
    scores = []
    for seed, scene in enumerate(scenes):
        frames, words = render(scene), [prompt(scene.sources[0].kind)]
        masks = [None] if fill == UNMASKED else [*silhouettes(scene)]
        stems = []
        for mask in masks:
            clip = session.encode_frames(frames, DURATION_S, mask=mask, mask_fill=GREY if mask is None else fill)
            stems.append(session.generate(clip, words, seed=seed, steps=steps)[0].audio)
        for place, (target, other) in enumerate([scene.sources, scene.sources[::-1]]):
            scores.append(score(stems[place % len(stems)], target.events_s, other.events_s, right_kind=True))
    return Score.total(scores)


@click.command()
@click.option("--scenes", type=click.IntRange(1), default=32, show_default=True, help="Scenes; two stems each.")
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Integration steps of each stem.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also kept as JSON.")
def main(scenes: int, steps: int, out: Path | None) -> None:
    """F1 of the wanted thing's onsets, and the share of the other's that is heard, with and without a mask."""
    session = Session(Path(selva_runtime.__file__).with_name("demo_bundle"))
    drawn, found = twins(scenes), {}
    for fill in (UNMASKED, *FILLS):
        total = measure(session, drawn, fill, steps)
        found[fill] = {"f1": round(total.f1, 3), "leak": round(total.leak, 3), "offset_ms": round(total.offset_ms, 1)}
        found[fill] |= {"stems": total.stems, "events": total.true, "others": total.others}
        click.echo(f"{fill:<6} F1 {total.f1:.2f}, leak {total.leak:.2f}, {total.offset_ms:.0f} ms")
    if out is not None:
        setting = {"command": "python -m selva_bench.masks", "scenes": scenes, "steps": steps}
        document = {**setting, "machine": machine.describe(), "masks": found}
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
