"""What a session returns: an encoded clip, stems, and information about the session."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selva_bundle.lengths import LongForm
from selva_bundle.manifest import Defaults
from selva_runtime.backends.gpu.device_array import DeviceArray
from selva_runtime.cache import Rows
from selva_runtime.request import StemRequest
from selva_runtime.windows import Shot


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A part of a video, encoded without any prompt. Keep it while the user tries prompts."""

    duration_s: float
    """Less than the requested duration if the video ends early."""
    start_s: float
    tokens: npt.NDArray[np.float32] | DeviceArray | Rows
    """(segments, tokens per segment, width), float32: the backbone's tokens, or in MMAudio its sync features. Those of
    a clip longer than a window are read from a file when they are needed. A GPU backend keeps the others there.
    `numpy.asarray` copies them."""
    source: str | None
    """Path of the video. None if the caller gave frames."""
    source_duration_s: float | None
    """Length of the whole video, if its container says so."""
    video_start_s: float | None
    """Time of the video's first frame on the file's own timeline."""
    warnings: tuple[str, ...]
    backbone: str
    """SHA-256 of the networks that encoded it. A clip fits only a bundle with the same ones."""
    shots: tuple[Shot, ...]
    """Stretches without a cut. A clip that is not longer than a window has one."""
    pictures: npt.NDArray[np.float32] | Rows | None = None
    """(frames, width) CLIP features of 8 frames a second. None in SelVA."""
    has_video: bool = True
    """False for a clip of `Session.without_video`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StemPart:
    """A part of a stem that is final. The parts of a stem follow each other without a gap."""

    stem: int
    """Index of the stem: all takes of the first prompt, then of the second, and so on."""
    prompt: str
    take: int
    """From 0."""
    seed: int
    first_sample: int
    """Its place in the stem."""
    audio: npt.NDArray[np.float32]
    """(samples,) mono."""
    sample_rate_hz: int
    latents: npt.NDArray[np.float32]
    """(latent, width) that the sound was decoded from, for `Stem.latents`."""
    notes: tuple[str, ...]
    """Warnings about the run until now."""
    device_audio: DeviceArray | None = None
    """The same samples on the GPU. None without `device_output`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stem:
    """The sound of one prompt."""

    prompt: str
    take: int
    """From 0."""
    seed: int
    audio: npt.NDArray[np.float32]
    """(samples,) mono, exactly as long as the clip, or as the loop."""
    sample_rate_hz: int
    warnings: tuple[str, ...]
    latents: npt.NDArray[np.float32]
    """(latent, width) that the sound was decoded from. `Session.regenerate` starts from them."""
    request: StemRequest
    """How it was made."""
    device_audio: DeviceArray | None = None
    """The same samples on the GPU, for `__cuda_array_interface__`. None without `device_output`."""


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """The model, backend and limits of a session."""

    preset: str
    system: str
    """"selva", or "mmaudio", which makes one track of all that it sees and takes an empty prompt."""
    precision: str
    """The bundle's: "fp32" or "fp16"."""
    compute_precision: str
    """"exact", "bf16" or "int8", as the caller asked."""
    weights: str
    """"official", "trained" or "random"."""
    notice: str
    """Licences of the weights, as one line to show to the user."""
    backend: str
    backend_reason: str
    """Why this backend: "asked for", or what `auto` found."""
    backend_notice: str
    """The same in a few words for a person. Empty if the caller named the backend."""
    sample_rate_hz: int
    image_size: int
    """Height and width of the frames for `encode_frames`, pixels."""
    fps: int
    picture_size: int
    """Height and width of the pictures for `encode_frames`, pixels. 0: the model sees none."""
    picture_fps: int
    min_duration_s: float
    max_duration_s: float
    """Longest clip in one pass. Longer videos are generated in windows."""
    window_s: float
    """Longest clip in a single window, the length that the model was trained on."""
    long_form: LongForm
    defaults: Defaults
    qualities: tuple[str, ...]
    """"best", "draft" or both: what `generate` can make. The first is the default."""
