"""selva-generate: the command line of `generate_files`. Results go to stdout, messages and progress bars to stderr."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from selva_runtime.command.base import CANCELLED, USER_ERROR, StoppableCommand

if TYPE_CHECKING:
    from selva_runtime.command.messages import Say
    from selva_runtime.command.records import GenerateReport, GenerateRequest
    from selva_runtime.progress import Progress


class _Generate(StoppableCommand):
    """The command selva-generate. Its help lists the sounds that the toy demo knows."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the section after the options."""
        from selva_bundle.manifest import read_manifest
        from selva_runtime.command.deliver import DEMO_BUNDLE

        super().format_epilog(ctx, formatter)
        if DEMO_BUNDLE.is_dir():
            heard = ", ".join(read_manifest(DEMO_BUNDLE / "manifest.json").hears)
            with formatter.section("The toy demo hears"):
                formatter.write_text(heard)


class _NeededOption(click.Option):
    """An option that a run needs and --list does not. click processes --list first."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value, or None with --list. click raises its own error if the value is missing."""
        return None if ctx.params["listing"] else super().process_value(ctx, value)


class _Region(click.ParamType[tuple[float, float]]):
    """Two numbers of seconds with a colon between them."""

    name = "region"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return the two numbers."""
        if isinstance(value, tuple):
            return value
        begin, _, end = str(value).partition(":")
        try:
            return float(begin), float(end)
        except ValueError:
            self.fail(f"{value!r} is not two numbers of seconds, such as 12.0:15.5", param, ctx)


@click.command("selva-generate", cls=_Generate, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("video", required=False)
@click.option(
    "-p",
    "--prompt",
    "prompts",
    multiple=True,
    help="What to hear; one stem for each -p. MMAudio needs none, and then makes one track of all that it sees.",
)
@click.option(
    "-o", "--out", cls=_NeededOption, required=True, help="Folder for the stems; nothing in it is overwritten."
)
@click.option(
    "--bundle",
    help="Bundle folder from selva-export, or demo or demo_mmaudio, the toys.  [default: $SELVA_BUNDLE, else demo]",
)
@click.option("--start", "start_s", type=float, default=0.0, show_default=True, help="Seconds into the video.")
@click.option(
    "--duration", "duration_s", type=float, help="Seconds to use; --duration 8 is quick.  [default: to the end]"
)
@click.option(
    "--cuts",
    default="auto",
    show_default=True,
    help="Where shots begin in a long video: auto, none, or a file with one time a line.",
)
@click.option(
    "--long",
    default="windows",
    show_default=True,
    help="How a video longer than a window is generated: windows, or one-pass up to 30 s.",
)
@click.option(
    "--bed", metavar="BUNDLE", help="Also one track of all that is seen, by an MMAudio bundle, such as demo_mmaudio."
)
@click.option("--bed-prompt", default="", help="What the bed is.  [default: nothing said]")
@click.option("--bed-gain", "bed_gain_db", type=float, default=0.0, show_default=True, help="dB.")
@click.option("--loop", is_flag=True, help="Stems whose end leads back to their begin, for ambience.")
@click.option(
    "--region",
    type=_Region(),
    metavar="BEGIN:END",
    help="Generate these seconds of the stem again, such as 12.0:15.5; the rest stays bit for bit.",
)
@click.option("--region-seed", type=int, help="Seed for --region.  [default: --seed + 1]")
@click.option("--region-prompt", help="What to hear in --region.  [default: the stem's prompt]")
@click.option("--keep-partial", is_flag=True, help="When stopped, keep what each stem of a long video has until then.")
@click.option(
    "--frame-rule",
    default="first",
    show_default=True,
    help="first: the first frame that is not before each 1/25 s, as in training; nearest: the nearest one, for exact "
    "onsets where the video's frame rate is not 25.",
)
@click.option(
    "--mask",
    metavar="FILE|FOLDER",
    help="What the model may see: a mask video, a folder of numbered PNGs or one PNG. White keeps, black is filled.",
)
@click.option("--mask-fill", default="grey", show_default=True, help="Fill of the rest: grey, black or blur.")
@click.option("--mask-invert", is_flag=True, help="Black keeps, white is filled.")
@click.option("--sample-rate", "sample_rate_hz", type=int, help="Hz of the files.  [default: the model's]")
@click.option(
    "--deliver",
    default="wav",
    show_default=True,
    help="wav; or post: 48 kHz Broadcast WAV with timecode and loudness, one gain for all stems, true peak at -1 dB.",
)
@click.option(
    "--timecode", metavar="HH:MM:SS:FF", help="Timecode of the first frame, ; for drop-frame.  [default: the video's]"
)
@click.option(
    "--timeline",
    "timelines",
    multiple=True,
    metavar="FILE",
    help="Also write a timeline with the video and the stems: .otio, .otioz, .xml (Premiere), .fcpxml (Final Cut), "
    ".rpp (REAPER) or .mlt. Repeatable.",
)
@click.option("--negative", help="What not to hear.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same sound.")
@click.option("--steps", type=int, help="Integration steps, 1 to 1000.  [default: the bundle's, 25]")
@click.option(
    "--guidance", type=float, help="How closely to follow the prompt, 0 to 100.  [default: the bundle's, 4.5]"
)
@click.option("--solver", help="euler, or ab2: about as close in two thirds of the steps.  [default: euler]")
@click.option(
    "--quality",
    help="best, or draft: 4 steps without guidance instead of 25 with it, by a bundle with a student.  "
    "[default: the bundle's best]",
)
@click.option("--takes", type=int, default=1, show_default=True, help="Stems to choose from for each prompt.")
@click.option(
    "--mux",
    type=int,
    multiple=True,
    metavar="N",
    help="Also copy the video with prompt N's stem as its sound, the original sound as a second track. Repeatable.",
)
@click.option("--backend", default="auto", show_default=True, help="auto, cpu, openvino, cuda or tensorrt.")
@click.option("--threads", type=int, help="CPU threads.  [default: the cores that may be used]")
@click.option(
    "--precision",
    "compute_precision",
    default="exact",
    show_default=True,
    help="exact, or less exact and faster with OpenVINO: bf16 on a CPU that has bfloat16, int8 on one with AVX-512.",
)
@click.option(
    "--cache",
    metavar="DIR|none",
    help="Folder for what later runs need not compute again.  [default: $SELVA_CACHE, else your cache folder]",
)
@click.option("--worker", is_flag=True, help="Let the selva-worker that runs here do it: the model is loaded already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of file names.")
@click.option("--quiet", is_flag=True, help="No notices and no progress bars; warnings stay.")
@click.option(
    "--list",
    "listing",
    is_flag=True,
    is_eager=True,
    help="Show the bundles and backends that are here and what is wrong with them; takes no VIDEO, -p or -o.",
)
@click.pass_context
def main(context: click.Context, /, listing: bool, worker: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """One audio stem for each prompt from VIDEO, synchronised with it, as 24-bit WAV.

    An MMAudio bundle makes sound without VIDEO too, as long as --duration.

    \b
    selva-generate street.mp4 -p "dog barking" -p footsteps -o stems
    """
    if listing:
        if worker:
            raise click.UsageError("--list shows what this command would use, not a worker; leave --worker out")
        _list(options["bundle"], as_json)
        return
    from selva_runtime.command.progress import ProgressBars
    from selva_runtime.command.records import GenerateRequest

    bars = ProgressBars(sys.stderr) if sys.stderr.isatty() and not quiet else None

    def say(kind: str, text: str) -> None:
        if bars is not None:
            bars.close()
        if kind == "warning" or not quiet:
            click.echo(f"{kind}: {' '.join(text.split())}", err=True)

    def show(stage: str, done: int, total: int) -> None:
        if bars is not None:
            bars(stage, done, total)

    try:
        report = (_by_worker if worker else _here)(context, GenerateRequest(**options), say, show)
    finally:
        if bars is not None:
            bars.close()
    if as_json:
        document = asdict(report)
        if report.error is None:
            del document["error"]
        click.echo(json.dumps(document, indent=2))
    else:
        for stem in report.stems:
            for path in filter(None, (stem.file, stem.video)):
                click.echo(os.fsencode(path))
        if report.bed is not None:
            click.echo(os.fsencode(report.bed.file))
        for path in report.timelines:
            click.echo(os.fsencode(path))
    for what in report.left_out:
        say("notice", f"left out: {what}")
    if report.error is not None:
        click.echo(f"error: {report.error}", err=True)
        raise click.exceptions.Exit(CANCELLED if report.cancelled else USER_ERROR)


def _here(context: click.Context, request: GenerateRequest, say: Say, show: Progress) -> GenerateReport:
    from selva_runtime.backends.executor import check_cancel
    from selva_runtime.command.deliver import generate_files

    def progress(stage: str, done: int, total: int) -> None:
        check_cancel(context.obj)
        show(stage, done, total)

    check_cancel(context.obj)
    return generate_files(request, say=say, progress=progress, cancel=context.obj)


def _by_worker(context: click.Context, request: GenerateRequest, say: Say, show: Progress) -> GenerateReport:
    shell = import_module("selva_worker.shell")  # by name: the runtime does not need the worker
    written = {param.name: param.opts[-1] for param in context.command.params}
    given = {name for name in written if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    shell.check_options({name: option for name, option in written.items() if name in given})
    report: GenerateReport = shell.generate_over_worker(request, say=say, show=show, cancel=context.obj)
    return report


def _list(bundle: str | None, as_json: bool) -> None:
    from selva_runtime.command.doctor import examine, lines

    findings = examine(bundle)
    click.echo(json.dumps(asdict(findings), indent=2) if as_json else "\n".join(lines(findings)))
