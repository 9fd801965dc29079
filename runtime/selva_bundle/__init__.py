"""The bundle format that export, engines and runtime share. The code that writes a bundle also checks it.

NumPy is the only dependency.
--
"""
