"""Integrate the learned flow from noise to latents in equal steps. Guidance is computed inside the graph of a step.

NumPy draws the noise on the CPU from (seed, stem index, take). So a seed sounds the same on every backend, and a stem
does not change when prompts or takes are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError
from selva_bundle.ports import GUIDED_STEP
from selva_runtime.backends.executor import Executor, Tensor
from selva_runtime.backends.solvers import AB2, EULER, SOLVERS, Float32, Held, advance, blend

__all__ = ["AB2", "EULER", "SOLVERS", "Held", "draw_noise", "finite", "integrate"]

T = TypeVar("T", bound=Tensor)


def draw_noise(seed: int, stem_index: int, take: int, latent: int, width: int) -> npt.NDArray[np.float32]:
    """Draw (latent, width) standard normal numbers, the state of the flow at time 0."""
    sequence = np.random.SeedSequence(entropy=int(seed), spawn_key=(stem_index, take))
    return np.random.Generator(np.random.PCG64(sequence)).standard_normal((latent, width), dtype=np.float32)


def integrate(
    executor: Executor,
    noise: Float32,
    conditions: Mapping[str, Tensor],
    *,
    steps: int,
    guidance: float,
    cancel: Event | None,
    on_step: Callable[[], None],
    graph: str = GUIDED_STEP,
    solver: str = EULER,
    held: Held | None = None,
    keep_states: bool = False,
) -> tuple[Tensor, Float32 | None]:
    """Integrate the flow from `noise` (B, T, Z) at time 0 to latents (B, T, Z) at time 1 with the `graph` of a step.

    Guidance below 1 counts as 1, which is the conditional flow alone. `on_step` is called after each step. With
    `keep_states` the second result is the state at the start of each step, after holding: (steps, B, T, Z).

    Raises:
        BackendError: the backend failed, or a value is not finite. On a device that is not known yet.
        Cancelled: `cancel` was set.
    """
    guidance = max(1.0, guidance)
    if executor.loop is not None:
        latents, on_device = executor.loop(
            noise,
            conditions,
            graph=graph,
            steps=steps,
            guidance=guidance,
            solver=solver,
            held=held,
            keep_states=keep_states,
            cancel=cancel,
            on_step=on_step,
        )
        return latents, None if on_device is None else executor.read(on_device)[0]
    state, last, states = noise, None, []
    scale = np.array([guidance], dtype=np.float32)
    dt = np.array([1 / steps], dtype=np.float32)
    for i in range(steps):
        if held is not None:
            state = blend(state, held.values[i], held.weights)
        if keep_states:
            states.append(state)
        t = np.array([i / steps], dtype=np.float32)
        feeds = {"latents": state, "t": t, "dt": dt, "guidance": scale, **conditions}
        euler = np.asarray(finite(executor.run(graph, feeds, cancel)["next_latents"], graph))
        state, last = advance(state, euler, last) if solver == AB2 else (euler, None)
        on_step()
    return state, np.stack(states) if keep_states else None


def finite(values: T, graph: str) -> T:
    """Check that `values`, of any shape, hold no infinity or NaN, which must not reach a sound file. Return them.

    Values on a device are not checked here. If one is not finite, the latents are not either, and those are checked.

    Raises:
        BackendError: a value is not finite.
    """
    if isinstance(values, np.ndarray) and not np.isfinite(values).all():
        raise BackendError(f"graph {graph} returned values that are not finite; try lower guidance, or an fp32 bundle")
    return values
