"""The Blender extension's logic that needs no Blender: the zip as Blender gets it, imported as a package."""

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
import soundfile
from workers import STREET, is_alive, settings, until

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "runtime" / "hosts" / "blender"))
from build import build  # noqa: E402

WORKER = [sys.executable, "-m", "selva_worker"]


@pytest.fixture(scope="module")
def extension(tmp_path_factory):
    """Returns a function that imports one of the extension's modules."""
    folder = tmp_path_factory.mktemp("zip")
    with ZipFile(build(folder / "selva.zip")) as archive:
        archive.extractall(folder / "selva_in_blender")
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"selva_in_blender.{name}")
    sys.path.remove(str(folder))


def test_the_zip_is_the_same_each_time_and_has_the_client(tmp_path):
    one, two = build(tmp_path / "one.zip"), build(tmp_path / "two.zip")
    assert one.read_bytes() == two.read_bytes()
    with ZipFile(one) as archive:
        assert archive.read("client.py") == (ROOT / "runtime" / "selva_worker" / "client.py").read_bytes()
        assert {"blender_manifest.toml", "__init__.py", "LICENSE"} < set(archive.namelist())
        assert not [name for name in archive.namelist() if name.endswith(".whl")]


@pytest.fixture
def strip(extension):
    """240 frames of a video of 24 frames a second, at frame 101 of a scene of 24."""
    kind = extension("spans").StripTimes
    return kind(
        begin=101,
        first=101,
        end=341,
        trimmed_end=0,
        skipped=0,
        video_frames=240,
        video_fps=24,
        scene_fps=24,
        retimed=False,
    )


def shown(extension, strip):
    span = extension("spans").span(strip)
    return span.frame, span.start_s, span.duration_s, span.speed


def test_a_trimmed_strip_shows_its_part(extension, strip):
    trimmed = replace(strip, first=113, end=317, trimmed_end=24)
    assert shown(extension, trimmed) == (113, 0.5, 8.5, 1)
    cut_off = replace(strip, skipped=48, end=293, video_frames=192)
    assert shown(extension, cut_off) == (101, 2, 8, 1)


@pytest.mark.parametrize(("video_fps", "scene_fps"), [(25, 24), (24, 25), (23.976024627685547, 24000 / 1001), (60, 24)])
def test_at_the_videos_own_speed_a_second_is_a_second(extension, strip, video_fps, scene_fps):
    """Blender rounds the strip's length down to frames; the rate must not suffer from that."""
    length = int(1000 * scene_fps / video_fps)
    own = replace(strip, end=101 + length, video_frames=1000, video_fps=video_fps, scene_fps=scene_fps)
    frame, start_s, duration_s, speed = shown(extension, own)
    assert (frame, start_s, speed) == (101, 0, 1)
    assert duration_s == pytest.approx(length / scene_fps, abs=1e-4)
    later = shown(extension, replace(own, first=101 + 48))
    assert later[1] == pytest.approx(48 / scene_fps, abs=1e-6)


def test_frame_by_frame_the_scene_sets_the_speed(extension, strip):
    slow = replace(strip, end=341, video_fps=25)
    assert shown(extension, slow) == (101, 0, pytest.approx(9.6), pytest.approx(24 / 25))
    assert extension("spans").span(slow).shown_s == pytest.approx(10)


@pytest.mark.parametrize("rounded", [-1, 0, 1])
def test_a_retimed_strip_has_the_simplest_speed_that_fits(extension, strip, rounded):
    """Blender's versions differ in how they round a strip's length."""
    twice = replace(strip, first=111, end=211, trimmed_end=10 + rounded, retimed=True)
    assert shown(extension, twice) == (111, pytest.approx(20 / 24), pytest.approx(200 / 24), 2)
    faster = replace(strip, end=101 + 192 + rounded, video_fps=25, video_frames=300, retimed=True)
    assert shown(extension, faster)[3] == pytest.approx(1.5)


