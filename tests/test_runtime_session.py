"""A session: the same seed gives the same sound, nothing is computed twice, and no wrong result is returned."""

import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from clips import numbered, write_video
from sessions import SAMPLE_RATE_HZ, encode, few_steps, moving_frames

import selva_runtime.session
import selva_runtime.text
from selva_runtime import BackendError, Cancelled, RequestError, Session
from selva_runtime.backends.choose import make_executor
from selva_runtime.media.video import read_clip


class RecordingExecutor:
    """The real executor, with a record of what ran and a way to corrupt it."""

    def __init__(self, real):
        self._real = real
        self.runs = Counter()
        self.loaded = set()
        self.spoil = {}

    def __getattr__(self, name):
        return getattr(self._real, name)

    def run(self, name, feeds, cancel=None):
        self.runs[name] += 1
        self.loaded.add(name)
        outputs = self._real.run(name, feeds, cancel)
        return self.spoil[name](outputs) if name in self.spoil else outputs

    def release(self, name):
        self.loaded.discard(name)
        self._real.release(name)


@pytest.fixture
def recorded(demo_bundle, monkeypatch):
    """A session, and the recording executor under it."""
    made = []

    def make(*arguments):
        made.append(RecordingExecutor(make_executor(*arguments)))
        return made[-1]

    monkeypatch.setattr(selva_runtime.session, "make_executor", make)
    return Session(demo_bundle, threads=1), made[0]


@pytest.fixture(scope="module")
def session(demo_bundle):
    return Session(demo_bundle, threads=1)


@pytest.fixture(scope="module")
def clip(session):
    return encode(session)


def same(one, other) -> bool:
    scale = np.linalg.norm(one.audio)
    return scale > 0 and np.linalg.norm(one.audio - other.audio) <= 1e-5 * scale


def test_a_stem_for_each_prompt_and_take(session, clip):
    stems = few_steps(session, clip, ["dog barking", "rain"], takes=2, seed=7)
    assert [(stem.prompt, stem.take) for stem in stems] == [
        ("dog barking", 0),
        ("dog barking", 1),
        ("rain", 0),
        ("rain", 1),
    ]
    for stem in stems:
        assert (stem.audio.dtype, stem.sample_rate_hz, stem.seed) == (np.float32, SAMPLE_RATE_HZ, 7)
        assert np.abs(stem.audio).max() <= 1
        assert stem.warnings == ()


@pytest.mark.parametrize("duration_s", [0.64, 0.7, 1.37, 5.37, 8.0])
def test_stems_are_exactly_as_long_as_the_clip(session, duration_s):
    stem = few_steps(session, encode(session, duration_s), ["rain"], steps=1)[0]
    assert stem.audio.shape == (round(duration_s * SAMPLE_RATE_HZ),)


def test_a_decoder_that_gives_too_little_is_refused(recorded):
    session, executor = recorded
    executor.spoil["decoder"] = lambda outputs: {"audio": outputs["audio"][:, :1000]}
    with pytest.raises(BackendError, match="gave 1000 samples of 16000"):
        few_steps(session, encode(session), ["rain"])


def test_threads_take_turns(recorded, clip):
    session, executor = recorded
    running, overlaps = threading.Lock(), []

    def alone(outputs):
        if not running.acquire(blocking=False):
            overlaps.append("two at once")
            return outputs
        time.sleep(0.05)  # time for another thread
        running.release()
        return outputs

    executor.spoil = dict.fromkeys(("text_t5", "guided_step"), alone)
    stems = {}

    def work(prompt):
        stems[prompt] = few_steps(session, clip, [prompt])[0]

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in ("rain", "sea", "bells")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert all(same(stems[prompt], few_steps(session, clip, [prompt])[0]) for prompt in stems)


