"""Resampling keeps time and level; WAV files are complete, exact and never overwritten; names have the prompt."""

import itertools
import math
import os
import unicodedata
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from platforms import file_size_limit, needs_posix

import selva_bundle.atomic
import selva_runtime.media.audio
from selva_bundle.atomic import write_new
from selva_bundle.errors import OutputError, RequestError
from selva_runtime.media.audio import (
    MAX_WAV_SAMPLES,
    WavWriter,
    stem_file_name,
    write_wav,
)
from selva_runtime.media.resampler import FILTER_REACH, Resampler, resample

RATES_HZ = [8000, 16000, 44100, 48000, 96000]
PAIRS_HZ = list(itertools.permutations(RATES_HZ, 2))


def sine(length, rate_hz, frequency_hz=440, phase=0.3):
    return np.sin(2 * np.pi * frequency_hz * np.arange(length) / rate_hz + phase).astype(np.float32)


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS_HZ)
def test_a_sine_stays_the_same_sine_from_end_to_end(from_hz, to_hz):
    length = from_hz // 2 + 7
    out = resample(sine(length, from_hz), from_hz, to_hz)
    assert out.dtype == np.float32
    assert len(out) == round(Fraction(length * to_hz, from_hz))
    error = np.abs(out - sine(len(out), to_hz))
    reach = math.ceil(FILTER_REACH * max(1, to_hz / from_hz))
    assert error[reach:-reach].max() < 1e-4
    known = (length - 1) * to_hz // from_hz
    assert error[: known + 1].max() < 0.1  # near the ends the filter must extrapolate


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS_HZ)
@pytest.mark.parametrize("at_s", [0.0, 0.25, 0.4975])
def test_an_impulse_stays_where_it_is(from_hz, to_hz, at_s):
    impulse = np.zeros(from_hz // 2, np.float32)
    place = round(at_s * from_hz)
    impulse[place] = 1
    out = resample(impulse, from_hz, to_hz)
    assert abs(int(out.argmax()) / to_hz - place / from_hz) <= 0.5 / to_hz + 1e-9
    if place * to_hz % from_hz == 0:
        assert out.max() == pytest.approx(min(1, to_hz / from_hz), rel=0.05)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 20, 160])
def test_short_sounds(length):
    for from_hz, to_hz in PAIRS_HZ:
        out = resample(np.full(length, 0.5, np.float32), from_hz, to_hz)
        assert len(out) == round(Fraction(length * to_hz, from_hz))
        np.testing.assert_allclose(out, 0.5, atol=1e-3)


def test_the_same_rate_changes_nothing():
    audio = sine(100, 16000)
    same = resample(audio, 16000, 16000)
    np.testing.assert_array_equal(same, audio)
    assert same is not audio


@pytest.mark.parametrize("block", [1, 77, 4096])
@pytest.mark.parametrize("length", [0, 1, 160, 700, 4001])
@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(16000, 48000), (16000, 44100), (44100, 48000), (48000, 16000), (16000, 16000)]
)
def test_blocks_of_any_size_are_resampled_to_the_same_bits(from_hz, to_hz, length, block):
    audio = np.random.default_rng(1).standard_normal(length).astype(np.float32)
    resampler = Resampler(from_hz, to_hz)
    parts = [resampler.push(audio[start : start + block]) for start in range(0, length, block)]
    parts += [resampler.push(audio[:0]), resampler.finish()]
    assert np.concatenate(parts).tobytes() == resample(audio, from_hz, to_hz).tobytes()


def test_a_resampler_keeps_only_the_edge():
    resampler = Resampler(16000, 48000)
    given = [len(resampler.push(np.zeros(1600, np.float32))) for _ in range(50)]
    assert min(given[1:]) == max(given[1:]) == 4800
    assert 3 * 80_000 - sum(given) < 3 * 2 * FILTER_REACH
    assert len(resampler.finish()) == 3 * 80_000 - sum(given)


