"""Bad input to the real command gives one clear line and exit code 2: nothing lost or left behind, no traceback."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from bundles import edit
from click.testing import CliRunner
from clips import numbered, write_video
from platforms import file_size_limit, needs_posix

import selva_runtime.command.extras
import selva_runtime.command.output
from selva_bundle.errors import MediaError
from selva_runtime.command.cli import main


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", map(numbered, range(50)))


@pytest.fixture
def bundle(demo_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


@pytest.fixture
def out(tmp_path) -> Path:
    """An output folder that contains a file."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rain.wav").write_bytes(b"mine")
    return tmp_path / "out"


@pytest.fixture
def generate(demo_bundle, video, out):
    """Runs the command; keywords replace its arguments."""

    def generate(*arguments, video=video, bundle=demo_bundle, out=out):
        common = [str(video), "-o", str(out), "--bundle", str(bundle), "--threads", "1", "--steps", "1"]
        result = CliRunner().invoke(main, [*common, *map(str, arguments)])
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return generate


def assert_refused(result, out: Path, *words: str) -> None:
    errors = [line for line in result.stderr.splitlines() if not line.startswith(("notice: ", "warning: "))]
    assert (result.exit_code, len(errors), result.stdout) == (2, 1, ""), result.output
    assert errors[0].startswith("error: ")
    for word in words:
        assert word in errors[0]
    assert names(out) == ["rain.wav"]
    assert (out / "rain.wav").read_bytes() == b"mine"


def assert_made(result, out: Path, *warnings: str) -> None:
    assert result.exit_code == 0, result.output
    assert names(out) != ["rain.wav"]
    for words in warnings:
        assert any(words in line for line in result.stderr.splitlines() if line.startswith("warning: ")), result.stderr


def text_file(folder):
    path = folder / "notes.mp4"
    path.write_text("not a video\n" * 1000)
    return path


def empty_file(folder):
    path = folder / "empty.mp4"
    path.touch()
    return path


def sound_file(folder):
    path = folder / "sound.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    return path


def no_frames(folder):
    path = folder / "no_frames.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def short_video(folder):
    return write_video(folder / "short.mp4", map(numbered, range(10)))


def wide_video(folder):
    return write_video(folder / "wide.avi", [numbered(0, width=8208, height=16)], codec="mjpeg", pixels="yuvj420p")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "absent.mp4", ("absent.mp4", "no such file")),
        (lambda folder: folder, ("folder",)),
        (text_file, ("notes.mp4", "not a video")),
        (empty_file, ("empty.mp4", "empty")),
        (sound_file, ("sound.wav", "no video stream")),
        (no_frames, ("no_frames.mp4",)),
        (short_video, ("short.mp4", "0.40 s", "0.64 s")),
        (wide_video, ("wide.avi", "8208x16")),
    ],
)
def test_videos_that_cannot_be_used(generate, out, tmp_path, make, words):
    assert_refused(generate("-p", "rain", video=make(tmp_path)), out, *words)


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 3 // 4]


def bit_flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 1000]) + data[middle + 1000 :]


@pytest.mark.parametrize("damage", [truncated, bit_flipped])
def test_damaged_videos_give_what_decodes_and_a_warning(generate, out, tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
    video = write_video(tmp_path / "damaged.mkv", noise)
    video.write_bytes(damage(video.read_bytes()))
    assert_made(generate("-p", "sea", video=video), out, "damaged.mkv")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_film_that_fails_does_not_lose_the_stems(generate, out, monkeypatch, as_json):
    def fail(video, *_, **__):
        assert names(out) == ["rain.wav", "sea.wav", "wind.wav"]  # all stems are there before the first film
        raise MediaError(f"{video}: is damaged: its streams cannot be copied (for the test); export it again")

    monkeypatch.setattr(selva_runtime.command.extras, "mux", fail)
    result = generate("-p", "sea", "-p", "wind", "--mux", "1", "--mux", "2", *(["--json"] if as_json else []))
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the stems are written, but not the film: " in errors[0]
    assert "video.mp4: is damaged: its streams cannot be copied (for the test); export it again" in errors[0]
    stems = [str(out / "sea.wav"), str(out / "wind.wav")]
    if as_json:
        report = json.loads(result.stdout)
        assert [(stem["file"], stem["video"]) for stem in report["stems"]] == [(stem, None) for stem in stems]
        assert errors == [f"error: {report['error']}"]
    else:
        assert result.stdout.splitlines() == stems
    assert names(out) == ["rain.wav", "sea.wav", "wind.wav"]


@pytest.mark.parametrize(
    ("width", "height", "codec", "pixels"), [(7680, 4320, "mjpeg", "yuvj420p"), (1, 1, "ffv1", "gray")]
)
def test_frames_of_any_size_work(generate, out, tmp_path, width, height, codec, pixels):
    picture = numbered(7, width=width, height=height)
    video = write_video(tmp_path / "video.mkv", [picture], rate=1, codec=codec, pixels=pixels)
    assert_made(generate("-p", "sea", video=video), out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", ""], ("prompt is empty",)),
        (["-p", "  "], ("prompt is empty",)),
        (["-p", "a" * 10_000], ("10000 characters; use at most 1000",)),
        (["-p", "rain\nwind"], ("control",)),
        ([], ("no prompt; say what should be heard",)),
        (["-p", "rain", "--negative", "a" * 10_000], ("10000 characters",)),
        (["-p", "rain", "--guidance", "nan"], ("guidance is nan",)),
        (["-p", "rain", "--guidance", "inf"], ("guidance is inf",)),
        (["-p", "rain", "--guidance", "1e9"], ("guidance", "0 to 100")),
        (["-p", "rain", "--guidance", "-3"], ("guidance",)),
        (["-p", "rain", "--solver", "heun"], ("unknown solver 'heun'", "euler, ab2")),
        (["-p", "rain", "--steps", "0"], ("steps", "1 to 1000")),
        (["-p", "rain", "--steps", "1000000"], ("steps", "1 to 1000")),
        (["-p", "rain", "--steps", "many"], ("'--steps'", "'many'")),
        (["-p", "rain", "--duration", "nan"], ("duration is nan",)),
        (["-p", "rain", "--duration", "0.5"], ("duration is 0.5 s; give a number from 0.64 to 36000 s",)),
        (["-p", "rain", "--duration", "1e12"], ("duration", "36000 s")),
        (["-p", "rain", "--duration", "-inf"], ("duration is -inf",)),
        (["-p", "rain", "--start", "-1"], ("start is -1.0 s",)),
        (["-p", "rain", "--start", "nan"], ("start is nan",)),
        (["-p", "rain", "--start", "60"], ("start", "ends at 2.00 s")),
        (["-p", "rain", "--start", "1.8"], ("0.20 s", "0.64 s")),
        (["-p", "rain", "--takes", "0"], ("takes",)),
        (["-p", "rain", "--seed", "-1"], ("seed",)),
        (["-p", "rain", "--sample-rate", "5"], ("sample rate 5 Hz",)),
        (["-p", "rain", "--mux", "2"], ("mux is 2",)),
        (["-p", "rain", "--threads", "-4"], ("threads is -4",)),
        (["-p", "rain", "--backend", "abacus"], ("unknown backend 'abacus'",)),
        (["-p", "rain", "--loudness", "3"], ("No such option", "--help")),
    ],
)
def test_arguments_out_of_range(generate, out, arguments, words):
    assert_refused(generate(*arguments), out, *words)


