"""An executor whose data stays on a device: the backends `cuda` and `tensorrt`, and their stand-in on the CPU.

The output of one graph is the input of the next, without a copy. Only token ids, noise and frames are copied to the
device. Only latents (to be checked) and sound are copied back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from selva_bundle.bundle import Bundle
from selva_bundle.errors import DeviceMemoryError
from selva_bundle.manifest import MAX_STEPS
from selva_bundle.ports import GUIDED_STEP, TEXT_CLIP, TEXT_T5
from selva_runtime.backends.axes import output_shapes
from selva_runtime.backends.executor import Tensor, check_cancel, check_feeds
from selva_runtime.backends.gpu.device import Graphs
from selva_runtime.backends.gpu.device_array import Array, DeviceArray, MemoryPool
from selva_runtime.backends.gpu.flow_plan import FlowPlan
from selva_runtime.backends.gpu.foreign import adopt
from selva_runtime.lru_cache import LruCache

_PLANS = 4
"""Combinations of stems and length whose buffers and recordings are kept."""
_ALIGNMENT_BYTES = 256
"""Alignment that TensorRT needs."""
T = TypeVar("T")


class DeviceExecutor:
    """Runs the graphs of one bundle on a device. If `recorded` is false, each step is queued by itself."""

    notice = ""
    keeps_text_towers = True

    def __init__(
        self, bundle: Bundle, pool: MemoryPool, graphs: Graphs, *, backend: str, reason: str, recorded: bool = True
    ) -> None:
        self.backend = backend
        self.reason = reason
        self.pool = pool
        self.recorded = recorded
        self.segments_per_batch = graphs.segments_per_batch
        self.stems_per_batch = self.stems_per_decode = graphs.stems_per_batch
        self._manifest = bundle.manifest
        self._graphs = graphs
        self._plans: LruCache[tuple[Any, ...], FlowPlan] = LruCache(_PLANS)

    def load(self, name: str) -> None:
        """Verify the files of graph `name` and load it, unless it is loaded."""
        self._with_retry(lambda: self._graphs.load(name))

    def run(self, name: str, feeds: Mapping[str, Tensor], cancel: Event | None = None) -> dict[str, Tensor]:
        """Run graph `name` and return its outputs by name. Wait for it, so that a failure names the right graph."""
        check_cancel(cancel)
        graph = self._manifest.graphs[name]
        check_feeds(graph, feeds)
        shapes = output_shapes(graph, {port: values.shape for port, values in feeds.items()})

        def queue() -> dict[str, Tensor]:
            inputs = {port: self._on_device(values) for port, values in feeds.items()}
            outputs = {port.name: self.pool.empty(shapes[port.name], port.dtype) for port in graph.outputs}
            self._graphs.bind(name, {**inputs, **outputs}, repeated=False)()
            self.pool.device.synchronise()
            return dict(outputs)

        return self._with_retry(queue)

    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""
        self._graphs.release(name)

    def idle(self, name: str) -> None:
        """Do nothing: graphs that stay loaded make the next call fast."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """Make a tensor with undefined values."""
        return self._with_retry(lambda: self.pool.empty(shape, dtype))

    def put(self, values: Tensor) -> Tensor:
        """Return `values` where the graphs run, copied if needed."""
        return self._with_retry(lambda: self._on_device(values))

    def adopt(self, array: Any) -> Tensor:
        """Use another library's GPU array without a copy."""
        return adopt(self.pool, array)

    def after(self, stream: int) -> None:
        """Make the device wait for the work that is now in the caller's stream."""
        self.pool.device.after(stream)

    def finish(self) -> None:
        """Wait, so that other streams can read the results, and save what makes the next start faster."""
        self.pool.device.synchronise()
        self._graphs.save()

    def loop(
        self,
        noise: Array,
        conditions: Mapping[str, Tensor],
        *,
        steps: int,
        guidance: float,
        cancel: Event | None,
        on_step: Callable[[], None],
    ) -> Tensor:
        """Integrate `noise` (B, T, Z) in `steps` Euler steps to latents (B, T, Z) at time 1.

        One launch is always queued behind the running one, so the device does not wait for Python.
        """
        check_cancel(cancel)
        given = {"latents": noise, **conditions}
        plan = self._with_retry(lambda: self._plan(given))
        plan.start(given, steps=steps, guidance=guidance)
        in_flight: deque[tuple[Any, int]] = deque()
        for first, count in plan.parts(steps):
            check_cancel(cancel)
            plan.launch(first, count)
            in_flight.append((self.pool.device.mark(), count))
            if len(in_flight) > 1:
                self._wait_for(*in_flight.popleft(), on_step)
        while in_flight:
            self._wait_for(*in_flight.popleft(), on_step)
        latents = self.pool.empty(noise.shape, noise.dtype)
        self.pool.write(latents, plan.latents)
        return latents

    def _wait_for(self, mark: Any, steps: int, on_step: Callable[[], None]) -> None:
        self.pool.device.wait(mark)
        for _ in range(steps):
            on_step()

    def _plan(self, given: Mapping[str, Tensor]) -> FlowPlan:
        key = (self.recorded, *((name, values.shape) for name, values in sorted(given.items())))
        if key not in self._plans:
            graph = self._manifest.graphs[GUIDED_STEP]
            sized = {port.name: given[port.name] for port in graph.inputs if port.name in given}
            self._plans[key] = FlowPlan(
                self.pool, self._graphs, graph, sized, max_steps=MAX_STEPS, recorded=self.recorded
            )
        return self._plans[key]

    def _on_device(self, values: Tensor) -> DeviceArray:
        """Return `values` on this device, aligned and copied if needed."""
        device = self.pool.device
        if isinstance(values, DeviceArray) and values.pool.device.kind == device.kind:
            if values.pointer % _ALIGNMENT_BYTES == 0:
                return values
            copy = self.pool.empty(values.shape, values.dtype)
            self.pool.write(copy, values)
            return copy
        return self.pool.put(np.asarray(values))

    def _with_retry(self, work: Callable[[], T]) -> T:
        """Call `work`. If memory runs out, free everything that can be made again and call it once more."""
        try:
            return work()
        except DeviceMemoryError:
            self.pool.device.synchronise()
            self._plans = LruCache(_PLANS)
            for name in (TEXT_T5, TEXT_CLIP):
                self._graphs.release(name)
            self.pool.trim()
            return work()
