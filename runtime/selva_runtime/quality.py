"""What the quality of a request means for a bundle.

"best" follows the guided flow. "draft" jumps along its mean velocities with guidance inside the network. So a draft has
no negative prompt, no other solver, and only the guidance that the network was trained with.
"""

from __future__ import annotations

from selva_bundle.errors import RequestError
from selva_bundle.manifest import Manifest
from selva_bundle.ports import BEST, DRAFT
from selva_runtime.request import StemRequest

NOT_A_DRAFT = "a draft has no negative prompt, so this is not a draft but of the quality best"


def choose_quality(manifest: Manifest, asked: str | None, negative: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the quality in which a bundle makes a request, and warnings about it. None means the bundle's best.

    Raises:
        RequestError: the bundle lacks that quality, or only makes drafts and there is a negative prompt.
    """
    quality = manifest.qualities[0] if asked is None else asked
    _check_graphs(manifest, quality)
    if quality != DRAFT or negative is None:
        return quality, ()
    if BEST not in manifest.qualities:
        raise RequestError("this bundle only makes drafts, and a draft has no negative prompt; leave it out")
    return BEST, (NOT_A_DRAFT,)


def default_steps(manifest: Manifest, quality: str) -> int:
    """Return the bundle's number of steps for a quality."""
    return manifest.flow.steps if quality == DRAFT and manifest.flow is not None else manifest.defaults.steps


def check_quality(manifest: Manifest, request: StemRequest) -> None:
    """Check that a bundle can make a request.

    Raises:
        RequestError: it lacks the quality, or was not trained with the guidance.
    """
    _check_graphs(manifest, request.quality)
    if request.quality == DRAFT and manifest.flow is not None:
        low, high = manifest.flow.guidance
        if not low <= request.guidance <= high:
            raise RequestError(f"guidance is {request.guidance:g}; a draft takes a number from {low:g} to {high:g}")


def _check_graphs(manifest: Manifest, quality: str) -> None:
    if quality not in manifest.qualities:
        raise RequestError(f"quality is {quality!r}; this bundle has only {' and '.join(manifest.qualities)}")
