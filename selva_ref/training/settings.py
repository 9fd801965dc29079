"""The settings of a run: those that determine its losses, and those that may change whenever it resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selva_ref.training.errors import TrainingError
from selva_ref.training.precision import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The user's choices that determine the losses.

    Raises:
        TrainingError: one is out of range.
    """

    steps: int
    batch: int
    """Clips per step, over all processes."""
    seed: int = 0
    learning_rate: float = 1e-4
    warmup: int = 1000
    """Steps until the full learning rate is reached."""
    alpha: float = 1.0
    """The target's share of the picture is drawn from Beta(alpha, alpha)."""
    absent: float = 0.0
    """Probability that the text names something that neither video shows. Then silence is right."""
    holdout: int = 16
    """Clips kept out of training for validation."""
    teacher_steps: int = 25
    """Student: steps of the guided teacher's path."""
    spans: int = 8
    """Student: jumps along each path that it learns."""
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "teacher_steps", "spans"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name.replace('_', ' ')} {getattr(self, name)}: must be at least 1")
        for name in ("seed", "warmup", "holdout"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} {getattr(self, name)}: must not be negative")
        for name in ("learning_rate", "alpha"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name.replace('_', ' ')} {getattr(self, name)}: must be above 0")
        if not 0 <= self.absent < 1:
            raise TrainingError(f"absent {self.absent}: must be from 0 to below 1")
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision {self.precision}: must be one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True, kw_only=True)
class RunSettings(Choices):
    """The settings that determine the losses. A run must resume with the same ones."""

    stage: str
    """"stage1", "stage2" or "distill"."""
    preset: str
    data_sha256: str
    """SHA-256 of the usable clips, as `Features.sha256`."""
    start_sha256: str
    """SHA-256 of the initial checkpoints."""


@dataclass(frozen=True, kw_only=True)
class RunPlace:
    """Where and how a run is computed. This changes the losses only by rounding."""

    out: Path
    """Folder of the trained checkpoints. It has a subfolder, named after the stage, for the run's own files."""
    accumulate: int = 1
    """Number of parts in which a process computes its share of a batch, one after the other."""
    workers: int = 0
    """Number of decoding processes for each training process."""
    save_every: int = 1000
    """Steps between two saved states."""
    validate_every: int = 5000
    """Steps between two validations."""
    average_width: float = 0.05
    """Relative width of the average in the checkpoint: standard deviation of its profile, in run lengths."""

    def __post_init__(self) -> None:
        for name in ("accumulate", "save_every", "validate_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name.replace('_', ' ')} {getattr(self, name)}: must be at least 1")
        if not 0.01 <= self.average_width <= 0.25:
            raise TrainingError(f"average width {self.average_width}: must be from 0.01 to 0.25")
