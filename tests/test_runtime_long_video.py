"""Videos of any length: frames as a stream, to the end, in memory that does not grow; the rule of the nearest frame."""

import sys
from fractions import Fraction

import numpy as np
import pytest
from clips import click, numbered, numbers_of, write_video
from movies import peaks_mib

import selva_runtime.media.frames
from selva_bundle.errors import MediaError, RequestError
from selva_runtime.media.video import read_clip

SIZE = 16
WINDOW_S = 4.16
"""What the demo model was trained on: 104 frames."""


def pictures(count):
    return [numbered(number, width=32, height=32) for number in range(count)]


def streamed(path, **settings):
    """Reads without keeping the frames. Returns the clip and the frames that were handed on."""
    blocks = []
    clip = read_clip(path, size=SIZE, keep_frames=False, on_rows=blocks.append, **settings)
    assert all(1 <= len(block) <= 64 for block in blocks)
    assert clip.frames.shape == (0, 3, SIZE, SIZE)
    return clip, np.concatenate(blocks)


def nearest(times, count):
    """The nearest frame to each of `count` due times at 25 fps; the earlier one of two."""
    return [min(range(len(times)), key=lambda i: (abs(times[i] - Fraction(k, 25)), i)) for k in range(count)]


@pytest.mark.parametrize("rule", ["first", "nearest"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"start_s": 0.3},
        {"duration_s": 1.0},
        {"duration_s": None},
        {"duration_s": None, "start_s": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rate", "ticks_ms"),
    [
        *((rate, None) for rate in (10, Fraction(24000, 1001), 25, 30, 60, 120)),
        (25, [0, 20, 40, 41, 300, 310, 900, 1500, 1501, 1980]),
        (25, [0, 40, 80, 5000, 5001]),
    ],
    ids=str,
)
def test_a_stream_hands_on_exactly_the_frames_of_the_clip(tmp_path, rate, ticks_ms, settings, rule):
    count = len(ticks_ms) if ticks_ms else int(2.1 * rate)
    base = Fraction(1, 1000) if ticks_ms else Fraction(1, 120000)
    path = write_video(
        tmp_path / "a.mp4", pictures(count), rate=rate, ticks=ticks_ms, time_base=base, options={"bf": "0"}
    )
    seen = []
    kept = read_clip(path, size=SIZE, on_rows=seen.append, frame_rule=rule, **settings)
    clip, rows = streamed(path, frame_rule=rule, **settings)
    np.testing.assert_array_equal(rows, kept.frames)
    np.testing.assert_array_equal(np.concatenate(seen), kept.frames)
    assert clip.frame_count == kept.frame_count == len(rows)
    assert (clip.duration_s, clip.source_duration_s, clip.warnings) == (
        kept.duration_s,
        kept.source_duration_s,
        kept.warnings,
    )


@pytest.mark.parametrize("keep", [True, False])
def test_to_the_end_of_the_video(tmp_path, keep):
    path = write_video(tmp_path / "a.mp4", pictures(256) * 2, rate=25)
    steps, blocks = [], []
    clip = read_clip(
        path,
        size=SIZE,
        duration_s=None,
        keep_frames=keep,
        on_rows=blocks.append,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert (clip.duration_s, clip.frame_count) == (20.48, 512)
    assert numbers_of(np.concatenate(blocks)) == [*range(256)] * 2
    assert numbers_of(clip.frames) == ([*range(256)] * 2 if keep else [])
    assert steps[0] == (1, 512)
    assert steps[-1] == (512, 512)


def test_progress_without_a_length_in_the_header(tmp_path):
    path = write_video(tmp_path / "a.h264", pictures(50), container="h264")
    steps = []
    clip = read_clip(path, size=SIZE, duration_s=None, on_progress=lambda done, total: steps.append((done, total)))
    assert clip.frame_count == 50
    assert steps == [*((count, count) for count in range(1, 51)), (50, 50)]


def test_frames_that_do_not_fit_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(selva_runtime.media.frames, "MAX_CLIP_BYTES", 300 * 3 * SIZE * SIZE)
    path = write_video(tmp_path / "a.mp4", pictures(256) * 2)
    with pytest.raises(MediaError, match=r"a\.mp4: its frames do not fit in memory; choose a shorter duration"):
        read_clip(path, size=SIZE, duration_s=None)
    assert len(streamed(path, duration_s=None)[1]) == 512


@pytest.mark.parametrize("rule", ["first", "nearest"])
def test_a_frame_after_a_thousand_hours_is_an_error_before_any_frame_is_repeated(tmp_path, rule):
    ticks = [*range(0, 1000, 40), 1000 * 3600 * 1000]
    path = write_video(
        tmp_path / "a.mkv", pictures(26), ticks=ticks, time_base=Fraction(1, 1000), codec="ffv1", pixels="yuv444p"
    )
    rows = []
    with pytest.raises(MediaError, match=r"a\.mkv: lasts 1000\.0 h by its own times, more than 10 h; choose a part"):
        read_clip(path, size=SIZE, duration_s=None, keep_frames=False, on_rows=rows.append, frame_rule=rule)
    assert sum(map(len, rows)) <= 25
    assert len(streamed(path, duration_s=2, frame_rule=rule)[1]) == 50


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"duration_s": 36_001, "keep_frames": False}, "must be at most 36000 s"),
        ({"frame_rule": "last"}, "frame rule 'last': must be first or nearest"),
        ({"start_s": 99, "duration_s": None}, r"ends at 1\.00 s; start earlier"),
    ],
)
def test_requests_out_of_range(tmp_path, request_, words):
    path = write_video(tmp_path / "a.mp4", pictures(25))
    with pytest.raises(RequestError, match=words):
        read_clip(path, size=SIZE, **request_)


