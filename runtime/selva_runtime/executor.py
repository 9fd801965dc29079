"""What runs a graph: the interface that the session sees, and the one place where a backend is chosen.

A backend is a class with these members. It takes NumPy arrays and gives NumPy arrays, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .errors import BackendError
from .manifest import Graph

Array = npt.NDArray[Any]
BACKENDS = ("cpu",)


class Executor(Protocol):
    """Runs the graphs of one bundle."""

    @property
    def backend(self) -> str:
        """Name that chose it."""

    @property
    def segments_per_batch(self) -> int:
        """Video segments to give to the backbone, or to the selection, at once."""

    @property
    def stems_per_batch(self) -> int:
        """Stems to integrate at once."""

    def load(self, name: str) -> None:
        """Make graph `name` ready, its files verified; does nothing when it is."""

    def run(self, name: str, feeds: Mapping[str, Array], cancel: Event | None = None) -> dict[str, Array]:
        """Outputs of graph `name` by their names. Raises `Cancelled` when `cancel` is set, or soon after it is."""

    def release(self, name: str) -> None:
        """Free graph `name`; it loads again at its next use."""


def make_executor(bundle: Bundle, backend: str, threads: int | None) -> Executor:
    """The executor called `backend` ("auto": the best there is); raises `BackendError` when there is none."""
    if backend not in ("auto", *BACKENDS):
        raise BackendError(f"no backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    from .onnx_cpu import OnnxCpuExecutor

    return OnnxCpuExecutor(bundle, threads=threads)


def check_feeds(graph: Graph, feeds: Mapping[str, Array]) -> None:
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
