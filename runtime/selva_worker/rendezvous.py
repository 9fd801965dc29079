"""The file in which a worker on HTTP says where it listens and with which token. Only its user can read it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from selva_bundle.atomic import output_errors
from selva_worker.client import PROTOCOL, rendezvous_path


class Rendezvous:
    """The file, from now until `close`. One that an earlier worker left over is replaced.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, port: int, token: str) -> None:
        self.path = Path(rendezvous_path())
        self._text = json.dumps({"pid": os.getpid(), "port": port, "token": token, "protocol": PROTOCOL})
        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
            with suppress(FileNotFoundError):
                temporary.unlink()
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(self._text)
            temporary.replace(self.path)

    def close(self) -> None:
        """Remove the file, unless a later worker has replaced it."""
        with suppress(OSError):
            if self.path.read_text(encoding="utf-8") == self._text:
                self.path.unlink()
