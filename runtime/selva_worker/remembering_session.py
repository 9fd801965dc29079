"""A session that remembers the clip that it encoded last: another prompt on it needs no encoding, even without a cache.

So `clip.open` is never in vain. One clip is kept, in memory or, if it is longer than a window, in a temporary file.
With a cache, long clips stay there alone: it may remove or repair their files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from selva_runtime.cache import Rows
from selva_runtime.clip_cache import file_identity
from selva_runtime.clip_encoder import AUTO
from selva_runtime.media.masks.filling import GREY
from selva_runtime.media.masks.mask import mask_of
from selva_runtime.progress import Progress
from selva_runtime.results import Clip
from selva_runtime.session import FIRST, Session


class RememberingSession(Session):
    """A session for one job after the other."""

    _part: object = None
    """Which part of which file the clip is."""
    _clip: Clip | None = None

    def encode(
        self,
        path: str | os.PathLike[str],
        *,
        duration_s: float | None = None,
        start_s: float = 0.0,
        cuts: str | Sequence[float] = AUTO,
        frame_rule: str = FIRST,
        mask: str | os.PathLike[str] | None = None,
        mask_fill: str = GREY,
        mask_invert: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Clip:
        """Return the last clip if it is of the same part of the same, unchanged files. Otherwise encode."""
        name = Path(path)
        masked = mask_of(mask, mask_fill, invert=mask_invert)
        masks = [] if masked is None else [(file, file_identity(file)) for file in masked.files()]
        part = (name, file_identity(name), start_s, duration_s, repr(cuts), frame_rule, masked, masks)
        if self._clip is not None and part == self._part:
            return self._clip
        self.forget()
        clip = super().encode(
            path,
            duration_s=duration_s,
            start_s=start_s,
            cuts=cuts,
            frame_rule=frame_rule,
            mask=mask,
            mask_fill=mask_fill,
            mask_invert=mask_invert,
            progress=progress,
            cancel=cancel,
        )
        is_cached = self._cache is not None and isinstance(clip.tokens, Rows)
        if not is_cached:
            self._part, self._clip = part, clip
        return clip

    def forget(self) -> None:
        """Free the clip."""
        self._part = self._clip = None
