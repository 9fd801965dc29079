"""Kills a running `selva-generate` at any time: afterwards the folder must have complete files or none."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import av
import soundfile

from attacks.campaign import Fault

COMMAND = Path(sys.executable).with_name("selva-generate")
VIDEO = Path(__file__).parents[3] / "examples" / "street.mp4"
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}
TIME_S = 60.0
_POLL_S = 0.001


class KillAttacks:
    """Runs, each in its own folder below `folder`, to be killed. One run is not killed: its files are the reference."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        began_s = time.monotonic()
        process = _start(folder / "right")
        errors = process.communicate(timeout=TIME_S)[1]
        assert process.returncode == 0, errors
        self._length_s = time.monotonic() - began_s
        self._right = {path.name: described(path) for path in (folder / "right").iterdir()}

    def attack(self, random: Random) -> Fault | None:
        """Kills one run at a time that the seed chooses, half of them while the files are being written."""
        out, number = self._folder / "new" / "out", signal.Signals[random.choice(list(CODES))]
        at_files = random.random() < 0.5
        # the files follow each other within 60 ms
        delay_s = random.uniform(0, 0.1) if at_files else random.uniform(0, 1.05 * self._length_s)
        process = _start(out)
        try:
            while at_files and process.poll() is None and not (out.is_dir() and any(out.iterdir())):
                time.sleep(_POLL_S)
            time.sleep(delay_s)
            process.send_signal(number)
            _, errors = process.communicate(timeout=TIME_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kind: str | None = f"hang: no end {TIME_S:g} s after {number.name}"
        else:
            kind = self._fault(number, process.returncode, errors, out)
        shutil.rmtree(self._folder / "new", ignore_errors=True)
        when = "after the first file" if at_files else f"of {self._length_s:.2f} s"
        return kind and Fault(kind=kind, attack=f"{number.name} {delay_s:.4f} s {when}", detail=errors[-600:])

    def _fault(self, number: signal.Signals, code: int, errors: str, out: Path) -> str | None:
        left = [path.relative_to(out.parent) for path in out.parent.rglob("*") if path.is_file()]
        files = {path.name: path for path in out.iterdir()} if out.is_dir() else {}
        final = {name for name in files if not name.startswith(".")}
        # -15 and -2, which a shell does not tell apart from the codes, occur if the process ends before Python runs in
        # it
        codes = {CODES[number.name], -number, 0}
        if code not in codes:
            return f"{number.name}: exit code {code}"
        if "Traceback" in errors or "Exception ignored" in errors:
            return f"{number.name}: a traceback"
        if number != signal.SIGKILL and len(errors.splitlines()) != (code > 0):
            return f"{number.name}: exit code {code} with {len(errors.splitlines())} lines on stderr"
        if code == 0 and final != set(self._right):
            return f"{number.name}: exit code 0 without all files"
        if final - set(self._right) or len(left) != len(files):
            return f"{number.name}: a strange file {sorted(map(str, left))}"
        if damaged := [name for name in final if described(files[name]) != self._right[name]]:
            return f"{number.name}: a damaged {Path(damaged[0]).suffix}"
        hidden = set(files) - final
        if number == signal.SIGKILL:
            return None if all(name.endswith(".part") for name in hidden) else f"SIGKILL: hidden {sorted(hidden)}"
        if hidden:
            return f"{number.name}: hidden files left"
        return f"{number.name}: an empty folder left" if out.parent.is_dir() and not final else None


def described(path: Path) -> object:
    """All samples of a WAV, or a film's pictures and length of sound. Says so if the file cannot be read."""
    try:
        if path.suffix == ".wav":
            return hashlib.sha256(soundfile.read(path, dtype="int32")[0].tobytes()).hexdigest()
        with av.open(str(path)) as film:
            packets = [(packet.stream.index, packet.size) for packet in film.demux() if packet.size]
            return hashlib.sha256(repr(packets).encode()).hexdigest()
    except (av.FFmpegError, soundfile.LibsndfileError) as error:
        return str(error)


def _start(out: Path) -> subprocess.Popen[str]:
    words = [COMMAND, VIDEO, "--duration", "2", "-p", "ball bouncing", "-p", "lamp beeping", "--mux", "1", "-o", out]
    settings = ["--steps", "4", "--threads", "1", "--backend", "cpu", "--quiet"]
    return subprocess.Popen(
        [*map(str, words), *settings], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
