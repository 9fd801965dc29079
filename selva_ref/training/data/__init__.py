"""Turns videos and lists into features on disk, once."""