@pytest.mark.parametrize("rate_hz", [0, -48000, 7999, 192001, 10**9])
def test_senseless_rates(rate_hz, tmp_path):
    with pytest.raises(RequestError, match="must be from 8000 to 192000 Hz"):
        resample(sine(100, 16000), 16000, rate_hz)
    with pytest.raises(RequestError, match="must be from 8000 to 192000 Hz"):
        write_wav(tmp_path / "a.wav", sine(100, 16000), rate_hz)


def test_wav_is_24_bit_clipped_and_tagged(tmp_path):
    audio = np.array([0, 0.5, -0.25, 1, -1, 7, -7, 1e-6], np.float32)
    path = write_wav(tmp_path / "a.wav", audio, 48000, title="dog\nbarking 犬", comment="x" * 5000)
    with soundfile.SoundFile(path) as file:
        assert (file.samplerate, file.channels, file.subtype, file.format) == (48000, 1, "PCM_24", "WAV")
        assert (file.title, file.comment) == ("dog barking 犬", "x" * 1000)
        np.testing.assert_allclose(file.read(), np.clip(audio, -1, 1), atol=1.5 / 2**23)


@pytest.mark.parametrize("block", [1, 1000, 4096])
def test_a_wav_written_in_blocks_is_the_same_file(tmp_path, block):
    audio = np.random.default_rng(2).standard_normal(5001).astype(np.float32)
    tags = {"title": "dog 犬", "comment": "x" * 500}
    whole = write_wav(tmp_path / "whole.wav", audio, 48000, **tags)
    with WavWriter(tmp_path / "blocks.wav", 48000, **tags) as file:
        for start in range(0, len(audio), block):
            file.write(audio[start : start + block])
            assert not (tmp_path / "blocks.wav").exists()
    assert file.path == file.close() == tmp_path / "blocks.wav"
    assert file.path.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks.wav", "whole.wav"]


def test_a_wav_that_was_not_completed_leaves_nothing(tmp_path):
    def interrupted():
        with WavWriter(tmp_path / "a.wav", 48000) as file:
            file.write(np.zeros(9000, np.float32))
            assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_wav_that_was_closed_stays_whatever_happens_then(tmp_path):
    def failed_later():
        with WavWriter(tmp_path / "a.wav", 48000) as file:
            file.write(np.zeros(9, np.float32))
            file.close()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failed_later()
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == 9


def test_a_wav_of_more_than_4_gib_is_refused(tmp_path, monkeypatch):
    assert 3 * MAX_WAV_SAMPLES + 20_000 < 2**32
    monkeypatch.setattr(selva_runtime.media.audio, "MAX_WAV_SAMPLES", 100)
    file = WavWriter(tmp_path / "a.wav", 48000)
    file.write(np.zeros(60, np.float32))
    with file, pytest.raises(RequestError, match="120 samples: a WAV file holds at most 100; lower the sample rate"):
        file.write(np.zeros(60, np.float32))
    assert len(soundfile.read(file.path)[0]) == 60


