"""A bundle is used only if it is complete, unchanged and of a known version."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import add_file, edit, without_best
from platforms import needs_posix

from selva_bundle.lengths import LongForm
from selva_bundle.manifest import AverageFlow
from selva_bundle.ports import PORTS, check_ports, known_sizes
from selva_export.signatures import signatures
from selva_ref.model.presets import PRESETS
from selva_ref.pipeline import sequence_rules
from selva_runtime import BackendError, Bundle, BundleError
from selva_runtime.backends.onnx_cpu import OnnxCpuExecutor
from selva_runtime.backends.openvino.executor import OpenVinoExecutor
from selva_runtime.text import TextEncoder
from selva_runtime.turns import Turns

FLOW = {"kind": "average", "guidance": [1, 7], "steps": 4}
LONG_FORM = {"window_segments": 12, "anchor_segments": 5, "overlap_segments": 2}


@pytest.fixture
def bundle(demo_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


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


@pytest.mark.parametrize("given", [None, LONG_FORM, {**LONG_FORM, "guard": 0.1, "later": 1}])
def test_the_long_form_is_read_or_has_the_usual_proportions(bundle, given):
    edit(bundle, lambda manifest: manifest.update(long_form=given) if given else manifest.pop("long_form", None))
    form = Bundle.open(bundle).manifest.long_form
    usual = LongForm(window_segments=12, anchor_segments=3, overlap_segments=1)
    read = {name: value for name, value in (given or {}).items() if name != "later"}
    assert form == (LongForm(**read) if given else usual)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_exporter_and_the_runtime_mean_the_same_ports(preset):
    sizes = known_sizes(sequence_rules(preset), preset.text.clip_tokens)
    exported = signatures(preset)
    assert list(exported) == list(PORTS[preset.system])
    for name, signature in exported.items():
        check_ports(preset.system, name, signature.inputs, signature.outputs, sizes)


def test_every_listed_file_is_as_listed(demo_bundle):
    bundle = Bundle.open(demo_bundle)
    for name in bundle.manifest.files:
        assert bundle.verified_path(name) == Path(demo_bundle).resolve() / name


def test_unknown_keys_are_for_later_exporters(bundle):
    edit(bundle, lambda manifest: manifest.update(colour="blue"))
    edit(bundle, lambda manifest: manifest["sequence"].update(colour="blue"))
    assert Bundle.open(bundle).manifest.preset == "demo"


def test_engines_and_file_manager_litter_are_accepted(bundle):
    (bundle / "engines" / "tensorrt").mkdir(parents=True)
    (bundle / "engines" / "tensorrt" / "decoder.engine").write_bytes(b"engine")
    (bundle / ".DS_Store").write_bytes(b"")
    Bundle.open(bundle)


@needs_posix
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


def manifest_linked_outside(bundle):
    (bundle / "manifest.json").rename(bundle.parent / "manifest.json")
    (bundle / "manifest.json").symlink_to(bundle.parent / "manifest.json")


def sequence(**values):
    return lambda bundle: edit(bundle, lambda manifest: manifest["sequence"].update(values))


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


def port(graph, kind, **values):
    """Makes a change to a graph's first port."""
    return lambda bundle: edit(bundle, lambda manifest: manifest["graphs"][graph][kind][0].update(values))


