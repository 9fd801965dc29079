"""The demo model: a small world of sounding objects, and the training of every network in it from scratch.

It is a toy that lets you try everything offline in seconds, and that tests the training code. The official weights know
real sounds; the demo knows eight.
"""
