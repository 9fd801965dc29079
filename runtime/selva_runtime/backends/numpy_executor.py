"""Common base of the CPU backends: their tensors are NumPy arrays, and they run one stem or segment at a time.

On a CPU larger batches cost memory and save no time: four stems take four times as long as one, within 2 % in float32.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from threading import Event
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BackendError, RequestError
from selva_bundle.manifest import Graph
from selva_runtime.backends.axes import output_shapes
from selva_runtime.backends.executor import Array, Tensor, check_cancel, check_feeds, check_process


class NumpyExecutor(ABC):
    """Runs the graphs of one bundle on NumPy arrays. A subclass adds `load`, `release`, `_run` and its name."""

    backend: ClassVar[str]
    notice = ""
    keeps_text_towers = False
    text_lengths: tuple[int, ...] = ()
    loop = None

    def __init__(self, bundle: Bundle, reason: str) -> None:
        self.reason = reason
        self.segments_per_batch = self.stems_per_batch = self.stems_per_decode = 1
        self._bundle = bundle
        self._process = os.getpid()

    @abstractmethod
    def load(self, name: str) -> None:
        """Verify the files of graph `name` and load it, unless it is loaded."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""

    @abstractmethod
    def _run(self, graph: Graph, feeds: Mapping[str, Array], cancel: Event | None) -> dict[str, Array]:
        """Run a graph on feeds that were checked, and return its outputs by name."""

    def run(self, name: str, feeds: Mapping[str, Tensor], cancel: Event | None = None) -> dict[str, Tensor]:
        """Run graph `name` and return its outputs by name. `cancel` stops the run at once or soon."""
        check_process(self._process)
        graph = self._bundle.manifest.graphs[name]
        check_feeds(graph, feeds)
        check_cancel(cancel)
        arrays = {port: np.ascontiguousarray(np.asarray(values)) for port, values in feeds.items()}
        outputs = self._run(graph, arrays, cancel)
        _check_outputs(graph, arrays, outputs)
        return dict(outputs)

    def read(self, *tensors: Tensor) -> tuple[Array, ...]:
        """Return the tensors as NumPy arrays."""
        return tuple(np.asarray(values) for values in tensors)

    def idle(self, name: str) -> None:
        """Release graph `name`, because memory is short in a CPU run."""
        self.release(name)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """Make a tensor with undefined values."""
        return np.empty(shape, dtype)

    def put(self, values: Tensor) -> Tensor:
        """Return `values` as a NumPy array."""
        return np.asarray(values)

    def adopt(self, array: Any) -> Tensor:
        """Refuse another library's GPU array.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"the {self.backend} backend takes NumPy arrays, not arrays on a GPU; copy the array to the host first"
        )

    def after(self, stream: int) -> None:
        """Refuse to wait for a stream.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"the {self.backend} backend has no streams; leave out stream, or choose the backend cuda or tensorrt"
        )

    def finish(self) -> None:  # noqa: B027 -- doing nothing is meant
        """Do nothing: a CPU backend has nothing to save."""


def _check_outputs(graph: Graph, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Raise `BackendError` unless the outputs are as the manifest says. A bundle's graphs may come from anyone."""
    shapes = output_shapes(graph, {name: values.shape for name, values in feeds.items()})
    for port in graph.outputs:
        values = outputs[port.name]
        if values.shape != shapes[port.name] or values.dtype != np.dtype(port.dtype):
            raise BackendError(
                f"graph {graph.name} returned {port.name} as {values.dtype} {list(values.shape)}, "
                f"not {port.dtype} {list(shapes[port.name])}; export the bundle again"
            )
