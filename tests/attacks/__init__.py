"""Attacks that stay: seeded damage to what a user may hand in, and to a running command; see `campaign`.

`make test` runs a few of each kind, `make attack` a thousand.
"""
