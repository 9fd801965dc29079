"""The real device class and everything above it on a fake GPU that is stricter than a real one."""

from __future__ import annotations

import ctypes
import gc
import threading
import tomllib
import weakref
from pathlib import Path

import numpy as np
import pytest
from bundles import GRAPHS
from device_work import Range
from fake_cuda import FakeCuda
from fake_onnxruntime import FakeOnnxRuntime
from gpus import on_fake_engines
from sessions import encode, few_steps, flow_inputs, moving_frames, ramp

from selva_bench.gpu import compile_kernels
from selva_runtime import BackendError, DeviceMemoryError, Session
from selva_runtime.backends import solvers
from selva_runtime.backends.gpu import cuda_device, cuda_kernels, device_array, executor, onnx_graphs
from selva_runtime.backends.gpu.cuda_device import CudaDevice
from selva_runtime.backends.gpu.device_array import MemoryPool
from selva_runtime.flow import AB2, EULER, integrate

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def cpu(demo_bundle):
    return Session(demo_bundle, backend="cpu", threads=1)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(cuda_device, "_import_cuda", fake.module)
    yield fake
    fake.check()


@pytest.fixture
def ort(cuda, monkeypatch):
    fake = FakeOnnxRuntime(cuda)
    monkeypatch.setattr(onnx_graphs, "import_onnxruntime", lambda kind: fake)
    return fake


@pytest.fixture(params=["cuda", "tensorrt"])
def start(request, cuda, ort, demo_bundle, tmp_path):
    """Opens a session on the fake GPU. The test alone keeps it, so it is gone when the fixture looks for leaks."""
    if request.param == "cuda":
        yield lambda: Session(demo_bundle, backend="cuda")
    else:
        with on_fake_engines(demo_bundle, tmp_path / "cache", cuda):
            yield lambda: Session(demo_bundle, backend="tensorrt")


def test_the_sound_is_that_of_the_cpu_backend(cpu, start):
    session = start()
    options = {"steps": 7, "takes": 2, "negative": "music", "seed": 3}
    ours, expected = (each.generate(encode(each), ["rain", "dog barking"], **options) for each in (session, cpu))
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one.audio, other.audio, **CLOSE)


def test_a_new_prompt_of_another_length_allocates_nothing_and_waits_once(cuda, cpu, start):
    session = start()
    clip, prompt = encode(session), "a dog barks in the wind"
    few_steps(session, clip, ["rain"], steps=11)
    few_steps(session, clip, ["sea"], steps=11)
    cuda.calls.clear()
    (stem,) = few_steps(session, clip, [prompt], steps=11)
    assert cuda.calls["cudaStreamBeginCapture"] == cuda.calls["cudaFree"] == cuda.calls["cudaHostAlloc"] == 0
    assert (cuda.calls["cudaMalloc"], cuda.waits) == (0, 1)
    np.testing.assert_allclose(stem.audio, few_steps(cpu, encode(cpu), [prompt], steps=11)[0].audio, **CLOSE)


@pytest.mark.parametrize("solver", [EULER, AB2])
def test_windows_of_one_shape_share_recordings_and_memory(cuda, cpu, start, solver):
    """Each window holds other latents. The reads of the latents and of the states are the only waits."""
    session, (noise, conditions) = start(), flow_inputs(cpu)
    common = {"steps": 11, "guidance": 3.0, "cancel": None, "on_step": lambda: None, "solver": solver}

    def window(executor, seed):
        held = ramp(noise, 11, seed)
        latents, states = integrate(executor, noise, conditions, **common, held=held, keep_states=True)
        return np.asarray(latents), states

    integrate(session._executor, noise, conditions, **common)  # steps of another kind, on the same plan
    for seed in range(4):
        cuda.calls.clear()
        launches = cuda.driver.calls
        found, expected = window(session._executor, seed), window(cpu._executor, seed)
        if seed > 1:
            assert cuda.calls["cudaStreamBeginCapture"] == cuda.calls["cudaMalloc"] == cuda.calls["cudaHostAlloc"] == 0
            assert cuda.waits == 2
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, **CLOSE)
    recorded = session.info.backend == "tensorrt"  # ONNX Runtime records the graph itself, so the kernels are apart
    each_step = 2 if solver == AB2 else 1
    assert cuda.driver.calls - launches == (0 if recorded else 11 * each_step)


@pytest.mark.parametrize("steps", [1, 7])
def test_ab2_on_the_gpu_is_that_of_the_cpu(cpu, start, steps):
    session = start()
    ours, expected = (few_steps(each, encode(each), ["rain"], steps=steps, solver=AB2)[0] for each in (session, cpu))
    np.testing.assert_allclose(ours.audio, expected.audio, **CLOSE)
    euler = few_steps(cpu, encode(cpu), ["rain"], steps=steps)[0]
    assert np.array_equal(euler.audio, expected.audio) == (steps == 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 130, 20), (3, 7, 5)])
