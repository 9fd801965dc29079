"""The common part of all attacks: how many to run, from which seed, how to report, and children that may die or hang.

SELVA_ATTACKS is the number of attacks of each kind, instead of the few of `make test`. SELVA_ATTACK_FIRST is the first
seed. So `SELVA_ATTACKS=1 SELVA_ATTACK_FIRST=417 pytest tests/test_attack_bundles.py` repeats one attack.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that should not have happened. Each kind of fault is reported once, with its first seed."""

    kind: str
    attack: str
    """What was done, in enough detail to repeat it by hand."""
    detail: str = ""


def campaign(attack: Callable[[Random], Fault | None], bounded: int) -> None:
    """Runs `attack` with one seed after another, `bounded` times unless SELVA_ATTACKS says otherwise.

    Raises:
        AssertionError: an attack found a fault; lists each kind with a seed that repeats it.
    """
    __tracebackhide__ = True
    first = int(os.environ.get("SELVA_ATTACK_FIRST", "0"))
    number = int(os.environ.get("SELVA_ATTACKS", bounded))
    found: dict[str, list[tuple[int, Fault]]] = {}
    for seed in range(first, first + number):
        fault = attack(Random(seed))
        if fault is not None:
            found.setdefault(fault.kind, []).append((seed, fault))
    assert not found, "\n".join([f"{len(found)} kinds of fault in {number} attacks:", *map(_lines, found.values())])


def _lines(faults: list[tuple[int, Fault]]) -> str:
    seed, fault = faults[0]
    return (
        f"* {fault.kind} ({len(faults)} times; repeat with SELVA_ATTACKS=1 SELVA_ATTACK_FIRST={seed})\n"
        f"  attack: {fault.attack}\n  {fault.detail}"
    )


def environment() -> dict[str, str]:
    """Environment variables of a child that imports this package."""
    folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


class DiedError(Exception):
    """A child crashed or did not answer in time; the message says which and how."""


class Worker:
    """A child that answers JSON lines with JSON lines for many cases. After a crash or a hang a new one starts.

    On Linux its address space is limited, so that an attack on memory affects the child and not the machine.
    """

    def __init__(self, module: str, *, memory_bytes: int, time_s: float) -> None:
        self._module, self._memory_bytes, self._time_s = module, memory_bytes, time_s
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `close`

    def ask(self, case: dict[str, Any]) -> dict[str, Any]:
        """Sends a case and returns the child's answer.

        Raises:
            DiedError: the child crashed or did not answer in time.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(case).encode() + b"\n")
            process.stdin.flush()
            return dict(json.loads(self._line(process)))
        except (BrokenPipeError, json.JSONDecodeError) as error:
            code = self._end()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise DiedError(f"crash: {_name(code)} {' '.join(last)[:300]}".strip()) from error

    def close(self) -> None:
        """Ends the child."""
        if self._process is not None:
            self._end()
        self._errors.close()

    def restart(self) -> None:
        """Ends the child, so that the next case starts a new one."""
        if self._process is not None:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        import resource  # POSIX

        def limit() -> None:
            if sys.platform == "linux":  # other kernels do not limit an address space
                resource.setrlimit(resource.RLIMIT_AS, (self._memory_bytes, self._memory_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        self._errors.seek(0)
        self._errors.truncate()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            preexec_fn=limit,  # noqa: PLW1509 -- no thread runs yet
        )
        return self._process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        line, deadline_s = b"", time.monotonic() + self._time_s
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not ready.select(deadline_s - time.monotonic()):
                    self._end()
                    raise DiedError(f"hang: no answer in {self._time_s:g} s")
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    return b""
                line += part
        return line

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        with process:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.returncode


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def answer(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A worker's main loop. Anything a library prints to stdout goes to stderr instead, separate from the answers."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(handle(json.loads(line))).encode() + b"\n")
        out.flush()