def test_stills_before_and_after_the_video_do_not_count(extension, strip):
    assert shown(extension, replace(strip, first=80, end=361, trimmed_end=-20)) == (101, 0, 10, 1)
    assert shown(extension, replace(strip, begin=100.5))[0] == 101


def test_a_strip_that_shows_only_a_still_is_refused(extension, strip):
    error = extension("spans").StripError
    with pytest.raises(error, match="still picture"):
        shown(extension, replace(strip, first=360, end=380, trimmed_end=-39))
    with pytest.raises(error, match="cannot be read"):
        shown(extension, replace(strip, video_frames=0))


def test_free_channels(extension):
    channels = extension("placing").free_channels
    taken = [(1, 101, 200), (2, 10, 100), (3, 150, 160), (4, 200, 300), (4, 99, 100)]
    assert channels(taken, 100, 200, 3) == [2, 4, 5]
    assert channels(taken, 100, 201, 3, {5}) == [2, 6, 7]
    assert channels([], 0, 1, 128) == list(range(1, 129))
    with pytest.raises(extension("spans").StripError, match="only 127 channels are free there, for 128 stems"):
        channels(taken[:1], 100, 200, 128)


def test_names_of_strips(extension):
    name = extension("placing").strip_name
    assert name(" dog\n barking ", 1, 1) == "dog barking"
    assert name("dog", 2, 3) == "dog (take 2)"
    long = name("é" * 100, 64, 64)
    assert long.endswith("é (take 64)")
    assert 56 <= len(long.encode()) <= 58


def test_frames_of_a_sound(extension):
    frames = extension("placing").frames_of
    assert (frames(3.0, 24), frames(3.01, 24), frames(77 / 24, 24)) == (72, 73, 77)


def test_a_stem_at_another_speed_has_the_same_samples(extension, tmp_path):
    placing = extension("placing")
    stem = tmp_path / "dog.wav"
    soundfile.write(stem, [0.25, -0.5, 0.125], 16000, subtype="PCM_24")
    before = stem.read_bytes()
    copies = [Path(placing.at_speed(str(stem), 0.96)) for _ in range(2)]
    assert [copy.name for copy in copies] == ["dog at 0.96x.wav", "dog at 0.96x 2.wav"]
    samples, rate_hz = soundfile.read(copies[0])
    assert (list(samples), rate_hz) == ([0.25, -0.5, 0.125], 15360)
    place = before.index(b"fmt ")
    assert struct.unpack_from("<I", copies[0].read_bytes(), place + 16)[0] == 15360 * 3
    assert stem.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["no wav", "far too fast"])
def test_no_file_is_left_where_a_speed_cannot_be(extension, tmp_path, damage):
    stem = tmp_path / "dog.wav"
    if damage == "no wav":
        stem.write_bytes(b"RIFF" + 100 * b"x")
    else:
        soundfile.write(stem, [0.0], 16000, subtype="PCM_24")
    with pytest.raises(extension("spans").StripError):
        extension("placing").at_speed(str(stem), 1000)
    assert list(tmp_path.iterdir()) == [stem]


def test_who_names_the_worker(extension):
    find = extension("connection").find_command
    named = {"SELVA_PYTHON": "/opt/python"}
    assert find("/venv/bin/selva-worker", named, lambda name: None) == (["/venv/bin/selva-worker"], "the preference")
    assert find(" ", named, lambda name: f"/bin/{name}") == (["/opt/python", "-m", "selva_worker"], "SELVA_PYTHON")
    assert find("", {}, lambda name: f"/bin/{name}") == (["/bin/selva-worker"], "PATH")
    with pytest.raises(extension("connection").NotFoundError, match="SELVA_PYTHON, and none is on PATH"):
        find("", {}, lambda name: None)


