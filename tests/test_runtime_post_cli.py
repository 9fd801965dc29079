"""`--deliver post` as a user sees it, alone and with the other options."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import wavinfo
from clips import numbered, write_video
from delivered import cancelled_after_a_window, generate, timed_video

import selva_runtime.command.output
from selva_runtime.command.records import GenerateRequest
from selva_runtime.command.stem_files import Post, StemFiles, tracks
from selva_runtime.media.post.loudness import CEILING_DB
from selva_runtime.media.post.timecode import Timecode, parse_timecode

HOUR_SAMPLES = 3600 * 48_000


def test_the_command_delivers_for_post(demo_bundle, tmp_path):
    video = timed_video(tmp_path / "street.mov", "10:00:00;00", Fraction(30_000, 1001))
    result, report = generate(
        demo_bundle, video, tmp_path / "out", "-p", "dog barking", "-p", "rain", "--deliver", "post", "--start", 0.5
    )
    assert result.exit_code == 0, result.stderr
    assert report["timecode"] == "10:00:00;00"
    assert report["gain_db"] <= 0
    _, plain = generate(
        demo_bundle,
        video,
        tmp_path / "plain",
        "-p",
        "dog barking",
        "-p",
        "rain",
        "--start",
        0.5,
        "--sample-rate",
        48000,
    )
    for stem, other in zip(report["stems"], plain["stems"], strict=True):
        read = wavinfo.WavInfoReader(stem["file"])
        start = parse_timecode("10:00:00;00", Fraction(30_000, 1001)).seconds + Fraction(1, 2)
        assert read.bext.time_reference == round(start * 48_000)
        assert [track.name for track in read.ixml.track_list] == [stem["prompt"]]
        assert (read.ixml.scene, read.ixml.parsed.findtext("SPEED/TIMECODE_FLAG")) == ("street", "DF")
        written, expected = (soundfile.read(path)[0] for path in (stem["file"], other["file"]))
        np.testing.assert_allclose(written, expected * 10 ** (report["gain_db"] / 20), atol=2**-22)
        assert stem["true_peak_db"] <= CEILING_DB
        assert (other["loudness_lufs"], plain["gain_db"]) == (None, None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dog-barking.wav", "rain.wav"]


def test_a_timecode_of_ones_own(demo_bundle, tmp_path):
    video = timed_video(tmp_path / "a.mov", "10:00:00:00")
    options = ["-p", "rain", "--deliver", "post", "--timecode", "01:00:00:05", "--takes", 2]
    _, report = generate(demo_bundle, video, tmp_path / "out", *options)
    reads = [wavinfo.WavInfoReader(stem["file"]) for stem in report["stems"]]
    assert [read.bext.time_reference for read in reads] == [round((3600 + 5 / 25) * 48_000)] * 2
    assert [read.ixml.take for read in reads] == ["1", "2"]


def test_a_timecode_that_cannot_be_at_this_rate_is_a_warning(demo_bundle, tmp_path):
    video = timed_video(tmp_path / "a.mkv", "10:00:00:29")
    _, report = generate(demo_bundle, video, tmp_path / "out", "-p", "rain", "--deliver", "post")
    assert any("its timecode is not used" in warning for warning in report["warnings"])
    assert report["timecode"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--deliver", "tape"], "deliver is 'tape'; give wav or post"),
        (["--deliver", "post", "--sample-rate", 44100], "leave out --sample-rate"),
        (["--timecode", "01:00:00:00"], "add --deliver post"),
        (["--deliver", "post", "--timecode", "01:00:00"], "timecode '01:00:00' is not HH:MM:SS:FF"),
        (["--deliver", "post", "--timecode", ""], "timecode '' is not HH:MM:SS:FF"),
        (["--deliver", "post", "--timecode", "01:00:00:25"], "does not exist at 25 frames a second"),
        (["--deliver", "post", "--timecode", "01:00:00;00"], "is drop-frame, but the video has 25 frames"),
        (["--timeline", "a.edl"], "has no known format"),
    ],
)
def test_options_that_do_not_fit(demo_bundle, tmp_path, arguments, message):
    video = write_video(tmp_path / "a.mp4", map(numbered, range(50)))
    result, report = generate(demo_bundle, video, tmp_path / "out", "-p", "rain", *arguments)
    assert result.exit_code == 2
    assert message in report["error"]
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line == f"error: {report['error']}"
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def longer(tmp_path_factory) -> Path:
    """Six seconds from 01:00:00:00 on."""
    return timed_video(tmp_path_factory.mktemp("video") / "long.mov", "01:00:00:00", frames=150)


def time_reference(stem: dict) -> int:
    return wavinfo.WavInfoReader(stem["file"]).bext.time_reference


@pytest.mark.parametrize("options", [["--region", "1:3"], ["--loop"]])
def test_post_with_region_and_loop_begins_where_the_stem_begins(demo_bundle, longer, tmp_path, options):
    """A region changes the inside of a stem, and a loop its length; neither changes its place or its sound's level."""
    common = ["-p", "rain", "--start", 0.48, *options]
    result, report = generate(demo_bundle, longer, tmp_path / "post", *common, "--deliver", "post", steps=1)
    assert result.exit_code == 0, result.stderr
    _, plain = generate(demo_bundle, longer, tmp_path / "plain", *common, "--sample-rate", 48_000, steps=1)
    (stem,), (other,) = report["stems"], plain["stems"]
    assert time_reference(stem) == HOUR_SAMPLES + 23_040
    written, expected = (soundfile.read(path)[0] for path in (stem["file"], other["file"]))
    np.testing.assert_allclose(written, expected * 10 ** (report["gain_db"] / 20), atol=2**-22)
    assert stem["samples"] == len(written)


