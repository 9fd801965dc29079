"""The fake GPU refuses or reports each thing that a real one would do wrong, silently or not."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest
from cuda.bindings import runtime as real
from device_work import Range
from fake_cuda import FakeCuda
from fake_onnxruntime import FakeOnnxRuntime, RunOptions
from onnx import TensorProto, helper

ERROR, MODE = real.cudaError_t, real.cudaStreamCaptureMode
GLOBAL, LOCAL, RELAXED = (
    getattr(MODE, f"cudaStreamCaptureMode{name}") for name in ("Global", "ThreadLocal", "Relaxed")
)
DEFAULT = real.cudaMemcpyKind.cudaMemcpyDefault
SIZE = 64


@pytest.fixture
def cuda():
    return FakeCuda()


def make(cuda, name, *arguments):
    """Call a function that must succeed, and return its result."""
    error, *found = getattr(cuda, name)(*arguments)
    assert error == ERROR.cudaSuccess
    return found[0] if found else None


@pytest.fixture
def stream(cuda):
    return make(cuda, "cudaStreamCreateWithFlags", real.cudaStreamNonBlocking)


@pytest.fixture
def other(cuda):
    return make(cuda, "cudaStreamCreateWithFlags", real.cudaStreamNonBlocking)


@pytest.fixture
def device(cuda):
    return make(cuda, "cudaMalloc", SIZE)


@pytest.fixture
def pinned(cuda):
    return make(cuda, "cudaHostAlloc", SIZE, real.cudaHostAllocDefault)


def values(pointer, nbytes=SIZE):
    """The bytes that the host would see there."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))


def fill(cuda, stream, pointer, value):
    """Queue a kernel that writes the memory."""

    def run():
        values(pointer)[:] = value

    assert cuda.launch("fill", stream, run, [], [Range(pointer, SIZE)]) == ERROR.cudaSuccess


def copy(cuda, target, source, stream, nbytes=SIZE):
    return cuda.cudaMemcpyAsync(target, source, nbytes, DEFAULT, stream)[0]


def record(cuda, stream):
    event = make(cuda, "cudaEventCreateWithFlags", real.cudaEventDisableTiming)
    make(cuda, "cudaEventRecord", event, stream)
    return event


def test_work_runs_when_it_is_waited_for(cuda, stream, device, pinned):
    values(pinned)[:] = 1
    fill(cuda, stream, device, 7)
    assert copy(cuda, pinned, device, stream) == ERROR.cudaSuccess
    assert (values(pinned) == 255).all(), "garbage until somebody waits"
    make(cuda, "cudaStreamSynchronize", stream)
    assert (values(pinned) == 7).all()
    assert (cuda.waits, cuda.violations) == (1, [])


def test_only_what_is_needed_runs(cuda, stream, other, device, pinned):
    fill(cuda, stream, device, 7)
    first = record(cuda, stream)
    fill(cuda, other, pinned, 8)
    fill(cuda, stream, device, 9)
    make(cuda, "cudaEventSynchronize", first)
    assert (values(device) == 255).all(), "the second kernel has made it garbage again"
    assert (values(pinned) == 255).all()
    make(cuda, "cudaDeviceSynchronize")
    assert (values(device) == 9).all()
    assert (values(pinned) == 8).all()


def test_streams_are_ordered_by_events_alone(cuda, stream, other, device, pinned):
    fill(cuda, stream, device, 7)
    copy(cuda, pinned, device, other)
    make(cuda, "cudaStreamSynchronize", other)
    assert (values(pinned) == 255).all()
    assert cuda.violations == ["race: copy is not ordered after fill"]
    fill(cuda, stream, device, 8)
    make(cuda, "cudaStreamWaitEvent", other, record(cuda, stream), 0)
    copy(cuda, pinned, device, other)
    make(cuda, "cudaStreamSynchronize", other)
    assert (values(pinned) == 8).all()
    assert len(cuda.violations) == 1


