"""New files that appear whole or not at all, and never in the place of another.

Hosts poll the output folder, and a user's earlier stems must survive a second run. So a file is written under a
hidden temporary name beside its destination, then linked to the first free of `name.wav`, `name-2.wav`, …
A file of the project's own, such as a checkpoint, is replaced: `written_whole`.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from selva_bundle.errors import OutputError, SelvaError

MENDS = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk",
    errno.ENOENT: "make the folder first",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_new(wanted: str | os.PathLike[str], fill: Callable[[Path], None]) -> Path:
    """Let `fill(temporary path)` write a file, then publish it; returns the path really used.

    Nothing is left behind when `fill` raises, whatever it raises.

    Raises:
        OutputError: the folder is missing, is a file, is read-only or full.
    """
    wanted = Path(wanted)
    temporary = wanted.with_name(f".selva-{secrets.token_hex(6)}.part")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        fill(temporary)
        return publish(temporary, wanted)
    except SelvaError:
        raise
    except OSError as error:
        raise output_error(wanted, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def output_error(path: Path, error: OSError) -> OutputError:
    """The one line for what the system said."""
    mend = MENDS.get(error.errno or 0, "choose another folder")
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); {mend}")


def publish(temporary: Path, wanted: Path) -> Path:
    """Give `temporary` the first free name. A link fails where a name is taken: there is no moment to race for."""
    for candidate in candidates(wanted):
        with suppress(FileExistsError):
            try:
                os.link(temporary, candidate)
            except FileExistsError:
                raise
            except OSError:  # no hard links here (exFAT, some network drives)
                move(temporary, candidate)
            return candidate
    raise AssertionError("candidates never end")


def move(temporary: Path, candidate: Path) -> None:
    """Reserve the name by an empty file, then move over that."""
    os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        temporary.replace(candidate)
    except BaseException:
        candidate.unlink()
        raise


def candidates(wanted: Path) -> Iterator[Path]:
    """name.wav, name-2.wav, name-3.wav, …"""
    yield wanted
    for number in count(2):
        yield wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place at the end, or vanishes on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
