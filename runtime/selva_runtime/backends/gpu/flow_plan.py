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
from selva_runtime.backends.axes import output_shapes
from selva_runtime.backends.gpu.device import Graphs
from selva_runtime.backends.gpu.device_array import Array, DeviceArray, MemoryPool

STEPS_PER_LAUNCH = 5
"""Few enough that progress and cancel feel immediate, and enough that the cost of launches is negligible."""


class FlowPlan:
    """Buffers for one number of stems and one length. An integration has at most `max_steps` steps.

    `given` has the conditions and the latents; only their shapes are used.

    Raises:
        DeviceMemoryError: the device has too little memory.
    """

    def __init__(
        self,
        pool: MemoryPool,
        graphs: Graphs,
        graph: Graph,
        given: Mapping[str, Array | DeviceArray],
        *,
        max_steps: int,
        recorded: bool,
    ) -> None:
        self._pool = pool
        ports = {port.name: port for port in graph.inputs}
        shapes = {name: given[name].shape if name in given else (1,) for name in ports}
        self._inputs = {name: pool.empty(shapes[name], port.dtype) for name, port in ports.items()}
        (output,) = graph.outputs
        self._next = pool.empty(output_shapes(graph, shapes)[output.name], output.dtype)
        self._times = pool.empty((max_steps,), np.float32)
        self._launch_times = pool.empty((STEPS_PER_LAUNCH,), np.float32)
        self._step = graphs.bind(graph.name, {**self._inputs, output.name: self._next}, repeated=True)
        self._recorded = recorded and self._step.recordable
        self._launches: dict[int, Callable[[], None]] = {}

    @property
    def latents(self) -> DeviceArray:
        """(B, T, Z) state of the flow."""
        return self._inputs["latents"]

    def start(self, given: Mapping[str, Array | DeviceArray], *, steps: int, guidance: float) -> None:
        """Queue the copies of `given` into the buffers, and of the times of `steps` equal steps."""
        for name, values in given.items():
            self._pool.write(self._inputs[name], values)
        self._pool.write(self._times[:steps], np.arange(steps, dtype=np.float64).astype(np.float32) / np.float32(steps))
        self._pool.write(self._inputs["dt"], np.array([1 / steps], dtype=np.float32))
        self._pool.write(self._inputs["guidance"], np.array([guidance], dtype=np.float32))

    def parts(self, steps: int) -> Iterator[tuple[int, int]]:
        """Yield (first step, number of steps) of each launch: full launches, then single steps."""
        full = steps - steps % STEPS_PER_LAUNCH
        yield from ((first, STEPS_PER_LAUNCH) for first in range(0, full, STEPS_PER_LAUNCH))
        yield from ((first, 1) for first in range(full, steps))

    def launch(self, first: int, count: int) -> None:
        """Queue `count` steps."""
        with self._pool.lock:
            self._pool.write(self._launch_times[:count], self._times[first : first + count])
            if not self._recorded:
                self._queue(count)
                return
            if not self._launches:
                self._step()  # at its first run the library sets itself up, which must not be recorded
            if count not in self._launches:
                self._launches[count] = self._pool.device.record(lambda: self._queue(count))
            self._launches[count]()

    def _queue(self, count: int) -> None:
        for i in range(count):
            self._pool.write(self._inputs["t"], self._launch_times[i : i + 1])
            self._step()
            self._pool.write(self.latents, self._next)
