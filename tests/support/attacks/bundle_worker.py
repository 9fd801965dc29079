"""A child that uses one attacked bundle after another, as a host would, and reports each outcome."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from attacks.campaign import answer
from selva_bench.worker import peak_memory_bytes
from selva_bundle.ports import QUALITIES
from selva_runtime import SelvaError, Session

DURATION_S = 0.96
MOST_FRAMES, LARGEST_IMAGE = 200, 256
"""A bundle that asks for more than this gets too little and must report it."""
PROMPTS = ("ball bouncing", "lamp beeping")


class Swap:
    """Replaces one of the bundle's files while a session uses it."""

    def __init__(self, bundle: str, case: dict[str, Any] | None) -> None:
        self._case, self._done = case or {}, False
        self._file = Path(bundle, self._case.get("file", ""))
        self._threads: list[threading.Thread] = []
        if self._case.get("when") == "read":
            _Opened.swap = self

    def at(self, moment: str) -> None:
        """Tells the swap that the session has reached `moment`."""
        if self._case.get("when") == moment and not self._done:
            self._act()

    def opened(self, path: str) -> None:
        """Called before a file is opened. If it is the one to swap, its content changes soon after."""
        if not self._threads and os.path.abspath(path) == str(self._file):
            self._threads.append(threading.Thread(target=self._later))
            self._threads[0].start()

    def end(self) -> None:
        """Waits until the swap is done."""
        _Opened.swap = None
        for thread in self._threads:
            thread.join()

    def _later(self) -> None:
        time.sleep(self._case["delay_s"])
        self._act()

    def _act(self) -> None:
        self._done = True
        before, other = self._file.stat(), Path(self._case["with"])
        if self._case["in_place"]:
            with self._file.open("r+b") as file:
                file.write(other.read_bytes())
        else:
            os.replace(other, self._file)
        if self._case["same_times"]:
            os.utime(self._file, ns=(before.st_atime_ns, before.st_mtime_ns))


class _Opened:
    """The only audit hook, because hooks cannot be removed."""

    swap: Swap | None = None

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and cls.swap is not None and isinstance(arguments[0], (str, os.PathLike)):
            cls.swap.opened(os.fspath(arguments[0]))


def use(case: dict[str, Any]) -> dict[str, Any]:
    """Opens, encodes, and generates a stem and a draft of each prompt; returns every outcome as JSON."""
    at, swap = "open", Swap(case["bundle"], case.get("swap"))
    try:
        session = Session(case["bundle"], backend="cpu", threads=1)
        swap.at("opened")
        at = "encode"
        info = session.info
        clip = session.encode_frames(_frames(info.image_size, info.fps), DURATION_S)
        swap.at("encoded")
        at, stems = "generate", []
        for prompt in PROMPTS[: case["stems"]]:
            for quality in QUALITIES:
                stems += session.generate(clip, [prompt], steps=2, quality=quality)
            swap.at("generated")
        outcome: dict[str, Any] = {"stems": [_described(stem.audio, info.sample_rate_hz) for stem in stems]}
    except BaseException as error:  # tokenizers panics with a BaseException
        kind = type(error)
        outcome = {"error": kind.__name__, "selva": isinstance(error, SelvaError), "message": str(error), "at": at}
    finally:
        swap.end()
    return {**outcome, "peak_bytes": peak_memory_bytes()}


def _frames(image_size: int, fps: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    size, number = min(image_size, LARGEST_IMAGE), min(int(DURATION_S * fps), MOST_FRAMES)
    return np.random.default_rng(0).integers(0, 256, (number, 3, size, size), dtype=np.uint8)


def _described(audio: np.ndarray[Any, Any], rate_hz: int) -> dict[str, Any]:
    nonzero = np.flatnonzero(audio)
    return {
        "dtype": str(audio.dtype),
        "shape": audio.shape,
        "wanted_samples": round(DURATION_S * rate_hz),
        "finite": bool(np.isfinite(audio).all()),
        "silent_at_end": int(len(audio) - 1 - nonzero[-1]) if len(nonzero) else len(audio),
        "sha256": hashlib.sha256(audio.tobytes()).hexdigest(),
    }


if __name__ == "__main__":
    sys.addaudithook(_Opened.hook)
    answer(use)
