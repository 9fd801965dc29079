"""Reading clips: which frame is used when, from complete, damaged and hostile files of many kinds."""

import io
import math
import random
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from clips import click, numbered, numbers_of, write_video

from selva_bundle.errors import Cancelled, MediaError, MediaNotFoundError, RequestError, SelvaError
from selva_runtime.media.video import read_clip

SIZE = 32
LOSSLESS = {"codec": "ffv1", "pixels": "yuv444p"}


def pictures(count, **size):
    return [numbered(number, **size) for number in range(count)]


def due_pictures(times, end, *, start=Fraction(0), fps=25):
    """Takes one frame for each due time that is reached while reading the frames in order, then repeats the last."""
    taken, due = [], start
    for index, time in enumerate(times):
        while time >= due and due < end:
            taken.append(index)
            due += Fraction(1, fps)
    while due < end:
        taken.append(len(times) - 1)
        due += Fraction(1, fps)
    return taken


@pytest.mark.parametrize("rate", [Fraction(10), Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, 50, 60], ids=str)
def test_frames_by_presentation_time(tmp_path, rate):
    count = math.ceil(Fraction(rate) * 2)
    path = write_video(tmp_path / "a.mp4", pictures(count), rate=rate, time_base=Fraction(1, 120000))
    clip = read_clip(path, size=SIZE, duration_s=1.6)
    times = [round(index / Fraction(rate) * 120000) * Fraction(1, 120000) for index in range(count)]
    assert numbers_of(clip.frames) == due_pictures(times, Fraction(8, 5))
    assert (clip.frames.dtype, clip.frames.shape) == (np.uint8, (40, 3, SIZE, SIZE))
    assert (clip.duration_s, clip.fps, clip.start_s, clip.warnings) == (1.6, 25, 0, ())


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_variable_frame_rate(tmp_path, suffix):
    milliseconds = [0, 33, 40, 41, 300, 310, 900, 1500]
    write_video(
        tmp_path / f"a.{suffix}", pictures(8), ticks=milliseconds, time_base=Fraction(1, 1000), options={"bf": "0"}
    )
    clip = read_clip(tmp_path / f"a.{suffix}", size=SIZE, duration_s=1.5)
    times = [Fraction(time, 1000) for time in milliseconds]
    assert numbers_of(clip.frames) == due_pictures(times, Fraction(3, 2))[:37]


def test_short_video_shortens_and_its_last_frame_is_held(tmp_path):
    path = write_video(tmp_path / "a.mp4", pictures(4), rate=2)
    steps = []
    clip = read_clip(path, size=SIZE, on_progress=lambda done, total: steps.append((done, total)))
    assert clip.duration_s == clip.source_duration_s == 2
    assert numbers_of(clip.frames) == [0] + [1] * 12 + [2] * 13 + [3] * 24
    assert steps == sorted(steps)
    assert {total for _, total in steps} == {50}
    assert steps[-1] == (50, 50)
    assert clip.warnings == ()


@pytest.mark.parametrize(("rate", "count"), [(25, 104), (30, 125), (60, 240)])
def test_millisecond_times_do_not_shorten(tmp_path, rate, count):
    length = Fraction(count, rate)
    path = write_video(tmp_path / "a.mkv", pictures(count), rate=rate)
    for asked in (length, 8):
        clip = read_clip(path, size=SIZE, duration_s=float(asked))
        assert clip.duration_s == pytest.approx(float(length), abs=0.002)
        assert len(clip.frames) == math.floor(25 * length)


