"""selva-generate: arguments in, `generate_files`, and what it made on stdout; talk and bars go to stderr."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

import click

from .command import USER_ERROR, OneLineCommand


@click.command("selva-generate", cls=OneLineCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("video")
@click.option("-p", "--prompt", "prompts", multiple=True, required=True, help="What to hear; one stem for each -p.")
@click.option("-o", "--out", required=True, help="Folder for the stems; nothing in it is overwritten.")
@click.option("--bundle", help="Bundle folder from selva-export.  [default: $SELVA_BUNDLE, else the toy demo]")
@click.option("--start", "start_s", type=float, default=0.0, show_default=True, help="Seconds into the video.")
@click.option("--duration", "duration_s", type=float, help="Seconds to use.  [default: the bundle's, 8 s]")
@click.option("--sample-rate", "sample_rate_hz", type=int, help="Hz of the files.  [default: the model's]")
@click.option("--negative", help="What not to hear.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same sound.")
@click.option("--steps", type=int, help="Integration steps, 1 to 1000.  [default: the bundle's, 25]")
@click.option(
    "--guidance", type=float, help="How closely to follow the prompt, 0 to 100.  [default: the bundle's, 4.5]"
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
    default="exact",
    show_default=True,
    help="exact, or bf16: two to four times as fast on a CPU that has bfloat16 (with OpenVINO), and less exact.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of file names.")
@click.option("--quiet", is_flag=True, help="No notices and no progress bars; warnings stay.")
def main(as_json: bool, quiet: bool, **options: Any) -> None:
    """One audio stem for each prompt from VIDEO, synchronised with it, as 24-bit WAV.

    \b
    selva-generate street.mp4 -p "dog barking" -p footsteps -o stems
    """
    from .deliver import generate_files
    from .job import Job
    from .progress import ProgressBars

    bars = ProgressBars(sys.stderr) if sys.stderr.isatty() and not quiet else None

    def say(kind: str, text: str) -> None:
        if bars is not None:
            bars.close()
        if kind == "warning" or not quiet:
            click.echo(f"{kind}: {' '.join(text.split())}", err=True)

    try:
        report = generate_files(Job(**options), say=say, progress=bars)
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
    if report.error is not None:
        click.echo(f"error: {report.error}", err=True)
        raise click.exceptions.Exit(USER_ERROR)
