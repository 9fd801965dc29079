"""The interface between the session and the backends.

A backend is a class with the members of `Executor`. Its tensors are NumPy arrays or arrays on a device. Both are
sliced and assigned along their first axis in the same way, so the session need not know which it has.
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
from selva_runtime.backends.solvers import Held

Array = npt.NDArray[Any]
Tensor = Array | DeviceArray
POLL_S = 0.05
"""Seconds between two checks during a wait, so that Ctrl-C and a cancel event can stop it."""
EXACT, BF16, INT8 = COMPUTE_PRECISIONS = ("exact", "bf16", "int8")
"""Precision of the computation: the bundle's own, bfloat16 for the slow parts, or int8 for large linear layers."""


@dataclass(frozen=True, kw_only=True)
class CpuSettings:
    """Settings of a CPU backend.

    Raises:
        RequestError: `threads` or `compute_precision` is out of range.
    """

    threads: int | None = None
    """None means as many as the process may use."""
    compute_precision: str = EXACT

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise RequestError(f"threads is {self.threads}; give a number from 1 to 1024")
        if self.compute_precision not in COMPUTE_PRECISIONS:
            known = ", ".join(COMPUTE_PRECISIONS)
            raise RequestError(f"unknown precision {self.compute_precision!r}; choose one of {known}")


class Loop(Protocol):
    """A backend's own loop over the steps of the flow."""

    def __call__(
        self,
        noise: Array,
        conditions: Mapping[str, Tensor],
        *,
        graph: str,
        steps: int,
        guidance: float,
        solver: str,
        held: Held | None,
        keep_states: bool,
        cancel: Event | None,
        on_step: Callable[[], None],
    ) -> tuple[Tensor, Tensor | None]:
        """Integrate `noise` (B, T, Z) in `steps` runs of `graph` to latents (B, T, Z) at time 1.

        With `keep_states` it also returns the state at the start of each step, after holding: (steps, B, T, Z).
        `on_step` is called once for each step, perhaps late.

        Raises:
            BackendError: the backend failed.
            Cancelled: `cancel` was set.
        """


class Executor(Protocol):
    """Runs the graphs of one bundle."""

    segments_per_batch: int
    """Video segments that the backbone or the selection takes at once. This limit and the next two are halved if
    memory runs out."""
    stems_per_batch: int
    """Stems that are integrated at once."""
    stems_per_decode: int
    """Stems that are decoded at once."""
    text_lengths: tuple[int, ...]
    """Numbers of tokens to which T5 prompts are padded, ascending. Empty if they are not."""
    notice: str
    """What `auto` chose and why, and what would be faster, in a few words for a person. May be empty."""

    @property
    def backend(self) -> str:
        """Name of the backend."""

    @property
    def reason(self) -> str:
        """Why the backend was chosen."""

    @property
    def keeps_text_towers(self) -> bool:
        """Whether the text towers stay loaded between prompts by default."""

    @property
    def loop(self) -> Loop | None:
        """The loop on the device. None means that `flow.integrate` runs the graph step by step."""

    def load(self, name: str) -> None:
        """Verify the files of graph `name` and load it, unless it is loaded.

        Raises:
            BundleError: a file was altered.
            BackendError: the library cannot load the graph.
        """

    def run(self, name: str, feeds: Mapping[str, Tensor], cancel: Event | None = None) -> dict[str, Tensor]:
        """Run graph `name` and return its outputs by name. `cancel` stops the run at once or soon.

        On a device the run is only queued; `read` waits for it.

        Raises:
            BundleError: a file was altered.
            BackendError: the feeds or the outputs do not fit the manifest, or the library failed.
            Cancelled: `cancel` was set.
        """

    def read(self, *tensors: Tensor) -> tuple[Array, ...]:
        """Return the values of tensors, with one wait for all of them.

        Raises:
            BackendError: work that computes them failed.
        """

    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""

    def idle(self, name: str) -> None:
        """Say that this call needs graph `name` no more. A backend with little memory releases it."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """Make a tensor with undefined values."""

    def put(self, values: Tensor) -> Tensor:
        """Return `values` where the graphs run, copied if needed."""

    def adopt(self, array: Any) -> Tensor:
        """Use another library's GPU array without a copy.

        Raises:
            RequestError: the backend cannot use the array.
        """

    def after(self, stream: int) -> None:
        """Make the device wait for the work that is now in the caller's stream.

        Raises:
            RequestError: the backend has no streams.
        """

    def finish(self) -> None:
        """Complete the results of a call, and save what makes the next start faster."""


def check_feeds(graph: Graph, feeds: Mapping[str, Tensor]) -> None:
    """Check that `feeds` have the names, types and shapes that the manifest says.

    Raises:
        BackendError: they do not.
    """
    if set(feeds) != {port.name for port in graph.inputs}:
        expected = ", ".join(port.name for port in graph.inputs)
        raise BackendError(f"graph {graph.name} takes {expected}, not {', '.join(feeds)}; export the bundle again")
    for port in graph.inputs:
        array = feeds[port.name]
        fits = len(array.shape) == len(port.shape) and all(
            isinstance(size, str) or size == real for size, real in zip(port.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(port.dtype):
            raise BackendError(
                f"graph {graph.name} takes {port.name} as {port.dtype} {list(port.shape)}, "
                f"not {array.dtype} {list(array.shape)}; export the bundle again"
            )


def check_cancel(cancel: Event | None) -> None:
    """Check whether the caller's event is set.

    Raises:
        Cancelled: it is set.
    """
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled: the caller's event was set")


def check_process(opened_in: int) -> None:
    """Check that this is the process that opened the executor.

    The libraries compute in threads that a forked process does not have. It would wait for them forever.

    Raises:
        BackendError: this is another process.
    """
    if os.getpid() != opened_in:
        raise BackendError(f"the session was opened in process {opened_in}, before a fork; open one in this process")


def concatenate(executor: Executor, parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the parts along their first axis: (n, …), (m, …) → (n + m, …)."""
    if len(parts) == 1:
        return parts[0]
    whole = executor.empty((sum(len(part) for part in parts), *parts[0].shape[1:]), parts[0].dtype)
    start = 0
    for part in parts:
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def stack(executor: Executor, parts: Sequence[Tensor]) -> Tensor:
    """Stack the parts along a new first axis: k parts of (…) → (k, …)."""
    return concatenate(executor, [part[None] for part in parts])
