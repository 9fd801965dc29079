"""Tests that need a GPU: CUDA graphs, memory, other libraries' streams and arrays, a fast start.

Run them with `pytest -m gpu`. A backend that is not installed is skipped with its own message.
"""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from gpus import GPU_BACKENDS, needs_gpu, skip_without
from sessions import encode, few_steps, moving_frames

from selva_runtime import Cancelled, DeviceMemoryError, RequestError, Session
from selva_runtime.backends.gpu.cuda_device import CudaDevice
from selva_runtime.backends.gpu.device_array import MemoryPool
from selva_runtime.backends.gpu.flow_plan import STEPS_PER_LAUNCH
from selva_runtime.backends.gpu.kernel_cache import cache_folder

pytestmark = [pytest.mark.gpu, needs_gpu]


@pytest.fixture(scope="module")
def device():
    return CudaDevice()


@pytest.fixture(scope="module", params=GPU_BACKENDS)
def backend(request, gpu_bundles):
    skip_without(request.param, gpu_bundles["fp32"])
    return request.param


@pytest.fixture(scope="module")
def session(backend, gpu_bundles):
    return Session(gpu_bundles["fp32"], backend=backend)


@pytest.fixture(scope="module")
def clip(session):
    return encode(session)


def snr_db(sound, expected) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(sound - expected).sum()))


def test_a_cuda_graph_gives_what_its_steps_give(session, clip):
    recorded = few_steps(session, clip, ["rain", "sea"], steps=2 * STEPS_PER_LAUNCH + 2)
    executor = session._executor
    executor.recorded = False
    try:
        stepped = few_steps(session, clip, ["rain", "sea"], steps=2 * STEPS_PER_LAUNCH + 2)
    finally:
        executor.recorded = True
    for one, other in zip(recorded, stepped, strict=True):
        assert snr_db(one.audio, other.audio) > 80
    again = few_steps(session, clip, ["rain", "sea"], steps=2 * STEPS_PER_LAUNCH + 2)
    for one, other in zip(recorded, again, strict=True):
        assert snr_db(one.audio, other.audio) > 80


def test_tensorrt_steps_are_recorded(session, clip, backend):
    if backend != "tensorrt":
        pytest.skip("ONNX Runtime records for itself")
    few_steps(session, clip, ["rain"], steps=STEPS_PER_LAUNCH)
    plans = session._executor._plans._values.values()
    assert all(plan._recorded for plan in plans)


def test_the_loop_allocates_nothing(session, clip, device, monkeypatch):
    few_steps(session, clip, ["rain"], steps=25)
    few_steps(session, clip, ["rain"], steps=25)
    free = []

    def progress(stage, done, total):
        if stage == "step":
            free.append(device.free_bytes)

    few_steps(session, clip, ["rain"], steps=25, progress=progress)
    assert len(set(free)) == 1
    monkeypatch.setattr(CudaDevice, "allocate", lambda self, nbytes: pytest.fail(f"allocates {nbytes} bytes"))
    few_steps(session, clip, ["rain"], steps=25)


def test_cancel_stops_between_launches(session, clip):
    cancel, steps = threading.Event(), []

    def progress(stage, done, total):
        steps.append(stage)
        if stage == "step":
            cancel.set()

    with pytest.raises(Cancelled):
        few_steps(session, clip, ["rain"], steps=500, progress=progress, cancel=cancel)
    assert steps.count("step") <= 2 * STEPS_PER_LAUNCH
    one, other = (few_steps(session, clip, ["rain"])[0] for _ in range(2))
    assert snr_db(one.audio, other.audio) > 80


def test_a_session_works_from_any_thread(session, clip):
    expected, found = few_steps(session, clip, ["rain"])[0], []
    thread = threading.Thread(target=lambda: found.append(few_steps(session, clip, ["rain"])[0]))
    thread.start()
    thread.join()
    assert snr_db(found[0].audio, expected.audio) > 80


class Foreign:
    """An array of another library."""

    def __init__(self, array, **changes):
        self.array, self.changes = array, changes

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__cuda_array_interface__, **self.changes}


def test_arrays_and_streams_of_others(session, clip):
    frames = moving_frames(25, session.info.image_size)
    other = CudaDevice()
    theirs = MemoryPool(other).put(frames)  # queued on their stream, without waiting
    here = session.encode_frames(Foreign(theirs, stream=other.stream), 1.0, stream=other.stream)
    assert snr_db(np.asarray(here.tokens), np.asarray(clip.tokens)) > 80
    stem = few_steps(session, here, ["rain"], device_output=True, stream=other.stream)[0]
    view = MemoryPool(other).view(stem.device_audio.pointer, stem.device_audio.shape, np.float32, stem)
    np.testing.assert_array_equal(np.asarray(view), stem.audio)


def test_pytorch_takes_the_sound_and_gives_the_frames(session, clip):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    frames = torch.from_numpy(moving_frames(25, session.info.image_size)).cuda(non_blocking=True)
    stream = torch.cuda.current_stream().cuda_stream
    here = session.encode_frames(frames, 1.0, stream=stream)
    stem = few_steps(session, here, ["rain"], device_output=True, stream=stream)[0]
    sound = torch.as_tensor(stem.device_audio, device="cuda")
    np.testing.assert_array_equal(sound.cpu().numpy(), stem.audio)
    assert sound.data_ptr() == stem.device_audio.pointer


def test_host_memory_is_refused_as_a_gpu_array(session):
    frames = moving_frames(25, session.info.image_size)
    described = {"shape": frames.shape, "typestr": "|u1", "data": (frames.ctypes.data, False), "version": 3}

    class Wrong:
        __cuda_array_interface__ = described

    with pytest.raises(RequestError, match="not in the memory of"):
        session.encode_frames(Wrong(), 1.0)


def test_more_than_the_gpu_holds_is_a_typed_error(device):
    pool = MemoryPool(device)
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        pool.empty((2**50,), np.uint8)
    assert np.asarray(pool.put(np.arange(5))).tolist() == [0, 1, 2, 3, 4]


def test_auto_takes_a_gpu(gpu_bundles, backend):
    info = Session(gpu_bundles["fp32"]).info
    assert info.backend in GPU_BACKENDS
    assert info.backend_reason.startswith("the fastest backend that runs here")


START = """
import sys, time
began_s = time.monotonic()
import numpy as np
from selva_runtime import Session
session = Session(sys.argv[1], backend="tensorrt")
clip = session.encode_frames(np.zeros((25, 3, 64, 64), np.uint8), 1.0)
session.generate(clip, ["rain"])
print(session.info.backend_reason, time.monotonic() - began_s)
"""


def test_the_second_start_is_faster(gpu_bundles, backend, tmp_path, monkeypatch):
    if backend != "tensorrt":
        pytest.skip("only TensorRT-RTX compiles at its start")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", START, str(gpu_bundles["fp16"])]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    if "tensorrt-rtx" not in first:
        pytest.skip("TensorRT proper compiles when it builds")
    assert list(cache_folder().glob("*.rtxcache"))
    assert float(second.split()[-1]) < float(first.split()[-1])
