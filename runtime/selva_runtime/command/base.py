"""What every command does with a failure: one line on stderr, exit code 2, and never a traceback for a user's mistake.

With --json among the arguments the same line also goes to stdout as {"error": ...}, for the program that reads it.
Ctrl-C exits with 130 and SIGTERM with 143, as shells expect, after everything unfinished has been cleaned away; see
`signals`. A stderr that cannot be written and a stdout that nobody reads change neither the work nor the exit code; see
`streams`.
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
    """A click command whose every failure is one line, and that knows its version."""

    grace_s = 0.0
    """Seconds in which the command stops by itself after a signal, because it looks at the event in `context.obj`."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The version is the whole program's, so a subcommand has no such option."""
        *own, last = super().get_params(ctx)
        return [*own, last] if ctx.parent else [*own, _VERSION, last]

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command and exit."""
        run_command(self, args, prog_name)


class StoppableCommand(OneLineCommand):
    """One that looks at the event in `context.obj` often enough to stop at a place of its own choice."""

    grace_s = 2.0


def run_command(command: click.Command, args: Sequence[str] | None = None, prog_name: str | None = None) -> NoReturn:
    """Run any click command and exit."""
    secure_standard_streams()
    arguments = list(sys.argv[1:] if args is None else args)
    stop = StopSignals(getattr(command, "grace_s", 0.0))
    try:
        with stop, command.make_context(prog_name or command.name, list(arguments), obj=stop.event) as context:
            command.invoke(context)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
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
        if stop.number is not None:  # it was told to stop, and failed over that: `Cancelled`, an import cut short, …
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
        with suppress(OSError):  # stdout may be what failed; stderr gets the line in any case
            click.echo(json.dumps({"error": line}))
    _end(line, USER_ERROR)


def _stopped(number: int) -> NoReturn:
    _end(f"{_STOPPED[signal.Signals(number)]}: nothing unfinished was left behind", 128 + number)


def _end(line: str, code: int) -> NoReturn:
    click.echo(f"error: {line}", err=True)
    sys.exit(code)
