"""Measures how long stems take: the runtime's backends and the PyTorch reference, in turn, on the same video."""
