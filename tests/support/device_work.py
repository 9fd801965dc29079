"""Memory and queued work of the fake GPU: work runs as late as it may, and memory holds garbage until it has run.

Work is a graph: an item runs after the one before it in its stream, and after the events that its stream waited for.
Nothing else orders it. Two items that are not ordered and touch the same memory are a race, whichever runs first.
"""

from __future__ import annotations

import ctypes
import zlib
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

ALIGNMENT_BYTES = 256
GARBAGE = 0xFF
"""Makes every float NaN."""


@dataclass(frozen=True)
class Range:
    """Bytes at an address."""

    pointer: int
    nbytes: int

    def overlaps(self, other: Range) -> bool:
        return self.pointer < other.pointer + other.nbytes and other.pointer < self.pointer + self.nbytes

    def spoil(self) -> None:
        ctypes.memset(self.pointer, GARBAGE, self.nbytes)

    def checksum(self) -> int:
        return zlib.crc32(ctypes.string_at(self.pointer, self.nbytes))


@dataclass(eq=False)
class Allocation:
    """Memory of the device, or page-locked memory of the host. Its address is never given out again."""

    nbytes: int
    pinned: bool
    free: bool = False

    def __post_init__(self) -> None:
        self._buffer = np.full(self.nbytes + ALIGNMENT_BYTES, GARBAGE, np.uint8)
        self.pointer = -(-self._buffer.ctypes.data // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def release(self) -> None:
        self.free = True
        self._buffer[:] = GARBAGE


class Memory:
    """All allocations, also those that were freed."""

    def __init__(self) -> None:
        self._at: dict[int, Allocation] = {}
        self._pointers: list[int] = []
        self._pageable: list[Range] = []

    def add(self, nbytes: int, *, pinned: bool) -> Allocation:
        made = Allocation(nbytes, pinned)
        self._at[made.pointer] = made
        insort(self._pointers, made.pointer)
        return made

    def add_pageable(self, array: np.ndarray) -> None:
        self._pageable.append(Range(array.ctypes.data, array.nbytes))

    def is_pageable(self, wanted: Range) -> bool:
        return any(
            known.pointer <= wanted.pointer and wanted.pointer + wanted.nbytes <= known.pointer + known.nbytes
            for known in self._pageable
        )

    def at(self, pointer: int) -> Allocation | None:
        """The allocation that holds this address."""
        index = bisect_right(self._pointers, pointer) - 1
        found = self._at[self._pointers[index]] if index >= 0 else None
        return found if found is not None and pointer < found.pointer + max(1, found.nbytes) else None

    def fault(self, wanted: Range) -> str | None:
        """Why these bytes must not be used. None if they may."""
        found = self.at(wanted.pointer)
        if found is None:
            return f"{wanted.pointer:#x} is in no allocation"
        if found.free:
            return f"{wanted.pointer:#x} was freed"
        if wanted.pointer + wanted.nbytes > found.pointer + found.nbytes:
            return f"{wanted.nbytes} bytes at {wanted.pointer:#x} pass the end of {found.nbytes} bytes"
        return None

    def held(self) -> list[Allocation]:
        return [each for each in self._at.values() if not each.free]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a copy or a kernel does, and the memory that it touches."""

    name: str
    reads: tuple[Range, ...]
    writes: tuple[Range, ...]
    run: Callable[[], None]

    def conflicts(self, other: Task) -> bool:
        mine, theirs = (*self.reads, *self.writes), (*other.reads, *other.writes)
        return _touch(self.writes, theirs) or _touch(other.writes, mine)


NOTHING = Task(name="nothing", reads=(), writes=(), run=lambda: None)


@dataclass(eq=False)
class Item:
    """A task in a queue."""

    task: Task
    after: list[Item]
    done: bool = False
    raced: bool = False
    spoil_after: list[Range] = field(default_factory=list)
    checksums: list[tuple[Range, int]] = field(default_factory=list)


class Work:
    """Everything that is queued and has not run. `report` takes what the program did wrong."""

    def __init__(self, memory: Memory, report: Callable[[str], None]) -> None:
        self._memory = memory
        self._report = report
        self._pending: list[Item] = []

    def queue(self, task: Task, after: Iterable[Item | None]) -> Item:
        """Add a task behind others. What it will write is garbage from now on."""
        item = Item(task, [each for each in after if each is not None and not each.done])
        before = _ancestors(item)
        conflicting = [each for each in self._pending if each.task.conflicts(task)]
        for other in conflicting:
            if other not in before:
                self._report(f"race: {task.name} is not ordered after {other.task.name}")
                item.raced = True
        for wanted in task.writes:
            if any(wanted.overlaps(own) for own in task.reads):
                continue
            users = [each for each in conflicting if _touch((wanted,), (*each.task.reads, *each.task.writes))]
            if users:
                users[-1].spoil_after.append(wanted)
            else:
                wanted.spoil()
        for source in task.reads:
            found = self._memory.at(source.pointer)
            if found is not None and found.pinned and not any(_touch((source,), e.task.writes) for e in conflicting):
                item.checksums.append((source, source.checksum()))
        self._pending.append(item)
        return item

    def finish(self, item: Item | None) -> None:
        """Run what `item` needs, and nothing else."""
        stack = [] if item is None else [item]
        while stack:
            waiting = [each for each in stack[-1].after if not each.done]
            if waiting:
                stack.append(waiting[-1])
            else:
                self._run(stack.pop())

    def finish_all(self) -> None:
        for item in list(self._pending):
            self.finish(item)

    def uses(self, allocation: Allocation) -> bool:
        """Whether queued work touches this memory."""
        whole = Range(allocation.pointer, allocation.nbytes)
        return any(_touch((whole,), (*each.task.reads, *each.task.writes)) for each in self._pending)

    def _run(self, item: Item) -> None:
        if item.done:
            return
        item.done = True  # a finaliser may come back here
        item.after.clear()
        self._pending.remove(item)
        for source, checksum in item.checksums:
            if source.checksum() != checksum:
                self._report(f"the page-locked source of {item.task.name} was changed before it was read")
        faults = [fault for each in (*item.task.reads, *item.task.writes) if (fault := self._memory.fault(each))]
        for fault in faults:
            self._report(f"{item.task.name} runs on memory that is gone: {fault}")
        if faults:
            return
        if item.raced:
            for wanted in item.task.writes:
                wanted.spoil()
        else:
            item.task.run()
        for wanted in item.spoil_after:
            wanted.spoil()


def _touch(some: Iterable[Range], others: tuple[Range, ...]) -> bool:
    return any(one.overlaps(other) for one in some for other in others)


def _ancestors(item: Item) -> set[Item]:
    found: set[Item] = set()
    stack = list(item.after)
    while stack:
        each = stack.pop()
        if each not in found:
            found.add(each)
            stack.extend(each.after)
    return found
