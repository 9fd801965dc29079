"""Training errors that a user can fix."""

from __future__ import annotations

from selva_bundle.errors import SelvaError


class TrainingError(SelvaError, ValueError):
    """Data, a run's folder or a setting that training cannot use."""


class SkippedClip(SelvaError, ValueError):  # noqa: N818 -- not a failure: the clip is left out and counted
    """A clip that cannot be used for training; `kind` is "missing", "broken", "short" or "silent"."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
