"""What one worker process is told to do; travels to it as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, product
from typing import Self

RUNTIME, TORCH = "runtime", "torch"
CPU_BACKENDS = ("cpu", "openvino")
BF16_SUFFIX = "-bf16"
BF16_BACKENDS = (f"openvino{BF16_SUFFIX}",)
"""Backends under the name that they have here when they compute in bfloat16."""

_WHO = ("dog", "cat", "crow", "engine", "drum", "door", "river", "train", "bell", "horse", "saw", "crowd")
_WHAT = ("near the camera", "in the distance", "on the left", "behind a wall", "on gravel", "at night", "in the rain")


@dataclass(frozen=True, kw_only=True)
class SideJob:
    """One of the programs that are compared. All do the same work: the same clip, steps and prompts."""

    label: str
    kind: str
    """`RUNTIME` or `TORCH`."""
    backend: str
    """The runtime's; for PyTorch the device, "cpu" or "cuda"."""
    precision: str
    """What the runtime computes in, "exact" or "bf16"."""
    compiled: bool
    """Whether PyTorch's networks go through torch.compile."""
    bundle: str
    preset: str
    video: str
    duration_s: float
    stems: tuple[int, ...]
    """How many stems of one video to time, 1 first."""
    steps: int
    guidance: float
    threads: int
    keep_text_towers: bool
    audio: str
    """File that the first stem is left in, as a NumPy array."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "stems": tuple(fields["stems"])})

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def endless_prompts() -> Iterator[str]:
    """More prompts than the runtime remembers, so that each is new to it; the same ones for every side."""
    return cycle(f"{who} {what}" for what, who in product(_WHAT, _WHO))
