"""selva-generate on videos that are longer than a window, as a user sees it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from clips import numbered, write_video
from delivered import cancelled_after_a_window
from platforms import needs_posix

from selva_runtime import Cancelled
from selva_runtime.command.cli import main
from selva_runtime.command.deliver import generate_files
from selva_runtime.command.records import GenerateRequest

FRAMES = 150
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Six seconds that grow brighter, without a cut."""
    pictures = [numbered(index // 16 * 16) for index in range(FRAMES)]
    return write_video(tmp_path_factory.mktemp("video") / "street.mp4", pictures)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(demo_bundle, video, out):
    """Runs `selva-generate` in this process on the video, with one step, for the prompt "rain"."""

    def run(*arguments):
        common = [str(video), "-o", str(out), "-p", "rain", "--threads", "1", "--steps", "1", "--backend", "cpu"]
        return CliRunner().invoke(main, [*common, "--bundle", str(demo_bundle), *map(str, arguments)])

    return run


def report_of(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def heard(report) -> np.ndarray:
    return soundfile.read(report["stems"][0]["file"], dtype="float32")[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_refused(result, out: Path, *words: str) -> None:
    assert result.exit_code in (1, 2)
    errors = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0]
    assert [name for name in names(out) if name.endswith(".wav")] == []
    assert "Traceback" not in result.output


def test_the_whole_video_is_used_unless_a_part_is_asked_for(run):
    report = report_of(run("--json", "--mux", 1))
    assert (report["duration_s"], report["stems"][0]["samples"]) == (6.0, 96_000)
    assert report["windows"] == len(report["joins_s"]) + 1 > 1
    assert (report["left_out"], report["cancelled"]) == ([], False)
    assert "error" not in report
    with av.open(report["stems"][0]["video"]) as container:
        shown_s = container.streams.audio[0].duration * container.streams.audio[0].time_base
        assert abs(shown_s - 6.0) < 0.1


def test_what_is_left_out_is_in_the_report_and_at_the_end(run):
    result = run("--start", 0.5, "--duration", 5, "--json")
    report = report_of(result)
    left_out = ["the first 0.50 s of the video (--start)", "the video from 5.50 s to 6.00 s (--duration)"]
    assert report["left_out"] == left_out
    assert result.stderr.splitlines()[-2:] == [f"notice: left out: {what}" for what in left_out]
    assert "left out" not in run("--start", 0.5, "--duration", 5, "--quiet").stderr


@pytest.mark.parametrize("cuts", ["auto", "none", "file"])
def test_cuts(run, tmp_path, cuts):
    times = tmp_path / "cuts.txt"
    times.write_text("# seconds of the video\n1.5\n0:03.5\n")
    report = report_of(run("--cuts", times if cuts == "file" else cuts, "--start", 0.5, "--json"))
    assert report["cuts_s"] == ([1.0, 3.0] if cuts == "file" else [])


def test_automatic_cuts_are_found(run, demo_bundle, tmp_path, out):
    pictures = [numbered(0 if index < 75 else 255) for index in range(FRAMES)]
    film = write_video(tmp_path / "cut.mp4", pictures, options={"crf": "1"})
    common = [str(film), "-o", str(out), "-p", "rain", "--threads", "1", "--steps", "1", "--backend", "cpu", "--json"]
    report = report_of(CliRunner().invoke(main, [*common, "--bundle", str(demo_bundle)]))
    assert report["cuts_s"] == [3.0]
    assert min(abs(join_s - 3.0) for join_s in report["joins_s"]) < 0.016


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a file; name a text file with one time a line"),
        ("1.0\nlater\n", "line 2: 'later' is not a time"),
        ("2\n1\n", "line 2: 1 is not after the time before it"),
    ],
)
def test_a_broken_list_of_cuts(run, tmp_path, out, content, words):
    times = tmp_path / "cuts.txt"
    if content is not None:
        times.write_text(content)
    assert_refused(run("--cuts", times), out, "cuts.txt", words)


def test_one_pass(run):
    windows, whole = report_of(run("--json")), report_of(run("--long", "one-pass", "--json"))
    assert (whole["windows"], whole["joins_s"], whole["stems"][0]["samples"]) == (1, [], 96_000)
    assert not np.array_equal(heard(windows), heard(whole))


def test_one_pass_over_its_limit_is_refused_before_anything_is_encoded(demo_bundle, tmp_path, out, run):
    film = write_video(tmp_path / "long.mp4", map(numbered, range(80)), rate=2)
    common = [str(film), "-o", str(out), "-p", "rain", "--bundle", str(demo_bundle), "--long", "one-pass"]
    result = CliRunner().invoke(main, common)
    assert_refused(result, out, "one pass takes up to 30 s of video, not 40.00 s; use --duration 30")
    assert_refused(run("--long", "one-pass", "--duration", 31), out, "one pass takes up to 30 s of video, not 31.00 s")
    assert_refused(run("--long", "best"), out, "long is 'best'; give windows or one-pass")


def test_a_loop(run, out):
    result = run("--loop", "--json")
    report = report_of(result)
    stem = report["stems"][0]
    missing_s = 6.0 - stem["duration_s"]
    assert 0 < missing_s <= 0.6
    assert report["left_out"] == [f"{missing_s:.2f} s at the end, so that the loop joins"]
    audio = heard(report)
    assert abs(audio[0] - audio[-1]) <= np.abs(np.diff(audio)).max()


def test_a_loop_of_a_video_that_is_too_short(run, out):
    assert_refused(run("--loop", "--duration", 1), out, "the video is too short for a loop; give at least")


def test_a_region(run):
    plain, again, other = (
        report_of(run("--json", *more))
        for more in ((), ("--region", "2:4.5"), ("--region", "2:4.5", "--region-seed", 9, "--region-prompt", "sea"))
    )
    before, first, second = heard(plain), heard(again), heard(other)
    for audio in (first, second):
        assert len(audio) == 96_000
        np.testing.assert_array_equal(audio[: 2 * RATE_HZ], before[: 2 * RATE_HZ])
        np.testing.assert_array_equal(audio[72_000:], before[72_000:])
        assert (audio[48_000:56_000] != before[48_000:56_000]).mean() > 0.9
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--region", "5:4"], "the region 5 to 4 s is too short"),
        (["--region", "4"], "'4' is not two numbers of seconds, such as 12.0:15.5"),
        (["--region", "a:b"], "'a:b' is not two numbers of seconds"),
        (["--region", "nan:3"], "begin of the region is nan s"),
        (["--region", "-1:3"], "begin of the region is -1.0 s"),
        (["--region", "1:3", "--duration", "2"], "end of the region is 3.0 s; give a number from 0 to 2 s"),
        (["--region", "5:7"], "end of the region is 7.0 s; give a number from 0 to 6 s"),
        (["--region", "1:3", "--loop"], "--region and --loop cannot be used together"),
        (["--region", "1:3", "--region-seed", "-1"], "region-seed is -1"),
        (["--region", "1:3", "--region-prompt", ""], "prompt"),
        (["--region-seed", "4"], "--region-seed needs --region, such as --region 12.0:15.5"),
        (["--region-prompt", "sea"], "--region-prompt needs --region"),
    ],
)
def test_wrong_regions(run, out, options, words):
    assert_refused(run(*options), out, words)


