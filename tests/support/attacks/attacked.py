"""The process under attack: reads each video and reports one line of JSON for each."""

import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from selva_bench.worker import peak_memory_bytes
from selva_bundle.errors import SelvaError
from selva_runtime.media.mux import mux
from selva_runtime.media.video import read_clip

LIMIT_S = 60
MUX_EVERY = 3


def run_all(paths: list[str]) -> None:
    for path in map(Path, paths):
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        signal.alarm(LIMIT_S)  # kills the process, even inside FFmpeg
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            outcome, made = run_one(path, Path(name), number=int(path.stem))
            left = sorted({file.name for file in Path(name).iterdir()} - made)
        signal.alarm(0)
        report = {
            "outcome": outcome,
            "seconds": time.monotonic() - began_s,
            "mib": peak_memory_bytes() / 2**20,
            "left": left,
        }
        print(json.dumps(report), flush=True)


def run_one(path: Path, out: Path, *, number: int) -> tuple[str, set[str]]:
    """Returns the outcome, and the names of the files that it reports."""
    made = set()
    outcome = []
    tasks = [lambda: read_clip(path, size=32, duration_s=2, start_s=number % 2 * 0.3)]
    if number % MUX_EVERY == 0:
        suffix = (".mp4", ".mkv", ".mov")[number // MUX_EVERY % 3]
        tasks.append(lambda: mux(path, np.zeros(16000, np.float32), 16000, out / f"film{suffix}"))
    for task in tasks:
        try:
            result = task()
            made |= {result.path.name} if result.path.parent == out else set()
            outcome.append("made")
        except SelvaError as error:
            if "\n" in str(error):
                raise AssertionError(f"the message has more than one line: {error}") from error
            outcome.append(type(error).__name__)
    return " ".join(outcome), made


if __name__ == "__main__":
    run_all(sys.argv[1:])
