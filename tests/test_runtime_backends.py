"""Which backend runs, and what it says when it cannot. Where TensorRT is needed, ONNX Runtime plays it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from test_runtime_session import encode, few_steps

from selva_runtime import BackendError, DeviceMemoryError, Session, backends, cuda_device
from selva_runtime.axes import output_shapes
from selva_runtime.bundle import Bundle
from selva_runtime.cuda_device import CudaDevice
from selva_runtime.device_array import Space
from selva_runtime.device_executor import DeviceExecutor
from selva_runtime.executor import make_executor
from selva_runtime.host_device import HostDevice
from selva_runtime.runtime_cache import CacheFile, cache_folder
from selva_runtime.tensorrt_graphs import TensorRtGraphs

NO_GPU = "no NVIDIA GPU with a driver for CUDA 13 can be used here"


@pytest.fixture
def opened(demo_bundle):
    return Bundle.open(demo_bundle)


@pytest.fixture
def a_gpu(monkeypatch):
    """A machine that seems to have a GPU."""
    monkeypatch.setattr(backends, "CudaDevice", FakeGpu)


class FakeGpu(HostDevice):
    name, capability, stream = "Fake 4090", "8.9", 7


def refusing(message):
    def make(bundle, threads, reason):
        raise BackendError(message)

    return make


def gpu_missing():
    """Why there is no GPU; None where there is one."""
    try:
        CudaDevice()
    except BackendError as error:
        return str(error)
    return None


def test_auto_says_why_it_is_the_cpu(opened, monkeypatch):
    def no_device(self):
        raise BackendError(NO_GPU)

    monkeypatch.setattr(CudaDevice, "__init__", no_device)
    executor = make_executor(opened, "auto", 1)
    assert (executor.backend, executor.reason) == ("cpu", f"no GPU backend: {NO_GPU}")
    assert make_executor(opened, "cpu", 1).reason == "asked for"


def test_auto_says_what_it_passed_over(opened, monkeypatch, a_gpu):
    monkeypatch.setitem(backends.MAKERS, "tensorrt", refusing("no engines; run: selva-engines"))
    monkeypatch.setitem(backends.MAKERS, "cuda", refusing("no CUDA provider"))
    executor = make_executor(opened, "auto", 1)
    assert executor.backend == "cpu"
    assert executor.reason == "tensorrt: no engines; run: selva-engines; cuda: no CUDA provider"
    monkeypatch.setitem(backends.MAKERS, "cuda", lambda bundle, threads, reason: SimpleNamespace(reason=reason))
    chosen = make_executor(opened, "auto", 1)
    assert chosen.reason == "the fastest that runs here; tensorrt: no engines; run: selva-engines"


@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_a_gpu_backend_is_refused_where_it_cannot_run(demo_bundle, backend):
    if gpu_missing() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError) as caught:
        Session(demo_bundle, backend=backend)
    assert str(caught.value) == gpu_missing()
    assert "\n" not in str(caught.value)


def test_without_cuda_python_it_says_what_to_install(opened, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(cuda_device, "import_module", missing)
    with pytest.raises(BackendError, match=r"cuda-python is not installed; .* pip install 'selva-deploy\[gpu\]'"):
        make_executor(opened, "cuda", None)


def test_onnx_runtime_without_cuda_says_what_to_install(opened, monkeypatch, a_gpu):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr("selva_runtime.onnx_device.CudaDevice", FakeGpu)
    with pytest.raises(BackendError, match=r"no CUDA support: pip uninstall onnxruntime, then pip install"):
        make_executor(opened, "cuda", None)


def test_a_bundle_without_engines_says_what_to_run(opened, monkeypatch, a_gpu):
    pytest.importorskip("selva_engines")
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(BackendError, match=r"run: selva-engines .* --target tensorrt-rtx"):
        make_executor(opened, "tensorrt", None)


class FakeCuda:
    """cuda-python where the driver is too old, the memory full, …"""

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
def test_what_cuda_says_becomes_one_line(monkeypatch, error, kind, message):
    monkeypatch.setattr(cuda_device, "import_module", lambda name: FakeCuda(error))
    with pytest.raises(kind, match=message) as caught:
        CudaDevice()
    assert type(caught.value) is kind


class FakeContext:
    """An execution context that runs the graph's ONNX file on the addresses it is given."""

    def __init__(self, engine, config=None):
        self.engine, self.config = engine, config
        self.shapes, self.addresses, self.scratch = {}, {}, None

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return self.engine.takes(name, shape)

    def set_tensor_address(self, name, address):
        assert address % 256 == 0
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self):
        return 1000 * self.shapes[next(iter(self.shapes))][0]

    def set_device_memory(self, address, nbytes):
        self.scratch = (address, nbytes)

    def is_stream_capturable(self, stream):
        return True

    def execute_async_v3(self, stream):
        assert stream == FakeGpu.stream
        session, graph = self.engine.session, self.engine.graph
        shapes = self.shapes | output_shapes(graph, self.shapes)
        binding = session.io_binding()
        for bind, ports in ((binding.bind_input, graph.inputs), (binding.bind_output, graph.outputs)):
            for port in ports:
                bind(port.name, "cpu", 0, np.dtype(port.dtype).type, shapes[port.name], self.addresses[port.name])
        session.run_with_iobinding(binding)
        return not self.engine.fails


