"""`selva-generate`, and what every command of this project does: streams, signals, one line for a failure."""
