"""The contract between export, engines and runtime: what a bundle is, checked by the code that also writes it.

Imports NumPy at most.
"""
