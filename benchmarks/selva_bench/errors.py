"""What stops a benchmark."""

from selva_runtime import SelvaError


class BenchError(SelvaError, RuntimeError):
    """A benchmark that cannot be run as it was asked for; the message says how to mend it."""
