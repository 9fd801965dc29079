"""The buffers and recordings of one flow. Everything that its steps read or write stays at a fixed address.

A step runs `guided_step` on fixed inputs, then copies its output over its input. A few steps are recorded as one
launch (a CUDA graph), which is queued again and again. Inside a launch there is no allocation, no waiting and no
Python. A launch reads the times of its steps from device memory, and they are copied there before it. So one
recording serves every part of every integration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from selva_bundle.manifest import Graph
from selva_runtime.backends.gpu.device import Graphs
from selva_runtime.backends.gpu.device_array import Array, DeviceArray, MemoryPool
from selva_runtime.backends.gpu.graph_plan import GraphPlan

STEPS_PER_LAUNCH = 5
"""Few enough that progress and cancel feel immediate, and enough that the cost of launches is negligible."""


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
        self._times = pool.empty((max_steps,), np.float32)
        self._launch_times = pool.empty((STEPS_PER_LAUNCH,), np.float32)
        self._launches: dict[int, Callable[[], None]] = {}

    @property
    def latents(self) -> DeviceArray:
        """(B, T, Z) state of the flow."""
        return self.inputs["latents"]

    def start(self, given: Mapping[str, Array | DeviceArray], *, steps: int, guidance: float) -> None:
        """Queue the copies of `given` into the buffers, and of the times of `steps` equal steps."""
        for name, values in given.items():
            self._pool.write(self.inputs[name], values)
        times = np.arange(steps, dtype=np.float64).astype(np.float32) / np.float32(steps)
        self._pool.write(self._times[:steps], times)
        self._pool.write(self.inputs["dt"], np.array([1 / steps], dtype=np.float32))
        self._pool.write(self.inputs["guidance"], np.array([guidance], dtype=np.float32))

    def parts(self, steps: int) -> Iterator[tuple[int, int]]:
        """Yield (first step, number of steps) of each launch: full launches, then single steps."""
        full = steps - steps % STEPS_PER_LAUNCH
        yield from ((first, STEPS_PER_LAUNCH) for first in range(0, full, STEPS_PER_LAUNCH))
        yield from ((first, 1) for first in range(full, steps))

    def launch(self, first: int, count: int) -> None:
        """Queue `count` steps."""
        with self._pool.lock:
            self._pool.write(self._launch_times[:count], self._times[first : first + count])
            if not self.recorded:
                self._queue_steps(count)
                return
            if not self._launches:
                self.queue()  # at its first run the library sets itself up, which must not be recorded
            if count not in self._launches:
                self._launches[count] = self._pool.device.record(lambda: self._queue_steps(count))
            self._launches[count]()

    def _queue_steps(self, count: int) -> None:
        for i in range(count):
            self._pool.write(self.inputs["t"], self._launch_times[i : i + 1])
            self.queue()
            self._pool.write(self.latents, self._next)
