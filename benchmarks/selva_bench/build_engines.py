"""Measures how long engines take to build and how large they are: every graph of small_16k and large_44k_v2.

Run it as `python -m selva_bench.build_engines`. It exports one graph at a time, in float16 and with random weights,
into a temporary folder that is emptied before the next, so that memory and disk hold only one graph. TensorRT-RTX can
build without a GPU. Progress goes to standard error. The last line on standard output is the JSON that is also written
to the results.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import onnx

from selva_bench.machine import cpu_model
from selva_bundle.ports import DECODER, GUIDED_STEP, VIDEO_BACKBONE
from selva_engines.build import BuiltEngine, build_engine
from selva_engines.layers import Layer
from selva_engines.library import TARGETS, Library, load_library
from selva_engines.profiles import EngineDescription, describe
from selva_engines.source import BundleSource, GraphSource
from selva_export.bundle import ExportRequest, export_part
from selva_export.signatures import Signature, signatures
from selva_ref.model.presets import PRESETS, Preset
from selva_ref.pipeline import sequence_rules

RESULTS = Path(__file__).parents[1] / "results"
PLAIN_EXPORT_NODES = {VIDEO_BACKBONE: 6234, GUIDED_STEP: 4129, DECODER: 5386}
"""Number of ONNX nodes in a plain export of the published small_16k (decoder: only its vocoder), for comparison."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--presets", default="small_16k,large_44k_v2", help="Presets, separated by commas.")
@click.option("--graphs", default="", help="Only these graphs, separated by commas. Default: all.")
@click.option("--target", type=click.Choice(list(TARGETS)), default="tensorrt-rtx", help="Which library builds.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Result file. Default: benchmarks/results/engines_TARGET.json"
)
def main(presets: str, graphs: str, target: str, out: Path | None) -> None:
    """Build every graph of the presets and record times, sizes and layers."""
    library = load_library(target)
    wanted = {name for name in graphs.split(",") if name}
    rows = []
    for preset, signature in _plan([PRESETS[name] for name in presets.split(",")], wanted):
        rows.append(_measure(library, preset, signature))
        click.echo(_line(rows[-1]), err=True)
    result = {"machine": _machine(), "versions": _versions(library), "graphs": rows}
    path = out or RESULTS / f"engines_{target.replace('-', '_')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result))


def _plan(presets: list[Preset], wanted: set[str]) -> Iterator[tuple[Preset, Signature]]:
    """The graphs of each preset; text towers and the video encoder only once for presets that share them."""
    done: list[tuple[str, object, object]] = []
    for preset in presets:
        for name, signature in signatures(preset).items():
            is_shared = name.startswith(("text_", "video_"))
            key = (name, preset.text, preset.video) if is_shared else (name, preset.name, None)
            if key not in done and (not wanted or name in wanted):
                done.append(key)
                yield preset, signature


def _measure(library: Library, preset: Preset, signature: Signature) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="selva-bench-") as folder:
        path = Path(folder) / f"{signature.name}.onnx"
        request = ExportRequest(preset=preset, precision="fp16", checkpoints=None, out=Path(folder))
        start = perf_counter()
        export_part(request, signature, path)
        export_s = perf_counter() - start
        gc.collect()
        load = os.getloadavg()[0]
        built = build_engine(library, path, _description(preset, signature))
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return _row(preset, signature, built, nodes, size) | {
        "export_s": round(export_s, 1),
        "load_average": round(load, 2),
    }


def _row(preset: Preset, signature: Signature, built: BuiltEngine, nodes: int, size: int) -> dict[str, Any]:
    launched = [layer for layer in built.layers if layer.launches]
    return {
        "preset": preset.name,
        "graph": signature.name,
        "parse_s": round(built.parse_s, 2),
        "build_s": round(built.build_s, 2),
        "onnx_bytes": size,
        "engine_bytes": memoryview(built.blob).nbytes,
        "plain_export_nodes": PLAIN_EXPORT_NODES.get(signature.name) if preset.name == "small_16k" else None,
        "onnx_nodes": nodes,
        "network_layers": built.network.layers,
        "engine_layers": len(launched),
        "engine_layers_by_kind": _counts(launched),
        "large_products": {t: len(built.network.large_products(t)) for t in ("float16", "float32")},
    }


def _counts(layers: list[Layer]) -> dict[str, int]:
    kinds = sorted({layer.group for layer in layers})
    return {kind: sum(layer.group == kind for layer in layers) for kind in kinds}


def _description(preset: Preset, signature: Signature) -> EngineDescription:
    source = BundleSource(
        path=Path(),
        preset=preset.name,
        precision="fp16",
        sequence=sequence_rules(preset),
        default_duration_s=8.0,
        max_tokens=preset.text.t5_max_tokens,
        graphs={signature.name: GraphSource(name=signature.name, hashes={}, inputs=signature.inputs)},
    )
    return describe(source)[signature.name]


def _machine() -> dict[str, Any]:
    return {"system": f"{platform.system()} {platform.machine()}", "processor": cpu_model(), "cores": os.cpu_count()}


def _versions(library: Library) -> dict[str, str]:
    names = ("selva-deploy", "torch", "onnx", "onnxscript")
    return {library.target.name: library.version} | {name: importlib.metadata.version(name) for name in names}


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['preset']:<13} {row['graph']:<18} ONNX {row['onnx_bytes'] / 1e6:7.1f} MB, {row['onnx_nodes']:>5} nodes, "
        f"engine {row['engine_bytes'] / 1e6:7.1f} MB, {row['network_layers']:>6} → {row['engine_layers']:>4} layers, "
        f"{row['parse_s'] + row['build_s']:6.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
