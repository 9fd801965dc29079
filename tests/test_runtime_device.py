"""The GPU path without a GPU: ordinary memory as the device, and ONNX Runtime's CPU provider on addresses in it.

Everything except CUDA's own calls is the code that runs on a GPU: buffers, staging, the recorded loop, progress,
cancel.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from clips import numbered, write_video
from gpus import on_host
from sessions import SAMPLE_RATE_HZ, encode, few_steps, flow_inputs, moving_frames, ramp

from selva_bundle.manifest import Graph, Port
from selva_runtime import BackendError, Cancelled, DeviceMemoryError, RequestError, Session
from selva_runtime.backends.gpu.device_array import STAGING_BYTES, DeviceArray, MemoryPool
from selva_runtime.backends.gpu.flow_plan import STEPS_PER_LAUNCH, FlowPlan
from selva_runtime.backends.gpu.host_device import HostDevice
from selva_runtime.flow import AB2, EULER, integrate
from selva_runtime.media.video import read_clip

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def cpu(demo_bundle):
    return Session(demo_bundle, backend="cpu", threads=1)


@pytest.fixture(scope="module")
def session(demo_bundle):
    with on_host(demo_bundle) as made:
        yield made


@pytest.fixture(scope="module")
def clip(session):
    return encode(session)


@pytest.fixture
def pool():
    return MemoryPool(HostDevice())


def test_guidance_below_one_is_the_conditional_flow(session, clip):
    one, none = (few_steps(session, clip, ["rain"], guidance=guidance)[0] for guidance in (1, 0))
    np.testing.assert_array_equal(one.audio, none.audio)


def test_clips_move_between_backends(cpu, session, clip):
    assert isinstance(clip.tokens, DeviceArray)
    expected = few_steps(cpu, encode(cpu), ["rain"])[0].audio
    np.testing.assert_allclose(few_steps(cpu, clip, ["rain"])[0].audio, expected, **CLOSE)
    np.testing.assert_allclose(few_steps(session, encode(cpu), ["rain"])[0].audio, expected, **CLOSE)


def test_frames_go_to_the_device_while_the_video_is_read(session, tmp_path, monkeypatch):
    video = write_video(tmp_path / "video.mp4", map(numbered, range(25)))
    put, there, read = session._executor.put, [], []
    monkeypatch.setattr(session._executor, "put", lambda rows: there.extend(rows) or put(rows))

    def progress(stage, done, total):
        if stage == "decode":
            read.append((done, len(there)))

    clip = session.encode(video, duration_s=1.0, progress=progress)
    assert read == [(done, done) for done in (*range(1, 26), 25)]
    frames = read_clip(video, size=session.info.image_size, duration_s=1.0).frames
    np.testing.assert_array_equal(clip.tokens, session.encode_frames(frames, 1.0).tokens)


@pytest.mark.parametrize("steps", [1, STEPS_PER_LAUNCH, 2 * STEPS_PER_LAUNCH + 2])
def test_recorded_steps_are_the_steps(demo_bundle, session, clip, steps):
    with on_host(demo_bundle, recorded=False) as plain:
        recorded, stepped = (few_steps(each, clip, ["rain"], steps=steps)[0] for each in (session, plain))
    np.testing.assert_array_equal(recorded.audio, stepped.audio)


@pytest.mark.parametrize("solver", [EULER, AB2])
@pytest.mark.parametrize("steps", [1, STEPS_PER_LAUNCH + 2])
@pytest.mark.parametrize("recorded", [True, False])
def test_held_latents_and_kept_states_are_those_of_the_cpu(demo_bundle, cpu, solver, steps, recorded):
    noise, conditions = flow_inputs(cpu)
    options = {"steps": steps, "guidance": 2.0, "cancel": None, "on_step": lambda: None, "solver": solver}
    with on_host(demo_bundle, recorded=recorded) as session:
        for held in (None, ramp(noise, steps, 1), ramp(noise, steps, 2), None):
            for keeps in (True, False):
                found, expected = (
                    integrate(each._executor, noise, conditions, **options, held=held, keep_states=keeps)
                    for each in (session, cpu)
                )
                np.testing.assert_allclose(np.asarray(found[0]), expected[0], **CLOSE)
                assert (found[1] is None, expected[1] is None) == (not keeps, not keeps)
                if keeps:
                    np.testing.assert_allclose(found[1], expected[1], **CLOSE)


def test_known_shapes_allocate_nothing(demo_bundle):
    device = HostDevice()
    with on_host(demo_bundle, device) as session:
        clip = encode(session)
        few_steps(session, clip, ["rain", "sea"], steps=6)
        few_steps(session, clip, ["rain", "sea"], steps=6)  # the first call cached features of the prompts
        before = device.allocations
        few_steps(session, clip, ["sea", "rain"], steps=11, guidance=2, seed=5)
        assert device.allocations == before
        few_steps(session, encode(session, 2.0), ["rain"], steps=6)
        assert device.allocations > before


def test_memory_is_freed(demo_bundle):
    device = HostDevice()
    with on_host(demo_bundle, device) as session:
        few_steps(session, encode(session), ["rain"])
        assert device.used_bytes > 0
    del session
    import gc

    gc.collect()
    assert device.used_bytes == 0


def test_progress_counts_every_stage_to_its_end(session, clip):
    calls = []
    few_steps(session, clip, ["creaking door", "wind"], steps=12, progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == ["text", "select", "conditions", "step", "vocode"]
    assert [done for stage, done, _ in calls if stage == "step"] == list(range(1, 13))
    for stage in ("text", "select", "conditions", "step", "vocode"):
        done, total = [(done, total) for name, done, total in calls if name == stage][-1]
        assert done == total


@pytest.mark.parametrize("stage", ["text", "select", "conditions", "step", "vocode"])
def test_cancel_stops_between_launches(session, clip, stage):
    cancel, steps = threading.Event(), []

    def progress(name, done, total):
        steps.append(name)
        if name == stage:
            cancel.set()

    options = {"steps": 10 * STEPS_PER_LAUNCH, "progress": progress, "cancel": cancel}
    if stage == "vocode":  # it comes last, for all stems at once
        assert len(session.generate(clip, ["rain", "sea"], **options)) == 2
    else:
        with pytest.raises(Cancelled):
            session.generate(clip, ["a new prompt " + stage, "sea"], **options)
        assert steps.count("step") == (STEPS_PER_LAUNCH if stage == "step" else 0)
    first, again = (few_steps(session, clip, ["rain"])[0] for _ in range(2))
    np.testing.assert_array_equal(first.audio, again.audio)


def test_fewer_stems_at_a_time_where_memory_is_short(demo_bundle, session, clip, monkeypatch):
    prompts = ["rain", "sea", "wind", "bells", "birds"]
    expected = few_steps(session, clip, prompts)
    start, device = FlowPlan.start, HostDevice()

    def start_few(plan, given, **options):
        if len(given["latents"]) > 2:
            raise DeviceMemoryError("out of memory")
        start(plan, given, **options)

    monkeypatch.setattr(FlowPlan, "start", start_few)
    with on_host(demo_bundle, device) as small:
        calls = []
        stems = few_steps(small, encode(small), prompts, progress=lambda *call: calls.append(call))
        assert small._executor.stems_per_batch == 2
        assert stems[4].warnings == ("the GPU is low on memory: stems are generated 2 at a time",)
        steps = [call[1:] for call in calls if call[0] == "step"]
        assert steps == [(done, 9) for done in range(1, 10)]
        for one, other in zip(stems, expected, strict=True):
            np.testing.assert_allclose(one.audio, other.audio, **CLOSE)
        device.limit_bytes = 1
        with pytest.raises(DeviceMemoryError, match="out of memory"):
            few_steps(small, encode(small, 2.0), ["rain"])


def test_fewer_segments_at_a_time_where_memory_is_short(demo_bundle, cpu):
    probe = HostDevice()
    with on_host(demo_bundle, probe) as roomy:
        encode(roomy, 4.0)
    with on_host(demo_bundle, HostDevice(probe.used_bytes * 3 // 10)) as small:
        clip = encode(small, 4.0)
        assert clip.warnings[0] == "the GPU is low on memory: segments are encoded 5 at a time"
        np.testing.assert_allclose(np.asarray(clip.tokens), encode(cpu, 4.0).tokens, rtol=0, atol=1e-4)


def test_values_that_are_not_finite_never_become_sound(demo_bundle, monkeypatch):
    with on_host(demo_bundle) as session:
        clip = encode(session)
        write = FlowPlan.start

        def start(plan, given, **options):
            write(plan, {**given, "text_f": np.full(given["text_f"].shape, np.nan, np.float32)}, **options)

        monkeypatch.setattr(FlowPlan, "start", start)
        with pytest.raises(BackendError, match="guided_step returned values that are not finite"):
            few_steps(session, clip, ["rain"])


class Doubling:
    """`next_latents` = latents + dt * 3 t²: a flow with a known end."""

    recordable = True

    def __init__(self, device, arrays):
        self.device, self.arrays, self.times = device, arrays, []

    def bind(self, name, arrays, *, repeated):
        assert repeated
        return Doubling(self.device, arrays)

    def __call__(self):
        def step():
            values = {name: np.asarray(array) for name, array in self.arrays.items()}
            after = values["latents"] + values["dt"] * 3 * values["t"] ** 2
            self.device.copy(self.arrays["next_latents"].pointer, after.ctypes.data, after.nbytes)

        self.device.enqueue(step)


@pytest.mark.parametrize("steps", [1, 4, 25, 999])
def test_each_recorded_step_reads_its_own_time(pool, steps):
    ports = tuple(Port(name=name, dtype="float32", shape=(1,)) for name in ("t", "dt", "guidance"))
    latents = Port(name="latents", dtype="float32", shape=("stems", "latent", 20))
    output = Port(name="next_latents", dtype="float32", shape=("stems", "latent", 20))
    graph = Graph(name="guided_step", file="", data=(), inputs=(latents, *ports), outputs=(output,))
    given = {"latents": np.zeros((2, 3, 20), np.float32)}
    plan = FlowPlan(pool, Doubling(pool.device, {}), graph, {"latents": (2, 3, 20)}, max_steps=1000, recorded=True)
    for _ in range(2):
        plan.start(given, steps=steps, guidance=1)
        for first, count in plan.parts(steps):
            plan.launch(first, count)
        expected = sum(3 * (i / steps) ** 2 for i in range(steps)) / steps
        np.testing.assert_allclose(np.asarray(plan.latents), expected, rtol=1e-5, atol=1e-6)


def test_arrays_are_cut_and_filled_like_numpys(pool):
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    array = pool.put(values)
    assert (len(array), array.ndim, array.nbytes, array.pointer % 256) == (4, 3, 96, 0)
    for key in (0, -1, slice(1, 3), slice(2, 99), None):
        np.testing.assert_array_equal(np.asarray(array[key]), values[key])
    array[1] = np.zeros((3, 2), np.float32)
    array[2:4] = array[0:2]
    values[1] = 0
    values[2:4] = values[0:2]
    np.testing.assert_array_equal(np.asarray(array), values)
    assert np.asarray(array, dtype=np.int64).dtype == np.int64
    with pytest.raises(IndexError):
        array[4]
    with pytest.raises(IndexError, match="must be consecutive"):
        array[::2]
    with pytest.raises(BackendError, match="cannot be copied into"):
        array[0] = np.zeros((3, 2), np.float64)


def test_more_than_the_staging_memory_goes_in_pieces(pool):
    values = np.random.default_rng(0).integers(0, 255, STAGING_BYTES * 2 + 12345, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(pool.put(values)), values)
    values = np.asfortranarray(values[:10_000].reshape(100, 100))
    np.testing.assert_array_equal(np.asarray(pool.put(values)), values)


@pytest.mark.parametrize("size", [1000, 4 << 20])
def test_freed_memory_is_used_again_but_not_before_another_library_is_done(pool, size, monkeypatch):
    waits = []
    monkeypatch.setattr(pool.device, "synchronise_all", lambda: waits.append(1))
    first = pool.empty((size,), np.float32)
    pointer = first.pointer
    del first
    again = pool.empty((size,), np.float32)
    assert again.pointer == pointer
    assert again.__cuda_array_interface__["data"] == (pointer, False)
    freed = pool.device._memory[pointer].nbytes if size > 1000 else None
    del again
    pool.empty((2 * size,), np.float32)
    if size > 1000:  # a larger block may lie at the same address
        assert freed not in [block.nbytes for block in pool.device._memory.values()]
    else:
        assert waits == [1]


def test_small_arrays_share_an_allocation_that_goes_when_none_is_left(pool):
    arrays = [pool.empty((100,), np.float32) for _ in range(5)]
    assert pool.device.allocations == 1
    assert len({array.pointer for array in arrays}) == 5
    pool.trim()
    assert pool.device.used_bytes > 0
    del arrays
    pool.trim()
    assert pool.device.used_bytes == 0


def test_full_memory_is_tidied_before_giving_up():
    pool = MemoryPool(HostDevice(limit_bytes=10_000))
    for size in range(1000, 8000, 500):
        pool.empty((size,), np.uint8)
    kept = pool.empty((8000,), np.uint8)
    with pytest.raises(DeviceMemoryError):
        pool.empty((8000,), np.uint8)
    assert len(kept) == 8000


class Foreign:
    """An array of another library."""

    def __init__(self, values, **changes):
        self.values = np.ascontiguousarray(values)
        self.changes = changes

    @property
    def __cuda_array_interface__(self):
        address, strides = self.values.ctypes.data, self.values.strides
        plain = {"shape": self.values.shape, "typestr": self.values.dtype.str, "data": (address, False), "version": 3}
        return {**plain, "strides": strides, "stream": 1, **self.changes}


def test_frames_and_sound_pass_by_the_array_interface(session, clip):
    frames = moving_frames(25, session.info.image_size)
    foreign = session.encode_frames(Foreign(frames), 1.0, stream=5)
    np.testing.assert_array_equal(np.asarray(foreign.tokens), np.asarray(clip.tokens))
    plain = few_steps(session, clip, ["rain", "sea"])
    stems = few_steps(session, foreign, ["rain", "sea"], device_output=True, stream=0)
    from selva_runtime.backends.gpu.foreign import adopt

    for one, other in zip(stems, plain, strict=True):
        assert other.device_audio is None
        assert one.device_audio.shape == (SAMPLE_RATE_HZ,)
        np.testing.assert_array_equal(one.audio, other.audio)
        np.testing.assert_array_equal(np.asarray(adopt(session._executor.pool, one.device_audio)), one.audio)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typestr": "<f4"}, "frames are float32"),
        ({"shape": (24, 3, 64, 64)}, "24 frames do not last"),
        ({"typestr": ">u2"}, "byte-swapped"),
        ({"typestr": "|O"}, "byte-swapped|cannot be read"),
        ({"typestr": "nonsense"}, "cannot be read"),
        ({"mask": object()}, "masked"),
        ({"version": 1}, "old format"),
        ({"shape": (25, 3, 64, -64)}, "shape"),
        ({"shape": 25}, "cannot be read"),
        ({"data": (0, False)}, "at the address 0x0"),
        ({"data": None}, "cannot be read"),
        ({"strides": (1, 2, 3, 4)}, "not contiguous"),
        ({"stream": 0}, "names the stream 0"),
        ({"stream": "main"}, "cannot be read"),
    ],
)
def test_foreign_arrays_that_do_not_fit_are_refused(session, changes, message):
    frames = Foreign(moving_frames(25, 64), **{"strides": None, **changes})
    with pytest.raises(RequestError, match=message):
        session.encode_frames(frames, 1.0)


class Stream:
    def __cuda_stream__(self):
        return (0, 77)


def test_streams_are_handles_or_say_theirs(session, clip, monkeypatch):
    waited = []
    monkeypatch.setattr(session._executor.pool.device, "after", waited.append, raising=False)
    for stream in (0, 12345, Stream()):
        few_steps(session, clip, ["rain"], steps=1, stream=stream)
    assert waited == [0, 12345, 77]
    for wrong in ("main", -1, True, 1.5):
        with pytest.raises(RequestError, match="give a handle"):
            few_steps(session, clip, ["rain"], stream=wrong)


def test_the_cpu_backend_refuses_gpu_arguments(cpu):
    clip = encode(cpu, 0.64)
    with pytest.raises(RequestError, match="takes NumPy arrays"):
        cpu.encode_frames(Foreign(moving_frames(25, 64)), 1.0)
    with pytest.raises(RequestError, match="has no streams"):
        few_steps(cpu, clip, ["rain"], stream=5)
    with pytest.raises(RequestError, match="device_output needs a GPU backend"):
        few_steps(cpu, clip, ["rain"], device_output=True)
