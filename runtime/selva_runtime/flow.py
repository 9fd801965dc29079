"""Integrate the learned flow from noise to latents with Euler steps. Guidance is computed inside the graph.

NumPy draws the noise on the CPU from (seed, stem index, take). So a seed sounds the same on every backend, and a stem
does not change when prompts or takes are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError
from selva_bundle.ports import GUIDED_STEP
from selva_runtime.backends.executor import Executor, Tensor

T = TypeVar("T", bound=Tensor)


def draw_noise(seed: int, stem_index: int, take: int, latent: int, width: int) -> npt.NDArray[np.float32]:
    """Draw (latent, width) standard normal numbers, the state of the flow at time 0."""
    sequence = np.random.SeedSequence(entropy=int(seed), spawn_key=(stem_index, take))
    return np.random.Generator(np.random.PCG64(sequence)).standard_normal((latent, width), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Held:
    """Latents that are known at every step: before step i the state becomes (1 - weights) x + weights * values[i]."""

    values: npt.NDArray[np.float32]
    """(steps, B, T, Z)."""
    weights: npt.NDArray[np.float32]
    """(T,), from 0 (free) to 1 (known)."""


def integrate(
    executor: Executor,
    noise: npt.NDArray[np.float32],
    conditions: Mapping[str, Tensor],
    *,
    steps: int,
    guidance: float,
    cancel: Event | None,
    on_step: Callable[[], None],
    held: Held | None = None,
    keep_states: bool = False,
) -> tuple[Tensor, npt.NDArray[np.float32] | None]:
    """Integrate the flow from `noise` (B, T, Z) at time 0 to latents (B, T, Z) at time 1.

    Guidance below 1 counts as 1, which is the conditional flow alone. `on_step` is called after each step.

    Raises:
        BackendError: the backend failed, or a value is not finite. On a device that is not known yet.
        Cancelled: `cancel` was set.
    """
    guidance = max(1.0, guidance)
    if executor.loop is not None:
        return executor.loop(noise, conditions, steps=steps, guidance=guidance, cancel=cancel, on_step=on_step), None
    latents: Tensor = noise
    states = np.empty((steps, *noise.shape), np.float32) if keep_states else None
    scale = np.array([guidance], dtype=np.float32)
    dt = np.array([1 / steps], dtype=np.float32)
    for i in range(steps):
        if held is not None:
            w = held.weights[:, None]
            latents = (1 - w) * latents + w * held.values[i]
        if states is not None:
            states[i] = latents
        t = np.array([i / steps], dtype=np.float32)
        feeds = {"latents": latents, "t": t, "dt": dt, "guidance": scale, **conditions}
        latents = finite(executor.run(GUIDED_STEP, feeds, cancel)["next_latents"], GUIDED_STEP)
        on_step()
    return latents, states


def finite(values: T, graph: str) -> T:
    """Check that `values`, of any shape, hold no infinity or NaN, which must not reach a sound file. Return them.

    Values on a device are not checked here. If one is not finite, the latents are not either, and those are checked.

    Raises:
        BackendError: a value is not finite.
    """
    if isinstance(values, np.ndarray) and not np.isfinite(values).all():
        raise BackendError(f"graph {graph} returned values that are not finite; try lower guidance, or an fp32 bundle")
    return values
