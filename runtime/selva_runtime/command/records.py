"""The request and the report of one run of `selva-generate`."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What to generate. None means the bundle's default."""

    video: str | os.PathLike[str]
    prompts: tuple[str, ...]
    out: str | os.PathLike[str]
    """Folder for the stems. It is made if it does not exist."""
    bundle: str | os.PathLike[str] | None = None
    """None means the environment variable SELVA_BUNDLE, or else the demo in the package."""
    start_s: float = 0.0
    duration_s: float | None = None
    sample_rate_hz: int | None = None
    negative: str | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    solver: str | None = None
    """"euler" (None) or "ab2"."""
    takes: int = 1
    mux: tuple[int, ...] = ()
    """Numbers, from 1, of the prompts whose first take is also put in a copy of the video."""
    backend: str = "auto"
    threads: int | None = None
    """None means as many as the process may use."""
    compute_precision: str = "exact"
    """"exact" or "bf16"."""
    cache: str | os.PathLike[str] | None = None
    """Folder for what later runs need not compute again. None means SELVA_CACHE, or else the user's cache folder;
    "none" means no cache."""


@dataclass(frozen=True, kw_only=True)
class StemFile:
    """A stem on the disk."""

    prompt: str
    take: int
    """From 1."""
    seed: int
    file: str
    video: str | None
    """Copy of the video with this stem. None if there was no request for one, or it could not be written."""
    samples: int
    sample_rate_hz: int
    duration_s: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GenerateReport:
    """What was made, and how. The command prints it with --json."""

    stems: tuple[StemFile, ...]
    video: str
    video_duration_s: float | None
    """Length of the whole video, if its container says so."""
    start_s: float
    duration_s: float
    """Length of the part that was used, and of every stem."""
    seed: int
    steps: int
    guidance: float
    solver: str
    negative: str | None
    bundle: str
    preset: str
    precision: str
    """The bundle's: "fp32" or "fp16"."""
    compute_precision: str
    """"exact" or "bf16"."""
    weights: str
    """"official", "trained" or "random"."""
    backend: str
    backend_reason: str
    """Why that backend: "asked for", or what `auto` found."""
    notice: str
    warnings: tuple[str, ...]
    timings_s: dict[str, float]
    error: str | None
    """Why a copy of the video could not be written, though all stems were."""
