"""Check what a client asks for before it is queued: names, types and paths. The engine checks the values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from selva_worker.folders import AllowedFolders
from selva_worker.protocol import INVALID_PARAMS, Refused

MAX_JOB_BYTES = 32_768
"""Size of a job's request as JSON. It fits in a pipe's buffer, so that handing it to the engine never blocks."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _or_null(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


GENERATE_OPTIONS: Mapping[str, Callable[[object], bool]] = {
    "video": _or_null(_is_text),
    "prompts": _list_of(_is_text),
    "out": _is_text,
    "start_s": _is_number,
    "duration_s": _or_null(_is_number),
    "cuts": _is_text,
    "long": _is_text,
    "loop": _is_flag,
    "region": _or_null(lambda value: _list_of(_is_number)(value) and len(value) == 2),  # type: ignore[arg-type]
    "region_seed": _or_null(_is_whole),
    "region_prompt": _or_null(_is_text),
    "frame_rule": _is_text,
    "mask": _or_null(_is_text),
    "mask_fill": _is_text,
    "mask_invert": _is_flag,
    "sample_rate_hz": _or_null(_is_whole),
    "negative": _or_null(_is_text),
    "seed": _is_whole,
    "steps": _or_null(_is_whole),
    "guidance": _or_null(_is_number),
    "solver": _or_null(_is_text),
    "quality": _or_null(_is_text),
    "takes": _is_whole,
    "mux": _list_of(_is_whole),
    "deliver": _is_text,
    "timecode": _or_null(_is_text),
    "timelines": _list_of(_is_text),
}
"""What `job.submit` may ask for, by the names in `GenerateRequest`. The worker's start fixed the other fields."""
_ENCODE = ("start_s", "duration_s", "cuts", "frame_rule", "mask", "mask_fill", "mask_invert")
ENCODE_OPTIONS = {"video": _is_text, **{name: GENERATE_OPTIONS[name] for name in _ENCODE}}
FOUND_OR_NOT = ("auto", "none")
"""What `cuts` may be, besides a file."""


def checked_generate(request: Any, folders: AllowedFolders) -> dict[str, Any]:
    """Return the request with its paths resolved.

    Raises:
        Refused: a name or type is wrong, or a path is outside the allowed folders.
    """
    found = _checked(request, GENERATE_OPTIONS, ("video", "prompts", "out"))
    if "timelines" in found:
        found["timelines"] = [folders.resolved(path) for path in found["timelines"]]
    return _resolved(found, folders)


def checked_encode(request: Any, folders: AllowedFolders) -> dict[str, Any]:
    """Return the request with its paths resolved.

    Raises:
        Refused: a name or type is wrong, or a path is outside the allowed folders.
    """
    return _resolved(_checked(request, ENCODE_OPTIONS, ("video",)), folders)


def _resolved(found: dict[str, Any], folders: AllowedFolders) -> dict[str, Any]:
    for name in ("video", "out", "cuts", "mask"):
        if found.get(name) is not None and not (name == "cuts" and found[name] in FOUND_OR_NOT):
            found[name] = folders.resolved(found[name])
    return found


def _checked(request: Any, options: Mapping[str, Callable[[object], bool]], needed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(request, dict):
        raise Refused(INVALID_PARAMS, "the request is not an object with names")
    for name in needed:
        if name not in request:
            raise Refused(INVALID_PARAMS, f"the request needs {name!r}")
    for name, value in request.items():
        if name not in options:
            raise Refused(INVALID_PARAMS, f"the request has the unknown option {name!r}; take {', '.join(options)}")
        if not options[name](value):
            raise Refused(INVALID_PARAMS, f"the option {name!r} has the wrong type")
    if len(json.dumps(request)) > MAX_JOB_BYTES:
        raise Refused(INVALID_PARAMS, f"the request is longer than {MAX_JOB_BYTES} bytes")
    return dict(request)
