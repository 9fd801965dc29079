"""`selva-bench gpu-check`: runs the parts one after another. A later run goes on with what is missing or failed."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from selva_bench.gpu.parts import PARTS
from selva_bench.gpu.processes import run_part, why_not
from selva_bench.gpu.report import part_lines, report, times
from selva_bench.gpu.results import Results
from selva_bench.gpu.setting import Setting
from selva_bench.inputs import EXAMPLE, video_lasting
from selva_bench.options import BenchError
from selva_bundle.bundle import Bundle
from selva_ref.model.presets import PRESETS
from selva_runtime.backends.cores import usable_cores
from selva_runtime.command.base import OneLineCommand


def selected(only: tuple[str, ...], skip: tuple[str, ...]) -> list[str]:
    """The names of the parts to run. "latency" stands for all parts whose names begin with "latency:".

    Raises:
        BenchError: there is no such part.
    """

    def named(wanted: tuple[str, ...]) -> set[str]:
        found = {each: {name for name in PARTS if each in (name, name.partition(":")[0])} for each in wanted}
        if unknown := [each for each, names in found.items() if not names]:
            raise BenchError(f"there is no part {unknown[0]!r}; --list names them")
        return set().union(*found.values())

    wanted = named(only) if only else set(PARTS)
    return [name for name in PARTS if name in wanted - named(skip)]


def _setting(preset: str | None, bundles: tuple[Path, ...], cache: Path, **options: Any) -> Setting:
    if bundles and preset:
        raise BenchError("give --preset or --bundle, not both")
    manifests = {path: Bundle.open(path).manifest for path in bundles}
    given = {manifest.precision: path.absolute() for path, manifest in manifests.items()}
    if len(given) < len(bundles) or len({manifest.preset for manifest in manifests.values()}) > 1:
        raise BenchError("the bundles given with --bundle must be of one preset, and each of another precision")
    name = next((manifest.preset for manifest in manifests.values()), preset or "demo")
    folders = {each: (cache / f"selva-bench-{name}-{each}").absolute() for each in ("fp32", "fp16")}
    return Setting(preset=name, bundles=given or folders, is_given=bool(given), threads=usable_cores(), **options)


def _published(setting: Setting, gpu: str) -> dict[str, Any]:
    """What results must have in common to stand in one file."""
    return {
        "is_gpu_result": setting.device == "cuda",
        "gpu": gpu,
        "preset": setting.preset,
        "duration_s": setting.duration_s,
        "steps": setting.steps,
    }


def _list(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in (text or "").replace(" ", "").split(",") if part))


_PATH = click.Path(path_type=Path)


@click.command("gpu-check", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=_PATH, default="out/gpu-check.json", show_default=True, help="File of the results.")
@click.option("--only", callback=_list, metavar="PART,...", help="Run only these parts.")
@click.option("--skip", callback=_list, metavar="PART,...", help="Run all parts but these.")
@click.option("--list", "listing", is_flag=True, help="Show the parts, and why one cannot run here.")
@click.option("--report", "reporting", is_flag=True, help="Show the report of the results in --out; run nothing.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="With random weights.  [default: demo]")
@click.option(
    "--bundle", "bundles", type=_PATH, multiple=True, help="Instead of exporting one; repeat for fp32 and fp16."
)
@click.option("--cache", type=_PATH, default="out/bench", show_default=True, help="Folder of the exported bundles.")
@click.option(
    "--duration", "duration_s", type=click.FloatRange(1, 30), default=8.0, show_default=True, help="Seconds of video."
)
@click.option("--video", type=_PATH, default=EXAMPLE, help="Repeated if too short.  [default: examples/street.mp4]")
@click.option("--steps", type=click.IntRange(2, 1000), default=25, show_default=True, help="Integration steps.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Warm rounds to time.")
@click.option(
    "--limit", "limit_s", type=click.FloatRange(1), default=300.0, show_default=True, help="Seconds per part."
)
@click.option(
    "--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="cpu: a dry run, no result."
)
@click.pass_context
def gpu_check(
    context: click.Context,
    /,
    out: Path,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    listing: bool,
    reporting: bool,
    video: Path,
    limit_s: float,
    **options: Any,
) -> None:
    """Check the GPU path on the GPU in this machine: what works, how exact it is, how fast, and how far from the floor.

    Needs no network. Run the command again to go on with the parts that are missing or failed.

    \b
    selva-bench gpu-check --list
    selva-bench gpu-check --preset small_16k --out small_16k.json
    """
    if reporting:
        click.echo(report(Results(out, None).document))
        return
    names, setting = selected(only, skip), _setting(**options)
    reasons, gpu = why_not(setting, limit_s)
    if listing:
        for name in names:
            click.echo(f"{name:<28}{reasons[name] or 'can run'}")
        return
    if reasons["device"]:
        raise BenchError(f"gpu-check needs an NVIDIA GPU: {reasons['device']}")
    results = Results(out, _published(setting, gpu))
    with tempfile.TemporaryDirectory(prefix="selva-bench-") as folder:
        setting = replace(setting, video=video_lasting(setting.duration_s, video, Path(folder)).absolute())
        for number, name in enumerate(names, start=1):
            _run(name, f"[{number}/{len(names)}] {name}", results, reasons[name], setting, limit_s)
    click.echo("\n".join(["", *times(results.document), "", f"wrote {out}"]))
    if any(results.document["parts"][name]["status"] not in ("ok", "unavailable") for name in names):
        context.exit(1)


def _run(name: str, title: str, results: Results, missing: str, setting: Setting, limit_s: float) -> None:
    if results.is_done(name):
        click.echo(f"{title}: done before")
        return
    click.echo(title)
    if missing:
        results.keep(name, {"status": "unavailable", "reason": missing, "seconds": 0.0, "rows": {}})
    else:
        run_part(name, setting, limit_s, lambda result: results.keep(name, result))
    for line in part_lines(name, results.document["parts"][name]):
        click.echo(f"  {line}")
