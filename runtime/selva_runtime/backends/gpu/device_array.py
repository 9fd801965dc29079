"""Arrays on a device, and their memory.

This package uses a `DeviceArray` like a NumPy array: its first axis can be sliced (a view) and assigned to (a queued
copy), and NumPy functions can read it. Freed blocks are used again in the order of the one queue, so a session that
has seen a length before allocates nothing.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError, DeviceMemoryError
from selva_runtime.backends.gpu.device import Device

Array = npt.NDArray[Any]
STAGING_BYTES = 32 * 2**20
_IDLE_BYTES = 2**30
"""Most freed memory that is kept for reuse."""
_BLOCK_BYTES = 512


class Block:
    """A piece of device memory. `state["exported"]` is true once another program may use it, in its own order."""

    def __init__(self, pointer: int, nbytes: int, owner: object = None) -> None:
        self.pointer = pointer
        self.nbytes = nbytes
        self.owner = owner
        """The object that keeps memory of another library alive. None for our own memory."""
        self.state = {"exported": False}


class _FreedBlocks:
    """Blocks that nothing refers to any more.

    While their pool is in use, they are only listed here. A finaliser may run at any time, also during a recording,
    where a call that frees memory would do harm.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._blocks: deque[tuple[int, int, bool]] = deque()
        self._closed = False

    def add(self, pointer: int, nbytes: int, state: dict[str, bool]) -> None:
        """Add a block. Called by its finaliser."""
        if self._closed:
            self._release(pointer)
        else:
            self._blocks.append((pointer, nbytes, state["exported"]))

    def take(self) -> Iterator[tuple[int, int, bool]]:
        """Remove and yield (pointer, bytes, given out) of each block."""
        while self._blocks:
            yield self._blocks.popleft()

    def close(self, free: dict[int, list[int]]) -> None:
        """Free all blocks, and from now on each block at once. Called by the finaliser of the pool."""
        self._closed = True
        for pointer in [pointer for idle in free.values() for pointer in idle] + [block[0] for block in self.take()]:
            self._release(pointer)

    def _release(self, pointer: int) -> None:
        with suppress(BackendError):
            self._device.free(pointer)


class MemoryPool:
    """The memory of one device: blocks, and the staging memory for copies from and to the host."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lock = RLock()
        """Held during a copy, which uses the staging memory, and during a recording: arrays are read in any thread."""
        self._free: dict[int, list[int]] = {}
        self._freed = _FreedBlocks(device)
        self._staging: npt.NDArray[np.uint8] | None = None
        self._staged = 0
        weakref.finalize(self, self._freed.close, self._free).atexit = False

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """Make an array with undefined values.

        Raises:
            DeviceMemoryError: the device has too little memory.
        """
        return DeviceArray(self, self.block(math.prod(shape) * np.dtype(dtype).itemsize), 0, shape, np.dtype(dtype))

    def block(self, nbytes: int) -> Block:
        """Take a block of at least `nbytes`. It comes back when nothing refers to it any more.

        Raises:
            DeviceMemoryError: the device has too little memory.
        """
        self._reclaim()
        size = max(1, math.ceil(nbytes / _BLOCK_BYTES)) * _BLOCK_BYTES
        idle = self._free.get(size)
        block = Block(idle.pop() if idle else self._allocate(size), size)
        weakref.finalize(block, self._freed.add, block.pointer, size, block.state).atexit = False
        return block

    def view(self, pointer: int, shape: tuple[int, ...], dtype: npt.DTypeLike, owner: object) -> DeviceArray:
        """Make an array in memory that `owner` keeps alive."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return DeviceArray(self, Block(pointer, size, owner), 0, shape, np.dtype(dtype))

    def put(self, values: Array) -> DeviceArray:
        """Queue a copy of `values` to the device.

        Raises:
            DeviceMemoryError: the device has too little memory.
        """
        array = self.empty(values.shape, values.dtype)
        self.write(array, values)
        return array

    def write(self, target: DeviceArray, values: Array | DeviceArray) -> None:
        """Queue a copy into `target`. NumPy values may change afterwards: they are in the staging memory by then.

        Raises:
            BackendError: `values` have another shape or type.
        """
        if values.shape != target.shape or values.dtype != target.dtype:
            raise BackendError(f"{values.dtype} {values.shape} cannot be copied into {target.dtype} {target.shape}")
        if isinstance(values, DeviceArray) and values.pool.device.kind == self.device.kind:
            self.device.copy(target.pointer, values.pointer, target.nbytes)
            return
        source = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        with self.lock:
            for start in range(0, len(source), STAGING_BYTES):
                piece = source[start : start + STAGING_BYTES]
                staged = self._stage(len(piece))
                staged[:] = piece
                self.device.copy(target.pointer + start, staged.ctypes.data, len(piece))

    def read(self, array: DeviceArray) -> Array:
        """Wait for all queued work and return a NumPy copy."""
        values = np.empty(array.shape, array.dtype)
        target = values.reshape(-1).view(np.uint8)
        with self.lock:
            for start in range(0, len(target), STAGING_BYTES):
                staged = self._stage(min(STAGING_BYTES, len(target) - start))
                self.device.copy(staged.ctypes.data, array.pointer + start, len(staged))
                self.device.synchronise()
                target[start : start + len(staged)] = staged
        return values

    def trim(self) -> None:
        """Free the idle blocks."""
        self._reclaim()
        self.device.synchronise()
        for pointers in self._free.values():
            while pointers:
                self.device.free(pointers.pop())

    def _allocate(self, size: int) -> int:
        try:
            return self.device.allocate(size)
        except DeviceMemoryError:
            self.trim()
            return self.device.allocate(size)

    def _reclaim(self) -> None:
        for pointer, size, exported in self._freed.take():
            idle = sum(each * len(pointers) for each, pointers in self._free.items())
            if exported or idle + size > _IDLE_BYTES:
                self.device.free(pointer)
            else:
                self._free.setdefault(size, []).append(pointer)

    def _stage(self, nbytes: int) -> npt.NDArray[np.uint8]:
        if self._staging is None:
            self._staging = self.device.staging(STAGING_BYTES)
        if self._staged + nbytes > STAGING_BYTES:
            self.device.synchronise()  # what was staged has been copied by then
            self._staged = 0
        piece = self._staging[self._staged : self._staged + nbytes]
        self._staged += nbytes
        return piece


class DeviceArray:
    """A contiguous array on a device. Reading it (`numpy.asarray`) waits for the work that computes it."""

    def __init__(
        self, pool: MemoryPool, block: Block, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.pool = pool
        self.shape = shape
        self.dtype = dtype
        self._block = block
        self._offset = offset

    @property
    def pointer(self) -> int:
        """Address on the device."""
        return self._block.pointer + self._offset

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Share the memory with PyCUDA, CuPy, PyTorch, … without a copy. The values are complete."""
        self._block.state["exported"] = True
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        values = self.pool.read(self)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | None) -> DeviceArray:
        if key is None:
            return DeviceArray(self.pool, self._block, self._offset, (1, *self.shape), self.dtype)
        rows = range(len(self))[key]
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if isinstance(rows, int):
            return DeviceArray(self.pool, self._block, self._offset + rows * row_bytes, self.shape[1:], self.dtype)
        if rows.step != 1:
            raise IndexError("the rows of a device array must be consecutive")
        offset = self._offset + rows.start * row_bytes
        return DeviceArray(self.pool, self._block, offset, (len(rows), *self.shape[1:]), self.dtype)

    def __setitem__(self, key: int | slice, values: Array | DeviceArray) -> None:
        self.pool.write(self[key], values)