def pad_id(value):
    return lambda bundle: edit(bundle, lambda manifest: manifest["text"]["clip"].update(pad_id=value))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_graph_file, r"decoder\.onnx is missing"),
        (extra_file, r"extra\.onnx is not part of the bundle"),
        pytest.param(extra_link_to_folder, "more is not part of the bundle", marks=needs_posix),
        (shorter_file, r"decoder\.onnx has \d+ bytes, not \d+"),
        pytest.param(file_linked_outside, "points outside", marks=needs_posix),
        pytest.param(manifest_linked_outside, r"manifest\.json points outside", marks=needs_posix),
        (sequence(clip_fps=1_000_000), "sequence.clip_fps is 1000000, not a number above 0 and up to 240"),
        (sequence(hop=512), r"axis of '512\*latent', not '1024\*latent'"),
        (sequence(fps=True), "sequence.fps is True, not a number"),
        (lambda bundle: (bundle / "two\nlines").write_bytes(b""), "two lines is not part of the bundle"),
        (list_file("x" * 100_000 + "?"), "not a plain relative path"),
        pytest.param(named_pipe, r"decoder\.onnx", marks=needs_posix),
        (shutil.rmtree, "there is no bundle .*; make a bundle with selva-export"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "has no manifest.json"),
        (set_top(format_version=1), r"version 1 is out of date: this runtime reads 3; export the bundle again"),
        (set_top(format_version=4), r"version 4 is unknown: this runtime reads 3; update"),
        (set_top(format_version=None), "version None is unknown"),
        (set_top(format="zip"), "not a selva-bundle manifest"),
        (set_top(precision="int4"), "precision is 'int4'"),
        (set_top(weights="mine"), "weights is 'mine'"),
        (set_top(graphs={}), "no graph text_t5"),
        (set_top(sequence={}), "damaged .*sample_rate_hz"),
        (set_top(sequence=[]), "sequence is not an object"),
        (set_top(defaults={"steps": "many"}), "defaults.steps is 'many', not a number from 1 to 1000"),
        (set_top(defaults={"steps": 2.5}), "defaults.steps is 2.5"),
        (set_top(defaults={"guidance": -1}), "defaults.guidance is -1, not a number from 0 to 100"),
        (set_top(defaults={"duration_s": 31}), "defaults.duration_s is 31, not a number from 0.64 to 30"),
        (set_top(long_form=[]), "long_form is not an object"),
        (set_top(long_form={}), "damaged .*window_segments"),
        (
            set_top(long_form={**LONG_FORM, "window_segments": 13}),
            "window_segments is 13, above 12 of the default clip",
        ),
        (set_top(long_form={**LONG_FORM, "anchor_segments": 10}), "long_form leaves no new segments in a window"),
        (set_top(long_form={**LONG_FORM, "guard": "wide"}), "long_form.guard is 'wide', not a number from 0"),
        (set_top(flow=FLOW), "no graph average_conditions, average_step"),
        (set_top(flow=None), "no graph average_conditions, average_step"),
        (set_top(files={}), "used but not listed"),
        (set_top(text={}), "'clip' is missing"),
        (set_top(text={"clip": {}}), "'t5' is missing"),
        (port("decoder", "inputs", dtype="uint9"), "latents of graph decoder is uint9, not float32"),
        (port("decoder", "outputs", shape=["stems"]), "audio of graph decoder has 1 axes, not 2"),
        (port("decoder", "outputs", shape=["stems", "256*latent"]), r"axis of '256\*latent', not '512\*latent'"),
        (port("decoder", "inputs", name="latent"), "inputs of graph decoder are latent, not latents"),
        (port("text_t5", "outputs", shape=["prompts", "tokens", 65]), "text of graph video_select .* 64, not 65"),
        (port("text_t5", "outputs", shape=["prompts", "tokens", 0]), "axis of 0, not a size from 1 to"),
        (port("text_t5", "outputs", shape=["prompts", "tokens", "wide"]), "axis of 'wide', not a size from 1 to"),
        (port("video_backbone", "inputs", shape=["segments", 16, 3, 65, 64]), "axis of 65, not 64"),
        (port("guided_step", "inputs", shape=["stems", "latent", 1.5]), "shape"),
        (pad_id(2**63), "text.clip.pad_id is 9223372036854775808"),
        (pad_id(-1), "text.clip.pad_id is -1"),
        (graph_file("graphs/absent.onnx"), "used but not listed"),
        (graph_file(7), "not a string"),
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
        (write_manifest('{"format": 1, "format": 2}'), "appears twice"),
        (write_manifest('{"format": NaN}'), "NaN is not a number"),
        (write_manifest("[" * 100_000), "damaged"),
        (write_manifest(b"\xff\xfe"), "damaged"),
        (write_manifest(" " * 4_000_001), "larger than"),
    ],
)
def test_each_kind_of_damage_is_named(bundle, damage, message):
    damage(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda top: top.pop("flow"), "graph average_conditions without flow"),
        (lambda top: top["graphs"].pop("average_step"), "no graph average_step"),
        (lambda top: top["graphs"].pop("guided_step"), "no graph guided_step"),
        (lambda top: top.update(flow=[]), "flow is not an object"),
        (lambda top: top.update(flow={}), "'kind' is missing"),
        (lambda top: top["flow"].update(kind="shortcut"), "flow.kind is 'shortcut'"),
        (lambda top: top["flow"].update(steps=0), "flow.steps is 0"),
        (lambda top: top["flow"].update(steps=1001), "flow.steps is 1001"),
        (lambda top: top["flow"].update(steps=4.0), "flow.steps is 4.0"),
        (lambda top: top["flow"].update(steps=True), "flow.steps is True"),
        (lambda top: top["flow"].update(guidance=7), "flow.guidance is not a list"),
        (lambda top: top["flow"].update(guidance=[7]), "flow.guidance has 1 numbers, not 2"),
        (lambda top: top["flow"].update(guidance=[0.9, 7]), "flow.guidance is 0.9"),
        (lambda top: top["flow"].update(guidance=[1, 101]), "flow.guidance is 101"),
        (lambda top: top["flow"].update(guidance=[1, "7"]), "flow.guidance is '7'"),
        (lambda top: top["flow"].update(guidance=[7, 1]), "flow.guidance 7 to 1 leaves out the default 4.5"),
        (lambda top: top["flow"].update(guidance=[5, 7]), "flow.guidance 5 to 7 leaves out the default 4.5"),
        (lambda top: top["graphs"]["average_step"]["inputs"].pop(), "the inputs of graph average_step are"),
    ],
)
def test_each_kind_of_damage_to_drafts_is_named(both_bundle, tmp_path, change, message):
    copy = Path(shutil.copytree(both_bundle, tmp_path / "bundle"))
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_a_bundle_makes_the_best_or_drafts_or_both(demo_bundle, both_bundle, tmp_path):
    drafts = without_best(both_bundle, tmp_path)
    best, both, alone = (Bundle.open(bundle).manifest for bundle in (demo_bundle, both_bundle, drafts))
    assert [each.qualities for each in (best, both, alone)] == [("best",), ("best", "draft"), ("draft",)]
    assert [each.step for each in (best, both, alone)] == ["guided_step", "guided_step", "average_step"]
    assert best.flow is None
    assert both.flow == alone.flow == AverageFlow(steps=4, guidance=(1, 7))


