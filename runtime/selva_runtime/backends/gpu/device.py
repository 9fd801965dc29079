"""The seam between the GPU path and a GPU: memory, one queue of work, and recordings of that queue.

`cuda_device.CudaDevice` is the real one. `host_device.HostDevice` keeps every promise in ordinary memory, so that
the buffer plan, the chunked loop, progress and cancelling run, and are tested, where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from selva_runtime.backends.gpu.device_array import DeviceArray


class Device(Protocol):
    """Work is queued in order and runs in order. Pointers are plain integers."""

    kind: str
    """"cuda" or "cpu": ONNX Runtime's name for where the memory is."""

    def allocate(self, nbytes: int) -> int:
        """A pointer, aligned to 256 bytes; raises `DeviceMemoryError`."""

    def free(self, pointer: int) -> None:
        """Give memory back once all queued work is done with it."""

    def staging(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Host memory that the device reaches directly (page-locked)."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy; either side is this device's memory or its staging memory."""

    def enqueue(self, work: Callable[[], None]) -> None:
        """Queue what `work` does; on a GPU `work` itself queues kernels and returns."""

    def mark(self) -> Any:
        """A point in the queue, for `wait`."""

    def wait(self, mark: Any) -> None:
        """Return when all work before `mark` is done; later work goes on."""

    def synchronise(self) -> None:
        """Return when all queued work is done."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` queues, not run but recorded: each call of the result queues all of it at once."""

    def after(self, stream: int) -> None:
        """Let work queued from now on wait for what `stream`, a stream of the caller's, holds by now."""

    def check_pointer(self, pointer: int) -> None:
        """Raise `RequestError` unless this device can read the memory there."""


class Bound(Protocol):
    """A graph, its inputs and outputs at fixed places."""

    recordable: bool
    """Whether `Device.record` may hold it."""

    def __call__(self) -> None:
        """Queue one run."""


class Graphs(Protocol):
    """A bundle's networks, loaded on a device."""

    segments_per_batch: int
    """Most video segments that a network takes at once."""
    stems_per_batch: int
    """Most stems that a network takes at once."""

    def load(self, name: str) -> None:
        """Make graph `name` ready, its files verified; does nothing when it is."""

    def bind(self, name: str, arrays: Mapping[str, DeviceArray], *, repeated: bool) -> Bound:
        """Graph `name` on these inputs and outputs. `repeated`: it runs many times and keeps its state to itself.

        The last not-repeated binding of a graph takes the place of the one before it.
        """

    def release(self, name: str) -> None:
        """Free graph `name`; it loads again at its next use."""

    def save(self) -> None:
        """Keep on disk what makes the next start faster."""
