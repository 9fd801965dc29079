"""Build TensorRT or TensorRT-RTX engines from the ONNX graphs of a bundle, and load them.

`build_engines` makes a folder of engines, `find_engines` finds the folder that fits a GPU, and `EngineLoader` gives
its engines to the library. The package imports neither PyTorch nor the runtime. The libraries are extras, and only
`library` imports them.
"""

from selva_engines.assemble import BuildRequest, build_engines
from selva_engines.device import device_capability
from selva_engines.errors import (
    EngineBuildError,
    EngineError,
    EngineLibraryError,
    EngineRefusedError,
    EngineRequestError,
    EnginesMissingError,
    EngineSourceError,
)
from selva_engines.library import TARGETS, Library, installed_targets, load_library
from selva_engines.loading import EngineLoader
from selva_engines.records import EngineRecord
from selva_engines.report import inspect
from selva_engines.store import EngineSet, find_engines

__all__ = [
    "TARGETS",
    "BuildRequest",
    "EngineBuildError",
    "EngineError",
    "EngineLibraryError",
    "EngineLoader",
    "EngineRecord",
    "EngineRefusedError",
    "EngineRequestError",
    "EngineSet",
    "EngineSourceError",
    "EnginesMissingError",
    "Library",
    "build_engines",
    "device_capability",
    "find_engines",
    "inspect",
    "installed_targets",
    "load_library",
]
