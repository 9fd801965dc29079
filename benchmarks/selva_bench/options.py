"""The options of a run, checked, and the error that stops a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selva_bundle.ports import BEST, DRAFT
from selva_runtime import SelvaError

MAX_STEMS = 64
AUTO, ALL = "auto", "all"
BASELINES = ("torch", "torch-compile")


class BenchError(SelvaError, RuntimeError):
    """A benchmark that cannot run as requested; the message says how to fix it."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What the user asked for, checked when created. All sides do the same work: the same video, steps and prompts.

    Raises:
        BenchError: the options contradict each other, or one is out of range.
    """

    bundle: Path | None
    preset: str | None
    """Instead of `bundle`: a bundle of this preset is exported, with random weights."""
    random_weights: bool
    precision: str | None
    """Only with `preset`; None means fp32."""
    cache: Path
    """Folder of the exported bundles."""
    backends: tuple[str, ...]
    """Names of the runtime's backends, possibly with a precision ("openvino-bf16"), or `AUTO` or `ALL`."""
    baselines: tuple[str, ...]
    stems: tuple[int, ...]
    """Numbers of stems of one video to time; 1 is always timed."""
    duration_s: float
    video: Path
    steps: int
    rounds: int
    threads: int
    keep_text_towers: bool
    out: Path
    quiet: bool = False
    quality: str = BEST
    """"best", or "draft": every side makes its stems in jumps, PyTorch too."""

    def __post_init__(self) -> None:
        if (self.bundle is None) == (self.preset is None):
            raise BenchError("give a BUNDLE, or --preset with --random-weights to export one")
        if self.bundle is not None and (self.random_weights or self.precision):
            raise BenchError("--random-weights and --precision are for --preset; a BUNDLE has its own")
        if self.preset is not None and not self.random_weights:
            raise BenchError("--preset needs --random-weights; for real weights export a bundle and give that")
        if unknown := [name for name in self.baselines if name not in BASELINES]:
            raise BenchError(f"no baseline {unknown[0]!r}; choose one of {', '.join(BASELINES)}")
        if not self.backends:
            raise BenchError("no backend given; name one with --backend, or all")
        if {AUTO, ALL} & {*self.backends} and len(self.backends) > 1:
            raise BenchError("--backend auto and --backend all cannot be combined with other backends")
        if not self.stems or not all(isinstance(n, int) and 1 <= n <= MAX_STEMS for n in self.stems):
            given = ",".join(map(str, self.stems))
            raise BenchError(f"--stems is {given!r}; give numbers from 1 to {MAX_STEMS}, such as 1,4")

    @property
    def exported_precision(self) -> str:
        """Precision of the weights of an exported bundle."""
        return self.precision or "fp32"

    @property
    def bundle_folder(self) -> Path:
        """The bundle to measure: the one given, or the one exported to the cache."""
        kind = f"{self.exported_precision}-{DRAFT}" if self.quality == DRAFT else self.exported_precision
        return self.bundle or self.cache / f"selva-bench-{self.preset}-{kind}"

    @property
    def stem_counts(self) -> list[int]:
        """Numbers of stems to time, ascending from 1."""
        return sorted({1, *self.stems})
