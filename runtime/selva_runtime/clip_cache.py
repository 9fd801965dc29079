"""Keep encoded clips in the cache, so that a video is encoded once whatever is done with it later.

A clip is found by the content of its video, not by its name. Its tokens are stored as float32, so a stem is the same
with and without a cache: float16 costs some stems more than -60 dB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selva_runtime.backends.executor import Tensor
from selva_runtime.cache import Cache, RowWriter, temporary_rows
from selva_runtime.results import Clip
from selva_runtime.windows import Shot

Float32 = npt.NDArray[np.float32]
_KIND, _PICTURES = "clip", "pictures"
_VERSION = 1
"""Counts up when the same frames would be encoded in another way."""
_FACTS = ("duration_s", "start_s", "source_duration_s", "video_start_s", "warnings", "backbone")
"""What is stored of a clip besides its tokens, its shots and the name of its file."""


class ClipCache:
    """The entries of one part of one video, if there is a cache. `key` says what its tokens depend on.

    The features of the image tower are an entry of their own.
    """

    def __init__(self, cache: Cache | None, key: Mapping[str, object]) -> None:
        self._cache, self._key = cache, {"version": _VERSION, **key}

    def find(self, path: str | os.PathLike[str], *, pictures: bool = False) -> Clip | None:
        """Return the clip with its tokens in the file, or None if there is none or it was damaged.

        With `pictures` it must have the features of the image tower.
        """
        entry = None if self._cache is None else self._cache.find(_KIND, self._key)
        seen = None if self._cache is None or not pictures else self._cache.find(_PICTURES, self._key)
        if entry is None or (pictures and seen is None):
            return None
        try:
            known = {field: entry.facts[field] for field in _FACTS}
            shots = tuple(Shot(**shot) for shot in entry.facts["shots"])
            warnings = (*known.pop("warnings"), *self.warnings())
            rows = None if seen is None else seen.rows
            return Clip(
                tokens=entry.rows, source=os.fspath(path), shots=shots, warnings=warnings, pictures=rows, **known
            )
        except (KeyError, TypeError):
            return None

    def writer(self) -> RowWriter:
        """Return a writer of tokens. Without a cache it writes to a temporary file."""
        return self._writer(_KIND)

    def picture_writer(self) -> RowWriter:
        """Return a writer of the image tower's features. Without a cache it writes to a temporary file."""
        return self._writer(_PICTURES)

    def _writer(self, kind: str) -> RowWriter:
        return temporary_rows() if self._cache is None else self._cache.writer(kind, self._key)

    def keep_pictures(self, clip: Clip, pictures: Float32 | RowWriter, *, store: bool) -> Clip:
        """Give a clip its features of the image tower (frames, width), and `store` them."""
        facts = {"name": Path(clip.source or "").name}
        if isinstance(pictures, RowWriter):
            if not store:
                pictures.abandon()
            return replace(clip, pictures=pictures.commit(facts))
        if self._cache is not None and store:
            with self.picture_writer() as writer:
                writer.append(pictures)
                writer.commit(facts)
        return replace(clip, pictures=pictures)

    def keep(self, clip: Clip, tokens: Tensor | RowWriter, *, store: bool) -> Clip:
        """Give a clip its tokens (segments, tokens, width), and `store` them."""
        facts = {field: getattr(clip, field) for field in _FACTS}
        facts |= {"name": Path(clip.source or "").name, "shots": [asdict(shot) for shot in clip.shots]}
        if isinstance(tokens, RowWriter):
            if not store:
                tokens.abandon()
            clip = replace(clip, tokens=tokens.commit(facts))
        else:
            clip = replace(clip, tokens=tokens)
            if self._cache is not None and store:
                with self.writer() as writer:
                    writer.append(np.asarray(tokens))
                    writer.commit(facts)
        return replace(clip, warnings=(*clip.warnings, *self.warnings()))

    def warnings(self) -> tuple[str, ...]:
        """Return what went wrong with the cache since the last call."""
        return () if self._cache is None else self._cache.new_warnings()


def file_identity(path: Path) -> tuple[int, ...] | None:
    """Numbers that change when a file is written to or replaced, or None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
