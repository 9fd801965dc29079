"""`python -m selva_bench`, for a checkout that is not installed."""

from selva_runtime.command.start import bench

bench()
