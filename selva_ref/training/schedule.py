"""The optimiser and its learning rate, as in MMAudio's training: linear warm-up, then two drops near the end."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW


def learning_rate(step: int, *, base: float, warmup: int, total: int) -> float:
    """Learning rate of `step` (from 0): linear over `warmup` steps to `base`, times 0.1 at 80 % and again at 90 %."""
    rate = base * min(1.0, (step + 1) / max(warmup, 1))
    for share in (0.8, 0.9):
        if step >= share * total:
            rate *= 0.1
    return rate


def adamw(parameters: Iterable[nn.Parameter], lr: float) -> AdamW:
    """AdamW with betas (0.9, 0.95) and weight decay 1e-6."""
    return AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=1e-6)
