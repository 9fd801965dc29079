"""`selva-train`: the command line of `extract`, `stage1`, `stage2`, `distill` and the demo."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from selva_bundle.ports import SELVA
from selva_ref.demo.command import demo
from selva_ref.model.presets import PRESETS
from selva_runtime.command.base import SETTINGS, OneLineCommand
from selva_runtime.command.progress import ProgressBars

_PRESETS = [name for name, preset in PRESETS.items() if preset.system == SELVA]
_PATH = click.Path(path_type=Path)


class _Commands(OneLineCommand, click.Group):
    """Subcommands that report a user's mistake in one line."""


@click.group("selva-train", cls=_Commands, context_settings=SETTINGS)
def main() -> None:
    """Train the model on your own videos.

    \b
    selva-train extract --videos V --list train.tsv --checkpoints C --out data
    selva-train stage1 --data data --checkpoints C --out trained
    selva-train stage2 --data data --checkpoints C --out trained
    selva-train distill --data data --checkpoints C --out trained
    selva-export --checkpoints trained --out bundle

    The three stages also run under torchrun; distill is optional. Run an interrupted command again to resume it.
    """


_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Device that the networks run on."
)
_precision = click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", help="Precision of the matrix products."
)
_workers = click.option("--workers", type=click.IntRange(0), default=2, help="Number of processes that decode videos.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")


@main.command("extract", context_settings=SETTINGS)
@click.option("--videos", type=_PATH, required=True, help="Folder of videos named ID.mp4.")
@click.option("--list", "lists", type=_PATH, required=True, multiple=True, help="TSV file of id and label; repeatable.")
@click.option("--checkpoints", type=_PATH, required=True, help="Folder of weights from selva-fetch --with-teacher.")
@click.option("--out", type=_PATH, required=True, help="Folder for the features; an unfinished one is resumed.")
@click.option("--preset", type=click.Choice(_PRESETS), default="small_16k", help="Sizes of the networks.")
@click.option("--duration", "duration_s", type=float, help="Length of every clip, seconds. Default: the preset's.")
@_workers
@_device
@_precision
@_json
def extract_command(preset: str, duration_s: float | None, device: str, as_json: bool, **options: Any) -> None:
    """Compute what no stage trains: VAE posterior, teacher and text features.

    Clips that are missing, broken, too short or silent are skipped, counted, and listed in OUT/skipped.tsv.
    """
    from selva_ref.training.data.extract import (  # torch takes seconds to import; --help does not
        ExtractRequest,
        extract,
    )
    from selva_ref.training.world import pick_device

    request = ExtractRequest(
        preset=PRESETS[preset],
        duration_s=PRESETS[preset].duration_s if duration_s is None else duration_s,
        device=str(pick_device(device)),
        **options,
    )
    bars = ProgressBars(sys.stderr)
    try:
        extracted = extract(request, bars if sys.stderr.isatty() else lambda *_: None)
    except KeyboardInterrupt:
        click.echo("notice: run the same command again to resume", err=True)
        raise
    finally:
        bars.close()
    if as_json:
        report = {"ready": extracted.ready, "skipped": extracted.skipped, "list": str(extracted.skipped_list)}
        click.echo(json.dumps(report))
    else:
        click.echo(str(extracted))


def _stage_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that every stage has."""
    for option in reversed(
        [
            click.option("--data", type=_PATH, required=True, help="Folder of features from selva-train extract."),
            click.option("--checkpoints", type=_PATH, required=True, help="Folder of checkpoints to start from."),
            click.option("--out", type=_PATH, required=True, help="Folder for every stage's checkpoints and runs."),
            click.option("--steps", type=int, default=50_000, help="Number of optimiser steps."),
            click.option("--batch", type=int, default=64, help="Clips per step, over all processes."),
            click.option("--accumulate", type=int, default=1, help="Gradient accumulation steps per batch."),
            click.option(
                "--learning-rate",
                type=float,
                default=1e-4,
                help="Learning rate after warm-up; a tenth of it from 80 % of the run on, a hundredth from 90 %.",
            ),
            click.option("--warmup", type=int, default=1000, help="Steps until the full learning rate is reached."),
            click.option("--alpha", type=float, default=1.0, help="Target's share of the picture: Beta(alpha, alpha)."),
            click.option(
                "--absent",
                type=float,
                default=0.0,
                help="Share of examples whose text names something that neither video shows: silence is right.",
            ),
            click.option(
                "--average",
                "average_width",
                type=float,
                default=0.05,
                help="Relative width of the weight average. To change it after the run, repeat the command.",
            ),
            click.option("--holdout", type=int, default=16, help="Clips held out for validation."),
            click.option("--save-every", type=int, default=1000, help="Steps between saved states."),
            click.option("--validate-every", type=int, default=5000, help="Steps between validations."),
            click.option("--seed", type=int, default=0, help="Seed of everything that is random."),
            _workers,
            _device,
            _precision,
            _json,
        ]
    ):
        command = option(command)
    return command


@main.command("stage1", context_settings=SETTINGS)
@_stage_options
def stage1_command(**options: Any) -> None:
    """Distil the teacher into the text-conditioned video encoder.

    The student sees two videos side by side and the target's text, the teacher the target alone. Starts from
    Synchformer. TensorBoard: OUT/stage1.
    """
    _train("stage1", options)


@main.command("stage2", context_settings=SETTINGS)
@click.option("--base", type=_PATH, help="Generator to start from. Default: mmaudio_PRESET.pth in --checkpoints.")
@_stage_options
def stage2_command(**options: Any) -> None:
    """Train the generator to follow the video encoder that stage1 has left in --out.

    Then --out holds every checkpoint that selva-export needs. TensorBoard, with stems to hear: OUT/stage2.
    """
    _train("stage2", options)


@main.command("distill", context_settings=SETTINGS)
@click.option(
    "--teacher-steps", type=int, default=25, help="Euler steps of the guided generator's path, two calls each."
)
@click.option("--spans", type=int, default=8, help="Jumps along each path that the student learns at once.")
@_stage_options
def distill_command(**options: Any) -> None:
    """Train the student, which makes a stem in 4 evaluations instead of the generator's 25 guided steps.

    The guided generator goes from noise to sound at strengths of 1 to 7, and the student learns to jump along that path
    as a stem does, in 1 to 8 equal jumps, mostly 4. Starts from the encoder and the generator in --out, or, if it has
    neither, from those in --checkpoints. TensorBoard, with stems to hear next to the generator's: OUT/distill.
    """
    _train("distill", options)


def _train(stage: str, options: dict[str, Any]) -> None:
    from selva_ref.training import run
    from selva_ref.training.settings import RunPlace

    as_json = options.pop("as_json")
    place_names = {field.name for field in fields(RunPlace)}
    place = RunPlace(**{name: value for name, value in options.items() if name in place_names})
    request = run.StageRequest(**{name: value for name, value in options.items() if name not in place_names})
    try:
        trained = {"stage1": run.stage1, "stage2": run.stage2, "distill": run.distill}[stage](request, place)
    except KeyboardInterrupt:
        click.echo("notice: run the same command again to resume", err=True)
        raise
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        click.echo(json.dumps({"checkpoint": str(trained.checkpoint), "losses": trained.losses}))
    else:
        click.echo(f"wrote {trained.checkpoint}")


main.add_command(demo)

if __name__ == "__main__":
    main()
