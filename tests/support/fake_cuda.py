# ruff: noqa: N802
"""A fake of the module `cuda.bindings.runtime`, stricter than a GPU, for tests of the code above it without one.

Every wrong use is kept as a violation, and `check` fails the test for it: a handle after its end, memory outside of an
allocation or freed in use, a page-locked buffer changed before it was copied, two pieces of work that no event or wait
orders, an error that nobody read, anything that was never freed. Enumerations and handle types are the real ones.

It does not model: several devices, managed memory, memory pools, priorities, forks inside a capture, kernels that fail
while they run, and time. Freed addresses never come back.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real
from device_work import NOTHING, Item, Memory, Range, Task, Work
from fake_driver import FakeDriver

_ERROR, _MODE = real.cudaError_t, real.cudaStreamCaptureMode
_FIRST_HANDLE, _HANDLE_STEP = 0x5E1A0000, 16
_LEGACY, _PER_THREAD = 1, 2


@dataclass(eq=False)
class Stream:
    kind = "stream"
    blocking: bool
    last: Item | None = None
    capture: Capture | None = None


@dataclass(eq=False)
class Capture:
    stream: Stream
    mode: Any
    thread: int
    tasks: list[Task] = field(default_factory=list)
    valid: bool = True


@dataclass(eq=False)
class Event:
    kind = "event"
    item: Item | None = None
    capture: Capture | None = None


@dataclass(eq=False)
class Graph:
    kind = "graph"
    tasks: list[Task]


@dataclass(eq=False)
class GraphExec:
    kind = "executable graph"
    tasks: list[Task]


class Refused(Exception):  # noqa: N818
    """A call that returns an error."""

    def __init__(self, error: Any) -> None:
        self.error = error


def _call(results: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a method one of CUDA's functions: counted, one at a time, (error, results…) instead of exceptions."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(self: FakeCuda, *arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls[function.__name__] += 1
                try:
                    found = function(self, *arguments)
                except Refused as refused:
                    self._unread = refused.error
                    return refused.error, *([None] * results)
            self.after.get(function.__name__, lambda: None)()
            return _ERROR.cudaSuccess, *(() if results == 0 else found if results > 1 else (found,))

        return call

    return decorate


class FakeCuda:
    """Replaces the module. `limit_bytes` is the memory of the device."""

    def __init__(self, limit_bytes: int = 2**33, name: str = "Fake 4090", capability: tuple[int, int] = (8, 9)) -> None:
        self.limit_bytes = limit_bytes
        self.calls: Counter[str] = Counter()
        """How often each function was called."""
        self.after: dict[str, Callable[[], None]] = {}
        """What else happens in the process after a call of this function, such as a garbage collection."""
        self.violations: list[str] = []
        self.driver = FakeDriver(self)
        self.capability = capability
        self._name = name
        self._lock = threading.RLock()
        self._memory = Memory()
        self._work = Work(self._memory, self.violations.append)
        self._handles: dict[int, Any] = {0: Stream(True), _LEGACY: Stream(True), _PER_THREAD: Stream(True)}
        self._handles[0] = self._handles[_LEGACY]
        self._gone: set[int] = set()
        self._modes: dict[int, Any] = {}
        self._unread: Any = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(real, name)
        if isinstance(found, (type, int)):
            return found
        raise AttributeError(f"the fake has no {name}")

    @property
    def waits(self) -> int:
        """How often the host waited for the device."""
        return sum(count for name, count in self.calls.items() if name.endswith("Synchronize"))

    @property
    def captures(self) -> bool:
        """Whether a stream captures."""
        return any(each.capture is not None for each in self._streams())

    @property
    def used_bytes(self) -> int:
        return sum(each.nbytes for each in self._memory.held() if not each.pinned)

    def check(self) -> None:
        """Fails if anything was done wrong or is left over."""
        gc.collect()
        wrong = [*self.violations, *(f"never destroyed: {what}" for what in self.leaks())]
        if self._unread is not None:
            wrong.append(f"nobody read the error {self._unread.name}")
        assert not wrong, "\n".join(wrong)

    def leaks(self) -> list[str]:
        kept = (self._handles[_LEGACY], self._handles[_PER_THREAD])
        handles = [f"{each.kind} {handle:#x}" for handle, each in self._handles.items() if each not in kept]
        memory = [f"{each.nbytes} bytes at {each.pointer:#x}" for each in self._memory.held()]
        return handles + memory

    def pageable(self, array: np.ndarray) -> np.ndarray:
        """Lets copies use this ordinary host memory, which the caller keeps alive."""
        self._memory.add_pageable(array)
        return array

    def launch(self, name: str, stream: int, run: Callable[[], None], reads: list[Range], writes: list[Range]) -> Any:
        """Queue a kernel, as a library does. Returns an error, which may be that of an earlier call nobody read."""
        with self._lock:
            if self._unread is not None:
                return self._unread
            try:
                self._queue(stream, Task(name=name, reads=tuple(reads), writes=tuple(writes), run=run))
            except Refused as refused:
                self._unread = refused.error
                return refused.error
            return _ERROR.cudaSuccess

    def take(self, stream: int, task: Task) -> bool:
        """Queue a kernel of the driver, whose errors are its own. Says whether it was taken."""
        with self._lock:
            try:
                self._queue(stream, task)
            except Refused:
                return False
            return True

    def module(self, api: str) -> FakeCuda | FakeDriver:
        """The fake of `cuda.bindings.runtime` or `.driver`."""
        return {"runtime": self, "driver": self.driver}[api]

    # The device.

    @_call(1)
    def cudaGetDeviceCount(self) -> int:
        return 1

    @_call()
    def cudaSetDevice(self, device: int) -> None:
        if device != 0:
            raise Refused(_ERROR.cudaErrorInvalidDevice)

    @_call(1)
    def cudaGetDeviceProperties(self, device: int) -> Any:
        major, minor = self.capability
        return SimpleNamespace(name=self._name.encode().ljust(256, b"\0"), major=major, minor=minor)

    @_call()
    def cudaDeviceSynchronize(self) -> None:
        self._potentially_unsafe()
        for stream in self._streams():
            self._refuse_capturing(stream)
        self._work.finish_all()

    def cudaGetLastError(self) -> tuple[Any]:
        last, self._unread = self._unread, None
        return (_ERROR.cudaSuccess if last is None else last,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return real.cudaGetErrorString(error)

    # Memory.

    @_call(2)
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.limit_bytes - self.used_bytes, self.limit_bytes

    @_call(1)
    def cudaMalloc(self, size: int) -> int:
        self._potentially_unsafe()
        if self.used_bytes + size > self.limit_bytes:
            raise Refused(_ERROR.cudaErrorMemoryAllocation)
        return self._memory.add(size, pinned=False).pointer

    @_call()
    def cudaFree(self, pointer: int) -> None:
        self._potentially_unsafe()
        found = self._allocation(pointer, pinned=False)
        self._work.finish_all()
        found.release()

    @_call(1)
    def cudaHostAlloc(self, size: int, flags: int) -> int:
        self._potentially_unsafe()
        return self._memory.add(size, pinned=True).pointer

    @_call()
    def cudaFreeHost(self, pointer: int) -> None:
        self._potentially_unsafe()
        found = self._allocation(pointer, pinned=True)
        if self._work.uses(found):
            self.violations.append(f"page-locked memory at {pointer:#x} is freed while queued work uses it")
        found.release()

    @_call()
    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: Any, stream: Any) -> None:
        wanted, given = Range(int(target), nbytes), Range(int(source), nbytes)
        pageable = [each for each in (wanted, given) if self._memory.is_pageable(each)]

        def move() -> None:
            ctypes.memmove(wanted.pointer, given.pointer, nbytes)

        if not pageable:
            self._queue(stream, Task(name="copy", reads=(given,), writes=(wanted,), run=move))
            return
        queue = self._stream(stream)
        self._refuse_capturing(queue)
        for each in (wanted, given):
            self._refuse_fault(each, "copy")
        self._work.finish(queue.last)
        move()

    @_call(1)
    def cudaPointerGetAttributes(self, pointer: int) -> Any:
        found, kinds = self._memory.at(pointer), real.cudaMemoryType
        if found is None or found.free:
            return SimpleNamespace(type=kinds.cudaMemoryTypeUnregistered, device=-2)
        return SimpleNamespace(type=kinds.cudaMemoryTypeHost if found.pinned else kinds.cudaMemoryTypeDevice, device=0)

    # Streams and events.

    @_call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._make(real.cudaStream_t, Stream(blocking=flags != real.cudaStreamNonBlocking))

    @_call()
    def cudaStreamDestroy(self, stream: Any) -> None:
        self._potentially_unsafe()
        if self._stream(stream).capture is not None:
            self.violations.append("a stream is destroyed while it captures")
        self._end(stream)

    @_call()
    def cudaStreamSynchronize(self, stream: Any) -> None:
        found = self._stream(stream)
        self._refuse_capturing(found)
        self._potentially_unsafe()
        self._work.finish(found.last)

    @_call(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return self._make(real.cudaEvent_t, Event())

    @_call()
    def cudaEventDestroy(self, event: Any) -> None:
        self._known(event, Event)
        self._end(event)

    @_call()
    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        found, queue = self._known(event, Event), self._stream(stream)
        self._refuse_implicit(queue)
        found.capture = queue.capture
        found.item = None if queue.capture is not None else queue.last

    @_call()
    def cudaEventSynchronize(self, event: Any) -> None:
        found = self._known(event, Event)
        self._refuse_captured(found)
        self._potentially_unsafe()
        self._work.finish(found.item)

    @_call()
    def cudaEventQuery(self, event: Any) -> None:
        found = self._known(event, Event)
        self._refuse_captured(found)
        self._potentially_unsafe()
        if found.item is not None and not found.item.done:
            raise Refused(_ERROR.cudaErrorNotReady)

    @_call()
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        queue, found = self._stream(stream), self._known(event, Event)
        if found.capture is not queue.capture:
            for capture in filter(None, (found.capture, queue.capture)):
                capture.valid = False
            raise Refused(_ERROR.cudaErrorStreamCaptureIsolation)
        if queue.capture is None:
            queue.last = self._work.queue(NOTHING, [queue.last, found.item])

    # Captures and graphs.

    @_call()
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        queue = self._stream(stream)
        if queue is self._handles[_LEGACY]:
            raise Refused(_ERROR.cudaErrorStreamCaptureUnsupported)
        if queue.capture is not None:
            raise Refused(_ERROR.cudaErrorIllegalState)
        queue.capture = Capture(queue, mode, threading.get_ident())

    @_call(1)
    def cudaStreamEndCapture(self, stream: Any) -> Any:
        queue = self._stream(stream)
        capture, relaxed = queue.capture, _MODE.cudaStreamCaptureModeRelaxed
        if capture is None:
            raise Refused(_ERROR.cudaErrorIllegalState)
        if capture.mode != relaxed and capture.thread != threading.get_ident():
            raise Refused(_ERROR.cudaErrorStreamCaptureWrongThread)
        queue.capture = None
        if not capture.valid:
            raise Refused(_ERROR.cudaErrorStreamCaptureInvalidated)
        return self._make(real.cudaGraph_t, Graph(capture.tasks))

    @_call(1)
    def cudaThreadExchangeStreamCaptureMode(self, mode: Any) -> Any:
        before = self._mode()
        self._modes[threading.get_ident()] = mode
        return before

    @_call(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return self._make(real.cudaGraphExec_t, GraphExec(list(self._known(graph, Graph).tasks)))

    @_call()
    def cudaGraphDestroy(self, graph: Any) -> None:
        self._known(graph, Graph)
        self._end(graph)

    @_call()
    def cudaGraphUpload(self, executable: Any, stream: Any) -> None:
        self._known(executable, GraphExec)
        self._refuse_capturing(self._stream(stream))

    @_call()
    def cudaGraphLaunch(self, executable: Any, stream: Any) -> None:
        for task in self._known(executable, GraphExec).tasks:
            self._queue(stream, task)

    @_call()
    def cudaGraphExecDestroy(self, executable: Any) -> None:
        self._potentially_unsafe()
        self._known(executable, GraphExec)
        self._end(executable)

    # Rules.

    def _queue(self, stream: Any, task: Task) -> None:
        queue = self._stream(stream)
        for each in (*task.reads, *task.writes):
            self._refuse_fault(each, task.name)
        self._refuse_implicit(queue)
        if queue.capture is None:
            queue.last = self._work.queue(task, [queue.last, *self._implicit(queue)])
        elif queue.capture.valid:
            queue.capture.tasks.append(task)
        else:
            raise Refused(_ERROR.cudaErrorStreamCaptureInvalidated)

    def _implicit(self, queue: Stream) -> list[Item | None]:
        """The legacy stream waits for all blocking streams, and they for it."""
        legacy = self._handles[_LEGACY]
        others = [each for each in self._streams() if each.blocking] if queue is legacy else [legacy]
        return [each.last for each in others] if queue.blocking else []

    def _refuse_implicit(self, queue: Stream) -> None:
        if queue is self._handles[_LEGACY]:
            for capture in [each.capture for each in self._streams() if each.blocking and each.capture is not None]:
                capture.valid = False
                raise Refused(_ERROR.cudaErrorStreamCaptureImplicit)

    def _refuse_capturing(self, queue: Stream) -> None:
        if queue.capture is not None:
            queue.capture.valid = False
            raise Refused(_ERROR.cudaErrorStreamCaptureUnsupported)

    def _refuse_captured(self, event: Event) -> None:
        if event.capture is not None:
            event.capture.valid = False
            raise Refused(_ERROR.cudaErrorCapturedEvent)

    def _refuse_fault(self, wanted: Range, name: str) -> None:
        if not self._memory.is_pageable(wanted) and (fault := self._memory.fault(wanted)):
            self.violations.append(f"{name}: {fault}")
            raise Refused(_ERROR.cudaErrorInvalidValue)

    def _potentially_unsafe(self) -> None:
        """Refuse a call that a capture forbids, as `cudaThreadExchangeStreamCaptureMode` describes. It ends both."""
        here, mine = threading.get_ident(), self._mode()
        hit = [
            capture
            for capture in (each.capture for each in self._streams())
            if capture is not None
            and mine != _MODE.cudaStreamCaptureModeRelaxed
            and (
                (capture.thread == here and capture.mode != _MODE.cudaStreamCaptureModeRelaxed)
                or (capture.mode == mine == _MODE.cudaStreamCaptureModeGlobal)
            )
        ]
        for capture in hit:
            capture.valid = False
        if hit:
            raise Refused(_ERROR.cudaErrorStreamCaptureUnsupported)

    def _mode(self) -> Any:
        return self._modes.get(threading.get_ident(), _MODE.cudaStreamCaptureModeGlobal)

    def _streams(self) -> list[Stream]:
        return [each for handle, each in self._handles.items() if handle and isinstance(each, Stream)]

    # Handles.

    def _make(self, kind: Any, what: Any) -> Any:
        handle = _FIRST_HANDLE + _HANDLE_STEP * (len(self._handles) + len(self._gone))
        self._handles[handle] = what
        return kind(handle)

    def _end(self, handle: Any) -> None:
        del self._handles[int(handle)]
        self._gone.add(int(handle))

    def _stream(self, handle: Any) -> Stream:
        return self._known(handle, Stream)

    def _known(self, handle: Any, kind: type[Any]) -> Any:
        found = self._handles.get(int(handle))
        if not isinstance(found, kind):
            why = "was destroyed" if int(handle) in self._gone else "is unknown"
            self.violations.append(f"{kind.__name__.lower()} {int(handle):#x} {why}")
            raise Refused(_ERROR.cudaErrorInvalidResourceHandle)
        return found

    def _allocation(self, pointer: int, *, pinned: bool) -> Any:
        found = self._memory.at(pointer)
        if found is None or found.pointer != pointer or found.free or found.pinned != pinned:
            self.violations.append(f"{pointer:#x} is freed, but is no allocation of this kind or was freed before")
            raise Refused(_ERROR.cudaErrorInvalidValue)
        return found
