"""MMAudio's bundles: their graphs, what they share with SelVA's on the disk, and the versions that are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from bundles import edit

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BundleError
from selva_bundle.ports import MMAUDIO, PORTS
from selva_engines.profiles import describe
from selva_engines.source import read_source
from selva_export.sharing import share_files
from selva_ref import get_preset
from selva_ref.weights.loading import load_part


def same_file(one: Path, other: Path) -> bool:
    return one.exists() and one.stat().st_ino == other.stat().st_ino


def test_the_manifest_says_which_system_it_is(mmaudio_bundle: Path) -> None:
    manifest = Bundle.open(mmaudio_bundle).manifest
    assert (manifest.system, manifest.text.t5_tokenizer) == (MMAUDIO, None)
    assert list(manifest.graphs) == list(PORTS[MMAUDIO])
    assert (manifest.sequence.frame_fit, manifest.sequence.clip_image_size) == ("crop", 64)
    assert not [name for name in manifest.files if "t5" in name]


@pytest.mark.parametrize(("use_sync", "use_clip"), [(True, True), (True, False), (False, True), (False, False)])
def test_absent_features_are_the_learned_empty_ones(mmaudio_bundle: Path, use_sync: bool, use_clip: bool) -> None:
    """The export itself compares the graph only where both are there."""
    preset = get_preset("demo_mmaudio")
    generator = load_part("generator", preset, None)
    rng = np.random.default_rng(0)
    text = rng.standard_normal((2, 32, 64), np.float32)
    sync, clip = rng.standard_normal((2, 16, 96), np.float32), rng.standard_normal((2, 5, 64), np.float32)
    feeds = {
        "sync": sync,
        "text": text,
        "negative_text": text[:1],
        "use_negative": np.array([False]),
        "use_sync": np.array([use_sync]),
        "clip": clip,
        "use_clip": np.array([use_clip]),
        "latent_positions": np.arange(20, dtype=np.float32),
        "clip_positions": np.arange(5, dtype=np.float32) * 4,
    }
    graph = onnxruntime.InferenceSession(str(mmaudio_bundle / "graphs" / "conditions.onnx"))
    names = [output.name for output in graph.get_outputs()]
    found = dict(zip(names, graph.run(names, feeds), strict=True))
    with torch.inference_mode():
        given_sync = torch.from_numpy(sync) if use_sync else generator.empty_sync(2, 16)
        given_clip = torch.from_numpy(clip) if use_clip else generator.empty_clip(2, 5)
        expected = generator.prepare(given_sync, given_clip, torch.from_numpy(text), latent_length=16)
    pairs = {"clip_f": expected.clip_f, "text_f": expected.text_f, "global_f": expected.global_f}
    for name, value in pairs.items():
        np.testing.assert_allclose(found[name][:2], value.numpy(), rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        np.testing.assert_allclose(found["sync_f"], generator.project_sync(given_sync).numpy(), rtol=1e-3, atol=1e-4)


def copies(folder: Path, *bundles: Path) -> list[Path]:
    return [Path(shutil.copytree(bundle, folder / f"{number}-{bundle.name}")) for number, bundle in enumerate(bundles)]


def test_bundles_in_one_folder_store_equal_files_once(demo_bundle: Path, mmaudio_bundle: Path, tmp_path: Path) -> None:
    selva, mmaudio = copies(tmp_path, demo_bundle, mmaudio_bundle)
    shared = share_files(mmaudio, tmp_path)
    same = {"graphs/text_clip.onnx", "graphs/decoder.onnx", "graphs/video_backbone.onnx", "tokenizers/clip.json"}
    listed = json.loads((mmaudio / "manifest.json").read_text())["files"]
    for name in listed:
        assert same_file(selva / name, mmaudio / name) == (name in same), name
    assert shared == {selva.name: sum(listed[name]["bytes"] for name in same)}
    assert Bundle.open(mmaudio).read("graphs/decoder.onnx") == (mmaudio_bundle / "graphs" / "decoder.onnx").read_bytes()
    shutil.rmtree(selva)  # each is complete by itself
    for name in listed:
        Bundle.open(mmaudio).verified_path(name)


def test_a_file_that_is_not_what_its_manifest_says_is_not_shared(
    demo_bundle: Path, mmaudio_bundle: Path, tmp_path: Path
) -> None:
    selva, mmaudio = copies(tmp_path, demo_bundle, mmaudio_bundle)
    altered = selva / "graphs" / "decoder.onnx"
    altered.write_bytes(altered.read_bytes()[:-1] + b"x")
    share_files(mmaudio, tmp_path)
    assert not same_file(altered, mmaudio / "graphs" / "decoder.onnx")
    Bundle.open(mmaudio).verified_path("graphs/decoder.onnx")


def test_a_damaged_neighbour_is_left_alone(mmaudio_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{")
    (mmaudio,) = copies(tmp_path, mmaudio_bundle)
    assert share_files(mmaudio, tmp_path) == {}


def test_where_there_are_no_links_nothing_is_shared(
    demo_bundle: Path, mmaudio_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, mmaudio = copies(tmp_path, demo_bundle, mmaudio_bundle)

    def no_links(*_: object, **__: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr("os.link", no_links)
    before = sorted(mmaudio.rglob("*"))
    assert share_files(mmaudio, tmp_path) == {}
    assert sorted(mmaudio.rglob("*")) == before


def test_a_bundle_of_version_2_is_selvas(demo_bundle: Path, tmp_path: Path) -> None:
    (copy,) = copies(tmp_path, demo_bundle)

    def older(manifest: dict) -> None:
        manifest["format_version"] = 2
        del manifest["system"], manifest["sequence"]["frame_fit"], manifest["sequence"]["clip_image_size"]

    edit(copy, older)
    manifest = Bundle.open(copy).manifest
    assert (manifest.system, manifest.sequence.frame_fit) == ("selva", "squash")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(system="other"), "system is 'other'"),
        (lambda m: m.pop("system"), "'system' is missing"),
        (lambda m: m.update(system="selva"), "no graph text_t5, video_select"),
        (lambda m: m["sequence"].update(clip_image_size=0), "clip_image_size is 0 in a bundle of mmaudio"),
        (lambda m: m["sequence"].update(clip_image_size=False), "clip_image_size is False"),
        (lambda m: m["sequence"].update(frame_fit="stretch"), "frame_fit is 'stretch'"),
        (lambda m: m["graphs"].pop("video_clip"), "no graph video_clip"),
        (lambda m: m.update(format_version=1), "format version 1 is out of date"),
        (lambda m: m.update(format_version=4), "format version 4 is unknown"),
        (lambda m: m["graphs"]["conditions"]["inputs"].pop(5), "the inputs of graph conditions are"),
    ],
)
def test_what_does_not_fit_the_system_is_refused(mmaudio_bundle: Path, tmp_path: Path, change, message: str) -> None:
    (copy,) = copies(tmp_path, mmaudio_bundle)
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_engines_take_a_few_pictures_and_segments_at_once(mmaudio_bundle_fp16: Path) -> None:
    engines = describe(read_source(mmaudio_bundle_fp16))
    assert list(engines) == list(PORTS[MMAUDIO])
    for name in ("video_backbone", "video_pool", "video_clip"):
        assert [shape[0] for shape in engines[name].inputs[0].shapes][::2] == [1, 32]
    clip = next(given for given in engines["conditions"].inputs if given.name == "clip")
    assert clip.shapes[2][:2] == (8, 240)  # eight stems of 30 s
