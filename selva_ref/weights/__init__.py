"""Official weights: what a preset needs, getting it, and reading it without trusting it."""
