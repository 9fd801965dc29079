"""float32 weights with float32 or bfloat16 arithmetic."""

from __future__ import annotations

import torch

PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which matrix products run in bfloat16 if `precision` is "bf16"; norms and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
