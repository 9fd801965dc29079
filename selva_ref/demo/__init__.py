"""The demo model: a small world of things that sound, and the training of every network from nothing in it.

A toy, made so that everything can be tried offline in seconds and so that the training code proves itself. The
official weights know real sounds; this knows eight.
"""
