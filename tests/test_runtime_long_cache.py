"""The cache of encoded clips as a session uses it, and videos whose times are uneven at a join."""

from __future__ import annotations

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import click, numbered, write_video

from selva_bundle.errors import CacheError
from selva_bundle.ports import VIDEO_BACKBONE
from selva_runtime import RequestError, Session

LONG, SHORT = 130, 50


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {count: write_video(folder / f"{count}.mp4", map(numbered, range(count))) for count in (LONG, SHORT)}


class Counted:
    """A session with a cache, and how many segments its backbone has seen."""

    def __init__(self, bundle: Path, cache: Path) -> None:
        self.session = Session(bundle, backend="cpu", threads=1, cache=cache)
        self.segments = 0
        run = self.session._executor.run

        def listen(name, feeds, cancel=None):
            self.segments += len(feeds["segments"]) if name == VIDEO_BACKBONE else 0
            return run(name, feeds, cancel)

        self.session._executor.run = listen

    def encode(self, path, **options):
        return self.session.encode(path, **options)

    def stem(self, clip):
        return self.session.generate(clip, ["rain"], steps=1)[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("count", [LONG, SHORT])
def test_a_second_session_encodes_nothing_and_hears_the_same(demo_bundle, videos, folder, tmp_path, count):
    first, second = Counted(demo_bundle, folder), Counted(demo_bundle, folder)
    made = first.encode(videos[count], start_s=0.04)
    assert first.segments == len(made.tokens) > 0
    renamed = shutil.copy(videos[count], tmp_path / "another name.mp4")
    found = second.encode(renamed, start_s=0.04)
    assert second.segments == 0
    assert found.source == str(renamed)
    facts = ("duration_s", "start_s", "source_duration_s", "video_start_s", "warnings", "backbone", "shots")
    for fact in facts:
        assert getattr(found, fact) == getattr(made, fact)
    np.testing.assert_array_equal(np.asarray(found.tokens), np.asarray(made.tokens))
    stem = first.stem(made)
    np.testing.assert_array_equal(second.stem(found).audio, stem.audio)
    without = Session(demo_bundle, backend="cpu", threads=1, cache="none")
    uncached = without.encode(videos[count], start_s=0.04)
    np.testing.assert_array_equal(without.generate(uncached, ["rain"], steps=1)[0].audio, stem.audio)


def test_what_changes_the_tokens_misses(demo_bundle, videos, folder):
    counted = Counted(demo_bundle, folder)
    options = [
        {},
        {"cuts": "none"},
        {"cuts": [2.0]},
        {"frame_rule": "nearest"},
        {"start_s": 0.2},
        {"duration_s": 4.8},
        {"start_s": 0.2, "cuts": [2.0]},
    ]
    for each in options:
        before = counted.segments
        counted.encode(videos[LONG], **each)
        assert counted.segments > before, each
    before = counted.segments
    for each in options:
        counted.encode(videos[LONG], **each)
    assert counted.segments == before


def test_numbers_of_other_kinds_are_the_same_request(demo_bundle, videos, folder):
    counted = Counted(demo_bundle, folder)
    counted.encode(videos[LONG], start_s=0.5, duration_s=4.5)
    before = counted.segments
    counted.encode(videos[LONG], start_s=np.float32(0.5), duration_s=Fraction(9, 2))
    assert counted.segments == before


def test_cuts_count_from_the_start_of_the_video(demo_bundle, videos, folder):
    counted = Counted(demo_bundle, folder)
    clip = counted.encode(videos[LONG], start_s=0.4, cuts=[0.1, 1.4, 3.0])
    assert [shot.first_frame for shot in clip.shots] == [0, 25, 65]


@pytest.mark.parametrize("cuts", ["some", 3, [float("nan")], [float("inf")], ["later"], None])
def test_cuts_that_are_refused(demo_bundle, videos, folder, cuts):
    with pytest.raises(RequestError, match=r"^cuts is ") as caught:
        Counted(demo_bundle, folder).encode(videos[LONG], cuts=cuts)
    assert "\n" not in str(caught.value)


def flip_a_bit_in_the_rows(folder: Path) -> None:
    (entry,) = (path for path in folder.iterdir() if path.name.startswith("clip-"))
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)


