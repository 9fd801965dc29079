"""Errors that a user can fix, as types that a program can catch.

Each type is also a built-in one, so a host that does not know this package still handles it. The message is one
line. It names the file or value and says how to fix it. Commands print it and exit with code 2.
"""

import unicodedata

_MAX_CHARACTERS = 2000


class SelvaError(Exception):
    """Base of every error that the caller can fix. The message is one line of bounded length, whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


def _one_line(message: str) -> str:
    """Replace control characters and line ends with spaces. Cut a long text in the middle: the fix is at the end."""
    if len(message) > _MAX_CHARACTERS:
        message = f"{message[: _MAX_CHARACTERS // 2]} … {message[-_MAX_CHARACTERS // 2 :]}"
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in message)


class MediaError(SelvaError, ValueError):
    """A media file that cannot be used: no video stream, no decodable frame, too short, too large."""


class MediaNotFoundError(SelvaError, FileNotFoundError):
    """A media file that is not there."""


class RequestError(SelvaError, ValueError):
    """An argument that is out of range: prompt, duration, start, steps, guidance, seed, sample rate."""


class BundleError(SelvaError, ValueError):
    """A bundle that cannot be trusted or understood: missing, altered or extra file, wrong version."""


class OutputError(SelvaError, OSError):
    """A place that cannot be written to: a file instead of a folder, read-only, full."""


class CacheError(SelvaError, OSError):
    """An encoded clip that can no longer be read from the disk. A damaged entry of the cache was removed."""


class BackendError(SelvaError, RuntimeError):
    """A backend that is not installed or cannot run here."""


class DeviceMemoryError(BackendError):
    """The GPU does not have enough memory for the request."""


class Cancelled(SelvaError):  # noqa: N818 -- not a failure: the caller asked for it
    """Generation stopped because the caller's cancel event was set."""
