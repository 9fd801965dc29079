"""Masks in a session and in the command: what the model hears of them, the cache, the bed, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from clips import write_video
from pngs import write_png

from selva_bundle.errors import RequestError
from selva_bundle.ports import VIDEO_BACKBONE
from selva_runtime import Session
from selva_runtime.command.cli import main
from selva_runtime.session import encode_for
from selva_runtime.video_part import VideoPart

SIZE = 64
COUNT = 50
LOSSLESS = {"codec": "ffv1", "pixels": "bgr0"}


def picture(number):
    return np.random.default_rng(number // 4).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a.mkv", map(picture, range(COUNT)), **LOSSLESS)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.stack([picture(number).transpose(2, 0, 1) for number in range(COUNT)])


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    """A soft-edged square that wanders, uint8 (T, H, H)."""
    masks = np.zeros((COUNT, SIZE, SIZE), np.uint8)
    for number, mask in enumerate(masks):
        mask[10:40, number // 2 : number // 2 + 20] = 255
        mask[9, number // 2 : number // 2 + 20] = 100
    return masks


@pytest.fixture
def mask(tmp_path, moving) -> Path:
    return write_video(tmp_path / "mask.mkv", moving, codec="ffv1", pixels="gray")


@pytest.fixture(scope="module")
def session(demo_bundle) -> Session:
    return Session(demo_bundle, backend="cpu", threads=1, cache="none")


def tokens(clip) -> np.ndarray:
    return np.asarray(clip.tokens)


@pytest.mark.parametrize("options", [{}, {"mask_fill": "black"}, {"mask_fill": "blur", "mask_invert": True}], ids=str)
def test_a_file_an_array_and_filled_frames_are_the_same(session, video, frames, moving, mask, options):
    by_file = session.encode(video, mask=mask, **options)
    by_array = session.encode_frames(frames, 2.0, mask=moving, **options)
    np.testing.assert_array_equal(tokens(by_file), tokens(by_array))
    assert not np.array_equal(tokens(by_file), tokens(session.encode_frames(frames, 2.0)))
    if options == {"mask_fill": "black"}:
        filled = (frames * (moving / 255.0)[:, None] + 0.5).astype(np.uint8)
        np.testing.assert_array_equal(tokens(by_array), tokens(session.encode_frames(filled, 2.0)))


def test_a_mask_that_keeps_everything_changes_nothing_but_warns(session, frames):
    plain = session.encode_frames(frames, 2.0)
    masked = session.encode_frames(frames, 2.0, mask=np.ones((SIZE, SIZE), bool))
    np.testing.assert_array_equal(tokens(masked), tokens(plain))
    assert plain.warnings == ()
    assert "fills nothing of this part" in masked.warnings[0]


def test_frames_on_a_device_are_refused_with_a_mask(session, frames):
    class OnDevice:
        dtype, ndim, shape = frames.dtype, frames.ndim, frames.shape

        def __len__(self):
            return len(frames)

        def __getitem__(self, rows):
            return self

    with pytest.raises(RequestError, match="a mask needs frames as a NumPy array; mask frames on a device before"):
        session.encode_frames(OnDevice(), 2.0, mask=np.ones((SIZE, SIZE), bool))


@pytest.mark.parametrize("options", [{"mask_fill": "red"}, {"mask_fill": "red", "mask": "a.png"}], ids=str)
def test_a_fill_that_is_none(session, video, options):
    with pytest.raises(RequestError, match="mask fill 'red': must be grey, black or blur"):
        session.encode(video, **options)


# the cache


class Counted(Session):
    """Counts the segments that the backbone sees."""

    def __init__(self, bundle, cache):
        super().__init__(bundle, backend="cpu", threads=1, cache=cache)
        self.segments = 0
        run = self._executor.run

        def listen(name, feeds, cancel=None):
            self.segments += len(feeds["segments"]) if name == VIDEO_BACKBONE else 0
            return run(name, feeds, cancel)

        self._executor.run = listen

    def encodes(self, *given, **options):
        before = self.segments
        self.encode(*given, **options)
        return self.segments > before


def test_another_mask_or_fill_is_another_clip(demo_bundle, video, mask, tmp_path):
    session = Counted(demo_bundle, tmp_path / "cache")
    options = [{}, {"mask": mask}, {"mask": mask, "mask_fill": "black"}, {"mask": mask, "mask_invert": True}]
    assert all(session.encodes(video, **each) for each in options)
    assert not any(session.encodes(video, **each) for each in options)
    renamed = mask.rename(tmp_path / "renamed.mkv")
    assert not session.encodes(video, mask=renamed)
    before = renamed.stat()
    renamed.write_bytes(renamed.read_bytes()[:-1] + b"x")
    os.utime(renamed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert session.encodes(video, mask=renamed)


def test_warnings_about_the_mask_come_from_the_cache_too(demo_bundle, video, tmp_path):
    session = Counted(demo_bundle, tmp_path / "cache")
    mask = write_png(tmp_path / "mask.png", np.zeros((SIZE, SIZE), np.uint8))
    clips = [session.encode(video, mask=mask) for _ in range(2)]
    assert "mask.png: keeps nothing of this part" in clips[0].warnings[0]
    assert clips[1].warnings == clips[0].warnings


def test_a_mask_that_changes_while_it_is_read_is_not_stored(demo_bundle, video, mask, tmp_path):
    session = Counted(demo_bundle, tmp_path / "cache")
    assert session.encodes(video, mask=mask, progress=lambda *_: os.utime(mask, ns=(1, 1)))
    assert session.encodes(video, mask=mask)
    assert not session.encodes(video, mask=mask)


# the bed


def test_the_bed_sees_all_of_the_picture(demo_bundle, mmaudio_bundle, video, mask, tmp_path):
    folder = tmp_path / "cache"
    both = [Session(bundle, backend="cpu", threads=1, cache="none") for bundle in (demo_bundle, mmaudio_bundle)]
    selva, bed = encode_for(both, video, VideoPart(mask=mask))
    np.testing.assert_array_equal(tokens(selva), tokens(both[0].encode(video, mask=mask)))
    plain = both[1].encode(video)
    np.testing.assert_array_equal(tokens(bed), tokens(plain))
    np.testing.assert_array_equal(np.asarray(bed.pictures), np.asarray(plain.pictures))
    cached = [Counted(bundle, folder) for bundle in (demo_bundle, mmaudio_bundle)]
    for part in (VideoPart(mask=mask), VideoPart(), VideoPart(mask=mask)):
        _, bed = encode_for(cached, video, part)
        np.testing.assert_array_equal(tokens(bed), tokens(plain))
    assert cached[0].segments == 2 * cached[1].segments > 0


def test_mmaudio_is_masked_in_all_that_it_sees(mmaudio_bundle, video, mask):
    session = Session(mmaudio_bundle, backend="cpu", threads=1, cache="none")
    plain, masked = session.encode(video), session.encode(video, mask=mask)
    assert not np.array_equal(tokens(plain), tokens(masked))
    assert not np.array_equal(np.asarray(plain.pictures), np.asarray(masked.pictures))


# the command


@pytest.fixture
def run(demo_bundle, video, tmp_path):
    def run(*arguments):
        common = [str(video), "-p", "rain", "-o", str(tmp_path / "out"), "--bundle", str(demo_bundle), "--threads", "1"]
        return CliRunner().invoke(main, [*common, "--steps", "1", *map(str, arguments)])

    return run


def test_the_command(run, mask):
    sounds = []
    for given in ([], ["--mask", mask], ["--mask", mask, "--mask-fill", "blur"], ["--mask", mask, "--mask-invert"]):
        result = run(*given, "--json")
        assert (result.exit_code, result.stderr.count("warning")) == (0, 0), result.stderr
        report = json.loads(result.stdout)
        sounds.append(soundfile.read(report["stems"][0]["file"])[0])
        shown = (report["mask"], report["mask_fill"], report["mask_invert"])
        fill = "blur" if "blur" in given else "grey"
        assert shown == ((str(mask), fill, "--mask-invert" in given) if given else (None, None, False))
    assert len({sound.tobytes() for sound in sounds}) == 4


def test_warnings_about_the_mask_are_shown(run, tmp_path):
    mask = write_png(tmp_path / "mask.png", np.ones((SIZE, SIZE), np.uint8))
    line = "mask.png: keeps nothing of this part (its highest value is 1 of 255; white is 255)"
    assert f"warning: {line}\n" in run("--mask", mask).stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--mask", "none.mov"], "the mask none.mov: no such file; check the path"),
        (["--mask", "."], "the mask .: holds no PNG files; name a folder of them, one PNG, or a video"),
        (["--mask", "m.png", "--mask-fill", "red"], "mask fill 'red': must be grey, black or blur"),
        (["--mask-fill", "black"], "--mask-fill and --mask-invert need --mask, such as --mask dog.mov"),
        (["--mask-invert"], "--mask-fill and --mask-invert need --mask, such as --mask dog.mov"),
        (
            ["--mask", "note.png"],
            "the mask note.png: no frame of up to 8192x8192 pixels can be decoded; export it again",
        ),
    ],
)
def test_one_line_and_nothing_written(run, tmp_path, monkeypatch, options, line):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write_png(here / "m.png", np.zeros((4, 4), np.uint8))
    (here / "note.png").write_text("no picture")
    if options[-1] == ".":
        (here / "m.png").unlink()
        (here / "note.png").unlink()
    result = run(*options, *(["--quiet"] if "note.png" in options else []))  # the others are found before the notices
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {line}\n")
    assert not list(tmp_path.glob("out/*"))


def test_a_mask_needs_a_video(mmaudio_bundle, tmp_path):
    common = ["-p", "rain", "-o", str(tmp_path / "out"), "--bundle", str(mmaudio_bundle), "--duration", "1"]
    result = CliRunner().invoke(main, [*common, "--mask", "m.png"])
    assert (result.exit_code, result.stderr) == (2, "error: --mask needs a video\n")


def test_a_mask_that_breaks_off_leaves_no_stem(run, tmp_path):
    """The second picture of the sequence is damaged, which is found while the video is read."""
    folder = tmp_path / "masks"
    folder.mkdir()
    write_png(folder / "0.png", np.zeros((SIZE, SIZE), np.uint8))
    (folder / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = run("--mask", folder, "--quiet")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "1.png" in result.stderr
    assert not list(tmp_path.glob("out/*"))
