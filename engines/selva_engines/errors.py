"""What can go wrong between a bundle and its engines, as types a program can catch.

Each is also a built-in kind, as in the runtime. The message is one line that names the file and says how to mend it.
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
    """The library could not parse or build a graph; the message carries what it said."""


class EnginesMissingError(EngineError, FileNotFoundError):
    """The bundle has no engines for this target, or not this one."""


class EngineRefusedError(EngineError, ValueError):
    """An engine that must not be loaded here: wrong version or capability, altered, half-written, of another graph."""
