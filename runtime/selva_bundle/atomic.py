"""Write new files whole or not at all, and never overwrite another file.

Hosts poll the output folder, and a user's earlier stems must survive a second run. So a file is written under a
hidden temporary name beside its destination, then linked to the first free name of `name.wav`, `name-2.wav`, …
`atomic_write` replaces one of the project's own files, such as a checkpoint.
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

TEMPORARY = f".selva-{secrets.token_hex(6)}"
"""How the names of this process's unfinished files begin. If it is killed, its parent can remove them."""
FIXES = {
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some space on the disk",
    errno.ENOENT: "create the folder first",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class NewFile:
    """A file that is written under a hidden name beside `wanted`, and appears whole under the first free name.

    Raises:
        OutputError: the folder is missing, is a file, is read-only or is full.
    """

    def __init__(self, wanted: str | os.PathLike[str]) -> None:
        self.wanted = Path(wanted)
        self.temporary = self.wanted.with_name(f"{TEMPORARY}-{secrets.token_hex(4)}.part")
        with output_errors(self.wanted):
            os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))

    def publish(self) -> Path:
        """Give the file the first free name. Return the path that was used.

        Raises:
            OutputError: the folder cannot be written to.
        """
        with output_errors(self.wanted):
            return publish(self.temporary, self.wanted)

    def discard(self) -> None:
        """Remove the temporary file, also after it was published."""
        with suppress(OSError):
            self.temporary.unlink()


def write_new(wanted: str | os.PathLike[str], fill: Callable[[Path], None]) -> Path:
    """Call `fill(temporary path)` to write a file, then give it the first free name. Return the path that was used.

    If `fill` raises, no file is left behind.

    Raises:
        OutputError: the folder is missing, is a file, is read-only or is full.
    """
    new = NewFile(wanted)
    try:
        with output_errors(new.wanted):
            fill(new.temporary)
        return new.publish()
    finally:
        new.discard()


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn a system error into an `OutputError` that names `path`."""
    try:
        yield
    except SelvaError:
        raise
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """Turn a system error into one line that says how to fix it."""
    fix = FIXES.get(error.errno or 0, "choose another folder")
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); {fix}")


def publish(temporary: Path, wanted: Path) -> Path:
    """Give `temporary` the first free name. A link fails if the name is taken, so there is no race.

    Raises:
        OSError: the folder cannot be written to.
    """
    for candidate in candidates(wanted):
        with suppress(FileExistsError):
            try:
                os.link(temporary, candidate)
            except FileExistsError:
                raise
            except OSError:  # no hard links here (exFAT, some network drives)
                move(temporary, candidate)
            return candidate
    raise AssertionError("unreachable: the candidates never run out")


def move(temporary: Path, candidate: Path) -> None:
    """Reserve the name with an empty file, then replace that file.

    Raises:
        FileExistsError: the name is taken.
        OSError: the folder cannot be written to.
    """
    os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        temporary.replace(candidate)
    except BaseException:
        candidate.unlink()
        raise


def candidates(wanted: Path) -> Iterator[Path]:
    """Yield name.wav, name-2.wav, name-3.wav and so on."""
    yield wanted
    for number in count(2):
        yield wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It replaces `path` at the end, or is removed on any error.

    Raises:
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
