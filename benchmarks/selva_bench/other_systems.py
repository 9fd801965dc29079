"""Scores stems that another system made: the demo's composed scenes as videos, and their true events to compare with.

    python -m selva_bench.other_systems scenes out/scenes
    (run any system on out/scenes/000.mp4 … and the prompts in out/scenes/scenes.json)
    python -m selva_bench.other_systems score out/scenes out/stems

A stem is `NNN-K.wav` for the prompt K, 1 or 2, of the video `NNN.mp4`: any sample rate and channels, longer or shorter.
A system without selection has one track for a scene: `NNN.wav` is then scored as both stems.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
import numpy.typing as npt
import soundfile

from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation.events import Score, score
from selva_ref.demo.evaluation.report import TEST_SEED
from selva_ref.demo.world.kinds import prompt
from selva_ref.demo.world.scenes import DURATION_S, FPS, composed_scene, render
from selva_ref.demo.world.sounds import RATE_HZ
from selva_runtime.media.resampler import Resampler

LIST = "scenes.json"
SIZE = 256
Sound = npt.NDArray[np.float32]


@click.group()
def main() -> None:
    """Score another system on the demo's composed scenes."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1, 1000), default=48, show_default=True)
def scenes(folder: Path, count: int) -> None:
    """Write the scenes as FOLDER/NNN.mp4, and their prompts and true events as FOLDER/scenes.json."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for number in range(count):
        scene = composed_scene((TEST_SEED, 5, number))
        _write_video(render(scene, SIZE), folder / f"{number:03}.mp4")
        listed[f"{number:03}"] = [
            {"prompt": prompt(source.kind), "events_s": [round(float(time), 4) for time in source.events_s]}
            for source in scene.sources
        ]
    with atomic_write(folder / LIST) as temporary:
        temporary.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    click.echo(f"{count} scenes of {DURATION_S:g} s in {folder}; the prompts are in {folder / LIST}")


@main.command(name="score")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("stems", type=click.Path(exists=True, file_okay=False, path_type=Path))
def score_command(folder: Path, stems: Path) -> None:
    """Compare the WAV files in STEMS with the true events of the scenes in FOLDER. The last line is JSON."""
    found = score_folder(folder, stems)
    click.echo(f"F1 {found['f1']:.3f}   leak {found['leak']:.3f}   offset {found['offset_ms']:.1f} ms")
    click.echo(json.dumps(found))


def score_folder(folder: Path, stems: Path) -> dict[str, Any]:
    """Scores all stems that are there: F1 of the target's onsets, leak of the other source's, mean offset in ms.

    Raises:
        click.ClickException: there is no list of scenes, or not one stem.
    """
    try:
        listed: dict[str, list[dict[str, Any]]] = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{folder / LIST} cannot be read; write it with the command scenes") from error
    scores, missing = [], 0
    for name, sources in listed.items():
        events = [np.array(source["events_s"]) for source in sources]
        for number in range(len(sources)):
            path = next((p for p in (stems / f"{name}-{number + 1}.wav", stems / f"{name}.wav") if p.is_file()), None)
            if path is None:
                missing += 1
                continue
            scores.append(score(_sound(path), events[number], events[1 - number], right_kind=False))
    if not scores:
        raise click.ClickException(f"{stems} has no stem such as 000-1.wav or 000.wav")
    total = Score.total(scores)
    return {
        "stems": len(scores),
        "missing": missing,
        "f1": round(total.f1, 4),
        "leak": round(total.leak, 4),
        "offset_ms": round(total.offset_ms, 2),
    }


def _sound(path: Path) -> Sound:
    """(n,) the mean of the channels at 16 kHz, in the length of a scene."""
    try:
        audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True, frames=60 * 192_000)
    except soundfile.LibsndfileError as error:
        raise click.ClickException(f"{path} is no sound file: {error}") from error
    resampler = Resampler(rate_hz, RATE_HZ)
    mono = np.concatenate([resampler.push(audio.mean(1, dtype=np.float32)), resampler.finish()])
    samples = round(DURATION_S * RATE_HZ)
    return np.pad(mono[:samples], (0, max(0, samples - mono.size)))


def _write_video(frames: npt.NDArray[np.uint8], path: Path) -> None:
    """Writes frames (T, 3, H, W) as H.264."""
    with atomic_write(path) as temporary, av.open(str(temporary), "w", format="mp4") as target:
        video = target.add_stream("libx264", rate=FPS, width=SIZE, height=SIZE, pix_fmt="yuv420p")
        video.options = {"crf": "16", "threads": "1"}
        video.codec_context.time_base = Fraction(1, FPS)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.transpose(1, 2, 0)), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            target.mux(video.encode(frame))
        target.mux(video.encode(None))


if __name__ == "__main__":
    main()
