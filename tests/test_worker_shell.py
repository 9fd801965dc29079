"""`selva-generate --worker`: prints and writes what it does without, but the computing happens in the worker."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from platforms import needs_posix
from pngs import write_png
from workers import STREET, endless, serving, until, until_phase

from selva_worker.client import Worker

HEAVY = ("numpy", "onnxruntime", "av", "soundfile", "tokenizers")
LIGHT = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
from selva_runtime.command.start import generate
generate()
"""
COMMAND = [sys.executable, "-c", LIGHT, str(STREET), "--worker"]
"""Fails if it imports a library that computes."""
SHORT = ("-p", "rain", "--duration", "1", "--steps", "2")
LONG = ("-p", "rain", "--duration", "1", "--steps", "1000", "--takes", "16", "-o", "out/stems")


@pytest.fixture
def worker(demo_bundle, tmp_path, monkeypatch):
    """A worker that may read and write nothing, and a folder to work in."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving(tmp_path, demo_bundle) as worker:
        yield worker


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def run_here(bundle: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "selva_runtime", str(STREET), "--bundle", str(bundle), "--backend", "cpu"]
    return subprocess.run([*command, "--threads", "1", *arguments], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "options",
    [
        ("--takes", "2", "--mux", "1", "--mux", "2", "--seed", "7", "--solver", "ab2", "--guidance", "3"),
        ("--cuts", "cuts.txt", "--deliver", "post", "--timecode", "01:00:00:00", "--timeline", "lines/film.rpp"),
        ("--loop", "--negative", "wind", "--sample-rate", "48000", "--frame-rule", "nearest", "--duration", "3"),
        ("--mask", "masks", "--mask-fill", "black", "--mask-invert", "--quality", "best"),
        (
            "--start",
            "0.5",
            "--region",
            "0.2:0.6",
            "--region-seed",
            "3",
            "--region-prompt",
            "wind",
            "--long",
            "one-pass",
        ),
    ],
    ids=range(5),
)
def test_files_and_report_are_those_without_a_worker(worker, demo_bundle, options):
    Path("cuts.txt").write_text("0.5\n")
    reports, sounds, told = [], [], []
    for number, command in enumerate((run, lambda *given: run_here(demo_bundle, *given))):
        place = Path(f"place{number}")
        (place / "lines").mkdir(parents=True)
        (place / "cuts.txt").write_text("0.5\n")
        (place / "masks").mkdir()
        write_png(place / "masks" / "0.png", np.arange(256)[None])
        os.chdir(place)
        done = command(*SHORT, "-p", "dog", "-o", "stems", "--json", *options)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        sounds.append([soundfile.read(stem["file"], dtype="int32")[0].tobytes() for stem in report["stems"]])
        assert all(Path(path).is_file() for path in report["timelines"])
        assert all(Path(stem["video"]).is_file() for stem in report["stems"] if stem["video"])
        del report["timings_s"]
        reports.append(report)
        told.append([line for line in done.stderr.splitlines() if "the worker loads" not in line])
        os.chdir("..")
    assert reports[0] == reports[1]
    assert sounds[0] == sounds[1]
    assert told[0] == told[1]


def test_the_output_is_a_line_a_file(worker):
    done = run(*SHORT, "-o", "stems", "--quiet", "--timeline", "stems/film.mlt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "stems/rain.wav\nstems/film.mlt\n", "")
    refused = run(*SHORT, "-o", "stems", "--steps", "0", "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stdout) == {"error": "steps is 0; give a whole number from 1 to 1000"}
    assert refused.stderr.splitlines()[-1] == "error: steps is 0; give a whole number from 1 to 1000"
    assert run(*SHORT, "-o", "stems", "--guidance", "nan").stderr.startswith("error: nan and inf are no numbers")


def test_stems_without_their_timeline_are_listed_and_the_code_says_so(worker):
    done = run(*SHORT, "-o", "stems", "--timeline", "no/such/film.rpp", "--quiet")
    assert (done.returncode, done.stdout) == (2, "stems/rain.wav\n")
    assert done.stderr.startswith("error: the stems are written, but not the timeline:")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--bundle", "x"), "--bundle has no effect on a running worker (its start fixed that)"),
        (("--backend", "auto"), "--backend has no effect"),
        (("--threads", "1"), "--threads has no effect"),
        (("--precision", "exact"), "--precision has no effect"),
        (("--cache", "none"), "--cache has no effect"),
        (("--keep-partial",), "--keep-partial has no effect on a running worker (a worker keeps no partial stems)"),
        (("--list",), "--list shows what this command would use, not a worker"),
        ((), "no worker is running; start one with `selva-worker &`, or leave out --worker"),
    ],
)
def test_what_a_worker_cannot_do_is_one_line(tmp_path, monkeypatch, options, line):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    done = run(*SHORT, "-o", str(tmp_path / "stems"), *options)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert line in done.stderr
    assert not (tmp_path / "stems").exists()


def running() -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, *LONG, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def job_in_a_step(worker: Worker) -> str:
    (job,) = until(worker.jobs)
    until_phase(worker, job["id"], "step")
    return job["id"]


@needs_posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_cancels_the_job(worker, number, code):
    with running() as process:
        job = job_in_a_step(worker)
        process.send_signal(number)
        output, errors = process.communicate(timeout=5)
    assert (process.returncode, output, len(errors.splitlines())) == (code, "", 1)
    assert "no partial file was left" in errors
    assert worker.get(job)["state"] == "cancelled"
    assert list(Path.cwd().iterdir()) == []


@needs_posix
def test_a_worker_that_dies_is_one_line(worker):
    with running() as process:
        job_in_a_step(worker)
        worker.call("shutdown")
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, len(errors.splitlines())) == (2, "", 1)
    assert errors.startswith(("error: the worker is gone", "error: the worker left before the job was done"))


def test_a_job_that_waits_says_so_and_goes_before_others(worker, tmp_path):
    worker.call("initialize", folders=[str(tmp_path), str(STREET.parent)])
    first, last = (worker.submit(endless(tmp_path))["id"] for _ in range(2))
    with subprocess.Popen([*COMMAND, *SHORT, "-o", "stems"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "notice: the worker is busy; this job waits for its turn\n"
        worker.cancel(first)
        process.communicate(timeout=30)
    assert process.returncode == 0
    worker.cancel(last)


@needs_posix
def test_bars_appear_on_a_terminal(worker):
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen([*COMMAND, *SHORT, "-o", "stems", "--steps", "200"], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # how Linux reports that the other side was closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"/200" in shown
    assert b"generating" in shown
