"""Hosts that speak Lua, played by tables that accept only the published API; and a stand-in for selva-generate."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOSTS = Path(__file__).parents[2] / "runtime" / "hosts"
PLAYED = Path(__file__).parent / "hosts"
COMMAND = """#!{python} -SE
import json, os, signal, sys, time
here = os.path.dirname(os.path.realpath(__file__))
arguments = sys.argv[1:]
with open(here + "/asked", "a", encoding="utf-8") as file:
    file.write(json.dumps(arguments) + chr(10))
plan = json.load(open(here + "/plan"))
given = [argument.partition("=") for argument in arguments]
def ended(text, code=2):
    print("error: " + text, file=sys.stderr)
    print(json.dumps({{"error": text}}))
    sys.exit(code)
if "--worker" in arguments and not plan["worker"]:
    ended("no worker is running; start one with `selva-worker &`, or leave out --worker")
if plan["error"]:
    ended(plan["error"])
print("warning: " + plan["warning"], file=sys.stderr, flush=True)
time.sleep(0.3 if plan["slow"] else 0)
if plan["hangs"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    time.sleep(60)
if plan["report"] is not None:
    print(plan["report"])
    sys.exit(0)
value = {{name: text for name, _, text in given}}
seed, stems = int(value.get("--seed", 0)), []
for number, prompt in enumerate(text for name, _, text in given if name == "--prompt"):
    for take in range(1, int(value.get("--takes", 1)) + 1):
        path = f"{{value['--out']}}/{{number}}-{{take}}.wav"
        open(path, "wb").close()
        stems.append({{"prompt": prompt, "take": take, "seed": seed, "file": path,
                      "duration_s": float(value["--duration"])}})
print(json.dumps({{"stems": stems, "notice": "for non-commercial research", "preset": "demo"}}))
"""


class Command:
    """A stand-in for selva-generate, in a folder of its own, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "selva-generate"
        self.path.write_text(COMMAND.format(python=sys.executable))
        self.path.chmod(0o755)
        self.plan()

    def plan(self, **plan: Any) -> None:
        """Say how it behaves: whether a worker runs, whether it hangs or fails, or what it prints."""
        usual = {
            "worker": True,
            "error": None,
            "warning": "the toy demo",
            "hangs": False,
            "slow": False,
            "report": None,
        }
        (self.path.parent / "plan").write_text(json.dumps(usual | plan))

    @property
    def asked(self) -> list[list[str]]:
        """The arguments of every start."""
        path = self.path.parent / "asked"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def real_command(folder: Path) -> Path:
    """The real selva-generate with the demo model, which finds no worker."""
    path = folder / "selva-generate"
    settings = f"XDG_RUNTIME_DIR={shlex.quote(str(folder))} SELVA_CACHE=none"
    path.write_text(f'#!/bin/sh\n{settings} exec {sys.executable} -m selva_runtime "$@"\n')
    path.chmod(0o755)
    return path


def runtime(version: str) -> Any:
    """A Lua interpreter: "lua54" as in REAPER 7, "luajit21" as in Resolve."""
    module = __import__(f"lupa.{version}", fromlist=["LuaRuntime"])
    return module.LuaRuntime(unpack_returned_tuples=True, register_eval=False)


class Processes:
    """The processes that a host started."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self._environment = dict(os.environ)

    def start(self, line: str) -> str | None:
        """Run a command line without a shell, as ExecProcess does, and do not wait."""
        self.lines.append(line)
        try:
            self._started.append(subprocess.Popen(shlex.split(line), stdin=subprocess.DEVNULL, env=self._environment))
        except OSError:
            return None
        return "0\n"

    def wait(self) -> None:
        """Wait until all have ended."""
        for process in self._started:
            process.wait(10)


class Reaper:
    """REAPER with one project, in which `runtime/hosts/reaper/selva.lua` can be run again and again."""

    def __init__(self, media: Path, script: Path = HOSTS / "reaper" / "selva.lua") -> None:
        self.lua = runtime("lua54")
        self.processes, self.script = Processes(), script
        self.clock: Callable[[], float] = lambda: 4 * time.monotonic()  # so that it polls more often
        strict = self.lua.execute((PLAYED / "strict.lua").read_text())
        played = self.lua.compile((PLAYED / "reaper.lua").read_text())
        self.world = played(strict, self._start, os.makedirs, self._now, str(script))
        self.world.media = str(media)

    def _start(self, line: str) -> str | None:
        return self.processes.start(line)

    def _now(self) -> float:
        return self.clock()

    def movie(
        self, file: Path | str, *, length_s: float, at_s: float = 0.0, item_s: float | None = None, **take: float
    ) -> Any:
        """Add a track with one selected item that plays a movie. `take` are values of the take."""
        source = self.world.source("VIDEO", str(file), length_s, None)
        values = self.lua.table_from(
            {"D_POSITION": at_s, "D_LENGTH": length_s if item_s is None else item_s, "B_LOOPSRC": 0}
        )
        return self.world.item(values, self.lua.table_from(take), source, "picture")

    def run(self, *answers: str, until: Callable[[], bool] = lambda: False, limit_s: float = 20.0) -> None:
        """Run the script, with these answers in its dialog, until it has ended or `until` is true."""
        self.world.answers = self.lua.table_from(answers) if answers else False
        self.lua.execute(self.script.read_text())
        end_s = time.monotonic() + limit_s
        while not until() and self.world.turn():
            assert time.monotonic() < end_s, "the script does not end"
            time.sleep(0.01)

    @property
    def messages(self) -> list[str]:
        """What was shown in message boxes."""
        return list(self.world.messages.values())

    def tracks(self) -> Iterator[tuple[str, list[Any]]]:
        """Name and items of every track."""
        for track in self.world.tracks.values():
            yield track.name, list(track["items"].values())


class Resolve:
    """Resolve with one project, in which `runtime/hosts/resolve/selva.lua` can be run again and again."""

    def __init__(self, folder: Path) -> None:
        for path in (HOSTS / "resolve" / "selva.lua", *(HOSTS / "lua").glob("*.lua")):
            shutil.copy(path, folder)
        self.lua = runtime("luajit21")
        self.folder = folder
        self.waiting: Callable[[], None] = lambda: None
        strict = self.lua.execute((PLAYED / "strict.lua").read_text())
        played = self.lua.compile((PLAYED / "resolve.lua").read_text())
        self.world = played(strict, self._wait, os.makedirs, str(folder))
        self.world.first = 86400

    def _wait(self, _seconds: float) -> None:
        self.waiting()
        time.sleep(0.01)

    def setting(self, name: str, value: str) -> None:
        """Write a setting into the script, as a user does."""
        path = self.folder / "selva.lua"
        path.write_text(re.sub(rf'  {name} = ".*?",', lambda _: f"  {name} = {json.dumps(value)},", path.read_text()))

    def mark(self, frame: int, name: str, note: str = "") -> None:
        """Put a marker on the timeline, `frame` frames after its begin."""
        fields = {"name": name, "note": note, "color": "Blue", "duration": 1}
        self.world.markers[frame] = self.lua.table_from(fields)

    def run(self) -> None:
        """Run the script until it has ended."""
        self.lua.execute((self.folder / "selva.lua").read_text())

    def tracks(self) -> list[tuple[str, bool, list[Any]]]:
        """Name, whether it is enabled, and the clips of every new audio track."""
        return [(track.name, track.enabled, [track[1]]) for track in list(self.world.tracks.values())[1:]]
