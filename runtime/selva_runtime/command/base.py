"""How every command fails: one line on stderr, exit code 2, and never a traceback for a user's mistake.

If --json is among the arguments, the same line also goes to stdout as {"error": ...}, for the program that reads it.
Ctrl-C exits with 130 and SIGTERM with 143, as shells expect, after unfinished files were removed (see `signals`). The
work and the exit code are the same if stderr cannot be written to or nobody reads stdout (see `streams`).
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

import selva_runtime
from selva_bundle.errors import SelvaError
from selva_runtime.command.signals import StopSignals, TerminatedError
from selva_runtime.command.streams import secure_standard_streams

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
"""click's settings for every command."""

USER_ERROR = 2
CANCELLED = 130
"""As after Ctrl-C."""
_STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def _show_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"{context.command.name} {selva_runtime.__version__}")
        context.exit()


_VERSION = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)


class OneLineCommand(click.Command):
    """A click command that reports every failure in one line and has --version."""

    grace_s = 0.0
    """Seconds to stop by itself after a signal, for a command that checks the event in `context.obj`."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Add --version, except to a subcommand: the version is that of the whole program."""
        *own, last = super().get_params(ctx)
        return [*own, last] if ctx.parent else [*own, _VERSION, last]

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command and exit with its code."""
        run_command(self, args, prog_name)


class StoppableCommand(OneLineCommand):
    """A command that checks the event in `context.obj` often, so that it can stop at a safe place."""

    grace_s = 2.0


def run_command(command: click.Command, args: Sequence[str] | None = None, prog_name: str | None = None) -> NoReturn:
    """Run any click command and exit with its code."""
    secure_standard_streams()
    arguments = list(sys.argv[1:] if args is None else args)
    stop = StopSignals(getattr(command, "grace_s", 0.0))
    try:
        with stop, command.make_context(prog_name or command.name, list(arguments), obj=stop.event) as context:
            command.invoke(context)
    except click.exceptions.Exit as done:
        number = stop.number if done.exit_code == CANCELLED else None
        sys.exit(done.exit_code if number is None else 128 + number)
    except click.UsageError as error:
        _fail(f"{error.format_message()} (--help lists the options)", arguments)
    except click.ClickException as error:
        _fail(error.format_message(), arguments)
    except KeyboardInterrupt:
        _stopped(signal.SIGINT)
    except TerminatedError:
        _stopped(signal.SIGTERM)
    except MemoryError:
        _fail("out of memory", arguments)
    except Exception as error:
        if stop.number is not None:  # it failed because it was told to stop: `Cancelled`, an interrupted import, …
            _stopped(stop.number)
        if isinstance(error, (OSError, SelvaError)):
            _fail(_message(error), arguments)
        raise
    sys.exit(0)


def _message(error: OSError | SelvaError) -> str:
    if isinstance(error, SelvaError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _fail(message: str, arguments: Sequence[str]) -> NoReturn:
    line = " ".join(message.split())
    if "--json" in arguments:
        with suppress(OSError):  # stdout may be what failed; the line goes to stderr anyway
            click.echo(json.dumps({"error": line}))
    _end(line, USER_ERROR)


def _stopped(number: int) -> NoReturn:
    _end(f"{_STOPPED[signal.Signals(number)]}: no partial file was left", 128 + number)


def _end(line: str, code: int) -> NoReturn:
    click.echo(f"error: {line}", err=True)
    sys.exit(code)