def test_the_legacy_stream_waits_for_blocking_streams_alone(cuda, stream, device, pinned):
    blocking = make(cuda, "cudaStreamCreateWithFlags", real.cudaStreamDefault)
    fill(cuda, blocking, device, 7)
    copy(cuda, pinned, device, 0)
    make(cuda, "cudaStreamSynchronize", 0)
    assert (values(pinned) == 7).all()
    fill(cuda, stream, device, 8)
    copy(cuda, pinned, device, 0)
    assert cuda.violations == ["race: copy is not ordered after fill"]


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        ("cudaEventSynchronize", "event 0x5 is unknown"),
        ("cudaStreamSynchronize", "stream 0x5 is unknown"),
        ("cudaGraphExecDestroy", "graphexec 0x5 is unknown"),
    ],
)
def test_unknown_handles_are_reported(cuda, function, wrong):
    assert getattr(cuda, function)(5)[0] == ERROR.cudaErrorInvalidResourceHandle
    assert cuda.violations == [wrong]


def test_handles_end(cuda, stream, device):
    event = record(cuda, stream)
    make(cuda, "cudaEventDestroy", event)
    assert cuda.cudaStreamWaitEvent(stream, event, 0) == (ERROR.cudaErrorInvalidResourceHandle,)
    assert cuda.cudaEventDestroy(event) == (ERROR.cudaErrorInvalidResourceHandle,)
    assert cuda.violations == [f"event {int(event):#x} was destroyed"] * 2
    make(cuda, "cudaFree", device)
    assert cuda.cudaFree(device) == (ERROR.cudaErrorInvalidValue,)
    assert "was freed before" in cuda.violations[2]
    assert make(cuda, "cudaMalloc", SIZE) != device, "an address is never given out again"


def test_memory_has_ends_and_an_end(cuda, stream, device, pinned):
    assert copy(cuda, device, pinned, stream, SIZE + 1) == ERROR.cudaErrorInvalidValue
    assert copy(cuda, device, np.zeros(SIZE, np.uint8).ctypes.data, stream) == ERROR.cudaErrorInvalidValue
    make(cuda, "cudaFree", device)
    assert copy(cuda, device, pinned, stream) == ERROR.cudaErrorInvalidValue
    for found, expected in zip(cuda.violations, ("pass the end of 64", "in no allocation", "was freed"), strict=True):
        assert expected in found


def test_freeing_waits_for_the_device_but_page_locked_memory_does_not(cuda, stream, other, device, pinned):
    fill(cuda, stream, pinned, 7)
    make(cuda, "cudaFree", device)
    assert (values(pinned) == 7).all()
    fill(cuda, other, pinned, 8)
    make(cuda, "cudaFreeHost", pinned)
    assert cuda.violations == [f"page-locked memory at {pinned:#x} is freed while queued work uses it"]
    make(cuda, "cudaStreamSynchronize", other)
    assert "fill runs on memory that is gone" in cuda.violations[1]


def test_a_page_locked_source_stays_as_it_is(cuda, stream, device, pinned):
    values(pinned)[:] = 1
    copy(cuda, device, pinned, stream)
    values(pinned)[3] = 2
    make(cuda, "cudaStreamSynchronize", stream)
    assert cuda.violations == ["the page-locked source of copy was changed before it was read"]


def test_pageable_memory_synchronises_and_is_not_captured(cuda, stream, device):
    host = cuda.pageable(np.arange(SIZE, dtype=np.uint8))
    fill(cuda, stream, device, 7)
    assert copy(cuda, host.ctypes.data, device, stream) == ERROR.cudaSuccess
    assert (host == 7).all()
    make(cuda, "cudaStreamBeginCapture", stream, RELAXED)
    assert copy(cuda, device, host.ctypes.data, stream) == ERROR.cudaErrorStreamCaptureUnsupported
    assert cuda.cudaStreamEndCapture(stream) == (ERROR.cudaErrorStreamCaptureInvalidated, None)


UNSAFE = {
    "cudaMalloc": lambda cuda, stream, device, pinned: (SIZE,),
    "cudaFree": lambda cuda, stream, device, pinned: (device,),
    "cudaHostAlloc": lambda cuda, stream, device, pinned: (SIZE, 0),
    "cudaFreeHost": lambda cuda, stream, device, pinned: (pinned,),
    "cudaStreamSynchronize": lambda cuda, stream, device, pinned: (2,),
    "cudaEventQuery": lambda cuda, stream, device, pinned: (record(cuda, 2),),
    "cudaEventSynchronize": lambda cuda, stream, device, pinned: (record(cuda, 2),),
}
"""Calls that a capture forbids, and their arguments. None of them concerns the capturing stream."""


