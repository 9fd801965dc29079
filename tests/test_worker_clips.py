"""An encoded clip serves further prompts without a cache, until the video changes or the model leaves."""

import os
import shutil

import numpy as np
import pytest
from clips import numbered, write_video
from pngs import write_png
from workers import PROMPTS, STREET, expected_stems, request, samples

from selva_worker.remembering_session import RememberingSession


@pytest.fixture
def worker(piped):
    return piped


@pytest.fixture
def session(demo_bundle):
    def opened(cache):
        return RememberingSession(demo_bundle, backend="cpu", threads=1, cache=cache)

    return opened


@pytest.fixture
def film(tmp_path):
    """Longer than a window of the demo."""
    return write_video(tmp_path / "film.mp4", map(numbered, range(150)))


def encodes(worker, asked) -> bool:
    done = worker.wait(worker.submit(asked)["id"])
    assert done["state"] == "done", done
    return "encode" in done["result"]["timings_s"]


def opened(worker, **clip) -> dict:
    done = worker.wait(worker.call("clip.open", clip=clip)["id"])
    assert done["state"] == "done", done
    return done["result"]


def test_an_opened_clip_is_not_encoded_again(worker, demo_bundle, tmp_path):
    assert opened(worker, video=str(STREET), duration_s=1)["duration_s"] == 1
    done = worker.wait(worker.submit(request(tmp_path, prompts=PROMPTS, seed=7))["id"])
    assert not {"decode", "encode"} & set(done["result"]["timings_s"])
    assert samples(done) == expected_stems(demo_bundle, tmp_path, seed=7)
    assert not encodes(worker, request(tmp_path, prompts=["dog barking"]))
    worker.call("model.unload")
    assert encodes(worker, request(tmp_path))


def test_another_part_or_file_is_encoded(worker, tmp_path):
    copy = shutil.copy(STREET, tmp_path / "copy.mp4")
    opened(worker, video=str(copy), duration_s=1)
    asked = request(tmp_path, video=str(copy))
    assert not encodes(worker, asked)
    os.utime(copy, ns=(1, 1))
    assert encodes(worker, asked)
    for change in (
        {"start_s": 0.5},
        {"duration_s": 1.5},
        {"frame_rule": "nearest"},
        {"cuts": "none"},
        {"video": str(STREET)},
    ):
        assert encodes(worker, {**asked, **change})
        assert encodes(worker, asked)  # one clip is kept


def test_a_mask_belongs_to_the_clip(worker, tmp_path):
    mask = write_png(tmp_path / "mask.png", np.arange(256)[None])
    asked = request(tmp_path, mask=str(mask))
    opened(worker, video=str(STREET), duration_s=1, mask=str(mask))
    assert not encodes(worker, asked)
    for change in ({"mask": None}, {"mask_fill": "black"}, {"mask_invert": True}):
        assert encodes(worker, {**asked, **change})
        assert encodes(worker, asked)
    os.utime(mask, ns=(1, 1))
    assert encodes(worker, asked)


def test_cuts_from_a_file_are_those_of_the_clip(worker, film, tmp_path):
    (tmp_path / "cuts.txt").write_text("1\n3.2\n")
    options = {"video": str(film), "cuts": str(tmp_path / "cuts.txt")}
    assert opened(worker, **options)["cuts_s"] == [1, 3.2]
    assert not encodes(worker, request(tmp_path, **options, duration_s=None))


def test_a_clip_that_failed_is_forgotten(worker, film, tmp_path):
    opened(worker, video=str(film))
    asked = request(tmp_path, video=str(film), duration_s=None)
    assert not encodes(worker, asked)
    assert worker.wait(worker.submit({**asked, "steps": 0})["id"])["state"] == "failed"
    assert encodes(worker, asked)


def test_long_clips_of_a_cache_stay_there(session, film, tmp_path):
    kept = session("none")
    assert kept.encode(film) is kept.encode(film)
    assert kept.encode(film) is not kept.encode(film, duration_s=1)
    cached = session(str(tmp_path / "cache"))
    assert cached.encode(film) is not cached.encode(film)
    assert cached.encode(film, duration_s=1) is cached.encode(film, duration_s=1)


def test_a_file_that_changes_while_it_is_read_is_not_kept(session, film):
    kept = session("none")
    assert kept.encode(film, duration_s=1, progress=lambda *_: os.utime(film)) is not kept.encode(film, duration_s=1)