def test_the_doctor_names_the_line_that_installs(extension):
    doctor = extension("doctor")
    facts = {"version": "0.1.0", "bundle": {"preset": "demo", "weights": "trained", "toy": True, "error": None}}
    report = {"versions": {"python": "3.12.0", "onnxruntime": "1.31"}, "log": "/state/engine.log"}
    lines, install = doctor.healthy(facts, report, WORKER, "SELVA_PYTHON")
    assert (lines[2], lines[4], install) == ("Backend: onnxruntime 1.31", "Log: /state/engine.log", "")
    assert "a toy" in lines[3]
    del report["versions"]["onnxruntime"]
    lines, install = doctor.healthy(facts, report, WORKER, "SELVA_PYTHON")
    assert lines[2] == "Backend: none is installed"
    assert install == f"'{sys.executable}' -m pip install --upgrade 'selva-deploy[cpu]'"
    assert doctor.broken("no worker", [])[1].startswith("python3 -m venv")
    assert doctor.broken("gone", ["/not/there", "-m", "selva_worker"])[1].startswith("python3 -m venv")
    assert doctor.broken("gone", WORKER)[1] == install


@pytest.fixture
def run_of(extension, demo_bundle, tmp_path):
    """Returns a function that makes a run of requests. They share a worker."""
    connections = []

    def connect():
        if not connections:
            connections.append(
                extension("connection").Connection(WORKER, settings(tmp_path, demo_bundle), str(tmp_path))
            )
        return connections[0]

    def make(*changes):
        video, out = str(STREET), str(tmp_path / "stems")
        base = {"video": video, "prompts": ["rain"], "out": out, "duration_s": 1, "steps": 2}
        tasks = [extension("run").Task({**base, **change}, place) for place, change in enumerate(changes)]
        return extension("run").Run(connect, tasks)

    make.connections = connections
    yield make
    for connection in connections:
        connection.close()


def finished(run):
    longest_s = 0.0

    def stepped():
        nonlocal longest_s
        begun = time.perf_counter()
        run.step()
        longest_s = max(longest_s, time.perf_counter() - begun)
        return run.state != "running"

    until(stepped)
    assert longest_s < 2, "a step held up the host"
    return run


def in_phase(run, phase):
    def reached():
        run.step()
        assert run.state == "running", run.problems
        job = run.tasks[0].job
        return job and job["progress"] and job["progress"]["phase"] == phase

    until(reached)


ENDLESS = {"steps": 1000, "takes": 16}


def test_a_run_brings_the_stems_of_every_task(run_of):
    run = finished(run_of({}, {"prompts": ["dog", "rain"]}))
    assert (run.state, run.problems) == ("done", [])
    found = [(place, [Path(stem["file"]).name for stem in result["stems"]]) for place, result in run.results()]
    assert found == [(0, ["rain.wav"]), (1, ["dog.wav", "rain-2.wav"])]
    assert any("random" in line for line in run.messages())


def test_a_run_without_tasks_ends_when_the_worker_answers(run_of):
    run = finished(run_of())
    assert (run.state, run.connection.facts["bundle"]["preset"]) == ("done", "demo")


def test_a_cancelled_run_ends_and_the_worker_stays(run_of, tmp_path):
    run = run_of(ENDLESS, {})
    in_phase(run, "step")
    run.cancel()
    begun = time.monotonic()
    assert finished(run).state == "cancelled"
    assert time.monotonic() - begun < 3
    assert [task.job["state"] for task in run.tasks] == ["cancelled", "cancelled"]
    assert list((tmp_path / "stems").iterdir()) == []
    assert finished(run_of({})).state == "done"


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_is_cancelled_before_the_worker_answers(run_of, steps):
    run = run_of(ENDLESS)
    for _ in range(steps):
        run.step()
    run.cancel()
    run.step()
    assert (run.state, run.lost_worker, run.tasks[0].job) == ("cancelled", bool(steps), None)
    assert len(run_of.connections) == steps


def test_a_refused_request_cancels_the_others(run_of):
    run = finished(run_of(ENDLESS, {"steps": "many"}))
    assert (run.state, run.lost_worker) == ("failed", False)
    assert run.problems == ["the option 'steps' has the wrong type"]
    worker = run.connection.worker
    until(lambda: worker.get(run.tasks[0].job["id"])["state"] == "cancelled", within_s=5)


