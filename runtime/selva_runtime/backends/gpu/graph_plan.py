"""One graph at one set of shapes. Everything that it reads or writes stays at a fixed address.

It is bound once, and recorded as one launch (a CUDA graph) when it runs for the second time: a shape that comes once
is not worth a recording, and at its first run a library sets itself up, which must not be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from selva_bundle.manifest import Graph
from selva_runtime.backends.axes import output_shapes
from selva_runtime.backends.gpu.device import Graphs
from selva_runtime.backends.gpu.device_array import Array, DeviceArray, MemoryPool


class GraphPlan:
    """The buffers and the recording of a graph for inputs of these `shapes`.

    Raises:
        DeviceMemoryError: the device has too little memory.
        BackendError: the library does not take these shapes.
    """

    def __init__(
        self,
        pool: MemoryPool,
        graphs: Graphs,
        graph: Graph,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        recorded: bool,
        repeated: bool = False,
    ) -> None:
        self._pool = pool
        self.inputs = {port.name: pool.empty(shapes[port.name], port.dtype) for port in graph.inputs}
        made = output_shapes(graph, shapes)
        self.outputs = {port.name: pool.empty(made[port.name], port.dtype) for port in graph.outputs}
        self.queue = graphs.bind(graph.name, {**self.inputs, **self.outputs}, repeated=repeated)
        self.recorded = recorded and self.queue.recordable
        self._has_run = False
        self._launch: Callable[[], None] | None = None

    def run(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, DeviceArray]:
        """Queue the copies of `feeds` into the buffers, one run, and copies of its outputs, which are returned."""
        for name, values in feeds.items():
            self._pool.write(self.inputs[name], values)
        with self._pool.lock:
            if self.recorded and self._has_run and self._launch is None:
                self._launch = self._pool.device.record(self.queue)
            (self._launch or self.queue)()
        self._has_run = True
        copies = {name: self._pool.empty(array.shape, array.dtype) for name, array in self.outputs.items()}
        for name, copy in copies.items():
            self._pool.write(copy, self.outputs[name])
        return copies
