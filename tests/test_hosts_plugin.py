"""The plug-in without a host: where a stem sounds, what a session keeps, what the audio callback does not do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from compilers import HERE, PLUGIN, WARNINGS, compiler
from platforms import needs_linux
from workers import COMMAND, STREET, settings

pytestmark = needs_linux  # of C libraries, the guard of the callback knows glibc alone
EMPTY, WORKING, READY, FAILED = range(4)
FRAMES = 1000


def built(folder: Path, *more: str) -> Path:
    """The program that uses the generator."""
    cc, cxx = compiler("gcc", "clang"), compiler("g++", "clang++")
    command = [cc, "-std=c99", *WARNINGS, "-O1", *more, "-c", PLUGIN / "selva.c", "-o", folder / "selva.o"]
    subprocess.run(command, check=True)
    sources = [HERE / "generator_try.cpp", PLUGIN / "generator.cpp", folder / "selva.o"]
    options = ["-std=c++14", *WARNINGS, "-O1", *more, "-rdynamic", f"-I{PLUGIN}"]
    subprocess.run([cxx, *options, *sources, "-ldl", "-lpthread", "-o", folder / "try"], check=True)
    return folder / "try"


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """It ends if the callback allocates, locks or sleeps."""
    return built(tmp_path_factory.mktemp("plugin"))


class Host:
    def __init__(self, program: Path, folder: Path, worker: Path, **environment: str) -> None:
        self.folder = folder
        given = {**os.environ, "SELVA_WORKER": str(worker), "FAKE_LOG": str(folder / "log"), **environment}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([program], **pipes, text=True, env=given, encoding="utf-8")

    def do(self, *words: object) -> None:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def ask(self, *words: object) -> str:
        self.do(*words)
        return self.process.stdout.readline().rstrip("\n")

    def wait(self, status: int) -> str:
        """Waits for a status and returns the message."""
        found, _, message = self.ask("wait", status).split(" ", 2)
        assert int(found) == status, message
        return message

    def play(self, position: int, count: int, block: int) -> np.ndarray:
        self.ask("play", self.folder / "out", position, count, block, "\nget x")
        return np.fromfile(self.folder / "out", "float32")

    def new(self, rate_hz: int = 48000, prompt: str = "dog") -> None:
        self.do("new", rate_hz)
        self.do("set video", self.folder / "video.mp4")
        self.do("set prompt", prompt)
        self.do("press 0")

    def close(self) -> None:
        _, errors = self.process.communicate(timeout=20)
        assert (self.process.returncode, errors) == (0, "")


@pytest.fixture
def start(program, tmp_path):
    hosts = []

    def start(behaviour: str = "honest", program: Path = program, **environment: str) -> Host:
        (tmp_path / "video.mp4").write_bytes(b"")
        worker = tmp_path / behaviour
        worker.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {HERE / "fake_worker.py"} {behaviour} "$@"\n')
        worker.chmod(0o755)
        hosts.append(Host(program, tmp_path, worker, **environment))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


def stem() -> np.ndarray:
    return np.array([((k * 37 + 11) % 201 - 100) / 128 for k in range(FRAMES)], "float32")


def expected(position: int, count: int) -> np.ndarray:
    frames = np.arange(position, position + count)
    return np.where((frames >= 0) & (frames < FRAMES), stem()[np.clip(frames, 0, FRAMES - 1)], 0)


@pytest.mark.parametrize("rate_hz", [44100, 48000, 96000])
def test_the_stem_sounds_at_the_exact_frame(start, rate_hz):
    host = start()
    host.new(rate_hz)
    host.do("set position_s 1.5")
    host.do("press 1")
    assert host.wait(READY).startswith("for ♫ research")
    begin = round(1.5 * rate_hz)
    for block in (1, 7, 64, 1000, 4096):
        got = host.play(begin - 50, FRAMES + 100, block)
        assert np.array_equal(got, expected(-50, FRAMES + 100))
    assert not host.play(begin + FRAMES, 500, 64).any()
    assert not host.play(-(2**40), 500, 64).any()
    assert np.array_equal(host.play(begin + 123, 77, 16), expected(123, 77))  # after a jump
    host.do("set position_s -0.01")
    assert np.array_equal(host.play(0, 300, 64), expected(round(0.01 * rate_hz), 300))


def test_what_is_asked_of_the_worker(start, tmp_path):
    host = start()
    host.new(96000, prompt='a "dog" – barking')
    host.do("set negative music")
    host.do("seed 1234")
    host.do("press 1")
    host.wait(READY)
    asked = (tmp_path / "log").read_text(encoding="utf-8")
    for part in ('"prompts": ["a \\"dog\\" \\u2013 barking"]', '"negative": "music"', '"seed": 1234', "96000"):
        assert part in asked
    assert host.ask("get stem") == str(tmp_path / "stems" / "0-1.wav")


def test_a_session_plays_its_stem_without_a_worker(start, tmp_path):
    first = start()
    first.new()
    first.do("press 1")
    first.wait(READY)
    saved = first.ask("get stem")
    again = start("dies")
    again.do("new 48000")
    again.do("set stem", saved)
    again.do("press 1")  # as it was saved: it starts nothing
    again.wait(READY)
    again.do("sleep 100")
    again.wait(READY)
    assert np.array_equal(again.play(0, FRAMES, 100), expected(0, FRAMES))
    again.do("set stem", tmp_path / "gone.wav")
    assert "gone.wav cannot be read: No such file" in again.wait(FAILED)


def test_another_sample_rate(start, tmp_path):
    sine = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(48000) / 48000)
    soundfile.write(tmp_path / "x.wav", sine, 48000, subtype="FLOAT")
    host = start()
    host.do("new 44100")
    host.do("set stem", tmp_path / "x.wav")
    host.wait(READY)
    got = host.play(0, 44100, 512)
    inside = slice(200, -200)
    assert np.abs(got - 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44100) / 44100))[inside].max() < 2e-6
    host.do("rate 48000")
    host.do("sleep 300")
    assert np.array_equal(host.play(0, 48000, 512), sine.astype("float32"))
    (tmp_path / "x.wav").unlink()
    host.do("rate 44100")
    host.wait(FAILED)
    assert not host.play(0, 44100, 512).any()  # silence rather than the wrong pitch


@pytest.mark.parametrize(("from_hz", "to_hz"), [(16000, 48000), (44100, 96000), (96000, 44100), (48000, 44100)])
def test_resampling_keeps_the_band_and_removes_what_lies_beyond(program, tmp_path, from_hz, to_hz):
    low, high = min(from_hz, to_hz) * 0.4, min(from_hz, to_hz) * 0.52
    tones = [low, high] if to_hz < from_hz else [low]
    time_s = np.arange(from_hz // 4) / from_hz
    soundfile.write(
        tmp_path / "x.wav", sum(0.4 * np.sin(2 * np.pi * f * time_s) for f in tones), from_hz, subtype="FLOAT"
    )
    subprocess.run([program, tmp_path / "x.wav", tmp_path / "out", str(to_hz)], check=True)
    got = np.fromfile(tmp_path / "out", "float32")
    assert len(got) == -(-len(time_s) * to_hz // from_hz)
    wanted = 0.4 * np.sin(2 * np.pi * low * np.arange(len(got)) / to_hz)
    assert np.abs(got - wanted)[1000:-1000].max() < 4e-6


def test_cancel_and_again(start, tmp_path):
    host = start("endless")
    host.new()
    host.do("press 1")
    host.wait(WORKING)
    host.do("press 0")
    host.wait(EMPTY)
    host.do("sleep 100")
    assert (tmp_path / "log").read_text().count("cancelled") == 1
    host.do("press 1")
    host.wait(WORKING)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    {
        "killed": "the worker was ended by signal 9",
        "garbage": "the worker sent what is not JSON",
        "fails": "no such über video",
        "nan_sample": "a sample is not a finite number",
        "ends_at_once": "the worker ended with exit code 4",
    }.items(),
)
def test_a_failure_leaves_the_old_stem_and_a_message(start, behaviour, message, tmp_path):
    soundfile.write(tmp_path / "x.wav", stem(), 48000, subtype="FLOAT")
    host = start(behaviour)
    host.new()
    host.do("set stem", tmp_path / "x.wav")
    host.wait(READY)
    host.do("press 1")
    assert message in host.wait(FAILED)
    assert host.ask("get stem") == str(tmp_path / "x.wav")
    assert np.array_equal(host.play(0, FRAMES, 128), expected(0, FRAMES))


def test_a_new_worker_is_started_after_one_that_died(start, tmp_path):
    host = start("dies")
    host.new()
    host.do("press 1")
    host.wait(FAILED)
    worker = tmp_path / "dies"
    worker.write_text(worker.read_text().replace("fake_worker.py dies", "fake_worker.py honest"))
    host.do("press 0")
    host.do("press 1")
    host.wait(READY)


def test_jobs_that_have_ended_are_forgotten(start):
    host = start("refuses")
    host.new()
    for _ in range(66):  # selva.h keeps 64
        host.do("press 1")
        host.do("sleep 45")
        host.do("press 0")
    assert host.wait(FAILED) == "no 🐕 today"


def test_nothing_to_do_is_told(start, tmp_path):
    host = start()
    host.do("new 48000")
    host.do("press 0")
    host.do("press 1")
    assert host.wait(FAILED) == "choose a video and write a prompt"
    host.do("set message from the session")
    assert host.ask("get message") == "choose a video and write a prompt"
    host.new()
    host.do("set folder /proc/none")
    host.do("press 1")
    assert host.wait(FAILED).startswith("/proc/none: ")


def test_instances_share_one_worker(start, tmp_path):
    host = start()
    for _ in range(3):
        host.new()
        host.do("press 1")
    for number in range(3):
        host.do("choose", number)
        host.wait(READY)
    log = (tmp_path / "log").read_text()
    assert log.count('"request"') == 3
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children").read_text().split()
    assert len(children) <= 1


def test_audio_thread_host_and_generator_do_not_race(start, tmp_path):
    soundfile.write(tmp_path / "x.wav", stem(), 48000, subtype="FLOAT")
    host = start(program=built(tmp_path, "-fsanitize=thread", "-DWITHOUT_GUARD"))
    host.new()
    host.do("set stem", tmp_path / "x.wav")
    assert host.ask("race 200\nget prompt") == "dog"  # at its end, no report of the sanitizer is there


def test_the_guard_of_the_callback_works(program):
    for what in ("malloc", "lock"):
        done = subprocess.run([program, what], capture_output=True, text=True, check=False)
        assert done.returncode == 70
        assert "in the audio callback" in done.stderr


def test_with_the_real_worker(start, demo_bundle, tmp_path):
    host = start(SELVA_DURATION_S="1", SELVA_STEPS="2")
    worker = tmp_path / "honest"
    worker.write_text("#!/bin/sh\nexec " + " ".join([*COMMAND, *settings(tmp_path, demo_bundle)]) + ' "$@"\n')
    shutil.copy(STREET, tmp_path / "video.mp4")
    host.new(44100, prompt="ball bouncing")
    host.do("press 1")
    host.wait(READY)
    samples, rate_hz = soundfile.read(host.ask("get stem"), dtype="float32")
    assert (rate_hz, len(samples)) == (44100, 44100)
    assert np.array_equal(host.play(0, 44100, 256), samples)
