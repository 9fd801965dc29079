"""Timelines that an editor opens: the picture and one named track a stem."""