def test_a_prompt_in_another_script_is_made_with_a_warning(generate, out):
    assert_made(generate("-p", "犬の吠え声"), out, "characters that the model does not know")
    assert names(out) == ["rain.wav", "犬の吠え声.wav"]


def test_a_prompt_past_the_window_is_made_with_a_warning(generate, out):
    assert_made(generate("-p", "dogs bark loudly " * 50), out, "longer than the model reads: only its first")


def test_the_same_prompt_twice_is_two_files(generate, out):
    assert_made(generate("-p", "sea", "-p", "sea"), out, "given 2 times")
    assert names(out) == ["rain.wav", "sea-2.wav", "sea.wav"]


def missing_file(bundle):
    (bundle / "graphs" / "decoder.onnx").unlink()


def altered_file(bundle):
    path = bundle / "graphs" / "decoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def extra_file(bundle):
    (bundle / "graphs" / "more.onnx").write_bytes(b"more")


def edit_manifest(change):
    return lambda bundle: edit(bundle, change)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing_file, ("decoder.onnx is missing",)),
        (altered_file, ("decoder.onnx was altered",)),
        (extra_file, ("more.onnx is not part of the bundle",)),
        (edit_manifest(lambda manifest: manifest.update(format_version=9)), ("version 9 is unknown", "update")),
        (
            edit_manifest(lambda manifest: manifest["graphs"]["decoder"].update(file="../../decoder.onnx")),
            ("'../../decoder.onnx' is not a plain relative path",),
        ),
        (shutil.rmtree, ("there is no bundle", "selva-export")),
    ],
)
def test_bundles_that_cannot_be_trusted(generate, bundle, out, damage, words):
    damage(bundle)
    result = generate("-p", "rain", bundle=bundle)
    assert_refused(result, out, *words)


@pytest.mark.parametrize("place", ["video", "out", "bundle"])
def test_a_name_with_a_nul_character(generate, out, place):
    assert_refused(generate("-p", "rain", **{place: "a\0b"}), out, r"'a\x00b'")


def test_an_output_that_is_a_file(generate, out):
    assert_refused(generate("-p", "rain", out=out / "rain.wav"), out, "is a file")
    assert_refused(generate("-p", "rain", out=out / "rain.wav" / "more"), out, "is a file")


def test_an_output_folder_without_room(generate, out, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(selva_runtime.command.output.shutil, "disk_usage", lambda folder: usage)
    assert_refused(generate("-p", "rain"), out, "0.0 MB free", "free some space")
    assert_refused(generate("-p", "rain", out=out / "new" / "folder"), out, "free some space")


def command(bundle, video, out) -> list[str]:
    code = "from selva_runtime.command.cli import main; main()"
    common = [str(video), "-p", "rain", "-o", str(out), "--bundle", str(bundle), "--threads", "1", "--steps", "1"]
    return [sys.executable, "-c", code, *common, "--quiet"]


@needs_posix
def test_a_disk_that_fills_up_while_writing(demo_bundle, video, out):
    with file_size_limit(10_000):
        done = subprocess.run(command(demo_bundle, video, out), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert names(out) == ["rain.wav"]


@needs_posix
def test_an_output_folder_that_is_read_only(demo_bundle, video, out):
    as_user = []
    if os.geteuid() == 0:  # root can write anywhere, unless that right is removed
        if not shutil.which("setpriv"):
            pytest.skip("needs setpriv to test as root")
        as_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    out.chmod(0o555)
    try:
        done = subprocess.run(
            [*as_user, *command(demo_bundle, video, out)], capture_output=True, text=True, check=False
        )
    finally:
        out.chmod(0o755)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "cannot be written: Permission denied; choose another" in done.stderr
    assert names(out) == ["rain.wav"]


def test_errors_are_json_too_for_the_program_that_reads(generate):
    result = generate("-p", "rain", "--steps", "0", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {"error": "steps is 0; give a whole number from 1 to 1000"}
    result = generate("--json")
    assert "no prompt" in json.loads(result.stdout)["error"]