def test_wav_without_tags_has_none(tmp_path):
    with soundfile.SoundFile(write_wav(tmp_path / "a.wav", np.zeros(9, np.float32), 48000)) as file:
        assert (file.title, file.comment) == ("", "")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_wav_refuses_nan_and_infinity(tmp_path, bad):
    with pytest.raises(RequestError, match="NaN or infinity"):
        write_wav(tmp_path / "a.wav", np.array([0, bad], np.float32), 16000)
    with pytest.raises(RequestError, match="must be mono"):
        write_wav(tmp_path / "a.wav", np.zeros((2, 9), np.float32), 16000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_nothing_is_overwritten(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(selva_bundle.atomic.os, "link", no_link)
    (tmp_path / "a-2.wav").write_text("mine")
    names = [write_wav(tmp_path / "a.wav", np.full(9, level, np.float32), 16000).name for level in (0.1, 0.2, 0.3)]
    assert names == ["a.wav", "a-3.wav", "a-4.wav"]
    assert (tmp_path / "a-2.wav").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.wav", "a-3.wav", "a-4.wav", "a.wav"]
    assert soundfile.read(tmp_path / "a-4.wav")[0][0] == pytest.approx(0.3, abs=1e-6)


def no_link(*_):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_files_have_the_usual_permissions(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(selva_bundle.atomic.os, "link", no_link)
    (tmp_path / "usual").touch()
    path = write_wav(tmp_path / "a.wav", np.zeros(9, np.float32), 16000)
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing/a.wav", "create the folder first"),
        ("file/a.wav", r"\(Not a directory\); choose another folder$"),
        ("a" * 300 + ".wav", "choose a shorter name"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, words):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=words) as caught:
        write_wav(tmp_path / name, np.zeros(9, np.float32), 16000)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@needs_posix
def test_a_full_disk_leaves_nothing(tmp_path):
    with file_size_limit(10_000), pytest.raises(OutputError, match=r"a\.wav: cannot be written \(File too large\)"):
        write_wav(tmp_path / "a.wav", np.zeros(9000, np.float32), 16000)
    assert not list(tmp_path.iterdir())


@needs_posix
@pytest.mark.parametrize("limit_bytes", [1, 20, 300, 10_000, 17_000])
def test_a_disk_that_fills_while_a_wav_is_written_leaves_nothing(tmp_path, limit_bytes, capfd):
    written = []

    def fill_the_disk():
        with WavWriter(tmp_path / "a.wav", 16000, title="dog") as file:
            for _ in range(20):
                file.write(np.zeros(300, np.float32))
                written.append(300)

    refused = pytest.raises(OutputError, match=r"a\.wav: cannot be written \(File too large\)")
    with file_size_limit(limit_bytes), refused:
        fill_the_disk()
    assert 3 * sum(written) < limit_bytes + 3 * 300
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted(temporary):
        temporary.write_bytes(b"half")
        assert os.listdir(tmp_path) == [temporary.name]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / "a.json", interrupted)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("dog barking", "dog-barking"),
        ("  two   spaces\tand a tab ", "two-spaces-and-a-tab"),
        ("dog's bark, loud!", "dogs-bark-loud"),
        ("../../etc/passwd", "etc-passwd"),
        ("a\\b/c.wav", "a-b-c-wav"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("a\0b\x1b[31mc", "ab31mc"),
        ("猫が鳴く", "猫が鳴く"),
        ("हिन्दी शब्द", "हिन्दी-शब्द"),
        ("cafe\u0301", "café"),
        ("a\u202egnp.exe", "agnp-exe"),
        ("\ud800lone surrogate", "lone-surrogate"),
        ("snake_case", "snake_case"),
        ("dog—bark–ing", "dog-bark-ing"),
        ("BOX", "BOX"),
        ("CON", "stem-CON"),
        ("com1", "stem-com1"),
        ("", "stem"),
        ("😀", "stem"),
        ("...", "stem"),
    ],
)
def test_stem_file_name(prompt, name):
    assert stem_file_name(prompt) == name


@pytest.mark.parametrize("letter", ["a", "é", "猫", "𠀋", "a ", "क्ष"])
def test_long_names_are_cut(letter):
    name = stem_file_name(letter * 400)
    assert 1 <= len(name) <= 80
    assert 40 < len(name.encode()) <= 200
    assert not name.endswith("-")
    assert unicodedata.is_normalized("NFC", name)


@pytest.mark.parametrize("tone_hz", [6_000, 7_500, 7_800])
def test_resampling_mirrors_nothing_past_the_edge_of_the_models_band(tone_hz: int) -> None:
    """A tone just below 8 kHz, resampled from 16 to 48 kHz: its image just above stays 90 dB below it."""
    audio = (0.5 * np.sin(2 * np.pi * tone_hz * np.arange(32_000) / 16_000)).astype(np.float32)
    middle = resample(audio, 16_000, 48_000)[4_800:-4_800]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) / (len(middle) / 4)
    frequency_hz = np.fft.rfftfreq(len(middle), 1 / 48_000)
    tone = spectrum[np.abs(frequency_hz - tone_hz) < 5].max()
    assert tone == pytest.approx(0.5, rel=0.01)
    assert spectrum[frequency_hz > 8_100].max() < tone * 10 ** (-90 / 20)
