"""Which backend runs, and what the message says if it cannot."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
from clips import numbered, write_video
from gpus import WHY_NO_GPU, FakeGpu, needs_no_gpu

from selva_bundle.bundle import Bundle
from selva_runtime import BackendError, DeviceMemoryError, Session
from selva_runtime.backends import choose as backends
from selva_runtime.backends.choose import make_executor
from selva_runtime.backends.gpu import cuda_device
from selva_runtime.backends.gpu.cuda_device import CudaDevice
from selva_runtime.backends.gpu.onnx_graphs import OnnxGraphs

NO_GPU = "no NVIDIA GPU with a driver for CUDA 13 can be used here"


@pytest.fixture
def opened(demo_bundle):
    return Bundle.open(demo_bundle)


@pytest.fixture
def a_gpu(monkeypatch):
    """Makes the machine seem to have a GPU."""
    monkeypatch.setattr(backends, "CudaDevice", FakeGpu)


FP32_IS_SLOW = "this bundle is fp32, which is slow on a GPU: export it with --precision fp16"


def on_a_gpu(bundle, settings, reason):
    """Makes an executor that is nothing but its name."""
    return SimpleNamespace(reason=reason, backend="cuda", notice="")


def refusing(message):
    def make(*_):
        raise BackendError(message)

    return make


def test_auto_reports_why_it_chose_the_cpu(opened, monkeypatch):
    def no_device(self):
        raise BackendError(NO_GPU)

    monkeypatch.setattr(CudaDevice, "__init__", no_device)
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: False)
    executor = make_executor(opened, "auto", 1)
    assert (executor.backend, executor.reason) == ("cpu", f"no GPU backend: {NO_GPU}")
    assert executor.notice == "CPU (no NVIDIA GPU found)"
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: True)
    assert make_executor(opened, "auto", 1).notice == f"CPU (the NVIDIA GPU cannot be used: {NO_GPU})"
    asked = make_executor(opened, "cpu", 1)
    assert (asked.reason, asked.notice) == ("asked for", "")


def test_openvino_is_named_in_the_notice(opened, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(backends, "_MIN_COMPILED_BYTES", 0)
    monkeypatch.setattr(backends, "CudaDevice", refusing(NO_GPU))
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(backends.platform, "machine", lambda: "x86_64")
    assert make_executor(opened, "auto", 1).notice == "CPU with OpenVINO (no NVIDIA GPU found)"


def test_a_gpu_is_seen_on_the_bus(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_device.shutil, "which", lambda name: None)
    assert not cuda_device.has_nvidia_gpu(tmp_path / "absent")
    for name, vendor, kind in (("a", "0x10de", "0x0c0330"), ("b", "0x8086", "0x030000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert not cuda_device.has_nvidia_gpu(tmp_path)  # another vendor's GPU, and NVIDIA's USB port
    (tmp_path / "b" / "vendor").write_text("0x10de\n")
    assert cuda_device.has_nvidia_gpu(tmp_path)
    monkeypatch.setattr(cuda_device.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert cuda_device.has_nvidia_gpu(tmp_path / "absent")


def test_auto_reports_the_backends_it_skipped(opened, monkeypatch, a_gpu):
    monkeypatch.setitem(backends.MAKERS, "tensorrt", refusing("no engines; run: selva-engines"))
    monkeypatch.setitem(backends.MAKERS, "cuda", refusing("no CUDA provider"))
    executor = make_executor(opened, "auto", 1)
    assert executor.backend == "cpu"
    assert executor.reason == "tensorrt: no engines; run: selva-engines; cuda: no CUDA provider"
    assert executor.notice == f"CPU (the NVIDIA GPU cannot be used: {executor.reason})"
    monkeypatch.setitem(backends.MAKERS, "cuda", on_a_gpu)
    chosen = make_executor(opened, "auto", 1)
    assert chosen.reason == "the fastest backend that runs here; tensorrt: no engines; run: selva-engines"
    assert (
        chosen.notice == f"NVIDIA GPU with CUDA (the faster tensorrt: no engines; run: selva-engines; {FP32_IS_SLOW})"
    )


def test_an_fp32_bundle_on_a_gpu_is_said_to_be_slow(opened, demo_bundle_fp16, monkeypatch, a_gpu):
    for name in ("cuda", "tensorrt"):
        monkeypatch.setitem(backends.MAKERS, name, on_a_gpu)
        assert make_executor(opened, name, 1).notice == f"{backends.TITLES[name]} ({FP32_IS_SLOW})"
        assert make_executor(Bundle.open(demo_bundle_fp16), name, 1).notice == ""


def test_bf16_beside_a_gpu_says_that_it_is_not_used(opened, monkeypatch):
    monkeypatch.setitem(backends.MAKERS, "openvino", lambda *_: SimpleNamespace(backend="openvino"))
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: False)
    assert make_executor(opened, "auto", 1, "bf16").notice == "CPU with OpenVINO (it computes in bf16)"
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: True)
    assert "NVIDIA GPU is not used, choose the precision exact" in make_executor(opened, "auto", 1, "bf16").notice


@needs_no_gpu
@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_a_gpu_backend_is_refused_where_it_cannot_run(demo_bundle, backend):
    with pytest.raises(BackendError) as caught:
        Session(demo_bundle, backend=backend)
    assert str(caught.value) == WHY_NO_GPU
    assert "\n" not in str(caught.value)


def test_without_cuda_python_the_error_names_the_extra(opened, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(cuda_device, "import_module", missing)
    with pytest.raises(BackendError, match=r"cuda-python is not installed; .* pip install 'selva-deploy\[gpu\]'"):
        make_executor(opened, "cuda", None)


def test_onnx_runtime_without_cuda_names_the_package(opened, monkeypatch, a_gpu):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr("selva_runtime.backends.gpu.onnx_graphs.CudaDevice", FakeGpu)
    with pytest.raises(BackendError, match=r"no CUDA support: pip uninstall onnxruntime onnxruntime-gpu, then"):
        make_executor(opened, "cuda", None)


def test_a_bundle_without_engines_names_the_command(opened, monkeypatch, a_gpu):
    pytest.importorskip("selva_engines")
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BackendError, match=r"run: selva-engines .* --target tensorrt-rtx"):
        make_executor(opened, "tensorrt", None)


def test_steps_without_a_cuda_graph_are_reported(opened, monkeypatch, a_gpu):
    asked = []

    def session(self, path, *, cuda_graph):
        asked.append(cuda_graph)
        if cuda_graph:
            raise BackendError("a node is on the CPU")
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"])

    monkeypatch.setattr(FakeGpu, "kind", "cuda")
    monkeypatch.setattr("selva_runtime.backends.gpu.onnx_graphs.import_onnxruntime", lambda kind: onnxruntime)
    monkeypatch.setattr(OnnxGraphs, "_session", session)
    executor = make_executor(opened, "cuda", None)
    assert asked == [True, False]
    assert executor.reason == "asked for; on Fake 4090; steps run without a CUDA graph (a node is on the CPU)"


class BrokenCuda:
    """Replaces cuda-python, to simulate an old driver, full memory and other failures."""

    cudaError_t = SimpleNamespace(cudaSuccess=SimpleNamespace(name="cudaSuccess"))  # noqa: N815

    def __init__(self, error):
        self.error = SimpleNamespace(name=error)

    def cudaGetErrorString(self, error):  # noqa: N802
        return None, b"the device fell over"

    def cudaGetLastError(self):  # noqa: N802
        return (self.error,)

    def __getattr__(self, name):
        return lambda *arguments: (self.error, None)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("cudaErrorNoDevice", BackendError, "no NVIDIA GPU with a driver"),
        ("cudaErrorInsufficientDriver", BackendError, "no NVIDIA GPU with a driver"),
        ("cudaErrorMemoryAllocation", DeviceMemoryError, "the GPU is out of memory"),
        ("cudaErrorLaunchFailure", BackendError, "cudaGetDeviceCount failed: the device fell over"),
    ],
)
def test_cuda_errors_are_one_line(monkeypatch, error, kind, message):
    monkeypatch.setattr(cuda_device, "import_module", lambda name: BrokenCuda(error))
    with pytest.raises(kind, match=message) as caught:
        CudaDevice()
    assert type(caught.value) is kind


def test_both_libraries_missing_names_the_extras(opened, monkeypatch, a_gpu):
    engines = pytest.importorskip("selva_engines")

    def missing(target):
        raise engines.EngineLibraryError(f"target {target} needs its module: pip install 'selva-deploy[{target}]'")

    monkeypatch.setattr(engines, "load_library", missing)
    with pytest.raises(BackendError, match=r"selva-deploy\[tensorrt-rtx\]'; target tensorrt needs"):
        make_executor(opened, "tensorrt", None)


def test_the_names_used_of_cuda_exist():
    import re

    cuda = pytest.importorskip("cuda.bindings.runtime")
    source = Path(cuda_device.__file__).read_text()
    names = set(re.findall(r'"(cuda[A-Z]\w+)"', source)) | set(re.findall(r"_?cuda\.(cuda\w+)", source))
    errors = {name for name in names if name.startswith("cudaError") and hasattr(cuda.cudaError_t, name)}
    assert len(names) > 20
    assert sorted(name for name in names - errors if not hasattr(cuda, name)) == []


def test_the_command_reports_the_backend_and_why(demo_bundle, tmp_path):
    import json
    import subprocess

    video = write_video(tmp_path / "video.mp4", map(numbered, range(20)))
    command = [sys.executable, "-c", "from selva_runtime.command.cli import main; main()", str(video), "-p", "rain"]
    options = ["-o", str(tmp_path / "out"), "--bundle", str(demo_bundle), "--steps", "1", "--json"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, env=environment)
    report = json.loads(done.stdout)
    assert report["backend"] == "cpu"
    assert report["backend_reason"].startswith("no GPU backend: ")
    assert "\nnotice: CPU (" in done.stderr
    assert report["backend_reason"] not in done.stderr
