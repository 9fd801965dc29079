"""The measures of long stems, against stems whose faults are known."""

import numpy as np
import pytest

from selva_bench.long_form.films import FILMS, Film, scenes, write_video
from selva_bench.long_form.measures import Measures, Tally, control_places, distance_s, measure, step_meter
from selva_bench.long_form.methods import METHODS, TRIALS, joins
from selva_bench.long_form.report import table
from selva_bench.long_form.run import numbers
from selva_bundle.lengths import LongForm
from selva_ref.demo.world.scenes import FPS, FRAMES, MIN_GAP_S, composed_scene, draw_events, frame_times, render
from selva_ref.demo.world.sounds import RATE_HZ, Voice, soundtrack
from selva_runtime.media.video import read_clip
from selva_runtime.windows import Shot

DURATION_S = 24.32
SAMPLES = round(DURATION_S * RATE_HZ)
EVENTS_S = np.arange(0.6, DURATION_S - 0.5, 0.83) + np.random.default_rng(0).uniform(-0.05, 0.05, 28)
JOINS_S = np.arange(4.16, DURATION_S, 4.16)
NONE_S = np.empty(0)


def stem(pitch: float, events_s: np.ndarray = EVENTS_S, kind: str = "lamp") -> np.ndarray:
    return soundtrack(kind, Voice(pitch=pitch, level=0.5, grain=1), events_s, SAMPLES)


def patched(pitches: list[float]) -> np.ndarray:
    """A stem whose voice changes at each join."""
    parts = [stem(pitch) for pitch in pitches]
    places = np.searchsorted(JOINS_S, np.arange(SAMPLES) / RATE_HZ, side="right")
    return np.choose(places, parts).astype(np.float32)


def found(audio: np.ndarray, joins_s: np.ndarray = JOINS_S) -> Measures:
    return measure(audio, EVENTS_S, NONE_S, joins_s, seed=0)


def test_one_voice_does_not_drift_and_two_do():
    assert found(stem(1.0)).drift == pytest.approx(1, abs=0.15)
    assert found(patched([0.9, 1.12, 0.9, 1.12, 1.0, 0.95])).drift > 2


def test_loudness_is_not_a_voice():
    fading = stem(1.0) * np.linspace(1, 0.3, SAMPLES, dtype=np.float32)
    assert found(fading).drift == pytest.approx(1, abs=0.15)


def test_distances_are_of_events_that_are_close_or_far_apart():
    """28 events are about 0.83 s apart: 27 pairs are neighbours, and 20 pairs are eight apart, 19 nine and so on."""
    measures = found(stem(1.0))
    assert measures.close.count == 27
    assert measures.far.count == sum(range(1, 21))


def test_a_sound_that_breaks_off_is_a_step_at_the_join():
    whole, broken = stem(1.0, kind="bell"), stem(1.0, kind="bell")
    join_s = EVENTS_S[10] + 0.2
    broken[round(join_s * RATE_HZ) :] = 0
    at_join = step_meter(broken)(join_s) - step_meter(whole)(join_s)
    assert at_join > 0.2
    assert step_meter(broken)(join_s - 0.1) == step_meter(whole)(join_s - 0.1)
    measures = found(broken, np.array([join_s]))
    assert measures.joins.mean == pytest.approx(step_meter(broken)(join_s))
    assert measures.joins.mean > measures.controls.mean + 0.2


