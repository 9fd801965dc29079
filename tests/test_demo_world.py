"""The demo's world is the same for the same seed and sounds when its picture shows it; and its onset detector works."""

import numpy as np
import pytest

from selva_ref.demo.evaluation.events import Score, matched, onsets, score
from selva_ref.demo.world.clip_bank import onset_frames
from selva_ref.demo.world.kinds import CAPTIONS, KINDS
from selva_ref.demo.world.looks import LOOKS
from selva_ref.demo.world.scenes import (
    FPS,
    FRAMES,
    MIN_GAP_S,
    SAMPLES,
    clocks,
    composed_scene,
    draw_events,
    frame_times,
    render,
    single_scene,
)
from selva_ref.demo.world.sounds import RATE_HZ, SOUNDS, draw_voice, soundtrack


def test_every_kind_looks_and_sounds_and_has_captions():
    assert len(KINDS) >= 8
    assert set(LOOKS) == set(SOUNDS) == set(KINDS)
    assert all(len(set(captions)) >= 3 for captions in CAPTIONS.values())


def test_a_seed_is_a_clip():
    first, again, other = (single_scene((1, k)) for k in (5, 5, 6))
    np.testing.assert_array_equal(render(first), render(again))
    np.testing.assert_array_equal(first.sources[0].sound(), again.sources[0].sound())
    assert (render(first) != render(other)).any()
    assert render(first).shape == (FRAMES, 3, 64, 64)


def test_events_are_apart_and_inside():
    for seed in range(200):
        events_s = draw_events(np.random.default_rng(seed))
        assert 2 <= events_s.size <= 5
        assert (np.diff(events_s) >= MIN_GAP_S).all()
        assert events_s[0] > 0.25
        assert events_s[-1] < FRAMES / FPS - 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_it_sounds_at_its_events_and_nowhere_before(kind):
    scene = single_scene((2, KINDS.index(kind)), kind)
    sound, events_s = scene.sources[0].sound(), scene.sources[0].events_s
    assert sound.shape == (SAMPLES,)
    assert not sound[: round(events_s[0] * RATE_HZ)].any()
    for event_s in events_s:
        start = round(event_s * RATE_HZ)
        assert np.abs(sound[start : start + 800]).max() > 0.2
    assert np.abs(sound).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_its_picture_changes_most_around_its_events(kind):
    """Frames near an event differ more from the previous frame than frames far from any event."""
    near, far = [], []
    for seed in range(6):
        scene = single_scene((3, seed), kind)
        quiet = scene.__class__(**{**scene.__dict__, "distractors": (), "grain": 0.0})
        moved = np.abs(np.diff(render(quiet).astype(int), axis=0)).sum((1, 2, 3))
        clock = clocks(scene.sources[0].events_s, frame_times())
        distance_s = np.minimum(clock.since, clock.until)[1:]
        near.append(moved[distance_s < 0.1].mean())
        far.append(moved[distance_s > 0.45].mean() if (distance_s > 0.45).any() else 0)
    assert np.mean(near) > 3 * np.mean(far)


def test_the_first_frame_that_shows_an_event():
    scene = single_scene((4, 0))
    frames = np.flatnonzero(onset_frames(scene))
    events_s = scene.sources[0].events_s
    assert frames.size == events_s.size
    assert ((frames / FPS - events_s >= 0) & (frames / FPS - events_s < 1 / FPS)).all()


def test_a_composed_scene_has_two_kinds_apart():
    for seed in range(50):
        left, right = composed_scene((5, seed)).sources
        assert left.kind != right.kind
        assert left.place.x + 0.48 * left.place.size <= 0.5 + 1e-9
        assert right.place.x - 0.48 * right.place.size >= 0.5 - 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_onsets_of_true_sounds_are_heard_where_they_are(kind, noise):
    scores = []
    for seed in range(12):
        rng = np.random.default_rng([6, seed])
        events_s = draw_events(rng)
        sound = soundtrack(kind, draw_voice(rng), events_s, SAMPLES)
        sound = sound + np.float32(noise) * rng.standard_normal(SAMPLES, dtype=np.float32)
        scores.append(score(sound, events_s, np.empty(0), True))
    total = Score.total(scores)
    assert total.f1 >= 0.99
    assert total.offset_ms <= (6 if noise == 0 else 15)


def test_silence_has_no_onsets():
    assert onsets(np.zeros(SAMPLES, np.float32)).size == 0
    assert onsets(np.full(SAMPLES, 0.002, np.float32)).size == 0


def test_matching_takes_the_nearest_and_each_once():
    assert matched(np.array([1.0, 1.05]), np.array([1.06])) == [(1, 0)]
    assert matched(np.array([1.0]), np.array([1.2])) == []
    assert matched(np.empty(0), np.array([1.0])) == []
    assert matched(np.array([1.0]), np.empty(0)) == []


def test_the_score_of_a_stem_with_one_of_two_events_and_a_leak():
    """The target sounds at 1 and 3 s, the other source at 2 and 3.05 s; the stem has sounds at 1 and 2 s."""
    rng = np.random.default_rng(7)
    audio = soundtrack("lamp", draw_voice(rng), np.array([1.0, 2.0]), SAMPLES)
    found = score(audio, np.array([1.0, 3.0]), np.array([2.0, 3.05]), False)
    assert (found.hits, found.heard, found.true) == (1, 2, 2)
    assert (found.leaks, found.others) == (1, 1)  # 3.05 s is too close to the target's 3 s
    assert found.f1 == pytest.approx(0.5)
    assert found.kind == 0