def test_a_job_that_fails_leaves_the_stems_of_the_others(run_of, tmp_path):
    (tmp_path / "no video.mp4").write_bytes(b"x")
    run = finished(run_of({"video": str(tmp_path / "no video.mp4")}, {}))
    assert (run.state, len(run.problems), len(run.results())) == ("failed", 1, 1)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX: its signals")
def test_a_worker_that_dies_is_told_with_its_log(run_of):
    run = run_of(ENDLESS)
    in_phase(run, "step")
    report = run.connection.worker.call("doctor")
    os.kill(report["supervisor"]["pid"], signal.SIGKILL)
    assert (finished(run).state, run.lost_worker) == ("failed", True)
    assert run.problems == [f"the worker is gone (exit code -9); its log: {report['log']}"]
    assert Path(report["log"]).is_file()
    until(lambda: not is_alive(report["engine"]["pid"]), within_s=5)


STRANGERS = {
    "print('hello', flush=True); input()": "is not a selva-worker: it answers something else",
    "print('[1]', flush=True); input()": "is not a selva-worker: it answers something else",
    "import sys; sys.exit('no module named selva_worker')": r"is gone \(exit code 1\): no module named selva_worker",
    "import sys\nwhile True: sys.stdout.write('x' * 65536)": "is not a selva-worker: it answers something else",
    "import os, time; os.close(1); time.sleep(60)": r"is gone \(its pipes closed\)",
}


@pytest.mark.parametrize("program", STRANGERS)
def test_a_program_that_is_no_worker(extension, tmp_path, program):
    command = [sys.executable, "-c", program]
    made = extension("connection").Connection(command, [], str(tmp_path))
    with pytest.raises(extension("client").WorkerError, match=STRANGERS[program]):
        until(made.ready)
    made.close()
    assert not is_alive(made._pipes.process.pid)


DYING = """
import signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
sys.path.insert(0, sys.argv[1])
from selva_in_blender.client import WorkerError
from selva_in_blender.connection import Connection
made = Connection([sys.executable, "-c", "import time; time.sleep(0.2)"], [], sys.argv[2])
made._pipes.process.wait()
for _ in range(2):
    try:
        made.worker.call("doctor")
    except WorkerError as error:
        print(error)
print(signal.sigpending(), signal.pthread_sigmask(signal.SIG_BLOCK, []))
made.close()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX: its signals")
def test_a_dead_worker_does_not_take_blender_along(extension, tmp_path):
    """Blender's Python does not ignore SIGPIPE."""
    folder = Path(extension("pipes").__file__).parents[1]
    command = [sys.executable, "-c", DYING, str(folder), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["the worker is gone (exit code 0)"] * 2 + ["set() set()"]


def test_a_worker_that_hangs_is_killed_at_the_end(extension, tmp_path, monkeypatch):
    monkeypatch.setattr(extension("pipes"), "_ANSWER_S", 0.2)
    made = extension("connection").Connection([sys.executable, "-c", "import time; time.sleep(60)"], [], str(tmp_path))
    assert not made.ready()
    with pytest.raises(extension("client").WorkerError, match="does not answer"):
        made.worker.call("doctor")
    made.close()
    assert not is_alive(made._pipes.process.pid)


def test_a_worker_of_another_protocol_is_refused(extension, tmp_path):
    answer = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "update the older one"}}
    program = f"input(); print({json.dumps(json.dumps(answer))}, flush=True); input()"
    made = extension("connection").Connection([sys.executable, "-c", program], [], str(tmp_path))
    with pytest.raises(extension("client").WorkerError, match="update the older one"):
        until(made.ready)
    made.close()


def test_a_command_that_is_not_there(extension, tmp_path):
    with pytest.raises(extension("client").WorkerError, match="cannot be started"):
        extension("connection").Connection(["/not/there"], [], str(tmp_path))
