"""The command as a user sees it: files, names, notices, JSON, progress bars and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from clips import numbered, write_video
from platforms import needs_posix

import selva_runtime.command.deliver
from selva_ref.demo.world.kinds import KINDS, prompt
from selva_runtime import Cancelled
from selva_runtime.command.cli import main
from selva_runtime.command.deliver import generate_files
from selva_runtime.command.progress import ProgressBars
from selva_runtime.command.records import GenerateRequest
from selva_runtime.media.container import open_media


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "street.mp4", map(numbered, range(50)))


@pytest.fixture
def run(demo_bundle, video, tmp_path):
    """Runs `selva-generate` in this process on the video, with two steps, into tmp_path/out."""

    def run(*arguments, bundle=demo_bundle):
        common = [str(video), "-o", str(tmp_path / "out"), "--threads", "1", "--steps", "2"]
        return CliRunner().invoke(main, [*common, *(["--bundle", str(bundle)] if bundle else []), *map(str, arguments)])

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_24_bit_wav_for_each_prompt(run, tmp_path):
    result = run("-p", "dog barking", "-p", "rain", "--duration", "1.5")
    assert result.exit_code == 0, result.stderr
    files = [tmp_path / "out" / "dog-barking.wav", tmp_path / "out" / "rain.wav"]
    assert result.stdout.splitlines() == [str(file) for file in files]
    for file in files:
        info = soundfile.info(file)
        assert (info.subtype, info.channels, info.samplerate, info.frames) == ("PCM_24", 1, 16000, 24000)


def test_random_weights_and_the_toy_have_a_notice(run, demo_bundle):
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    result = run("-p", "rain")
    assert "notice: this is the toy demo model" in result.stderr
    assert f"notice: {' '.join(manifest['notice'].split())}\n" in result.stderr
    assert ("weights of this bundle are random" in result.stderr) == (manifest["weights"] == "random")
    quiet = run("-p", "rain", "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")


def test_the_notices_are_a_line_each_and_the_most_important_is_last(run, demo_bundle):
    lines = run("-p", "rain", "-p", "rain").stderr.splitlines()
    notice = " ".join(json.loads((demo_bundle / "manifest.json").read_text())["notice"].split())
    assert lines[0] == f"notice: {notice}"
    assert lines[1].startswith(("notice: CPU (", "notice: NVIDIA GPU with "))
    assert lines[2].startswith("warning: the prompt 'rain' is given 2 times")
    assert lines[3].startswith("notice: this is the toy demo model")
    assert lines[4].startswith("notice: the weights of this bundle are random")
    assert len(lines) == 5


def test_json_is_one_document(run, tmp_path):
    result = run("-p", "dog barking", "-p", "rain", "--takes", 2, "--seed", 5, "--sample-rate", 48000, "--json")
    report = json.loads(result.stdout)
    assert [(stem["prompt"], stem["take"]) for stem in report["stems"]] == [
        ("dog barking", 1),
        ("dog barking", 2),
        ("rain", 1),
        ("rain", 2),
    ]
    assert [Path(stem["file"]).name for stem in report["stems"]] == [
        "dog-barking-take1.wav",
        "dog-barking-take2.wav",
        "rain-take1.wav",
        "rain-take2.wav",
    ]
    assert (report["seed"], report["steps"], report["duration_s"], report["preset"]) == (5, 2, 2.0, "demo")
    assert report["weights"] in ("random", "trained")
    assert {"decode", "encode", "text", "select", "step", "vocode", "write"} < set(report["timings_s"])
    for stem in report["stems"]:
        assert soundfile.info(stem["file"]).frames == stem["samples"] == 96000
    audio = [soundfile.read(stem["file"])[0] for stem in report["stems"]]
    assert not np.array_equal(audio[0], audio[1])


def test_the_solver_changes_the_sound_and_stands_in_the_report(run):
    reports = [json.loads(run("-p", "rain", "--json", *more).stdout) for more in ([], ["--solver", "ab2"])]
    assert [report["solver"] for report in reports] == ["euler", "ab2"]
    one, other = (soundfile.read(report["stems"][0]["file"])[0] for report in reports)
    assert not np.array_equal(one, other)


def test_nothing_is_ever_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rain.wav").write_bytes(b"mine")
    assert run("-p", "rain", "-p", "rain").exit_code == 0
    assert names(tmp_path / "out") == ["rain-2.wav", "rain-3.wav", "rain.wav"]
    assert (tmp_path / "out" / "rain.wav").read_bytes() == b"mine"


def test_mux_puts_the_chosen_stem_into_a_copy(run, tmp_path):
    result = run("-p", "dog barking", "-p", "rain", "--mux", 2, "--takes", 2, "--json")
    stems = json.loads(result.stdout)["stems"]
    assert [stem["video"] and Path(stem["video"]).name for stem in stems] == [None, None, "rain-take1.mp4", None]
    with av.open(stems[2]["video"]) as container:
        assert (len(container.streams.video), len(container.streams.audio)) == (1, 1)


def test_a_video_that_ends_before_the_duration_gives_shorter_stems_with_a_warning(demo_bundle, tmp_path):
    video = write_video(tmp_path / "long.mp4", map(numbered, range(60)), rate=5)
    common = [str(video), "-p", "rain", "-o", str(tmp_path / "out"), "--bundle", str(demo_bundle), "--steps", "1"]
    result = CliRunner().invoke(main, [*common, "--start", "10", "--duration", "5", "--json"])
    assert "warning: the video ends at 12.00 s: the stems are 2.00 s long\n" in result.stderr
    report = json.loads(result.stdout)
    assert (report["start_s"], report["duration_s"], report["stems"][0]["samples"]) == (10.0, 2.0, 32000)


def test_the_frame_rule(demo_bundle, tmp_path):
    video = write_video(tmp_path / "a.mp4", map(numbered, range(60)), rate=30)
    common = [str(video), "-p", "rain", "-o", str(tmp_path / "out"), "--bundle", str(demo_bundle), "--steps", "1"]
    sounds = {}
    for rule in ("first", "nearest"):
        report = json.loads(CliRunner().invoke(main, [*common, "--frame-rule", rule, "--json"]).stdout)
        assert report["frame_rule"] == rule
        sounds[rule] = soundfile.read(report["stems"][0]["file"])[0]
    assert not np.array_equal(sounds["first"], sounds["nearest"])
    assert json.loads(CliRunner().invoke(main, [*common, "--json"]).stdout)["frame_rule"] == "first"
    result = CliRunner().invoke(main, [*common, "--frame-rule", "last"])
    assert (result.exit_code, result.stderr) == (2, "error: frame rule 'last': must be first or nearest\n")


def test_the_bundle_comes_from_the_environment_or_the_package(run, demo_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(selva_runtime.command.deliver, "DEMO_BUNDLE", tmp_path / "absent")
    monkeypatch.delenv("SELVA_BUNDLE", raising=False)
    result = run("-p", "rain", bundle=None)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "make one with selva-export and name it with --bundle or SELVA_BUNDLE" in result.stderr
    monkeypatch.setenv("SELVA_BUNDLE", str(demo_bundle))
    assert run("-p", "rain", bundle=None).exit_code == 0
    monkeypatch.delenv("SELVA_BUNDLE")
    monkeypatch.setattr(selva_runtime.command.deliver, "DEMO_BUNDLE", demo_bundle)
    result = run("-p", "rain", bundle=None)
    assert "notice: this is the toy demo model that comes with the software" in result.stderr


def test_a_program_can_call_it_and_cancel_it(demo_bundle, video, tmp_path):
    cancel = threading.Event()

    def progress(stage, done, total):
        if stage == "step":
            cancel.set()

    request = GenerateRequest(video=video, prompts=("rain",), out=tmp_path / "new" / "out", bundle=demo_bundle)
    with pytest.raises(Cancelled):
        generate_files(request, progress=progress, cancel=cancel)
    assert names(tmp_path) == []
    assert Path(generate_files(request).stems[0].file).is_file()


def test_the_video_is_opened_once_and_closed(demo_bundle, video, tmp_path, monkeypatch):
    opened = []

    @contextmanager
    def watched(path):
        with open_media(path) as container:
            opened.append(path)
            yield container
        opened.append("closed")

    monkeypatch.setattr(selva_runtime.media.video, "open_media", watched)
    generate_files(GenerateRequest(video=video, prompts=("rain",), out=tmp_path, bundle=demo_bundle))
    assert opened == [Path(video), "closed"]


def test_help_lists_what_the_demo_knows():
    result = CliRunner().invoke(main, ["--help"])
    listed = " ".join(result.stdout.partition("The toy demo hears:")[2].split())
    assert listed == ", ".join(prompt(kind) for kind in KINDS)


def test_help_shows_units_and_defaults():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for words in (
        "Seconds to use; --duration 8 is quick. [default: to the end]",
        "1 to 1000. [default: the bundle's, 25]",
        "Hz of",
    ):
        assert words in text


def test_bars_count_up_in_place_and_end_their_line():
    stream = StringIO()
    bars = ProgressBars(stream)
    for done in (1, 2, 3):
        bars("step", done, 3)
    bars("vocode", 1, 1)
    bars.close()
    bars.close()
    lines = stream.getvalue().split("\n")
    assert [line.rpartition("\r")[2].split()[-1] for line in lines[:-1]] == ["3/3", "1/1"]
    assert lines[-1] == ""


@needs_posix
def test_bars_appear_on_a_terminal(demo_bundle, video, tmp_path):
    import pty

    ours, theirs = pty.openpty()
    command = generate_command(demo_bundle, video, tmp_path / "out", "--steps", "2")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, close_fds=True) as process:
        os.close(theirs)
        shown = b""
        while chunk := read_terminal(ours):
            shown += chunk
    os.close(ours)
    assert process.returncode == 0
    for label in (b"reading video", b"encoding video", b"generating", b"vocoding"):
        assert label in shown


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how Linux reports that the other side was closed
        return b""


def generate_command(bundle, video, out, *arguments) -> list[str]:
    code = "from selva_runtime.command.cli import main; main()"
    common = [str(video), "-p", "rain", "-o", str(out), "--bundle", str(bundle), "--threads", "1"]
    return [sys.executable, "-c", code, *common, *arguments]


@needs_posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_nothing_half_written(demo_bundle, tmp_path, number, code):
    video = write_video(tmp_path / "video.mp4", map(numbered, range(60)), rate=2)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "rain.wav").write_bytes(b"mine")
    command = generate_command(
        demo_bundle, video, kept / "new", "--duration", "30", "--takes", "64", "--steps", "1000", "--quiet"
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline_s = time.monotonic() + 30
        while not (kept / "new").exists() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert (output, len(errors.splitlines())) == ("", 1)
    assert errors.startswith("error: ")
    assert names(kept) == ["rain.wav"]
    assert (kept / "rain.wav").read_bytes() == b"mine"
