"""The division of a long video into windows: every latent vector once and in order, whatever the lengths and cuts."""

import math
import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from selva_bundle.errors import RequestError
from selva_bundle.lengths import LongForm, SequenceRules
from selva_runtime.windows import Grid, Shot, Window, fade_out, joins_s, loop_length, one_pass, plan, region_windows

COMMON = {
    "latent_width": 20,
    "fps": 25,
    "clip_fps": 8,
    "segment_frames": 16,
    "segment_step": 8,
    "sync_per_segment": 8,
    "image_size": 64,
    "min_duration_s": 0.64,
    "max_duration_s": 30.0,
}
RULES = {
    16: SequenceRules(sample_rate_hz=16_000, hop=256, **COMMON),
    44: SequenceRules(sample_rate_hz=44_100, hop=512, **COMMON),
}
TOY = LongForm(window_segments=12, anchor_segments=5, overlap_segments=2)
OFFICIAL = LongForm.of(RULES[16], 8.0)
RANDOM_CASES = 240


def shots_of(frames: int, cuts: list[int]) -> tuple[Shot, ...]:
    """The shots of a video of this many frames."""
    shots: list[Shot] = []
    for begin, end in pairwise([0, *cuts, frames]):
        first = shots[-1].first_segment + shots[-1].segments if shots else 0
        segments = max(0, math.ceil((end - begin - 16) / 8)) + 1
        shots.append(Shot(first_frame=begin, first_segment=first, segments=segments))
    return tuple(shots)


def grid_of(rate: int, duration_s: float, form: LongForm = OFFICIAL, cuts: list[int] | None = None) -> Grid:
    rules = RULES[rate]
    shots = shots_of(math.ceil(Fraction(duration_s).limit_denominator(10**6) * 25), cuts or [])
    return Grid(rules=rules, form=form, shots=shots, latent=rules.lengths(duration_s).latent)


def window_s(form: LongForm) -> float:
    return (16 + 8 * (form.window_segments - 1)) / 25


def random_form(random_: random.Random) -> LongForm:
    window = random_.randint(2, 26)
    anchor = random_.randint(0, window - 2)
    return LongForm(
        window_segments=window,
        anchor_segments=anchor,
        overlap_segments=random_.randint(0, window - anchor - 1),
        guard=random_.choice([0, 0.25, 0.4]),
    )


def random_grid(seed: int, *, cuts: bool = True) -> Grid:
    random_ = random.Random(seed)
    form = random_.choice([OFFICIAL, OFFICIAL, TOY, random_form(random_)])
    longest = 900 if seed % 10 == 0 else 60
    duration_s = round(random_.uniform(window_s(form) + 0.05, window_s(form) + longest), random_.choice([0, 1, 2, 4]))
    duration_s = max(duration_s, window_s(form) + 0.05)
    frames = math.ceil(duration_s * 25)
    places = sorted(random_.sample(range(8, frames - 8), random_.randint(0, 8))) if cuts and frames > 40 else []
    kept = [place for before, place in pairwise([0, *places]) if place - before >= 8]
    return grid_of(random_.choice([16, 44]), duration_s, form, kept)


