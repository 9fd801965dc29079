"""`selva-export` writes a complete, verified bundle without traces of the machine, or nothing at all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import GRAPHS
from click.testing import CliRunner
from safetensors.torch import save_file

import selva_ref
from selva_bundle.bundle import Bundle
from selva_export import bundle as bundle_module
from selva_export import graphs
from selva_export.bundle import ExportRequest, export_bundle
from selva_export.cli import main
from selva_export.errors import ExportError, ParityError
from selva_export.signatures import example_inputs, signatures
from selva_export.verify import TOLERANCES, VERIFY_AXES, compare, reference_outputs
from selva_ref.errors import CheckpointError
from selva_ref.weights import random_weights
from selva_ref.weights.checkpoints import find_checkpoint, get_checkpoint
from selva_ref.weights.loading import load_part


def request(out: Path, **changes: object) -> ExportRequest:
    given = {"preset": selva_ref.get_preset("demo"), "precision": "fp32", "checkpoints": None, "out": out, **changes}
    return ExportRequest(**given)


def read_graph(bundle: Path, name: str) -> onnx.ModelProto:
    return onnx.load(bundle / "graphs" / f"{name}.onnx")


def test_the_manifest_lists_every_file_with_its_hash(demo_bundle: Path) -> None:
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    files = {p.relative_to(demo_bundle).as_posix() for p in demo_bundle.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == files
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((demo_bundle / name).read_bytes()).hexdigest() == entry["sha256"]
    assert set(manifest["graphs"]) == set(GRAPHS)
    assert {row["graph"] for row in manifest["parity"]} == set(GRAPHS)
    assert all(row["relative_error"] <= row["tolerance"] == TOLERANCES["fp32"] for row in manifest["parity"])
    assert manifest["weights"] == "random"
    Bundle.open(demo_bundle)


def test_graphs_hold_no_traces_of_the_exporting_machine(demo_bundle: Path) -> None:
    for name in GRAPHS:
        content = (demo_bundle / "graphs" / f"{name}.onnx").read_bytes()
        assert b"site-packages" not in content
        assert str(Path.cwd()).encode() not in content


def test_opset_and_external_ports(demo_bundle: Path) -> None:
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    for name in GRAPHS:
        model = read_graph(demo_bundle, name)
        assert {o.domain: o.version for o in model.opset_import}[""] >= 20
        onnx.checker.check_model(model)
        for kind, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
            assert [port["name"] for port in manifest["graphs"][name][kind]] == [v.name for v in values]


def test_decoder_has_no_transposed_convolution_in_its_activations(demo_bundle: Path) -> None:
    count = Counter(node.op_type for node in read_graph(demo_bundle, "decoder").graph.node)
    assert count["ConvTranspose"] == len(selva_ref.get_preset("demo").audio.vocoder_rates)  # the upsampling itself


def test_float16_graphs_carry_float16_weights(demo_bundle_fp16: Path) -> None:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    for name in GRAPHS:
        tensors = read_graph(demo_bundle_fp16, name).graph.initializer
        large = {t.name: t.data_type for t in tensors if np.prod(t.dims) > 2048 and t.data_type in floats}
        assert large, name
        assert {tensor: kind for tensor, kind in large.items() if kind != onnx.TensorProto.FLOAT16} == {}, name


def test_float32_islands_of_float16_graphs(demo_bundle_fp16: Path) -> None:
    """Softmax, layer norms, sines and cosines read float32; all other matrix products and convolutions read float16."""
    islands = ("Softmax", "LayerNormalization", "Cos", "Sin")
    seen = Counter()
    for name in GRAPHS:
        model = onnx.shape_inference.infer_shapes(read_graph(demo_bundle_fp16, name))
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.input)}
        kinds |= {t.name: t.data_type for t in model.graph.initializer}
        for node in model.graph.node:
            seen[node.op_type] += 1
            if node.op_type in islands:
                assert kinds[node.input[0]] == onnx.TensorProto.FLOAT, (name, node.name)
            if node.op_type == "Conv" or (node.op_type in ("MatMul", "Gemm") and name != "text_t5"):
                assert kinds[node.input[0]] == onnx.TensorProto.FLOAT16, (name, node.name)
    assert all(seen[kind] for kind in (*islands, "MatMul", "Conv")), seen


def test_a_graph_out_of_tolerance_fails_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundle_module.TOLERANCES, "fp32", 1e-12)
    with pytest.raises(ParityError, match="graph text_t5 differs from the reference by more than 1e-12"):
        export_bundle(request(tmp_path / "bundle"), say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(request: ExportRequest, signature: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "export_part", interrupted)
    result = CliRunner().invoke(main, ["--preset", "demo", "--random-weights", "--out", str(tmp_path / "b")])
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists"):
        export_bundle(request(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["keep.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "demo"], "either --checkpoints DIR or --random-weights"),
        (["--preset", "tiny", "--random-weights"], "tiny"),
        (["--precision", "int4", "--random-weights"], "int4"),
        (["--precision", "fp16", "--random-weights", "--engines", "tensorrt"], "pip install 'selva-deploy[tensorrt]'"),
        (["--precision", "fp32", "--random-weights", "--engines", "tensorrt-rtx"], "float16"),
        (["--preset", "small_16k", "--checkpoints", "nowhere"], "selva-fetch --preset small_16k"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "b")])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_used_and_recorded_with_their_hashes(tmp_path: Path) -> None:
    preset = selva_ref.get_preset("demo")
    for part in ("text_t5", "text_clip", "video_encoder", "generator", "vae", "vocoder"):
        tensors = random_weights.state_dict(selva_ref.build(part, preset))
        tensors = {name: value.flip(0) if value.dim() else value for name, value in tensors.items()}
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, tmp_path / get_checkpoint("demo", part).file
        )
    asked = request(tmp_path / "bundle", checkpoints=tmp_path)
    sources = bundle_module._sources(asked)
    for part, source in sources.items():
        path = find_checkpoint(tmp_path, part, "demo")
        assert source == {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert bundle_module._kind_of_weights(asked, sources) == "trained"

    signature = signatures(preset)["text_clip"]
    bundle_module.export_part(asked, signature, tmp_path / "text_clip.onnx")
    feeds = example_inputs(signature, preset, VERIFY_AXES[0], seed=5)
    random = reference_outputs(graphs.TextClip(load_part("text_clip", preset, None)), signature, feeds)
    with pytest.raises(ParityError):  # the checkpoint's weights, not the random ones
        compare(tmp_path / "text_clip.onnx", signature, [(feeds, random)], 1e-2)

    path = find_checkpoint(tmp_path, "vae", "demo")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="vae_demo"):
        load_part("vae", preset, tmp_path)


@pytest.mark.parametrize(
    ("entry", "kind"), [({"verified": True}, "official"), ({}, "official"), ({"verified": False}, "trained")]
)
def test_only_verified_weights_are_called_official(tmp_path: Path, entry: dict[str, bool], kind: str) -> None:
    (tmp_path / "checkpoints.json").write_text(json.dumps({"files": {"x.safetensors": {"sha256": "a" * 64, **entry}}}))
    asked = request(tmp_path / "bundle", checkpoints=tmp_path)
    assert bundle_module._kind_of_weights(asked, {"vae": {"file": "x", "sha256": "a" * 64}}) == kind


@pytest.mark.parametrize("name", ["text_clip", "conditions"])
def test_half_weights_are_half_the_file_and_float32_in_use(name: str, demo_bundle: Path, tmp_path: Path) -> None:
    preset = selva_ref.get_preset("demo")
    path = tmp_path / f"{name}.onnx"
    found = bundle_module.export_part(request(tmp_path, half_weights=True), signatures(preset)[name], path)
    whole = (demo_bundle / "graphs" / f"{name}.onnx").stat().st_size
    assert path.stat().st_size < 0.62 * whole
    assert 1e-7 < max(parity.relative_error for parity in found) < 5e-3  # only rounded weights
    graph = onnx.load(path).graph
    kept = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert all(numbers.size < 1024 or np.abs(numbers).max() > 65504 for numbers in kept)  # too large for float16
    products = {"MatMul", "Gemm", "Conv"}
    halves = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert halves
    assert not any(halves & set(node.input) for node in graph.node if node.op_type in products)


def test_half_weights_belong_to_float32_bundles(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="half weights"):
        request(tmp_path, precision="fp16", half_weights=True)
