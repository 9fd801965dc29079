"""An executor whose data stays on a device: the backends `cuda` and `tensorrt`, and their stand-in on the CPU.

The output of one graph is the input of the next, without a copy. Only token ids, noise and frames are copied to the
device. Only latents (to be checked) and sound are copied back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from selva_bundle.bundle import Bundle
from selva_bundle.errors import DeviceMemoryError
from selva_bundle.manifest import MAX_STEPS
from selva_bundle.ports import TEXT_CLIP, TEXT_T5
from selva_runtime.backends.executor import Tensor, check_cancel, check_feeds
from selva_runtime.backends.gpu.device import Graphs
from selva_runtime.backends.gpu.device_array import Array, DeviceArray, MemoryPool
from selva_runtime.backends.gpu.flow_plan import FlowPlan, StepKind
from selva_runtime.backends.gpu.foreign import adopt
from selva_runtime.backends.gpu.graph_plan import GraphPlan
from selva_runtime.backends.solvers import AB2, Held
from selva_runtime.lru_cache import LruCache

_FLOW_PLANS, _GRAPH_PLANS = 4, 8
"""Shapes (numbers of stems, lengths) whose buffers and recordings are kept, of each graph."""
_LAUNCHES_IN_FLIGHT = 8
"""Launches of the flow that are queued ahead. With the default number of steps nothing waits before the end."""
TEXT_LENGTHS = (16, 32)
"""Numbers of tokens to which prompts are padded, besides the longest, so that few shapes occur."""
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
        self.text_lengths: tuple[int, ...] = (*TEXT_LENGTHS, bundle.manifest.text.t5_max_tokens)
        self._graphs = graphs
        self._has_queued = False
        self._forget_plans()

    def load(self, name: str) -> None:
        """Verify the files of graph `name` and load it, unless it is loaded."""
        self._with_retry(lambda: self._graphs.load(name))

    def run(self, name: str, feeds: Mapping[str, Tensor], cancel: Event | None = None) -> dict[str, Tensor]:
        """Queue a run of graph `name` and return its outputs by name, which `read` waits for."""
        check_cancel(cancel)
        graph = self._manifest.graphs[name]
        check_feeds(graph, feeds)
        shapes = {port: values.shape for port, values in feeds.items()}
        key = (self.recorded, *sorted(shapes.items()))

        def queue() -> dict[str, Tensor]:
            plans = self._graph_plans.setdefault(name, LruCache(_GRAPH_PLANS))
            if key not in plans:
                plans[key] = GraphPlan(self.pool, self._graphs, graph, shapes, recorded=self.recorded)
            return dict(plans[key].run(feeds))

        self._has_queued = True
        return self._with_retry(queue)

    def read(self, *tensors: Tensor) -> tuple[Array, ...]:
        """Wait once for all queued work and return the values."""
        self._has_queued = False
        return self.pool.read(*(self._on_device(values) for values in tensors))

    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""
        self._graph_plans.pop(name, None)
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
        if self._has_queued:
            self.pool.device.synchronise()
            self._has_queued = False
        self._graphs.save()

    def loop(
        self,
        noise: Array,
        conditions: Mapping[str, Tensor],
        *,
        graph: str,
        steps: int,
        guidance: float,
        solver: str,
        held: Held | None,
        keep_states: bool,
        cancel: Event | None,
        on_step: Callable[[], None],
    ) -> tuple[Tensor, Tensor | None]:
        """Integrate `noise` (B, T, Z) in `steps` runs of `graph` to latents (B, T, Z) at time 1.

        It returns before the last launches are done: `read` waits for them.
        """
        check_cancel(cancel)
        self._has_queued = True
        given = {"latents": noise, **conditions}
        kind = StepKind(second_order=solver == AB2, holds=held is not None, keeps=keep_states)
        plan, states = self._with_retry(lambda: self._flow_buffers(graph, given, kind, steps))
        plan.start(given, steps=steps, guidance=guidance, weights=None if held is None else held.weights)
        in_flight: deque[tuple[Any, int]] = deque()
        for first, count in plan.parts(steps):
            check_cancel(cancel)
            part = slice(first, first + count)
            known = None if held is None else held.values[part]
            plan.launch(first, count, known, None if states is None else states[part])
            in_flight.append((self.pool.device.mark(), count))
            if len(in_flight) > _LAUNCHES_IN_FLIGHT:
                mark, done = in_flight.popleft()
                self.pool.device.wait(mark)
                _call(on_step, done)
        _call(on_step, sum(count for _, count in in_flight))
        latents = self.pool.empty(noise.shape, noise.dtype)
        self.pool.write(latents, plan.latents)
        return latents, states

    def _flow_buffers(
        self, graph: str, given: Mapping[str, Tensor], kind: StepKind, steps: int
    ) -> tuple[FlowPlan, DeviceArray | None]:
        """Return the plan, ready for these steps, and memory for the kept states (steps, B, T, Z)."""
        plan = self._flow_plan(graph, given)
        plan.prepare(kind)
        return plan, self.pool.empty((steps, *plan.latents.shape), np.float32) if kind.keeps else None

    def _flow_plan(self, graph: str, given: Mapping[str, Tensor]) -> FlowPlan:
        shapes = {name: values.shape for name, values in given.items()}
        key = (graph, self.recorded, *sorted(shapes.items()))
        if key not in self._flow_plans:
            step = self._manifest.graphs[graph]
            self._flow_plans[key] = FlowPlan(
                self.pool, self._graphs, step, shapes, max_steps=MAX_STEPS, recorded=self.recorded
            )
        return self._flow_plans[key]

    def _on_device(self, values: Tensor) -> DeviceArray:
        """Return `values` on this device, copied if needed."""
        if isinstance(values, DeviceArray) and values.pool.device.kind == self.pool.device.kind:
            return values
        return self.pool.put(np.asarray(values))

    def _with_retry(self, work: Callable[[], T]) -> T:
        """Call `work`. If memory runs out, free everything that can be made again and call it once more."""
        with suppress(DeviceMemoryError):  # the second try comes after the error, which keeps arrays alive
            return work()
        self.pool.device.synchronise()
        self._forget_plans()
        for name in (TEXT_T5, TEXT_CLIP):
            self._graphs.release(name)
        self.pool.trim()
        return work()

    def _forget_plans(self) -> None:
        self._flow_plans: LruCache[tuple[Any, ...], FlowPlan] = LruCache(_FLOW_PLANS)
        self._graph_plans: dict[str, LruCache[tuple[Any, ...], GraphPlan]] = {}


def _call(on_step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        on_step()
