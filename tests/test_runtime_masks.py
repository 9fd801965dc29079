"""Masks: what each kind of file keeps, which frame of a mask goes with which frame of a video, and what fills the rest.

In most tests the video is white and the fill black, so the frames that come out show the mask itself.
"""

import os
import threading
from fractions import Fraction

import numpy as np
import pytest
from clips import numbered, write_video
from movies import peaks_mib
from pngs import GREY_ALPHA, PALETTE, RGB, RGBA, write_png

import selva_runtime.media.masks.sources
from selva_bundle.errors import Cancelled, MediaError, MediaNotFoundError, RequestError, SelvaError
from selva_runtime.media.masks.filling import BLUR_PIXELS, fill_outside, masked_frames, whole
from selva_runtime.media.masks.mask import MaskFile
from selva_runtime.media.resize import resize
from selva_runtime.media.video import read_clip, read_views
from selva_runtime.media.views import View

SIZE = 32
LOSSLESS = {"codec": "ffv1", "pixels": "gray"}
VARIABLE = {"time_base": Fraction(1, 1000), "options": {"bf": "0"}, "codec": "ffv1", "pixels": "bgr0"}


def level(value, *, height=SIZE, width=SIZE):
    return np.full((height, width), value, np.uint8)


def steps(count):
    """Frames of a mask whose level tells their number."""
    return [level(4 * number) for number in range(count)]


def white(path, count, *, rate=25, height=SIZE, width=SIZE, **settings):
    pictures = [np.full((height, width, 3), 255, np.uint8)] * count
    return write_video(path, pictures, rate=rate, **{"codec": "ffv1", "pixels": "bgr0", **settings})


def shown(video, mask, *, fill="black", invert=False, **settings):
    """Reads a video through a mask. Returns the clip, and the number of the mask's frame in each of its frames."""
    clip = read_clip(video, size=SIZE, mask=MaskFile(path=mask, fill=fill, invert=invert), **settings)
    values = clip.frames[:, 0, SIZE // 2, SIZE // 2]
    assert (clip.frames == values[:, None, None, None]).all()
    return clip, (values / 4).tolist()


# what fills


@pytest.mark.parametrize(("fill", "other"), [("grey", 128), ("black", 0)])
def test_the_blend_is_exact_and_rounded(fill, other):
    values, keep = np.meshgrid(np.arange(256), np.arange(256))
    planes = np.stack([values] * 3).astype(np.uint8)
    fill_outside(planes, keep.astype(np.uint8), fill)
    expected = (values * keep + other * (255 - keep) + 127) // 255
    np.testing.assert_array_equal(planes, [expected] * 3)
    np.testing.assert_array_equal(planes[0, 255], np.arange(256))
    assert (planes[:, 0] == other).all()


def test_blur_leaves_only_the_rough_colours():
    picture = np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8)
    picture[0, :, 30:] = 255
    keep = level(0, height=40, width=60)
    keep[:20], keep[20] = 255, 51
    filled = picture.copy()
    fill_outside(filled, keep, "blur")
    small = resize(picture, whole(BLUR_PIXELS), whole(BLUR_PIXELS))
    behind = resize(small, whole(40), whole(60))
    np.testing.assert_array_equal(filled[:, :20], picture[:, :20])
    np.testing.assert_array_equal(filled[:, 21:], behind[:, 21:])
    soft = (picture[:, 20].astype(int) * 51 + behind[:, 20].astype(int) * 204 + 127) // 255
    np.testing.assert_array_equal(filled[:, 20], soft)
    assert np.abs(np.diff(filled[:, 21:].astype(int), axis=2)).max() < 20 < np.abs(np.diff(picture.astype(int))).max()
    assert filled[0, 30, 50] > filled[0, 30, 5] + 50


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_an_array(kind, moves, invert):
    random = np.random.default_rng(1)
    frames = random.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    before = frames.copy()
    mask = random.integers(0, 2, (4, 8, 8) if moves else (8, 8)).astype(bool)
    given = mask if kind is bool else mask * np.uint8(255)
    filled, warnings = masked_frames(frames, given, "grey", invert=invert)
    keep = np.broadcast_to(mask ^ invert, (4, 8, 8))[:, None]
    np.testing.assert_array_equal(filled, np.where(keep, frames, 128))
    np.testing.assert_array_equal(frames, before)
    assert warnings == ()


