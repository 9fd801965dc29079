"""Stems from a bundle, a video and prompts, without PyTorch."""
