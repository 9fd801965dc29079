"""A child with one session. It forks the session and calls it from two threads at once, and reports the outcome."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np

import selva_runtime
from attacks.campaign import answer
from selva_runtime import Clip, SelvaError, Session

BUNDLE = Path(selva_runtime.__file__).with_name("demo_bundle")
DURATION_S, FRAMES = 0.64, 16
PROMPTS = ("ball bouncing", "lamp beeping", "a red ball", "rain")
FORK_TIME_S = 15.0
Call = Callable[[Session, Clip], bytes]


def open_session() -> tuple[Session, Clip]:
    """Opens a session and uses it once, so that the threads of its backend exist."""
    session = Session(BUNDLE, backend="cpu", threads=1)
    return session, encode(session)


@cache
def shared() -> tuple[Session, Clip]:
    """The session shared by all cases."""
    return open_session()


def encode(session: Session) -> Clip:
    """The clip used in all cases."""
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 3, 64, 64), dtype=np.uint8)
    return session.encode_frames(frames, DURATION_S)


@cache
def right(name: str, seed: int) -> bytes:
    """The result of a call when nothing else is running."""
    return made(name, seed)(*shared())


def made(name: str, seed: int) -> Call:
    """Calls a session: `name` is "encode" or a prompt."""
    if name == "encode":
        return lambda session, _clip: np.asarray(encode(session).tokens).tobytes()
    return lambda session, clip: session.generate(clip, [name], steps=1, seed=seed)[0].audio.tobytes()


def outcome(name: str, seed: int, session: Session, clip: Clip) -> str | None:
    """Describes what was wrong with a call. One of our errors is acceptable: the session may refuse."""
    try:
        found = made(name, seed)(session, clip)
    except SelvaError:
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None if found == right(name, seed) else "another result than alone"


def fork(random: Random) -> dict[str, Any]:
    """Forks at rest or while a thread is inside a call. The child uses the inherited session or a new one."""
    name, seed, other = random.choice(("encode", *PROMPTS)), random.randrange(3), random.choice(PROMPTS)
    busy, fresh = random.random() < 0.4, random.random() < 0.3
    for call in (name, other):
        right(call, seed)
    session, clip = shared()
    thread = threading.Thread(target=outcome, args=(other, seed, session, clip))
    if busy:
        thread.start()
        time.sleep(random.uniform(0, 0.2))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        fault = outcome(name, seed, *(open_session() if fresh else (session, clip)))
        os.write(writing, json.dumps(fault).encode())
        os._exit(0)
    os.close(writing)
    ready = select.select([reading], [], [], FORK_TIME_S)[0]
    if not ready:
        os.kill(child, signal.SIGKILL)
    answered = os.read(reading, 4096) if ready else b'"hang"'
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    if busy:
        thread.join()
    fault = json.loads(answered) if answered else f"the child died: wait status {status}"
    where = "the child" + (", with a new session" if fresh else "")
    after = None if fault else outcome(other, seed, session, clip)
    if after:
        fault, where = after, "the parent afterwards"
    return {"fault": fault and f"{fault}, in {where}", "attack": f"fork, busy {busy}, then {name}"}


def delays(random: Random) -> Callable[[FrameType, str, Any], None]:
    """A profiler that makes a thread sleep at random when one of our functions returns, to provoke races."""

    def sleep(frame: FrameType, event: str, _result: Any) -> None:
        ours = event == "return" and str(frame.f_globals.get("__name__")).startswith("selva_runtime.")
        if ours and random.random() < 0.1:
            time.sleep(random.uniform(0, 0.02))

    return sleep


def threads(random: Random) -> dict[str, Any]:
    """Calls the session from two threads at the same time."""
    calls = [(random.choice(("encode", *PROMPTS)), random.randrange(2)) for _ in range(2)]
    for call in calls:
        right(*call)
    session, clip = open_session()
    barrier, faults = threading.Barrier(2), []

    def work(name: str, seed: int) -> None:
        barrier.wait()
        if fault := outcome(name, seed, session, clip):
            faults.append(fault)

    workers = [threading.Thread(target=work, args=call) for call in calls]
    threading.setprofile(delays(random))
    for worker in workers:
        worker.start()
    threading.setprofile(None)
    for worker in workers:
        worker.join()
    return {"fault": faults[0] if faults else None, "attack": f"two threads at once: {calls}"}


def handle(case: dict[str, Any]) -> dict[str, Any]:
    """Runs one attack, of the kind and the seed in the case."""
    return {"fork": fork, "threads": threads}[case["kind"]](Random(case["seed"]))


if __name__ == "__main__":
    answer(handle)