def test_an_array_of_ones_and_zeros_gets_a_warning():
    frames = np.zeros((2, 3, 8, 8), np.uint8)
    _, (warning,) = masked_frames(frames, np.ones((8, 8), np.uint8), "grey", invert=False)
    assert warning == "the mask: keeps nothing of this part (its highest value is 1 of 255; white is 255)"
    _, (warning,) = masked_frames(frames, np.ones((8, 8), np.uint8), "grey", invert=True)
    assert warning == "the mask: fills nothing of this part (its lowest value is 254 of 255; black is 0)"


@pytest.mark.parametrize(
    ("mask", "fill", "words"),
    [
        (
            np.zeros((8, 8), np.float32),
            "grey",
            r"the mask is float32 \(8, 8\); give uint8 or bool \(8, 8\) or \(frames",
        ),
        (np.zeros((8, 9), bool), "grey", r"the mask is uint8 \(8, 9\)"),
        (np.zeros((1, 4, 8, 8), bool), "grey", r"the mask is uint8 \(1, 4, 8, 8\)"),
        (np.zeros((3, 8, 8), bool), "grey", "the mask has 3 frames; give 4, or one for all"),
        (np.zeros((8, 8), bool), "red", "mask fill 'red': must be grey, black or blur"),
        (None, "red", "mask fill 'red': must be grey, black or blur"),
    ],
)
def test_arrays_that_are_refused(mask, fill, words):
    with pytest.raises(RequestError, match=words):
        masked_frames(np.zeros((4, 3, 8, 8), np.uint8), mask, fill, invert=False)


# what a frame of a mask keeps

RAMP = np.arange(0, 256, 51)[None].repeat(4, axis=0)
COLOURED = {"kind": PALETTE, "palette": [[0, 0, 0], [128, 0, 0], [0, 0, 64]]}


