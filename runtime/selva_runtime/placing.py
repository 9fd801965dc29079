"""Where a text tower with few words places a prompt: with one of the sounds that its model makes, or with none.

A bundle of such a model lists prompts that it hears and some that it does not. What is near the latter is not heard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError
from selva_bundle.manifest import Manifest
from selva_runtime.turns import Turns

Means = npt.NDArray[np.float32]
"""T5 features of prompts, averaged over the tokens of each: (prompts, width)."""


def is_heard_not(prompt_D: Means, hears_ND: Means, hears_not_MD: Means) -> bool:
    """Whether a prompt is nearer to something that the model does not hear than to all that it does (Euclidean)."""
    nearest, nearest_not = (
        np.linalg.norm(known - prompt_D, axis=1).min(initial=np.inf) for known in (hears_ND, hears_not_MD)
    )
    return bool(nearest_not < nearest)


class Placing:
    """Places prompts by the `means` of a bundle's T5 tower, in one of `turns`."""

    def __init__(self, manifest: Manifest, means: Callable[[Sequence[str], Event | None], Means], turns: Turns) -> None:
        self._hears, self._hears_not = manifest.hears, manifest.hears_not
        self._means = means
        self._turns = turns
        self._known: tuple[Means, Means] | None = None

    def heard_not(self, prompts: Sequence[str], cancel: Event | None) -> set[str]:
        """Return the prompts that name none of the sounds. There are none if the bundle or the backend cannot tell.

        Raises:
            BundleError: a file was altered.
            Cancelled: `cancel` was set.
        """
        if not self._hears_not:
            return set()
        with suppress(BackendError), self._turns.take(cancel):
            lists = [*self._hears, *self._hears_not] if self._known is None else []
            means = self._means([*lists, *prompts], cancel)  # all in one call, so that the tower is loaded once
            if self._known is None:
                self._known = means[: len(self._hears)], means[len(self._hears) : len(lists)]
            places = zip(prompts, means[len(lists) :], strict=True)
            return {prompt for prompt, mean in places if is_heard_not(mean, *self._known)}
        return set()