class FakeEngine:
    def __init__(self, bundle, name, made):
        self.graph, self.made, self.fails = bundle.manifest.graphs[name], made, False
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # unasked, ONNX Runtime pins threads, which another test would then find
        self.session = onnxruntime.InferenceSession(
            bundle.graph_path(name), options, providers=["CPUExecutionProvider"]
        )

    def takes(self, name, shape):
        return len(shape) == len(next(port for port in self.graph.inputs if port.name == name).shape)

    def create_runtime_config(self):
        return FakeConfig(self.made)

    def create_execution_context(self, config):
        self.made.append(FakeContext(self, config))
        return self.made[-1]


class FakeConfig:
    def __init__(self, made):
        self.strategy = self.cache = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return FakeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class FakeCache:
    content = b"kernels"

    def deserialize(self, blob):
        self.content = blob + b", older"
        return True

    def serialize(self):
        return memoryview(self.content)


def fake_engines(bundle, made):
    """The module `selva_engines` with the engines of `bundle` for a library that is not there."""
    library = SimpleNamespace(
        version="1.7.1",
        log=SimpleNamespace(clear=lambda: None, error_line=lambda: "the library's words"),
        api=SimpleNamespace(
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager", LAZY="lazy"),
        ),
    )
    records = {
        "video_backbone": SimpleNamespace(sha256="a" * 64, profile={"segments": {"max": (6, 16, 3, 64, 64)}}),
        "guided_step": SimpleNamespace(sha256="b" * 64, profile={"latents": {"max": (3, 940, 20)}}),
    }
    loader = SimpleNamespace(load=lambda name: FakeEngine(bundle, name, made))
    return SimpleNamespace(
        EngineError=ValueError,
        load_library=lambda target: library,
        find_engines=lambda path, target, version, capability: SimpleNamespace(engines=records),
        EngineLoader=lambda library, engines: loader,
    )


