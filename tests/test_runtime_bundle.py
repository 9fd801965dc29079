"""A bundle is used only when it is whole, unaltered and of a known version."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

import selva_runtime.bundle
from selva_runtime import Bundle, BundleError


@pytest.fixture
def bundle(demo_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def add_file(bundle: Path, name: str, data: bytes = b"data") -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_opens_and_describes_itself(demo_bundle):
    manifest = Bundle.open(demo_bundle).manifest
    assert manifest.preset == "demo"
    assert manifest.sequence.sample_rate_hz == 16000
    assert manifest.graphs["text_clip"].inputs[0].dtype == "int64"
    assert "\n" not in manifest.notice


def test_every_listed_file_is_as_listed(demo_bundle):
    bundle = Bundle.open(demo_bundle)
    for name in bundle.manifest.files:
        assert bundle.verified(name) == Path(demo_bundle).resolve() / name


def test_unknown_keys_are_for_later_exporters(bundle):
    edit(bundle, lambda manifest: manifest.update(colour="blue"))
    edit(bundle, lambda manifest: manifest["sequence"].update(colour="blue"))
    assert Bundle.open(bundle).manifest.preset == "demo"


def test_engines_and_file_manager_litter_are_no_strangers(bundle):
    (bundle / "engines" / "tensorrt").mkdir(parents=True)
    (bundle / "engines" / "tensorrt" / "decoder.engine").write_bytes(b"engine")
    (bundle / ".DS_Store").write_bytes(b"")
    Bundle.open(bundle)


def test_a_link_to_a_bundle_is_a_bundle(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    assert Bundle.open(tmp_path / "link").path == bundle.resolve()


def remove_graph_file(bundle):
    (bundle / "graphs" / "decoder.onnx").unlink()


def extra_file(bundle):
    (bundle / "graphs" / "extra.onnx").write_bytes(b"x")


def extra_link_to_folder(bundle):
    (bundle / "graphs" / "more").symlink_to(bundle.parent)


def shorter_file(bundle):
    path = bundle / "graphs" / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def file_linked_outside(bundle):
    path = bundle / "graphs" / "decoder.onnx"
    path.rename(bundle.parent / "decoder.onnx")
    path.symlink_to(bundle.parent / "decoder.onnx")


def named_pipe(bundle):
    path = bundle / "graphs" / "decoder.onnx"
    path.unlink()
    os.mkfifo(path)


def list_file(name):
    entry = {"sha256": "0" * 64, "bytes": 1}
    return lambda bundle: edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def set_top(**values):
    return lambda bundle: edit(bundle, lambda manifest: manifest.update(values))


def write_manifest(text):
    return lambda bundle: (bundle / "manifest.json").write_bytes(text.encode() if isinstance(text, str) else text)


def graph_file(name):
    return lambda bundle: edit(bundle, lambda manifest: manifest["graphs"]["decoder"].update(file=name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_graph_file, r"decoder\.onnx is missing"),
        (extra_file, r"extra\.onnx is not part of the bundle"),
        (extra_link_to_folder, "more is not part of the bundle"),
        (shorter_file, r"decoder\.onnx has \d+ bytes, not \d+"),
        (file_linked_outside, "points outside"),
        (named_pipe, r"decoder\.onnx"),
        (shutil.rmtree, "is not there; make a bundle with selva-export"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "has no manifest.json"),
        (set_top(format_version=1), r"version 1 is out of date: this runtime reads 2; export the bundle again"),
        (set_top(format_version=3), r"version 3 is unknown: this runtime reads 2; update"),
        (set_top(format_version=None), "version None is unknown"),
        (set_top(format="zip"), "not a selva-bundle manifest"),
        (set_top(graphs={}), "no graph text_t5"),
        (set_top(sequence={}), "damaged .*sample_rate_hz"),
        (set_top(sequence=[]), "sequence is not an object"),
        (set_top(defaults={"steps": "many"}), "defaults are not numbers"),
        (set_top(files={}), "used but not listed"),
        (set_top(text={}), "'t5' is missing"),
        (graph_file("graphs/absent.onnx"), "used but not listed"),
        (graph_file(7), "not a text"),
        (list_file("../outside.onnx"), "not a plain relative path"),
        (list_file("/etc/passwd"), "not a plain relative path"),
        (list_file("graphs/../../x"), "not a plain relative path"),
        (list_file("graphs\\x.onnx"), "not a plain relative path"),
        (list_file("C:/x.onnx"), "not a plain relative path"),
        (list_file("graphs//x.onnx"), "not a plain relative path"),
        (list_file(".hidden"), "not a plain relative path"),
        (list_file(""), "not a plain relative path"),
        (list_file("graphs/x\n"), "not a plain relative path"),
        (list_file("manifest.json"), "not a plain relative path"),
        (write_manifest("{"), "damaged"),
        (write_manifest("[]"), "not an object"),
        (write_manifest('{"format": 1, "format": 2}'), "given twice"),
        (write_manifest('{"format": NaN}'), "NaN is not a number"),
        (write_manifest("[" * 100_000), "damaged"),
        (write_manifest(b"\xff\xfe"), "damaged"),
        (write_manifest(" " * 4_000_001), "larger than"),
    ],
)
def test_what_is_wrong_is_named(bundle, damage, message):
    damage(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_bundle(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match="is not there"):
        Bundle.open("a\0b")


def test_an_altered_file_is_named_at_its_first_use(bundle):
    flip_last_bit(bundle / "graphs" / "decoder.onnx")
    opened = Bundle.open(bundle)
    opened.graph_path("guided_step")
    with pytest.raises(BundleError, match=r"decoder\.onnx was altered"):
        opened.graph_path("decoder")


def test_altered_weights_beside_a_graph_are_found(bundle):
    add_file(bundle, "graphs/decoder.onnx.data")
    edit(bundle, lambda manifest: manifest["graphs"]["decoder"].update(data=["graphs/decoder.onnx.data"]))
    flip_last_bit(bundle / "graphs" / "decoder.onnx.data")
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data was altered"):
        Bundle.open(bundle).graph_path("decoder")


def test_a_file_is_hashed_once_until_it_changes(bundle, monkeypatch):
    hashed = []
    real = selva_runtime.bundle._sha256
    monkeypatch.setattr(selva_runtime.bundle, "_sha256", lambda path: hashed.append(path.name) or real(path))
    opened = Bundle.open(bundle)
    assert hashed == []
    opened.graph_path("decoder")
    opened.graph_path("decoder")
    assert hashed.count("decoder.onnx") == 1
    flip_last_bit(bundle / "graphs" / "decoder.onnx")
    with pytest.raises(BundleError, match="was altered"):
        opened.graph_path("decoder")
