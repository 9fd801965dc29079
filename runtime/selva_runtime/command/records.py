"""The request and the report of one run of `selva-generate`."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What to generate. None means the bundle's default."""

    video: str | os.PathLike[str] | None
    """None: MMAudio makes sound of `duration_s` from the prompts alone."""
    prompts: tuple[str, ...]
    """May be empty for MMAudio."""
    out: str | os.PathLike[str]
    """Folder for the stems. It is made if it does not exist."""
    bundle: str | os.PathLike[str] | None = None
    """None means the environment variable SELVA_BUNDLE, or else the demo in the package."""
    start_s: float = 0.0
    duration_s: float | None = None
    cuts: str | os.PathLike[str] = "auto"
    """"auto" finds the cuts, "none" takes the video for one shot, anything else is a file of times."""
    long: str = "windows"
    """"windows" or "one-pass": how a video that is longer than a window is generated."""
    bed: str | os.PathLike[str] | None = None
    """Bundle of MMAudio that makes one more track of all that it sees, from the same decoding."""
    bed_prompt: str = ""
    bed_gain_db: float = 0.0
    loop: bool = False
    """The end of each stem leads back to its begin."""
    region: tuple[float, float] | None = None
    """Begin and end, in seconds of the stem: this part is generated again, with `region_seed` and `region_prompt`."""
    region_seed: int | None = None
    """None means `seed` + 1."""
    region_prompt: str | None = None
    """None means the stem's own prompt."""
    keep_partial: bool = False
    """If the run is cancelled, keep what each stem has until then."""
    frame_rule: str = "first"
    """"first" or "nearest": the frame that each due time takes."""
    mask: str | os.PathLike[str] | None = None
    """A mask video, a folder of numbered PNGs or one PNG. White keeps, black is filled before the model sees it."""
    mask_fill: str = "grey"
    """"grey", "black" or "blur"."""
    mask_invert: bool = False
    """Black keeps, white is filled."""
    sample_rate_hz: int | None = None
    deliver: str = "wav"
    """"wav", or "post": Broadcast WAV at 48 kHz, with timecode, loudness and one gain for all stems."""
    timecode: str | None = None
    """Timecode of the video's first frame. None means the video's own, or else 00:00:00:00."""
    timelines: tuple[str | os.PathLike[str], ...] = ()
    """Timelines to write, in the formats that their suffixes say."""
    negative: str | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    solver: str | None = None
    """"euler" (None) or "ab2"."""
    quality: str | None = None
    """"best" or "draft": four jumps of the student instead of 25 guided steps. None means the bundle's best."""
    takes: int = 1
    mux: tuple[int, ...] = ()
    """Numbers, from 1, of the prompts whose first take is also put in a copy of the video."""
    backend: str = "auto"
    threads: int | None = None
    """None means as many as the process may use."""
    compute_precision: str = "exact"
    """"exact", "bf16" or "int8"."""
    cache: str | os.PathLike[str] | None = None
    """Folder for what later runs need not compute again. None means SELVA_CACHE, or else the user's cache folder;
    "none" means no cache."""


@dataclass(frozen=True, kw_only=True)
class StemFile:
    """A stem on the disk."""

    prompt: str
    name: str
    """What timelines call it: the prompt, or "mix" or "bed" if there is none."""
    take: int
    """From 1."""
    seed: int
    file: str
    video: str | None
    """Copy of the video with this stem. None if there was no request for one, or it could not be written."""
    samples: int
    sample_rate_hz: int
    duration_s: float
    loudness_lufs: float | None
    """Integrated loudness of the file. None for silence, and unless delivered for post-production."""
    true_peak_db: float | None
    """In dBTP. None as for the loudness."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GenerateReport:
    """What was made, and how. The command prints it with --json."""

    stems: tuple[StemFile, ...]
    bed: StemFile | None
    """None unless one was asked for."""
    video: str | None
    video_duration_s: float | None
    """Length of the whole video, if its container says so."""
    start_s: float
    duration_s: float
    """Length of the part that was used, and of every stem."""
    timecode: str | None
    """Timecode of the video's first frame. None if it has none."""
    gain_db: float | None
    """Gain of all stems, 0 or less. None unless delivered for post-production."""
    frame_rule: str
    mask: str | None
    mask_fill: str | None
    """None without a mask."""
    mask_invert: bool
    seed: int
    steps: int
    guidance: float
    solver: str
    quality: str
    """"best" or "draft"."""
    negative: str | None
    bundle: str
    system: str
    """"selva" or "mmaudio"."""
    preset: str
    precision: str
    """The bundle's: "fp32" or "fp16"."""
    compute_precision: str
    """"exact", "bf16" or "int8"."""
    weights: str
    """"official", "trained" or "random"."""
    backend: str
    backend_reason: str
    """Why that backend: "asked for", or what `auto` found."""
    notice: str
    warnings: tuple[str, ...]
    left_out: tuple[str, ...]
    """What of the video or of a prompt was not used, and what is missing at the end."""
    windows: int
    """In how many windows each stem was generated."""
    joins_s: tuple[float, ...]
    """Where they join, in seconds of the stem."""
    cuts_s: tuple[float, ...]
    """Where a shot begins, in seconds of the stem. Empty if the video is not longer than a window."""
    loop: bool
    region: tuple[float, float] | None
    """The part that was generated again, in seconds of the stem."""
    timelines: tuple[str, ...]
    """The timelines that were written."""
    cancelled: bool
    """Whether the run was cancelled. The stems then end early."""
    timings_s: dict[str, float]
    error: str | None
    """Why a copy of the video could not be written, or a stem ends early, though the stems were written."""