@pytest.mark.parametrize("start_s", [0.04, 0.1 + 0.2, 1.16])
def test_start_on_a_frame_takes_that_frame(tmp_path, start_s):
    path = write_video(tmp_path / "a.mp4", pictures(60))
    clip = read_clip(path, size=SIZE, start_s=start_s, duration_s=0.8)
    first = math.ceil(round(start_s * 25, 6))
    assert numbers_of(clip.frames) == list(range(first, first + 20))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.ts", {}),
        ("b.ts", {"start_s": 90, "sound": click(14, 1, 48000)}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.avi", {"codec": "libx264"}),
        ("a.h264", {"container": "h264"}),
        ("a.gif", {"codec": "gif", "pixels": "gray", "rate": 20}),
    ],
)
def test_start_deep_in_the_file(tmp_path, name, settings):
    settings = {"options": {"g": "40"}, "rate": 25, **settings}
    rate, start_s = settings["rate"], 11.4
    path = write_video(tmp_path / name, pictures(14 * rate, width=32, height=32), **settings)
    clip = read_clip(path, size=SIZE, start_s=start_s, duration_s=1)
    times = [Fraction(index, rate) for index in range(14 * rate)]
    expected = due_pictures(times, Fraction("12.4"), start=Fraction("11.4"))
    assert numbers_of(clip.frames) == [number % 256 for number in expected]
    assert clip.warnings == ()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mov", {"codec": "png", "pixels": "rgb24"}),
        ("b.mov", {"codec": "prores_ks", "pixels": "yuv422p10le"}),
        ("a.nut", {"codec": "rawvideo", "pixels": "rgba"}),
        ("a.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
        ("b.avi", {"codec": "mpeg4", "options": {"bf": "2", "qmax": "2"}}),
        ("a.mkv", {"codec": "ffv1", "pixels": "gray10le"}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
        ("b.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none", "preset": "ultrafast"}}),
        ("late.mkv", {"start_s": 7, "sound": click(1, 0.5, 48000)}),
        ("100%d: é 猫.mp4", {}),
    ],
)
def test_codecs_and_containers(tmp_path, name, settings):
    path = write_video(tmp_path / name, pictures(25), **settings)
    clip = read_clip(path, size=SIZE)
    assert numbers_of(clip.frames) == list(range(25))
    assert (clip.duration_s, clip.warnings) == (1, ())


@pytest.mark.parametrize(
    ("turned", "upright"),
    [
        ((90, False, False), np.rot90),
        ((-90, False, False), lambda picture: np.rot90(picture, -1)),
        ((180, False, False), lambda picture: np.rot90(picture, 2)),
        ((0, True, False), lambda picture: picture[:, ::-1]),
        ((0, False, True), lambda picture: picture[::-1]),
    ],
    ids=["left", "right", "half", "mirrored", "upside down"],
)
def test_display_matrix(tmp_path, turned, upright):
    picture = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path = write_video(tmp_path / "a.mov", [picture] * 25, codec="png", pixels="rgb24", turned=turned)
    clip = read_clip(path, size=64)
    np.testing.assert_array_equal(clip.frames[0].transpose(1, 2, 0), upright(picture))


@pytest.mark.parametrize("colour", [(1, 1), (1, 2), (5, 1), (5, 2)], ids=str)
def test_colour_matrix_and_range_are_honoured(tmp_path, colour):
    colours = np.full((32, 32, 3), (200, 60, 90), np.uint8)
    with av.open(str(tmp_path / "a.mkv"), "w") as target:
        stream = target.add_stream("ffv1", rate=25, width=32, height=32, pix_fmt="yuv444p")
        stream.codec_context.colorspace, stream.codec_context.color_range = colour
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(colours, "rgb24").reformat(
                format="yuv444p", dst_colorspace=colour[0], dst_color_range=colour[1]
            )
            frame.pts, frame.time_base = index, Fraction(1, 25)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    clip = read_clip(tmp_path / "a.mkv", size=SIZE)
    assert np.abs(clip.frames[0].astype(int) - np.array([200, 60, 90])[:, None, None]).max() <= 3


def test_8k_and_one_pixel(tmp_path):
    path = write_video(
        tmp_path / "8k.mov", [np.full((4320, 7680), 77, np.uint8)] * 2, rate=2, codec="png", pixels="gray"
    )
    assert (read_clip(path, size=SIZE).frames == 77).all()
    path = write_video(tmp_path / "1.nut", [np.full((1, 1, 3), 99, np.uint8)] * 25, codec="rawvideo", pixels="rgb24")
    assert (read_clip(path, size=SIZE).frames == 99).all()