def test_a_call_that_waits_for_its_turn_can_be_cancelled(recorded, clip):
    session, executor = recorded
    entered, leave, cancel = (threading.Event() for _ in range(3))

    def hold(outputs):
        entered.set()
        leave.wait()
        return outputs

    executor.spoil["text_t5"] = hold
    thread = threading.Thread(target=few_steps, args=(session, clip, ["rain"]))
    thread.start()
    entered.wait()
    cancel.set()
    with pytest.raises(Cancelled):
        session.generate(clip, ["sea"], steps=1, cancel=cancel)
    leave.set()
    thread.join()


def test_the_same_seed_is_the_same_sound(session, clip):
    first, again, other = (few_steps(session, clip, ["rain"], seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.audio, again.audio)
    assert not same(first, other)


def test_other_prompts_and_takes_do_not_change_a_stem(session, clip):
    alone = few_steps(session, clip, ["rain"])[0]
    beside = few_steps(session, clip, ["rain", "dog barking", "wind in the trees", "bells", "sea"], takes=2)
    assert same(alone, beside[0])
    assert not same(beside[0], beside[1])
    assert not same(beside[0], beside[2])


def test_the_same_prompt_twice_differs_in_its_noise(session, clip):
    first, second = few_steps(session, clip, ["rain", "rain"])
    assert not same(first, second)


def test_noise_given_is_the_noise_used(session, clip):
    from selva_runtime.flow import draw_noise

    latent = 32
    noise = np.stack([draw_noise(3, 0, 0, latent, 20), draw_noise(3, 1, 0, latent, 20)])
    drawn = few_steps(session, clip, ["rain", "sea"], seed=3)
    given = few_steps(session, clip, ["rain", "sea"], seed=99, noise=noise)
    assert all(same(one, other) for one, other in zip(drawn, given, strict=True))
    for wrong in (noise[:1], noise[:, 1:], np.full_like(noise, np.nan)):
        with pytest.raises(RequestError, match="noise"):
            few_steps(session, clip, ["rain", "sea"], noise=wrong)


def test_negative_prompts_and_guidance_change_the_sound(session, clip):
    plain = few_steps(session, clip, ["rain"])[0]
    assert not same(plain, few_steps(session, clip, ["rain"], negative="")[0])
    assert not same(plain, few_steps(session, clip, ["rain"], guidance=2)[0])
    one, none = (few_steps(session, clip, ["rain"], guidance=guidance)[0] for guidance in (1, 0))
    np.testing.assert_array_equal(one.audio, none.audio)


def test_cached_features_are_not_computed_again(recorded):
    session, executor = recorded
    clip = encode(session)
    few_steps(session, clip, ["rain", "sea"], negative="music")
    assert (executor.runs["text_t5"], executor.runs["text_clip"]) == (2, 3)
    assert not executor.loaded & {"text_t5", "text_clip"}
    before = Counter(executor.runs)
    few_steps(session, clip, ["sea", "rain", "sea"], negative="music", seed=5)
    ran_again = {name for name, count in executor.runs.items() if count > before[name]}
    assert ran_again == {"conditions", "guided_step", "decoder"}
    few_steps(session, clip, ["bells"])
    assert executor.runs["text_t5"] == 3
    assert executor.runs["video_backbone"] == before["video_backbone"] == len(clip.tokens)


@pytest.fixture
def small_caches(monkeypatch):
    monkeypatch.setattr(selva_runtime.text, "_CACHED_PROMPTS", 4)
    monkeypatch.setattr(selva_runtime.session, "_CACHED_SELECTIONS", 4)


def test_more_prompts_than_the_caches_hold(small_caches, recorded):
    session, executor = recorded
    clip, prompts = encode(session, 0.64), [f"{number} dogs" for number in range(7)]
    for _ in range(2):
        stems = few_steps(session, clip, prompts, steps=1)
        assert [stem.prompt for stem in stems] == prompts
    assert executor.runs["text_t5"] == executor.runs["video_select"] == 7 + 3  # the last four were cached


def test_text_towers_can_be_kept(demo_bundle, monkeypatch):
    released = []
    session = Session(demo_bundle, threads=1, keep_text_towers=True)
    monkeypatch.setattr(session._executor, "release", released.append)
    few_steps(session, encode(session), ["rain"])
    assert not {"text_t5", "text_clip"} & set(released)


def test_progress_counts_every_stage_to_its_end(session):
    calls = []
    frames = moving_frames(25, session.info.image_size)
    clip = session.encode_frames(frames, 1.0, progress=lambda *call: calls.append(call))
    few_steps(session, clip, ["creaking door", "rain"], takes=3, progress=lambda *call: calls.append(call))
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["encode", "text", "select", "conditions", "step", "vocode"]
    for stage in stages:
        counts = [(done, total) for name, done, total in calls if name == stage]
        total = counts[0][1]
        assert [done for done, _ in counts] == list(range(1, total + 1))
        assert counts[-1] == (total, total)


@pytest.mark.parametrize("stage", ["text", "select", "conditions", "step", "vocode"])
def test_cancel_stops_at_the_next_chance(session, clip, stage):
    cancel, seen = threading.Event(), []

    def progress(name, done, total):
        seen.append(name)
        if name == stage:
            cancel.set()

    with pytest.raises(Cancelled):
        few_steps(session, encode(session), ["a new prompt " + stage, "sea"], progress=progress, cancel=cancel)
    assert seen.count(stage) == 1
    assert same(few_steps(session, clip, ["rain"])[0], few_steps(session, clip, ["rain"])[0])


def test_ctrl_c_leaves_a_session_that_works(recorded):
    session, executor = recorded
    clip = encode(session)
    before = few_steps(session, clip, ["rain"])[0]

    def interrupt(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        few_steps(session, clip, ["sea"], progress=interrupt)
    assert not executor.loaded & {"text_t5", "text_clip"}
    np.testing.assert_array_equal(few_steps(session, clip, ["rain"])[0].audio, before.audio)


def test_cancel_while_encoding(session):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        session.encode_frames(moving_frames(25, session.info.image_size), 1.0, cancel=cancel)


def test_cancel_stops_inside_a_graph(demo_bundle, monkeypatch):
    """Cancelled as soon as the graph runs, on any CPU: it must stop early, without waiting for its end."""
    monkeypatch.setattr("selva_runtime.backends.onnx_cpu.POLL_S", 0.001)
    executor = make_executor(selva_runtime.Bundle.open(demo_bundle), "cpu", 1)
    executor.load("decoder")
    run, cancel, ended = executor._sessions["decoder"].run, threading.Event(), []

    def watched(*arguments):
        cancel.set()
        try:
            outputs = run(*arguments)
        except Exception:
            ended.append("cut short")
            raise
        ended.append("finished")
        return outputs

    monkeypatch.setitem(executor._sessions, "decoder", SimpleNamespace(run=watched))
    with pytest.raises(Cancelled):
        executor.run("decoder", {"latents": np.zeros((1, 1_000, 20), np.float32)}, cancel)
    assert ended == ["cut short"]


@pytest.mark.parametrize("graph", ["guided_step", "decoder", "video_backbone"])
def test_values_that_are_not_finite_never_become_sound(recorded, graph):
    session, executor = recorded
    executor.spoil[graph] = lambda outputs: {name: values * np.float32(np.nan) for name, values in outputs.items()}
    with pytest.raises(BackendError, match=f"{graph} returned values that are not finite"):
        few_steps(session, encode(session), ["rain"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "rain"}, "list of strings"),
        ({"negative": "   "}, "empty"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": -1}, "guidance"),
        ({"takes": 65}, "takes"),
        ({"seed": None}, "seed is None"),
    ],
)
def test_requests_out_of_range_are_refused(session, clip, options, message):
    """A session checks the ranges of a request; `test_runtime_request.py` tests each limit."""
    with pytest.raises(RequestError, match=message):
        session.generate(clip, **{"prompts": ["rain"], **options})


@pytest.mark.parametrize(
    ("shape", "dtype", "duration_s", "message"),
    [
        ((24, 3, 64, 64), np.uint8, 1.0, "24 frames do not last 1.0 s; give 25"),
        ((25, 3, 32, 64), np.uint8, 1.0, r"give uint8 \(frames, 3, 64, 64\)"),
        ((25, 3, 64, 64), np.float32, 1.0, "frames are float32"),
        ((25, 3, 64, 64), np.uint8, 0.5, "duration is 0.5 s"),
        ((25, 3, 64, 64), np.uint8, float("nan"), "duration is nan"),
        ((25, 3, 64, 64), np.uint8, 31.0, "25 frames do not last 31.0 s; give 775"),
        ((25, 3, 64, 64), np.uint8, 36_001.0, "give a number from 0.64 to 36000 s"),
    ],
)
def test_frames_that_do_not_fit_are_refused(session, shape, dtype, duration_s, message):
    with pytest.raises(RequestError, match=message):
        session.encode_frames(np.zeros(shape, dtype), duration_s)


def test_a_file_is_read_as_its_frames(session, tmp_path):
    video = write_video(tmp_path / "video.mp4", map(numbered, range(50)))
    calls = []
    clip = session.encode(video, start_s=0.5, duration_s=1.0, progress=lambda *call: calls.append(call))
    frames = read_clip(video, size=session.info.image_size, start_s=0.5, duration_s=1.0).frames
    np.testing.assert_array_equal(clip.tokens, session.encode_frames(frames, 1.0).tokens)
    assert (clip.start_s, clip.duration_s, clip.source, clip.source_duration_s) == (0.5, 1.0, str(video), 2.0)
    assert list(dict.fromkeys(stage for stage, done, total in calls if done == total)) == ["decode", "encode"]
    with pytest.raises(RequestError, match="start is -1"):
        session.encode(video, start_s=-1)


def test_a_video_that_ends_before_shortens_the_clip(session, tmp_path):
    clip = session.encode(write_video(tmp_path / "video.mp4", map(numbered, range(50))), start_s=1.2)
    assert clip.duration_s == pytest.approx(0.8)
    assert few_steps(session, clip, ["rain"])[0].audio.shape == (12800,)


def test_a_clip_belongs_to_its_bundle(session, clip):
    stranger = selva_runtime.Clip(**{**vars(clip), "backbone": "0" * 64})
    with pytest.raises(RequestError, match="another bundle"):
        session.generate(stranger, ["rain"])


def test_prompts_that_will_not_be_read_in_full_are_reported(session):
    assert session.prompt_warnings("dog barking") == ()
    assert "does not know (猫)" in session.prompt_warnings("猫 meowing 猫")[0]
    (warning,) = session.prompt_warnings("many dogs bark " * 50)
    assert "longer than the model reads: only its first" in warning


def test_backends_are_chosen_by_name(demo_bundle):
    assert Session(demo_bundle, backend="cpu").info.backend == "cpu"
    with pytest.raises(BackendError, match="unknown backend 'abacus'; choose one of auto, cpu"):
        Session(demo_bundle, backend="abacus")
    with pytest.raises(RequestError, match="threads is 0"):
        Session(demo_bundle, threads=0)


def test_feeds_are_checked_against_the_manifest(session):
    ids = np.zeros((1, 3), np.int64)
    with pytest.raises(BackendError, match="text_t5 takes ids, mask, not ids"):
        session._executor.run("text_t5", {"ids": ids})
    with pytest.raises(BackendError, match="takes mask as bool"):
        session._executor.run("text_t5", {"ids": ids, "mask": ids})
    with pytest.raises(BackendError, match="takes ids as int64"):
        session._executor.run("text_clip", {"ids": ids})
