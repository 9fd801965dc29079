"""A device without a GPU: ordinary memory, work done as it is queued, recordings that are lists of calls.

It lets the code of the GPU path run unchanged on ONNX Runtime's CPU provider. What differs from a GPU is time only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import DeviceMemoryError

_ALIGNMENT_BYTES = 256


class HostDevice:
    """See `device.Device`. `limit_bytes` is how much memory it pretends to have."""

    kind = "cpu"

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.allocations = 0
        self._memory: dict[int, npt.NDArray[np.uint8]] = {}
        self._recording: list[Callable[[], None]] | None = None

    @property
    def used_bytes(self) -> int:
        """Memory that is allocated now."""
        return sum(array.nbytes for array in self._memory.values())

    def allocate(self, nbytes: int) -> int:
        """See `Device.allocate`."""
        assert self._recording is None, "memory is not allocated in a recording"
        if self.limit_bytes is not None and self.used_bytes + nbytes > self.limit_bytes:
            raise DeviceMemoryError(f"out of memory: {nbytes} bytes do not fit into {self.limit_bytes}")
        memory = np.empty(nbytes + _ALIGNMENT_BYTES, dtype=np.uint8)
        pointer = -(-memory.ctypes.data // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._memory[pointer] = memory
        self.allocations += 1
        return pointer

    def free(self, pointer: int) -> None:
        """See `Device.free`."""
        del self._memory[pointer]

    def staging(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """See `Device.staging`."""
        return np.empty(nbytes, dtype=np.uint8)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """See `Device.copy`."""

        def move() -> None:
            ctypes.memmove(target, source, nbytes)

        self.enqueue(move)

    def enqueue(self, work: Callable[[], None]) -> None:
        """See `Device.enqueue`."""
        if self._recording is not None:
            self._recording.append(work)
        else:
            work()

    def mark(self) -> Any:
        """See `Device.mark`."""
        return None

    def wait(self, mark: Any) -> None:
        """See `Device.wait`."""

    def synchronise(self) -> None:
        """See `Device.synchronise`."""
        assert self._recording is None, "a recording does not wait"

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Device.record`."""
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
        """See `Device.after`: work in ordinary memory is done when its call returns."""

    def check_pointer(self, pointer: int) -> None:
        """See `Device.check_pointer`: nothing is known of an address in ordinary memory."""
