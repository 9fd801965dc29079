"""Commands started without stderr, stdout or stdin, or whose output is no longer read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from clips import numbered, write_video
from platforms import needs_posix

pytestmark = needs_posix


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "street.mp4", map(numbered, range(30)))


def in_a_shell(redirections: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs selva-generate with redirected descriptors; the result's returncode is the command's own."""
    script = f'"$@" {redirections}; exit ${{PIPESTATUS[0]}}'
    command = [sys.executable, "-m", "selva_runtime", *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", script, "bash", *command], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "redirections",
    ["2>&-", "2>/dev/full", ">&-", "<&- >&- 2>&-", "| true"],
)
def test_stems_are_made_without_a_listener(video, tmp_path, redirections):
    out = tmp_path / "out"
    quick = ("--duration", 1, "--steps", 1, "--threads", 1, "--backend", "cpu")
    done = in_a_shell(redirections, video, "-p", "rain", "-o", out, *quick, "--json")  # with the demo bundle
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.iterdir()] == ["rain.wav"]
    assert (out / "rain.wav").read_bytes()[:4] == b"RIFF"
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    if ">&-" not in redirections.replace("2>&-", "") and "|" not in redirections:
        assert json.loads(done.stdout)["stems"][0]["file"] == str(out / "rain.wav")


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full", ">&- 2>&-", "| true", ">/dev/full"])
def test_a_mistake_keeps_its_exit_code(video, tmp_path, redirections):
    done = in_a_shell(redirections, video, "-p", "rain", "-o", tmp_path / "out", "--bundle", tmp_path, "--json")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == (0 if "2>" in redirections else 1), done.stderr
    if redirections.startswith("2>"):
        assert "manifest.json" in json.loads(done.stdout)["error"]


def test_a_full_disk_behind_stdout_is_reported(tmp_path):
    done = in_a_shell(">/dev/full", "--version")
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = (
        "from selva_runtime.command.streams import secure_standard_streams; secure_standard_streams(); import os, sys;"
        f"file = open({str(tmp_path / 'stem.wav')!r}, 'wb'); os.write(2, b'a log line'); print(1, file=sys.stderr);"
        "sys.exit(file.fileno() < 3)"
    )
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code], timeout=60, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "stem.wav").read_bytes() == b""
