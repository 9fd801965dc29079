"""Load TensorRT or TensorRT-RTX: the same Python API under two module names, each an extra.

No other module imports them. Both have only strongly typed networks (TensorRT since version 11). So the ONNX file sets
the precision, and there is no precision flag.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from selva_engines.errors import EngineLibraryError


@dataclass(frozen=True, kw_only=True)
class Target:
    """One of the two libraries."""

    name: str
    """Name on the command line, and of the extra that installs the library."""
    module: str
    oldest: tuple[int, int]
    """First version that is known to work, (major, minor)."""
    needs_gpu: bool
    """Whether a build needs a GPU of the kind that will run the engine."""


TARGETS = {
    target.name: target
    for target in (
        Target(name="tensorrt-rtx", module="tensorrt_rtx", oldest=(1, 7), needs_gpu=False),
        Target(name="tensorrt", module="tensorrt", oldest=(11, 0), needs_gpu=True),
    )
}


class Library:
    """A loaded library. `api` is its module, `log` its messages, `logger` the logger for its objects."""

    def __init__(self, target: Target, api: Any) -> None:
        self.target = target
        self.api = api
        self.version = str(api.__version__)
        self.log = Log()
        self.logger = _make_logger(api, self.log)


class Log:
    """Collects the library's messages. The library logs from its own threads, where nothing may raise."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.details: list[str] = []

    def clear(self) -> None:
        """Forget all messages. Call this before each use of the library."""
        self.errors.clear()
        self.details.clear()

    def error_line(self) -> str:
        """Return all errors as one line, cut to a readable length."""
        text = "; ".join(" ".join(error.split()) for error in dict.fromkeys(self.errors))
        return (text[:399] + "…") if len(text) > 400 else text or "no reason given"


def installed_targets() -> list[str]:
    """Return the names of the targets whose library can be loaded here, TensorRT-RTX first."""
    return [name for name in TARGETS if _can_load(name)]


def load_library(target: str) -> Library:
    """Load the library of a target.

    Raises:
        EngineLibraryError: the target is unknown, or its library is not installed or too old. The message says which
            extra to install.
    """
    if target not in TARGETS:
        raise EngineLibraryError(f"unknown target {target!r}; choose one of {', '.join(TARGETS)}")
    wanted = TARGETS[target]
    install = f"pip install 'selva-deploy[{wanted.name}]'"
    try:
        api = importlib.import_module(wanted.module)
        version = str(api.__version__)
    except Exception as error:  # a missing module or a broken library: each package fails in its own way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EngineLibraryError(f"target {target} needs the module {wanted.module}: {install} ({reason})") from error
    oldest = ".".join(map(str, wanted.oldest))
    if tuple(int(part) for part in version.split(".")[:2]) < wanted.oldest:
        raise EngineLibraryError(f"{wanted.module} {version} is older than {oldest}: {install} --upgrade")
    return Library(wanted, api)


def _can_load(target: str) -> bool:
    try:
        load_library(target)
    except EngineLibraryError:
        return False
    return True


def _make_logger(api: Any, log: Log) -> Any:
    severity = api.ILogger.Severity

    class Logger(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                log.errors.append(message)
            elif level == severity.VERBOSE and ", LayerType: " in message:
                log.details.append(message)

    return Logger()
