"""What `selva-generate` tells the user: notices, warnings, and what of the video was not used."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str, str], None]
"""Called with "notice" or "warning", and a line to show."""


class Messages:
    """Shows lines to the user, and keeps the warnings for the report. `say` None means that nothing is shown."""

    def __init__(self, say: Say | None) -> None:
        self._say = say
        self.warnings: list[str] = []

    def notice(self, text: str) -> None:
        """Show a notice."""
        if self._say is not None:
            self._say("notice", text)

    def warn(self, text: str) -> None:
        """Show and keep a warning."""
        self.warnings.append(text)
        if self._say is not None:
            self._say("warning", text)

    def warn_once(self, texts: list[str]) -> list[str]:
        """Show and keep those warnings that are new. Return all of `texts`."""
        for text in dict.fromkeys(texts):
            if text not in self.warnings:
                self.warn(text)
        return texts
