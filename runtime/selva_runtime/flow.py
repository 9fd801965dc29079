"""From noise to latents: the Euler integration of the learned flow, with guidance inside the graph.

Noise is drawn by NumPy on the CPU from (seed, stem index, take), so that a seed sounds the same on every backend,
and a stem does not change when prompts or takes are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError
from selva_runtime.backends.executor import Executor, Tensor

T = TypeVar("T", bound=Tensor)


def draw_noise(seed: int, stem_index: int, take: int, latent: int, width: int) -> npt.NDArray[np.float32]:
    """(latent, width) standard normal numbers: the flow at time 0."""
    sequence = np.random.SeedSequence(entropy=int(seed), spawn_key=(stem_index, take))
    return np.random.Generator(np.random.PCG64(sequence)).standard_normal((latent, width), dtype=np.float32)


def integrate(
    executor: Executor,
    noise: npt.NDArray[np.float32],
    conditions: Mapping[str, Tensor],
    *,
    steps: int,
    guidance: float,
    cancel: Event | None,
    on_step: Callable[[], None],
) -> Tensor:
    """(B, T, Z) latents at time 1. Guidance below 1 means the conditional flow alone, which is guidance 1."""
    guidance = max(1.0, guidance)
    if executor.loop is not None:
        ended = executor.loop(noise, conditions, steps=steps, guidance=guidance, cancel=cancel, on_step=on_step)
        finite(np.asarray(ended), "guided_step")  # what is not finite in any step is not finite in the end
        return ended
    latents: Tensor = noise
    scale = np.array([guidance], dtype=np.float32)
    dt = np.array([1 / steps], dtype=np.float32)
    for i in range(steps):
        t = np.array([i / steps], dtype=np.float32)
        feeds = {"latents": latents, "t": t, "dt": dt, "guidance": scale, **conditions}
        latents = finite(executor.run("guided_step", feeds, cancel)["next_latents"], "guided_step")
        on_step()
    return latents


def finite(values: T, graph: str) -> T:
    """`values`, or `BackendError` where they hold infinities or NaN: those must not reach a file as sound.

    What stays on a device is not looked at: a value that is not finite is still so in the latents, which are.
    """
    if isinstance(values, np.ndarray) and not np.isfinite(values).all():
        raise BackendError(f"graph {graph} gave values that are not finite; try lower guidance, or an fp32 bundle")
    return values