def test_post_with_takes_films_and_timelines(demo_bundle, longer, tmp_path):
    wanted = tmp_path / "cut.otioz"
    options = ["-p", "rain", "-p", "sea", "--takes", 2, "--mux", 2, "--duration", 2, "--timeline", wanted]
    result, report = generate(demo_bundle, longer, tmp_path / "out", *options, "--deliver", "post", steps=1)
    assert result.exit_code == 0, result.stderr
    assert report["timelines"] == [str(wanted)]
    assert [(stem["prompt"], stem["take"]) for stem in report["stems"]] == [
        ("rain", 1),
        ("rain", 2),
        ("sea", 1),
        ("sea", 2),
    ]
    assert {time_reference(stem) for stem in report["stems"]} == {HOUR_SAMPLES}
    assert max(stem["true_peak_db"] for stem in report["stems"]) <= CEILING_DB
    assert [stem["video"] is not None for stem in report["stems"]] == [False, False, True, False]
    with av.open(report["stems"][2]["video"]) as film:
        assert film.streams.audio[0].rate == 48_000
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["rain-take1.wav", "rain-take2.wav", "sea-take1.mov", "sea-take1.wav", "sea-take2.wav"]


def test_what_is_kept_of_cancelled_stems_is_broadcast_wav_in_its_place(demo_bundle, longer, tmp_path):
    request = GenerateRequest(
        video=longer,
        prompts=("rain", "sea"),
        out=tmp_path / "out",
        bundle=demo_bundle,
        threads=1,
        steps=1,
        start_s=0.48,
        deliver="post",
        timelines=(tmp_path / "cut.rpp",),
        keep_partial=True,
    )
    report = cancelled_after_a_window(request)
    assert report.cancelled
    assert report.gain_db is not None
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["rain-partial.wav", "sea-partial.wav"]
    assert not (tmp_path / "cut.rpp").exists()
    for stem in report.stems:
        read = wavinfo.WavInfoReader(stem.file)
        assert read.bext.time_reference == HOUR_SAMPLES + 23_040
        assert (read.fmt.bits_per_sample, read.data.frame_count) == (24, stem.samples)
        assert [track.name for track in read.ixml.track_list] == [stem.prompt]


@pytest.mark.parametrize("model_hz", [16_000, 44_100])
def test_a_model_of_any_rate_is_delivered_at_48_khz(tmp_path, model_hz):
    request = SimpleNamespace(prompts=("rain",), takes=1, seed=7, warnings={"rain": ()})
    info = SimpleNamespace(preset="demo", weights="toy", notice="none", sample_rate_hz=model_hz)
    post = Post(scene="street", timecode=Timecode(frame=0, rate=Fraction(25)), start_s=0.5)
    tone = (0.1 * np.sin(2 * np.pi * 1000 * np.arange(model_hz) / model_hz)).astype(np.float32)
    with StemFiles(tmp_path, tracks(request, info), 48_000, post) as files:
        for start in range(0, model_hz, 7001):
            files.write(0, tone[start : start + 7001])
        (stem,) = files.close()
    assert (stem.samples, stem.duration_s) == (48_000, 1)
    assert time_reference({"file": stem.file}) == 24_000
    expected = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(48_000) / 48_000)
    np.testing.assert_allclose(soundfile.read(stem.file)[0][500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize(("timelines", "copies"), [((), 0), (("cut.otio",), 0), (("cut.otioz",), 1)])
def test_room_for_an_archive_is_checked_before_the_work(demo_bundle, longer, tmp_path, monkeypatch, timelines, copies):
    """Two stems of 2 s: 3 bytes a sample, 4 more while they are made, 4096 for a header; an archive copies all."""
    stem_bytes = 2 * 48_000 * 3 + 4096
    needed = 2 * (stem_bytes + 2 * 48_000 * 4) + copies * (2 * stem_bytes + longer.stat().st_size)
    options = ["-p", "rain", "-p", "sea", "--duration", 2, "--deliver", "post"]
    options += [word for name in timelines for word in ("--timeline", tmp_path / name)]
    disk = selva_runtime.command.output.shutil
    monkeypatch.setattr(disk, "disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    result, report = generate(demo_bundle, longer, tmp_path / "out", *options, steps=1)
    assert (result.exit_code, "free some space" in report["error"]) == (2, True)
    monkeypatch.setattr(disk, "disk_usage", lambda folder: SimpleNamespace(free=needed))
    assert generate(demo_bundle, longer, tmp_path / "out", *options, steps=1)[0].exit_code == 0