@pytest.mark.parametrize(
    ("settings", "pixels", "keep"),
    [
        pytest.param({}, RAMP, RAMP, id="grey"),
        pytest.param({"bits": 1}, RAMP // 51 % 2, RAMP // 51 % 2 * 255, id="one bit"),
        pytest.param({"bits": 2}, RAMP // 51 % 4, RAMP // 51 % 4 * 85, id="two bits"),
        pytest.param({"bits": 16}, np.minimum(RAMP, 51) * 1285, np.minimum(RAMP, 51) * 5, id="16 bits"),
        pytest.param({"kind": RGB}, np.stack([RAMP, RAMP // 2, RAMP // 3], -1), RAMP, id="red counts like white"),
        pytest.param(
            {"kind": RGBA}, np.stack([RAMP, RAMP, RAMP * 0, RAMP * 0 + 255], -1), RAMP, id="alpha opaque: brightness"
        ),
        pytest.param({"kind": RGBA}, np.stack([RAMP * 0 + 77] * 3 + [RAMP], -1), RAMP, id="a cut-out: alpha"),
        pytest.param({"kind": GREY_ALPHA}, np.stack([255 - RAMP, RAMP], -1), RAMP, id="grey and alpha: alpha"),
        pytest.param(
            {"kind": PALETTE, "palette": [[255] * 3, [0] * 3, [51] * 3]},
            RAMP // 51 % 3,
            np.choose(RAMP // 51 % 3, [255, 0, 51]),
            id="a palette of greys: brightness",
        ),
        pytest.param(COLOURED, RAMP // 51 % 3, np.choose(RAMP // 51 % 3, [0, 255, 255]), id="labels"),
        pytest.param(
            {**COLOURED, "alphas": [0, 255, 51]},
            RAMP // 51 % 3,
            np.choose(RAMP // 51 % 3, [0, 255, 51]),
            id="a palette with alpha",
        ),
    ],
)
@pytest.mark.parametrize("invert", [False, True])
def test_what_a_png_keeps(tmp_path, settings, pixels, keep, invert):
    mask = write_png(tmp_path / "mask.png", pixels, **settings)
    video = white(tmp_path / "a.mkv", 20, height=4, width=6)
    clip = read_clip(video, size=6, mask=MaskFile(path=mask, fill="black", invert=invert))
    expected = resize((255 - keep if invert else keep).astype(np.uint8)[None], whole(6), whole(6))
    np.testing.assert_array_equal(clip.frames, np.broadcast_to(expected, clip.frames.shape))
    assert clip.warnings == ()


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "gray", "yuvj420p"])
def test_a_lossy_mask_video_reaches_white_and_black(tmp_path, pixels):
    codec = "mjpeg" if pixels == "yuvj420p" else "ffv1"
    frame = level(0, height=64, width=64)
    frame[:, 32:] = 255
    picture = np.repeat(frame[..., None], 3, axis=2)
    mask = write_video(tmp_path / "mask.mkv", [picture] * 25, codec=codec, pixels=pixels)
    clip = read_clip(white(tmp_path / "a.mkv", 25), size=SIZE, mask=MaskFile(path=mask, fill="black"))
    assert (clip.frames[..., :12] <= 2).all()
    assert (clip.frames[..., 20:] >= 253).all()


# which frame of a mask


@pytest.mark.parametrize("rate", [10, Fraction(24000, 1001), 25, 30, 50], ids=str)
@pytest.mark.parametrize("suffix", ["mkv", "mov"])
@pytest.mark.parametrize("settings", [{}, {"start_s": 0.3}, {"frame_rule": "nearest"}], ids=str)
def test_a_mask_video_is_sampled_by_time(tmp_path, rate, suffix, settings):
    mask = write_video(
        tmp_path / f"mask.{suffix}",
        steps(int(1.2 * rate)),
        rate=rate,
        codec="ffv1" if suffix == "mkv" else "png",
        pixels="gray",
    )
    clip, numbers = shown(white(tmp_path / "a.mkv", 25), mask, **settings)
    first = round(25 * settings.get("start_s", 0) + 0.25)
    times = [Fraction(first + number, 25) for number in range(clip.frame_count)]
    assert numbers == [int((time + Fraction(2, 1000)) * Fraction(rate)) for time in times]
    assert clip.warnings == ()


def test_the_mask_belongs_to_the_frame_not_to_the_due_time(tmp_path):
    """The due times up to 0.5 s show the frame at 0.5 s, and so the mask of that moment."""
    video = white(tmp_path / "a.mkv", 3, ticks=[0, 500, 960], **VARIABLE)
    mask = write_video(tmp_path / "mask.mkv", steps(25), **LOSSLESS)
    _, numbers = shown(video, mask, duration_s=0.96)
    assert numbers == [0, *[12] * 12, *[24] * 11]


@pytest.mark.parametrize("start_s", [9, 12.36])
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_a_part_that_begins_late(tmp_path, start_s, kind):
    video = white(tmp_path / "a.mkv", 350, options={"g": "10"})
    frames = [level(number % 50 * 4) for number in range(350)]
    if kind == "video":
        mask = write_video(tmp_path / "mask.mkv", frames, **LOSSLESS)
    else:
        mask = tmp_path / "masks"
        mask.mkdir()
        for number, frame in enumerate(frames):
            write_png(mask / f"{number}.png", frame)
    clip, numbers = shown(video, mask, start_s=start_s, duration_s=0.8)
    assert numbers == [(round(25 * start_s) + number) % 50 for number in range(20)]
    assert clip.warnings == ()


def test_a_part_of_a_long_mask_is_found_without_decoding_all_of_it(tmp_path, monkeypatch):
    video, mask = white(tmp_path / "a.mkv", 1000), write_video(tmp_path / "mask.mkv", steps(50) * 20, **LOSSLESS)
    looked = []
    original = selva_runtime.media.masks.sources.MaskVideo.at

    def counted(self, time):
        before = self._shown
        frame = original(self, time)
        looked.append((before[0], self._shown[0]))
        return frame

    monkeypatch.setattr(selva_runtime.media.masks.sources.MaskVideo, "at", counted)
    shown(video, mask, start_s=36, duration_s=1)
    assert looked[0][0] > 29


def test_times_count_from_the_first_frame_of_each(tmp_path):
    mask = write_video(tmp_path / "mask.mkv", steps(25), start_s=3, **LOSSLESS)
    clip, numbers = shown(white(tmp_path / "a.mkv", 25, start_s=1), mask)
    assert numbers == [*range(25)]
    assert clip.warnings == ()


def write_sequence(folder, names, levels=None):
    folder.mkdir()
    for number, name in enumerate(names):
        write_png(folder / name, level(4 * number if levels is None else levels[number]))
    return folder


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, 30, 60], ids=str)
def test_a_folder_is_a_sequence_at_the_rate_of_the_video(tmp_path, rate):
    count = int(rate)
    mask = write_sequence(tmp_path / "masks", [f"shot7_{number:05}.png" for number in range(count)])
    (mask / ".hidden.png").write_bytes(b"")
    (mask / "readme.txt").write_text("hello")
    clip, numbers = shown(white(tmp_path / "a.mkv", count, rate=rate), mask, duration_s=0.92)
    assert numbers == [-int(-Fraction(number, 25) * rate // 1) for number in range(23)]
    assert clip.warnings == ()


def test_numbers_count_and_a_missing_one_holds_the_one_before(tmp_path):
    mask = write_sequence(tmp_path / "masks", ["m_8.png", "m_9.png", "m_10.PNG", "m_14.png"], [8, 12, 16, 32])
    clip, numbers = shown(white(tmp_path / "a.mkv", 20), mask)
    assert numbers[:8] == [2, 3, 4, 4, 4, 4, 8, 8]
    assert clip.warnings == (
        "masks: m_8.png is taken for the first frame of the video",
        "masks: the mask ends at 0.28 s; its last frame is held",
    )


def test_numbers_from_one_need_no_warning(tmp_path):
    mask = write_sequence(tmp_path / "masks", [f"take2_{number}_v3.png" for number in range(1, 21)])
    clip, numbers = shown(white(tmp_path / "a.mkv", 20), mask)
    assert numbers == [*range(20)]
    assert clip.warnings == ()


@pytest.mark.parametrize("kind", ["png", "folder", "video"])
def test_one_picture_holds_for_the_whole_clip(tmp_path, kind):
    if kind == "video":
        mask = write_video(tmp_path / "mask.mkv", [level(28)], **LOSSLESS)
    else:
        mask = write_sequence(tmp_path / "masks", ["of_shot_12.png"], [28])
        mask = mask if kind == "folder" else mask / "of_shot_12.png"
    for start_s in (0, 13):
        clip, numbers = shown(white(tmp_path / "a.mkv", 350), mask, start_s=start_s, duration_s=1)
        assert numbers == [7] * 25
        assert clip.warnings == ()


# what is said


def test_a_mask_that_ends_early_holds_its_last_frame(tmp_path):
    mask = write_video(tmp_path / "mask.mkv", steps(10), **LOSSLESS)
    clip, numbers = shown(white(tmp_path / "a.mkv", 25), mask)
    assert numbers == [*range(10), *[9] * 15]
    assert clip.warnings == ("mask.mkv: the mask ends at 0.40 s; its last frame is held",)
    clip, _ = shown(white(tmp_path / "a.mkv", 25), write_video(mask, steps(24), **LOSSLESS))
    assert clip.warnings == ()  # a frame too few is usual


@pytest.mark.parametrize(("width", "warns"), [(100, False), (102, False), (104, True), (56, True)])
def test_another_aspect_ratio_is_stretched_with_a_warning(tmp_path, width, warns):
    pixels = np.zeros((50, width), np.uint8)
    pixels[:, width // 2 :] = 255
    mask = write_png(tmp_path / "mask.png", pixels)
    clip = read_clip(
        white(tmp_path / "a.mkv", 20, height=100, width=200), size=SIZE, mask=MaskFile(path=mask, fill="black")
    )
    warning = f"mask.png: the mask is {width}x50, the video 200x100; it is stretched to fit"
    assert clip.warnings == ((warning,) if warns else ())
    assert (clip.frames[..., :14] < 8).all()
    assert (clip.frames[..., 18:] > 247).all()


def test_a_frame_without_a_mask_is_no_fault_but_a_clip_is(tmp_path):
    mask = write_sequence(tmp_path / "masks", [f"{number}.png" for number in range(20)], [0] * 10 + [255] * 10)
    assert shown(white(tmp_path / "a.mkv", 20), mask)[0].warnings == ()
    for value, invert, words in [
        (1, False, "keeps nothing"),
        (255, False, "fills nothing"),
        (0, True, "fills nothing"),
    ]:
        write_png(tmp_path / "mask.png", level(value))
        (warning,) = shown(tmp_path / "a.mkv", tmp_path / "mask.png", invert=invert)[0].warnings
        assert f"mask.png: {words} of this part" in warning


def test_a_damaged_mask(tmp_path):
    mask = write_video(tmp_path / "mask.mkv", steps(25), options={"slicecrc": "1"}, **LOSSLESS)
    data = bytearray(mask.read_bytes())
    data[len(data) // 2] ^= 255
    mask.write_bytes(data)
    clip = read_clip(white(tmp_path / "a.mkv", 25), size=SIZE, mask=MaskFile(path=mask, fill="black"))
    assert clip.frame_count == 25


# where it is applied


@pytest.mark.parametrize("turn", [0.0, 90.0, 180.0, 270.0])
def test_the_mask_lies_on_the_picture_as_it_is_shown(tmp_path, turn):
    """The upper left of the shown picture is kept, however it is stored and whichever way the mask is stored."""
    video = white(tmp_path / "a.mov", 25, height=48, width=64, turned=(turn, False, False), codec="png", pixels="rgb24")
    pixels = np.zeros((64, 48) if turn in (90.0, 270.0) else (48, 64), np.uint8)
    pixels[: pixels.shape[0] // 2, : pixels.shape[1] // 2] = 255
    upright = write_png(tmp_path / "mask.png", pixels)
    stored = np.rot90(pixels, -round(turn / 90))
    turned = write_video(tmp_path / "mask.mov", [stored] * 25, turned=(turn, False, False), codec="png", pixels="gray")
    for mask in (upright, turned):
        clip = read_clip(video, size=SIZE, mask=MaskFile(path=mask, fill="black"))
        assert (clip.frames[..., :14, :14] > 247).all()
        assert (clip.frames[..., 18:, :] < 8).all()
        assert (clip.frames[..., :, 18:] < 8).all()
        assert clip.warnings == ()


def test_the_frame_is_filled_before_it_is_resized(tmp_path):
    """Half of a pixel of the small frame is kept, so it is half filled."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 2:] = 255
    clip = read_clip(
        white(tmp_path / "a.mkv", 20, height=64, width=64),
        size=16,
        mask=MaskFile(path=write_png(tmp_path / "mask.png", pixels), fill="black"),
    )
    expected = resize(pixels[None], whole(16), whole(16))
    np.testing.assert_array_equal(clip.frames, np.broadcast_to(expected, clip.frames.shape))
    assert 100 < clip.frames[0, 0, 8, 0] < 156


def test_the_decoder_keeps_its_own_frame(tmp_path):
    """QuickTime Animation stores what changes; a frame that was filled must not show through in the next ones."""
    picture = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    video = write_video(tmp_path / "a.mov", [picture] * 20, codec="qtrle", pixels="rgb24")
    mask = write_sequence(tmp_path / "masks", [f"{number}.png" for number in range(20)], [0] + [255] * 19)
    clip = read_clip(video, size=SIZE, mask=MaskFile(path=mask, fill="black"))
    assert (clip.frames[0] == 0).all()
    for frame in clip.frames[1:]:
        np.testing.assert_array_equal(frame, picture.transpose(2, 0, 1))


def test_a_view_without_the_mask_beside_one_with_it(tmp_path):
    video = write_video(tmp_path / "a.mkv", [numbered(number) for number in range(25)])
    mask = MaskFile(path=write_png(tmp_path / "mask.png", level(0)))
    views = [View(size=SIZE, fps=25), View(size=SIZE, fps=25, masked=False), View(size=24, fps=8, fit="crop")]
    masked, plain, cropped = read_views(video, views, mask=mask)
    assert (masked.frames == 128).all()
    assert (cropped.frames == 128).all()
    np.testing.assert_array_equal(plain.frames, read_clip(video, size=SIZE).frames)
    assert "keeps nothing" in masked.warnings[-1]
    assert plain.warnings == ()


# what is refused


def make_link(folder):
    write_png(folder.parent / "elsewhere.png", level(0))
    (folder / "0.png").symlink_to(folder.parent / "elsewhere.png")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "holds no PNG files; name a folder of them, one PNG, or a video"),
        (lambda folder: (folder / "0.png").mkdir(), r"0\.png: is a link or a folder; put the PNG itself there"),
        (make_link, r"0\.png: is a link or a folder; put the PNG itself there"),
        (
            lambda folder: [write_png(folder / name, level(0)) for name in ("dog.png", "ball.png")],
            r"must be of one sequence, such as mask_0001\.png; ball\.png and dog\.png are not",
        ),
        (
            lambda folder: [write_png(folder / name, level(0)) for name in ("a1b1.png", "a2b2.png")],
            r"must differ in one number",
        ),
        (lambda folder: [write_png(folder / name, level(0)) for name in ("1.png", "01.png")], "differ in one number"),
        (lambda folder: (folder / "0.png").write_bytes(b""), r"0\.png: is empty"),
        (lambda folder: (folder / "0.png").write_text("not a picture"), r"0\.png: no frame of up to"),
    ],
)
def test_folders_that_are_refused(tmp_path, make, words):
    folder = tmp_path / "masks"
    folder.mkdir()
    make(folder)
    with pytest.raises(MediaError, match=rf"^the mask .*{words}"):
        read_clip(white(tmp_path / "a.mkv", 25), size=SIZE, mask=MaskFile(path=folder))


def test_a_folder_with_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(selva_runtime.media.masks.sources, "MAX_PNGS", 3)
    folder = write_sequence(tmp_path / "masks", [f"{number}.png" for number in range(4)])
    with pytest.raises(MediaError, match="holds more than 3 PNGs; make a mask video of them"):
        MaskFile(path=folder).files()


def test_files_that_are_no_mask(tmp_path):
    video = white(tmp_path / "a.mkv", 25)
    with pytest.raises(MediaNotFoundError, match=r"^the mask .*none\.mov: no such file; check the path"):
        read_clip(video, size=SIZE, mask=MaskFile(path=tmp_path / "none.mov"))
    (tmp_path / "note.txt").write_text("hello, this is text")
    with pytest.raises(MediaError, match=r"^the mask .*note\.txt: is not a video"):
        read_clip(video, size=SIZE, mask=MaskFile(path=tmp_path / "note.txt"))
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(MediaError, match=r"^the mask .*pipe: is not a regular file"):
            read_clip(video, size=SIZE, mask=MaskFile(path=tmp_path / "pipe"))
    with pytest.raises(RequestError, match="mask fill 'red': must be grey, black or blur"):
        MaskFile(path=video, fill="red")


READ = """
from pathlib import Path
from selva_runtime.media.masks.mask import MaskFile
from selva_runtime.media.video import read_clip

def run(path):
    read_clip(Path(path).with_name("a.mkv"), size=32, mask=MaskFile(path=Path(path)))
"""


def test_a_huge_png_is_refused_in_little_memory(tmp_path):
    """A few kilobytes that would unpack to 300 MB."""
    white(tmp_path / "a.mkv", 25)
    small = write_png(tmp_path / "small.png", level(255))
    huge = write_png(tmp_path / "huge.png", np.zeros((10_000, 30_000), np.uint8))
    assert huge.stat().st_size < 400_000
    (made, _), (outcome, mib) = peaks_mib(READ, small, huge)
    assert (made, outcome) == ("made", "MediaError")
    assert mib < 100
    with pytest.raises(MediaError, match=r"^the mask .*huge\.png: no frame of up to 8192x8192 pixels can be decoded"):
        read_clip(tmp_path / "a.mkv", size=SIZE, mask=MaskFile(path=huge))


def test_whatever_is_damaged_the_error_is_typed(tmp_path):
    video = white(tmp_path / "a.mkv", 25)
    whole_png = write_png(tmp_path / "m.png", RAMP.repeat(8, axis=0)).read_bytes()
    readable = 0
    for place in range(8, len(whole_png), 2):
        (tmp_path / "m.png").write_bytes(whole_png[:place] + bytes([whole_png[place] ^ 255]) + whole_png[place + 1 :])
        try:
            read_clip(video, size=SIZE, mask=MaskFile(path=tmp_path / "m.png"))
            readable += 1
        except SelvaError as error:
            assert "\n" not in str(error)  # noqa: PT017 -- a clip is as good
    assert readable


# what makes one mask another


def test_the_content_of_a_mask(tmp_path):
    folder = write_sequence(tmp_path / "masks", ["1.png", "2.png"])
    one = MaskFile(path=folder)
    contents = {one.content(None)}
    assert MaskFile(path=folder.rename(tmp_path / "moved")).content(None) in contents
    folder = tmp_path / "moved"
    for other in (MaskFile(path=folder, fill="black"), MaskFile(path=folder, invert=True)):
        contents.add(other.content(None))
    write_png(folder / "2.png", level(77))
    contents.add(MaskFile(path=folder).content(None))
    (folder / "2.png").rename(folder / "3.png")
    contents.add(MaskFile(path=folder).content(None))
    contents.add(MaskFile(path=folder / "1.png").content(None))
    (folder / "3.png").unlink()
    contents.add(MaskFile(path=folder).content(None))
    assert len(contents) == 7
    event = threading.Event()
    event.set()
    with pytest.raises(Cancelled):
        MaskFile(path=folder).content(event)
