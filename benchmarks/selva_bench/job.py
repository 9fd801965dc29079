"""The job of one worker process, sent to it as JSON."""

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
"""Names, in the benchmark only, of backends that compute in bfloat16."""

_WHO = ("dog", "cat", "crow", "engine", "drum", "door", "river", "train", "bell", "horse", "saw", "crowd")
_WHAT = ("near the camera", "in the distance", "on the left", "behind a wall", "on gravel", "at night", "in the rain")


@dataclass(frozen=True, kw_only=True)
class SideJob:
    """One of the compared programs. All do the same work: the same clip, steps and prompts."""

    label: str
    kind: str
    """`RUNTIME` or `TORCH`."""
    backend: str
    """The runtime's backend; for PyTorch the device, "cpu" or "cuda"."""
    precision: str
    """Precision of the runtime's arithmetic, "exact" or "bf16"."""
    compiled: bool
    """Whether PyTorch's networks are compiled with torch.compile."""
    bundle: str
    preset: str
    video: str
    duration_s: float
    stems: tuple[int, ...]
    """Numbers of stems of one video to time; the first is 1."""
    steps: int
    guidance: float
    threads: int
    keep_text_towers: bool
    audio: str
    """File for the first stem, a NumPy array."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "stems": tuple(fields["stems"])})

    def to_json(self) -> str:
        """Serialises to one line of JSON."""
        return json.dumps(asdict(self))


def endless_prompts() -> Iterator[str]:
    """Yields more prompts than the runtime remembers, so that each is new to it; they are the same for every side."""
    return cycle(f"{who} {what}" for what, who in product(_WHAT, _WHO))
