"""Keep text features on the disk, so that another process does not load a text tower for the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from selva_bundle.errors import CacheError
from selva_runtime.backends.executor import Array, Executor, Tensor
from selva_runtime.cache import Cache

_KIND = "text"


class TextCache:
    """The features of one text tower. `key` is what they depend on besides the tokens, `model` is shown to the user.

    They are stored as float32, so they are the same as computed ones.
    """

    def __init__(self, cache: Cache, executor: Executor, key: Mapping[str, object], model: str) -> None:
        self._cache, self._executor, self._key, self._model = cache, executor, key, model

    def find(self, feeds: Mapping[str, Array]) -> Tensor | None:
        """(tokens, width) features of these tokens. None if they must be computed."""
        entry = self._cache.find(_KIND, self._whole_key(feeds))
        try:
            return None if entry is None else self._executor.put(np.asarray(entry.rows))
        except CacheError:  # damaged since it was found
            return None

    def keep(self, feeds: Mapping[str, Array], features: Tensor, prompt: str) -> None:
        """Store features (tokens, width), unless they are not finite."""
        (values,) = self._executor.read(features)
        if np.isfinite(values).all():
            with self._cache.writer(_KIND, self._whole_key(feeds)) as writer:
                writer.append(values)
                writer.commit({"name": prompt, "model": self._model})

    def _whole_key(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        return {**self._key, **{name: values.tolist() for name, values in feeds.items()}}
