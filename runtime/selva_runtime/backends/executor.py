"""What runs a graph: the interface that the session sees, and the one place where a backend is chosen.

A backend is a class with these members. Its tensors are NumPy arrays or arrays that stay on a device; both are cut
and filled along their first axis in the same way, so that the session does not know which they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError, Cancelled, RequestError
from selva_bundle.manifest import Graph
from selva_runtime.backends.gpu.device_array import DeviceArray

Array = npt.NDArray[Any]
Tensor = Array | DeviceArray
POLL_S = 0.05
"""How often what is waited for is looked at, so that Ctrl-C and a cancel event stop it."""
EXACT, BF16 = PRECISIONS = ("exact", "bf16")
"""What a backend computes in: the bundle's own precision, or bfloat16 for what takes the time."""


@dataclass(frozen=True, kw_only=True)
class CpuSettings:
    """How the CPU is to be used. Raises `RequestError`."""

    threads: int | None = None
    """None: as many as the process may use."""
    precision: str = EXACT

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise RequestError(f"threads is {self.threads}; give a number from 1 to 1024")
        if self.precision not in PRECISIONS:
            raise RequestError(f"no precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}")


class Loop(Protocol):
    """A backend's own integration of the flow."""

    def __call__(
        self,
        noise: Array,
        conditions: Mapping[str, Tensor],
        *,
        steps: int,
        guidance: float,
        cancel: Event | None,
        on_step: Callable[[], None],
    ) -> Tensor:
        """(B, T, Z) latents at time 1, after `steps` Euler steps; `on_step` is called once for each, perhaps late."""


class Executor(Protocol):
    """Runs the graphs of one bundle."""

    segments_per_batch: int
    """Video segments to give to the backbone, or to the selection, at once. These three are halved when memory
    does not suffice."""
    stems_per_batch: int
    """Stems to integrate at once."""
    stems_per_decode: int
    """Stems to decode at once."""
    notice: str
    """What `auto` took and why, in a few words for a person; empty where the backend was asked for."""

    @property
    def backend(self) -> str:
        """Name that chose it."""

    @property
    def reason(self) -> str:
        """Why it was chosen."""

    @property
    def keeps_text_towers(self) -> bool:
        """Whether the text towers stay loaded between prompts unless the caller says otherwise."""

    @property
    def loop(self) -> Loop | None:
        """The flow on the device; None: `flow.integrate` runs `guided_step` step by step."""

    def load(self, name: str) -> None:
        """Make graph `name` ready, its files verified; does nothing when it is."""

    def run(self, name: str, feeds: Mapping[str, Tensor], cancel: Event | None = None) -> dict[str, Tensor]:
        """Outputs of graph `name` by their names. Raises `Cancelled` when `cancel` is set, or soon after it is."""

    def release(self, name: str) -> None:
        """Free graph `name`; it loads again at its next use."""

    def idle(self, name: str) -> None:
        """This call has no more use of graph `name`: a backend that is short of memory releases it."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """A tensor to fill."""

    def put(self, values: Tensor) -> Tensor:
        """`values` where the graphs run."""

    def adopt(self, array: Any) -> Tensor:
        """Another library's GPU array, without a copy; raises `RequestError`."""

    def after(self, stream: int) -> None:
        """Wait, on the device, for what the caller's stream holds by now; raises `RequestError`."""

    def finish(self) -> None:
        """A call has ended: keep what makes the next start faster."""


def check_feeds(graph: Graph, feeds: Mapping[str, Tensor]) -> None:
    """Raise `BackendError` unless `feeds` are what the manifest says that `graph` takes."""
    if set(feeds) != {port.name for port in graph.inputs}:
        expected = ", ".join(port.name for port in graph.inputs)
        raise BackendError(f"graph {graph.name} takes {expected}, not {', '.join(feeds)}: another version's bundle?")
    for port in graph.inputs:
        array = feeds[port.name]
        fits = len(array.shape) == len(port.shape) and all(
            isinstance(size, str) or size == real for size, real in zip(port.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(port.dtype):
            raise BackendError(
                f"graph {graph.name} takes {port.name} as {port.dtype} {list(port.shape)}, "
                f"not {array.dtype} {list(array.shape)}: another version's bundle?"
            )


def check_cancel(cancel: Event | None) -> None:
    """Raise `Cancelled` when the caller's event is set."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled: the caller's event was set")


def check_process(opened_in: int) -> None:
    """Raise `BackendError` in a process that was forked from the one that opened the executor.

    A fork takes along none of the threads that the libraries compute with: they would be waited for, for ever.
    """
    if os.getpid() != opened_in:
        raise BackendError(f"the session was opened in process {opened_in}, before a fork; open one in this process")


def joined(executor: Executor, parts: Sequence[Tensor]) -> Tensor:
    """The parts one after another along their first axis."""
    if len(parts) == 1:
        return parts[0]
    whole = executor.empty((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype)
    start = 0
    for part in parts:
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def stacked(executor: Executor, parts: Sequence[Tensor]) -> Tensor:
    """The parts along a new first axis."""
    return joined(executor, [part[None] for part in parts])
