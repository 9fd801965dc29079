"""Where every command starts: what must be right before its modules are imported.

Imports take from 50 ms to seconds (click, PyTorch). Until a command can listen, Ctrl-C ends the process silently, as
it ends a C program, instead of with a traceback; and no file opened meanwhile gets a closed standard descriptor.
"""

import signal
from importlib import import_module


def fetch() -> None:
    """selva-fetch."""
    _start("selva_ref.weights.fetch")


def export() -> None:
    """selva-export."""
    _start("selva_export.cli")


def engines() -> None:
    """selva-engines."""
    _start("selva_engines.cli")


def generate() -> None:
    """selva-generate."""
    _start("selva_runtime.command.cli")


def bench() -> None:
    """selva-bench."""
    _start("selva_bench.cli")


def train() -> None:
    """selva-train."""
    _start("selva_ref.training.cli")


def _start(module: str) -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from selva_runtime.command.streams import secure_standard_streams

    secure_standard_streams()
    command = import_module(module).main
    from selva_runtime.command.base import run_command

    run_command(command)
