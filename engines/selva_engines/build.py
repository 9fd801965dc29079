"""Build one engine from one graph, in memory. The steps are the same for both libraries.

TensorRT-RTX builds for kinds of GPU that need not be present, TensorRT for the GPU that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

from selva_engines.errors import EngineBuildError, EngineLibraryError, EngineRequestError
from selva_engines.layers import Layer, parse_layers
from selva_engines.library import Library
from selva_engines.network import NetworkSummary, summarise
from selva_engines.profiles import EngineDescription


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """An engine in memory."""

    blob: Any
    """The serialised engine as a buffer."""
    network: NetworkSummary
    layers: tuple[Layer, ...]
    parse_s: float
    build_s: float


def build_engine(
    library: Library,
    onnx_path: Path,
    description: EngineDescription,
    *,
    capabilities: Sequence[str] = (),
    strip_weights: bool = False,
    cancelled: Event | None = None,
) -> BuiltEngine:
    """Parse one graph and build its engine.

    Args:
        library: from `load_library`.
        onnx_path: the graph. Its external data is in the same folder.
        description: from `describe`.
        capabilities: compute capabilities such as "8.6" (TensorRT-RTX). Empty means the library's default.
        strip_weights: leave the weights out. They can be refitted from the same ONNX file.
        cancelled: if it is set, the build ends soon with `EngineBuildError`.

    Raises:
        EngineBuildError: the library refused the graph, or the build was cancelled. The message quotes the library.
        EngineRequestError: the library does not know a capability.
        EngineLibraryError: the library could not make a builder or a network.
    """
    api = library.api
    library.log.clear()
    start = perf_counter()
    builder = _require(library, "builder", api.Builder(library.logger))
    network = _require(library, "network", builder.create_network(0))
    parser = api.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(onnx_path)):
        said = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise EngineBuildError(f"{library.target.name} cannot parse {onnx_path}: {said or library.log.error_line()}")
    summary = summarise(api, network)
    parsed = perf_counter()
    config = _config(library, builder, description, capabilities, strip_weights)
    if cancelled is not None:
        config.progress_monitor = _monitor(api, cancelled)
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise EngineBuildError(_failure_message(library, description.graph, strip_weights, cancelled))
    return BuiltEngine(
        blob=blob,
        network=summary,
        layers=parse_layers(library.log.details),
        parse_s=parsed - start,
        build_s=perf_counter() - parsed,
    )


def check_capabilities(library: Library, capabilities: Sequence[str]) -> None:
    """Check that the library can build for these capabilities.

    Raises:
        EngineRequestError: the library does not know one of them.
    """
    for capability in capabilities:
        _compute_capability(library, capability)


def _config(
    library: Library,
    builder: Any,
    description: EngineDescription,
    capabilities: Sequence[str],
    strip_weights: bool,
) -> Any:
    api, flags = library.api, library.api.BuilderFlag
    config = builder.create_builder_config()
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # names and types of the layers; a run is not slower
    workspace = api.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(workspace, min(description.workspace_bytes, config.get_memory_pool_limit(workspace)))
    if description.precision == "fp32":
        config.clear_flag(flags.TF32)  # an fp32 bundle promises float32 products
    if hasattr(flags, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)  # the runtime allocates the memory, so a CUDA graph can use it
    if strip_weights:
        config.set_flag(flags.STRIP_PLAN)
        config.set_flag(flags.REFIT_IDENTICAL)  # the same weights come back, so they may be fused and rearranged
    if capabilities and not library.target.needs_gpu:
        config.num_compute_capabilities = len(capabilities)
        for i, capability in enumerate(capabilities):
            config.set_compute_capability(_compute_capability(library, capability), i)
    profile = builder.create_optimization_profile()
    for item in description.inputs:
        profile.set_shape(item.name, *item.shapes)
    if config.add_optimization_profile(profile) < 0:
        raise EngineBuildError(f"graph {description.graph}: the profile was rejected: {library.log.error_line()}")
    return config


def _compute_capability(library: Library, capability: str) -> Any:
    known = library.api.ComputeCapability.__members__
    name = f"SM{capability.replace('.', '')}"
    if name not in known:
        versions = sorted((int(n[2:-1]), int(n[-1])) for n in known if n.startswith("SM"))
        listed = ", ".join(f"{major}.{minor}" for major, minor in versions)
        raise EngineRequestError(
            f"{library.target.name} cannot build for compute capability {capability!r}, only for {listed}"
        )
    return known[name]


def _require(library: Library, what: str, thing: Any) -> Any:
    if thing is None:
        raise EngineLibraryError(f"{library.target.name} could not create a {what}: {library.log.error_line()}")
    return thing


def _failure_message(library: Library, graph: str, strip_weights: bool, cancelled: Event | None) -> str:
    if cancelled is not None and cancelled.is_set():
        return f"building {graph} was interrupted"
    said = library.log.error_line()
    fix = ""
    if strip_weights and "cuda" in said.lower():
        fix = " (building engines without weights needs a GPU, and none can be used: leave out --strip-weights)"
    elif "OutOfMemory" in said or "workspace" in said:
        fix = " (to use less memory, lower --max-stems)"
    return f"{library.target.name} {library.version} cannot build {graph}: {said}{fix}"


def _monitor(api: Any, cancelled: Event) -> Any:
    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
