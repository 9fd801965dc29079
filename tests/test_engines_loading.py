"""Loading engines into the library: refusals on any machine, the rest on a GPU."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from gpus import needs_gpu, needs_no_gpu

from selva_engines import (
    BuildRequest,
    EngineBuildError,
    EngineLoader,
    EngineRefusedError,
    EngineSet,
    build_engines,
    find_engines,
    load_library,
)

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'selva-deploy[tensorrt-rtx]'")

TARGET = "tensorrt-rtx"


@pytest.fixture
def bundle(demo_bundle_fp16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle_fp16, tmp_path / "bundle"))


@pytest.fixture
def engines(bundle: Path) -> EngineSet:
    return build_engines(BuildRequest(bundle=bundle, target=TARGET, graphs=("text_t5",)), say=lambda line: None)


def test_refuses_engines_of_another_version(engines: EngineSet) -> None:
    library = load_library(TARGET)
    library.version = "1.8.0.1"
    with pytest.raises(EngineRefusedError, match=r"this is tensorrt-rtx 1\.8\.0\.1; run: selva-engines"):
        EngineLoader(library, engines)


def test_altered_engines_never_reach_the_library(engines: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engines.folder / "text_t5.engine"
    path.write_bytes(path.read_bytes()[:-1])
    loader = EngineLoader(load_library(TARGET), engines)
    monkeypatch.setattr(loader, "_runtime", None)
    with pytest.raises(EngineRefusedError, match="altered or is incomplete"):
        loader.load("text_t5")


def test_a_file_that_is_no_engine_is_refused_by_its_header(engines: EngineSet) -> None:
    """A forged manifest lists the file, and still nothing crashes."""
    content = b"no engine at all" * 100
    (engines.folder / "text_t5.engine").write_bytes(content)
    manifest = json.loads((engines.folder / "engines.json").read_text())
    manifest["engines"]["text_t5"]["sha256"] = hashlib.sha256(content).hexdigest()
    (engines.folder / "engines.json").write_text(json.dumps(manifest))
    forged = find_engines(engines.source.path, TARGET, engines.version, "8.6")
    with pytest.raises(EngineRefusedError, match=r"rejected .*text_t5\.engine: .*malformed engine.*selva-engines"):
        EngineLoader(load_library(TARGET), forged).load("text_t5")


@needs_no_gpu
def test_without_a_gpu_the_library_refuses_in_one_line(engines: EngineSet) -> None:
    with pytest.raises(EngineRefusedError, match="tensorrt-rtx rejected") as caught:
        EngineLoader(load_library(TARGET), engines).load("text_t5")
    assert "\n" not in str(caught.value)


@needs_no_gpu
def test_without_a_gpu_weights_cannot_be_stripped(bundle: Path) -> None:
    request = BuildRequest(bundle=bundle, target=TARGET, graphs=("text_t5",), strip_weights=True)
    with pytest.raises(EngineBuildError, match="leave out --strip-weights"):
        build_engines(request, say=lambda line: None)
    assert not (bundle / "engines").exists()


@pytest.mark.gpu
@needs_gpu
def test_built_engines_load(engines: EngineSet) -> None:
    engine = EngineLoader(load_library(TARGET), engines).load("text_t5")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert names == ["ids", "mask", "features"]
    assert tuple(engine.get_tensor_profile_shape("ids", 0)[2]) == engines.engines["text_t5"].profile["ids"]["max"]
    assert engine.num_layers == len(engines.read_layers("text_t5"))


@pytest.mark.gpu
@needs_gpu
def test_stripped_engines_are_small_and_get_their_weights_back(bundle: Path) -> None:
    request = BuildRequest(bundle=bundle, target=TARGET, graphs=("guided_step",))
    whole = build_engines(request, say=lambda line: None).engines["guided_step"]
    stripped = build_engines(
        BuildRequest(bundle=bundle, target=TARGET, graphs=("guided_step",), strip_weights=True), say=lambda line: None
    )
    weights = (bundle / "graphs" / "guided_step.onnx").stat().st_size
    assert stripped.engines["guided_step"].bytes < whole.bytes - 0.8 * weights
    engine = EngineLoader(load_library(TARGET), stripped).load("guided_step")
    assert engine.refittable
