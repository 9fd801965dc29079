"""Training examples: two clips mixed on the fly; all random numbers depend on (seed, step, item)."""
