"""Fuzzing: seeded damage to files that a user may supply, and to a running command; `campaign` runs the attacks.

`make test` runs a few of each kind, `make attack` a thousand.
"""
