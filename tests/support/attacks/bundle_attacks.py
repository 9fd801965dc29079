"""Attacks on a bundle: after any edit a session must give complete stems or one of the project's errors."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from attacks.bundle_edits import ANOTHER_SOUND, HARMLESS, Edit, copy_bundle
from attacks.campaign import DiedError, Fault, Worker

MEMORY_BYTES, MOST_USED_BYTES = 3 << 30, 1 << 30
"""Most memory that a child may map, and most that it may use; the unedited bundle needs 0.2 GB."""
TIME_S = 30.0
LONGEST_MESSAGE = 1000
LONGEST_SILENCE = 64
"""Samples: a stem does not end with more exact zeros than this, unless it was padded."""


class BundleAttacks:
    """Edits copies of `base`, and opens each in a session in a shared child."""

    def __init__(self, base: Path, folder: Path) -> None:
        self._base, self._folder = base, folder
        self._worker = Worker("attacks.bundle_worker", memory_bytes=MEMORY_BYTES, time_s=TIME_S)
        self._right = self._worker.ask({"bundle": str(base), "stems": 2})["stems"]

    def attack(self, edits: Sequence[Callable[[Path, Random], Edit]], random: Random) -> Fault | None:
        """Makes one of the edits."""
        place = self._folder / "attacked"
        place.mkdir()
        try:
            bundle = copy_bundle(self._base, place / "bundle")
            edit = random.choice(edits)(bundle, random)
            found = self._fault(bundle, edit)
        finally:
            shutil.rmtree(place)
        return found and Fault(kind=found[0], attack=edit.what, detail=found[1])

    def close(self) -> None:
        """Ends the child."""
        self._worker.close()

    def _fault(self, bundle: Path, edit: Edit) -> tuple[str, str] | None:
        try:
            outcome = self._worker.ask({"bundle": str(bundle), "stems": 2 if edit.swap else 1, "swap": edit.swap})
        except DiedError as died:
            return _kind(str(died)), str(died)
        if outcome["peak_bytes"] > MOST_USED_BYTES:
            self._worker.restart()
            return "too much memory", f"{outcome['peak_bytes'] / 1e9:.1f} GB; {_described(outcome)}"
        if "error" in outcome:
            return _error_fault(outcome)
        pairs = zip(outcome["stems"], self._right, strict=False)
        faults = (_stem_fault(stem, right, edit.allows) for stem, right in pairs)
        return next(filter(None, faults), None)


def _error_fault(outcome: dict[str, Any]) -> tuple[str, str] | None:
    message = outcome["message"]
    if not outcome["selva"]:
        return _kind(f"{outcome['error']} in {outcome['at']}: {message}"), _described(outcome)
    if len(message.splitlines()) != 1 or any(unicodedata.category(letter) == "Cc" for letter in message):
        return "a message that is not one line without control characters", repr(message[:300])
    if len(message) > LONGEST_MESSAGE:
        return f"a message of more than {LONGEST_MESSAGE} characters", f"{len(message)}: {message[:300]}"
    return None


def _stem_fault(stem: dict[str, Any], right: dict[str, Any], allows: str) -> tuple[str, str] | None:
    if stem["dtype"] != "float32" or stem["shape"] != [stem["wanted_samples"]]:
        return "a stem of a wrong shape", str(stem)
    if not stem["finite"]:
        return "a stem that is not finite", str(stem)
    if stem["silent_at_end"] > LONGEST_SILENCE and stem["silent_at_end"] < stem["wanted_samples"]:
        return "a stem padded with silence", str(stem)
    same = stem["sha256"] == right["sha256"]
    if allows == ANOTHER_SOUND or (allows == HARMLESS and same):
        return None
    return f"a stem where {allows} was due", "the same stem as ever" if same else str(stem)


def _described(outcome: dict[str, Any]) -> str:
    return f"{outcome.get('error', 'a stem')}: {outcome.get('message', '')[:300]}"


def _kind(text: str) -> str:
    """Removes the parts that differ between two faults of one kind."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\d+", "…", next(iter(text.splitlines()), text))[:120]
