"""The last step of a float16 export: TensorRT engines, if a library that can build them is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selva_engines import (
    TARGETS,
    BuildRequest,
    EngineError,
    build_engines,
    device_capability,
    installed_targets,
    load_library,
)
from selva_export.errors import ExportError


def engine_target(choice: str) -> str | None:
    """Returns the library for `choice`: its name or "none"; "auto" is the first installed one that can build here.

    Raises:
        ExportError: the named library is not installed. This is checked before the long export.
    """
    if choice == "none":
        return None
    if choice == "auto":
        return next((name for name in installed_targets() if not TARGETS[name].needs_gpu or _has_gpu()), None)
    try:
        load_library(choice)
    except EngineError as error:
        raise ExportError(str(error)) from error
    return choice


def _has_gpu() -> bool:
    try:
        device_capability()
    except EngineError:
        return False
    return True


def build(bundle: Path, target: str, say: Callable[[str], None]) -> Path:
    """Builds all engines of a finished bundle and returns their folder.

    Raises:
        ExportError: the library failed. The bundle does not change, and the message says so.
    """
    say(f"building {target} engines")
    try:
        return build_engines(BuildRequest(bundle=bundle, target=target), say=say).folder
    except EngineError as error:
        raise ExportError(f"{bundle} is complete, but has no engines: {error}") from error
