"""Where a worker keeps its journal and its log, and that no two workers use the same place."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from typing import IO

from selva_bundle.errors import OutputError
from selva_worker.client import user_state


class StateFolder:
    """A folder that this process has for itself until it ends. `place` None means the first free one of this user.

    Raises:
        OutputError: the folder cannot be written to, or another worker uses it.
    """

    def __init__(self, place: str | None) -> None:
        self._lock: IO[bytes]
        for number in count(1):
            self.path = Path(place) if place is not None else Path(user_state()) / "selva" / f"worker-{number}"
            try:
                self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = (self.path / "lock").open("ab")
            except OSError as error:
                raise OutputError(f"{self.path}: cannot be written ({error.strerror}); name another --state") from error
            if _locked(lock):
                self._lock = lock
                return
            lock.close()
            if place is not None:
                raise OutputError(f"{self.path} is in use by another worker; name another --state")


def _locked(file: IO[bytes]) -> bool:
    """Lock a file for this process, unless another one has locked it. The system unlocks it when the process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
