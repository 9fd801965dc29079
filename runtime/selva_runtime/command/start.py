"""The entry points of all commands, and what they set up before they import their modules.

Imports take from 50 ms to seconds (click, PyTorch). Until a command handles signals, Ctrl-C ends the process silently,
as it ends a C program, not with a traceback. A file that is opened meanwhile never gets the number of a closed
standard stream.
"""

import signal
import sys
from importlib import import_module


def fetch() -> None:
    """Run selva-fetch."""
    _start("selva_ref.weights.fetch", extra="export")


def export() -> None:
    """Run selva-export."""
    _start("selva_export.cli", extra="export")


def engines() -> None:
    """Run selva-engines."""
    _start("selva_engines.cli")


def generate() -> None:
    """Run selva-generate."""
    _start("selva_runtime.command.cli")


def worker() -> None:
    """Run selva-worker."""
    _start("selva_worker.cli", extra="web")


def cache() -> None:
    """Run selva-cache."""
    _start("selva_runtime.command.cache")


def bench() -> None:
    """Run selva-bench."""
    _start("selva_bench.cli", extra="bench")


def train() -> None:
    """Run selva-train."""
    _start("selva_ref.training.cli", extra="train")


def _start(module: str, extra: str = "") -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from selva_runtime.command.streams import secure_standard_streams

    secure_standard_streams()
    try:
        command = import_module(module).main
        from selva_runtime.command.base import run_command

        run_command(command)
    except ModuleNotFoundError as error:
        if not extra:
            raise
        sys.stderr.write(f"error: the module {error.name} is not installed: pip install 'selva-deploy[{extra}]'\n")
        sys.exit(2)
