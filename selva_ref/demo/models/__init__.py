"""Training of each network of the demo model from scratch."""
