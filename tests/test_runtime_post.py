"""Stems for post-production: timecode, Broadcast WAV, loudness and one gain, as other programs read them."""

import json
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from fractions import Fraction

import numpy as np
import pyloudnorm
import pytest
import soundfile
import wavinfo
from delivered import timed_video
from platforms import file_size_limit, needs_posix

from selva_bundle.errors import OutputError, RequestError
from selva_runtime.media.post.broadcast import POST_RATE_HZ, BroadcastWriter
from selva_runtime.media.post.chunks import StemTags
from selva_runtime.media.post.loudness import CEILING_DB, LoudnessMeter, SharedGain
from selva_runtime.media.post.timecode import Timecode, parse_timecode, source_timecode
from selva_runtime.media.video import VideoFile

RATES = [Fraction(24_000, 1001), 24, 25, Fraction(30_000, 1001), 30, 50, Fraction(60_000, 1001), 60]
TAGS = StemTags(
    prompt="Möwen & <rain>",
    take=2,
    scene="street",
    reference="seed 7 take 2",
    note="a note",
    frame_rate=Fraction(30_000, 1001),
    drop_frame=True,
    start=Fraction(3600) + Fraction(1, 3),
    created=datetime(2026, 3, 4, 5, 6, 7),
)
needs_mediainfo = pytest.mark.skipif(shutil.which("mediainfo") is None, reason="needs the program mediainfo")


def noise(seconds, level=0.1, seed=0):
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * POST_RATE_HZ))).astype(np.float32)


def write(path, *sounds, tags=TAGS, block=4801):
    """Writes the sounds as stems of one video. Returns their writers, which are closed, and the gain."""
    gain = SharedGain(POST_RATE_HZ)
    with ExitStack() as opened:
        writers = [opened.enter_context(BroadcastWriter(path, tags, gain)) for _ in sounds]
        for writer, sound in zip(writers, sounds, strict=True):
            for start in range(0, len(sound), block):
                writer.write(sound[start : start + block])
            writer.finish()
        for writer in writers:
            writer.close()
    return writers, gain.gain_db


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("drop", [False, True])
def test_every_frame_has_a_label_and_every_label_its_frame(rate, drop):
    if drop and rate not in (Fraction(30_000, 1001), Fraction(60_000, 1001)):
        with pytest.raises(RequestError, match="is drop-frame, but the video has"):
            parse_timecode("00:00:01;00", Fraction(rate))
        return
    for frame in [*range(3000), *range(17_900, 18_100), *range(35_900, 36_100), *range(2_000_000, 2_010_000, 7)]:
        code = Timecode(frame=frame, rate=Fraction(rate), drop=drop)
        assert parse_timecode(str(code), Fraction(rate)) == code


def test_drop_frame_stays_near_the_clock():
    rate = Fraction(30_000, 1001)
    assert parse_timecode("01:00:00;00", rate).frame == 107_892
    assert abs(parse_timecode("01:00:00;00", rate).seconds - 3600) < Fraction(1, 250)
    assert str(Timecode(frame=1800, rate=rate, drop=True)) == "00:01:00;02"
    assert parse_timecode("01:00:00:00", rate).seconds == Fraction(36_036, 10)


@pytest.mark.parametrize("text", ["1:00:00:00", "01:00:00", "24:00:00:00", "00:60:00:00", "00:00:00:25", "noon"])
def test_a_wrong_timecode(text):
    with pytest.raises(RequestError, match="timecode"):
        parse_timecode(text, Fraction(25))


def test_a_label_that_drop_frame_leaves_out():
    with pytest.raises(RequestError, match="is one of those that drop-frame leaves out"):
        parse_timecode("00:01:00;01", Fraction(30_000, 1001))


@pytest.mark.parametrize("level", [0.5, 0.05, 0.0008])
def test_loudness_is_that_of_another_meter(level):
    sound = noise(7.3, level)
    sound[100_000:200_000] *= 0.02  # the relative gate leaves this out
    meter = LoudnessMeter(POST_RATE_HZ)
    for start in range(0, len(sound), 1000):
        meter.push(sound[start : start + 1000])
    meter.finish()
    other = pyloudnorm.Meter(POST_RATE_HZ).integrated_loudness(sound.astype(np.float64))
    assert meter.lufs == pytest.approx(other, abs=0.2)


def test_true_peak_is_above_the_samples():
    """The samples of a sine at a quarter of the rate can all miss its peak by 3 dB."""
    sound = 0.01 * np.sin(np.pi / 2 * np.arange(POST_RATE_HZ) + np.pi / 4)
    sound *= np.hanning(len(sound))
    meter = LoudnessMeter(POST_RATE_HZ)
    meter.push(sound.astype(np.float32))
    meter.finish()
    assert 20 * np.log10(np.abs(sound).max()) == pytest.approx(-43.01, abs=0.01)
    assert meter.true_peak_db == pytest.approx(-40, abs=0.01)


def test_silence_has_no_level(tmp_path):
    (writer,), gain_db = write(tmp_path / "a.wav", np.zeros(POST_RATE_HZ, np.float32))
    assert (writer.level.lufs, writer.level.true_peak_db, gain_db) == (None, None, 0)
    assert wavinfo.WavInfoReader(str(writer.path)).bext.loudness_value == pytest.approx(327.67)


