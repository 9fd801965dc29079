"""A rendered world of objects that sound exactly when their picture shows it."""
