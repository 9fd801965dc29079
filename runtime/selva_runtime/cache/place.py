"""Where the cache is, by the customs of each platform."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from selva_bundle.errors import RequestError

VARIABLE = "SELVA_CACHE"
NO_CACHE = "none"
_LARGE_FILES = Path("/var/tmp")
"""A folder on a disk. /tmp may be in memory."""


def user_caches() -> Path:
    """Return the folder in which this user's programs keep their caches on this platform.

    Raises:
        RuntimeError: the user has no home folder.
    """
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base if base.is_absolute() else home / ".cache"  # as the XDG specification says


def cache_place(place: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of the cache. None means the environment variable SELVA_CACHE, or else the user's own folder.

    "none", as the argument or in the variable, means no cache, and so does a user without a home folder.

    Raises:
        RequestError: the place is empty or no file name.
    """
    if place is None:
        place = os.environ.get(VARIABLE) or None
    if place is None:
        try:
            return user_caches() / ("selva/cache" if sys.platform == "win32" else "selva")
        except RuntimeError:
            return None
    named = os.fspath(place)
    if not named or "\0" in named:
        raise RequestError(f"the cache {named!r} is not a folder's name; give a folder, or {NO_CACHE}")
    return None if named == NO_CACHE else Path(named)


def large_file_folder() -> Path | None:
    """Return where large unnamed files go. None means the platform's folder for temporary files."""
    return _LARGE_FILES if sys.platform.startswith("linux") and os.access(_LARGE_FILES, os.W_OK) else None
