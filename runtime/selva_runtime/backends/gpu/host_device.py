"""A device without a GPU: ordinary memory, work that runs as it is queued, recordings that are lists of calls.

The code of the GPU path runs unchanged on it, with ONNX Runtime's CPU provider. Only the timing differs from a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import DeviceMemoryError
from selva_runtime.backends import solvers

if TYPE_CHECKING:
    from selva_runtime.backends.gpu.device_array import DeviceArray

_ALIGNMENT_BYTES = 256


class HostDevice:
    """A `Device` in ordinary memory. It pretends to have `limit_bytes` of memory (None: no limit)."""

    kind = "cpu"

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.allocations = 0
        self._memory: dict[int, npt.NDArray[np.uint8]] = {}
        self._recording: list[Callable[[], None]] | None = None

    @property
    def used_bytes(self) -> int:
        """Memory that is allocated now, bytes."""
        return sum(array.nbytes for array in self._memory.values())

    def allocate(self, nbytes: int) -> int:
        """Return a pointer to new memory, aligned to 256 bytes.

        Raises:
            DeviceMemoryError: the sum would be above `limit_bytes`.
        """
        assert self._recording is None, "memory cannot be allocated in a recording"
        if self.limit_bytes is not None and self.used_bytes + nbytes > self.limit_bytes:
            raise DeviceMemoryError(f"out of memory: {nbytes} bytes do not fit into {self.limit_bytes}")
        memory = np.empty(nbytes + _ALIGNMENT_BYTES, dtype=np.uint8)
        pointer = -(-memory.ctypes.data // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._memory[pointer] = memory
        self.allocations += 1
        return pointer

    def free(self, pointer: int) -> None:
        """Free memory once all queued work is done with it."""
        del self._memory[pointer]

    def staging(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Allocate host memory that the device can read and write directly."""
        return np.empty(nbytes, dtype=np.uint8)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy of `nbytes`."""

        def move() -> None:
            ctypes.memmove(target, source, nbytes)

        self.enqueue(move)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do `work` at once, or add it to the recording."""
        if self._recording is not None:
            self._recording.append(work)
        else:
            work()

    def mark(self) -> Any:
        """Return the current end of the queue, for `wait`."""
        return None

    def wait(self, mark: Any) -> None:
        """Return at once, because all work before `mark` is done."""

    def synchronise(self) -> None:
        """Return at once, because all queued work is done."""
        assert self._recording is None, "a recording cannot wait"

    def synchronise_all(self) -> None:
        """Return at once, because all queued work is done."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues, without running it. Each call of the result runs all of it."""
        recording: list[Callable[[], None]] = []
        self._recording = recording
        try:
            work()
        finally:
            self._recording = None

        def replay() -> None:
            for call in recording:
                call()

        return replay

    def after(self, stream: int) -> None:
        """Do nothing: work in ordinary memory is done when its call returns."""

    def check_pointer(self, pointer: int) -> None:
        """Do nothing: an address in ordinary memory cannot be checked."""

    @cached_property
    def kernels(self) -> HostKernels:
        """The operations of the solvers."""
        return HostKernels(self.enqueue)


class HostKernels:
    """The `Kernels` in ordinary memory: NumPy's, on the arrays' addresses."""

    def __init__(self, enqueue: Callable[[Callable[[], None]], None]) -> None:
        self._enqueue = enqueue

    def blend(self, state: DeviceArray, known: DeviceArray, weights: DeviceArray) -> None:
        """`state` = (1 - w) `state` + w `known`."""
        x, v, w = (_in_memory(array) for array in (state, known, weights))

        def work() -> None:
            x[:] = solvers.blend(x, v, w)

        self._enqueue(work)

    def advance(self, state: DeviceArray, euler: DeviceArray, last: DeviceArray, gain: DeviceArray) -> None:
        """`state` = `euler` + gain (change - `last`), `last` = change."""
        x, after, before, g = (_in_memory(array) for array in (state, euler, last, gain))

        def work() -> None:
            x[:], before[:] = solvers.advance(x, after, before if g[0] > 0 else None, g[0])

        self._enqueue(work)


def _in_memory(array: DeviceArray) -> npt.NDArray[np.float32]:
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.pointer)
    return np.frombuffer(memory, array.dtype).reshape(array.shape)
