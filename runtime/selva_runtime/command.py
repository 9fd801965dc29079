"""What every command does with a failure: one line on stderr, exit code 2, and never a traceback for a user's mistake.

With --json among the arguments the same line also goes to stdout as {"error": ...}, for the program that reads it.
Ctrl-C exits with 130 and SIGTERM with 143, as shells expect, after everything unfinished has been cleaned away.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from .errors import SelvaError

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
"""click's settings for every command."""

USER_ERROR = 2
INTERRUPTED = 130
TERMINATED = 143


class _TerminatedError(BaseException):
    """SIGTERM, as an exception that unwinds like Ctrl-C does."""


class OneLineCommand(click.Command):
    """A click command whose every failure is one line."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command and exit."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            with _sigterm_unwinds(), self.make_context(prog_name or self.name, list(arguments)) as context:
                self.invoke(context)
        except click.exceptions.Exit as done:
            sys.exit(done.exit_code)
        except click.UsageError as error:
            _fail(f"{error.format_message()} (--help lists the options)", arguments)
        except KeyboardInterrupt:
            _stop("interrupted: nothing unfinished was left behind", INTERRUPTED)
        except _TerminatedError:
            _stop("terminated: nothing unfinished was left behind", TERMINATED)
        except MemoryError:
            _fail("out of memory", arguments)
        except OSError as error:
            _fail(_message(error), arguments)
        except SelvaError as error:
            _fail(str(error), arguments)
        sys.exit(0)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    def terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _message(error: OSError) -> str:
    if isinstance(error, SelvaError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _fail(message: str, arguments: Sequence[str]) -> NoReturn:
    line = " ".join(message.split())
    if "--json" in arguments:
        click.echo(json.dumps({"error": line}))
    _stop(line, USER_ERROR)


def _stop(line: str, code: int) -> NoReturn:
    click.echo(f"error: {line}", err=True)
    sys.exit(code)
