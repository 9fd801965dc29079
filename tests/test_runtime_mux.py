"""The video with a stem in it: the same pictures, the sound at the right time, and the original unchanged."""

import struct
import sys

import av
import numpy as np
import pytest
from av.stream import Disposition
from clips import click, loudest_s, numbered, write_video
from movies import peaks_mib
from platforms import file_size_limit, needs_posix

import selva_runtime.media.mux
from selva_bundle.errors import MediaError, MediaNotFoundError, OutputError, RequestError
from selva_runtime.media.audio import WavBlocks, write_wav
from selva_runtime.media.mux import mux
from selva_runtime.media.video import read_clip

VIDEO_S = 4
CLICK_S, STEM_CLICK_S = 1.5, 0.5


def video(path, **settings):
    settings = {"sound": click(VIDEO_S, CLICK_S, 48000), **settings}
    return write_video(path, [numbered(number) for number in range(25 * VIDEO_S)], **settings)


def video_packets(path):
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        first_s = min(packet.pts * packet.time_base for packet in packets)
        return [(bytes(packet), round(float(packet.pts * packet.time_base - first_s), 2)) for packet in packets]


@pytest.mark.parametrize("rate_hz", [16000, 44100, 192000])
@pytest.mark.parametrize(
    ("source", "settings", "wanted", "written"),
    [
        ("s.mp4", {}, "o.mp4", "o.mp4"),
        ("s.mov", {"sound_codec": "pcm_s16le"}, "o", "o.mov"),
        ("s.mp4", {}, "o.mkv", "o.mkv"),
        ("s.mkv", {"sound_codec": "flac"}, "o", "o.mkv"),
        ("s.mkv", {"sound_codec": "libopus"}, "o.m4v", "o.m4v"),
        ("s.webm", {"codec": "libvpx", "sound_codec": "libopus"}, "o.webm", "o.mkv"),
        ("s.ts", {"start_s": 90}, "o.mp4", "o.mp4"),
        ("s.ts", {"start_s": 90}, "o", "o.mkv"),
        ("s.avi", {"codec": "mpeg4", "sound_codec": "pcm_s16le"}, "my.cut", "my.cut.mkv"),
    ],
)
def test_both_sounds_are_where_they_belong(tmp_path, source, settings, wanted, written, rate_hz):
    source = video(tmp_path / source, **settings)
    clip = read_clip(source, size=8, start_s=1.2, duration_s=1)
    result = mux(
        source,
        click(1, STEM_CLICK_S, rate_hz),
        rate_hz,
        tmp_path / wanted,
        start_s=clip.start_s,
        video_start_s=clip.video_start_s,
        title="dog barking",
    )
    assert (result.path.name, result.warnings) == (written, ())
    assert loudest_s(result.path, 0) == pytest.approx(1.2 + STEM_CLICK_S, abs=0.002)
    assert loudest_s(result.path, 1) == pytest.approx(loudest_s(source, 0), abs=0.002)
    pictures = video_packets(result.path)
    assert len(pictures) == 25 * VIDEO_S
    if source.suffix != ".ts":  # its packets have a different framing
        assert pictures == video_packets(source)


@pytest.mark.parametrize("rate_hz", [16000, 192000])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_stem_in_blocks_of_any_size_makes_the_same_file(tmp_path, suffix, rate_hz):
    source = video(tmp_path / "s.mp4")
    noise = np.random.default_rng(1).uniform(-1.2, 1.2, 7 * rate_hz + 77).astype(np.float32)
    whole = mux(source, noise, rate_hz, tmp_path / f"whole{suffix}", start_s=1.3).path
    for size in (1 << 13, rate_hz + 1):
        parts = [noise[start : start + size] for start in range(0, len(noise), size)]
        made = mux(source, [*parts, noise[:0]], rate_hz, tmp_path / f"blocks{suffix}", start_s=1.3).path
        assert sound_packets(made) == sound_packets(whole)
        assert video_packets(made) == video_packets(whole)
        assert made.stat().st_size == whole.stat().st_size


def sound_packets(path):
    with av.open(str(path)) as source:
        return [(bytes(packet), packet.pts) for packet in source.demux(source.streams.audio[0]) if packet.size]


