"""Jobs of a worker on pipes: right stems, no orphan, nothing lost when a process dies, cancelled in time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import soundfile
from platforms import needs_linux
from workers import PROMPTS, STREET, endless, expected_stems, is_alive, request, samples, start, until, until_phase

from selva_worker.client import WorkerError
from selva_worker.engine import Engine

DEATH_S = 2
"""What a killed process may leave behind for. On 2 busy cores it is gone after 0.1 s, whatever the engine does."""


@pytest.fixture
def worker(piped):
    return piped


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]


def test_stems_are_those_of_a_session(worker, demo_bundle, tmp_path):
    done = worker.wait(worker.submit(request(tmp_path, prompts=PROMPTS, seed=7))["id"])
    assert samples(done) == expected_stems(demo_bundle, tmp_path, seed=7)


def test_a_second_job_needs_no_loading(worker, tmp_path):
    loaded = worker.wait(worker.call("model.load")["id"])
    assert loaded["state"] == "done"
    engine = worker.call("doctor")["engine"]["pid"]
    opened = worker.wait(worker.call("clip.open", clip={"video": str(STREET), "duration_s": 1})["id"])
    assert (opened["state"], opened["result"]["duration_s"]) == ("done", 1)
    assert worker.wait(worker.submit(request(tmp_path))["id"])["state"] == "done"
    assert worker.call("doctor")["engine"]["pid"] == engine


def test_a_killed_engine_fails_its_job_only(worker, tmp_path):
    job = worker.submit(endless(tmp_path))["id"]
    until_phase(worker, job, "step")
    os.kill(worker.call("doctor")["engine"]["pid"], signal.SIGKILL)
    failed = worker.wait(job, timeout_s=5)
    assert failed["state"] == "failed"
    assert failed["error"]["exit_code"] == -signal.SIGKILL
    assert failed["error"]["peak_memory_bytes"] > 50e6
    assert failed["error"]["log"] in failed["error"]["message"]
    assert Path(failed["error"]["log"]).is_file()
    assert hidden(tmp_path / "stems") == []
    assert worker.wait(worker.submit(request(tmp_path))["id"])["state"] == "done"


HOST = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from workers import *
worker = start(Path(sys.argv[1]), Path(sys.argv[2]))
job = worker.submit(endless(Path(sys.argv[1])), key="mine")["id"]
until_phase(worker, job, sys.argv[3])
doctor = worker.call("doctor")
print(doctor["supervisor"]["pid"], doctor["engine"]["pid"], flush=True)
sys.stdin.read()
"""


@needs_linux
@pytest.mark.parametrize("killed", ["host", "supervisor"])
@pytest.mark.parametrize("phase", ["load", "step"])
def test_no_process_is_left_and_the_job_is_interrupted(demo_bundle, tmp_path, killed, phase):
    code = HOST.format(path=sys.path)
    command = [sys.executable, "-c", code, str(tmp_path), str(demo_bundle), phase]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
        supervisor, engine = map(int, host.stdout.readline().split())
        assert is_alive(supervisor)
        assert is_alive(engine)
        os.kill(host.pid if killed == "host" else supervisor, signal.SIGKILL)
        until(lambda: not is_alive(supervisor) and not is_alive(engine), within_s=DEATH_S)
        assert hidden(tmp_path) == []
        host.kill()
    again = start(tmp_path, demo_bundle)
    (job,) = again.jobs()
    assert (job["key"], job["state"]) == ("mine", "interrupted")
    assert again.submit(endless(tmp_path), key="mine")["id"] == job["id"]
    until_phase(again, job["id"], "step")
    again.close()


@needs_linux
def test_an_idle_engine_leaves_with_its_supervisor(worker):
    worker.wait(worker.call("model.load")["id"])
    doctor = worker.call("doctor")
    os.kill(doctor["supervisor"]["pid"], signal.SIGKILL)
    until(lambda: not is_alive(doctor["engine"]["pid"]), within_s=DEATH_S)
    with pytest.raises(WorkerError, match="the worker is gone"):
        worker.jobs()


