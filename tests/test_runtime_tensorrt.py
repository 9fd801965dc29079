"""The TensorRT backend without a GPU: ONNX Runtime simulates the engines, the rest is real."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from bundles import GRAPHS
from gpus import FakeCache, FakeConfig, FakeContext, on_fake_engines
from sessions import encode, few_steps

from selva_bundle.bundle import Bundle
from selva_runtime import BackendError, DeviceMemoryError, Session
from selva_runtime.backends.gpu.kernel_cache import CacheFile, cache_folder


@pytest.fixture
def opened(demo_bundle):
    return Bundle.open(demo_bundle)


@pytest.fixture
def on_tensorrt(opened, tmp_path):
    with on_fake_engines(opened, tmp_path / "cache") as made:
        yield made


def test_contexts_share_their_scratch_and_cache(on_tensorrt):
    session, made = on_tensorrt
    few_steps(session, encode(session), ["rain", "sea", "wind"])  # two stems at once, then one
    steps = [context for context in made if context.engine.graph.name == "guided_step"]
    assert [context.shapes["latents"] for context in steps] == [(2, 32, 20), (1, 32, 20)]
    others = [context.engine.graph.name for context in made if context not in steps]
    assert Counter(others) == Counter(GRAPHS) - Counter(["guided_step"]) + Counter(["conditions", "decoder"])
    assert {context.config.strategy for context in made} == {"ours"}
    assert {context.config.dynamic_shapes_kernel_specialization_strategy for context in steps} == {"eager"}
    assert len({id(context.config.cache) for context in made}) == 1
    assert {context.config.cuda_graph_strategy for context in made if context not in steps} == {"whole"}
    assert len({context.scratch for context in made}) == 1, "one scratch for all"


def saved():
    """The files of the kernel cache, which is written in the background."""
    for thread in threading.enumerate():
        if thread.name == "selva-kernel-cache":
            thread.join()
    return list(cache_folder().iterdir())


def test_compiled_kernels_are_kept(on_tensorrt, opened):
    session, _ = on_tensorrt
    few_steps(session, encode(session), ["rain"])
    (file,) = saved()
    assert file.name.startswith("tensorrt-rtx-1.7.1-Fake-4090-")
    again = Session(opened, backend="tensorrt")
    few_steps(again, encode(again), ["rain"])
    assert saved() == [file]
    assert CacheFile(file.stem).read() == b"kernels, older"


def raising(*_):
    raise RuntimeError("the library is confused")


@pytest.mark.parametrize(
    ("kind", "function", "failing"),
    [
        (FakeConfig, "create_runtime_cache", lambda self: None),
        (FakeConfig, "create_runtime_cache", raising),
        (FakeConfig, "set_runtime_cache", lambda self, cache: False),
        (FakeCache, "deserialize", raising),
        (FakeCache, "serialize", lambda self: None),
        (FakeCache, "serialize", raising),
    ],
)
def test_a_kernel_cache_that_fails_does_not_fail_a_run(demo_bundle, kind, function, failing, tmp_path, monkeypatch):
    with on_fake_engines(demo_bundle, tmp_path / "cache") as (session, _):
        clip = encode(session)  # writes the first file
        (file,) = saved()
        before = file.read_bytes()
        monkeypatch.setattr(kind, function, failing)
        again = Session(demo_bundle, backend="tensorrt")
        (stem,) = few_steps(again, encode(again), ["rain"], steps=1)
        np.testing.assert_array_equal(stem.audio, few_steps(session, clip, ["rain"], steps=1)[0].audio)
        assert saved() == [file]
        assert file.read_bytes() == before


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
