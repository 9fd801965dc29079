"""Generate stems from a bundle, a video and prompts, without PyTorch.

    session = Session("bundle")
    clip = session.encode("street.mp4")
    stems = session.generate(clip, ["dog barking", "footsteps"], seed=7)

Each name is loaded at its first use, so `import selva_runtime` is cheap for a host.
"""

from importlib import import_module

from selva_bundle.errors import (
    BackendError,
    BundleError,
    CacheError,
    Cancelled,
    DeviceMemoryError,
    MediaError,
    MediaNotFoundError,
    OutputError,
    RequestError,
    SelvaError,
)

TYPE_CHECKING = False  # importing it from typing takes longer than all of this module
if TYPE_CHECKING:
    from selva_bundle.bundle import Bundle
    from selva_runtime.results import Clip, SessionInfo, Stem, StemPart
    from selva_runtime.session import Session, encode_for
    from selva_runtime.video_part import VideoPart

    __version__: str

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CacheError",
    "Cancelled",
    "Clip",
    "DeviceMemoryError",
    "MediaError",
    "MediaNotFoundError",
    "OutputError",
    "RequestError",
    "SelvaError",
    "Session",
    "SessionInfo",
    "Stem",
    "StemPart",
    "VideoPart",
    "encode_for",
]

_LAZY = {
    "Bundle": "selva_bundle.bundle",
    "Clip": "selva_runtime.results",
    "SessionInfo": "selva_runtime.results",
    "Stem": "selva_runtime.results",
    "StemPart": "selva_runtime.results",
    "Session": "selva_runtime.session",
    "VideoPart": "selva_runtime.video_part",
    "encode_for": "selva_runtime.session",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("selva-deploy")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