EMBEDDED = """
import os, signal, sys
sys.path[:] = {path!r}
from pathlib import Path
from selva_worker.client import WorkerError
from workers import start
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
worker = start(Path(sys.argv[1]), Path(sys.argv[2]))
os.kill(worker.call("doctor")["supervisor"]["pid"], signal.SIGKILL)
worker._transport.process.wait()
for _ in range(2):
    try:
        worker.jobs()
    except WorkerError as error:
        print(error)
worker.close()
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@needs_linux
def test_a_host_whose_python_does_not_ignore_sigpipe_outlives_its_worker(demo_bundle, tmp_path):
    code = EMBEDDED.format(path=sys.path)
    command = [sys.executable, "-c", code, str(tmp_path), str(demo_bundle)]
    host = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert (host.returncode, host.stdout) == (0, "the worker is gone\nthe worker is gone\nset()\n")


def test_the_same_key_runs_once(worker, tmp_path):
    first = worker.submit(request(tmp_path), key="a")
    assert worker.submit(request(tmp_path), key="a")["id"] == first["id"]
    worker.wait(first["id"])
    assert worker.submit(request(tmp_path), key="a")["state"] == "done"
    assert [path.name for path in (tmp_path / "stems").iterdir()] == ["rain.wav"]
    with pytest.raises(WorkerError, match="was used for another request"):
        worker.submit(request(tmp_path, seed=1), key="a")


def test_what_a_user_waits_for_goes_first(worker, tmp_path):
    running = worker.submit(endless(tmp_path))["id"]
    later, urgent = (worker.submit(request(tmp_path), urgent=urgent)["id"] for urgent in (False, True))
    worker.cancel(running)
    worker.wait(urgent)
    assert worker.get(later)["state"] in ("queued", "running")


@pytest.mark.parametrize("phases", [("load",), ("decode", "encode"), ("step",)])
def test_a_running_job_is_cancelled_in_time(worker, tmp_path, phases):
    if phases != ("load",):
        worker.wait(worker.call("model.load")["id"])
    job = worker.submit({**endless(tmp_path), "duration_s": 4})["id"]
    until_phase(worker, job, *phases)
    began_s = time.monotonic()
    worker.cancel(job)
    assert worker.wait(job)["state"] == "cancelled"
    assert time.monotonic() - began_s < 1
    assert not (tmp_path / "stems").exists()


def test_a_waiting_job_is_cancelled_at_once(worker, tmp_path):
    running, waiting = (worker.submit(endless(tmp_path))["id"] for _ in range(2))
    until(lambda: worker.get(running)["state"] == "running")
    assert worker.cancel(waiting)["state"] == "cancelled"
    assert worker.get(running)["state"] == "running"


@needs_linux
def test_a_job_that_does_not_stop_is_ended_with_its_engine(worker, tmp_path):
    job = worker.submit(endless(tmp_path))["id"]
    until_phase(worker, job, "step")
    os.kill(worker.call("doctor")["engine"]["pid"], signal.SIGSTOP)
    began_s = time.monotonic()
    until(lambda: worker.cancel(job)["state"] == "cancelled", within_s=4)  # cancelling again puts nothing off
    assert 1 < time.monotonic() - began_s < 2
    assert hidden(tmp_path / "stems") == []


def test_a_worker_that_leaves_in_the_middle_of_a_job_tidies_up(demo_bundle, tmp_path):
    worker = start(tmp_path, demo_bundle)
    until_phase(worker, worker.submit(endless(tmp_path))["id"], "step")
    assert len(hidden(tmp_path / "stems")) == 16
    worker.close()
    assert hidden(tmp_path / "stems") == []


@needs_linux
def test_an_engine_that_loads_is_ended_at_once(worker, tmp_path):
    job = worker.submit(endless(tmp_path))["id"]
    until_phase(worker, job, "load")
    os.kill(worker.call("doctor")["engine"]["pid"], signal.SIGSTOP)
    began_s = time.monotonic()
    worker.cancel(job)
    assert worker.wait(job)["state"] == "cancelled"
    assert time.monotonic() - began_s < 1


def test_an_engine_that_is_killed_leaves_no_part_of_a_timeline(worker, tmp_path):
    (tmp_path / "lines").mkdir()
    job = worker.submit({**endless(tmp_path), "timelines": [str(tmp_path / "lines" / "film.rpp")]})["id"]
    until_phase(worker, job, "step")
    beginning = hidden(tmp_path / "stems")[0].rpartition("-")[0]
    part = tmp_path / "lines" / f"{beginning}-0.part"
    part.touch()
    os.kill(worker.call("doctor")["engine"]["pid"], signal.SIGKILL)
    assert worker.wait(job)["state"] == "failed"
    assert not part.exists()


def test_a_job_is_cancelled_in_time_while_it_writes(worker, tmp_path):
    prompts = [f"rain {number}" for number in range(48)]
    job = worker.submit(request(tmp_path, prompts=prompts, mux=list(range(1, 49)), steps=1))["id"]
    until_phase(worker, job, "write")
    assert worker.get(job)["state"] == "writing"
    began_s = time.monotonic()
    worker.cancel(job)
    assert worker.wait(job)["state"] == "cancelled"
    assert time.monotonic() - began_s < 1
    assert hidden(tmp_path / "stems") == []
    assert {soundfile.info(path).frames for path in (tmp_path / "stems").glob("*.wav")} <= {16_000}
    assert len(list((tmp_path / "stems").glob("*.mp4"))) < 48


def test_a_job_that_is_cancelled_while_it_writes_leaves_no_file(demo_bundle, tmp_path):
    sent = []

    def send(message):
        sent.append(message)
        if message.get("phase") == "write":
            engine._cancelled["a"].set()

    settings = {"bundle": str(demo_bundle), "backend": "cpu", "threads": 1, "precision": "exact", "cache": "none"}
    engine = Engine(settings, send)
    engine.take({"id": "a", "kind": "generate", "request": request(tmp_path)})
    Thread(target=engine.work, daemon=True).start()
    until(lambda: sent and not {"phase", "say", "loaded"} & set(sent[-1]))
    assert sent[-1] == {"job": "a", "cancelled": True}
    assert not (tmp_path / "stems").exists()


@needs_linux
def test_unloading_gives_the_memory_back(worker, tmp_path):
    running = worker.submit(endless(tmp_path))["id"]
    until_phase(worker, running, "step")
    with pytest.raises(WorkerError, match="a job is running"):
        worker.call("model.unload")
    worker.cancel(running)
    worker.wait(running)
    engine = worker.call("doctor")["engine"]["pid"]
    worker.call("model.unload")
    until(lambda: not is_alive(engine), within_s=DEATH_S)
    after = until(lambda: (doctor := worker.call("doctor"))["engine"] is None and doctor)
    assert after["supervisor"]["memory_bytes"] < 40e6
    assert worker.wait(worker.submit(request(tmp_path))["id"])["state"] == "done"


def test_an_idle_model_is_unloaded(demo_bundle, tmp_path):
    worker = start(tmp_path, demo_bundle, "--idle-unload", "0.2")
    worker.wait(worker.call("model.load")["id"])
    until(lambda: worker.call("doctor")["engine"] is None, within_s=3)
    worker.close()


def test_changes_are_told(demo_bundle, tmp_path):
    seen = []
    worker = start(tmp_path, demo_bundle, on_change=seen.append)
    job = worker.submit(request(tmp_path))["id"]
    worker.wait(job)
    until(lambda: seen[-1]["state"] == "done", within_s=3)
    states = list(dict.fromkeys(change["state"] for change in seen))
    assert states in (["queued", "running", "writing", "done"], ["running", "writing", "done"])
    loading = [change["progress"] for change in seen if (change["progress"] or {}).get("phase") == "load"]
    assert {progress["fraction"] for progress in loading} == {None}
    assert [change["revision"] for change in seen] == sorted({change["revision"] for change in seen})
    assert worker.call("job.get", job=job, since=seen[-1]["revision"]) == {
        "id": job,
        "revision": seen[-1]["revision"],
    }
    worker.close()


def test_a_mistake_fails_the_job_in_one_line(worker, tmp_path):
    done = worker.wait(worker.submit(request(tmp_path, steps=0))["id"])
    assert done["state"] == "failed"
    assert done["error"]["message"] == "steps is 0; give a whole number from 1 to 1000"


@needs_linux
def test_the_supervisor_loads_no_model_code(demo_bundle, tmp_path):
    code = "import sys, selva_worker.cli; print({'numpy', 'onnxruntime', 'av', 'starlette'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_torn_journal_is_read_up_to_the_tear(demo_bundle, tmp_path):
    worker = start(tmp_path, demo_bundle)
    kept = worker.submit(endless(tmp_path), key="a")["id"]
    worker.close()
    journal = tmp_path / "state" / "jobs.jsonl"
    journal.write_bytes(journal.read_bytes() + json.dumps({"id": kept, "state": "done"}).encode()[:-3])
    again = start(tmp_path, demo_bundle)
    assert [(job["id"], job["state"]) for job in again.jobs()] == [(kept, "interrupted")]
    with pytest.raises(WorkerError, match="the worker is gone"):
        start(tmp_path, demo_bundle)  # the state folder is taken
    again.close()


def test_mmaudio_in_a_worker_needs_neither_prompt_nor_video(mmaudio_bundle, tmp_path):
    worker = start(tmp_path, mmaudio_bundle)
    try:
        mix = worker.wait(worker.submit(request(tmp_path, prompts=[], duration_s=1.0))["id"])
        assert [stem["name"] for stem in mix["result"]["stems"]] == ["mix"]
        text = worker.wait(worker.submit(request(tmp_path, prompts=["rain"], video=None, duration_s=1.0))["id"])
        assert (text["result"]["video"], text["result"]["stems"][0]["samples"]) == (None, 16_000)
    finally:
        worker.close()
