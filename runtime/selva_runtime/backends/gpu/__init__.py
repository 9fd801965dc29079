"""Graphs whose data stays on a device: memory, launches, recordings, and the libraries that run them."""