def test_a_region_that_cannot_be_right_is_refused_before_the_work(run, monkeypatch):
    import selva_runtime.command.checks

    monkeypatch.setattr(selva_runtime.command.checks, "VideoFile", None)
    assert "the region 5 to 4 s is too short" in run("--region", "5:4").stderr


@pytest.mark.parametrize("rate_hz", [None, 48_000])
def test_keep_partial(demo_bundle, video, out, rate_hz):
    request = GenerateRequest(
        video=video,
        prompts=("rain",),
        out=out,
        bundle=demo_bundle,
        backend="cpu",
        threads=1,
        steps=1,
        keep_partial=True,
        sample_rate_hz=rate_hz,
    )
    report = cancelled_after_a_window(request)
    (stem,) = report.stems
    assert names(out) == ["rain-partial.wav"]
    audio, rate = soundfile.read(stem.file)
    assert (rate, len(audio)) == (rate_hz or RATE_HZ, stem.samples)
    assert 2 < stem.duration_s < 5
    assert report.cancelled
    assert report.error.startswith("cancelled: ")
    assert report.error.endswith(" s of 6.00 s of each stem were kept")
    assert len(report.left_out) == 1
    assert report.left_out[0].startswith("the stems from ")
    with pytest.raises(Cancelled):
        cancelled_after_a_window(GenerateRequest(**{**vars(request), "keep_partial": False}))
    assert names(out) == ["rain-partial.wav"]


