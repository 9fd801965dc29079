"""Errors on the way from checkpoints to a bundle."""

from selva_bundle.errors import SelvaError


class ExportError(SelvaError, ValueError):
    """A request that cannot be met; the message says how to fix it."""


class ParityError(ExportError):
    """A graph whose outputs differ from the reference; nothing is written."""
