"""Errors between a bundle and its engines, as types that a program can catch.

Each type is also a built-in one, as in the runtime. The message is one line. It names the file and says how to fix it.
"""


class EngineError(Exception):
    """Base of every error of this package."""


class EngineLibraryError(EngineError, RuntimeError):
    """TensorRT or TensorRT-RTX is not installed, too old, or needs a GPU that is not there."""


class EngineRequestError(EngineError, ValueError):
    """A request that cannot be met: unknown graph or capability, number of stems out of range."""


class EngineSourceError(EngineError, ValueError):
    """A bundle whose graphs cannot be read or are not what its manifest says."""


class EngineBuildError(EngineError, RuntimeError):
    """The library could not parse or build a graph. The message quotes the library."""


class EnginesMissingError(EngineError, FileNotFoundError):
    """The bundle has no engines for this target, or not the requested one."""


class EngineRefusedError(EngineError, ValueError):
    """An engine that must not be loaded here: wrong version or capability, altered, incomplete, from another graph."""
