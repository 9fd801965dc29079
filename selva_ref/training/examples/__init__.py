"""What a step trains on: two clips mixed on the fly, every draw from (seed, step, item)."""