@pytest.mark.parametrize("count", [LONG, SHORT])
def test_a_damaged_entry_is_encoded_again(demo_bundle, videos, folder, count):
    first = Counted(demo_bundle, folder)
    expected = np.asarray(first.encode(videos[count]).tokens)
    flip_a_bit_in_the_rows(folder)
    again = Counted(demo_bundle, folder)
    clip = again.encode(videos[count])
    assert again.segments == first.segments
    assert any("had a damaged entry, which is computed again" in warning for warning in clip.warnings)
    np.testing.assert_array_equal(np.asarray(clip.tokens), expected)
    third = Counted(demo_bundle, folder)
    assert third.encode(videos[count]).warnings == ()
    assert third.segments == 0


def test_an_entry_that_is_damaged_later_is_an_error_and_gone(demo_bundle, videos, folder):
    counted = Counted(demo_bundle, folder)
    clip = counted.encode(videos[LONG])
    flip_a_bit_in_the_rows(folder)
    with pytest.raises(CacheError, match="encode the video again"):
        counted.stem(clip)
    assert not [path for path in folder.iterdir() if path.name.startswith("clip-")]
    before = counted.segments
    counted.stem(counted.encode(videos[LONG]))
    assert counted.segments == 2 * before


def test_nothing_stays_of_a_clip_that_fails(demo_bundle, videos, folder):
    counted = Counted(demo_bundle, folder)

    def stop(stage, done, total):
        if stage == "encode" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counted.encode(videos[LONG], progress=stop)
    assert list(folder.iterdir()) == []
    assert len(counted.stem(counted.encode(videos[LONG])).audio) == 83_200


PROCESS = """
import hashlib, sys
from selva_runtime import Session
session = Session(sys.argv[1], backend="cpu", threads=1, cache=sys.argv[2])
clip = session.encode(sys.argv[3])
print(hashlib.sha256(session.generate(clip, ["rain"], steps=1)[0].audio.tobytes()).hexdigest())
"""


def test_processes_that_encode_the_same_video_at_once(demo_bundle, videos, folder):
    command = [sys.executable, "-c", PROCESS, str(demo_bundle), str(folder), str(videos[LONG])]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    heard = {process.communicate(timeout=100)[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(heard) == 1
    entries = sorted(path.name.split("-")[0] for path in folder.iterdir() if path.suffix != ".part")
    assert entries.count("clip") == 1
    counted = Counted(demo_bundle, folder)
    counted.encode(videos[LONG])
    assert counted.segments == 0


def test_a_gap_in_the_times_at_a_join(demo_bundle, tmp_path):
    """Nothing is shown from 3.6 to 4.6 s, where the first two windows join: the frame before is held."""
    ticks = [*range(0, 3600, 40), *range(4600, 6000, 20)]
    path = write_video(tmp_path / "gap.mp4", map(numbered, range(len(ticks))), ticks=ticks, time_base=Fraction(1, 1000))
    session = Session(demo_bundle, backend="cpu", threads=1)
    clip = session.encode(path, cuts="none")
    assert clip.duration_s == 6.0
    assert any(3.6 < join_s < 4.7 for join_s in session.joins_s(clip))
    (stem,) = session.generate(clip, ["rain"], steps=1)
    assert len(stem.audio) == 96_000
    assert np.isfinite(stem.audio).all()


@pytest.mark.parametrize("count", [100, 130])
def test_sound_that_goes_on_after_the_last_frame_is_not_part_of_the_stem(demo_bundle, tmp_path, count):
    length_s = count / 25
    sound = click(length_s + 4, 1.0, 48_000)
    path = write_video(tmp_path / "tail.mp4", map(numbered, range(count)), sound=sound)
    session = Session(demo_bundle, backend="cpu", threads=1)
    clip = session.encode(path)
    assert abs(clip.duration_s - length_s) < 0.01
    assert len(session.generate(clip, ["rain"], steps=1)[0].audio) == round(clip.duration_s * 16_000)