def test_a_file_is_no_bundle(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match="there is no bundle"):
        Bundle.open("a\0b")


def test_an_altered_file_is_named_at_its_first_use(bundle):
    flip_last_bit(bundle / "graphs" / "decoder.onnx")
    opened = Bundle.open(bundle)
    with opened.open_graph("guided_step") as source:
        assert source == (bundle / "graphs" / "guided_step.onnx").read_bytes()
    with pytest.raises(BundleError, match=r"decoder\.onnx was altered"), opened.open_graph("decoder"):
        pass


def with_weights_beside(bundle: Path, *, listed: bool = True) -> Path:
    """Moves the selection's weights to a separate file; if `listed` is false, the graph's entry omits it."""
    graph, data = bundle / "graphs" / "video_select.onnx", bundle / "graphs" / "video_select.onnx.data"
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location=data.name, size_threshold=1024)
    add_file(bundle, "graphs/video_select.onnx", graph.read_bytes())
    add_file(bundle, "graphs/video_select.onnx.data", data.read_bytes())
    if listed:
        edit(bundle, lambda manifest: manifest["graphs"]["video_select"].update(data=["graphs/video_select.onnx.data"]))
    return data


FEEDS = {
    "tokens": np.ones((1, 128, 96), np.float32),
    "text": np.ones((1, 3, 64), np.float32),
    "mask": np.ones((1, 3), np.bool_),
}


@pytest.mark.parametrize("executor", [OnnxCpuExecutor, OpenVinoExecutor])
def test_weights_beside_a_graph_are_used(bundle, executor):
    whole = executor(Bundle.open(bundle)).run("video_select", FEEDS)["sync"]
    with_weights_beside(bundle)
    np.testing.assert_allclose(executor(Bundle.open(bundle)).run("video_select", FEEDS)["sync"], whole, atol=1e-6)


