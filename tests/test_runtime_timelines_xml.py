"""FCP7 XML and FCPXML: exact frames and names at every rate, as OpenTimelineIO's adapters and a DTD read them."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree

import opentimelineio
import pytest
from lxml import etree
from sequences import FIRST, FRAMES, NAMES, ODD_FRAME, RATE_HZ, RATES, VIDEO_FIRST, make_sequence

from selva_bundle.errors import RequestError
from selva_runtime.media.post.timecode import DROP_RATES
from selva_runtime.media.timelines.sequence import Sequence
from selva_runtime.media.timelines.write import check_timeline, moved_s, write_timeline

DTD = Path(__file__).parent / "data/fcpxml_1_10_used.dtd"
LANE_NAMES = [*NAMES, f"{NAMES[1]} (take 2)"]
HEARD = [True, True, False]
STEM_FRAMES = FRAMES - ODD_FRAME


@pytest.fixture(params=RATES, ids=lambda rate: f"{float(rate):.5g}")
def sequence(request, tmp_path) -> Sequence:
    return make_sequence(tmp_path, request.param, timed=True)


def local(url: str) -> Path:
    return Path(unquote(urlparse(url).path))


def files(sequence: Sequence) -> list[Path]:
    return [file for _, file, _ in sequence.lanes()]


def frames(time_range) -> tuple[float, float]:
    return time_range.start_time.value, time_range.duration.value


def seconds(text: str) -> Fraction:
    assert text.endswith("s")
    return Fraction(text[:-1])


def test_opentimelineio_reads_fcp7_xml(sequence, tmp_path):
    read = opentimelineio.adapters.read_from_file(str(write_timeline(sequence, tmp_path / "out.xml")))
    rate = pytest.approx(float(sequence.rate), abs=0.005)  # the adapter rounds to 29.97
    assert (read.name, read.global_start_time.value, read.global_start_time.rate) == ("street", FIRST, rate)
    picture, *stems = read.tracks
    assert (picture.name, picture.kind) == ("picture", "Video")
    assert [stem.name for stem in stems] == LANE_NAMES
    assert frames(picture[0].source_range) == (VIDEO_FIRST, FRAMES)
    assert frames(picture[0].media_reference.available_range) == (VIDEO_FIRST, FRAMES)
    assert local(picture[0].media_reference.target_url) == sequence.video
    for stem, file in zip(stems, files(sequence), strict=True):
        _gap, clip = stem
        assert (stem.kind, clip.name) == ("Audio", stem.name)
        assert frames(stem.range_of_child(clip)) == (ODD_FRAME, STEM_FRAMES)
        assert frames(clip.source_range) == (0, STEM_FRAMES)
        assert clip.source_range.duration.rate == rate
        assert local(clip.media_reference.target_url) == file


def test_fcp7_xml_says_what_the_adapter_does_not_read(sequence, tmp_path):
    root = ElementTree.parse(write_timeline(sequence, tmp_path / "out.xml")).getroot()
    rates = {(int(rate.findtext("timebase")), rate.findtext("ntsc")) for rate in root.iter("rate")}
    assert rates == {(round(sequence.rate), "TRUE" if sequence.rate.denominator == 1001 else "FALSE")}
    assert [track.get("MZ.TrackName") for track in root.iter("track")] == ["picture", *LANE_NAMES]
    assert [clip.findtext("enabled") for clip in root.iter("clipitem")] == [
        "TRUE",
        *(str(one).upper() for one in HEARD),
    ]
    drop = sequence.rate in DROP_RATES
    flags = [code.findtext("displayformat") for code in root.iter("timecode")]
    assert flags == ["DF" if drop else "NDF", "NDF"]
    assert [code.findtext("string") for code in root.iter("timecode")] == [
        str(sequence.first),
        str(sequence.video_first),
    ]
    assert (";" in str(sequence.first)) == drop
    assert root.findtext("sequence/duration") == str(FRAMES)
    clip = root.find("sequence/media/audio/track/clipitem")
    assert [int(clip.findtext(field)) for field in ("start", "end", "in", "out")] == [ODD_FRAME, FRAMES, 0, STEM_FRAMES]
    urls = [url.text for url in root.iter("pathurl")]
    assert urls[0].startswith("file://localhost/")
    assert urls[0].endswith("/a%20%231%2050%25%20stra%C3%9Fe.mp4")


def test_fcpxml_keeps_the_rules_of_its_dtd(sequence, tmp_path):
    dtd, document = etree.DTD(str(DTD)), etree.parse(str(write_timeline(sequence, tmp_path / "out.fcpxml")))
    assert dtd.validate(document), dtd.error_log
    assert document.docinfo.doctype == "<!DOCTYPE fcpxml>"
    document.find(".//asset-clip").set("ref", "nothing")
    assert not dtd.validate(document)


def test_fcpxml_is_exact(sequence, tmp_path):
    root = ElementTree.parse(write_timeline(sequence, tmp_path / "out.fcpxml")).getroot()
    frame, whole = 1 / sequence.rate, FRAMES / sequence.rate
    shown = root.find(".//sequence")
    assert seconds(root.find(".//format").get("frameDuration")) == frame
    assert (seconds(shown.get("tcStart")), seconds(shown.get("duration"))) == (FIRST * frame, whole)
    assert shown.get("tcFormat") == ("DF" if sequence.rate in DROP_RATES else "NDF")
    picture = root.find(".//spine/asset-clip")
    times = [seconds(picture.get(field)) for field in ("offset", "start", "duration")]
    assert times == [FIRST * frame, VIDEO_FIRST * frame, whole]
    assert (picture.get("srcEnable"), picture.get("tcFormat")) == ("video", "NDF")
    assets = {asset.get("id"): asset for asset in root.iter("asset")}
    assert seconds(assets["video"].get("start")) == VIDEO_FIRST * frame
    begin = Fraction(round((sequence.first.seconds + sequence.start_s) * RATE_HZ), RATE_HZ)
    clips = picture.findall("asset-clip")
    for clip, file in zip(clips, files(sequence), strict=True):
        assert seconds(clip.get("offset")) == (VIDEO_FIRST + ODD_FRAME) * frame
        assert seconds(clip.get("duration")) == STEM_FRAMES * frame
        asset = assets[clip.get("ref")]
        assert seconds(clip.get("start")) == seconds(asset.get("start")) == begin
        assert seconds(asset.get("duration")) == Fraction(sequence.samples, RATE_HZ)
        assert local(asset.find("media-rep").get("src")) == file
    assert local(assets["video"].find("media-rep").get("src")) == sequence.video
    assert assets["video"].find("media-rep").get("src").endswith("/a%20%231%2050%25%20stra%C3%9Fe.mp4")
    assert [(clip.get("name"), clip.get("lane"), clip.get("enabled")) for clip in clips] == [
        (name, str(-number), str(int(heard)))
        for number, (name, heard) in enumerate(zip(LANE_NAMES, HEARD, strict=True), 1)
    ]
    assert [clip.get("audioRole") for clip in clips] == [f"effects.{name}" for name in LANE_NAMES]


@pytest.mark.parametrize("sequence", [rate for rate in RATES if rate.denominator == 1], indirect=True)
def test_opentimelineio_reads_fcpxml(sequence, tmp_path):
    """The adapter, otio_fcpx_xml_adapter 1.0.0, reads 29.97 as 29, so whole rates only."""
    (read,) = opentimelineio.adapters.read_from_file(str(write_timeline(sequence, tmp_path / "out.fcpxml")))
    *stems, picture = read.tracks
    assert frames(picture.range_of_child(picture[-1])) == (FIRST, FRAMES)
    assert frames(picture[-1].source_range) == (VIDEO_FIRST, FRAMES)
    assert [stem[-1].name for stem in stems] == LANE_NAMES
    assert [frames(stem.range_of_child(stem[-1])) for stem in stems] == [(FIRST + ODD_FRAME, STEM_FRAMES)] * 3


def test_frames_late_in_a_long_video_are_exact(sequence):
    """After an hour, 29.97 and 30 frames a second are 108 frames apart."""
    late = 200_003
    at_late = replace(sequence, start_s=late / sequence.rate, samples=round(late / sequence.rate * RATE_HZ))
    assert (at_late.start_frame, at_late.stem_frames, at_late.moved_s) == (late, late, 0)


@pytest.mark.parametrize("suffix", [".xml", ".fcpxml"])
def test_a_start_between_frames_goes_to_the_nearest_one(tmp_path, suffix):
    late = replace(make_sequence(tmp_path, Fraction(25)), start_s=Fraction(37, 25) + Fraction(3, 100))
    assert moved_s(late, Path(f"out{suffix}")) == pytest.approx(0.01)
    text = write_timeline(late, tmp_path / f"out{suffix}").read_text()
    assert ("<start>38</start>" if suffix == ".xml" else f'offset="{Fraction(VIDEO_FIRST + 38, 25)}s"') in text


def test_a_stem_without_timecode_begins_at_zero(tmp_path):
    text = write_timeline(make_sequence(tmp_path, Fraction(24)), tmp_path / "out.fcpxml").read_text()
    assert text.count('start="0s"') == 6


def test_a_stem_that_ends_between_frames_is_not_longer_than_its_file(tmp_path):
    """Half a frame less than the whole video: the last frame of the stem is not full."""
    short = replace(make_sequence(tmp_path, Fraction(25)), samples=STEM_FRAMES * 1920 - 960)
    root = ElementTree.parse(write_timeline(short, tmp_path / "out.xml")).getroot()
    assert root.findtext("sequence/media/audio/track/clipitem/out") == str(STEM_FRAMES - 1)
    one = replace(short, samples=500)
    root = ElementTree.parse(write_timeline(one, tmp_path / "one.xml")).getroot()
    assert root.findtext("sequence/media/audio/track/clipitem/out") == "1"


def test_a_role_has_no_further_dots(tmp_path):
    made = make_sequence(tmp_path, Fraction(25))
    made = replace(made, tracks=(replace(made.tracks[0], name="rain.loud"),))
    root = ElementTree.parse(write_timeline(made, tmp_path / "out.fcpxml")).getroot()
    assert root.find(".//asset-clip/asset-clip").get("audioRole") == "effects.rain loud"


def test_fcp7_xml_has_no_odd_rates():
    for rate in (*RATES, Fraction(30), Fraction(12)):
        check_timeline("out.xml", rate)
    with pytest.raises(RequestError, match=r"a timeline in \.xml cannot have 12\.5 frames a second"):
        check_timeline("out.xml", Fraction(25, 2))
    check_timeline("out.fcpxml", Fraction(25, 2))
