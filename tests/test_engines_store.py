"""Which engines may be loaded, and why the others are refused. Needs no TensorRT: the engines are fake."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from bundles import edit_json
from click.testing import CliRunner
from platforms import needs_posix

import selva_engines
from selva_engines import (
    EngineError,
    EngineLibraryError,
    EngineRefusedError,
    EnginesMissingError,
    EngineSourceError,
    build_engines,
    find_engines,
    load_library,
)
from selva_engines.assemble import BuildRequest
from selva_engines.cli import main
from selva_engines.device import device_capability
from selva_engines.layers import parse_layers
from selva_engines.source import read_source
from selva_engines.store import set_name

TARGET, VERSION = "tensorrt-rtx", "1.7.1.116"
BLOB = b"an engine"


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def write_engines(
    bundle: Path, target: str = TARGET, version: str = VERSION, capabilities: tuple[str, ...] = ()
) -> Path:
    folder = bundle / "engines" / set_name(target, version, capabilities)
    folder.mkdir(parents=True)
    (folder / "decoder.engine").write_bytes(BLOB)
    (folder / "decoder.layers.json").write_bytes(b"[]")
    record = {
        "file": "decoder.engine",
        "sha256": hashlib.sha256(BLOB).hexdigest(),
        "bytes": len(BLOB),
        "graph": dict(read_source(bundle).graphs["decoder"].hashes),
        "profile": {"latents": {"min": [1, 20, 20], "opt": [1, 250, 20], "max": [8, 938, 20]}},
        "layers_file": "decoder.layers.json",
        "layers_sha256": hashlib.sha256(b"[]").hexdigest(),
        "network_layers": 3,
        "engine_layers": 1,
        "operations": {},
        "products": {"float16": 1},
        "build_s": 0.1,
    }
    manifest = {
        "format": "selva-engines",
        "format_version": 1,
        "target": target,
        "version": version,
        "capabilities": list(capabilities),
        "precision": "fp32",
        "weights_stripped": False,
        "max_stems": 8,
        "engines": {"decoder": record},
    }
    (folder / "engines.json").write_text(json.dumps(manifest))
    return folder


def test_reads_what_fits(bundle: Path) -> None:
    write_engines(bundle)
    engines = find_engines(bundle, TARGET, VERSION, "8.9")
    assert engines.read("decoder") == BLOB
    assert engines.read_layers("decoder") == []
    assert engines.engines["decoder"].profile["latents"]["max"] == (8, 938, 20)


def test_an_exact_capability_comes_first(bundle: Path) -> None:
    write_engines(bundle)
    exact = write_engines(bundle, capabilities=("8.6", "8.9"))
    assert find_engines(bundle, TARGET, VERSION, "8.6").folder == exact.resolve()
    assert find_engines(bundle, TARGET, VERSION, "12.0").folder.name.endswith("portable")


def test_targets_are_not_mixed_up(bundle: Path) -> None:
    write_engines(bundle)
    with pytest.raises(EnginesMissingError, match=r"no tensorrt engines; run: selva-engines .* --target tensorrt$"):
        find_engines(bundle, "tensorrt", "11.4.0.1", "9.0")
    folder = write_engines(bundle, target="tensorrt", version="11.4.0.1", capabilities=("9.0",))
    assert find_engines(bundle, "tensorrt", "11.4.0.1", "9.0").folder == folder.resolve()
    with pytest.raises(
        EngineRefusedError, match=r"are for compute capability 9\.0, but this GPU has 8\.0; run: .* tensorrt$"
    ):
        find_engines(bundle, "tensorrt", "11.4.0.1", "8.0")


def test_refuses_another_version_and_another_capability(bundle: Path) -> None:
    write_engines(bundle, capabilities=("8.6",))
    with pytest.raises(
        EngineRefusedError, match=r"are for tensorrt-rtx 1\.7\.1\.116, but this is 1\.8\.0; run: selva-engines"
    ):
        find_engines(bundle, TARGET, "1.8.0", "8.6")
    with pytest.raises(EngineRefusedError, match=r"8\.6, but this GPU has 8\.9; run: .* --capability 8\.9"):
        find_engines(bundle, TARGET, VERSION, "8.9")
    write_engines(bundle)
    with pytest.raises(EngineRefusedError, match=r"this GPU has 7\.5; run: selva-engines .* --capability 7\.5"):
        find_engines(bundle, TARGET, VERSION, "7.5")


@pytest.mark.parametrize(
    ("capability", "covered"),
    [("8.0", 1), ("8.6", 1), ("8.9", 1), ("12.0", 1), ("12.1", 1), ("7.5", 0), ("8.7", 0), ("9.0", 0), ("10.0", 0)],
)
def test_a_portable_set_is_for_the_gpus_that_tensorrt_rtx_builds_for(
    bundle: Path, capability: str, covered: bool
) -> None:
    write_engines(bundle)
    assert find_engines(bundle, TARGET, VERSION, "8.9").covers(capability) == covered


@pytest.mark.parametrize("engines", [True, False])
def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused_first(
    bundle: Path, engines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engines:
        write_engines(bundle)
    monkeypatch.setattr("selva_engines.store.open_engines", lambda *_: pytest.fail("reads the engines"))
    with pytest.raises(EngineRefusedError, match=r"not support compute capability 9\.0; run: .* --target tensorrt$"):
        find_engines(bundle, TARGET, VERSION, "9.0")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_refuses_altered_half_written_and_missing_files(bundle: Path, damage: str) -> None:
    path = write_engines(bundle) / "decoder.engine"
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"An engine" if damage == "flip" else BLOB[:-1])
    engines = find_engines(bundle, TARGET, VERSION, "8.9")
    with pytest.raises(EngineRefusedError, match=r"decoder\.engine .* run: selva-engines"):
        engines.read("decoder")


def test_refuses_an_engine_of_another_graph(bundle: Path) -> None:
    write_engines(bundle)
    edit_json(bundle / "manifest.json", lambda m: m["files"]["graphs/decoder.onnx"].update(sha256="0" * 64))
    engines = find_engines(bundle, TARGET, VERSION, "8.9")
    with pytest.raises(EngineRefusedError, match="built from another decoder graph; run: selva-engines"):
        engines.read("decoder")


def test_names_what_is_missing(bundle: Path) -> None:
    with pytest.raises(EnginesMissingError, match="no tensorrt-rtx engines"):
        find_engines(bundle, TARGET, VERSION, "8.9")
    write_engines(bundle)
    with pytest.raises(EnginesMissingError, match="no engine for guided_step"):
        find_engines(bundle, TARGET, VERSION, "8.9").read("guided_step")
    assert issubclass(EnginesMissingError, FileNotFoundError)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format_version=2),
        lambda m: m.pop("target"),
        lambda m: m["engines"]["decoder"].update(file="../decoder.engine"),
        lambda m: m["engines"]["decoder"].pop("sha256"),
        lambda m: m["engines"]["decoder"].update(surprise=1),
        lambda m: m.update(engines=[]),
    ],
)
def test_refuses_manifests_that_it_does_not_understand(bundle: Path, change: Callable[[dict], object]) -> None:
    edit_json(write_engines(bundle) / "engines.json", change)
    with pytest.raises(EngineRefusedError, match=r"engines\.json cannot be parsed"):
        find_engines(bundle, TARGET, VERSION, "8.9")


@pytest.mark.parametrize("content", [None, "", '{"format": "selva-eng', "\udcff"])
def test_refuses_half_written_folders(bundle: Path, content: str | None) -> None:
    path = write_engines(bundle) / "engines.json"
    path.unlink()
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    with pytest.raises(EngineRefusedError, match="incomplete"):
        find_engines(bundle, TARGET, VERSION, "8.9")


def test_a_damaged_set_does_not_hide_a_good_one(bundle: Path) -> None:
    (write_engines(bundle, capabilities=("8.6",)) / "engines.json").write_text("{")
    write_engines(bundle)
    assert find_engines(bundle, TARGET, VERSION, "8.6").read("decoder") == BLOB


@needs_posix
def test_refuses_folders_that_lead_out_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    folder = write_engines(bundle)
    folder.rename(tmp_path / folder.name)
    folder.symlink_to(tmp_path / folder.name)
    with pytest.raises(EngineRefusedError, match="outside the bundle"):
        find_engines(bundle, TARGET, VERSION, "8.9")


def test_bundles_that_cannot_be_read(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineSourceError, match="make a bundle with selva-export"):
        find_engines(tmp_path / "nowhere", TARGET, VERSION, "8.9")
    edit_json(bundle / "manifest.json", lambda m: m["graphs"]["decoder"].update(file="../decoder.onnx"))
    with pytest.raises(EngineSourceError, match="not a plain relative path inside the bundle"):
        read_source(bundle)


def test_builds_only_from_graphs_listed_in_the_manifest(bundle: Path) -> None:
    source = read_source(bundle)
    path = bundle / "graphs" / "text_t5.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineSourceError, match=r"text_t5\.onnx was altered"), source.verified_graph("text_t5"):
        pass


def test_builds_from_no_graph_that_changes_meanwhile(bundle: Path) -> None:
    def swap_while_reading() -> None:
        with read_source(bundle).verified_graph("text_t5") as path:
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)

    with pytest.raises(EngineSourceError, match=r"text_t5\.onnx changed while it was being loaded"):
        swap_while_reading()


def test_a_library_that_is_not_there_names_its_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineLibraryError, match=r"pip install 'selva-deploy\[tensorrt\]'"):
        load_library("tensorrt")
    with pytest.raises(EngineLibraryError, match="choose one of tensorrt-rtx, tensorrt"):
        load_library("openvino")
    with pytest.raises(EngineLibraryError):
        build_engines(BuildRequest(bundle=bundle, target="tensorrt"), say=lambda line: None)
    assert not (bundle / "engines").exists()


def test_old_libraries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.16.1", raising=False)
    with pytest.raises(EngineLibraryError, match=r"tensorrt 10\.16\.1 is older than 11\.0"):
        load_library("tensorrt")


def test_no_gpu_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineLibraryError, match="no usable NVIDIA GPU"):
        device_capability()


def test_commands_end_with_one_line_and_code_2(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for args in (
        [str(bundle), "--target", "tensorrt"],
        ["inspect", str(bundle)],
        ["inspect", str(bundle / "x.engine")],
    ):
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    write_engines(bundle)
    plain = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert plain.exit_code == 0
    assert "3 in the network, 1 in the engine" in plain.stdout
    (entry,) = json.loads(CliRunner().invoke(main, ["inspect", str(bundle), "--json"]).stdout)
    assert entry["bytes"] == len(BLOB)


def test_the_plain_form_is_build() -> None:
    plain = CliRunner().invoke(main, ["somewhere", "--help"])
    named = CliRunner().invoke(main, ["build", "--help"])
    assert plain.exit_code == 0
    assert plain.stdout == named.stdout


def test_layer_tables_that_are_not_understood_give_no_layers() -> None:
    line = (
        "Name: _gemm_mha_v2_myl0_9, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [-1,8,64], Datatype: Half }], "
        "Constants: [ { Name: w, Dimensions: [64,128], Datatype: Float }], Outputs: [], TacticName: , StreamId: 0"
    )
    (layer,) = parse_layers([f"Layers:\n{line}\nsomething else"])
    assert (layer.group, layer.precision, layer.launches) == ("attention", "float16+float32", True)
    assert parse_layers(["Layer(Myelin): x, Tactic: 0x0, y -> z", ""]) == ()


def test_errors_have_one_base() -> None:
    """A program can catch every exception class of the package as `EngineError`, or as its built-in kind."""
    modules = [import_module(f"selva_engines.{module.name}") for module in iter_modules(selva_engines.__path__)]
    kinds = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__.startswith("selva_engines")
    } - {EngineError}
    assert {kind.__name__ for kind in kinds} == {name for name in selva_engines.__all__ if name.endswith("Error")} - {
        "EngineError"
    }
    for kind in kinds:
        assert issubclass(kind, EngineError)
        assert issubclass(kind, (OSError, RuntimeError, ValueError)), kind


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'selva_runtime', 'selva_ref', 'selva_export', 'tensorrt', 'tensorrt_rtx',"
        " 'cuda'):\n"
        "    sys.modules[name] = None\n"
        "import selva_engines, selva_engines.cli"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
