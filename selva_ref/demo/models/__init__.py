"""How each network of the demo model is trained from nothing."""
