"""`selva-export`: the command line of `export_bundle`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from selva_ref.model.presets import PRESETS
from selva_runtime.command.base import SETTINGS, OneLineCommand


@click.command("selva-export", cls=OneLineCommand, context_settings=SETTINGS)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="small_16k", help="Sizes of the networks.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    help="Weights and activations; float16 graphs keep norms, softmax and the like in float32.",
)
@click.option("--checkpoints", type=click.Path(path_type=Path), help="Folder of weights from selva-fetch.")
@click.option("--random-weights", is_flag=True, help="Deterministic random weights instead: for latency tests.")
@click.option(
    "--quality",
    type=click.Choice(["best", "draft", "both"]),
    help="best: the generator's graphs; draft: those of its student, for stems in 4 steps.  "
    "[default: both if the checkpoints have a student, else best]",
)
@click.option("--half-weights", is_flag=True, help="Store a float32 bundle's weights as float16: half the size.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the bundle.")
@click.option(
    "--engines",
    type=click.Choice(["auto", "none", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    help="Engines to build into a float16 bundle; auto: for the installed TensorRT library, if any.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table of errors as JSON on standard output.")
def main(
    preset: str,
    precision: str,
    checkpoints: Path | None,
    random_weights: bool,
    quality: str | None,
    half_weights: bool,
    out: Path,
    engines: str,
    as_json: bool,
) -> None:
    """Turn checkpoints into a bundle: ONNX graphs, tokenizers and a manifest.

    Each graph is compared with the PyTorch reference on ONNX Runtime; one that is out of tolerance fails the export
    and leaves nothing behind.
    """
    if random_weights == (checkpoints is not None):
        raise click.UsageError("give either --checkpoints DIR or --random-weights")
    if precision != "fp16" and engines not in ("auto", "none"):
        raise click.UsageError("engines are built from float16 graphs: use --precision fp16")
    from selva_export.bundle import ExportRequest, export_bundle  # torch takes seconds to import; --help does not
    from selva_export.engines import build, engine_target
    from selva_export.verify import table

    request = ExportRequest(
        preset=PRESETS[preset],
        precision=precision,
        checkpoints=checkpoints,
        out=out,
        half_weights=half_weights,
        quality=quality,
    )
    target = engine_target(engines) if precision == "fp16" else None

    def say(line: str) -> None:
        click.echo(line, err=True)

    rows = export_bundle(request, say=say)
    folder = build(out, target, say) if target else None
    if as_json:
        parity = [
            {"graph": p.graph, "output": p.output, "relative_error": p.relative_error, "tolerance": p.tolerance}
            for p in rows
        ]
        sealed = {"bundle": str(out), "preset": preset, "precision": precision, "engines": folder and str(folder)}
        click.echo(json.dumps({**sealed, "parity": parity}))
        return
    click.echo(table(rows))
    click.echo(f"sealed {out}")
    click.echo(f"engines {folder}" if folder else "no engines built (build them later with selva-engines)")


if __name__ == "__main__":
    main()
