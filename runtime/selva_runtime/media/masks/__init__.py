"""Masks that keep a part of the picture: from a video, a folder of PNGs or one picture, or from a caller's array."""
