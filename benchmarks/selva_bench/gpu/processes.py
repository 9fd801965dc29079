"""Runs a part in a process of its own, with a time limit, so that a crash or a hang costs only that part."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from time import perf_counter
from typing import Any

from selva_bench.gpu.parts import PARTS, PROBE
from selva_bench.gpu.results import clean
from selva_bench.gpu.setting import Setting

_ENDS_S = 5.0
"""Seconds that a process gets to end after each signal."""
_CHILD = "from selva_bench.gpu.parts import main; main()"
_HAS_GROUPS = hasattr(os, "killpg")


def run_part(name: str, setting: Setting, limit_s: float, keep: Callable[[dict[str, Any]], None]) -> None:
    """Runs a part in a process of its own and gives `keep` its result, also if it crashes, hangs or is interrupted."""
    rows: dict[str, Any] = {}
    end: dict[str, Any] = {}
    start_s = perf_counter()
    status, reason = "interrupted", "it was stopped"
    try:
        with tempfile.TemporaryFile() as log:
            with _process(name, setting, log) as process, _listening(process, rows, end):
                process.wait(limit_s)
            status, reason = _outcome(process.returncode, rows, end, log)
    except subprocess.TimeoutExpired:
        status, reason = "timeout", f"it took more than {limit_s:g} s; allow more with --limit"
    finally:
        keep({"status": status, "reason": reason, "seconds": perf_counter() - start_s, "rows": rows.copy()})


def _outcome(code: int, rows: dict[str, Any], end: dict[str, Any], log: Any) -> tuple[str, str]:
    """Status and reason of a part whose process has ended."""
    how = f"its process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"
    if "unavailable" in end:
        return "unavailable", end["unavailable"]
    if "error" in end:
        return "failed", end["error"]
    if "done" in end:
        wrong = [row for row, value in rows.items() if isinstance(value, dict) and value.get("ok") is False]
        late = f"{how}, after it was done" if code else ""
        return ("failed", f"{len(wrong)} of {len(rows)} rows failed") if wrong else ("ok", late)
    log.seek(0)
    last = next((line for line in reversed(log.read().decode(errors="replace").splitlines()) if line.strip()), "")
    return "crashed", f"{how}; its last line: {last.strip()}"


@contextmanager
def _process(name: str, setting: Setting, log: Any) -> Iterator[subprocess.Popen[str]]:
    """Starts the process of a part. Whatever happens, it and all that it started are gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, name, pickle.dumps(setting).hex()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        process_group=0 if _HAS_GROUPS else None,  # only this process gets Ctrl-C
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            with suppress(OSError):
                os.killpg(process.pid, number) if _HAS_GROUPS else process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDS_S)


@contextmanager
def _listening(process: subprocess.Popen[str], rows: dict[str, Any], end: dict[str, Any]) -> Iterator[None]:
    """Collects what the part reports."""
    thread = Thread(target=_listen, args=(process, rows, end), daemon=True)
    thread.start()
    yield
    thread.join(_ENDS_S)


def _listen(process: subprocess.Popen[str], rows: dict[str, Any], end: dict[str, Any]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            with suppress(ValueError):  # the last line of a process that was killed
                message = json.loads(line)
                if isinstance(message, dict):
                    end.update(message)
                else:
                    rows[message[0]] = message[1]


def why_not(setting: Setting, limit_s: float) -> tuple[dict[str, str], str]:
    """Why each part cannot run here, empty if it can; and the name of the GPU."""
    found: dict[str, Any] = {}
    run_part(PROBE, setting, limit_s, found.update)
    lost = f"looking for it failed: {found['reason'] or found['status']}"
    reasons = {need: found["rows"].get(need, lost) for part in PARTS.values() for need in part.needs}
    missing = {name: next(filter(None, map(reasons.__getitem__, part.needs)), "") for name, part in PARTS.items()}
    return clean(missing), found["rows"].get("name", "")
