"""Stems of videos that are longer than a window: their length, what they share, and what changes what."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from gpus import on_host
from sessions import SAMPLE_RATE_HZ, moving_frames

from selva_bundle.lengths import LongForm, latent_positions, sync_rows, visual_positions
from selva_bundle.ports import CONDITIONS, DECODER, GUIDED_STEP, VIDEO_BACKBONE, VIDEO_SELECT
from selva_runtime import Cancelled, RequestError, Session
from selva_runtime.backends.gpu.flow_plan import FlowPlan
from selva_runtime.flow import draw_noise
from selva_runtime.long_form import CONTEXT, SPLICE_SAMPLES
from selva_runtime.windows import Grid, plan

FPS = 25
HOP = 512
WINDOW_FRAMES = 104
HOP_LATENTS = 60
"""What a window of the demo adds: 12 segments show 13 units of 10, of which 5 are anchor and 2 overlap."""
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def session(demo_bundle):
    return Session(demo_bundle, backend="cpu", threads=1)


@lru_cache
def frames(count, seed=0):
    made = moving_frames(400, 64)
    return np.roll(made, seed, axis=0)[:count]


def encode(session, count, **options):
    return session.encode_frames(frames(count), count / FPS, **options)


def generate(session, clip, prompts=("rain",), **options):
    return session.generate(clip, list(prompts), **{"steps": 1, **options})


def windows_of(session, clip, *, loop=False):
    rules = session._rules
    latent = rules.lengths(clip.duration_s).latent
    return plan(Grid(rules=rules, form=session.info.long_form, shots=clip.shots, latent=latent), loop=loop)


@pytest.fixture(scope="module")
def clip(session):
    """Six seconds: two windows or three."""
    return encode(session, 150)


@pytest.fixture(scope="module")
def stem(session, clip):
    return generate(session, clip, steps=2)[0]


@pytest.mark.parametrize("duration_s", [1.0, 4.12, 4.16, 4.17, 4.2, 4.2375, 9.31])
def test_stems_are_as_long_as_the_video(session, duration_s):
    clip = session.encode_frames(frames(int(duration_s * FPS + 1e-6)), duration_s)
    stem = generate(session, clip)[0]
    assert len(stem.audio) == round(duration_s * SAMPLE_RATE_HZ)
    assert len(stem.latents) == session._rules.lengths(duration_s).latent
    assert np.abs(stem.audio[-200:]).max() > 0
    assert (len(session.joins_s(clip)) > 0) == (duration_s > 4.16)


@pytest.mark.parametrize("count", [50, WINDOW_FRAMES])
def test_a_clip_of_up_to_a_window_has_the_bits_of_the_plain_graphs(session, count):
    """Everything that follows the frames is written out here, and must give the same bits."""
    run, rules, steps = session._executor.run, session._rules, 3
    lengths = rules.lengths(count / FPS)
    segments = np.stack([frames(count)[8 * i : 8 * i + 16] for i in range(lengths.segments)])
    tokens = np.concatenate([run(VIDEO_BACKBONE, {"segments": row[None]})["tokens"] for row in segments])
    t5, text = session._text.features(["rain"], None, cancel=None, on_progress=lambda done, total: None)
    feeds = {"text": t5["rain"][None], "mask": session._text.mask("rain", len(t5["rain"]))}
    sync = np.concatenate([run(VIDEO_SELECT, {"tokens": row[None], **feeds})["sync"][0] for row in tokens])
    conditions = run(
        CONDITIONS,
        {
            "sync": sync[None],
            "text": text["rain"][None],
            "negative_text": np.zeros((1, *text["rain"].shape), np.float32),
            "use_negative": np.array([False]),
            "latent_positions": latent_positions(lengths),
            "clip_positions": visual_positions(lengths),
        },
    )
    state = draw_noise(7, 0, 0, lengths.latent, 20)[None]
    for i in range(steps):
        scalars = {"t": i / steps, "dt": 1 / steps, "guidance": 4.5}
        given = {name: np.array([value], np.float32) for name, value in scalars.items()}
        rows = {"sync_row": sync_rows(rules, lengths, 1)}
        state = run(GUIDED_STEP, {"latents": state, **given, **conditions, **rows})["next_latents"]
    audio = run(DECODER, {"latents": state})["audio"][0, : lengths.samples]
    stem = generate(session, encode(session, count), seed=7, steps=steps)[0]
    np.testing.assert_array_equal(stem.latents, state[0])
    np.testing.assert_array_equal(stem.audio, audio)


def test_parts_come_while_later_windows_are_not_computed_and_make_the_stem(session, clip, stem):
    steps = []
    request = session.request(["rain"], steps=2)
    made = session.stream(clip, request, progress=lambda stage, *_: steps.append(stage))
    parts, computed = [], []
    for part in made:
        parts.append(part)
        computed.append(steps.count("step"))
    count = len(session.joins_s(clip)) + 1
    assert sorted(set(computed)) == [2 * (number + 1) for number in range(count)]
    assert computed == sorted(computed)
    assert [part.first_sample for part in parts] == [0, *np.cumsum([len(part.audio) for part in parts])[:-1]]
    np.testing.assert_array_equal(np.concatenate([part.audio for part in parts]), stem.audio)
    np.testing.assert_array_equal(np.concatenate([part.latents for part in parts]), stem.latents)


def test_the_sound_at_the_joins_of_parts_is_that_of_one_decoding(session, stem):
    """The decoder sees further than ten latents, but little. Random weights hear the most of it."""
    whole = session._executor.run(DECODER, {"latents": stem.latents[None]})["audio"][0, : len(stem.audio)]
    assert np.square(whole - stem.audio).mean() < 10**-2.5 * np.square(whole).mean()


@pytest.mark.parametrize(("count", "cuts", "loop"), [(150, [], False), (330, [3.0, 4.4, 9.0], False), (220, [], True)])
def test_the_decoder_always_sees_as_many_latents(session, monkeypatch, count, cuts, loop):
    """OpenVINO and a recorded graph set themselves up for each length anew."""
    real, lengths, flows = session._executor.run, [], []

    def run(name, feeds, cancel=None):
        if name == DECODER:
            lengths.append(feeds["latents"].shape[1])
        if name == GUIDED_STEP:
            flows.append(feeds["latents"].shape[1])
        return real(name, feeds, cancel)

    clip = encode(session, count, cuts=cuts)
    monkeypatch.setattr(session._executor, "run", run)
    (stem,) = generate(session, clip, loop=loop)
    assert (set(lengths), set(flows)) == ({HOP_LATENTS + 2 * CONTEXT}, {130})
    lengths.clear()
    if not loop:
        session.regenerate(clip, stem, 1.0, 5.5, seed=2)
        assert set(lengths) == {HOP_LATENTS + 2 * CONTEXT}


def test_a_longer_video_keeps_the_sound_up_to_the_last_overlap(session, clip):
    longer = encode(session, 220)
    short, long = (generate(session, each)[0].audio for each in (clip, longer))
    kept = (windows_of(session, clip)[-2].final - CONTEXT) * HOP
    assert kept > 3 * SAMPLE_RATE_HZ
    np.testing.assert_array_equal(long[:kept], short[:kept])
    assert not np.array_equal(long[kept : len(short)], short[kept:])


def test_windows_continue_each_other(session, clip):
    """Where two windows overlap, the second one repeats the first up to the guard of the fade."""
    held, values = [], []
    windows = windows_of(session, clip)
    from selva_runtime import generation

    real = generation.integrate

    def listen(*args, **options):
        held.append(options["held"])
        ended, states = real(*args, **options)
        values.append(states)
        return ended, states

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "integrate", listen)
        generate(session, clip, steps=2)
    assert held[0] is None
    for number, (before, window) in enumerate(pairwise(windows), start=1):
        now, earlier = values[number], values[number - 1]
        anchor, first = now[:, :, : window.anchor], values[0]
        places = range(first.shape[2] - window.anchor + 1)
        assert any(np.array_equal(anchor, first[:, :, place : place + window.anchor]) for place in places)
        guard = int(session.info.long_form.guard * window.fade)
        known = window.known - window.fade + guard
        place = before.anchor + window.start - before.start
        mine = now[:, :, window.anchor : window.anchor + known]
        np.testing.assert_array_equal(mine, earlier[:, :, place : place + known])
        free = window.anchor + window.known
        noise = draw_noise(0, 0, 0, 400, 20)[window.start + window.known : window.stop]
        np.testing.assert_array_equal(now[0, 0, free:][: len(noise)][:20], noise[:20])


def test_what_stands_beside_a_stem_does_not_change_it(session, clip):
    alone = generate(session, clip)[0]
    among = generate(session, clip, ["rain", "sea"], takes=2)
    assert [(each.prompt, each.take) for each in among] == [("rain", 0), ("rain", 1), ("sea", 0), ("sea", 1)]
    np.testing.assert_array_equal(among[0].audio, alone.audio)
    assert len({each.audio.tobytes() for each in among}) == 4


def test_frames_after_a_cut_do_not_change_the_sound_before_it(session):
    cut = 120
    other = frames(180).copy()
    other[cut:] = 255 - other[cut:]
    clips = [session.encode_frames(each, 7.2, cuts=[cut / FPS]) for each in (frames(180), other)]
    assert [shot.first_frame for shot in clips[0].shots] == [0, cut]
    first, second = (generate(session, each)[0].audio for each in clips)
    kept = (round(cut * 1.25) - CONTEXT) * HOP
    np.testing.assert_array_equal(first[:kept], second[:kept])
    assert not np.array_equal(first[kept:], second[kept:])
    assert cut / FPS in session.joins_s(clips[0])


@pytest.mark.parametrize(
    ("cuts", "begins"),
    [
        ("none", [0]),
        ([], [0]),
        ([0.0, 2.0, 2.2, 4.0], [0, 50, 100]),
        ([-1.0, 0.2, 5.88, 9.0], [0]),
        ([0.32, 5.68], [0, 8, 142]),
    ],
)
def test_shots_begin_at_the_cuts_but_none_is_shorter_than_eight_frames(session, cuts, begins):
    clip = session.encode_frames(frames(150), 6.0, cuts=cuts)
    assert [shot.first_frame for shot in clip.shots] == begins
    assert len(clip.tokens) == clip.shots[-1].first_segment + clip.shots[-1].segments
    assert len(generate(session, clip)[0].audio) == 6 * SAMPLE_RATE_HZ


def test_shots_are_encoded_as_if_they_were_alone(session):
    clip = session.encode_frames(frames(200), 8.0, cuts=[91 / FPS])
    first, second = clip.shots
    assert (first.segments, second.first_segment) == (11, 11)
    tokens = session.encode_frames(frames(200)[91:], 109 / FPS).tokens
    np.testing.assert_array_equal(clip.tokens[11 : 11 + second.segments], np.asarray(tokens))
    last = frames(200)[88:91]
    held = np.concatenate([frames(200)[80:91], np.repeat(last[-1:], 5, axis=0)])
    alone = session.encode_frames(held, 0.64).tokens
    np.testing.assert_array_equal(clip.tokens[10:11], np.asarray(alone))


REGIONS = {"begin": (0.0, 1.6), "middle": (3.0, 5.0), "end": (4.5, 6.0)}


@pytest.mark.parametrize(("begin_s", "end_s"), REGIONS.values(), ids=REGIONS)
def test_a_region_changes_and_nothing_else_does(session, clip, stem, begin_s, end_s):
    before = stem.audio.copy()
    again = session.regenerate(clip, stem, begin_s, end_s, seed=5)
    np.testing.assert_array_equal(stem.audio, before)
    first, stop = round(begin_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)
    np.testing.assert_array_equal(again.audio[:first], stem.audio[:first])
    np.testing.assert_array_equal(again.audio[stop:], stem.audio[stop:])
    latents = slice(-(-first // HOP), len(stem.latents) if end_s == 6.0 else stop // HOP)
    outside = np.ones(len(stem.latents), bool)
    outside[latents] = False
    np.testing.assert_array_equal(again.latents[outside], stem.latents[outside])
    middle = slice((3 * first + stop) // 4, (first + 3 * stop) // 4)
    changed = again.audio[middle] != stem.audio[middle]
    assert changed.mean() > 0.9
    if end_s == 6.0:
        assert (again.audio[-100:] != stem.audio[-100:]).mean() > 0.9
    if begin_s == 0:
        assert (again.audio[:100] != stem.audio[:100]).mean() > 0.9
    assert (again.seed, again.prompt, len(again.audio)) == (5, "rain", len(stem.audio))
    usual = np.abs(np.diff(again.audio)).max()
    for place in (first, stop):
        near = np.diff(again.audio[max(0, place - SPLICE_SAMPLES - HOP) : place + HOP])
        assert np.abs(near).max() <= usual
    np.testing.assert_array_equal(session.regenerate(clip, stem, begin_s, end_s, seed=5).audio, again.audio)
    assert not np.array_equal(session.regenerate(clip, stem, begin_s, end_s, seed=6).audio, again.audio)


def test_a_region_with_another_prompt_a_cut_and_the_stems_own_solver(session):
    clip = session.encode_frames(frames(180), 7.2, cuts=[4.8])
    (stem,) = generate(session, clip, steps=2, solver="ab2")
    again = session.regenerate(clip, stem, 4.0, 5.6, seed=0, prompt="sea")
    assert (again.prompt, again.request.solver, again.request.steps) == ("sea", "ab2", 2)
    first, stop = 64_000, 89_600
    np.testing.assert_array_equal(again.audio[:first], stem.audio[:first])
    np.testing.assert_array_equal(again.audio[stop:], stem.audio[stop:])
    assert (again.audio[first + 4000 : stop - 4000] != stem.audio[first + 4000 : stop - 4000]).mean() > 0.9


def test_a_region_of_a_short_clip(session):
    clip = encode(session, 75)
    (stem,) = generate(session, clip)
    again = session.regenerate(clip, stem, 1.0, 2.0, seed=3)
    np.testing.assert_array_equal(again.audio[:16_000], stem.audio[:16_000])
    np.testing.assert_array_equal(again.audio[32_000:], stem.audio[32_000:])
    assert (again.audio[20_000:28_000] != stem.audio[20_000:28_000]).mean() > 0.9


@pytest.mark.parametrize(
    ("begin_s", "end_s", "options", "words"),
    [
        (-0.1, 2, {}, "begin of the region is -0.1 s; give a number from 0 to 6 s"),
        (1, 6.1, {}, "end of the region is 6.1 s; give a number from 0 to 6 s"),
        (float("nan"), 2, {}, "begin of the region is nan s"),
        (3, 1, {}, "the region 3 to 1 s is too short; give at least 0.32 s"),
        (3, 3.31, {}, "is too short"),
        (1, 2, {"seed": -1}, "seed is -1"),
        (1, 2, {"prompt": ""}, "prompt"),
        (1, 2, {"long": "one"}, "long is 'one'; give 'windows', 'one-pass' or a LongForm"),
    ],
)
def test_regions_that_are_refused(session, clip, stem, begin_s, end_s, options, words):
    with pytest.raises(RequestError, match=words) as caught:
        session.regenerate(clip, stem, begin_s, end_s, **{"seed": 1, **options})
    assert "\n" not in str(caught.value)


def test_the_shortest_region_counts_as_the_user_wrote_it(session, clip, stem):
    assert 3.32 - 3.0 < 0.32
    assert not np.array_equal(session.regenerate(clip, stem, 3.0, 3.32, seed=1).latents, stem.latents)


def test_a_stem_of_another_clip_cannot_be_regenerated(session, clip, stem):
    with pytest.raises(RequestError, match="the stem is not as long as the clip"):
        session.regenerate(encode(session, 151), stem, 1.0, 2.0, seed=1)
    (loop,) = generate(session, clip, loop=True)
    with pytest.raises(RequestError, match="the stem is not as long as the clip"):
        session.regenerate(clip, loop, 1.0, 2.0, seed=1)


@pytest.mark.parametrize("count", [90, 150])
def test_the_end_of_a_loop_leads_to_its_begin(session, count):
    clip = encode(session, count)
    (stem,) = generate(session, clip, steps=2, loop=True)
    length = len(stem.latents)
    assert len(stem.audio) == length * HOP
    assert 0 < count / FPS - len(stem.audio) / SAMPLE_RATE_HZ <= 0.6
    around = stem.latents[np.arange(-CONTEXT, HOP_LATENTS + CONTEXT) % length]  # the first part: it sees the end
    audio = session._executor.run(DECODER, {"latents": around[None]})["audio"][0]
    heard = slice(CONTEXT * HOP, (CONTEXT + HOP_LATENTS) * HOP)
    np.testing.assert_array_equal(stem.audio[: HOP_LATENTS * HOP], audio[heard])
    steps = np.abs(np.diff(np.concatenate([stem.audio, stem.audio[:1]])))
    assert steps[-1] <= steps[:-1].max()


def test_the_last_window_of_a_loop_knows_the_begin(session, clip):
    from selva_runtime import generation

    real, held, values = generation.integrate, [], []

    def listen(*args, **options):
        held.append(options["held"])
        ended, states = real(*args, **options)
        values.append(states)
        return ended, states

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "integrate", listen)
        generate(session, clip, steps=2, loop=True)
    after = windows_of(session, clip, loop=True)[-1].known_after
    assert after >= 10
    np.testing.assert_array_equal(values[-1][:, :, -after:], values[0][:, :, :after])
    assert (held[-1].weights[-after:] == 1).all()


def test_loops_end_in_a_short_shot_and_are_refused_if_they_are_too_short(session):
    clip = session.encode_frames(frames(150), 6.0, cuts=[5.5])
    (stem,) = generate(session, clip, loop=True)
    assert 5.5 < len(stem.audio) / SAMPLE_RATE_HZ <= 6.0
    with pytest.raises(RequestError, match=r"the video is too short for a loop; give at least \d\.\d\d s"):
        generate(session, encode(session, 50), loop=True)


def test_one_pass(session, clip):
    (stem,) = generate(session, clip, long="one-pass")
    assert len(stem.audio) == 6 * SAMPLE_RATE_HZ
    assert session.joins_s(clip, long="one-pass") == ()
    whole = session._executor.run(DECODER, {"latents": stem.latents[None]})["audio"][0, : len(stem.audio)]
    np.testing.assert_array_equal(stem.audio, whole)
    assert not np.array_equal(stem.audio, generate(session, clip)[0].audio)
    short = encode(session, 50)
    one, windows = (generate(session, short, long=long)[0] for long in ("one-pass", "windows"))
    np.testing.assert_array_equal(one.audio, windows.audio)


def test_what_one_pass_cannot_do_is_refused(session, clip):
    words = "one pass takes up to 30 s of video that was encoded without cuts"
    with_cut = session.encode_frames(frames(150), 6.0, cuts=[2.0])
    for refused in (with_cut, replace(clip, duration_s=30.5)):
        with pytest.raises(RequestError, match=words):
            generate(session, refused, long="one-pass")
        with pytest.raises(RequestError, match=words):  # at once, not with the first part
            session.stream(refused, session.request(["rain"]), long="one-pass")
    with pytest.raises(RequestError, match="long is 'both'"):
        generate(session, clip, long="both")
    too_wide = LongForm(window_segments=40, anchor_segments=6, overlap_segments=3)
    with pytest.raises(RequestError, match="a window of 40 segments is longer than the clip of 6 s"):
        generate(session, clip, long=too_wide)


def test_a_long_form_of_the_callers(session, clip):
    form = LongForm(window_segments=8, anchor_segments=2, overlap_segments=1)
    sizes = []
    run = session._executor.run

    def listen(name, feeds, cancel=None):
        if name == GUIDED_STEP:
            sizes.append(feeds["latents"].shape[1])
        return run(name, feeds, cancel)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session._executor, "run", listen)
        (stem,) = generate(session, clip, long=form)
    assert len(stem.audio) == 6 * SAMPLE_RATE_HZ
    assert sizes == [90] * (len(session.joins_s(clip, long=form)) + 1)


def test_noise_of_the_callers(session, clip):
    drawn = draw_noise(3, 0, 0, 188, 20)[None]
    (given,) = generate(session, clip, noise=drawn)
    np.testing.assert_array_equal(given.audio, generate(session, clip, seed=3)[0].audio)
    with pytest.raises(RequestError, match=r"noise is \(1, 187, 20\); give finite numbers as \(1, 188, 20\)"):
        session.stream(clip, session.request(["rain"]), noise=drawn[:, :187])
    late = drawn.copy()
    late[0, -1] += 1
    (other,) = generate(session, clip, noise=late)
    kept = (windows_of(session, clip)[-2].final - CONTEXT) * HOP
    np.testing.assert_array_equal(other.audio[:kept], given.audio[:kept])
    assert not np.array_equal(other.audio, given.audio)


def test_cancel_between_windows(session, clip, stem):
    cancel = threading.Event()
    made = session.stream(clip, session.request(["rain"], steps=2), cancel=cancel)
    first = next(made)
    np.testing.assert_array_equal(first.audio, stem.audio[: len(first.audio)])
    cancel.set()
    with pytest.raises(Cancelled):
        next(made)
    assert list(made) == []
    np.testing.assert_array_equal(generate(session, clip, steps=2)[0].audio, stem.audio)


def test_cancel_while_a_long_video_is_encoded(session):
    cancel, seen = threading.Event(), []

    def progress(stage, done, total):
        seen.append((stage, done, total))
        if done == 3:
            cancel.set()

    with pytest.raises(Cancelled):
        encode(session, 150, progress=progress, cancel=cancel)
    assert seen == [("encode", done, 18) for done in (1, 2, 3)]


def test_progress_of_windows_counts_to_its_end(session, clip):
    calls = []
    generate(session, clip, ["rain", "sea"], steps=2, progress=lambda *call: calls.append(call))
    for stage in ("conditions", "step"):
        counts = [(done, total) for name, done, total in calls if name == stage]
        total = counts[0][1]
        assert counts == [(done, total) for done in range(1, total + 1)]
    windows = len(session.joins_s(clip)) + 1
    assert [call for call in calls if call[0] == "step"][-1] == ("step", 4 * windows, 4 * windows)


def test_two_streams_of_one_session_and_calls_between_their_parts(session, clip, stem):
    request = session.request(["rain"], steps=2)
    one, two = session.stream(clip, request), session.stream(clip, request)
    parts = [], []
    for pair in zip(one, two, strict=True):
        for found, part in zip(parts, pair, strict=True):
            found.append(part.audio)
        generate(session, encode(session, 25))
    for found in parts:
        np.testing.assert_array_equal(np.concatenate(found), stem.audio)


def test_threads_take_turns(session, clip, stem):
    found = {}

    def work(number):
        found[number] = generate(session, clip, steps=2)[0].audio

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for audio in found.values():
        np.testing.assert_array_equal(audio, stem.audio)
    assert len(found) == 2


@pytest.mark.parametrize("recorded", [True, False])
def test_a_device_gives_the_stems_of_the_cpu(demo_bundle, session, clip, stem, recorded):
    plans = []
    real = FlowPlan.__init__
    with on_host(demo_bundle, recorded=recorded) as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowPlan, "__init__", lambda self, *args, **rest: plans.append(self) or real(self, *args, **rest))
        made = encode(device, 150)
        np.testing.assert_allclose(np.asarray(made.tokens), np.asarray(clip.tokens), **CLOSE)
        stems = generate(device, made, ["rain", "sea"], steps=2, device_output=True)
        assert len(plans) == 1
        np.testing.assert_allclose(stems[0].audio, stem.audio, **CLOSE)
        np.testing.assert_array_equal(np.asarray(stems[1].device_audio), stems[1].audio)
        again = device.regenerate(made, stems[0], 3.0, 5.0, seed=5)
        expected = session.regenerate(clip, stem, 3.0, 5.0, seed=5)
        np.testing.assert_allclose(again.audio, expected.audio, **CLOSE)
        (loop,) = generate(device, made, loop=True)
        np.testing.assert_allclose(loop.audio, generate(session, clip, loop=True)[0].audio, **CLOSE)


def test_a_device_makes_stems_in_smaller_batches(demo_bundle, session):
    clip = encode(session, 110)
    expected = generate(session, clip, ["rain", "sea", "wind"])
    with on_host(demo_bundle) as device:
        device._executor.stems_per_batch = device._executor.stems_per_decode = 2
        stems = generate(device, clip, ["rain", "sea", "wind"])
    for stem, other in zip(stems, expected, strict=True):
        np.testing.assert_allclose(stem.audio, other.audio, **CLOSE)


def test_a_clip_of_another_session(demo_bundle, clip, stem):
    other = Session(demo_bundle, backend="cpu", threads=1)
    np.testing.assert_array_equal(generate(other, clip, steps=2)[0].audio, stem.audio)
    with pytest.raises(RequestError, match="the clip was encoded with another bundle"):
        generate(other, replace(clip, backbone="0" * 64))


def test_memory_does_not_grow_with_the_length(session):
    """What NumPy holds at its most, for clips of 8 and 24 s. What the backends hold depends on shapes, which are fixed.

    A second keeps 13 kB: its noise, latents and sync features. The states of a window would be 31 kB a second more.
    """
    picture = np.random.default_rng(5).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    encoding, generating = [], []

    def peak(work) -> int:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        work()
        return tracemalloc.get_traced_memory()[1] - before

    def generate_all(clip):
        for _ in session.stream(clip, session.request(["rain"], steps=6)):
            pass

    generate_all(encode(session, 110))
    tracemalloc.start()
    try:
        for count in (200, 600):
            pictures, made = np.broadcast_to(picture, (count, *picture.shape)), []
            encoding.append(peak(lambda p=pictures, m=made: m.append(session.encode_frames(p, len(p) / FPS))))
            generating.append(peak(lambda m=made: generate_all(*m)))
    finally:
        tracemalloc.stop()
    assert encoding[1] - encoding[0] < 100_000  # the tokens of 50 segments are 2.5 MB
    assert generating[1] - generating[0] < 16 * 25_000
