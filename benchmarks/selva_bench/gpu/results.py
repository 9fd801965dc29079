"""The file of results: written whole after each part, and clean of what identifies the machine or its owner."""

from __future__ import annotations

import getpass
import json
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from selva_bench.gpu.parts import PARTS
from selva_bench.options import BenchError
from selva_bench.worker import without_folders
from selva_bundle.atomic import atomic_write

_CHECK, FORMAT_VERSION = "selva-bench gpu-check", 1
_SECRETS = (
    (re.compile(r"\b[A-Za-z]:\\(?:[^\\\s'\"]+\\)*"), ""),  # folders on Windows
    (re.compile(r"\b(?:GPU|MIG)-[0-9a-fA-F-]{8,}"), "…"),  # a GPU's own number
)


def clean(value: Any) -> Any:
    """Removes folders and the names of the host, the user and the GPU's own number from every text."""
    if isinstance(value, dict):
        return {name: clean(item) for name, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if not isinstance(value, str):
        return value
    for pattern, instead in _SECRETS:
        value = pattern.sub(instead, value)
    value = without_folders(value)
    for name in _own_names():
        value = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", value)
    return value


def _own_names() -> set[str]:
    names = {platform.node(), platform.node().partition(".")[0]}
    with suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    return names - {""}


class Results:
    """The file of results. `document` has the setting and, by name, each part's status, seconds and rows.

    Raises:
        BenchError: the file has results of another setting, or is none of this check.
    """

    def __init__(self, path: Path, setting: dict[str, Any] | None) -> None:
        self.path = path
        self.document: dict[str, Any] = {
            "check": _CHECK,
            "format_version": FORMAT_VERSION,
            "setting": setting,
            "parts": {},
        }
        if path.is_file() or setting is None:
            self._read(setting)

    def _read(self, setting: dict[str, Any] | None) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            known = (found["check"], found["format_version"]) == (_CHECK, FORMAT_VERSION)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise BenchError(f"{self.path} has no results of this check; choose another --out")
        for key, value in (setting or {}).items():
            if (other := found["setting"].get(key)) != value:
                raise BenchError(f"{self.path} has results of another {key} ({other}); choose another --out")
        self.document = found

    def is_done(self, name: str) -> bool:
        """Whether the part need not run again."""
        return bool(self.document["parts"].get(name, {}).get("status") == "ok")

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Stores the result of a part and writes the file."""
        parts = self.document["parts"]
        parts[name] = clean(result)
        self.document["parts"] = {each: parts[each] for each in PARTS if each in parts}
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
