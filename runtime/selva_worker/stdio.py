"""JSON-RPC over stdin and stdout, one object a line, for a host that starts its own worker.

The end of stdin means that the host is gone. Changes of jobs are told as notifications `job.changed`, by a thread of
its own; when the host reads slowly, it gets the last state of each job and not every one.
"""

from __future__ import annotations

from threading import Event, Lock, Thread
from typing import BinaryIO

from selva_worker.client import MAX_REQUEST_BYTES
from selva_worker.methods import Methods
from selva_worker.protocol import answer, failure, line, too_long
from selva_worker.supervisor import Supervisor


def serve(supervisor: Supervisor, source: BinaryIO, target: BinaryIO) -> None:
    """Answer requests until the input ends or a client calls `shutdown`."""
    stopped, lock = Event(), Lock()
    methods = Methods(supervisor, stopped.set)

    def send(text: bytes) -> None:
        with lock:
            target.write(text)
            target.flush()

    changed = Event()
    supervisor.listen(changed.set)

    def notify() -> None:
        seen, _ = supervisor.changes(0)
        while True:
            changed.wait()
            changed.clear()
            seen, jobs = supervisor.changes(seen)
            for job in jobs:
                send(line({"jsonrpc": "2.0", "method": "job.changed", "params": job}))

    Thread(target=notify, daemon=True).start()
    while not stopped.is_set() and (text := source.readline(MAX_REQUEST_BYTES + 1)):
        if not text.endswith(b"\n") and len(text) > MAX_REQUEST_BYTES:
            while (rest := source.readline(MAX_REQUEST_BYTES)) and not rest.endswith(b"\n"):
                pass
            error = too_long()
            send(line({"jsonrpc": "2.0", "id": None, **failure(error.code, str(error))}))
        elif text.strip() and (reply := answer(text, methods.call)) is not None:
            send(reply)
