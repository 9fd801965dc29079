"""Check the fields of a JSON file: type and range. A wrong field raises a `ValueError` that names it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

SHA256 = r"[0-9a-f]{64}"


def parse(content: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def section(value: object, what: str) -> dict[str, Any]:
    """Return `value`, which must be an object.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    return value


def items(value: object, what: str) -> list[Any]:
    """Return `value`, which must be a list.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, list):
        raise ValueError(f"{what} is not a list")
    return value


def text(value: object, what: str, pattern: str) -> str:
    """Return `value`, which must be a text that `pattern` matches as a whole.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f"{what} is {_shown(value)}")
    return value


def count(value: object, what: str, low: int = 0, high: int = 2**53) -> int:
    """Return `value`, which must be a whole number from `low` to `high`.

    Raises:
        ValueError: it is not.
    """
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {_shown(value)}")
    return value


def number(value: object, what: str, low: float = 0.0, high: float = 1e6) -> float:
    """Return `value`, which must be a number from `low` to `high`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is {_shown(value)}")
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{what} is {_shown(value)}")
    return value


def flag(value: object, what: str) -> bool:
    """Return `value`, which must be true or false.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{what} is {_shown(value)}")
    return value


def _shown(value: object) -> str:
    shown = repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__
    return shown if len(shown) < 60 else f"{shown[:56]} …"