def test_a_stem_from_a_wav_whatever_container_takes_it(tmp_path):
    wav = write_wav(tmp_path / "stem.wav", click(1, STEM_CLICK_S, 44100), 44100)
    source = video(tmp_path / "s.webm", codec="libvpx", sound_codec="libopus")
    result = mux(source, WavBlocks(wav), 44100, tmp_path / "o.mp4", start_s=1.2)
    assert result.path.name == "o.mkv"  # the second container that was tried
    assert loudest_s(result.path, 0) == pytest.approx(1.2 + STEM_CLICK_S, abs=0.002)


def test_blocks_that_cannot_be_used_leave_nothing(tmp_path):
    source = video(tmp_path / "s.mp4")
    bad = [np.zeros(16000, np.float32), np.full(9, np.nan, np.float32)]
    with pytest.raises(RequestError, match="NaN or infinity"):
        mux(source, bad, 16000, tmp_path / "o.mp4")
    with pytest.raises(MediaError, match=r"missing\.wav: cannot be read as sound"):
        mux(source, WavBlocks(tmp_path / "missing.wav"), 16000, tmp_path / "o.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["s.mp4"]


MUX = """
import numpy as np
from pathlib import Path
from selva_runtime.media.mux import mux

class Blocks:
    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        chance = np.random.default_rng(0)
        for _ in range(self.seconds):
            yield chance.uniform(-1, 1, 48000).astype(np.float32)

def run(path):
    for seconds in (10, int(Path(path).stem)):
        mux(Path(path).with_name("s.mp4"), Blocks(seconds), 48000, path)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_stem(tmp_path):
    video(tmp_path / "s.mp4")
    (_, _), (outcome, mib) = peaks_mib(MUX, tmp_path / "10.mkv", tmp_path / "300.mkv")
    assert outcome == "made"
    assert mib < 15 < 300 * 48000 * 4 / 2**20


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_tracks_are_named_and_the_stem_is_default(tmp_path, suffix):
    source = video(tmp_path / "s.mov", turned=(90, False, False))
    result = mux(source, click(1, 0.5, 16000), 16000, tmp_path / f"o{suffix}", title="dog\nbarking 犬")
    with av.open(str(result.path)) as target:
        stem, original = target.streams.audio
        key = "title" if suffix == ".mkv" else "name"
        assert (stem.metadata[key], original.metadata[key]) == ("dog barking 犬", "original")
        assert [bool(track.disposition & Disposition.default) for track in (stem, original)] == [True, False]
        assert stem.codec_context.name == ("flac" if suffix == ".mkv" else "aac")
        assert (stem.codec_context.layout.name, stem.codec_context.sample_rate) == ("mono", 16000)
        assert next(target.decode(video=0)).rotation == 90


def test_language_of_the_original_is_kept(tmp_path):
    result = mux(video(tmp_path / "s.mp4"), click(1, 0.5, 16000), 16000, tmp_path / "o.mp4")
    with av.open(str(result.path)) as target:
        assert target.streams.audio[1].language == "deu"


def test_level_and_silence_before_the_stem(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000).astype(np.float32)
    result = mux(video(tmp_path / "s.mp4", sound=None), tone, 48000, tmp_path / "o.mp4", start_s=2)
    with av.open(str(result.path)) as target:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in target.decode(audio=0)])
    assert np.abs(samples[: 2 * 48000 - 2048]).max() < 1e-3
    np.testing.assert_allclose(samples[2 * 48000 + 4800 : 3 * 48000 - 4800], tone[4800:-4800], atol=0.02)


def test_codecs_that_do_not_fit_lead_to_mkv_and_a_warning(tmp_path):
    source = video(tmp_path / "s.webm", codec="libvpx", sound_codec="libopus")
    result = mux(source, click(1, 0.5, 16000), 16000, tmp_path / "o.mp4")
    assert result.path.name == "o.mkv"
    assert result.warnings == ("s.webm: .mp4 cannot hold its streams (vp8); written as o.mkv",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.mkv", "s.webm"]


def test_nothing_is_overwritten(tmp_path):
    source = video(tmp_path / "s.mp4")
    before = source.read_bytes()
    names = [mux(source, click(1, 0.5, 16000), 16000, source).path.name for _ in range(2)]
    assert names == ["s-2.mp4", "s-3.mp4"]
    assert source.read_bytes() == before


def test_truncated_source_is_copied_as_far_as_it_goes(tmp_path):
    source = video(tmp_path / "s.mkv")
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    result = mux(source, click(1, 0.5, 16000), 16000, tmp_path / "o")
    assert 20 < len(video_packets(result.path)) < 100
    assert loudest_s(result.path, 0) == pytest.approx(0.5, abs=0.002)


def test_packets_that_no_container_takes_are_left_out_with_a_warning(tmp_path):
    source = video(tmp_path / "s.ts")
    data = bytearray(source.read_bytes())
    places = [place for place in range(len(data)) if data.startswith(b"\xff\xf1", place)]
    for place in places[3:6]:
        data[place : place + 2] = b"\xff\x0f"
    source.write_bytes(data)
    result = mux(source, click(1, 0.5, 16000), 16000, tmp_path / "o.mp4")
    assert result.path.name == "o.mp4"
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith("s.ts: damaged in ")
    assert len(video_packets(result.path)) == 100


def test_a_sound_track_without_a_rate_is_left_out_with_a_warning(tmp_path):
    source = video(tmp_path / "s.mkv", sound_codec="pcm_s16le")
    data = source.read_bytes()
    rate = b"\xb5\x88" + struct.pack(">d", 48000)
    assert rate in data
    source.write_bytes(data.replace(rate, b"\xb5\x88" + bytes(8)))
    result = mux(source, click(1, 0.5, 16000), 16000, tmp_path / "o.mkv")
    assert result.path.name == "o.mkv"
    assert result.warnings == ("s.mkv: a sound track that cannot be read was left out",)


def test_damage_is_not_blamed_on_the_container(tmp_path, monkeypatch):
    def refuse(self):
        raise av.InvalidDataError(1094995529, "Invalid data found when processing input")

    source = video(tmp_path / "s.mp4")
    monkeypatch.setattr(selva_runtime.media.mux.Job, "copy", lambda self, source, target: refuse(self))
    with pytest.raises(MediaError, match=r"s\.mp4: is damaged: .*\(Invalid data found.*\); export it again"):
        mux(source, click(1, 0.5, 16000), 16000, tmp_path / "o.mp4")


def test_sources_that_are_no_video(tmp_path):
    with pytest.raises(MediaNotFoundError, match="no such file"):
        mux(tmp_path / "missing.mp4", click(1, 0.5, 16000), 16000, tmp_path / "o.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match="is not a video"):
        mux(tmp_path / "text.mp4", click(1, 0.5, 16000), 16000, tmp_path / "o.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start_s": float("nan")}, "start nan s"),
        ({"start_s": -1.0}, "start -1.0 s"),
        ({"sample_rate_hz": 5}, "sample rate 5 Hz"),
        ({"audio": np.full(9, np.nan, np.float32)}, "NaN or infinity"),
    ],
)
def test_requests_out_of_range(tmp_path, changes, words):
    arguments = {"audio": click(1, 0.5, 16000), "sample_rate_hz": 16000, "out_path": tmp_path / "o.mp4", **changes}
    with pytest.raises(RequestError, match=words):
        mux(video(tmp_path / "s.mp4"), **arguments)


@needs_posix
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("limit_bytes", [1, 20_000, 60_000])
def test_a_full_disk_leaves_nothing(tmp_path, suffix, limit_bytes):
    source = video(tmp_path / "s.mp4")
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 16000 * 10).astype(np.float32)
    refused = pytest.raises(OutputError, match=rf"o\{suffix}: cannot be written")
    with file_size_limit(limit_bytes), refused as caught:
        mux(source, noise, 16000, tmp_path / f"o{suffix}")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["s.mp4"]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    source = video(tmp_path / "s.mp4")
    monkeypatch.setattr(selva_runtime.media.mux.IncreasingTimes, "fix", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mux(source, click(1, 0.5, 16000), 16000, tmp_path / "o.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["s.mp4"]