def test_too_large_frames_are_refused(tmp_path):
    wide = np.zeros((2, 8194, 3), np.uint8)
    path = write_video(tmp_path / "header.mov", [wide] * 25, codec="png", pixels="rgb24")
    with pytest.raises(MediaError, match="8194x2 frames are larger than 8192x8192"):
        read_clip(path, size=SIZE)
    later = tmp_path / "later.mjpeg"
    later.write_bytes(jpeg(np.zeros((2, 64, 3), np.uint8)) * 9 + jpeg(wide) * 30)
    with pytest.raises(MediaError, match="8194x2 frames are larger"):
        read_clip(later, size=SIZE)


def jpeg(picture):
    data = io.BytesIO()
    with av.open(data, "w", format="mjpeg") as target:
        stream = target.add_stream("mjpeg", width=picture.shape[1], height=picture.shape[0], pix_fmt="yuvj420p")
        target.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        target.mux(stream.encode(None))
    return data.getvalue()


def test_frame_size_may_change(tmp_path):
    path = tmp_path / "a.mjpeg"
    path.write_bytes(jpeg(numbered(3)) * 20 + jpeg(numbered(5, width=128, height=30)) * 20)
    assert numbers_of(read_clip(path, size=SIZE).frames) == [3] * 20 + [5] * 20


def test_cover_art_is_no_video(tmp_path):
    def add_cover(target):
        cover = target.add_stream("png", width=64, height=48, pix_fmt="rgb24")
        cover.disposition = Disposition.attached_pic
        return cover

    with av.open(str(tmp_path / "song.mp4"), "w") as target:
        cover, sound = add_cover(target), target.add_stream("aac", rate=48000, layout="mono")
        target.start_encoding()
        target.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1), "rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        target.mux([*sound.encode(frame), *sound.encode(None)])
    with pytest.raises(MediaError, match=r"no video stream \(a cover picture does not count\)"):
        read_clip(tmp_path / "song.mp4", size=SIZE)


def test_sound_only(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as target:
        sound = target.add_stream("pcm_s16le", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        target.mux([*sound.encode(frame), *sound.encode(None)])
    with pytest.raises(MediaError, match="has no video stream, but audio"):
        read_clip(tmp_path / "a.wav", size=SIZE)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, MediaNotFoundError, "no such file"),
        (b"", MediaError, "is empty"),
        (b"hello, I am no video\n" * 99, MediaError, "is not a video"),
        (b"ffconcat version 1.0\nfile a.mp4\n", MediaError, "is not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\na.mp4\n#EXT-X-ENDLIST\n", MediaError, "is not a video"),
    ],
    ids=["missing", "empty", "text", "list of files", "playlist"],
)
def test_no_video_at_all(tmp_path, content, error, words):
    write_video(tmp_path / "a.mp4", pictures(25))
    if content is not None:
        (tmp_path / "b.mp4").write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        read_clip(tmp_path / "b.mp4", size=SIZE)
    assert "b.mp4" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder(tmp_path):
    with pytest.raises(MediaError, match="is a folder"):
        read_clip(tmp_path, size=SIZE)


def test_still_image_is_too_short(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(numbered(1)))
    with pytest.raises(MediaError, match=r"0.04 s of video .* 0.64 s are needed; use a longer video"):
        read_clip(path, size=SIZE)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"start_s": math.nan}, RequestError, "start nan s"),
        ({"start_s": math.inf}, RequestError, "start inf s"),
        ({"start_s": -0.5}, RequestError, "start -0.5 s"),
        ({"duration_s": math.nan}, RequestError, "duration nan s"),
        ({"duration_s": 0.6}, RequestError, "at least 0.64 s"),
        ({"duration_s": 1e7}, RequestError, "would not fit in memory"),
        ({"fps": 0}, RequestError, "must be above 0"),
        ({"start_s": 1}, RequestError, r"ends at 1\.00 s; start earlier"),
        ({"start_s": 99}, RequestError, r"ends at 1\.00 s; start earlier"),
        ({"start_s": 0.5}, MediaError, r"0\.50 s of video from 0\.50 s on, but 0\.64 s are needed; start earlier"),
    ],
)
def test_requests_out_of_range(tmp_path, request_, error, words):
    path = write_video(tmp_path / "a.mp4", pictures(25))
    with pytest.raises(error, match=words):
        read_clip(path, size=SIZE, **request_)


