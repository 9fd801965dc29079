"""One loop that trains any network of the demo. It can resume, and it shows the time left.

The loss depends only on the step: all random numbers are drawn from (seed, step). So an interrupted run resumes exactly
as if it had not stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from selva_bundle.atomic import atomic_write
from selva_ref.training.schedule import adamw, learning_rate


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How long and how fast one network is trained."""

    steps: int
    rate: float
    """Learning rate after the warm-up."""
    warmup: int = 100
    ema: float = 0.999
    """Decay of the averaged weights, which are the result."""
    save_s: float = 60.0
    """Seconds between saved states."""
    bf16: bool = False
    """Matrix products in bfloat16 (weights, norms and losses stay float32)."""


class Console:
    """Prints the progress of a stage as lines suited to a log, one every `every_s`."""

    def __init__(self, stage: str, steps: int, every_s: float = 15.0) -> None:
        self.stage, self.steps, self.every_s = stage, steps, every_s
        self.started, self.said = time.monotonic(), 0.0
        self.first: int | None = None
        self.mean = 0.0

    def step(self, step: int, loss: float) -> None:
        """Call after each step with its loss."""
        if self.first is None:
            self.first = step
        self.mean = loss if self.mean == 0 else 0.98 * self.mean + 0.02 * loss
        now = time.monotonic()
        if now - self.said < self.every_s and step + 1 < self.steps:
            return
        self.said = now
        left_s = (now - self.started) / (step + 1 - self.first) * (self.steps - step - 1)
        print(
            f"{self.stage}: step {step + 1}/{self.steps}  loss {self.mean:.4f}  {left_s / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


def draws(seed: int, stage: str, step: int) -> np.random.Generator:
    """Random numbers for one step of one stage."""
    return np.random.default_rng([seed, *stage.encode(), step])


def fit(stage: str, network: nn.Module, loss_of: Callable[[int], Tensor], plan: Fit, state_path: Path) -> None:
    """Minimises `loss_of(step)` over the trainable parameters of `network`, which gets the averaged weights at the end.

    Resumes from `state_path` after an interruption, and deletes it at the end.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = adamw(parameters.values(), plan.rate)
    averaged = {name: p.detach().clone() for name, p in parameters.items()}
    start = _resume(state_path, parameters, averaged, optimizer)
    console, saved = Console(stage, plan.steps), time.monotonic()
    network.train()
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, base=plan.rate, warmup=plan.warmup, total=plan.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(plan.ema, (step + 1) / (step + 10))
        for name, p in parameters.items():
            averaged[name].lerp_(p.detach(), 1 - decay)
        console.step(step, float(loss.detach()))
        if time.monotonic() - saved > plan.save_s:
            saved = time.monotonic()
            _save(state_path, step + 1, parameters, averaged, optimizer)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(averaged[name])
    network.eval()
    state_path.unlink(missing_ok=True)


def _save(
    path: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    averaged: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {
        "step": step,
        "weights": {name: p.detach() for name, p in parameters.items()},
        "averaged": averaged,
        "optimizer": optimizer.state_dict(),
    }
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def _resume(
    path: Path, parameters: dict[str, nn.Parameter], averaged: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state["weights"][name])
            averaged[name].copy_(state["averaged"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