def check(grid: Grid, windows: list[Window], opening: int | None = None, end: int | None = None) -> None:
    """Checks a whole plan."""
    end = grid.latent if end is None else end
    first_latents = grid.window.latent if opening is None else opening
    touched = np.zeros(end + grid.window.latent + 99, bool)
    begins = {grid.begin(shot): grid.end(shot) for shot in grid.shots}
    shot_begin, final = 0, 0
    for number, window in enumerate(windows):
        if number:
            assert window.lengths == grid.window
        shown = sum(stop - first for first, stop in window.segments)
        assert window.anchor_segments + shown == window.lengths.segments
        assert all(0 <= first < stop <= grid.segments for first, stop in window.segments)
        assert 0 <= window.anchor <= min(first_latents, window.lengths.latent - 1)
        own = window.lengths.latent - window.anchor
        assert window.stop == window.start + own
        assert 0 <= window.fade <= window.known
        assert window.known + window.known_after <= own
        assert touched[window.start : window.start + window.known].all(), "knows what nobody generated"
        if number and not window.known:
            assert window.start in begins or not grid.form.overlap_segments
        shot_begin = max(begin for begin in begins if begin <= window.start)
        is_last_shot = shot_begin == max(begins)
        shot_end = end if is_last_shot else begins[shot_begin]
        assert window.final <= shot_end
        assert final < window.final <= window.stop
        if number:
            assert window.start + window.known - window.fade == windows[number - 1].final
            assert window.start + window.known < shot_end or end != grid.latent, "a window without anything new"
        final = window.final
        touched[window.start : min(window.stop, shot_end)] = True
        weights = window.weights(grid.form.guard)
        assert weights.shape == (window.lengths.latent,)
        held = window.anchor + window.known - window.fade
        assert (weights[:held] == 1).all()
        assert (weights[held + window.fade : len(weights) - window.known_after] == 0).all()
        assert (np.diff(weights[held : held + window.fade]) <= 0).all()
    assert touched[:end].all()
    assert final == end


def progress(grid: Grid, windows: list[Window]) -> None:
    """No window generates less than it must: all but the last of a shot advance by as much as the form says."""
    form = grid.form
    for before, window, after in zip(windows, windows[1:], windows[2:], strict=False):
        if before.known and window.known and after.known:  # within one shot, and not the last
            new = form.window_segments - form.anchor_segments + 1 - form.overlap_segments
            assert abs(window.start - before.start - new * grid.unit) <= 1


@pytest.mark.parametrize("chunk", range(10))
def test_every_latent_is_final_once_and_in_order(chunk):
    for seed in range(chunk, RANDOM_CASES, 10):
        grid = random_grid(seed)
        windows = plan(grid)
        check(grid, windows)
        progress(grid, windows)


@pytest.mark.parametrize("chunk", range(5))
def test_loops_lead_back_to_their_begin(chunk):
    tried = 0
    for seed in range(chunk, RANDOM_CASES, 5):
        grid = random_grid(seed)
        try:
            end = loop_length(grid)
        except RequestError:
            continue
        tried += 1
        windows = plan(grid, loop=True)
        assert len(windows) > 1
        check(grid, windows, end=end)
        assert end <= grid.latent
        last = windows[-1]
        assert last.stop - end == last.known_after
        assert abs(last.known_after - grid.overlap) <= 2
        assert last.segments[-1][1] <= grid.segments
        assert windows[0].known == windows[0].known_after == 0
    assert tried > 20


@pytest.mark.parametrize(("rate", "latents"), [(16, 1250), (44, 1723)])
def test_a_short_clip_makes_a_loop_in_two_windows(rate, latents):
    for frames in range(160, 201):
        grid = grid_of(rate, frames / 25)
        lengths = RULES[rate].lengths(frames / 25)
        windows = plan(grid, opening=one_pass(lengths), loop=True)
        assert len(windows) == 2
        check(grid, windows, opening=lengths.latent, end=loop_length(grid))
        assert grid.latent - loop_length(grid) <= math.ceil(8 * grid.unit / 8) + 1
        assert windows[1].segments[-1] == (0, grid.form.overlap_segments - 1)
    grid = grid_of(rate, 40.0)
    assert plan(grid, opening=one_pass(RULES[rate].lengths(40.0)), loop=True)[0].lengths.latent == latents


@pytest.mark.parametrize("form", [OFFICIAL, LongForm(window_segments=24, anchor_segments=20, overlap_segments=3)])
def test_a_clip_that_is_too_short_for_a_loop_is_refused(form):
    least = 18 if form is OFFICIAL else 20
    shortest = (16 + 8 * (least - 1)) / 25
    grid_of(16, shortest, form)
    lengths = RULES[16].lengths(shortest)
    check(
        grid := grid_of(16, shortest, form),
        plan(grid, opening=one_pass(lengths), loop=True),
        opening=lengths.latent,
        end=loop_length(grid),
    )
    with pytest.raises(RequestError, match=rf"too short for a loop; give at least {shortest:.2f} s"):
        loop_length(grid_of(16, shortest - 0.32, form))