@pytest.fixture
def on_tensorrt(opened, tmp_path, monkeypatch):
    """A session on engines that ONNX Runtime plays, and the contexts that it made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def make(bundle, _threads, reason):
        space = Space(FakeGpu())
        graphs = TensorRtGraphs(bundle, space.device, space, fake_engines(bundle, made), "tensorrt-rtx")
        return DeviceExecutor(bundle, space, graphs, backend="tensorrt", reason=reason)

    monkeypatch.setitem(backends.MAKERS, "tensorrt", make)
    return Session(opened, backend="tensorrt"), made


def test_engines_give_the_sound_of_the_graphs(demo_bundle, on_tensorrt):
    session, made = on_tensorrt
    cpu = Session(demo_bundle, backend="cpu", threads=1)
    prompts = ["rain", "sea", "wind", "bells"]  # one more than the engine takes at once
    stems = session.generate(encode(session), prompts, steps=7)
    for one, other in zip(stems, cpu.generate(encode(cpu), prompts, steps=7), strict=True):
        np.testing.assert_allclose(one.audio, other.audio, rtol=0, atol=1e-5)
    steps = [context for context in made if context.engine.graph.name == "guided_step"]
    assert [context.shapes["latents"] for context in steps] == [(3, 32, 20), (1, 32, 20)]
    others = [context.engine.graph.name for context in made if context not in steps]
    assert len(others) == len(set(others)) == 6
    assert {context.config.strategy for context in made} == {"ours"}
    assert {context.config.dynamic_shapes_kernel_specialization_strategy for context in steps} == {"eager"}
    assert len({id(context.config.cache) for context in made}) == 1
    assert len({context.scratch for context in made if context.scratch[1] >= 3000}) == 1, "one scratch for all"


def test_kernels_that_were_compiled_are_kept(on_tensorrt, opened):
    session, _ = on_tensorrt
    few_steps(session, encode(session), ["rain"])
    (file,) = cache_folder().iterdir()
    assert file.name.startswith("tensorrt-rtx-1.7.1-Fake-4090-")
    again = Session(opened, backend="tensorrt")
    few_steps(again, encode(again), ["rain"])
    assert CacheFile(file.stem).read() == b"kernels, older"


def test_a_failing_engine_is_one_typed_line(on_tensorrt, monkeypatch):
    session, _ = on_tensorrt
    clip = encode(session)
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(BackendError, match=r"tensorrt-rtx 1.7.1: the engine of text_t5 did not run \(the library's"):
        few_steps(session, clip, ["a new prompt"])
    monkeypatch.setattr(session._executor._graphs._api.log, "error_line", lambda: "CUDA error: out of memory")
    with pytest.raises(DeviceMemoryError):
        few_steps(session, clip, ["a new prompt"])


def test_both_libraries_missing_says_what_to_install(opened, monkeypatch, a_gpu):
    engines = pytest.importorskip("selva_engines")

    def missing(target):
        raise engines.EngineLibraryError(f"target {target} needs its module: pip install 'selva-deploy[{target}]'")

    monkeypatch.setattr(engines, "load_library", missing)
    with pytest.raises(BackendError, match=r"selva-deploy\[tensorrt-rtx\]'; target tensorrt needs"):
        make_executor(opened, "tensorrt", None)


def test_the_names_used_of_tensorrt_exist():
    """No GPU is needed to see that nothing is misspelt."""
    api = pytest.importorskip("tensorrt_rtx")
    used = {
        api.IExecutionContext: "set_input_shape set_tensor_address update_device_memory_size_for_shapes "
        "set_device_memory execute_async_v3 is_stream_capturable",
        api.ICudaEngine: "create_runtime_config create_execution_context",
        api.IRuntimeConfig: "set_execution_context_allocation_strategy create_runtime_cache set_runtime_cache "
        "dynamic_shapes_kernel_specialization_strategy",
        api.IRuntimeCache: "serialize deserialize",
        api.ExecutionContextAllocationStrategy: "USER_MANAGED",
        api.DynamicShapesKernelSpecializationStrategy: "EAGER LAZY",
    }
    for kind, names in used.items():
        assert [name for name in names.split() if not hasattr(kind, name)] == []


def test_the_names_used_of_cuda_exist():
    import re

    cuda = pytest.importorskip("cuda.bindings.runtime")
    source = Path(cuda_device.__file__).read_text()
    names = set(re.findall(r'"(cuda[A-Z]\w+)"', source)) | set(re.findall(r"_?cuda\.(cuda\w+)", source))
    errors = {name for name in names if name.startswith("cudaError") and hasattr(cuda.cudaError_t, name)}
    assert len(names) > 20
    assert sorted(name for name in names - errors if not hasattr(cuda, name)) == []


@pytest.fixture
def cache(tmp_path):
    return CacheFile("rtx 1.7/sm89: a b", tmp_path / "caches" / "selva")


def test_a_cache_comes_back_as_it_was(cache):
    assert cache.path.name == "rtx-1.7-sm89-a-b.rtxcache"
    assert cache.read() is None
    for payload in (b"", b"first" * 1000, b"second"):
        assert cache.write(payload)
        assert cache.read() == payload
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_a_damaged_cache_is_not_used(cache, cut):
    cache.write(b"kernels" * 100)
    content = cache.path.read_bytes()
    cache.path.write_bytes(content[:cut] if cut >= 0 else content[:-1] + b"x")
    assert cache.read() is None
    assert cache.write(b"again")
    assert cache.read() == b"again"


@pytest.mark.skipif(sys.platform == "win32", reason="rights and links are POSIX's")
def test_a_cache_that_others_may_write_is_not_used(cache, tmp_path):
    cache.write(b"kernels")
    cache.path.chmod(0o622)
    assert cache.read() is None
    cache.path.chmod(0o600)
    assert cache.read() == b"kernels"
    cache.path.parent.chmod(0o777)
    assert cache.read() is None
    assert not cache.write(b"more")
    cache.path.parent.chmod(0o700)
    target = tmp_path / "elsewhere"
    target.write_bytes(cache.path.read_bytes())
    cache.path.unlink()
    cache.path.symlink_to(target)
    assert cache.read() is None
    assert cache.write(b"own")
    assert (cache.read(), cache.path.is_symlink()) == (b"own", False)
    assert b"kernels" in target.read_bytes()


def test_a_cache_that_cannot_be_written_fails_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = CacheFile("name", tmp_path / "file" / "folder")
    assert cache.read() is None
    assert not cache.write(b"kernels")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/selva-deploy"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/selva-deploy"),
        ("linux", {}, "/home/me/.cache/selva-deploy"),
        ("darwin", {"XDG_CACHE_HOME": "/x/cache"}, "/home/me/Library/Caches/selva-deploy"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/selva-deploy"),
        ("win32", {}, "/home/me/AppData/Local/selva-deploy"),
    ],
)
def test_the_cache_is_where_the_platform_wants_it(monkeypatch, platform, variables, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder().as_posix() == expected


def test_the_command_says_which_backend_and_why(demo_bundle, tmp_path):
    import json
    import subprocess

    from clips import numbered, write_video

    video = write_video(tmp_path / "video.mp4", map(numbered, range(20)))
    command = [sys.executable, "-c", "from selva_runtime.cli import main; main()", str(video), "-p", "rain"]
    options = ["-o", str(tmp_path / "out"), "--bundle", str(demo_bundle), "--steps", "1", "--json"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, env=environment)
    report = json.loads(done.stdout)
    assert report["backend"] == "cpu"
    assert report["backend_reason"].startswith("no GPU backend: ")
    assert f"notice: backend cpu: {report['backend_reason']}" in done.stderr
