"""Plain networks whose parameters have the official names."""
