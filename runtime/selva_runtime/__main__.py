"""python -m selva_runtime: selva-generate, for a checkout that is not installed."""

from .start import generate

generate()
