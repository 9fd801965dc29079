"""Run selva-generate as `python -m selva_runtime`, for a checkout that is not installed."""

from selva_runtime.command.start import generate

generate()