STREAM = """
from selva_runtime.media.video import read_clip

def run(path):
    read_clip(path, size=224, duration_s=None, keep_frames=False, on_rows=lambda rows: None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_length(tmp_path):
    short = write_video(tmp_path / "short.mp4", pictures(64))
    long = write_video(tmp_path / "long.mp4", pictures(64) * 10)
    (_, first_mib), (outcome, mib) = peaks_mib(STREAM, short, long)
    assert outcome == "made"
    assert mib < 20 < 640 * 3 * 224 * 224 / 2**20, f"after {first_mib} MiB for the first video"


@pytest.mark.parametrize("rate", [10, Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, 50, 60], ids=str)
def test_the_nearest_frame(tmp_path, rate):
    count = int(2 * Fraction(rate))
    path = write_video(tmp_path / "a.mp4", pictures(count), rate=rate, time_base=Fraction(1, 120000))
    clip = read_clip(path, size=SIZE, duration_s=1.6, frame_rule="nearest")
    times = [round(index / Fraction(rate) * 120000) * Fraction(1, 120000) for index in range(count)]
    assert numbers_of(clip.frames) == nearest(times, 40)


def test_the_nearest_frame_at_a_variable_rate_and_on_both_sides_of_a_gap(tmp_path):
    milliseconds = [0, 33, 40, 41, 300, 310, 900, 1500]
    path = write_video(
        tmp_path / "a.mkv", pictures(8), ticks=milliseconds, time_base=Fraction(1, 1000), options={"bf": "0"}
    )
    clip = read_clip(path, size=SIZE, duration_s=1.48, frame_rule="nearest")
    assert numbers_of(clip.frames) == nearest([Fraction(time, 1000) for time in milliseconds], 37)
    assert numbers_of(clip.frames[[29, 30, 31]]) == [6, 6, 7]  # 1.2 s is as near to 0.9 s as to 1.5 s


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_frame_less_than_a_window_a_window_and_a_frame_more(tmp_path, extra):
    path = write_video(tmp_path / "a.mp4", pictures(104 + extra))
    for asked in (WINDOW_S, None):
        clip, rows = streamed(path, duration_s=asked)
        count = min(104, 104 + extra) if asked else 104 + extra
        assert clip.frame_count == len(rows) == count
        assert numbers_of(rows) == list(range(count))
        assert (clip.duration_s, clip.warnings) == (count / 25, ())


def test_a_variable_rate_with_a_gap_where_a_window_ends(tmp_path):
    """Between 4.12 and 4.6 s there is no frame, so the due times around the window's end take the frame at 4.6 s."""
    milliseconds = [*range(0, 4160, 40), *range(4600, 6000, 40)]
    path = write_video(
        tmp_path / "a.mkv",
        pictures(len(milliseconds)),
        ticks=milliseconds,
        time_base=Fraction(1, 1000),
        options={"bf": "0"},
    )
    _, rows = streamed(path, duration_s=None)
    assert numbers_of(rows[100:118]) == [100, 101, 102, 103, *[104] * 12, 105, 106]
    _, rows = streamed(path, duration_s=None, frame_rule="nearest")
    assert numbers_of(rows[100:118]) == [100, 101, 102, *[103] * 7, *[104] * 6, 105, 106]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts"])
def test_sound_that_is_longer_than_the_pictures_does_not_lengthen_the_clip(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", pictures(104), sound=click(7, 1, 48000))
    for asked in (None, 8):
        clip, rows = streamed(path, duration_s=asked)
        assert (clip.frame_count, clip.duration_s, clip.warnings) == (104, 4.16, ())
        assert clip.source_duration_s == pytest.approx(4.16, abs=0.01)
        assert numbers_of(rows) == list(range(104))
