"""Which paths a client may name: those below folders that were allowed, after every link was followed."""

from __future__ import annotations

import os

from selva_worker.protocol import INVALID_PARAMS, OUTSIDE, Refused


class AllowedFolders:
    """Folders that the user named at the start, or a client with `initialize`."""

    def __init__(self, folders: list[str]) -> None:
        self._folders: list[str] = []
        for folder in folders:
            self.add(folder)

    @property
    def folders(self) -> list[str]:
        """The folders, without links."""
        return list(self._folders)

    def add(self, folder: str) -> None:
        """Allow what is below a folder.

        Raises:
            Refused: it is no folder, or no absolute path.
        """
        real = _real(folder)
        if not os.path.isdir(real):
            raise Refused(INVALID_PARAMS, f"{folder!r} is not a folder; allow one that exists")
        if not self._allows(real):
            self._folders.append(real)

    def resolved(self, path: str) -> str:
        """Return a path without links.

        Raises:
            Refused: it lies outside the allowed folders.
        """
        real = _real(path)
        if not self._allows(real):
            raise Refused(OUTSIDE, f"{path!r} is outside the allowed folders; allow its folder with --allow")
        return real

    def _allows(self, real: str) -> bool:
        return any(os.path.commonpath([real, folder]) == folder for folder in _same_drive(real, self._folders))


def _real(path: str) -> str:
    try:
        if not os.path.isabs(path):
            raise Refused(INVALID_PARAMS, f"{path!r} is not an absolute path")
        return os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise Refused(INVALID_PARAMS, f"{path!r} is not a path: {error}") from error


def _same_drive(path: str, folders: list[str]) -> list[str]:
    drive = os.path.splitdrive(path)[0].lower()
    return [folder for folder in folders if os.path.splitdrive(folder)[0].lower() == drive]
