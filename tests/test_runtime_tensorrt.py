"""The TensorRT backend without a GPU: ONNX Runtime simulates the engines, the rest is real."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from test_runtime_backends import FakeGpu
from test_runtime_session import encode, few_steps

from selva_bundle.bundle import Bundle
from selva_runtime import BackendError, DeviceMemoryError, Session
from selva_runtime.backends import choose as backends
from selva_runtime.backends.axes import output_shapes
from selva_runtime.backends.gpu.device_array import MemoryPool
from selva_runtime.backends.gpu.executor import DeviceExecutor
from selva_runtime.backends.gpu.kernel_cache import CacheFile, cache_folder
from selva_runtime.backends.gpu.tensorrt_graphs import TensorRtGraphs


@pytest.fixture
def opened(demo_bundle):
    return Bundle.open(demo_bundle)


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
        options.intra_op_num_threads = 1  # else ONNX Runtime pins threads, which another test would find
        self.session = onnxruntime.InferenceSession(
            bundle.read(self.graph.file), options, providers=["CPUExecutionProvider"]
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
    """A fake `selva_engines` with engines of `bundle`, for a library that is not installed."""
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
    """A session on simulated engines, and the contexts that it made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def make(bundle, _threads, reason):
        pool = MemoryPool(FakeGpu())
        graphs = TensorRtGraphs(bundle, pool.device, pool, fake_engines(bundle, made), "tensorrt-rtx")
        return DeviceExecutor(bundle, pool, graphs, backend="tensorrt", reason=reason)

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
    with pytest.raises(BackendError, match=r"tensorrt-rtx 1.7.1: the engine for text_t5 failed to run \(the library's"):
        few_steps(session, clip, ["a new prompt"])
    monkeypatch.setattr(session._executor._graphs._api.log, "error_line", lambda: "CUDA error: out of memory")
    with pytest.raises(DeviceMemoryError):
        few_steps(session, clip, ["a new prompt"])


def test_the_names_used_of_tensorrt_exist():
    """Catches misspelt names without a GPU."""
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