@pytest.mark.parametrize("executor", [OnnxCpuExecutor, OpenVinoExecutor])
def test_altered_weights_beside_a_graph_are_found(bundle, executor):
    flip_last_bit(with_weights_beside(bundle))
    with pytest.raises(BundleError, match=r"video_select\.onnx\.data was altered"):
        executor(Bundle.open(bundle)).run("video_select", FEEDS)


@pytest.mark.parametrize("executor", [OnnxCpuExecutor, OpenVinoExecutor])
def test_weights_that_the_manifest_does_not_give_to_the_graph_are_refused(bundle, executor):
    with_weights_beside(bundle, listed=False)
    with pytest.raises(BundleError, match=r"video_select\.onnx refers to graphs/video_select\.onnx\.data, which"):
        executor(Bundle.open(bundle)).run("video_select", FEEDS)


def test_weights_swapped_while_they_are_loaded_are_refused(bundle):
    data = with_weights_beside(bundle)

    def swap_while_loading() -> None:
        with Bundle.open(bundle).open_graph("video_select") as path:
            assert path == data.resolve().with_suffix("")
            data.rename(data.with_suffix(".hashed"))
            data.write_bytes(data.with_suffix(".hashed").read_bytes())

    with pytest.raises(BundleError, match=r"video_select\.onnx\.data changed while it was being loaded"):
        swap_while_loading()


@pytest.mark.parametrize("executor", [OnnxCpuExecutor, OpenVinoExecutor])
def test_outputs_that_differ_from_the_manifest_are_refused(bundle, executor):
    path = bundle / "graphs" / "video_select.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["whole" if name == "sync" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Concat", ["whole", "whole"], ["sync"], axis=0))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(model, path)
    add_file(bundle, "graphs/video_select.onnx", path.read_bytes())
    with pytest.raises(BackendError, match=r"returned sync as float32 \[2, 8, 96\], not float32 \[1, 8, 96\]"):
        executor(Bundle.open(bundle)).run("video_select", FEEDS)


def test_a_file_swapped_after_its_check_is_not_used(bundle):
    opened = Bundle.open(bundle)
    for name in opened.manifest.files:
        opened.verified_path(name)
    (bundle / "graphs" / "decoder.onnx").write_bytes((bundle / "graphs" / "text_t5.onnx").read_bytes())
    (bundle / "tokenizers" / "t5.json").write_bytes((bundle / "tokenizers" / "clip.json").read_bytes())
    with pytest.raises(BundleError, match=r"decoder\.onnx was altered"):
        OnnxCpuExecutor(opened).load("decoder")
    executor = OnnxCpuExecutor(opened)
    with pytest.raises(BundleError, match=r"t5\.json was altered"):
        TextEncoder(opened, executor, turns=Turns(executor))


def test_a_huge_sparse_file_is_not_read(bundle):
    with (bundle / "graphs" / "decoder.onnx").open("r+b") as file:
        file.truncate(1 << 35)
    edit(bundle, lambda manifest: manifest["files"]["graphs/decoder.onnx"].update(bytes=1 << 35))
    with pytest.raises(BundleError, match="more than 2147483648"), Bundle.open(bundle).open_graph("decoder"):
        pass


def test_a_file_is_hashed_once_until_it_changes(bundle, monkeypatch):
    hashed = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or real(file, kind))
    opened = Bundle.open(bundle)
    assert hashed == []
    path = opened.verified_path("graphs/decoder.onnx")
    opened.verified_path("graphs/decoder.onnx")
    assert hashed == [str(path)]
    times = path.stat()
    flip_last_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the change time still shows it
    with pytest.raises(BundleError, match="was altered"):
        opened.verified_path("graphs/decoder.onnx")


@needs_posix
@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_session_refuses_to_run_in_a_forked_process(demo_bundle, backend):
    """Runs in a separate process, because a fork in pytest's own is not safe."""
    code = f"""
import os
import numpy as np
from selva_runtime import BackendError, Session
session = Session({str(demo_bundle)!r}, backend={backend!r})
frames = np.zeros((16, 3, 64, 64), np.uint8)
session.encode_frames(frames, 0.64)
child = os.fork()
if not child:
    try:
        session.encode_frames(frames, 0.64)
    except BackendError as error:
        print(error, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("before a fork; open one in this process\n")