def test_a_step_is_the_mean_over_the_three_steps_around_the_join():
    """Noise that begins at a join, ten times as loud as before: one decade, spread over the frames that show both."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)
    louder = noise.copy()
    louder[RATE_HZ // 2 :] *= 10
    assert step_meter(louder)(0.512) > step_meter(noise)(0.512) + 0.1


def test_a_join_at_an_event_does_not_count():
    joins_s = np.array([EVENTS_S[3] + 0.05, EVENTS_S[5] + 0.3])
    assert found(stem(1.0), joins_s).joins.count == 1


def test_controls_are_away_from_joins_and_events():
    places_s = control_places(SAMPLES, EVENTS_S, JOINS_S, seed=0)
    assert places_s.size > 30
    assert distance_s(places_s, JOINS_S).min() > 0.5
    assert distance_s(places_s, EVENTS_S).min() > 0.1
    assert (places_s > 0.5).all()
    assert (places_s < DURATION_S - 0.5).all()


@pytest.mark.parametrize(("missing", "near"), [(4, True), (5, False)])  # the latter is 0.6 s from a join
def test_a_missed_event_counts_near_or_away_from_joins(missing, near):
    assert (np.abs(EVENTS_S[missing] - JOINS_S).min() <= 0.5) == near
    measures = found(stem(1.0, np.delete(EVENTS_S, missing)))
    assert (measures.missed_near.total, measures.missed_away.total) == ((1, 0) if near else (0, 1))
    assert measures.missed_near.count + measures.missed_away.count == EVENTS_S.size
    assert measures.score.hits == EVENTS_S.size - 1


def test_without_joins_nothing_is_near_one():
    measures = found(stem(1.0), NONE_S)
    assert measures.missed_near == measures.joins == Tally()
    assert measures.missed_away.count == EVENTS_S.size


def test_measures_add_up():
    one, other = found(stem(1.0)), found(stem(1.0, np.delete(EVENTS_S, 4)))
    both = Measures.total([one, other])
    assert both.missed_near == Tally(total=1, count=2 * one.missed_near.count)
    assert both.joins.count == one.joins.count + other.joins.count
    assert both.score.true == 2 * EVENTS_S.size
    assert both.drift == pytest.approx(1, abs=0.1)


def test_a_table_has_a_cell_for_every_column():
    row = {"method": "m", "duration_s": 4.16, "films": 2, "cpu_s_per_s": 0.5, "cpu_ratio": 1.0}
    for joins_s in (JOINS_S, NONE_S):
        head, rule, line = table([{**row, **numbers(found(stem(1.0), joins_s))}]).splitlines()
        assert head.count("|") == rule.count("|") == line.count("|")
        assert "| m | 2 of 4.16 s | 1.000 | 1.000 | 1.000 |" in line


def test_a_scene_is_the_same_in_one_piece_and_in_chunks():
    scene = composed_scene((1, 2), frames=608)
    whole = render(scene)
    assert whole.shape == (608, 3, 64, 64)
    chunks = [render(scene, times_s=frame_times(start, min(start + 100, 608))) for start in range(0, 608, 100)]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_a_film_of_104_frames_is_a_scene():
    film, scene = Film(number=3), Film(number=3).scene
    for source, other in zip(scene.sources, composed_scene((1_000_003, 6, 3)).sources, strict=True):
        np.testing.assert_array_equal(source.events_s, other.events_s)
    np.testing.assert_array_equal(render(scene), render(composed_scene((1_000_003, 6, 3))))
    assert film.duration_s == FRAMES / FPS


def test_the_model_sees_exactly_what_was_rendered(tmp_path):
    scene = composed_scene((1, 3), frames=312)  # more than a chunk
    write_video(scene, tmp_path / "film.mkv")
    clip = read_clip(tmp_path / "film.mkv", size=64, duration_s=312 / FPS)
    np.testing.assert_array_equal(clip.frames, render(scene))
    assert clip.warnings == ()


@pytest.mark.parametrize("film", FILMS, ids=lambda film: film.name)
def test_events_of_films_are_as_dense_as_in_training(film):
    for source in film.scene.sources:
        assert (np.diff(source.events_s) >= MIN_GAP_S).all()
        assert film.duration_s - 3 < source.events_s[-1] < film.duration_s - 0.4
        assert 2 / 4.16 < source.events_s.size / film.duration_s < 5 / 4.16
        begins_s = np.arange(0, film.duration_s - 4.16, 0.5)
        counts = [((source.events_s >= s) & (source.events_s < s + 4.16)).sum() for s in begins_s]
        assert min(counts) >= 1
        assert max(counts) <= 7


def test_the_films_are_eight_of_three_lengths_on_the_grid_of_segments():
    assert [film.duration_s for film in FILMS] == [24.32] * 4 + [81.92] * 3 + [600.0]
    assert all((film.frames - 16) % 8 == 0 for film in FILMS)
    assert len({film.number for film in FILMS}) == 8


def test_scenes_have_the_kinds_of_the_films():
    made = scenes(FILMS[:4], 2)
    pairs = [[source.kind for source in film.scene.sources] for film in (*FILMS[:4], *made)]
    assert pairs[:4] == pairs[4:8] == pairs[8:]
    assert len({film.number for film in made}) == 8
    assert {film.duration_s for film in made} == {4.16}


def test_events_never_have_a_fixed_quiet_moment():
    events_s = draw_events(np.random.default_rng(0), 15_000)
    phases = np.histogram(events_s % (FRAMES / FPS), bins=8, range=(0, FRAMES / FPS))[0]
    assert phases.min() > 0.5 * phases.mean()


def test_hard_cuts_cover_a_film_whose_length_is_no_multiple():
    asked = []

    class Silent:
        def encode(self, path, *, start_s, duration_s):
            asked.append((start_s, duration_s))
            return duration_s

        def generate(self, clip, prompts, *, seed, steps, takes):
            audio = np.zeros(round(clip * RATE_HZ), np.float32)
            return [type("Stem", (), {"audio": audio})() for _ in prompts * takes]

    film = FILMS[4]
    audio, joins_s = METHODS["hard cut"].make(Silent(), film, "film", None, 3)
    assert audio.shape == (6, round(film.duration_s * RATE_HZ))
    assert asked[0] == (0, 4.16)
    assert asked[-1][0] + asked[-1][1] == pytest.approx(film.duration_s)
    np.testing.assert_allclose(joins_s, [start for start, _ in asked[1:]])


def test_joins_are_in_the_middle_of_the_overlaps():
    """A segment is 0.32 s further than the last one: the first window ends at 4.16 s, each later one 2.24 s after."""
    clip = type("Clip", (), {"duration_s": DURATION_S, "shots": (Shot(first_frame=0, first_segment=0, segments=75),)})()
    form = LongForm(window_segments=12, anchor_segments=4, overlap_segments=2)
    found_s = joins(clip, form)
    np.testing.assert_allclose(found_s[:3], [4.16 - 0.32, 4.16 - 0.32 + 2.24, 4.16 - 0.32 + 4.48])
    assert found_s[-1] < DURATION_S


def test_every_trial_differs():
    forms = [method.make.keywords["form"] for method in TRIALS.values()]
    assert len(set(forms)) == len(forms) == 10