def test_the_official_window():
    grid = grid_of(16, 60.0)
    windows = plan(grid)
    assert LongForm(window_segments=24, anchor_segments=6, overlap_segments=3) == OFFICIAL
    assert {window.lengths.frames for window in windows} == {200}
    assert {window.lengths.latent for window in windows} == {250}
    assert [window.anchor for window in windows] == [0] + [60] * 11
    assert [window.start for window in windows] == [0, *range(220, 1661, 160), 1690]
    assert [window.known for window in windows[1:]] == [30] * 10 + [160]
    assert [window.fade for window in windows[1:]] == [30] * 11
    assert (windows[1].anchor_segments, windows[1].segments) == (6, ((22, 40),))
    assert (windows[-1].stop, windows[-1].final) == (1880, 1875)
    assert joins_s(windows, RULES[16])[:2] == (235 / 31.25, 395 / 31.25)


def test_the_toys_window():
    grid = grid_of(16, 24.32, TOY)
    windows = plan(grid)
    assert {window.lengths.latent for window in windows} == {130}
    assert windows[1] == Window(
        segments=((11, 18),),
        lengths=grid.window,
        start=110,
        final=170,
        anchor=50,
        anchor_segments=5,
        known=20,
        fade=20,
    )
    assert [window.start for window in windows][:4] == [0, 110, 170, 230]
    weights = windows[1].weights(0.25)
    assert (weights[:55] == 1).all()
    np.testing.assert_allclose(weights[55:65], np.arange(9.5, 0, -1) / 10, atol=1e-6)
    assert (weights[65:] == 0).all()


def test_a_window_more_for_a_frame_more():
    assert len(plan(grid_of(16, 8.0))) == 1
    assert len(plan(grid_of(16, 8.04))) == 2
    assert len(plan(grid_of(16, 8.0 + 16 * 0.32))) == 2
    assert len(plan(grid_of(16, 8.0 + 16 * 0.32 + 0.04))) == 3


def test_an_hour_at_44_1_khz():
    """13.78 latents in a unit: rounded to 14, the windows would lose their place within minutes."""
    grid = grid_of(44, 3600.0)
    windows = plan(grid)
    check(grid, windows)
    assert len(windows) == math.ceil((3600 - 8) / (16 * 0.32)) + 1
    for window in windows[1:]:
        first, _ = window.segments[-1]
        assert abs(window.start - first * 8 * Fraction(44_100, 25 * 1024)) <= 0.5
    region = region_windows(grid, grid.latent - 200, grid.latent)
    assert 1 <= len(region) <= 2
    assert region[0].known <= grid.window.latent - region[0].anchor - 100


def test_shots_begin_with_a_window_and_show_only_themselves_and_the_anchor():
    grid = grid_of(16, 30.0, cuts=[300, 310, 500])
    windows = plan(grid)
    check(grid, windows)
    for shot in grid.shots[1:]:
        own = [window for window in windows if grid.begin(shot) <= window.start < grid.end(shot)]
        assert own[0].start == grid.begin(shot)
        assert own[0].known == 0
        for window in own:
            first, stop = window.segments[-1]
            assert shot.first_segment <= first < stop <= shot.first_segment + shot.segments
            assert window.anchor_segments == grid.form.window_segments - (stop - first)
    short = next(window for window in windows if window.start == grid.begin(grid.shots[1]))
    assert short.anchor_segments == 23
    assert short.segments == ((grid.shots[1].first_segment, grid.shots[1].first_segment + 1),)


@pytest.mark.parametrize("chunk", range(10))
def test_a_region_frees_nothing_outside_of_it(chunk):
    for seed in range(chunk, RANDOM_CASES, 10):
        grid, random_ = random_grid(seed), random.Random(seed)
        first = random_.choice([0, random_.randint(0, grid.latent - 9)])
        stop = random_.choice([grid.latent, min(grid.latent, first + random_.randint(8, 500))])
        check_region(grid, first, stop, region_windows(grid, first, stop))


