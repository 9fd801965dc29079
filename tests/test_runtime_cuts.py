"""Cuts between shots: found where the picture changes for good, not where something moves, flashes or fades."""

import time
from fractions import Fraction

import numpy as np
import pytest
from clips import write_video

from selva_bundle.errors import RequestError
from selva_ref.demo.world.scenes import composed_scene, render, single_scene
from selva_runtime.media.cuts import MIN_SHOT, REACH, CutDetector, read_cuts
from selva_runtime.media.video import read_clip

SIZE = 64
SHOT = 50


def texture(seed, size=4 * SIZE):
    """A picture with detail at all scales, as photographs have: (3, size, size) levels."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    weights = 1 / np.maximum(frequency, 1 / size)
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, size, size))) * weights, s=(size, size))
    grey = planes.mean(0)
    planes = 0.7 * grey / grey.std() + 0.3 * planes / planes.std()
    return np.clip(rng.uniform(80, 170) + 45 * planes, 0, 255)


def shot(seed, frames=SHOT, *, speed=0.0, noise=3.0):
    """A picture (frames, 3, SIZE, SIZE) that pans by `speed` pixels a frame under camera noise."""
    rng, whole = np.random.default_rng([seed, 1]), texture(seed)
    offsets = np.abs((np.round(np.arange(frames) * speed).astype(int) + 3 * SIZE) % (6 * SIZE) - 3 * SIZE)
    views = np.stack([whole[:, :SIZE, offset : offset + SIZE] for offset in offsets])
    return np.clip(views + noise * rng.standard_normal(views.shape), 0, 255).astype(np.uint8)


def cuts_in(frames, block=17):
    detector = CutDetector()
    for start in range(0, len(frames), block):
        detector.push(frames[start : start + block])
    return detector.cuts


def scene(index):
    return render(composed_scene((31, index)) if index % 2 else single_scene((32, index)))


def test_no_cut_within_the_demos_scenes():
    assert [cuts_in(scene(index)) for index in range(24)] == [[]] * 24


def test_every_join_of_two_of_the_demos_scenes():
    joins = [SHOT, 2 * SHOT, 2 * SHOT + 104]
    for first in range(0, 24, 4):
        film = [scene(first)[:SHOT], scene(first + 1)[20 : 20 + SHOT], scene(first + 2), scene(first + 3)]
        assert cuts_in(np.concatenate(film)) == joins


@pytest.mark.parametrize("speed", [0.0, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("noise", [0.0, 3.0, 20.0])
def test_joins_of_shots_that_pan_under_noise(speed, noise):
    film = np.concatenate([shot(seed, speed=speed, noise=noise) for seed in range(8)])
    assert cuts_in(film) == [SHOT * number for number in range(1, 8)]


@pytest.mark.parametrize("block", [1, 5, 400])
def test_the_blocks_do_not_matter(block):
    film = np.concatenate([shot(seed, speed=2) for seed in range(4)])
    assert cuts_in(film, block) == [SHOT, 2 * SHOT, 3 * SHOT]


@pytest.mark.parametrize("size", [8, 31, 100, 224])
def test_frames_of_any_size(size):
    pixels = np.arange(size) * SIZE // size
    film = np.concatenate([shot(seed) for seed in range(3)])[:, :, pixels][..., pixels]
    assert cuts_in(film) == [SHOT, 2 * SHOT]


def test_a_cut_is_known_a_quarter_of_a_second_later():
    film, detector = np.concatenate([shot(1), shot(2)]), CutDetector()
    detector.push(film[: SHOT + REACH])
    assert detector.cuts == []
    detector.push(film[SHOT + REACH : SHOT + REACH + 1])
    assert detector.cuts == [SHOT]


@pytest.mark.parametrize("length", [1, 2, REACH - 1])
def test_a_flash_is_no_cut(length):
    frames = shot(1, 100, speed=1)
    frames[40 : 40 + length] = 255
    assert cuts_in(frames) == []


def test_a_flash_at_a_cut_does_not_hide_it():
    frames = np.concatenate([shot(1), shot(2)])
    frames[SHOT - 1 : SHOT + 1] = 255
    assert cuts_in(frames) == [SHOT - 1]


def test_a_pan_that_begins_suddenly_is_no_cut():
    still, fast = shot(3, 40), shot(3, 60, speed=25)
    assert cuts_in(np.concatenate([still, fast, fast[-1:].repeat(40, 0)])) == []


@pytest.mark.parametrize("length", [12, 25])
def test_a_dissolve_and_a_fade_are_no_cuts(length):
    first, second = shot(1, 100), shot(2, 100)
    share = np.clip((np.arange(100) - 40) / length, 0, 1)[:, None, None, None]
    assert cuts_in((first * (1 - share) + second * share).astype(np.uint8)) == []
    assert cuts_in((first * (1 - share)).astype(np.uint8)) == []


def test_a_video_of_ten_jerky_frames_a_second():
    film = np.concatenate([shot(seed, 20, speed=6) for seed in range(6)])
    assert cuts_in(film[np.arange(300) * 10 // 25]) == [50, 100, 150, 200, 250]


@pytest.mark.parametrize("rate", [5, 10])
def test_jumps_and_repetitions_are_no_cuts(rate):
    frames = shot(4, 60, speed=10)
    assert cuts_in(frames[np.arange(150) * rate // 25]) == []


def test_a_cut_that_is_blended_over_two_frames():
    film = np.concatenate([shot(1), shot(2)])
    film[SHOT] = (film[SHOT - 1].astype(int) + film[SHOT]) // 2
    assert cuts_in(film) in ([SHOT], [SHOT + 1])


def test_shots_shorter_than_half_a_second_belong_to_the_one_before():
    film = np.concatenate([shot(1), shot(2, MIN_SHOT - 1), shot(3)])
    assert cuts_in(film) == [SHOT]


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 30, 60], ids=str)
def test_a_compressed_video_at_another_rate(tmp_path, rate):
    shots, length = 5, 45
    film = np.concatenate([shot(seed, length, speed=2) for seed in range(shots)])
    path = write_video(tmp_path / "a.mp4", film.transpose(0, 2, 3, 1), rate=rate, options={"crf": "28", "g": "20"})
    detector = CutDetector()
    read_clip(path, size=224, duration_s=None, keep_frames=False, on_rows=detector.push)
    expected = [float(length * number / rate * 25) for number in range(1, shots)]
    assert len(detector.cuts) == len(expected)
    np.testing.assert_allclose(detector.cuts, expected, atol=1)


def test_a_frame_takes_much_less_than_a_millisecond():
    frames = np.random.default_rng(0).integers(0, 256, (64, 3, 224, 224), dtype=np.uint8)
    detector, spent_s = CutDetector(), []
    for _ in range(5):
        begin_s = time.process_time()
        detector.push(frames)
        spent_s.append(time.process_time() - begin_s)
    assert min(spent_s) / len(frames) < 1e-3


def test_a_list_of_cuts(tmp_path):
    path = tmp_path / "cuts.txt"
    path.write_text("\ufeff# shots\n0\n\n 1.04 \n00:02.5\r\n1:02.000\n01:00:00.04\n", encoding="utf-8")
    assert read_cuts(path, 25) == [26, 62, 1550, 90001]
    path.write_text("0.01\n0.99\n1.01\n")
    assert read_cuts(path, 25) == [25]
    path.write_text("")
    assert read_cuts(path, 25) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1\nabc\n", r"cuts.txt, line 2: 'abc' is not a time; write seconds such as 12\.48, or HH:MM:SS\.mmm"),
        ("-1\n", "line 1: '-1' is not a time"),
        ("nan\n", "line 1: 'nan' is not a time"),
        ("1e3\n", "line 1: '1e3' is not a time"),
        ("1\n\n1\n", "line 3: 1 is not after the time before it; sort the times"),
        ("0:10\n9.5\n", r"line 2: 9\.5 is not after"),
        ("1:2:3:4\n", "line 1: '1:2:3:4' is not a time"),
        ("9" * 5000, "line 1: '9{40}' is not a time"),
        ("\x00\x1b[31m\n", r"line 1: '\\x00\\x1b\[31m' is not a time"),
        ("1\n" * (1 << 19) + "\n", "is larger than 1 MiB"),
    ],
)
def test_broken_lists_of_cuts(tmp_path, content, words):
    path = tmp_path / "cuts.txt"
    path.write_text(content)
    with pytest.raises(RequestError, match=words) as caught:
        read_cuts(path, 25)
    assert "\n" not in str(caught.value)


def test_a_list_of_cuts_that_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(RequestError, match="is not a file; name a text file"):
            read_cuts(path, 25)
