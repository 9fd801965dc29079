"""Checkpoints in, bundle out."""
