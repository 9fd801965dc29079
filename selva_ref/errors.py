"""Errors in checkpoints that a user can fix."""

from selva_bundle.errors import SelvaError


class CheckpointError(SelvaError, ValueError):
    """A checkpoint that is damaged, unsafe, or does not fit the network."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint that does not exist."""
