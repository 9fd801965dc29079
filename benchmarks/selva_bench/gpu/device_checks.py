"""Checks of the device class: each does something whose result is known, and fails with what it found instead.

They need no model and no library but cuda-python. All of them also hold in ordinary memory, where a dry run and
the tests run them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from selva_bench.options import BenchError
from selva_bundle.errors import DeviceMemoryError, RequestError
from selva_runtime.backends import solvers
from selva_runtime.backends.gpu.device_array import STAGING_BYTES, MemoryPool

Make = Callable[[], Any]
"""Makes a device: of the GPU, or in ordinary memory."""
_ALIGNMENT_BYTES = 256
_LARGE = 2**21
"""Numbers in an array that takes a GPU a while to copy."""
_TOO_MANY_BYTES = 2**50


def memory(make: Make) -> None:
    """Blocks are aligned and apart, and their memory comes back."""
    device = make()
    before = getattr(device, "free_bytes", None)
    pointers = [device.allocate(2**26) for _ in range(4)]
    _equal([pointer % _ALIGNMENT_BYTES for pointer in pointers], [0] * 4)
    _true(np.diff(sorted(pointers)).min() >= 2**26, "two blocks overlap")
    for pointer in pointers:
        device.free(pointer)
    if before is not None:
        _true(device.free_bytes >= before - 2**27, "freed memory does not come back")


def copies(make: Make) -> None:
    """Arrays of every size come back as they were, also those larger than the staging memory."""
    pool = MemoryPool(make())
    for nbytes in (1, 255, 4097, STAGING_BYTES + 3):
        values = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
        _equal(pool.read(pool.put(values)), values)


def order(make: Make) -> None:
    """Work runs in the order in which it was queued: copies from row to row, without waiting between."""
    rows = MemoryPool(make()).put(np.zeros((100, 1000), np.int32))
    rows[0] = np.full(1000, 7, np.int32)
    for i in range(99):
        rows[i + 1] = rows[i]
    _equal(np.asarray(rows), np.full((100, 1000), 7, np.int32))


def staging(make: Make) -> None:
    """Page-locked memory is read and written by the device. `wait` returns when the copies before its mark are done."""
    device = make()
    pointer, staged = device.allocate(_LARGE), device.staging(_LARGE)
    values = np.random.default_rng(0).integers(0, 256, _LARGE, np.uint8)
    staged[:] = values
    device.copy(pointer, staged.ctypes.data, _LARGE)
    device.wait(device.mark())
    staged[:] = 0
    device.copy(staged.ctypes.data, pointer, _LARGE)
    device.wait(device.mark())
    _equal(staged, values)
    device.free(pointer)


def recording(make: Make) -> None:
    """A recording runs nothing until it is launched, then all of it, as often as it is launched."""
    device = make()
    pool = MemoryPool(device)
    first, second, third = (pool.put(np.full(1000, i, np.int64)) for i in (1, 2, 3))

    def work() -> None:
        pool.write(third, second)
        pool.write(second, first)

    replay = device.record(work)
    _equal([int(np.asarray(each)[-1]) for each in (first, second, third)], [1, 2, 3])
    replay()
    _equal([int(np.asarray(each)[-1]) for each in (first, second, third)], [1, 1, 2])
    pool.write(first, np.full(1000, 9, np.int64))
    replay()
    replay()
    _equal([int(np.asarray(each)[-1]) for each in (first, second, third)], [9, 9, 9])


def recording_amid_garbage(make: Make) -> None:
    """Memory, streams, events and recordings that are collected during a recording do not break it."""
    device, other = make(), make()
    pool = MemoryPool(device)
    source, target = pool.put(np.arange(1000)), pool.put(np.zeros(1000, np.int64))
    garbage: list[Any] = [other, MemoryPool(other).put(np.arange(5)), other.mark(), other.record(lambda: None)]
    garbage.append(garbage)
    other.synchronise()
    del other

    def work() -> None:
        garbage.clear()
        gc.collect()
        pool.write(target, source)

    device.record(work)()
    _equal(np.asarray(target), np.arange(1000))


def kernels(make: Make) -> None:
    """The solvers' kernels compute what NumPy does to the last bit, recorded and with NaN where values do not count."""
    device = make()
    pool, rng = MemoryPool(device), np.random.default_rng(0)
    x, y, known, last = (rng.standard_normal((3, 130, 20), np.float32) for _ in range(4))
    weights = rng.choice(np.array([0, 0.3, 1], np.float32), 130)
    known[:, weights == 0] = np.nan
    state, euler, values, rows, before = (pool.put(each) for each in (x, y, known, weights, last))
    gains = pool.put(np.array([0, 0.5], np.float32))
    work = device.kernels  # loaded before the recording

    def steps() -> None:
        work.blend(state, values, rows)
        work.advance(state, euler, before, gains[:1])
        work.advance(state, euler, before, gains[1:])

    device.record(steps)()
    after, change = solvers.advance(solvers.blend(x, known, weights), y, None)
    after, change = solvers.advance(after, y, change)
    found = pool.read(state, before)
    _equal(found[0], after)
    _equal(found[1], change)


