"""`selva-train demo`: trains everything from scratch and makes the bundles that we ship."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from selva_ref.demo.run import DemoRun

from selva_runtime.command.base import SETTINGS, OneLineCommand

_LANES = {
    "sound": (("vae", "vae"), ("vocoder", "vocoder_true"), ("voicing", "vocoder"), ("listener", "listener")),
    "vision": (("text", "text_t5"), ("teacher", "teacher"), ("stage1", "video_encoder")),
    "stages": (("base", "mmaudio"), ("stage2", "generator"), ("student", "student")),
}
"""Parts of the run: stages, each with the network that it saves. The third part needs the other two."""
_AFTER = ("stages", "bed", "export", "evaluate", "ablations")
"""The parts of the run after sound and vision, one after the other."""
_PARTS = ("all", "sound", "vision", *_AFTER)


@click.command("demo", cls=OneLineCommand, context_settings=SETTINGS)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run: checkpoints, scores, bundles."
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of everything that is random.")
@click.option("--quick", is_flag=True, help="Run two steps of every stage: a smoke test that trains nothing.")
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile; needs a C++ compiler.")
@click.option("--ablations/--no-ablations", default=True, help="Train and score the paper's ablations too.")
@click.option("--only", type=click.Choice(_PARTS), default="all", help="Run one part; those it needs must be finished.")
def demo(out: Path, seed: int, quick: bool, compiled: bool, ablations: bool, only: str) -> None:
    """Train the demo models from scratch: clips, networks, all stages, the mixed track, scores, bundles.

    Run an interrupted command again to resume it: finished parts are kept, and of a training at most a minute is lost.
    Sound and vision train side by side, each on half of the cores. Needs 12 GB of disk for rendered clips.
    """
    from selva_ref.demo.plan import FULL, QUICK
    from selva_ref.demo.run import DemoRun

    out.mkdir(parents=True, exist_ok=True)
    run = DemoRun(folder=out, plan=QUICK if quick else FULL, seed=seed, compiled=compiled)
    if only == "all":
        flags = [flag for flag, given in (("--quick", quick), ("--compile", compiled)) if given]
        arguments = ["--out", str(out), "--seed", str(seed), *flags]
        for parts in (("sound", "vision"), *((part,) for part in _AFTER if ablations or part != "ablations")):
            _side_by_side(parts, arguments)
    elif only in _LANES:
        _lane(run, only)
    elif only == "bed":
        _bed(run)
    elif only == "ablations":
        if not (out / "evaluation.json").exists():
            raise click.ClickException(f"{out}: the run has no scores yet; run --only evaluate first")
        from selva_ref.demo.evaluation.report import evaluate_ablations

        _ablations(run)
        click.echo(evaluate_ablations(run))
    elif only == "evaluate":
        from selva_ref.demo.evaluation.bed import evaluate_bed
        from selva_ref.demo.evaluation.report import evaluate
        from selva_ref.demo.evaluation.student import evaluate_student

        click.echo(evaluate(run))
        click.echo(evaluate_student(run))
        click.echo(evaluate_bed(run))
    else:
        _export(out)


def _lane(run: DemoRun, lane: str) -> None:
    """Runs the stages of a lane one after the other, skipping finished ones."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores if lane == "stages" else max(1, cores // 2))
    for stage, result in _LANES[lane]:
        if not run.file(result).exists():
            getattr(run, stage)()


def _side_by_side(parts: tuple[str, ...], arguments: list[str]) -> None:
    """Runs parts at the same time, each in its own process. An interrupt reaches all, and each can resume later."""
    command = [sys.executable, "-m", "selva_ref.training.cli", "demo", *arguments, "--only"]
    running = [subprocess.Popen([*command, part]) for part in parts]
    try:
        failed = [part for part, process in zip(parts, running, strict=True) if process.wait()]
    except BaseException:
        for process in running:
            process.terminate()
        raise
    if failed:
        raise click.ClickException(f"the {' and the '.join(failed)} part failed; see its output above")


def _bed(run: DemoRun) -> None:
    """Trains the networks of the mixed track, skipping finished ones; needs all lanes."""
    from selva_ref.demo.bed import train_bed, train_image

    for train, result in ((train_image, "clip_image"), (train_bed, "bed")):
        if not run.file(result).exists():
            train(run)


def _ablations(run: DemoRun) -> None:
    from selva_ref.demo.evaluation.ablations import train_joint, train_no_encoder, train_no_silence, train_no_sup

    for train, result in (
        (train_no_silence, "generator_no_silence"),
        (train_no_encoder, "generator_no_encoder"),
        (train_no_sup, "generator_no_sup"),
        (train_joint, "generator_joint"),
    ):
        if not run.file(result).exists():
            train(run)


def _export(out: Path) -> None:
    """Exports by the command that users run, because `selva_export` imports this package, not the reverse."""
    for preset, name in (("demo", "bundle"), ("demo_mmaudio", "bed_bundle")):
        bundle = out / name
        if not bundle.exists():
            options = ["--preset", preset, "--checkpoints", str(out), "--half-weights", "--out", str(bundle)]
            export = [sys.executable, "-m", "selva_export.cli", *options]
            if subprocess.run(export, stdout=sys.stderr.fileno(), check=False).returncode:
                raise click.ClickException("the export failed; see its output above")
        click.echo(f"sealed {bundle}")
