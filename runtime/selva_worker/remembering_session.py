"""A session that remembers the clip that it encoded last: another prompt on it needs no encoding, even without a cache.

So `clip.open` is never in vain. One clip is kept, in memory or, if it is longer than a window, in a temporary file.
With a cache, long clips stay there alone: it may remove or repair their files.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

from selva_runtime.cache import Rows
from selva_runtime.clip_cache import file_identity
from selva_runtime.media.masks.mask import mask_of
from selva_runtime.progress import Progress
from selva_runtime.results import Clip
from selva_runtime.session import Session
from selva_runtime.video_part import VideoPart


class RememberingSession(Session):
    """A session for one job after the other."""

    _which: object = None
    """Which part of which file the clip is."""
    _clip: Clip | None = None

    def encode_part(
        self,
        path: str | os.PathLike[str],
        part: VideoPart,
        *,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Clip:
        """Return the last clip if it is of the same part of the same, unchanged files. Otherwise encode."""
        name = Path(path)
        masked = mask_of(part.mask, part.mask_fill, invert=part.mask_invert)
        files = [name] if masked is None else [name, *masked.files()]
        which = repr(part), [(file, file_identity(file)) for file in files]
        if self._clip is not None and which == self._which:
            return self._clip
        self.forget()
        clip = super().encode_part(path, part, progress=progress, cancel=cancel)
        is_cached = self._cache is not None and isinstance(clip.tokens, Rows)
        if not is_cached:
            self._which, self._clip = which, clip
        return clip

    def forget(self) -> None:
        """Free the clip."""
        self._which = self._clip = None
