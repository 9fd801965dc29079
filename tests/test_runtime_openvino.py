"""OpenVINO: when it is chosen, what it compiles, and what it leaves in memory."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bundles import with_broken_graph
from click.testing import CliRunner
from platforms import needs_linux
from sessions import encode, few_steps

from selva_bench.runtime_side import backend_and_arithmetic
from selva_bundle.bundle import Bundle
from selva_runtime import BackendError, Cancelled, RequestError, Session
from selva_runtime.backends import choose as backends
from selva_runtime.backends.choose import make_executor
from selva_runtime.backends.cores import usable_cores
from selva_runtime.backends.executor import CpuSettings
from selva_runtime.backends.mapped import FileBackedArrays, mappings, release_pages, releasing_pages
from selva_runtime.backends.openvino.activations import has_avx512, separate_activations
from selva_runtime.backends.openvino.cosine import replace_cosines
from selva_runtime.backends.openvino.executor import OpenVinoExecutor, import_openvino
from selva_runtime.backends.openvino.int8 import SETTINGS, quantize_layers
from selva_runtime.command.cli import main

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


@pytest.fixture
def opened(demo_bundle):
    return Bundle.open(demo_bundle)


@pytest.fixture
def worth_compiling(monkeypatch):
    """Treats the demo bundle as if it were of full size."""
    monkeypatch.setattr(backends, "_MIN_COMPILED_BYTES", 0)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_only_a_new_length_compiles_again(opened, monkeypatch):
    executor = make_executor(opened, "openvino", 1)
    compiled, settings = [], executor._settings
    monkeypatch.setattr(executor, "_settings", lambda name: compiled.append(name) or settings(name))
    tokens, text, _ = opened.manifest.graphs["video_select"].inputs
    for segments, words, times in ((1, 3, 1), (1, 7, 1), (2, 7, 2), (2, 4, 2)):
        feeds = {
            "tokens": np.ones((segments, *tokens.shape[1:]), np.float32),
            "text": np.ones((1, words, text.shape[2]), np.float32),
            "mask": np.ones((1, words), np.bool_),
        }
        assert np.isfinite(executor.run("video_select", feeds)["sync"]).all()
        assert compiled == ["video_select"] * times


@pytest.mark.parametrize("threads", [1, 2, None])
def test_the_number_of_threads_is_as_asked_and_affinities_stay(opened, threads):
    executor = make_executor(opened, "openvino", threads)
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    executor.run("video_backbone", {"segments": np.zeros((1, 16, 3, 64, 64), np.uint8)})
    compiled = executor._compiled["video_backbone"][1].get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == (threads or usable_cores())
    if before is not None:
        assert thread_affinities() == {frozenset(before)}


def thread_affinities() -> set[frozenset[int]]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has already ended
            found.add(frozenset(os.sched_getaffinity(int(task.name))))
    return found


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_the_backbone_is_released_after_the_video(demo_bundle, backend):
    session = Session(demo_bundle, backend=backend, threads=1)
    clip = encode(session)
    executor = session._executor
    loaded = executor._models if backend == "openvino" else executor._sessions
    assert set(loaded) == set()
    session.generate(clip, ["rain"], steps=1)
    assert set(loaded) == {"video_select", "conditions", "guided_step", "decoder"}


MAPS = """\
7f0000000000-7f0000003000 r--p 00000000 fe:00 11 /bundle/graphs/decoder.onnx.data
7f0000003000-7f0000004000 rw-p 00003000 fe:00 11 /bundle/graphs/decoder.onnx.data
7f0000005000-7f0000007000 r--s 00000000 fe:00 12 /bundle/my graphs/step.onnx.data
7f000000a000-7f000000b000 rw-s 00000000 fe:00 12 /bundle/my graphs/step.onnx.data
7f000000c000-7f000000d000 r--p 00000000 fe:00 13 /usr/lib/libc.so.6
7f000000e000-7f000000f000 rw-p 00000000 00:00 0
7f0000010000-7f0000011000 r--p 00000000 00:02 14 /var/tmp/#14 (deleted)
"""


def test_mappings_of_files_are_found():
    files = {"/bundle/graphs/decoder.onnx.data", "/bundle/my graphs/step.onnx.data", "/var/tmp/#14 (deleted)"}
    found = [(start & 0xFFFFF, end & 0xFFFFF) for start, end in mappings(MAPS, files)]
    assert found == [(0, 0x3000), (0x5000, 0x7000), (0xA000, 0xB000), (0x10000, 0x11000)]


@needs_linux
def test_arrays_kept_in_a_file_leave_the_process_and_return():
    kept, rng = FileBackedArrays(), np.random.default_rng(0)
    values = [rng.standard_normal((513, 1001)).astype(np.float32) for _ in range(3)]
    held = [kept.keep(v) for v in values]
    assert [array.shape for array in held] == [(513, 1001)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(held, values, strict=True))
    before_kb = mapped_kb()
    assert release_pages(kept.files) >= sum(v.nbytes for v in values)
    assert before_kb - mapped_kb() > 5 << 10
    del kept  # the arrays need the file, not the name
    assert all(np.array_equal(a, b) for a, b in zip(held, values, strict=True))


def test_arrays_stay_in_memory_where_no_file_can_be(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    kept, values = FileBackedArrays(), np.ones(3, np.float32)
    assert kept.keep(values) is values
    assert kept.files == []


@needs_linux
def test_a_private_mapping_that_can_be_written_to_stays(tmp_path):
    file = tmp_path / "weights.data"
    np.zeros(1 << 20, np.uint8).tofile(file)
    mapped = np.memmap(file, np.uint8, mode="c")
    mapped[5] = 1
    with releasing_pages([file]):
        time.sleep(0.3)
    assert (release_pages([file]), mapped[5]) == (0, 1)


@needs_linux
def test_mapped_weights_leave_the_process_and_return(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 8 << 20, dtype=np.uint8)
    file = tmp_path / "weights.data"
    content.tofile(file)
    mapped = np.memmap(file, np.uint8, mode="r")
    total, before_kb = int(mapped.sum()), mapped_kb()
    assert release_pages([file]) == content.nbytes
    assert before_kb - mapped_kb() > 7 << 10
    assert (int(mapped.sum()), bytes(mapped[:99])) == (total, bytes(content[:99]))


def mapped_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:"))


class Watched:
    """An inference request that is cancelled as soon as it runs, and records how it ended."""

    def __init__(self, request, cancel):
        self._request, self._cancel, self.ended = request, cancel, None

    def __getattr__(self, name):
        return getattr(self._request, name)

    def start_async(self):
        self._request.start_async()
        self._cancel.set()

    def wait(self):
        self.ended = "cut short"
        self._request.wait()
        self.ended = "finished"


def test_cancel_stops_inside_a_graph(opened, monkeypatch):
    """On any CPU, the graph must be stopped early, without waiting for its end."""
    monkeypatch.setattr("selva_runtime.backends.openvino.executor.POLL_S", 0.001)
    executor = make_executor(opened, "openvino", 1)
    cancel, requests, finish = threading.Event(), [], executor._finish

    def watched(request, given):
        requests.append(Watched(request, cancel))
        finish(requests[0], given)

    monkeypatch.setattr(executor, "_finish", watched)
    with pytest.raises(Cancelled):
        executor.run("decoder", {"latents": np.zeros((1, 1_000, 20), np.float32)}, cancel)
    assert [request.ended for request in requests] == ["cut short"]
    monkeypatch.undo()
    audio = executor.run("decoder", {"latents": np.ones((1, 8, 20), np.float32)})["audio"]
    assert np.isfinite(audio).all()


def test_cosines_become_polynomials():
    openvino = import_openvino()
    ops = openvino.opset13
    angle = ops.parameter([-1], np.float32, name="angle")
    model = openvino.Model([ops.cos(angle)], [angle])
    assert replace_cosines(openvino, model) == 1
    assert "Cos" not in {node.get_type_name() for node in model.get_ops()}
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for reach, tolerance in ((3.2, 1e-6), (100.0, 1e-5)):  # float32 represents an angle of 100 to within 4e-6
        angles = np.linspace(-reach, reach, 10_001, dtype=np.float32)
        np.testing.assert_allclose(compiled([angles])[0], np.cos(angles.astype(np.float64)), rtol=0, atol=tolerance)


def compiled_products(model):
    """The kernels of all linear layers, in order: MLAS, or oneDNN with the activation in it."""
    openvino = import_openvino()
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return compiled, [
        "mlas" in node["primitiveType"].value for node in nodes if node["layerType"].value == "FullyConnected"
    ]


@pytest.mark.parametrize("gated_first", [True, False])
def test_activations_are_kept_apart_from_products(gated_first):
    """A GELU and a gated SiLU: the same values, by other products."""
    openvino, rng = import_openvino(), np.random.default_rng(0)
    ops = openvino.opset13
    x = ops.parameter([1, 256, 256], np.float32)

    def layer(values, width, inner):
        return ops.matmul(values, ops.constant(rng.standard_normal((width, inner)).astype(np.float32)), False, True)

    hidden = ops.gelu(layer(x, 384, 256), "erf")
    asked, gate = layer(hidden, 256, 384), layer(hidden, 256, 384)
    silu = ops.multiply(asked, ops.sigmoid(asked))
    model = openvino.Model([ops.multiply(silu, gate) if gated_first else ops.multiply(gate, silu)], [x])
    values = rng.standard_normal((1, 256, 256)).astype(np.float32)
    compiled, by_mlas = compiled_products(model)
    assert by_mlas in ([False, False, True], [False, True, False])
    want = compiled([values])[0]
    assert separate_activations(openvino, model) == 2
    compiled, by_mlas = compiled_products(model)
    assert by_mlas == [True, True, True]
    np.testing.assert_allclose(compiled([values])[0], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@needs_linux
def test_the_instruction_set_is_that_of_the_cpu():
    openvino = import_openvino()
    assert has_avx512(openvino, openvino.Core()) == (" avx512f" in Path("/proc/cpuinfo").read_text())


def test_large_layers_become_int8():
    """Two layers, one of them with its weights the other way round; a small one stays."""
    openvino, rng = import_openvino(), np.random.default_rng(0)
    if not has_avx512(openvino, openvino.Core()):
        pytest.skip("OpenVINO multiplies int8 numbers only with AVX-512")
    ops = openvino.opset13
    x = ops.parameter([1, 40, 256], np.float32)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((256, 256), (256, 192), (16, 192))]
    hidden = ops.matmul(ops.matmul(x, ops.constant(weights[0]), False, True), ops.constant(weights[1]), False, False)
    model = openvino.Model([hidden, ops.matmul(hidden, ops.constant(weights[2]), False, True)], [x])
    assert quantize_layers(openvino, model) == 2
    settings = {"INFERENCE_PRECISION_HINT": "f32", **SETTINGS}
    values = rng.standard_normal((1, 40, 256)).astype(np.float32)
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    kernels = [node.get_rt_info()["primitiveType"].value for node in compiled.get_runtime_model().get_ops()]
    assert kernels.count("unknown_i8") == 2  # constants
    found = compiled([values])[0]
    want = values @ weights[0].T @ weights[1]
    assert 0.003 < np.linalg.norm(found - want) / np.linalg.norm(want) < 0.03
    settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"  # only the weights are quantized
    without = openvino.Core().compile_model(model, "CPU", settings)([values])[0]
    assert np.linalg.norm(without - want) < np.linalg.norm(found - want)


def test_int8_is_refused_without_avx512(demo_bundle, tmp_path):
    program = "from selva_runtime.command.start import generate; generate()"
    asked = [sys.executable, "-c", program, ROOT / "examples" / "street.mp4", "-p", "rain", "-o", tmp_path]
    told = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [*asked, "--bundle", demo_bundle, "--precision", "int8"], env=told, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: int8 needs a CPU with AVX-512; choose the precision exact\n"


def test_float16_activations_are_kept_apart_too():
    ops = import_openvino().opset13
    x = ops.parameter([1, 8, 16], np.float16)
    model = import_openvino().Model([ops.gelu(x, "erf")], [x])
    assert separate_activations(import_openvino(), model) == 1
    values = np.linspace(-3, 3, 128, dtype=np.float16).reshape(1, 8, 16)
    found = import_openvino().Core().compile_model(model, "CPU")([values])[0]
    want = [value / 2 * (1 + math.erf(value / 2**0.5)) for value in values.ravel().tolist()]
    np.testing.assert_allclose(found.ravel(), want, atol=5e-3)


def test_without_avx512_activations_of_the_video_graphs_are_kept_apart(demo_bundle):
    """OpenVINO is told to do without AVX-512, and says what it used."""
    program = (
        "import sys; from pathlib import Path; from selva_bundle.bundle import Bundle\n"
        "from selva_runtime.backends.openvino.executor import OpenVinoExecutor\n"
        "executor = OpenVinoExecutor(Bundle.open(Path(sys.argv[1])), threads=1)\n"
        "print(executor._has_avx512)\n"
        "for name in ('video_backbone', 'video_select', 'guided_step'):\n"
        "    executor.load(name)\n"
        "    kinds = [node.get_type_name() for node in executor._models[name].get_ops()]\n"
        "    print(name, kinds.count('Gelu'), kinds.count('Erf'))\n"
    )
    told = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    asked = [sys.executable, "-c", program, demo_bundle]
    done = subprocess.run(asked, env=told, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False\n")
    counts = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:]}
    assert {name: gelus for name, (gelus, _) in counts.items() if name != "guided_step"} == {
        "video_backbone": "0",
        "video_select": "0",
    }
    assert int(counts["video_backbone"][1]) > 0


def test_with_avx512_nothing_is_kept_apart(opened, monkeypatch):
    rewritten = []
    module = "selva_runtime.backends.openvino.executor.separate_activations"
    monkeypatch.setattr(module, lambda openvino, model: rewritten.append(model))
    for has, count in ((True, 0), (False, 2)):
        executor = make_executor(opened, "openvino", 1)
        executor._has_avx512 = has
        for name in ("video_backbone", "video_select", "guided_step"):
            executor.load(name)
        assert len(rewritten) == count


@pytest.mark.parametrize("quality", ["best", "draft"])
def test_the_step_of_either_quality_is_rewritten(both_bundle, monkeypatch, quality):
    tiles = []
    module = "selva_runtime.backends.openvino.executor.use_minimal_filtering"
    monkeypatch.setattr(module, lambda ov, model, **given: tiles.append(given["tiles"]))
    session = Session(both_bundle, backend="openvino", threads=1)
    few_steps(session, encode(session), ["rain"], quality=quality)
    assert tiles == [60, 96]  # the step and the decoder


def test_only_the_decoder_loses_its_cosines(opened):
    executor = make_executor(opened, "openvino", 1)
    left = {}
    for name in ("decoder", "guided_step"):
        executor.load(name)
        left[name] = "Cos" in {node.get_type_name() for node in executor._models[name].get_ops()}
    assert left == {"decoder": False, "guided_step": True}


def test_a_graph_that_cannot_be_loaded_is_one_line(demo_bundle, tmp_path):
    bundle = with_broken_graph(demo_bundle, tmp_path)
    with pytest.raises(BackendError, match=r"OpenVINO cannot load .*video_backbone\.onnx: \S") as caught:
        encode(Session(bundle, backend="openvino"))
    assert "\n" not in str(caught.value)


def test_without_the_package_the_error_names_the_extra(opened, monkeypatch, worth_compiling):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"needs OpenVINO: pip install 'selva-deploy\[openvino\]'") as caught:
        make_executor(opened, "openvino", 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match=r"selva-deploy\[openvino\]"):
        make_executor(opened, "auto", 1, "bf16")
    chosen = backends._best_on_cpu(opened, CpuSettings(), "no GPU backend: none")
    assert chosen.backend == "cpu"
    assert chosen.reason.startswith("no GPU backend: none; slower than openvino: the openvino backend needs OpenVINO")


def test_auto_takes_the_faster_on_a_cpu(opened, monkeypatch, worth_compiling):
    chosen = backends._best_on_cpu(opened, CpuSettings(), "no GPU backend: none")
    assert (chosen.backend, chosen.reason) == (
        "openvino",
        "no GPU backend: none; OpenVINO is faster than ONNX Runtime on x86",
    )
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert backends._best_on_cpu(opened, CpuSettings(), "").backend == "cpu"
    monkeypatch.undo()
    assert backends._best_on_cpu(opened, CpuSettings(), "").backend == "cpu", "the demo bundle is small"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("backend", ["cpu", "cuda", "tensorrt"])
def test_less_exact_is_refused_where_it_cannot_be_had(demo_bundle, backend, precision):
    with pytest.raises(BackendError, match=rf"the {backend} backend cannot compute in {precision}; .* openvino"):
        Session(demo_bundle, backend=backend, precision=precision)


def test_a_cpu_without_bf16_is_refused(opened, monkeypatch):
    core = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setattr(
        "selva_runtime.backends.openvino.executor.import_openvino", lambda: SimpleNamespace(Core=lambda: core)
    )
    with pytest.raises(BackendError, match=r"this CPU has no bfloat16 arithmetic .*; choose the precision exact"):
        OpenVinoExecutor(opened, compute_precision="bf16")
    assert OpenVinoExecutor(opened).backend == "openvino"


def test_an_unknown_precision_is_refused(demo_bundle):
    with pytest.raises(RequestError, match="unknown precision 'int4'; choose one of exact, bf16, int8"):
        Session(demo_bundle, precision="int4")


def test_the_command_refuses_in_one_line(demo_bundle, tmp_path):
    options = ["video.mp4", "-p", "rain", "-o", str(tmp_path / "out"), "--bundle", str(demo_bundle)]
    result = CliRunner().invoke(main, [*options, "--backend", "cpu", "--precision", "bf16"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the cpu backend cannot compute in bf16")
    assert len(result.stderr.splitlines()) == 1


def test_the_benchmark_knows_it_as_a_side():
    assert backend_and_arithmetic("openvino") == ("openvino", "exact")
    assert backend_and_arithmetic("openvino-bf16") == ("openvino", "bf16")
    assert backend_and_arithmetic("openvino-int8") == ("openvino", "int8")


def test_importing_it_reports_nothing_and_leaves_nothing(tmp_path):
    code = "import sys; from selva_runtime.backends.openvino.executor import import_openvino as load; ov = load(); "
    code += "print(callable(ov.convert_model), 'openvino_telemetry' in sys.modules)"
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment = {**kept, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "True False\n"
    assert list(tmp_path.iterdir()) == []
