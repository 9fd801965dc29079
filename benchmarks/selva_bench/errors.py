"""Errors that stop a benchmark."""

from selva_runtime import SelvaError


class BenchError(SelvaError, RuntimeError):
    """A benchmark that cannot run as requested; the message says how to fix it."""
