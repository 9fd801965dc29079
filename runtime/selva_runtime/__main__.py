"""python -m selva_runtime: selva-generate, for a checkout that is not installed."""

from selva_runtime.command.start import generate

generate()
