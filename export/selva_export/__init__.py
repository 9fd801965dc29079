"""Turns checkpoints into a bundle."""
