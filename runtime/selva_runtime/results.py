"""What a session hands out: an encoded clip, stems, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selva_bundle.manifest import Defaults
from selva_runtime.backends.gpu.device_array import DeviceArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A part of a video as the text-free backbone sees it. Keep it while the user tries prompts."""

    duration_s: float
    """May be less than was asked for, when the video ends before."""
    start_s: float
    tokens: npt.NDArray[np.float32] | DeviceArray
    """(segments, tokens per segment, width), float32. With a GPU backend they stay there; `numpy.asarray` copies."""
    source: str | None
    """Path of the video; None when it came as frames."""
    source_duration_s: float | None
    """Length of the whole video, where its container says so."""
    video_start_s: float | None
    """When the video's first frame is presented, on the file's own timeline."""
    warnings: tuple[str, ...]
    backbone: str
    """SHA-256 of the backbone: a clip fits only a bundle with the same one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stem:
    """The sound of one prompt."""

    prompt: str
    take: int
    """From 0."""
    seed: int
    audio: npt.NDArray[np.float32]
    """(samples,) mono, exactly as long as the clip."""
    sample_rate_hz: int
    warnings: tuple[str, ...]
    device_audio: DeviceArray | None = None
    """The same samples on the GPU, for `__cuda_array_interface__`; None unless asked for by `device_output`."""


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """What a session runs, and on what."""

    preset: str
    precision: str
    """The bundle's: "fp32" or "fp16"."""
    compute_precision: str
    """"exact", or "bf16" where that was asked for."""
    weights: str
    """"official", "trained" or "random"."""
    notice: str
    """Licences of the weights, one line to show to the user."""
    backend: str
    backend_reason: str
    """Why this backend: "asked for", or what `auto` found."""
    backend_notice: str
    """The same in a few words for a person; empty where the backend was asked for."""
    sample_rate_hz: int
    image_size: int
    """Height and width of the frames that `encode_frames` takes, pixels."""
    fps: int
    min_duration_s: float
    max_duration_s: float
    defaults: Defaults
