"""`selva-generate`, and what all commands of this project share: streams, signals, one-line error messages."""
