"""`selva-export`: the command over `export_bundle`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from selva_ref.presets import PRESETS
from selva_runtime.command import SETTINGS, OneLineCommand


@click.command("selva-export", cls=OneLineCommand, context_settings=SETTINGS)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="small_16k", help="Sizes of the networks.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    help="Weights and activations; float16 graphs keep norms, softmax and the like in float32.",
)
@click.option(
    "--checkpoints", type=click.Path(path_type=Path), help="Folder with the weights, as selva-fetch leaves it."
)
@click.option(
    "--random-weights", is_flag=True, help="Deterministic random weights instead: for latency work and tests."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle; must not exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the table of errors as JSON on standard output.")
def main(preset: str, precision: str, checkpoints: Path | None, random_weights: bool, out: Path, as_json: bool) -> None:
    """Turn checkpoints into a bundle: seven ONNX graphs, tokenizers and a manifest.

    Each graph is compared with the PyTorch reference on ONNX Runtime; one that is out of tolerance fails the export
    and leaves nothing behind.
    """
    if random_weights == (checkpoints is not None):
        raise click.UsageError("give either --checkpoints DIR or --random-weights")
    from selva_export.bundle import ExportRequest, export_bundle  # torch takes seconds to import; --help does not
    from selva_export.verify import table

    request = ExportRequest(preset=PRESETS[preset], precision=precision, checkpoints=checkpoints, out=out)
    rows = export_bundle(request, say=lambda line: click.echo(line, err=True))
    if as_json:
        parity = [
            {"graph": p.graph, "output": p.output, "relative_error": p.relative_error, "tolerance": p.tolerance}
            for p in rows
        ]
        click.echo(json.dumps({"bundle": str(out), "preset": preset, "precision": precision, "parity": parity}))
    else:
        click.echo(table(rows))
        click.echo(f"sealed {out}")
