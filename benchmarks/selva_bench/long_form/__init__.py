"""Measures stems that are longer than the demo model's training clips: events, joins, voice and cost."""