def test_one_gain_keeps_the_balance_and_the_peak(tmp_path):
    loud, soft = noise(3, 0.6), noise(3, 0.01, seed=1)
    writers, gain_db = write(tmp_path / "a.wav", loud, soft)
    assert gain_db < -6
    for writer, sound in zip(writers, (loud, soft), strict=True):
        written = soundfile.read(writer.path)[0]
        np.testing.assert_allclose(written, sound * 10 ** (gain_db / 20), atol=2**-23)
        again = LoudnessMeter(POST_RATE_HZ)
        again.push(written.astype(np.float32))
        again.finish()
        assert again.true_peak_db <= CEILING_DB
        assert again.true_peak_db == pytest.approx(writer.level.true_peak_db, abs=0.01)
        assert again.lufs == pytest.approx(writer.level.lufs, abs=0.02)


def test_a_low_stem_keeps_its_level(tmp_path):
    sound = noise(1, 0.01)
    (writer,), gain_db = write(tmp_path / "a.wav", sound)
    assert gain_db == 0
    np.testing.assert_allclose(soundfile.read(writer.path)[0], sound, atol=2**-24 * 1.01)


@pytest.mark.parametrize("samples", [1, 2, 48_001, 600_000])
def test_other_programs_read_the_chunks(tmp_path, samples):
    sound = noise(samples / POST_RATE_HZ)
    (writer,), _ = write(tmp_path / "a.wav", sound)
    assert soundfile.info(writer.path).subtype == "PCM_24"
    assert soundfile.info(writer.path).frames == samples
    read = wavinfo.WavInfoReader(str(writer.path))
    assert (read.fmt.sample_rate, read.fmt.bits_per_sample, read.fmt.channel_count) == (48_000, 24, 1)
    assert read.data.frame_count == samples
    assert read.bext.time_reference == 3600 * 48_000 + 16_000
    assert (read.bext.version, read.bext.originator) == (2, "selva-deploy")
    assert read.bext.description == "M?wen & <rain>"
    assert (read.bext.originator_date, read.bext.originator_time) == ("2026-03-04", "05:06:07")
    if writer.level.lufs is not None:
        assert read.bext.loudness_value == pytest.approx(writer.level.lufs, abs=0.005)
        assert read.ixml.parsed.findtext("LOUDNESS/LOUDNESS_VALUE") == f"{writer.level.lufs:.2f}"
        assert read.ixml.parsed.findtext("LOUDNESS/MAX_TRUE_PEAK_LEVEL") == f"{writer.level.true_peak_db:.2f}"
    assert read.bext.max_true_peak == pytest.approx(writer.level.true_peak_db, abs=0.005)
    assert [track.name for track in read.ixml.track_list] == [TAGS.prompt]
    assert (read.ixml.scene, read.ixml.take) == ("street", "2")
    assert read.ixml.parsed.findtext("SPEED/TIMECODE_RATE") == "30000/1001"
    assert read.ixml.parsed.findtext("SPEED/TIMECODE_FLAG") == "DF"
    assert read.ixml.parsed.findtext("SPEED/TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO") == str(read.bext.time_reference)
    assert writer.path.stat().st_size % 2 == 0


@needs_mediainfo
def test_mediainfo_reads_the_time(tmp_path):
    (writer,), _ = write(tmp_path / "a.wav", noise(1))
    command = ["mediainfo", "--Output=JSON", str(writer.path)]
    general, audio = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["media"]["track"]
    assert (audio["SamplingRate"], audio["BitDepth"]) == ("48000", "24")
    assert int(audio["Delay"].replace(".", "")[:7]) == 3_600_333
    assert general["Producer"] == "selva-deploy"


def test_an_unfinished_file_leaves_nothing(tmp_path):
    with BroadcastWriter(tmp_path / "a.wav", TAGS, SharedGain(POST_RATE_HZ)) as file:
        file.write(noise(1))
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert list(tmp_path.iterdir()) == []


@needs_posix
def test_a_full_disk_leaves_nothing(tmp_path):
    with file_size_limit(100_000), pytest.raises(OutputError, match=r"a\.wav: cannot be written"):
        write(tmp_path / "a.wav", noise(3))
    assert list(tmp_path.iterdir()) == []


def test_a_time_of_more_than_32_bits(tmp_path):
    """The last hour before midnight, and a stem that starts late in a long video."""
    late = parse_timecode("23:59:59:29", Fraction(30_000, 1001)).seconds + 4000
    (writer,), _ = write(tmp_path / "a.wav", noise(0.5), tags=replace(TAGS, start=late))
    read = wavinfo.WavInfoReader(str(writer.path))
    assert read.bext.time_reference == round(late * 48_000) > 1 << 32
    assert read.ixml.parsed.findtext("SPEED/TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI") == "1"


@pytest.mark.parametrize("suffix", ["mov", "mp4", "mkv", "mxf"])
def test_the_timecode_of_a_file_is_found(tmp_path, suffix):
    with VideoFile(timed_video(tmp_path / f"a.{suffix}", "10:20:30:12")) as video:
        assert source_timecode(video) == "10:20:30:12"
