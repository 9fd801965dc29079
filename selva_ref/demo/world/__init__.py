"""A rendered world of things that sound exactly when their picture shows it."""
