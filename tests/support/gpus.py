"""GPUs: whether there is one, and the GPU backends without one.

Everything except the calls of CUDA and TensorRT is the code that runs on a GPU. The device is ordinary memory, and ONNX
Runtime's CPU provider runs the graphs and the fake engines on addresses in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from device_work import Range
from fake_cuda import FakeCuda

from selva_bundle.bundle import Bundle
from selva_runtime import BackendError, Session
from selva_runtime.backends import choose as backends
from selva_runtime.backends.axes import output_shapes
from selva_runtime.backends.choose import make_executor
from selva_runtime.backends.gpu.cuda_device import CudaDevice
from selva_runtime.backends.gpu.device_array import MemoryPool
from selva_runtime.backends.gpu.executor import DeviceExecutor
from selva_runtime.backends.gpu.host_device import HostDevice
from selva_runtime.backends.gpu.onnx_graphs import OnnxGraphs
from selva_runtime.backends.gpu.tensorrt_graphs import TensorRtGraphs

GPU_BACKENDS = ("cuda", "tensorrt")


def _why_no_gpu() -> str:
    """Why there is no GPU; empty if there is one."""
    try:
        CudaDevice()
    except BackendError as error:
        return str(error)
    return ""


WHY_NO_GPU = _why_no_gpu()
needs_gpu = pytest.mark.skipif(bool(WHY_NO_GPU), reason=WHY_NO_GPU)
needs_no_gpu = pytest.mark.skipif(not WHY_NO_GPU, reason="there is a GPU")


class FakeGpu(HostDevice):
    name, capability, stream = "Fake 4090", "8.9", 7


def build_all_engines(bundle: Path) -> None:
    """Builds engines for this GPU with every library that can."""
    try:
        import selva_engines
    except ImportError:
        return
    for target in selva_engines.installed_targets():
        asked = (CudaDevice().capability,) if target == "tensorrt-rtx" else ()
        try:
            selva_engines.build_engines(selva_engines.BuildRequest(bundle=bundle, target=target, capabilities=asked))
        except selva_engines.EngineError as error:
            print(f"{target}: {error}")  # such as RTX on an unsupported GPU


def skip_without(backend: str, bundle: Path) -> None:
    """Skips the test with the backend's own message if it cannot run here."""
    try:
        make_executor(Bundle.open(bundle), backend, None)
    except BackendError as error:
        pytest.skip(str(error))


@contextmanager
def on_host(bundle, device=None, **options):
    """Opens a session whose `cuda` backend runs in ordinary memory."""

    def make(opened, _threads, reason):
        graphs = OnnxGraphs(opened, device or HostDevice(), threads=1)
        return DeviceExecutor(opened, MemoryPool(graphs._device), graphs, backend="cuda", reason=reason, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.MAKERS, "cuda", make)
        yield Session(bundle, backend="cuda")


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
        session, graph = self.engine.session, self.engine.graph
        shapes = self.shapes | output_shapes(graph, self.shapes)
        binding = session.io_binding()
        touched = []
        for bind, ports in ((binding.bind_input, graph.inputs), (binding.bind_output, graph.outputs)):
            touched.append([])
            for port in ports:
                kind, shape, address = np.dtype(port.dtype), shapes[port.name], self.addresses[port.name]
                bind(port.name, "cpu", 0, kind.type, shape, address)
                touched[-1].append(Range(address, math.prod(shape) * kind.itemsize))
        reads, writes = touched

        def run():
            session.run_with_iobinding(binding)

        return self.engine.launch(graph.name, stream, run, reads, [*writes, Range(*self.scratch)])


class FakeEngine:
    def __init__(self, bundle, name, made, cuda):
        self.graph, self.made, self.cuda = bundle.manifest.graphs[name], made, cuda
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # else ONNX Runtime pins threads, which another test would find
        self.session = onnxruntime.InferenceSession(
            bundle.read(self.graph.file), options, providers=["CPUExecutionProvider"]
        )

    def launch(self, name, stream, run, reads, writes):
        """Queues `run` on the fake CUDA. Without one it runs at once."""
        if self.cuda is not None:
            return self.cuda.launch(name, stream, run, reads, writes) == self.cuda.cudaError_t.cudaSuccess
        assert stream == FakeGpu.stream
        run()
        return True

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


def fake_engines(bundle, made, cuda=None):
    """A fake `selva_engines` with engines of `bundle`, for a library that is not installed."""
    library = SimpleNamespace(
        version="1.7.1",
        log=SimpleNamespace(clear=lambda: None, error_line=lambda: "the library's words"),
        api=SimpleNamespace(
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager", LAZY="lazy"),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        ),
    )
    records = {
        "video_backbone": SimpleNamespace(sha256="a" * 64, profile={"segments": {"max": (6, 16, 3, 64, 64)}}),
        "guided_step": SimpleNamespace(sha256="b" * 64, profile={"latents": {"max": (3, 940, 20)}}),
    }
    loader = SimpleNamespace(load=lambda name: FakeEngine(bundle, name, made, cuda))
    return SimpleNamespace(
        EngineError=ValueError,
        load_library=lambda target: library,
        find_engines=lambda path, target, version, capability: SimpleNamespace(engines=records),
        EngineLoader=lambda library, engines: loader,
    )


@contextmanager
def on_fake_engines(
    bundle: Path, folder: Path, cuda: FakeCuda | None = None
) -> Iterator[tuple[Session, list[FakeContext]]]:
    """Opens a session whose `tensorrt` backend runs fake engines and caches in `folder`; yields their contexts too.

    With `cuda` the device is the real class above that fake, otherwise it is ordinary memory.
    """
    made: list[FakeContext] = []

    def make(opened, _threads, reason):
        space = MemoryPool(FakeGpu() if cuda is None else CudaDevice())
        graphs = TensorRtGraphs(opened, space.device, space, fake_engines(opened, made, cuda), "tensorrt-rtx")
        return DeviceExecutor(opened, space, graphs, backend="tensorrt", reason=reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setitem(backends.MAKERS, "tensorrt", make)
        yield Session(bundle, backend="tensorrt"), made
