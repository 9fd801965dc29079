"""Timelines as other programs read them: names, takes, and places exact to a sample at every frame rate."""

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree

import numpy as np
import opentimelineio
import pytest
import rpp
import soundfile
from clips import numbered, write_video
from delivered import generate
from sequences import FIRST, FRAMES, NAMES, ODD_FRAME, RATE_HZ, RATES, VIDEO_FIRST, make_sequence

from selva_bundle.errors import RequestError
from selva_runtime.media.timelines.sequence import Sequence
from selva_runtime.media.timelines.write import WRITERS, check_timeline, write_timeline

needs_melt = pytest.mark.skipif(shutil.which("melt") is None, reason="needs the program melt")


@pytest.fixture(params=RATES, ids=lambda rate: f"{float(rate):.5g}")
def sequence(request, tmp_path) -> Sequence:
    return make_sequence(tmp_path, request.param)


def place(url: str) -> Path:
    return Path(unquote(urlparse(url).path))


@pytest.mark.parametrize("suffix", [".otio", ".otioz"])
def test_opentimelineio_reads_names_takes_and_places(sequence, tmp_path, suffix):
    path = write_timeline(sequence, tmp_path / f"out{suffix}")
    assert path == tmp_path / f"out{suffix}"
    read = opentimelineio.adapters.read_from_file(str(path))
    rate = float(sequence.rate)
    assert read.global_start_time == opentimelineio.opentime.RationalTime(FIRST, rate)
    picture, *stems = read.tracks
    assert (picture.name, picture.kind) == ("picture", "Video")
    assert [(stem.name, stem.kind) for stem in stems] == [(name, "Audio") for name in NAMES]
    time = opentimelineio.opentime.RationalTime
    assert picture[0].source_range == opentimelineio.opentime.TimeRange(time(VIDEO_FIRST, rate), time(FRAMES, rate))
    assert picture[0].available_range() == picture[0].source_range
    for stem in stems:
        _gap, clip = stem
        begin = stem.range_of_child(clip).start_time
        assert (begin.value, begin.rate) == (round(ODD_FRAME / sequence.rate * RATE_HZ), RATE_HZ)
        assert clip.source_range.start_time.value == 0
        assert (clip.source_range.duration.value, clip.source_range.duration.rate) == (sequence.samples, RATE_HZ)
    takes = stems[1][1].media_references()
    assert (list(takes), stems[1][1].active_media_reference_key) == (["take 1", "take 2"], "take 1")
    if suffix == ".otio":
        assert [place(takes[f"take {number}"].target_url) for number in (1, 2)] == list(sequence.tracks[1].takes)
        assert place(picture[0].media_reference.target_url) == sequence.video
    else:
        (tmp_path / "unpacked").mkdir()
        opentimelineio.adapters.read_from_file(str(path), extract_to_directory=str(tmp_path / "unpacked"))
        for number in (1, 2):
            unpacked = tmp_path / "unpacked" / unquote(takes[f"take {number}"].target_url)
            assert unpacked.read_bytes() == sequence.tracks[1].takes[number - 1].read_bytes()
        assert (tmp_path / "unpacked/media" / sequence.video.name).read_bytes() == sequence.video.read_bytes()


def test_the_rpp_package_reads_the_reaper_project(sequence, tmp_path):
    project = rpp.loads(write_timeline(sequence, tmp_path / "out.rpp").read_text())
    assert float(project.find("PROJOFFS")[1]) == pytest.approx(float(sequence.first.seconds), abs=1e-9)
    picture, *stems = project.findall("TRACK")
    assert [track.find("NAME")[1] for track in (picture, *stems)] == ["picture", *NAMES]
    assert picture.find(".//SOURCE").find("FILE")[1] == str(sequence.video)
    for track, stem in zip(stems, sequence.tracks, strict=True):
        item = track.find("ITEM")
        assert round(float(item.find("POSITION")[1]) * RATE_HZ) == sequence.start_samples
        assert float(item.find("POSITION")[1]) == pytest.approx(float(sequence.start_s), abs=0.5 / RATE_HZ)
        assert float(item.find("LENGTH")[1]) * RATE_HZ == pytest.approx(sequence.samples, abs=1e-4)
        assert [source.find("FILE")[1] for source in item.findall("SOURCE")] == [str(file) for file in stem.takes]
        assert sum(line == "TAKE" for line in item) == len(stem.takes) - 1


def render(path: Path, sound: Path, tries: int = 3) -> None:
    """Has melt render the sound. It was once seen to stop for ever, so it may try again."""
    command = ["melt", "-silent", path, "-consumer", f"avformat:{sound}", "vn=1", "acodec=pcm_s24le"]
    try:
        subprocess.run([*command, f"ar={RATE_HZ}", "ac=1", "real_time=-1"], check=True, capture_output=True, timeout=15)
    except subprocess.TimeoutExpired:
        if tries == 1:
            raise
        render(path, sound, tries - 1)