@pytest.mark.parametrize("function", UNSAFE)
@pytest.mark.parametrize("mode", [GLOBAL, LOCAL, RELAXED], ids=["global", "local", "relaxed"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same-thread", "other-thread"])
def test_a_capture_forbids_unsafe_calls(cuda, stream, device, pinned, function, mode, elsewhere):
    make(cuda, "cudaStreamBeginCapture", stream, mode)
    arguments, found = UNSAFE[function](cuda, stream, device, pinned), []

    def call():
        found.append(getattr(cuda, function)(*arguments)[0])

    thread = threading.Thread(target=call)
    if elsewhere:
        thread.start()
        thread.join()
    else:
        call()
    forbidden = mode == GLOBAL or (mode == LOCAL and not elsewhere)
    assert found == [ERROR.cudaErrorStreamCaptureUnsupported if forbidden else ERROR.cudaSuccess]
    ended = ERROR.cudaErrorStreamCaptureInvalidated if forbidden else ERROR.cudaSuccess
    assert cuda.cudaStreamEndCapture(stream)[0] == ended


def test_no_capture_waits_for_itself_or_for_other_streams(cuda, stream, other):
    make(cuda, "cudaStreamBeginCapture", other, RELAXED)
    executable = make(cuda, "cudaGraphInstantiate", make(cuda, "cudaStreamEndCapture", other), 0)
    for function, *arguments in (
        ("cudaStreamSynchronize", stream),
        ("cudaDeviceSynchronize",),
        ("cudaGraphUpload", executable, stream),
    ):
        make(cuda, "cudaStreamBeginCapture", stream, RELAXED)
        assert getattr(cuda, function)(*arguments)[0] == ERROR.cudaErrorStreamCaptureUnsupported
        assert cuda.cudaStreamEndCapture(stream) == (ERROR.cudaErrorStreamCaptureInvalidated, None)
    before = record(cuda, other)
    make(cuda, "cudaStreamBeginCapture", stream, RELAXED)
    assert cuda.cudaStreamWaitEvent(stream, before, 0) == (ERROR.cudaErrorStreamCaptureIsolation,)
    assert cuda.cudaStreamEndCapture(stream)[0] == ERROR.cudaErrorStreamCaptureInvalidated
    make(cuda, "cudaStreamBeginCapture", stream, RELAXED)
    assert cuda.cudaEventSynchronize(record(cuda, stream)) == (ERROR.cudaErrorCapturedEvent,)


def test_the_legacy_stream_does_not_meet_a_capture(cuda, device, stream):
    blocking = make(cuda, "cudaStreamCreateWithFlags", real.cudaStreamDefault)
    make(cuda, "cudaStreamBeginCapture", blocking, RELAXED)
    assert cuda.launch("fill", 0, lambda: None, [], [Range(device, SIZE)]) == ERROR.cudaErrorStreamCaptureImplicit
    assert cuda.cudaStreamEndCapture(blocking)[0] == ERROR.cudaErrorStreamCaptureInvalidated
    assert cuda.cudaStreamBeginCapture(0, RELAXED)[0] == ERROR.cudaErrorStreamCaptureUnsupported
    assert cuda.cudaStreamEndCapture(stream)[0] == ERROR.cudaErrorIllegalState
    make(cuda, "cudaStreamBeginCapture", stream, LOCAL)
    assert cuda.cudaStreamBeginCapture(stream, LOCAL)[0] == ERROR.cudaErrorIllegalState
    found = []
    thread = threading.Thread(target=lambda: found.append(cuda.cudaStreamEndCapture(stream)[0]))
    thread.start()
    thread.join()
    assert found == [ERROR.cudaErrorStreamCaptureWrongThread]


def test_a_graph_runs_when_it_is_launched_and_keeps_its_addresses(cuda, stream, device, pinned):
    make(cuda, "cudaStreamBeginCapture", stream, LOCAL)
    fill(cuda, stream, device, 7)
    copy(cuda, pinned, device, stream)
    graph = make(cuda, "cudaStreamEndCapture", stream)
    executable = make(cuda, "cudaGraphInstantiate", graph, 0)
    make(cuda, "cudaGraphDestroy", graph)
    for _ in range(2):
        values(pinned)[:] = 0
        make(cuda, "cudaGraphLaunch", executable, stream)
        make(cuda, "cudaStreamSynchronize", stream)
        assert (values(pinned) == 7).all()
    make(cuda, "cudaFree", device)
    assert cuda.cudaGraphLaunch(executable, stream) == (ERROR.cudaErrorInvalidValue,)
    assert cuda.violations == [f"fill: {device:#x} was freed"]


def test_memory_is_limited_and_errors_stay_until_they_are_read():
    cuda = FakeCuda(limit_bytes=100)
    first = make(cuda, "cudaMalloc", 60)
    assert cuda.cudaMalloc(60) == (ERROR.cudaErrorMemoryAllocation, None)
    assert make(cuda, "cudaGetDeviceCount") == 1
    assert cuda.launch("fill", 0, lambda: None, [], []) == ERROR.cudaErrorMemoryAllocation
    with pytest.raises(AssertionError, match="nobody read the error cudaErrorMemoryAllocation"):
        cuda.check()
    assert cuda.cudaGetLastError() == (ERROR.cudaErrorMemoryAllocation,)
    assert cuda.cudaGetLastError() == (ERROR.cudaSuccess,)
    make(cuda, "cudaFree", first)
    make(cuda, "cudaFree", make(cuda, "cudaMalloc", 100))
    cuda.check()


def test_what_is_left_over_fails_the_check(cuda, stream, device, pinned):
    make(cuda, "cudaStreamBeginCapture", stream, LOCAL)
    graph = make(cuda, "cudaStreamEndCapture", stream)
    executable, event = make(cuda, "cudaGraphInstantiate", graph, 0), record(cuda, stream)
    with pytest.raises(AssertionError) as caught:
        cuda.check()
    assert str(caught.value).count("never destroyed") == 6
    for function, what in (
        ("cudaGraphExecDestroy", executable),
        ("cudaGraphDestroy", graph),
        ("cudaEventDestroy", event),
        ("cudaStreamDestroy", stream),
        ("cudaFree", device),
        ("cudaFreeHost", pinned),
    ):
        make(cuda, function, what)
    cuda.check()


def test_what_is_not_modelled_is_not_there(cuda):
    with pytest.raises(AttributeError, match="the fake has no cudaMallocManaged"):
        _ = cuda.cudaMallocManaged


@pytest.fixture
def doubling(cuda, stream):
    """A session of the fake ONNX Runtime that doubles 4 numbers, with a CUDA graph."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ort = FakeOnnxRuntime(cuda)
    ort.preload_dlls()
    settings = {"user_compute_stream": str(int(stream)), "enable_cuda_graph": "1"}
    options = ort.SessionOptions()
    providers = [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers, enable_fallback=0)


def bind(cuda, session):
    """Bind new memory. Returns the binding, the input's address and the output's."""
    binding, (given, wanted) = session.io_binding(), [make(cuda, "cudaMalloc", 16) for _ in range(2)]
    binding.bind_input("x", "cuda", 0, np.float32, [4], given)
    binding.bind_output("y", "cuda", 0, np.float32, [4], wanted)
    return binding, given, wanted


def run(session, binding, graph_id):
    options = RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    session.run_with_iobinding(binding, options)


def test_a_session_runs_late_and_captures_each_annotation_id_once(cuda, stream, doubling):
    binding, given, wanted = bind(cuda, doubling)
    for graph_id, captured in ((-1, []), (1, [1]), (1, [1]), (2, [1, 2])):
        values(given, 16).view(np.float32)[:] = graph_id
        run(doubling, binding, graph_id)
        assert np.isnan(values(wanted, 16).view(np.float32)).all()
        make(cuda, "cudaStreamSynchronize", stream)
        assert (values(wanted, 16).view(np.float32) == 2 * graph_id).all()
        assert list(doubling.captured) == captured
        doubling.release_captured_graph(graph_id)
    assert (cuda.calls["cudaStreamBeginCapture"], cuda.violations) == (2, [])


def test_a_captured_graph_replays_its_own_addresses(cuda, doubling):
    binding, _, wanted = bind(cuda, doubling)
    run(doubling, binding, 1)
    run(doubling, bind(cuda, doubling)[0], 1)
    assert cuda.violations == ["graph 1 replays the addresses of its capture, not those bound now"]
    make(cuda, "cudaFree", wanted)
    with pytest.raises(RuntimeError, match="CUDA failure 1: cudaErrorInvalidValue"):
        run(doubling, binding, 1)
