"""Workers for the tests, and what the tests ask of them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile

from selva_runtime import Session
from selva_runtime.media.audio import WavWriter
from selva_worker.client import Worker, rendezvous_path

STREET = Path(__file__).resolve().parents[2] / "examples" / "street.mp4"
PROMPTS = ["dog barking", "rain"]
COMMAND = (sys.executable, "-m", "selva_worker")


def settings(folder: Path, bundle: Path) -> list[str]:
    return ["--state", str(folder / "state"), "--bundle", str(bundle), "--backend", "cpu", "--threads", "1"]


def start(folder: Path, bundle: Path, *options: str, **more: Any) -> Worker:
    """Starts a worker whose state is in `folder`/state and that may read the example and write to `folder`."""
    given = [*settings(folder, bundle), *options]
    return Worker.start(COMMAND, allow=[str(folder), str(STREET.parent)], options=given, **more)


@contextmanager
def serving(folder: Path, bundle: Path, *options: str) -> Iterator[Worker]:
    """A worker on HTTP with its state in `folder`/state, found by its file. Set XDG_RUNTIME_DIR before."""
    given = [*settings(folder, bundle), *options]
    with subprocess.Popen([*COMMAND, *given]) as process:
        yield until(Worker.find)
        process.terminate()
    assert not os.path.exists(rendezvous_path())


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    """One second of the example, in two steps."""
    out = str(folder / "stems")
    return {"video": str(STREET), "prompts": ["rain"], "out": out, "duration_s": 1, "steps": 2, **changes}


def endless(folder: Path) -> dict[str, Any]:
    """A request that takes longer than any test."""
    return request(folder, steps=1000, takes=16)


def until(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Waits until `condition` holds, and returns what it returned."""
    end_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)
    return found


def until_phase(worker: Worker, job: str, *phases: str) -> None:
    """Waits until a job is in one of the phases."""

    def reached() -> bool:
        found = worker.get(job)
        assert found["state"] in ("queued", "running", "writing"), found
        return bool(found["progress"]) and found["progress"]["phase"] in phases

    until(reached)


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that ended and was not collected does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def expected_stems(bundle: Path, folder: Path, **options) -> list[bytes]:
    """The samples of `Session.generate` as 24-bit files hold them."""
    session = Session(bundle, backend="cpu", threads=1)
    found = []
    for number, stem in enumerate(session.generate(session.encode(STREET, duration_s=1), PROMPTS, steps=2, **options)):
        with WavWriter(folder / f"{number}.wav", stem.sample_rate_hz) as file:
            file.write(stem.audio)
        found.append(soundfile.read(file.path, dtype="int32")[0].tobytes())
    return found


def samples(done: dict) -> list[bytes]:
    assert done["state"] == "done", done
    return [soundfile.read(stem["file"], dtype="int32")[0].tobytes() for stem in done["result"]["stems"]]
