"""Measures what a mask selects where words cannot: scenes of the demo's world with two things of the same kind.

    python -m selva_bench.masks --out benchmarks/results/masks.json
    python -m selva_bench.masks --bundle demo_mmaudio --out benchmarks/results/masks_mmaudio.json

Both things have the same prompt, but sound at different times. Without a mask there is one stem for both; with one,
each thing has the stem of the video in which all but its silhouette is filled. Noise and prompt are the same. MMAudio
gets no prompt, so that the picture alone decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from selva_bench import machine
from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation.events import Score, score
from selva_ref.demo.evaluation.report import TEST_SEED
from selva_ref.demo.world.kinds import KINDS, prompt
from selva_ref.demo.world.scenes import DURATION_S, Scene, composed_scene, render, silhouettes
from selva_runtime import Clip, Session
from selva_runtime.command.deliver import bundle_folder
from selva_runtime.media.masks.filling import FILLS, GREY

UNMASKED = "none"


def twins(count: int) -> list[Scene]:
    """Draws scenes with two things of the same kind, all kinds in turn."""
    return [composed_scene((TEST_SEED, 7, n), (KINDS[n % len(KINDS)],) * 2) for n in range(count)]


def encoded(
    session: Session, frames: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8] | None, fill: str = GREY
) -> Clip:
    """Encodes a scene, (T, 3, H, H), seen through a mask, (T, H, H)."""
    if not session.info.picture_size:
        return session.encode_frames(frames, DURATION_S, mask=mask, mask_fill=fill)
    count = int(DURATION_S * session.info.picture_fps)
    shown = -(-np.arange(count) * session.info.fps // session.info.picture_fps)  # the first frame not before each
    return session.encode_frames(
        frames,
        DURATION_S,
        pictures=frames[shown],
        mask=mask,
        picture_mask=None if mask is None else mask[shown],
        mask_fill=fill,
    )


def measure(session: Session, scenes: Sequence[Scene], fill: str, steps: int) -> Score:
    """Scores the stems of every thing of the scenes, with its mask and a fill, or "none" without a mask."""
    scores = []
    for seed, scene in enumerate(scenes):
        frames, words = render(scene), [] if session.info.picture_size else [prompt(scene.sources[0].kind)]
        masks = [None] if fill == UNMASKED else [*silhouettes(scene)]
        stems = []
        for mask in masks:
            clip = encoded(session, frames, mask, GREY if mask is None else fill)
            stems.append(session.generate(clip, words, seed=seed, steps=steps)[0].audio)
        for place, (target, other) in enumerate([scene.sources, scene.sources[::-1]]):
            scores.append(score(stems[place % len(stems)], target.events_s, other.events_s, right_kind=True))
    return Score.total(scores)


@click.command()
@click.option("--scenes", type=click.IntRange(1), default=32, show_default=True, help="Scenes; two stems each.")
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Integration steps of each stem.")
@click.option("--bundle", default="demo", show_default=True, help="demo or demo_mmaudio.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also kept as JSON.")
def main(scenes: int, steps: int, bundle: str, out: Path | None) -> None:
    """F1 of the wanted thing's onsets, and the share of the other's that is heard, with and without a mask."""
    session = Session(bundle_folder(bundle))
    drawn, found = twins(scenes), {}
    for fill in (UNMASKED, *FILLS):
        total = measure(session, drawn, fill, steps)
        found[fill] = {"f1": round(total.f1, 3), "leak": round(total.leak, 3), "offset_ms": round(total.offset_ms, 1)}
        found[fill] |= {"stems": total.stems, "events": total.true, "others": total.others}
        click.echo(f"{fill:<6} F1 {total.f1:.2f}, leak {total.leak:.2f}, {total.offset_ms:.0f} ms")
    if out is not None:
        command = "python -m selva_bench.masks" + ("" if bundle == "demo" else f" --bundle {bundle}")
        setting = {"command": command, "scenes": scenes, "steps": steps}
        document = {**setting, "machine": machine.describe(), "masks": found}
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