def check_region(grid: Grid, first: int, stop: int, windows: list[Window]) -> None:
    change = np.zeros(grid.latent)
    final = first
    for window in windows:
        free = 1 - window.weights(grid.form.guard)
        assert (free[: window.anchor] == 0).all()
        assert 0 <= window.fade <= window.known <= window.stop - window.start
        assert 0 <= window.fade_after <= window.known_after
        places = np.arange(window.start, window.stop)
        inside = (places >= first) & (places < stop)
        assert (free[window.anchor :][~inside] == 0).all()
        begin = max(grid.begin(shot) for shot in grid.shots if grid.begin(shot) <= window.start)
        assert any(grid.begin(shot) == begin for shot in grid.shots)
        change[places[inside]] = np.maximum(change[places[inside]], free[window.anchor :][inside])
        assert final < window.final <= stop
        final = window.final
    assert final == stop
    edges = {first, stop, *(grid.begin(shot) for shot in grid.shots if first < grid.begin(shot) < stop)}
    for place in range(first, stop):
        if min(abs(place - edge) for edge in edges) > grid.overlap and grid.overlap < (stop - first) // 4:
            assert change[place] == 1, "a latent in the middle keeps something old"


@pytest.mark.parametrize("rate", [16, 44])
def test_a_region_of_a_clip_in_one_window(rate):
    grid = grid_of(rate, 4.0)
    opening = one_pass(RULES[rate].lengths(4.0))
    (window,) = region_windows(grid, 30, 80, opening=opening)
    weights = window.weights(0.25)
    assert (weights[:30] == 1).all()
    assert (weights[80:] == 1).all()
    assert (weights[45:65] == 0).all()
    assert ((weights[30:45] > 0) & (weights[30:45] < 1)).any()
    (window,) = region_windows(grid, 0, grid.latent, opening=opening)
    assert (window.weights(0.25) == 0).all()


def test_joins_are_the_middles_of_fades_and_the_cuts():
    windows = plan(grid_of(16, 12.0, TOY, cuts=[200]))
    joins = joins_s(windows, RULES[16])
    assert len(joins) == len(windows) - 1
    assert 8.0 in joins
    assert joins[0] == 120 / 31.25


@pytest.mark.parametrize("length", [0, 1, 2, 9, 40])
def test_a_fade_is_symmetric(length):
    fade = fade_out(length, 0.25)
    np.testing.assert_allclose(fade + fade[::-1], 1, atol=1e-6)
    assert (fade[: length // 4] == 1).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window_segments": 0}, "no new segments"),
        ({"window_segments": 1025}, "window_segments is 1025, not a whole number from 0 to 1024"),
        ({"window_segments": 24.0}, "window_segments is 24.0"),
        ({"window_segments": True}, "window_segments is True"),
        ({"anchor_segments": -1}, "anchor_segments is -1"),
        ({"anchor_segments": 24}, "no new segments"),
        ({"anchor_segments": 21}, "no new segments"),
        ({"overlap_segments": 18}, "no new segments"),
        ({"overlap_segments": "3"}, "overlap_segments is '3'"),
        ({"overlap_segments": None}, "overlap_segments is None"),
        ({"guard": 0.5}, "guard is 0.5, not a number from 0 to below 0.5"),
        ({"guard": -0.1}, "guard is -0.1"),
        ({"guard": float("nan")}, "guard is nan"),
        ({"guard": False}, "guard is False"),
        ({"guard": "0.1"}, "guard is '0.1'"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, words):
    good = {"window_segments": 24, "anchor_segments": 6, "overlap_segments": 3, "guard": 0.25}
    LongForm(**good)
    with pytest.raises(ValueError, match=rf"^long_form.*{words}"):
        LongForm(**good | change)


def test_the_usual_proportions_fit_every_window():
    for frames in range(16, 750):
        form = LongForm.of(RULES[16], frames / 25)
        assert form.window_segments == RULES[16].lengths(frames / 25).segments
