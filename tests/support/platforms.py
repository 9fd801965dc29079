"""What tests need of the operating system."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

needs_posix = pytest.mark.skipif(
    os.name != "posix", reason="needs POSIX: its signals, descriptors, file rights, links and limits"
)
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Simulates a full disk: this process and its children cannot write a file beyond `limit_bytes`."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
