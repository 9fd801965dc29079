"""The mistakes a user can make, as types a program can catch.

Each is also a built-in kind, so that a host that knows nothing of this package still handles it. The message
is one line that names the file or value and says how to mend it; commands print it and exit with code 2.
"""

import unicodedata

_MAX_CHARACTERS = 2000


class SelvaError(Exception):
    """Base of every error that the caller can fix. Its message is one line of bounded length, whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


def _one_line(message: str) -> str:
    """Control characters and line ends become spaces; the middle of a long text goes, because the fix stands last."""
    if len(message) > _MAX_CHARACTERS:
        message = f"{message[: _MAX_CHARACTERS // 2]} … {message[-_MAX_CHARACTERS // 2 :]}"
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in message)


class MediaError(SelvaError, ValueError):
    """A media file that cannot be used: no video stream, no decodable frame, too short, too large."""


class MediaNotFoundError(SelvaError, FileNotFoundError):
    """A media file that is not there."""


class RequestError(SelvaError, ValueError):
    """An argument out of its range: prompt, duration, start, steps, guidance, seed, sample rate."""


class BundleError(SelvaError, ValueError):
    """A bundle that cannot be trusted or understood: missing, altered or extra file, wrong version."""


class OutputError(SelvaError, OSError):
    """A place that cannot be written: a file instead of a folder, read-only, full."""


class BackendError(SelvaError, RuntimeError):
    """A backend that is not installed or cannot run here."""


class DeviceMemoryError(BackendError):
    """Not enough memory on the GPU for what was asked."""


class Cancelled(SelvaError):  # noqa: N818 -- not a failure: the caller asked for it
    """Generation stopped because the caller's cancel event was set."""
