"""Arrays on a device, and their memory.

This package uses a `DeviceArray` like a NumPy array: its first axis can be sliced (a view) and assigned to (a queued
copy), and NumPy functions can read it. Freed blocks are used again in the order of the one queue, so a session that
has seen a length before allocates nothing.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter, deque
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
_SLICED_BYTES = 4 * 2**20
_BLOCKS_AT_ONCE = 32
"""Blocks are cut from allocations of at most this size and number."""


class Allocation:
    """Memory of the device for some blocks of one size. It is freed when none of them is used or kept any more."""

    def __init__(self, device: Device, size: int, blocks: int) -> None:
        self.blocks = blocks
        self.pointer = device.allocate(size * blocks)
        weakref.finalize(self, device.free, self.pointer).atexit = False


class Block:
    """A piece of device memory. `state["exported"]` is true once another program may use it, in its own order."""

    def __init__(self, pointer: int, nbytes: int, owner: object) -> None:
        self.pointer = pointer
        self.nbytes = nbytes
        self.owner = owner
        """The object that keeps the memory alive: our `Allocation`, or an array of another library."""
        self.state = {"exported": False}


class MemoryPool:
    """The memory of one device: blocks, and the staging memory for copies from and to the host.

    Small blocks are cut from larger allocations, several of a size at once: an allocation can take longer than a
    stage, and some, such as the features of prompts, are kept.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lock = RLock()
        """Held during a copy, which uses the staging memory, and during a recording: arrays are read in any thread."""
        self._free: dict[int, list[tuple[int, Allocation]]] = {}
        self._freed: deque[tuple[int, int, Allocation, dict[str, bool]]] = deque()
        """Blocks that nothing refers to any more. Their finalisers may run at any time, so they are only listed."""
        self._staging: npt.NDArray[np.uint8] | None = None
        self._staged = 0

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
        if not self._free.get(size):
            self._allocate(size)
        pointer, allocation = self._free[size].pop()
        block = Block(pointer, size, allocation)
        weakref.finalize(block, self._freed.append, (pointer, size, allocation, block.state)).atexit = False
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

    def read(self, *arrays: DeviceArray) -> tuple[Array, ...]:
        """Wait once for all queued work and return NumPy copies."""
        found = tuple(np.empty(array.shape, array.dtype) for array in arrays)
        staged: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = []
        with self.lock:
            for array, values in zip(arrays, found, strict=True):
                target = values.reshape(-1).view(np.uint8)
                for start in range(0, len(target), STAGING_BYTES):
                    piece = target[start : start + STAGING_BYTES]
                    if self._staged + len(piece) > STAGING_BYTES:
                        self._collect(staged)
                    source = self._stage(len(piece))
                    staged.append((piece, source))
                    self.device.copy(source.ctypes.data, array.pointer + start, len(piece))
            self._collect(staged)
        return found

    def _collect(self, staged: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]) -> None:
        """Wait, and move what has arrived in the staging memory to its targets. All of that memory is free then."""
        self.device.synchronise()
        for target, source in staged:
            target[:] = source
        staged.clear()
        self._staged = 0

    def trim(self) -> None:
        """Free all allocations of which no block is in use."""
        self._reclaim()
        self.device.synchronise()
        idle = Counter(allocation for blocks in self._free.values() for _, allocation in blocks)
        for blocks in self._free.values():
            blocks[:] = [block for block in blocks if idle[block[1]] < block[1].blocks]

    def _allocate(self, size: int) -> None:
        try:
            allocation = Allocation(self.device, size, min(_BLOCKS_AT_ONCE, max(1, _SLICED_BYTES // size)))
        except DeviceMemoryError:
            self.trim()
            allocation = Allocation(self.device, size, 1)
        places = range(allocation.pointer, allocation.pointer + allocation.blocks * size, size)
        self._free.setdefault(size, []).extend((place, allocation) for place in places)

    def _reclaim(self) -> None:
        while self._freed:
            pointer, size, allocation, state = self._freed.popleft()
            idle = sum(each * len(blocks) for each, blocks in self._free.items())
            if allocation.blocks == 1 and (state["exported"] or idle + size > _IDLE_BYTES):
                continue  # freed with its allocation; CUDA waits for other programs
            if state["exported"]:
                self.device.synchronise_all()  # another program may still use it
            self._free.setdefault(size, []).append((pointer, allocation))

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
        (values,) = self.pool.read(self)
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