def test_the_kernels_compute_what_numpy_does(cuda, shape):
    """To the last bit, also where NaN stands in values that do not count."""
    pool, rng = MemoryPool(CudaDevice()), np.random.default_rng(1)
    x, y, last, known = (rng.standard_normal(shape, np.float32) for _ in range(4))
    weights = rng.choice(np.array([0, 0.3, 1], np.float32), shape[1])
    known[:, weights == 0] = np.nan
    state = pool.put(x)
    pool.device.kernels.blend(state, pool.put(known), pool.put(weights))
    np.testing.assert_array_equal(np.asarray(state), solvers.blend(x, known, weights))
    for gain, before, told in ((0.5, last, last), (0.0, np.full_like(last, np.nan), None)):
        state, kept = pool.put(x), pool.put(before)
        pool.device.kernels.advance(state, pool.put(y), kept, pool.put(np.array([gain], np.float32)))
        for one, other in zip((state, kept), solvers.advance(x, y, told), strict=True):
            np.testing.assert_array_equal(np.asarray(one), other)


def test_the_ptx_is_made_from_the_source_beside_it():
    assert cuda_kernels.PTX.read_text().startswith(compile_kernels.first_line())


def test_kernels_that_cannot_be_loaded_are_an_error_of_the_backend(cuda, tmp_path, monkeypatch):
    newer = tmp_path / "kernels.ptx"
    newer.write_text(cuda_kernels.PTX.read_text().replace(".version 9.0", ".version 9.9"))
    monkeypatch.setattr(cuda_kernels, "PTX", newer)
    with pytest.raises(BackendError, match=r"^CUDA: cuLibraryLoadData failed: .* \(CUDA_ERROR_UNSUPPORTED_PTX_VERSION"):
        _ = CudaDevice().kernels


def test_a_call_that_fails_leaves_nothing_queued(cuda, start):
    session = start()

    def progress(stage, done, total):
        cuda.calls.clear()
        raise KeyError(stage)

    with pytest.raises(KeyError):
        session.encode_frames(moving_frames(25, 64), 1.0, progress=progress)
    assert cuda.calls["cudaStreamSynchronize"] == 1


class TheirArray:
    """Another library's array, whose values are still being computed in `stream`."""

    def __init__(self, pointer, values, **changes):
        plain = {"shape": values.shape, "typestr": values.dtype.str, "data": (pointer, False), "version": 3}
        self.__cuda_array_interface__ = {**plain, **changes}


class TheirProgram:
    """Another library in the process, with a stream and memory of its own."""

    def __init__(self, cuda):
        self.cuda = cuda
        _, stream = cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)
        self.stream, self.memory = int(stream), []

    def compute(self, values):
        """An array that a kernel will have filled when the stream is there."""
        _, pointer = self.cuda.cudaMalloc(values.nbytes)
        self.memory.append(pointer)

        def run():
            ctypes.memmove(pointer, values.ctypes.data, values.nbytes)

        self.cuda.launch("their kernel", self.stream, run, [], [Range(pointer, values.nbytes)])
        return TheirArray(pointer, values)

    def read(self, interface):
        """The values, read in this stream without waiting for another."""
        found = np.empty(interface["shape"], interface["typestr"])
        self.cuda.pageable(found)
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDefault
        self.cuda.cudaMemcpyAsync(found.ctypes.data, interface["data"][0], found.nbytes, kind, self.stream)
        return found

    def close(self):
        self.cuda.cudaStreamDestroy(self.stream)
        for pointer in self.memory:
            self.cuda.cudaFree(pointer)


@pytest.fixture
def theirs(cuda):
    program = TheirProgram(cuda)
    yield program
    program.close()


def test_the_work_of_another_stream_is_waited_for(cpu, start, theirs):
    session = start()
    frames = moving_frames(25, session.info.image_size)
    clip = session.encode_frames(theirs.compute(frames), 1.0, stream=theirs.stream)
    np.testing.assert_allclose(np.asarray(clip.tokens), encode(cpu).tokens, rtol=0, atol=1e-4)


def test_what_another_program_gets_is_complete(start, theirs):
    session = start()
    clip = encode(session)
    found = theirs.read(clip.tokens.__cuda_array_interface__)
    (stem,) = few_steps(session, clip, ["rain"], device_output=True)
    sound = theirs.read(stem.device_audio.__cuda_array_interface__)
    np.testing.assert_array_equal(found, np.asarray(clip.tokens))
    np.testing.assert_array_equal(sound, stem.audio)


def test_a_clip_goes_to_another_session(cpu, start):
    first, second = start(), start()
    (stem,) = few_steps(second, encode(first), ["rain"])
    np.testing.assert_allclose(stem.audio, few_steps(cpu, encode(cpu), ["rain"])[0].audio, **CLOSE)


class Garbage:
    """A device with memory, page-locked memory, an event and a recording, in cycles that only the collector finds."""

    def __init__(self):
        device = CudaDevice()
        pool = MemoryPool(device)
        self.kept = [device, pool, pool.put(np.arange(5)), device.mark(), device.record(lambda: None)]
        self.dead = [weakref.ref(each) for each in self.kept]

    def drop(self):
        """Leaves everything to the collector."""
        kept, self.kept = self.kept, []
        kept.append(kept)

    def all_dead(self):
        return all(each() is None for each in self.dead)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same-thread", "other-thread"])
