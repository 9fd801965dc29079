"""Ctrl-C and SIGTERM in a command, wherever the main thread is when they arrive."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from platforms import needs_posix

pytestmark = needs_posix

COMMAND = """
import signal, sys, time, click
from selva_runtime.command import signals
from selva_runtime.command.base import OneLineCommand, StoppableCommand
from selva_bundle.errors import BackendError
from selva_runtime.backends.executor import check_cancel

class Raising:
    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)

def wait(seconds=30.0):
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        time.sleep(0.01)

def ready():
    print("ready", flush=True)

StoppableCommand.grace_s = 0.3
"""
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def started(kind: str, body: str, before: str = "") -> subprocess.Popen[str]:
    """Starts a command of class `kind` that runs `body`."""
    body = "".join(f"    {line}\n" for line in body.strip().splitlines())
    code = f'{COMMAND}{before}\n@click.command("try", cls={kind})\n@click.pass_obj\ndef main(stop):\n{body}\nmain()'
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)


def ended(process: subprocess.Popen[str], *signals: signal.Signals, apart_s: float = 0.0) -> tuple[int, str, str]:
    """Sends these signals once the command is ready; returns its exit code, output and errors."""
    assert process.stdout is not None
    if signals:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)
    for number in signals:
        process.send_signal(number)
        time.sleep(apart_s)
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


def stopped(number: signal.Signals, output: str = "") -> tuple[int, str, str]:
    return 128 + number, output, f"error: {WORDS[number]}: no partial file was left\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["OneLineCommand", "StoppableCommand"])
def test_what_a_finaliser_swallows_comes_again(kind, number):
    assert ended(started(kind, f"Raising({int(number)})\nwait()")) == stopped(number)


def test_what_an_except_swallows_comes_again():
    body = "try:\n    ready()\n    wait()\nexcept BaseException:\n    pass\nwait()"
    assert ended(started("OneLineCommand", body), signal.SIGTERM) == stopped(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_looks_stops_where_it_looks(number):
    body = "ready()\nwhile not stop.is_set():\n    wait(0.01)\nprint('here')\ncheck_cancel(stop)"
    assert ended(started("StoppableCommand", body), number) == stopped(number, "here\n")


@pytest.mark.parametrize("error", ["BackendError('initialization failed')", "ImportError('cannot initialise')"])
def test_an_error_while_leaving_does_not_hide_the_first(error):
    """Third-party modules turn an interrupted import into errors of their own, which must not be reported."""
    body = f"ready()\ntry:\n    wait()\nexcept KeyboardInterrupt:\n    raise {error}"
    assert ended(started("OneLineCommand", body), signal.SIGINT) == stopped(signal.SIGINT)


@pytest.mark.parametrize("kind", ["OneLineCommand", "StoppableCommand"])
def test_cleaning_up_is_not_disturbed(kind):
    """Neither the timer nor a second signal at the same time, as `timeout` sends it, disturbs it."""
    body = "try:\n    ready()\n    wait()\nfinally:\n    wait(0.8)\n    print('cleaned')"
    process = started(kind, body)
    assert ended(process, signal.SIGTERM, signal.SIGTERM, apart_s=0.05) == stopped(signal.SIGTERM, "cleaned\n")


def test_a_second_signal_ends_a_stuck_command():
    stuck = "ready()\nwhile True:\n    try:\n        wait()\n    except BaseException:\n        pass"
    process = started("OneLineCommand", stuck, before="signals._INSIST_S = 0.2")
    assert ended(process, signal.SIGINT, signal.SIGINT, apart_s=0.4) == (-signal.SIGINT, "", "")


def test_a_signal_that_the_parent_ignores_stays_ignored():
    """As a shell does for the background jobs of a script."""
    process = started("OneLineCommand", "ready()\nwait()", before="signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert ended(process, signal.SIGINT, signal.SIGTERM, apart_s=0.2) == stopped(signal.SIGTERM)


@pytest.mark.parametrize("entry", ["generate", "train"])
def test_ctrl_c_during_the_imports_is_silent(tmp_path: Path, entry):
    (tmp_path / "click.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(30)\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", f"from selva_runtime.command.start import {entry}; {entry}()"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended(process, signal.SIGINT) == (-signal.SIGINT, "", "")
