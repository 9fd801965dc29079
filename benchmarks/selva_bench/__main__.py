"""python -m selva_bench, for a checkout that is not installed."""

from selva_runtime.start import bench

bench()