def test_cancelled(tmp_path):
    path = write_video(tmp_path / "a.mp4", pictures(50))
    event, seen = threading.Event(), []

    def stop_at_ten(done, total):
        seen.append(done)
        if done == 10:
            event.set()

    with pytest.raises(Cancelled):
        read_clip(path, size=SIZE, on_progress=stop_at_ten, cancelled=event)
    assert max(seen) < 40


def flip_bits(data, count, seed, first=2000):
    damaged, chance = bytearray(data), random.Random(seed)
    for _ in range(count):
        damaged[chance.randrange(min(first, len(data) // 2), len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def test_damaged_packets_are_skipped_with_a_warning(tmp_path):
    path = write_video(tmp_path / "street.avi", pictures(50), codec="mjpeg", pixels="yuvj420p")
    data = path.read_bytes()
    places = [place for place in range(len(data)) if data.startswith(b"\xff\xd8\xff", place)]
    damaged = bytearray(data)
    for place in places[10:13]:
        damaged[place : place + 600] = bytes(600)
    path.write_bytes(damaged)
    clip = read_clip(path, size=SIZE)
    assert clip.warnings == ("street.avi: 3 damaged packets skipped",)
    assert numbers_of(clip.frames) == [*range(10), 13, 13, 13, *range(13, 50)]


def test_truncated_file_is_reported(tmp_path):
    path = write_video(tmp_path / "street.mkv", pictures(100), options={"g": "10"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    clip = read_clip(path, size=SIZE)
    assert 1.5 < clip.duration_s < 3.5
    assert numbers_of(clip.frames[:30]) == list(range(30))
    assert clip.warnings[-1] == f"street.mkv: ends after {clip.duration_s:.2f} s, but its header says 4.00 s"


def test_truncated_before_the_index_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.mp4", pictures(50))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match="damaged from the start"):
        read_clip(path, size=SIZE)


def test_undecodable_end_holds_the_last_frame(tmp_path):
    path = write_video(tmp_path / "a.avi", pictures(50), codec="mjpeg", pixels="yuvj420p")
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as target:
        video = source.streams.video[0]
        copy = target.add_stream_from_template(video)
        for packet in source.demux(video):
            if packet.size:
                damaged = av.Packet(bytes(64)) if packet.dts >= 20 else packet
                damaged.pts = damaged.dts = packet.dts
                damaged.time_base, damaged.stream = packet.time_base, copy
                target.mux(damaged)
    clip = read_clip(tmp_path / "b.mkv", size=SIZE)
    assert numbers_of(clip.frames) == [*range(20), *[19] * (len(clip.frames) - 20)]
    assert clip.duration_s == pytest.approx(2, abs=0.05)
    assert clip.warnings[1] == "b.mkv: no frame can be decoded after 0.80 s; the last one is repeated"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}),
        ("a.mkv", {"codec": "ffv1"}),
        ("a.ts", {}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.gif", {"codec": "gif", "pixels": "gray"}),
        ("a.nut", {"codec": "rawvideo", "pixels": "rgb24"}),
        ("a.mjpeg", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    ],
)
def test_whatever_is_damaged_the_error_is_typed(tmp_path, name, settings):
    path = write_video(tmp_path / name, pictures(25, width=32, height=32), **settings)
    whole = path.read_bytes()
    readable = 0
    for seed in range(25):
        data = flip_bits(whole, 4 * (seed + 1), seed, first=0 if seed % 2 else 2000)
        path.write_bytes(data[: len(data) - seed * len(data) // 60])
        try:
            clip = read_clip(path, size=SIZE, duration_s=2)
        except SelvaError as error:
            assert "\n" not in str(error)  # noqa: PT017 -- a clip is as good
        else:
            assert clip.duration_s <= 2
            assert len(clip.frames) == math.floor(Fraction(repr(clip.duration_s)) * 25)
            readable += 1
    assert readable


def test_the_example():
    example = Path(__file__).parents[1] / "examples" / "street.mp4"
    clip = read_clip(example, size=64)
    assert (len(clip.frames), clip.duration_s, clip.warnings) == (104, 4.16, ())
