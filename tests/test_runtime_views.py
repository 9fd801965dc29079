"""Several views of one video: each is what a reading of its own would give, from one decoding."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from clips import numbered, numbers_of, write_video
from oracle import expected

from selva_bundle.errors import RequestError
from selva_ref.weights.random_weights import normal
from selva_runtime.media import pictures as pictures_module
from selva_runtime.media.resize import resize
from selva_runtime.media.video import VideoFile, read_clip, read_views
from selva_runtime.media.views import View

SELVA = View(size=32, fps=25)
SYNC = View(size=24, fps=25, fit="crop")
CLIP = View(size=48, fps=8)
VIEWS = [CLIP, SELVA, SYNC]
MILLISECONDS = {"time_base": Fraction(1, 1000), "options": {"bf": "0"}}


def seen(planes, view):
    """What a view shows of upright planes."""
    return resize(planes, *view.axes(*planes.shape[1:]))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def oracle_frame(kind, height, width):
    """The first of the frames of which the original network was shown four."""
    key = f"input.frames.{kind}"
    coarse = normal(f"{key}.coarse", 4, -(-height // 12), -(-width // 12), 3)
    coarse = coarse.repeat(12, axis=1).repeat(12, axis=2)[:, :height, :width]
    frames = np.clip(np.rint(128 + 24 * normal(key, 4, height, width, 3) + 60 * coarse), 0, 255).astype(np.uint8)
    return frames[0].transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["wide", "tall", "large"])
def test_the_pixels_that_the_original_networks_see(kind):
    stored = expected("preprocess_a")
    _, height, width = (int(n) for n in stored[f"{kind}_size"])
    frame = oracle_frame(kind, height, width)
    views = {"clip": View(size=384, fps=8), "sync": View(size=224, fps=25, fit="crop")}
    for name, view in views.items():
        pixels = stored[f"{kind}_{name}_u8"]
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(seen(frame, view), pixels[0])


@pytest.mark.parametrize(
    ("height", "width", "sizes", "tops"),
    [
        pytest.param(240, 320, (224, 298), (0, 37), id="wide"),
        pytest.param(320, 240, (298, 224), (37, 0), id="tall"),
        pytest.param(224, 399, (224, 399), (0, 88), id="the short side fits, 87.5 becomes 88"),
        pytest.param(397, 224, (397, 224), (86, 0), id="86.5 becomes 86"),
        pytest.param(100, 101, (224, 226), (0, 1), id="the long side is rounded down"),
        pytest.param(90, 90, (224, 224), (0, 0), id="square"),
    ],
)
def test_the_middle_square(height, width, sizes, tops):
    axes = View(size=224, fps=25, fit="crop").axes(height, width)
    assert tuple(axis.size for axis in axes) == sizes
    assert tuple(axis.kept for axis in axes) == tuple(range(top, top + 224) for top in tops)
    planes = noise(height, width).transpose(2, 0, 1)
    whole = torch.nn.functional.interpolate(torch.tensor(planes)[None], size=sizes, mode="bicubic", antialias=True)[
        0
    ].numpy()
    np.testing.assert_array_equal(
        seen(planes, View(size=224, fps=25, fit="crop")),
        whole[:, tops[0] : tops[0] + 224, tops[1] : tops[1] + 224],
    )


def test_the_middle_of_a_very_wide_picture_in_bounded_memory():
    planes = noise(2, 8192).transpose(2, 0, 1)
    view = View(size=32, fps=25, fit="crop")
    whole = torch.nn.functional.interpolate(
        torch.tensor(planes)[None], size=(32, 131072), mode="bicubic", antialias=True
    )[0].numpy()
    np.testing.assert_array_equal(seen(planes, view), whole[:, :, 65520:65552])
    tracemalloc.start()
    try:
        seen(noise(1, 8192).transpose(2, 0, 1), View(size=384, fps=25, fit="crop"))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20 < 3 * 384 * 8192 * 384


@pytest.mark.parametrize("rule", ["first", "nearest"])
@pytest.mark.parametrize("settings", [{}, {"start_s": 0.3}, {"duration_s": 1.0}, {"duration_s": None}], ids=str)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("rate", "ticks_ms"),
    [
        *((rate, None) for rate in (10, Fraction(24000, 1001), 25, 30, 60)),
        (25, [0, 20, 40, 41, 300, 310, 900, 1500, 1501, 1980]),
    ],
    ids=str,
)
def test_each_view_is_what_a_reading_of_its_own_gives(tmp_path, rate, ticks_ms, keep, settings, rule):
    count = len(ticks_ms) if ticks_ms else int(2.1 * rate)
    base = Fraction(1, 1000) if ticks_ms else Fraction(1, 120000)
    images = [numbered(number) for number in range(count)]
    path = write_video(tmp_path / "a.mp4", images, rate=rate, ticks=ticks_ms, time_base=base, options={"bf": "0"})
    blocks = [[], [], []]
    clips = read_views(
        path,
        VIEWS,
        keep_frames=keep,
        frame_rule=rule,
        on_rows=lambda view, rows: blocks[view].append(rows),
        **settings,
    )
    length_s = clips[0].duration_s
    for view, clip, rows in zip(VIEWS, clips, blocks, strict=True):
        alone = read_clip(path, size=view.size, fps=view.fps, fit=view.fit, frame_rule=rule, **settings)
        frames = np.concatenate(rows)
        np.testing.assert_array_equal(frames, alone.frames[: len(frames)])
        np.testing.assert_array_equal(clip.frames, frames if keep else frames[:0])
        assert clip.frame_count == len(frames) == int(view.fps * length_s + 1e-6)
        assert (clip.duration_s, clip.fps, clip.warnings) == (length_s, view.fps, alone.warnings)
    assert len(blocks[1]) > 1, "rows are handed on while the file is read"


def test_tokens_at_8_fps_show_the_first_frame_from_their_time_on(tmp_path):
    path = write_video(tmp_path / "a.mp4", [numbered(number) for number in range(50)])
    (clip,) = read_views(path, [CLIP], duration_s=1.5)
    assert numbers_of(clip.frames) == [0, 4, 7, 10, 13, 16, 19, 22, 25, 29, 32, 35]


def test_a_slower_view_does_not_change_the_length(tmp_path):
    """The video ends 1 ms before 1.125 s, which is a due time at 8 fps but not at 25."""
    path = write_video(
        tmp_path / "a.mkv", [numbered(number) for number in range(2)], ticks=[0, 1084], rate=25, **MILLISECONDS
    )
    alone = read_clip(path, size=32)
    together = read_views(path, VIEWS)
    assert alone.duration_s == pytest.approx(1.124)
    assert {clip.duration_s for clip in together} == {alone.duration_s}
    assert [clip.frame_count for clip in together] == [8, 28, 28]
    assert read_views(path, [CLIP])[0].duration_s == 1.125


def test_a_frame_is_decoded_and_converted_once_for_all_views(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", [numbered(number) for number in range(25)])
    converted = []
    original = pictures_module.Pictures.planes
    monkeypatch.setattr(
        pictures_module.Pictures, "planes", lambda self, frame: (converted.append(frame.pts), original(self, frame))[1]
    )
    with VideoFile(path) as video:
        read_views(video, VIEWS)
    assert len(converted) == len(set(converted)) == 25


@pytest.mark.parametrize(
    "turned", [(0.0, False, False), (90.0, False, False), (180.0, True, False), (270.0, False, True)]
)
def test_the_middle_of_a_turned_picture(tmp_path, turned):
    """Cut out of the picture as it is shown: of 33 columns, 24 are kept from the fourth on, not from the fifth."""
    image = np.zeros((24, 33, 3), np.uint8)
    image[:] = np.arange(33)[:, None] * 7
    path = write_video(tmp_path / "a.mov", [image] * 25, turned=turned, codec="png", pixels="rgb24")
    frame = read_views(path, [SYNC], duration_s=0.8)[0].frames[0, 0]
    squashed = read_views(path, [View(size=33, fps=25)], duration_s=0.8)[0].frames[0, 0]
    lines, columns = squashed[:, 16], squashed[16]
    if turned[0] in (90.0, 270.0):
        np.testing.assert_array_equal(frame[:, 12], lines[4:28])
    else:
        np.testing.assert_array_equal(frame[12], columns[4:28])


@pytest.mark.parametrize(
    ("view", "words"),
    [
        ({"size": 0, "fps": 25}, "25 frames a second of 0 pixels: both must be above 0"),
        ({"size": 8, "fps": float("nan")}, "nan frames a second"),
        ({"size": 8, "fps": 25, "fit": "pad"}, "fit 'pad': must be squash or crop"),
    ],
)
def test_views_out_of_range(view, words):
    with pytest.raises(RequestError, match=words):
        View(**view)


def test_no_view_and_a_view_that_does_not_fit_in_memory(tmp_path):
    path = write_video(tmp_path / "a.mp4", [numbered(number) for number in range(25)])
    with pytest.raises(RequestError, match="views is empty"):
        read_views(path, [])
    with pytest.raises(RequestError, match="would not fit in memory"):
        read_views(path, [SELVA, View(size=4096, fps=25)], duration_s=60)
