"""The buffers and recordings of one flow. Everything that its steps read or write stays at a fixed address.

A step runs its graph on fixed inputs, then copies its output over its input. A few steps are recorded as one
launch (a CUDA graph), which is queued again and again. Inside a launch there is no allocation, no waiting and no
Python. A launch reads the times and held latents of its steps from device memory, and they are copied there before it.
So one recording serves every part of every integration whose steps do the same things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from selva_bundle.manifest import Graph
from selva_runtime.backends.gpu.device import Graphs
from selva_runtime.backends.gpu.device_array import Array, DeviceArray, MemoryPool
from selva_runtime.backends.gpu.graph_plan import GraphPlan
from selva_runtime.backends.solvers import AB2_GAIN

STEPS_PER_LAUNCH = 5
"""Few enough that progress and cancel feel immediate, and enough that the cost of launches is negligible."""


@dataclass(frozen=True, kw_only=True)
class StepKind:
    """What a step does besides an Euler step."""

    second_order: bool = False
    """It corrects the step to AB2's."""
    holds: bool = False
    """It blends known latents in first."""
    keeps: bool = False
    """It keeps the state before the network runs."""


class FlowPlan(GraphPlan):
    """Buffers for one number of stems and one length. An integration has at most `max_steps` steps.

    Raises:
        DeviceMemoryError: the device has too little memory.
    """

    def __init__(
        self,
        pool: MemoryPool,
        graphs: Graphs,
        graph: Graph,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        max_steps: int,
        recorded: bool,
    ) -> None:
        every = {port.name: shapes.get(port.name, (1,)) for port in graph.inputs}
        super().__init__(pool, graphs, graph, every, recorded=recorded, repeated=True)
        (self._next,) = self.outputs.values()
        self._schedule = pool.empty((max_steps, 2), np.float32)
        """Time of each step, and the gain of its correction."""
        self._launch_schedule = pool.empty((STEPS_PER_LAUNCH, 2), np.float32)
        self._extra: dict[str, DeviceArray] = {}
        self._kind = StepKind()
        self._launches: dict[tuple[StepKind, int], Callable[[], None]] = {}

    @property
    def latents(self) -> DeviceArray:
        """(B, T, Z) state of the flow."""
        return self.inputs["latents"]

    def prepare(self, kind: StepKind) -> None:
        """Choose what the steps do from now on, and make the buffers for it.

        Raises:
            DeviceMemoryError: the device has too little memory.
            BackendError: the device cannot load the kernels.
        """
        self._kind = kind
        shape = self.latents.shape
        several = (STEPS_PER_LAUNCH, *shape)
        wanted = {"last": shape} if kind.second_order else {}
        wanted |= {"known": several, "weights": (shape[1],)} if kind.holds else {}
        wanted |= {"states": several} if kind.keeps else {}
        for name in wanted.keys() - self._extra.keys():
            self._extra[name] = self._pool.empty(wanted[name], np.float32)
        if kind.second_order or kind.holds:
            _ = self._pool.device.kernels  # loaded before a recording

    def start(
        self,
        given: Mapping[str, Array | DeviceArray],
        *,
        steps: int,
        guidance: float,
        weights: Array | None = None,
    ) -> None:
        """Queue the copies of `given`, the held latents' `weights` and the schedule of `steps` equal steps."""
        for name, values in given.items():
            self._pool.write(self.inputs[name], values)
        schedule = np.full((steps, 2), AB2_GAIN, np.float32)
        schedule[0, 1] = 0  # the first step is Euler's
        schedule[:, 0] = np.arange(steps, dtype=np.float64).astype(np.float32) / np.float32(steps)
        self._pool.write(self._schedule[:steps], schedule)
        self._pool.write(self.inputs["dt"], np.array([1 / steps], dtype=np.float32))
        self._pool.write(self.inputs["guidance"], np.array([guidance], dtype=np.float32))
        if weights is not None:
            self._pool.write(self._extra["weights"], weights)

    def parts(self, steps: int) -> Iterator[tuple[int, int]]:
        """Yield (first step, number of steps) of each launch: full launches, then single steps."""
        full = steps - steps % STEPS_PER_LAUNCH
        yield from ((first, STEPS_PER_LAUNCH) for first in range(0, full, STEPS_PER_LAUNCH))
        yield from ((first, 1) for first in range(full, steps))

    def launch(self, first: int, count: int, known: Array | None = None, states: DeviceArray | None = None) -> None:
        """Queue `count` steps that hold `known` and fill `states`, both (count, B, T, Z), if their kind does that."""
        with self._pool.lock:
            self._pool.write(self._launch_schedule[:count], self._schedule[first : first + count])
            if known is not None:
                self._pool.write(self._extra["known"][:count], known)
            self._queue_launch(count)
            if states is not None:
                self._pool.write(states, self._extra["states"][:count])

    def _queue_launch(self, count: int) -> None:
        if not self.recorded:
            self._queue_steps(count)
            return
        key = (self._kind, count)
        if not self._launches:
            self.queue()  # at its first run the library sets itself up, which must not be recorded
        if key not in self._launches:
            self._launches[key] = self._pool.device.record(lambda: self._queue_steps(count))
        self._launches[key]()

    def _queue_steps(self, count: int) -> None:
        write, device, extra = self._pool.write, self._pool.device, self._extra
        for i in range(count):
            time, gain = self._launch_schedule[i][:1], self._launch_schedule[i][1:]
            if self._kind.holds:
                device.kernels.blend(self.latents, extra["known"][i], extra["weights"])
            if self._kind.keeps:
                write(extra["states"][i], self.latents)
            write(self.inputs["t"], time)
            self.queue()
            if self._kind.second_order:
                device.kernels.advance(self.latents, self._next, extra["last"], gain)
            else:
                write(self.latents, self._next)
