"""The networks, plain, under the official parameter names."""
