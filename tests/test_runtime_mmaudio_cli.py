"""`selva-generate` with MMAudio: no prompt, no video, and a bed under SelVA's stems."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from selva_runtime import Session
from selva_runtime.command.cli import main
from selva_runtime.command.doctor import examine
from selva_worker.bundle_facts import bundle_facts
from selva_worker.shell import check_options

STREET = Path(__file__).parents[1] / "examples" / "street.mp4"


@pytest.fixture
def run(tmp_path: Path):
    """Runs the command with two steps, into tmp_path/out."""

    def run(*arguments: object, out: str = "out") -> Result:
        common = ["-o", str(tmp_path / out), "--threads", "1", "--steps", "2", "--backend", "cpu"]
        return CliRunner().invoke(main, [*common, *map(str, arguments)])

    return run


def test_no_prompt_gives_the_mix(run, mmaudio_bundle, tmp_path) -> None:
    result = run(STREET, "--bundle", mmaudio_bundle, "--duration", "1", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    (stem,) = report["stems"]
    assert (report["system"], stem["prompt"], stem["name"]) == ("mmaudio", "", "mix")
    assert soundfile.info(tmp_path / "out" / "mix.wav").frames == 16_000
    assert "not MMAudio's quality" in result.stderr


def test_no_video_gives_sound_of_the_text(run, mmaudio_bundle, tmp_path) -> None:
    result = run("--bundle", mmaudio_bundle, "-p", "rain", "--duration", "1.5", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["video"] is None
    audio, _ = soundfile.read(tmp_path / "out" / "rain.wav", dtype="float32")
    session = Session(mmaudio_bundle, backend="cpu", threads=1)
    (stem,) = session.generate(session.without_video(1.5), ["rain"], steps=2)
    np.testing.assert_allclose(audio, np.clip(stem.audio, -1, 1), atol=2**-22)


def test_no_video_is_as_long_as_a_window_unless_said(run, mmaudio_bundle, tmp_path) -> None:
    assert run("--bundle", mmaudio_bundle, "-p", "rain").exit_code == 0
    assert soundfile.info(tmp_path / "out" / "rain.wav").frames == 66_560


def test_no_video_for_post_production(run, mmaudio_bundle, tmp_path) -> None:
    result = run(
        "--bundle", mmaudio_bundle, "-p", "rain", "--duration", "1", "--deliver", "post", "--timecode", "01:00:00:00"
    )
    assert result.exit_code == 0, result.stderr
    content = (tmp_path / "out" / "rain.wav").read_bytes()
    assert b"bext" in content
    assert (3600 * 48_000).to_bytes(8, "little") in content


@pytest.mark.parametrize(
    "option",
    [
        ("--start", "1"),
        ("--cuts", "none"),
        ("--mux", "1"),
        ("--timeline", "x.otio"),
        ("--bed", "b"),
        ("--mask", "m.png"),
    ],
    ids=" ".join,
)
def test_what_needs_a_video_says_so(run, mmaudio_bundle, tmp_path, option) -> None:
    result = run("--bundle", mmaudio_bundle, "-p", "rain", *option)
    assert result.exit_code == 2
    assert f"error: {option[0]} needs a video" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("-p", "rain"), "no video; give one"), ((STREET,), "no prompt; say what should be heard")],
)
def test_selva_needs_both(run, demo_bundle, arguments, message) -> None:
    result = run(*arguments, "--bundle", demo_bundle)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_a_bed_is_a_file_of_its_own_from_the_same_decoding(run, demo_bundle, mmaudio_bundle, tmp_path) -> None:
    asked = (STREET, "--bundle", demo_bundle, "-p", "ball bouncing", "--duration", "1")
    alone = run(*asked, out="alone")
    bed = run(STREET, "--bundle", mmaudio_bundle, "-p", "street", "--duration", "1", out="bed")
    both = run(*asked, "--bed", mmaudio_bundle, "--bed-prompt", "street", "--bed-gain", "-6", "--json")
    assert (alone.exit_code, bed.exit_code, both.exit_code) == (0, 0, 0), both.stderr
    report = json.loads(both.stdout)
    assert [stem["name"] for stem in report["stems"]] == ["ball bouncing"]
    assert (report["bed"]["prompt"], Path(report["bed"]["file"]).name) == ("street", "street.wav")
    read = {
        name: soundfile.read(tmp_path / name, dtype="float64")[0]
        for name in (
            "alone/ball-bouncing.wav",
            "out/ball-bouncing.wav",
            "bed/street.wav",
            "out/street.wav",
        )
    }
    np.testing.assert_array_equal(read["alone/ball-bouncing.wav"], read["out/ball-bouncing.wav"])
    np.testing.assert_allclose(read["out/street.wav"], 10 ** (-6 / 20) * read["bed/street.wav"], atol=2**-22)


def test_the_bed_is_a_track_of_the_timeline_and_shares_the_gain(run, demo_bundle, mmaudio_bundle, tmp_path) -> None:
    otio = pytest.importorskip("opentimelineio")
    options = ("--deliver", "post", "--timeline", tmp_path / "t.otio", "--takes", "2", "--duration", "1")
    result = run(
        STREET,
        "--bundle",
        demo_bundle,
        "-p",
        "ball bouncing",
        "--bed",
        mmaudio_bundle,
        "--bed-gain",
        "24",
        *options,
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["gain_db"] < 0  # because of the bed
    assert max(stem["true_peak_db"] for stem in [*report["stems"], report["bed"]]) <= -1
    assert [Path(stem["file"]).name for stem in report["stems"]] == [
        "ball-bouncing-take1.wav",
        "ball-bouncing-take2.wav",
    ]
    timeline = otio.adapters.read_from_file(str(tmp_path / "t.otio"))
    assert [track.name for track in timeline.audio_tracks()][-1] == "bed"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--bed-gain", "99"), "give -60 to 24 dB"),
        (("--bed-gain", "nan"), "give -60 to 24 dB"),
        (("--region", "0:0.5"), "--region and --bed cannot be used together"),
    ],
)
def test_a_wrong_bed(run, demo_bundle, mmaudio_bundle, more, message) -> None:
    result = run(STREET, "--bundle", demo_bundle, "-p", "rain", "--bed", mmaudio_bundle, *more)
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_a_bed_of_selva_is_refused(run, demo_bundle) -> None:
    result = run(STREET, "--bundle", demo_bundle, "-p", "rain", "--bed", demo_bundle)
    assert result.exit_code == 2
    assert "--bed needs an MMAudio bundle" in result.stderr


def test_options_of_a_bed_need_a_bed(run, demo_bundle) -> None:
    result = run(STREET, "--bundle", demo_bundle, "-p", "rain", "--bed-gain", "-6")
    assert result.exit_code == 2
    assert "--bed-gain needs --bed" in result.stderr


def test_a_worker_makes_no_bed() -> None:
    with pytest.raises(ValueError, match=r"--bed has no effect on a running worker \(it has one model\)"):
        check_options({"bed": "--bed"})


def test_what_is_told_of_a_bundle(mmaudio_bundle) -> None:
    assert bundle_facts(str(mmaudio_bundle))["toy"] is True
    assert examine(str(mmaudio_bundle)).bundles[0].preset == "demo_mmaudio"