@needs_posix
@pytest.mark.parametrize(
    ("keep", "number", "code"),
    [(True, signal.SIGINT, 130), (True, signal.SIGTERM, 143), (False, signal.SIGINT, 130)],
)
def test_a_signal_after_the_first_window(demo_bundle, video, out, keep, number, code):
    command = [sys.executable, "-m", "selva_runtime", str(video), "-p", "rain", "-o", str(out), "--threads", "1"]
    command += ["--bundle", str(demo_bundle), "--steps", "100", "--backend", "cpu", *(["--keep-partial"] * keep)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 60
    while not any(path.stat().st_size > 10_000 for path in out.glob(".*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert not list(out.glob("*.wav"))
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    if keep:
        assert names(out) == ["rain-partial.wav"]
        assert printed.splitlines() == [str(out / "rain-partial.wav")]
        assert "error: cancelled: " in errors.splitlines()[-1]
        assert 2 < soundfile.info(out / "rain-partial.wav").duration < 5
    else:
        assert names(out) == []
        assert printed == ""


def test_a_file_appears_only_when_it_is_whole(demo_bundle, video, out):
    seen = []

    def progress(stage, done, total):
        seen.append([name for name in names(out) if name.endswith(".wav")] if stage != "write" else None)

    request = GenerateRequest(
        video=video, prompts=("rain", "sea"), out=out, bundle=demo_bundle, backend="cpu", threads=1, steps=1
    )
    generate_files(request, progress=progress)
    visible = [each for each in seen if each is not None]
    assert all(all(name.startswith(".") for name in each) for each in visible)
    assert names(out) == ["rain.wav", "sea.wav"]


def test_a_second_run_encodes_nothing(run, tmp_path):
    first = report_of(run("--cache", tmp_path / "cache", "--json"))
    second = report_of(run("--cache", tmp_path / "cache", "--json", "-p", "sea"))
    assert first["timings_s"]["encode"] > 0
    assert not {"encode", "decode"} & set(second["timings_s"])
    np.testing.assert_array_equal(heard(first), heard(second))
    assert second["left_out"] == first["left_out"] == []


def test_an_entry_that_is_damaged_while_it_is_used_is_encoded_again(demo_bundle, video, out, tmp_path):
    cache, damaged = tmp_path / "cache", []

    def progress(stage, done, total):
        if stage == "text" and not damaged:
            (entry,) = cache.glob("clip-*")
            data = bytearray(entry.read_bytes())
            data[len(data) // 2] ^= 1
            entry.write_bytes(data)
            damaged.append(entry)

    request = GenerateRequest(
        video=video,
        prompts=("rain",),
        out=out,
        bundle=demo_bundle,
        backend="cpu",
        threads=1,
        steps=1,
        cache=cache,
        start_s=0.5,
    )
    report = generate_files(request, progress=progress)
    assert damaged
    assert report.left_out == ("the first 0.50 s of the video (--start)",)
    assert names(out) == ["rain.wav"]
    assert report.stems[0].samples == 88_000