@pytest.mark.melt
@needs_melt
def test_melt_renders_the_stems_within_a_sample(sequence, tmp_path):
    path = write_timeline(sequence, tmp_path / "out.mlt")
    render(path, tmp_path / "out.wav")
    sound = soundfile.read(tmp_path / "out.wav")[0]
    for click in (10_000, 20_000):
        due = sequence.start_samples + click
        near = np.abs(sound[due - 2_000 : due + 2_000])
        assert near.max() > 0.1
        assert abs(int(near.argmax()) - 2_000) <= 1
    muted = sequence.start_samples + 30_000
    assert np.abs(sound[muted - 2_000 : muted + 2_000]).max() < 0.01


def test_mlt_names_its_tracks(sequence, tmp_path):
    root = ElementTree.parse(write_timeline(sequence, tmp_path / "out.mlt")).getroot()
    names = [playlist.findtext("property[@name='shotcut:name']") for playlist in root.iter("playlist")]
    assert names == ["picture", *NAMES, f"{NAMES[1]} (take 2)"]
    profile = root.find("profile").attrib
    assert Fraction(int(profile["frame_rate_num"]), int(profile["frame_rate_den"])) == sequence.rate


def test_a_timeline_is_never_overwritten(sequence, tmp_path):
    for suffix in WRITERS:
        (tmp_path / f"mine{suffix}").write_text("mine")
        assert write_timeline(sequence, tmp_path / f"mine{suffix}") == tmp_path / f"mine-2{suffix}"
        assert (tmp_path / f"mine{suffix}").read_text() == "mine"
    assert not list(tmp_path.glob(".selva*"))


def test_formats_and_their_library(monkeypatch):
    with pytest.raises(RequestError, match=r"has no known format; end its name with \.otio"):
        check_timeline("out.edl", Fraction(25))
    monkeypatch.setitem(sys.modules, "opentimelineio", None)
    with pytest.raises(RequestError, match="needs OpenTimelineIO: pip install"):
        check_timeline("out.otio", Fraction(25))
    for suffix in (".rpp", ".mlt", ".xml", ".fcpxml"):
        assert check_timeline(f"out{suffix}", Fraction(25)) == Path(f"out{suffix}")


def generate_two(demo_bundle, tmp_path, *arguments):
    video = write_video(tmp_path / "a.mp4", map(numbered, range(60)))
    return generate(demo_bundle, video, tmp_path / "out", "-p", "rain", "-p", "dog barking", *arguments)


def test_the_command_writes_timelines(demo_bundle, tmp_path):
    wanted = [tmp_path / f"cut.{suffix}" for suffix in ("otio", "rpp", "mlt", "xml", "fcpxml")]
    options = [word for path in wanted for word in ("--timeline", path)]
    options += ["--takes", 2, "--start", 0.52, "--timecode", "10:00:00:00", "--deliver", "post"]
    result, report = generate_two(demo_bundle, tmp_path, *options)
    assert result.exit_code == 0, result.stderr
    assert report["timelines"] == [str(path) for path in wanted]
    read = opentimelineio.adapters.read_from_file(str(wanted[0]))
    assert [track.name for track in read.tracks] == ["picture", "rain", "dog barking"]
    assert opentimelineio.opentime.to_timecode(read.global_start_time, 25) == "10:00:00:00"
    shown = read.tracks[0][0].source_range
    assert (shown.start_time.value, shown.duration.value) == (0, 60)  # --timecode does not change the video's file
    gap, clip = read.tracks[2]
    assert gap.source_range.duration.value == 24_960
    assert clip.source_range.start_time.value == 36_000 * 48_000 + 24_960  # as the file's own time reference
    takes = [place(reference.target_url) for reference in clip.media_references().values()]
    assert takes == [Path(stem["file"]) for stem in report["stems"][2:]]
    assert not any("whole frames only" in warning for warning in report["warnings"])


def test_a_start_between_frames_is_a_warning_for_mlt(demo_bundle, tmp_path):
    _, report = generate_two(demo_bundle, tmp_path, "--timeline", tmp_path / "a.mlt", "--start", 0.53)
    assert any("a.mlt: has whole frames only, so its stems begin -10.0 ms off" in text for text in report["warnings"])


def test_a_timeline_that_cannot_be_written_leaves_the_stems(demo_bundle, tmp_path):
    result, report = generate_two(demo_bundle, tmp_path, "--timeline", tmp_path / "no" / "a.rpp")
    assert result.exit_code == 2
    assert report["error"].startswith("the stems are written, but not the timeline:")
    assert all(Path(stem["file"]).exists() for stem in report["stems"])
