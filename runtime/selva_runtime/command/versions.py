"""The versions that a report of a problem needs. It imports none of the packages, so a light process can use it too."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = (
    "selva-deploy",
    "numpy",
    "av",
    "soundfile",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "cuda-python",
    "tensorrt",
    "tensorrt-rtx-cu13",
)
"""Packages that the runtime uses, by their names in pip."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that the runtime uses."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