def test_garbage_is_collected_during_a_capture(cuda, start, elsewhere):
    session = start()
    clip, other = encode(session), Garbage()

    def collect():
        other.drop()
        if elsewhere:
            thread = threading.Thread(target=gc.collect)
            thread.start()
            thread.join()
        else:
            gc.collect()

    cuda.after["cudaStreamBeginCapture"] = collect
    few_steps(session, clip, ["rain"], steps=6)
    assert other.all_dead()


def test_another_library_frees_during_a_recording(cuda):
    _, pointer = cuda.cudaMalloc(8)
    cuda.after["cudaStreamBeginCapture"] = lambda: cuda.cudaFree(pointer)
    CudaDevice().record(lambda: None)


def test_recordings_of_plans_that_are_gone_do_not_pile_up(cuda, ort, cpu, demo_bundle, monkeypatch):
    monkeypatch.setattr(executor, "_FLOW_PLANS", 1)
    monkeypatch.setattr(executor, "_GRAPH_PLANS", 1)
    monkeypatch.setattr(onnx_graphs, "_MOST_UNUSED", 2)
    session = Session(demo_bundle, backend="cuda")
    for part in range(6):
        duration_s = 0.64 + part / 10
        (stem,) = few_steps(session, encode(session, duration_s), ["rain"], steps=1)
        assert max(len(each.captured) for each in ort.sessions) <= 4
        assert len(ort.sessions) <= 2 * len(GRAPHS)
    expected = few_steps(cpu, encode(cpu, duration_s), ["rain"], steps=1)[0]
    np.testing.assert_allclose(stem.audio, expected.audio, **CLOSE)


def test_what_onnx_runtime_lacks_is_said_with_another_command(ort, demo_bundle):
    ort.without_libraries = True
    with pytest.raises(BackendError, match=r"cannot load .* pip install --upgrade 'onnxruntime-gpu\[cuda,cudnn\]'"):
        Session(demo_bundle, backend="cuda")
    ort.__version__ = "1.30.2"
    with pytest.raises(BackendError, match=r"ONNX Runtime 1.30.2 is too old for CUDA graphs: pip uninstall"):
        Session(demo_bundle, backend="cuda")


def test_the_gpu_extra_brings_what_the_backend_asks_for():
    root = Path(__file__).resolve().parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["gpu"][0] == f"onnxruntime-gpu[cuda,cudnn]>={'.'.join(map(str, onnx_graphs._OLDEST))}"


def test_a_clip_is_read_in_another_thread_during_a_capture(cuda, cpu, start):
    session, found = start(), []
    clip = encode(session)
    reader = threading.Thread(target=lambda: found.append(np.asarray(clip.tokens)))
    expected = np.asarray(clip.tokens)

    def read():
        cuda.after.clear()
        reader.start()
        reader.join(0.2)  # it waits for the end of the capture

    cuda.after["cudaStreamBeginCapture"] = read
    (stem,) = few_steps(session, clip, ["rain"], steps=5)
    reader.join()
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_allclose(stem.audio, few_steps(cpu, encode(cpu), ["rain"], steps=5)[0].audio, **CLOSE)


@pytest.mark.parametrize("share", [0.95, 0.7, 0.5])
def test_little_memory_gives_the_same_sound_or_a_typed_error(cuda, cpu, demo_bundle, ort, share):
    prompts = ["rain", "sea", "wind", "bells"]
    roomy = Session(demo_bundle, backend="cuda")
    few_steps(roomy, encode(roomy), prompts)
    cuda.limit_bytes = int(cuda.used_bytes * share)
    del roomy
    try:
        session = Session(demo_bundle, backend="cuda")
        stems = few_steps(session, encode(session), prompts)
    except DeviceMemoryError:
        assert share < 0.95
        return
    for one, other in zip(stems, few_steps(cpu, encode(cpu), prompts), strict=True):
        np.testing.assert_allclose(one.audio, other.audio, **CLOSE)


def test_copies_are_larger_than_the_staging_memory(cpu, start, monkeypatch):
    monkeypatch.setattr(device_array, "STAGING_BYTES", 5000)
    session = start()
    (stem,) = few_steps(session, encode(session), ["rain"])
    np.testing.assert_allclose(stem.audio, few_steps(cpu, encode(cpu), ["rain"])[0].audio, **CLOSE)


def test_sound_on_the_device_outlives_its_session(start):
    session = start()
    (stem,) = few_steps(session, encode(session), ["rain"], device_output=True)
    del session
    gc.collect()
    np.testing.assert_array_equal(np.asarray(stem.device_audio), stem.audio)


def test_an_error_is_reported_once(cuda):
    device = CudaDevice()
    with pytest.raises(DeviceMemoryError, match="the GPU is out of memory"):
        device.allocate(cuda.limit_bytes + 1)
    pool = MemoryPool(device)
    np.testing.assert_array_equal(np.asarray(pool.put(np.arange(5))), np.arange(5))
