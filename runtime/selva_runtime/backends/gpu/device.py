"""The interface between the GPU path and a GPU: memory, one queue of work, recordings of that queue, two kernels.

`cuda_device.CudaDevice` is the real one. `host_device.HostDevice` does the same in ordinary memory, so that the buffer
plan, the chunked loop, progress and cancelling can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from selva_runtime.backends.gpu.device_array import DeviceArray


class Device(Protocol):
    """A device with one queue: work runs in the order in which it was queued. Pointers are plain integers."""

    kind: str
    """"cuda" or "cpu", ONNX Runtime's name for the place of the memory."""

    def allocate(self, nbytes: int) -> int:
        """Return a pointer to new memory, aligned to 256 bytes.

        Raises:
            DeviceMemoryError: the device has too little memory.
        """

    def free(self, pointer: int) -> None:
        """Free memory once all queued work is done with it."""

    def staging(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Allocate host memory that the device can read and write directly (page-locked)."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy of `nbytes`. Each side is memory of this device or its staging memory."""

    def enqueue(self, work: Callable[[], None]) -> None:
        """Queue `work`. On a GPU `work` itself queues kernels and returns."""

    def mark(self) -> Any:
        """Return the current end of the queue, for `wait`."""

    def wait(self, mark: Any) -> None:
        """Return when all work before `mark` is done. Later work continues."""

    def synchronise(self) -> None:
        """Return when all queued work is done."""

    def synchronise_all(self) -> None:
        """Return when all work on the device is done, also that of other programs in this process."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues, without running it. Each call of the result queues all of it at once."""

    def after(self, stream: int) -> None:
        """Make work that is queued from now on wait for the work now in `stream`, a stream of the caller's."""

    def check_pointer(self, pointer: int) -> None:
        """Check that this device can read the memory at `pointer`.

        Raises:
            RequestError: it cannot.
        """

    @property
    def kernels(self) -> Kernels:
        """The operations of the solvers. The first use loads them, which must not be in a recording.

        Raises:
            BackendError: the device cannot load them.
        """


class Kernels(Protocol):
    """What solvers do to the state of the flow. Each queues its work in the device's queue. Arrays are float32."""

    def blend(self, state: DeviceArray, known: DeviceArray, weights: DeviceArray) -> None:
        """`state` = (1 - w) `state` + w `known`, both (B, T, Z), with `weights` (T,) from 0 to 1.

        `known` is not used where a weight is 0.
        """

    def advance(self, state: DeviceArray, euler: DeviceArray, last: DeviceArray, gain: DeviceArray) -> None:
        """`state` = `euler` + gain (change - `last`), `last` = change, where change is `euler` - `state`.

        All are (B, T, Z), and `gain` is (1,). If it is 0 the new state is `euler`, and the old `last` is not used.
        """


class BoundGraph(Protocol):
    """A graph with its inputs and outputs at fixed addresses."""

    recordable: bool
    """Whether `Device.record` can record it."""

    def __call__(self) -> None:
        """Queue one run."""


class Graphs(Protocol):
    """The graphs of a bundle, loaded on a device."""

    segments_per_batch: int
    """Most video segments that a graph takes at once."""
    stems_per_batch: int
    """Most stems that a graph takes at once."""

    def load(self, name: str) -> None:
        """Verify the files of graph `name` and load it, unless it is loaded.

        Raises:
            BundleError: a file was altered.
            BackendError: the library cannot load the graph.
        """

    def bind(self, name: str, arrays: Mapping[str, DeviceArray], *, repeated: bool) -> BoundGraph:
        """Bind graph `name` to these inputs and outputs. A `repeated` binding runs many times a call.

        Raises:
            BundleError: a file was altered.
            BackendError: the library does not take these arrays.
        """

    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""

    def save(self) -> None:
        """Save to disk what makes the next start faster."""
