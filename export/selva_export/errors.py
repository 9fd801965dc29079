"""What can go wrong between checkpoints and a bundle."""

from selva_bundle.errors import SelvaError


class ExportError(SelvaError, ValueError):
    """A request that cannot be met; the message says how to mend it."""


class ParityError(ExportError):
    """A graph that does not compute what the reference computes: nothing is written."""