def streams(make: Make) -> None:
    """After `after`, the device reads what another stream was still writing."""
    ours, other = make(), make()
    theirs, pool = MemoryPool(other), MemoryPool(ours)
    rows = theirs.put(np.zeros((8, _LARGE), np.int32))
    found = pool.empty((_LARGE,), np.int32)
    for number in range(1, 11):
        rows[0] = np.full(_LARGE, number, np.int32)
        for i in range(7):
            rows[i + 1] = rows[i]
        ours.after(getattr(other, "stream", 0))
        pool.write(found, rows[7])
        _equal(np.asarray(found)[[0, -1]], [number, number])


def refusals(make: Make) -> None:
    """Too much memory is a typed error, after which the device works. An address of the host is refused."""
    device = make()
    pool = MemoryPool(device)
    try:
        pool.block(_TOO_MANY_BYTES)
    except DeviceMemoryError:
        _equal(np.asarray(pool.put(np.arange(5))), np.arange(5))
    else:
        raise BenchError(f"{_TOO_MANY_BYTES} bytes were allocated")
    if device.kind == "cuda":
        device.check_pointer(pool.put(np.arange(5)).pointer)
        host = np.arange(5)
        try:
            device.check_pointer(host.ctypes.data)
        except RequestError:
            return
        raise BenchError("an address of the host was taken for one of the device")


def speed(make: Make) -> dict[str, float]:
    """Bandwidth of copies, and the time of a launch with its wait. On a GPU these say whether the link is healthy."""
    device = make()
    pool = MemoryPool(device)
    nbytes = STAGING_BYTES
    staged = device.staging(nbytes)
    source, target = pool.block(nbytes), pool.block(nbytes)
    replay = device.record(lambda: device.copy(target.pointer, source.pointer, 1))

    def seconds(work: Callable[[], None]) -> float:
        found = []
        for _ in range(20):
            device.synchronise()
            start_s = perf_counter()
            work()
            device.synchronise()
            found.append(perf_counter() - start_s)
        return median(found)

    return {
        "to_device_gb_per_s": nbytes / 1e9 / seconds(lambda: device.copy(target.pointer, staged.ctypes.data, nbytes)),
        "to_host_gb_per_s": nbytes / 1e9 / seconds(lambda: device.copy(staged.ctypes.data, source.pointer, nbytes)),
        "launch_and_wait_us": 1e6 * seconds(replay),
    }


CHECKS: tuple[Callable[[Make], dict[str, float] | None], ...] = (
    memory,
    copies,
    order,
    staging,
    recording,
    recording_amid_garbage,
    kernels,
    streams,
    refusals,
    speed,
)


def _equal(found: npt.ArrayLike, wanted: npt.ArrayLike) -> None:
    one, other = np.asarray(found).reshape(-1), np.asarray(wanted).reshape(-1)
    _true(one.shape == other.shape, f"{one.size} values instead of {other.size}")
    wrong = np.flatnonzero(one != other)
    if wrong.size:
        raise BenchError(f"{wrong.size} of {one.size} values are wrong; the first is {one[wrong[0]]}, at {wrong[0]}")


def _true(holds: Any, otherwise: str) -> None:
    if not holds:
        raise BenchError(otherwise)
