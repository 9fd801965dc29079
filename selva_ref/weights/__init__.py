"""Official weights: what a preset needs, how to get it, and how to read it without trusting it."""
