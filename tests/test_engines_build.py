"""Builds every graph of the float16 demo bundle with the real TensorRT-RTX, without a GPU."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import GRAPHS
from platforms import needs_posix

from selva_bundle.lengths import SequenceRules
from selva_bundle.ports import DRAFT, FLOWS
from selva_engines import BuildRequest, EngineRequestError, EngineSet, build_engines, inspect
from selva_engines.profiles import SEGMENTS_PER_CALL, describe
from selva_engines.source import read_source
from selva_runtime import Bundle

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'selva-deploy[tensorrt-rtx]'")

TARGET = "tensorrt-rtx"
QUICK = ("text_t5", "text_clip")

# Graph → float16 layers: products with a weight (at least), attention products, attentions in one kernel.
EXPECTED = {
    "text_t5": (12, 4, 2),
    "text_clip": (12, 4, 2),
    "video_backbone": (19, 24, 6),  # the CLS row's attention is not fused: one query is no matrix
    "video_select": (15, 4, 1),
    "conditions": (30, 0, 0),
    "guided_step": (45, 8, 4),
    "decoder": (122, 2, 0),
}


@pytest.fixture(scope="module")
def bundle(demo_bundle_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(demo_bundle_fp16, tmp_path_factory.mktemp("engines") / "bundle"))


@pytest.fixture(scope="module")
def engines(bundle: Path) -> EngineSet:
    return build_engines(BuildRequest(bundle=bundle, target=TARGET), say=lambda line: None)


@pytest.fixture
def fresh(demo_bundle_fp16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle_fp16, tmp_path / "bundle"))


def build(bundle: Path, **changes: object) -> EngineSet:
    given = {"bundle": bundle, "target": TARGET, "graphs": QUICK, **changes}
    return build_engines(BuildRequest(**given), say=lambda line: None)


def test_every_graph_has_an_engine(engines: EngineSet, bundle: Path) -> None:
    assert tuple(engines.engines) == GRAPHS
    assert engines.folder == bundle.resolve() / "engines" / f"{TARGET}-{engines.version}-portable"
    assert engines.precision == "fp16"
    for name, record in engines.engines.items():
        assert len(engines.read(name)) == record.bytes
    files = {path.name for path in engines.folder.iterdir()}
    assert files == {"engines.json", *(f"{g}.engine" for g in GRAPHS), *(f"{g}.layers.json" for g in GRAPHS)}
    assert [path.name for path in (bundle / "engines").iterdir()] == [engines.folder.name]


def test_the_runtime_still_trusts_the_bundle(engines: EngineSet, bundle: Path, demo_bundle_fp16: Path) -> None:
    Bundle.open(bundle)
    assert (bundle / "manifest.json").read_bytes() == (demo_bundle_fp16 / "manifest.json").read_bytes()


@pytest.mark.parametrize("graph", GRAPHS)
def test_large_products_are_float16_and_islands_float32(engines: EngineSet, bundle: Path, graph: str) -> None:
    check_precisions(engines, bundle, graph)
    operations = engines.engines[graph].operations
    with_weight, attention, _ = EXPECTED[graph]
    kinds = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION")
    assert sum(operations.get(kind, {}).get("float16", 0) for kind in kinds) >= with_weight + attention


def check_precisions(engines: EngineSet, bundle: Path, graph: str) -> None:
    operations, products = engines.engines[graph].operations, engines.engines[graph].products
    description = describe(read_source(bundle))[graph]
    assert description.precision == "fp16"
    for island, names in description.islands.items():
        found = [operations[name] for name in names if name in operations]
        assert found, f"{island} is not in the network"
        assert all(set(precisions) == {"float32"} for precisions in found), (island, found)
    if description.float32_products is None:
        assert products["float32"] == 0
        assert "float32" not in operations.get("MATRIX_MULTIPLY", {})
    else:  # one for each block
        assert products["float32"] == operations["SOFTMAX"]["float32"]


def test_the_graphs_that_only_mmaudio_has(mmaudio_bundle_fp16: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(mmaudio_bundle_fp16, tmp_path / "bundle"))
    own = ("video_pool", "video_clip", "conditions")
    engines = build(copy, graphs=own)
    assert tuple(engines.engines) == own
    for graph in own:
        check_precisions(engines, copy, graph)


def test_the_graphs_that_only_drafts_need(both_bundle_fp16: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(both_bundle_fp16, tmp_path / "bundle"))
    engines = build(copy, graphs=FLOWS[DRAFT])
    assert tuple(engines.engines) == FLOWS[DRAFT]
    for graph in FLOWS[DRAFT]:
        check_precisions(engines, copy, graph)
    rows = {graph: engines.engines[graph].profile["text_f"]["max"][0] for graph in FLOWS[DRAFT][1:]}
    assert rows == {"average_step": 16}


@pytest.mark.parametrize("graph", GRAPHS)
def test_layers_as_built_multiply_in_float16(engines: EngineSet, graph: str) -> None:
    layers = engines.read_layers(graph)
    assert engines.engines[graph].engine_layers == sum(layer["launches"] for layer in layers)
    launched = [layer for layer in layers if layer["launches"]]
    heavy = [layer for layer in launched if layer["kind"] in ("gemm", "correlation", "deconv")]
    assert heavy
    float32 = [layer["name"] for layer in heavy if "float16" not in layer["precision"].split("+")]
    assert len(float32) <= engines.engines[graph].products["float32"], float32
    attentions = [layer for layer in launched if layer["group"] == "attention"]
    assert len(attentions) == EXPECTED[graph][2]
    for layer in attentions:  # queries, keys and values are float16, although the softmax between them is float32
        assert {tensor["dtype"] for tensor in layer["inputs"] if len(tensor["shape"]) == 3} == {"float16"}


def test_profiles_hold_every_clip_that_the_runtime_takes(engines: EngineSet, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    rules, usual_s = SequenceRules(**manifest["sequence"]), manifest["defaults"]["duration_s"]
    low, mid, high = (rules.lengths(s) for s in (rules.min_duration_s, usual_s, rules.max_duration_s))
    step = engines.engines["guided_step"].profile
    assert step["latents"] == {
        "min": (1, low.latent, 20),
        "opt": (1, mid.latent, 20),
        "max": (8, high.latent, 20),
    }
    assert [step["clip_f"][size][:2] for size in ("min", "opt", "max")] == [
        (2, low.visual),
        (2, mid.visual),
        (16, high.visual),
    ]
    assert step["t"]["min"] == step["t"]["max"] == (1,)
    sync = engines.engines["conditions"].profile["sync"]
    assert [sync[size][1] for size in ("min", "opt", "max")] == [low.sync, mid.sync, high.sync]
    segments = engines.engines["video_backbone"].profile["segments"]
    assert segments["max"][0] == SEGMENTS_PER_CALL >= mid.segments
    assert engines.engines["text_t5"].profile["ids"]["max"] == (1, 128)


def test_current_engines_are_kept_and_others_built_again(fresh: Path) -> None:
    first = build(fresh)
    second = build(fresh, graphs=("text_clip", "video_select"))
    assert list(second.engines) == ["text_t5", "text_clip", "video_select"]
    assert second.engines["text_t5"] == first.engines["text_t5"]
    (first.folder / "text_clip.engine").write_bytes(b"altered")
    third = build(fresh)
    assert third.read("text_clip") != b"altered"
    assert third.engines["video_select"] == second.engines["video_select"]
    fewer = build(fresh, graphs=("video_select",), max_stems=2)
    assert fewer.engines["video_select"].profile["text"]["max"][0] == 2
    assert list(fewer.engines) == ["video_select"]


def test_capabilities_have_folders_of_their_own(fresh: Path) -> None:
    engines = build(fresh, graphs=("text_t5",), capabilities=("8.9", "8.6"))
    assert engines.folder.name.endswith("-sm86-sm89")
    assert engines.capabilities == ("8.6", "8.9")
    with pytest.raises(EngineRequestError, match=r"capability '9\.0', only for 7\.5, 8\.0"):
        build(fresh, capabilities=("9.0",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"graphs": ("vocoder",)}, "no graph 'vocoder'"), ({"max_stems": 0}, "--max-stems is 0")],
)
def test_requests_that_cannot_be_met(fresh: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(EngineRequestError, match=message):
        build(fresh, **changes)
    assert not (fresh / "engines").exists()


def test_inspect_counts_layers_of_bundles_and_of_files(engines: EngineSet, bundle: Path) -> None:
    entries = inspect(bundle)
    assert [Path(entry["engine"]).stem for entry in entries] == list(GRAPHS)
    (step,) = inspect(engines.folder / "guided_step.engine")
    assert step == entries[GRAPHS.index("guided_step")]
    assert step["islands"]["softmax"] == {"float32": 4}
    assert step["kinds"]["attention"] == {"float16": 4}
    assert sum(sum(found.values()) for found in step["kinds"].values()) == step["engine_layers"]


@pytest.fixture
def running(fresh: Path) -> Iterator[subprocess.Popen[str]]:
    command = "from selva_engines.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(fresh), "--target", TARGET], stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()


@needs_posix
def test_ctrl_c_leaves_nothing(fresh: Path, running: subprocess.Popen[str]) -> None:
    assert running.stderr is not None
    for line in running.stderr:
        if "guided_step" in line:  # now building the decoder
            break
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 130
    assert errors.endswith("interrupted: nothing was written\n")
    assert not (fresh / "engines").exists()
